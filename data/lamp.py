"""LaMP-2: which category would this author file an article under? A line of the author's profile a context (table 24).

    python -m data.lamp PATH      # a folder with {train,dev}_questions.json and {train,dev}_outputs.json

A profile's entries ("the category for the article: ... is ...") of 100 tokens or more are left out, and so are
questions that lose more than a tenth of their profile that way. A train sample has 16 random entries, a test sample
the first t of 16 drawn once; the labels of LaMP's own test part are not public, so its dev part is the test. The
whole is at most 1,024 tokens. Accuracy takes the category of the highest summed log-likelihood. White space next to
COMP tokens is dropped.
"""

import json
from pathlib import Path

import numpy as np

from data.prepared import Lines, Preparation, lacks, main, one_of

MAX_ENTRY, MAX_SAMPLE, KEPT = 100, 1024, 0.9
MOST = 16  # contexts
SEED = 1337  # of the entries that a test sample has
ASKS = "article:"  # ends the instruction of a question
CATEGORIES = [
    "travel", "style & beauty", "food & drink", "sports", "business", "science & technology", "education", "politics",
    "religion", "crime", "parents", "women", "healthy living", "entertainment", "culture & arts",
]  # fmt: skip


def parsed(path: Path):
    """What a JSON file holds. Raises ValueError with file and line."""
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: no JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: this is not UTF-8") from None


def read(path: Path, part: str, out: Preparation):
    """The questions of a part, each with its answer, that are as they should be."""
    file, answers_file = (one_of(path, f"{part}_{name}.json") for name in ("questions", "outputs"))
    questions, answers = parsed(file), parsed(answers_file)
    if not isinstance(questions, list) or not questions:
        raise ValueError(f"{file} is empty, or no list of questions")
    golds = answers.get("golds") if isinstance(answers, dict) else None
    if not isinstance(golds, list):
        raise ValueError(f"{answers_file}, line 1: the list 'golds' is missing")
    known = {str(gold["id"]): gold.get("output") for gold in golds if isinstance(gold, dict) and "id" in gold}
    for number, question in enumerate(questions, 1):
        where = f"{file}, question {number}"
        what = lacks(question, {"id": object, "input": str, "profile": object})
        if not what and ASKS not in question["input"]:
            what = f"'input' does not ask for the category of an {ASKS[:-1]}: this is no question of LaMP-2"
        if not what:
            profile = question["profile"] if isinstance(question["profile"], list) else [None]
            wrong = [lacks(entry, {"text": str, "category": str}) for entry in profile]
            what = next((f"profile: {one}" for one in wrong if one), "" if profile else "the profile is empty")
        if not what and known.get(str(question["id"])) not in CATEGORIES:
            what = f"{answers_file.name} has no answer to it that is a category"
        if what:
            out.bad(where, what)
        else:
            yield question | {"output": known[str(question["id"])]}


def prepare(path: Path, out: Preparation) -> None:
    for part, split in (("train", "train"), ("dev", "test")):
        drawn = np.random.default_rng(SEED)
        for question in read(path, part, out):
            entries = [f'the category for the article: "{e["text"]}" is "{e["category"]}"' for e in question["profile"]]
            entries = [(entry, out.count(entry)) for entry in entries]
            short = [entry for entry in entries if entry[1] < MAX_ENTRY]
            if len(short) < KEPT * len(entries):
                out.leave_out(f"{split}: more than a tenth of the profile has entries of {MAX_ENTRY} tokens or more")
                continue
            if split == "test":  # once for all, in the order of the file
                short = [short[i] for i in drawn.choice(len(short), MOST, replace=len(short) < MOST)]
            at = question["input"].rindex(ASKS) + len(ASKS)
            instruction, article = question["input"][:at].strip(), question["input"][at:].strip()
            room = MAX_SAMPLE - out.count(asking(instruction, article)) - max(map(out.count, CATEGORIES)) - 1
            record = {"entries": short, "instruction": instruction, "article": article, "output": question["output"]}
            out.add(split, record | {"room": room})


def asking(instruction: str, article: str) -> str:
    return f". {instruction}\nInput: {article}\nOutput:"


def asked(record: dict, entries: list) -> dict:
    """A sample of those first entries that fit."""
    contexts, room = [], record["room"]
    for text, tokens in entries:
        room -= tokens
        if room < 0:
            break
        contexts.append(f", and {text}" if contexts else f"Instruction: {text}")
    texts = {
        "contexts": contexts,
        "input": asking(record["instruction"], record["article"]),
        "target": record["output"],
    }
    return texts | {"separator": "", "options": CATEGORIES}


def draw(lines: Lines, index: int, random) -> dict:
    record = lines[index]
    entries = record["entries"]
    drawn = random.sample(entries, MOST) if len(entries) >= MOST else random.choices(entries, k=MOST)
    return asked(record, drawn)


def first(lines: Lines, index: int, time_step: int) -> dict | None:
    record = lines[index]
    return asked(record, record["entries"][:time_step])


if __name__ == "__main__":
    main(prepare, __doc__, "lamp")
