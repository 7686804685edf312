"""DailyDialog: real conversations, one turn a context (the paper's tables 16, 25).

    python -m data.dailydialog PATH       # a folder with train.zip, validation.zip and test.zip, or with their contents

Spaces before punctuation are removed, and "\\nA:" separates the turns of both speakers. A dialogue is kept if it has
at least 3 turns, none empty or of more than 128 tokens, and at most 400 tokens in training or 600 in evaluation.
Evaluation takes the official validation and test parts together. Training cuts a dialogue at a random turn. Time step
t takes the first t + 2 turns of the dialogues that have as many (t = 12 takes 15): t contexts, one input, one target.
"""

from pathlib import Path

from data.prepared import Lines, Preparation, lacks, main, one_of, text_lines
from minccm.io.untrusted import error

SEPARATOR = "\nA:"
MAX_TURN, MAX_TRAIN, MAX_TEST = 128, 400, 600  # tokens
END = "__eou__"
SPACED = ((" ,", ","), (" .", "."), (" '", "'"), (" ?", "?"), (" !", "!"), (" ;", ";"), ("' ", "'"))


def clean(text: str) -> str:
    """A turn as the paper feeds it: no space before punctuation, one after each full stop."""
    text = text.replace("。", ".").replace("’", "'")
    for spaced, closed in SPACED:
        text = text.replace(spaced, closed)
    return ". ".join(part.strip() for part in text.split(".")).strip()


def read(path: Path, part: str, out: Preparation):
    """(where, raw turns) of each dialogue of an official part: "train", "validation" or "test"."""
    file = f"dialogues_{part}.txt"
    for where, line in text_lines(one_of(path, f"{part}.zip", f"{part}/{file}", file), out, file):
        if END not in line:
            out.bad(error(where, f"no turn ends in {END}: this is not a dialogue of DailyDialog"))
        else:
            yield where, [turn.strip() for turn in line.split(END)[:-1]]


def prepare(path: Path, out: Preparation) -> None:
    for part, split, most in (
        ("train", "train", MAX_TRAIN),
        ("validation", "test", MAX_TEST),
        ("test", "test", MAX_TEST),
    ):
        for _, raw in read(path, part, out):
            keep(out, split, [clean(turn) for turn in raw], most)


def keep(out: Preparation, split: str, turns: list[str], most: int) -> None:
    """Adds a dialogue of cleaned turns, unless the paper leaves it out."""
    lengths = [out.count(turn) for turn in turns]
    if len(turns) < 3:
        out.leave_out(f"{split}: fewer than 3 turns")
    elif not all(turns):
        out.leave_out(f"{split}: an empty turn")
    elif max(lengths) > MAX_TURN:
        out.leave_out(f"{split}: a turn of more than {MAX_TURN} tokens")
    elif sum(lengths) > most:
        out.leave_out(f"{split}: more than {most} tokens")
    else:
        out.add(split, {"turns": turns})


def problem(record: object) -> str:
    """What is wrong with a record of a prepared folder; empty if nothing is."""
    if what := lacks(record, {"turns": list}):
        return what
    return "" if len(record["turns"]) >= 3 and all(record["turns"]) else "it needs 3 turns, none empty"


def dialogue(turns: list[str]) -> dict:
    """t + 2 turns as a sample. Every turn answers those before it, and training can learn from each ("answers")."""
    answers = list(range(1, len(turns) - 2))
    return {"contexts": turns[:-2], "input": turns[-2], "target": turns[-1], "separator": SEPARATOR, "answers": answers}


def draw(lines: Lines, index: int, random) -> dict:
    turns = lines[index]["turns"]
    return dialogue(turns[: random.randint(3, len(turns))])


def first(lines: Lines, index: int, time_step: int) -> dict | None:
    turns = lines[index]["turns"]
    count = 15 if time_step == 12 else time_step + 2
    return dialogue(turns[:count]) if len(turns) >= count else None


if __name__ == "__main__":
    main(prepare, __doc__, "dailydialog")
