"""Any text, in pieces: a context is up to 320 characters of it, the target the piece that comes next.

    python -m data.text PATH      # a text file, or a folder of .txt files (.txt.xz and .txt.gz as well)

Pieces end at white space where there is any; joined they make the text again, but for that, and runs of spaces are
one. Of each file the first 90% are for training, the next 5% for validation and the last 5% for testing. Up to 40
characters of the last piece are the input, as some text has to be there before any can be predicted.
"""

import re
from pathlib import Path

from data.prepared import Lines, Preparation, main, text_lines

PIECE = re.compile(r"\S.{0,319}(?!\S)|\S{320}", re.DOTALL)
GIVEN = re.compile(r".{1,40}(?!\S)|.{40}", re.DOTALL)  # of the last piece, as input
SHORT, LONG = 2, 10  # contexts of a train sample
LEAST = 50000  # characters of a file


def prepare(path: Path, out: Preparation) -> None:
    files = sorted(path.glob("*.txt*")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no .txt files")
    for number, file in enumerate(files):
        text = re.sub(r"[ \t]+", " ", "\n".join(line for _, line in text_lines(file, out)))
        if "\0" in text:
            raise ValueError(f"{file} is no text: it holds zero bytes")
        if len(text) < LEAST:
            out.leave_out(f"files of fewer than {LEAST:,} characters")
            continue
        for piece in PIECE.finditer(text):
            share = piece.start() / len(text)
            split = "train" if share < 0.9 else "validation" if share < 0.95 else "test"
            out.add(split, {"text": piece[0].rstrip(), "file": number}, hold_out=False)


def pieces(lines: Lines, index: int, contexts: int) -> dict | None:
    """A sample of the pieces from `index` on; None where the file ends before."""
    if index + contexts >= len(lines):
        return None
    *before, last = (lines[i] for i in range(index, index + contexts + 1))
    if before[0]["file"] != last["file"]:
        return None
    given = GIVEN.match(last["text"])[0]
    if given == last["text"]:
        return None
    return {
        "contexts": [piece["text"] for piece in before],
        "input": given.rstrip(),
        "target": last["text"][len(given) :].lstrip(),
        "separator": "",
        "answers": list(range(1, contexts)),
    }


def draw(lines: Lines, index: int, random) -> dict:
    contexts = random.randint(SHORT, LONG)
    sample = None
    while sample is None and contexts:
        sample = pieces(lines, index, contexts)
        contexts -= 1
    return sample or draw(lines, random.randrange(len(lines)), random)  # the last piece of a file has none after it


def first(lines: Lines, index: int, time_step: int) -> dict | None:
    return pieces(lines, index, time_step) if index % (time_step + 1) == 0 else None


if __name__ == "__main__":
    main(prepare, __doc__, "text")
