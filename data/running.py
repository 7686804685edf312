"""Running text, to train adapters for streaming: `--data text:PATH`, or a PATH that ends in .txt, .txt.xz or .txt.gz.

A sample is a part of the file, cut at spaces into chunks of about equal length. The contexts are compressed one by one,
the input is the newest text, the target the chunk after it. All chunks count as answers: one forward pass learns to
predict each from the memory of the chunks before it. No text separates the chunks ("separator"). The last tenth of a
file is kept apart, half of it for validation and half for testing.

A chunk has 80 to 320 characters, but at most 1.5 bytes a character: a token that is not in the vocabulary is spelled in
bytes, so a chunk of emoji has four times as many tokens as characters. A file has at most 256 MiB of text.
"""

import functools
import random
from collections.abc import Callable
from pathlib import Path

from data.archives import MAX_TEXT, read_whole
from minccm.io.untrusted import error

CHUNK = (80, 320)  # characters; a token has about four
BYTES = 1.5  # of a character in a chunk, at most and on average
CONTEXTS = 12  # chunks to be compressed, at most
LONGEST = 2400  # characters of a sample; most texts have four characters a token, tables two


def is_text(name: str) -> bool:
    return name.startswith("text:") or name.endswith((".txt", ".txt.xz", ".txt.gz"))


@functools.lru_cache(4)
def read_text(name: str) -> str:
    """The text of a file, compressed or not. Raises ValueError of one line if it is missing, empty or not text."""
    path = Path(name.removeprefix("text:"))
    if not path.is_file():
        raise error(path, "the file is missing: give a file of plain text, .txt, .txt.xz or .txt.gz")
    try:
        text = read_whole(path, MAX_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(path, f"it is not text in UTF-8 ({problem})") from None
    text = text.replace("\r\n", "\n")
    if not text.strip():
        raise error(path, "the file is empty: give a file with text in it")
    return text


def source(name: str, split: str, seed: int = 0) -> Callable[[int, int | None], dict]:
    """A function from index and `longest`, the number of contexts at most (or None), to a sample, as in data.source."""
    part(name, split)  # a file that cannot be used is an error here, not in the first step

    def make(index: int, longest: int | None = None) -> dict:
        draw = random.Random(f"text/{split}/{seed}/{index}")
        return sample(part(name, split), draw, draw.randint(1, min(longest or CONTEXTS, CONTEXTS)))

    return make


def at_step(name: str, split: str, time_step: int, count: int, seed: int = 0) -> list[dict]:
    """`count` samples of t contexts each. Sample i ends at about the same place for every t."""
    draws = (random.Random(f"text/{split}/{seed}/{index}") for index in range(count))
    return [sample(part(name, split), draw, time_step) for draw in draws]


@functools.lru_cache(8)
def part(name: str, split: str) -> str:
    """The text of one split. Raises ValueError where it is too short for a sample."""
    text = read_text(name)
    begin, end = {"train": (0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1)}[split]
    text = text[int(begin * len(text)) : int(end * len(text))]
    if len(text) < LONGEST:
        raise error(name, f"the file is too short: its part for {split} has {len(text)} of {LONGEST} characters")
    return text


def sample(text: str, draw: random.Random, contexts: int) -> dict:
    """`contexts` + 2 chunks of one size that end anywhere in `text`."""
    size = draw.randint(CHUNK[0], min(CHUNK[1], LONGEST // (contexts + 2)))
    end = draw.randint((contexts + 2) * size, len(text))
    cuts = []
    for _ in range(contexts + 2):  # from the last chunk to the first
        begin = end - _characters(text[end - size : end], int(BYTES * size))
        cuts.append(_space_before(text, end, min(CHUNK[0], end - begin) // 2))
        end = begin
    cuts.append(_space_before(text, end, CHUNK[0] // 2))
    *chunks, newest, target = (text[a:b].removeprefix(" ") for a, b in zip(cuts[::-1], cuts[-2::-1]))
    answers = list(range(len(chunks)))
    return {"contexts": chunks, "input": newest, "target": target, "answers": answers, "separator": ""}


def _characters(chunk: str, max_bytes: int) -> int:
    """How many characters at the end of a chunk have at most so many bytes."""
    return len(chunk.encode()[-max_bytes:].decode("utf-8", "ignore"))


def _space_before(text: str, place: int, reach: int) -> int:
    """The last space at most `reach` before a place, which a tokenizer joins to the next word; else the place."""
    space = text.rfind(" ", max(0, place - reach), place)
    return place if space < 0 else space
