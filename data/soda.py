"""SODA: a million conversations, half of the paper's mixture of datasets (`unified`; the paper's table 15).

    python -m data.soda PATH      # a folder with train.jsonl and valid.jsonl (also .xz, .gz), or one such file

A line is an object with "dialogue" (or "dialog"), a list of turns. The format is DailyDialog's, with lighter cleaning.
A dialogue is kept if it has at least 3 turns, none empty, and at most 512 tokens. Evaluation takes the first 2,000
of the validation part; if there is one file only, every hundredth dialogue.
"""

from pathlib import Path

from data.dailydialog import draw, first, keep, problem
from data.prepared import Preparation, json_lines, main, one_of
from minccm.io.untrusted import error

__all__ = ["draw", "first", "prepare", "problem"]
MOST, TESTED = 512, 2000
SPACED = (("。", "."), ("’", "'"), (" ,", ","), (" .", "."), (" ?", "?"), (" !", "!"), (" ;", ";"))


def clean(text: str) -> str:
    for spaced, closed in SPACED:
        text = text.replace(spaced, closed)
    return text.strip()


def read(path: Path, out: Preparation):
    """(where, turns) of each dialogue of a file."""
    for where, record in json_lines(path, out):
        turns = record.get("dialogue", record.get("dialog"))
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            out.bad(error(where, "'dialogue' is missing, or is not a list of strings"))
        else:
            yield where, [clean(turn) for turn in turns]


def prepare(path: Path, out: Preparation) -> None:
    if path.is_file():
        parts = [(path, "train")]
    else:
        ends = (".jsonl", ".jsonl.xz", ".jsonl.gz", ".json")
        valid = one_of(path, *(f"{name}{end}" for name in ("valid", "validation") for end in ends))
        parts = [(one_of(path, *(f"train{end}" for end in ends)), "train"), (valid, "test")]
    for file, split in parts:
        for index, (_, turns) in enumerate(read(file, out)):
            enough = out.found["test"] == TESTED
            if split == "test" and enough:
                break
            of = "test" if len(parts) == 1 and index % 100 == 99 and not enough else split
            keep(out, of, turns, MOST)


if __name__ == "__main__":
    main(prepare, __doc__, "soda")
