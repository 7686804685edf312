"""LaMP-2: which category would this author file an article under? A line of the author's profile a context (table 24).

    python -m data.lamp PATH      # a folder with {train,dev}_questions.json and {train,dev}_outputs.json, 4 GiB each

Profile entries ("the category for the article: ... is ...") of 100 tokens or more are left out, and so are questions
that lose more than a tenth of their profile in this way. A train sample has 16 random entries. A test sample has the
first t of 16 that were drawn once. The labels of LaMP's own test part are not public, so its dev part is the test.
A sample has at most 1,024 tokens. The chosen category has the highest summed log-likelihood. White space next to COMP
tokens is dropped.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data import archives
from data.prepared import Lines, Preparation, lacks, main, one_of
from minccm.io.untrusted import error, parse_json, read_json

MAX_ENTRY, MAX_SAMPLE, KEPT = 100, 1024, 0.9
MAX_FILE = 4 * 2**30  # bytes
MAX_OUTPUTS = 64 * 2**20  # bytes of a file of answers
MOST = 16  # contexts
SEED = 1337  # of the entries that a test sample has
ASKS = "article:"  # ends the instruction of a question
CATEGORIES = [
    "travel", "style & beauty", "food & drink", "sports", "business", "science & technology", "education", "politics",
    "religion", "crime", "parents", "women", "healthy living", "entertainment", "culture & arts",
]  # fmt: skip


# A string, which ends with the text at the latest, or a bracket.
STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def objects(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line, text) of each object in a JSON list of objects. Raises ValueError for anything else.

    A profile has hundreds of entries, and a file thousands of profiles: only one is parsed at a time.
    """
    text = archives.read_whole(path, MAX_FILE)
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        raise error(path, "the file is empty, or not a list of questions")
    depth, begin, line, counted = 0, 0, 1, 0
    for match in STRING_OR_BRACKET.finditer(text):
        bracket = match[0]
        if bracket in b"[{":
            depth += 1
            if depth == 2:
                begin = match.start()
        elif bracket in b"]}":
            depth -= 1
            if depth == 1:
                line, counted = line + text.count(b"\n", counted, begin), begin
                yield line, text[begin : match.end()]
            if depth <= 0:
                break
    if depth:
        raise error(path, "the file is cut off: a bracket is not closed")


def read(path: Path, part: str, out: Preparation) -> Iterator[dict]:
    """The well-formed questions of a part, each with its answer as "output"."""
    file, answers_file = (one_of(path, f"{part}_{name}.json") for name in ("questions", "outputs"))
    answers = read_json(answers_file, MAX_OUTPUTS)
    golds = answers.get("golds") if isinstance(answers, dict) else None
    if not isinstance(golds, list):
        raise error(answers_file, "the list 'golds' is missing")
    known = {str(gold["id"]): gold.get("output") for gold in golds if isinstance(gold, dict) and "id" in gold}
    number = 0
    for number, (line, text) in enumerate(objects(file), 1):
        where = f"{file}, question {number}"
        try:
            question = parse_json(text, f"{where}, from line {line}")
        except ValueError as problem:
            out.bad(problem)
            continue
        what = lacks(question, {"id": object, "input": str, "profile": object})
        if not what and ASKS not in question["input"]:
            what = f"'input' does not ask for the category of an {ASKS[:-1]}: this is not a question of LaMP-2"
        if not what:
            profile = question["profile"] if isinstance(question["profile"], list) else [None]
            wrong = [lacks(entry, {"text": str, "category": str}) for entry in profile]
            what = next((f"profile: {one}" for one in wrong if one), "" if profile else "the profile is empty")
        if not what and known.get(str(question["id"])) not in CATEGORIES:
            what = f"{answers_file.name} has no answer to it that is a category"
        if what:
            out.bad(error(where, what))
        else:
            yield question | {"output": known[str(question["id"])]}
    if not number:
        raise error(file, "the file is empty, or not a list of questions")


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
            room = MAX_SAMPLE - out.count(question_text(instruction, article)) - max(map(out.count, CATEGORIES)) - 1
            record = {"entries": short, "instruction": instruction, "article": article, "output": question["output"]}
            out.add(split, record | {"room": room})


def question_text(instruction: str, article: str) -> str:
    return f". {instruction}\nInput: {article}\nOutput:"


def problem(record: object) -> str:
    """What is wrong with a record of a prepared folder; empty if nothing is."""
    what = lacks(record, {"entries": object, "instruction": str, "article": str, "output": str, "room": int})
    pair = lambda x: isinstance(x, list) and len(x) == 2 and isinstance(x[0], str) and type(x[1]) is int
    if not what and not (
        isinstance(record["entries"], list) and record["entries"] and all(map(pair, record["entries"]))
    ):
        what = "'entries' must be a list of pairs [text, tokens]"
    return what


def make_sample(record: dict, entries: list) -> dict:
    """A sample of the first entries that fit."""
    contexts, room = [], record["room"]
    for text, tokens in entries:
        room -= tokens
        if room < 0:
            break
        contexts.append(f", and {text}" if contexts else f"Instruction: {text}")
    texts = {
        "contexts": contexts,
        "input": question_text(record["instruction"], record["article"]),
        "target": record["output"],
    }
    return texts | {"separator": "", "options": CATEGORIES}


def draw(lines: Lines, index: int, random) -> dict:
    record = lines[index]
    entries = record["entries"]
    drawn = random.sample(entries, MOST) if len(entries) >= MOST else random.choices(entries, k=MOST)
    return make_sample(record, drawn)


def first(lines: Lines, index: int, time_step: int) -> dict | None:
    record = lines[index]
    return make_sample(record, record["entries"][:time_step])


if __name__ == "__main__":
    main(prepare, __doc__, "lamp")
