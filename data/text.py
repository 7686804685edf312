"""Any text, in pieces: a context is some 64 words of it, the target the piece that comes next.

    python -m data.text PATH      # a text file, or a folder of .txt files (.txt.xz and .txt.gz as well)

Pieces joined make the text again, but for the white space between them. Of each file the first 90% are for training,
the next 5% for validation and the last 5% for testing. The first 8 words of the last piece are the input, as some
text has to be there before any can be predicted.
"""

import re
from pathlib import Path

from data.prepared import Lines, Preparation, main, text_lines

WORDS, GIVEN = 64, 8  # words of a piece, and of the last one as input
PIECE = re.compile(rf"\S+(\s+\S+){{{WORDS - 1}}}")
SHORT, LONG = 2, 12  # contexts of a train sample
LEAST = 100  # pieces of a file


def prepare(path: Path, out: Preparation) -> None:
    files = sorted(path.glob("*.txt*")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no .txt files")
    for number, file in enumerate(files):
        text = "\n".join(line for _, line in text_lines(file, out))
        if "\0" in text:
            raise ValueError(f"{file} is no text: it holds zero bytes")
        if len(text.split(None, LEAST * WORDS)) < LEAST * WORDS:
            out.leave_out(f"files of fewer than {LEAST * WORDS:,} words")
            continue
        for piece in PIECE.finditer(text):
            share = piece.start() / len(text)
            split = "train" if share < 0.9 else "validation" if share < 0.95 else "test"
            out.add(split, {"text": piece[0], "file": number}, hold_out=False)


def pieces(lines: Lines, index: int, contexts: int) -> dict | None:
    """A sample of the pieces from `index` on; None where the file ends before."""
    if index + contexts >= len(lines):
        return None
    *before, last = (lines[i] for i in range(index, index + contexts + 1))
    if before[0]["file"] != last["file"]:
        return None
    given = re.match(rf"(\S+\s+){{{GIVEN}}}", last["text"]).end()
    return {
        "contexts": [piece["text"] for piece in before],
        "input": last["text"][:given].rstrip(),
        "target": last["text"][given:],
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
