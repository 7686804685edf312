"""Any text, in pieces: a context is up to 320 characters of it, the target the following piece.

    python -m data.text PATH      # a text file, or a folder of .txt files (.txt.xz and .txt.gz as well), 256 MiB each

A piece ends at white space where there is any, and has at most 480 bytes. Joined, the pieces are the text again, except
for white space between them and runs of spaces. The first 90% of a file are for training, the next 5% for validation
and the last 5% for testing. Up to 40 characters of the last piece are the input: the first token to be predicted needs
some text before it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data import archives
from data.prepared import Lines, Preparation, lacks, main
from minccm.io.untrusted import error

PIECE = re.compile(r"\S.{0,319}(?!\S)|\S{320}", re.DOTALL)
MAX_BYTES = 480  # of a piece in UTF-8: a token that is not in a vocabulary is spelled in bytes
GIVEN = re.compile(r".{1,40}(?!\S)|.{40}", re.DOTALL)  # of the last piece, as input
SHORT, LONG = 2, 10  # contexts of a train sample
LEAST = 50000  # characters of a file
TRIES = 100  # records that are tried until one has a following piece


def prepare(path: Path, out: Preparation) -> None:
    files = sorted(path.glob("*.txt*")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no .txt files")
    for number, file in enumerate(files):
        text = re.sub(r"[ \t]+", " ", read(file, out))
        if "\0" in text:
            raise error(file, "it is not text: it holds zero bytes")
        if len(text) < LEAST:
            out.leave_out(f"files of fewer than {LEAST:,} characters")
            continue
        for start, piece in cut(text):
            share = start / len(text)
            split = "train" if share < 0.9 else "validation" if share < 0.95 else "test"
            out.add(split, {"text": piece, "file": number}, hold_out=False)


def read(file: Path, out: Preparation) -> str:
    """The text of a file; with --skip-bad without the lines that are not UTF-8."""
    content = archives.read_whole(file, archives.MAX_TEXT)
    if not content:
        raise error(file, "the file is empty")
    lines = []
    for number, line in enumerate(content.replace(b"\r\n", b"\n").split(b"\n"), 1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            out.bad(error(f"{file}, line {number}", "this is not UTF-8"))
    return "\n".join(lines)


def cut(text: str) -> Iterator[tuple[int, str]]:
    """(place, piece) of each piece of a text."""
    for match in PIECE.finditer(text):
        piece = match[0].rstrip()
        while len(piece.encode()) > MAX_BYTES:
            head = piece.encode()[:MAX_BYTES].decode("utf-8", "ignore")
            end = max(head.rfind(" "), head.rfind("\n"))
            end = end if end > 0 else len(head)
            yield match.start(), piece[:end].rstrip()
            piece = piece[end:].lstrip()
        yield match.start(), piece


def problem(record: object) -> str:
    """What is wrong with a record of a prepared folder; empty if nothing is."""
    what = lacks(record, {"text": str, "file": int})
    return what or ("" if record["text"].strip() else "'text' is empty")


def pieces(lines: Lines, index: int, contexts: int) -> dict | None:
    """A sample of `contexts` + 1 pieces, from `index`; None if the file ends earlier."""
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
    for _ in range(TRIES):
        for contexts in range(random.randint(SHORT, LONG), 0, -1):
            if sample := pieces(lines, index, contexts):
                return sample
        index = random.randrange(len(lines))  # the last piece of a file has none after it
    raise error(lines.path, "no piece has another one of the same file after it: prepare it again")


def first(lines: Lines, index: int, time_step: int) -> dict | None:
    return pieces(lines, index, time_step) if index % (time_step + 1) == 0 else None


if __name__ == "__main__":
    main(prepare, __doc__, "text")
