"""Running text, to train adapters for streaming: `--data text:PATH`, or a PATH that ends in .txt or .txt.xz.

A sample is a stretch of the file, cut at spaces into chunks of about equal length: the contexts, each to be compressed,
the newest text, which is the input, and what comes next, the target. All chunks count as answers: one forward pass
learns to predict each from the memory of those before it. Nothing stands between them ("separator"). The last tenth of
a file is kept apart, for validation and test, half each.
"""

import functools
import lzma
import random
from collections.abc import Callable
from pathlib import Path

CHUNK = (80, 320)  # characters; a token has about four
CONTEXTS = 12  # chunks to be compressed, at most
LONGEST = 2400  # characters of a sample, of which most texts have four a token, and tables two


def is_text(name: str) -> bool:
    return name.startswith("text:") or name.endswith((".txt", ".txt.xz"))


@functools.lru_cache(4)
def read_text(name: str) -> str:
    """The text of a file, packed or not. Raises ValueError, in one line, for one that is missing, empty or no text."""
    path = Path(name.removeprefix("text:"))
    if not path.is_file():
        raise ValueError(f"{path} is not there: give a file of plain text, .txt or .txt.xz")
    try:
        text = (lzma.open if path.suffix == ".xz" else open)(path, "rb").read().decode("utf-8-sig")
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error})") from None
    text = text.replace("\r\n", "\n")
    if not text.strip():
        raise ValueError(f"{path} is empty: give a file with text in it")
    return text


def source(name: str, split: str, seed: int = 0) -> Callable[[int, int | None], dict]:
    """A function from index and `longest`, the number of contexts at most (or None), to a sample, as in data.source."""
    part(name, split)  # what is wrong with the file is said at once

    def make(index: int, longest: int | None = None) -> dict:
        draw = random.Random(f"text/{split}/{seed}/{index}")
        return sample(part(name, split), draw, draw.randint(1, min(longest or CONTEXTS, CONTEXTS)))

    return make


def at_step(name: str, split: str, time_step: int, count: int, seed: int = 0) -> list[dict]:
    """`count` samples of t contexts each; those of the same number end alike, whatever t is."""
    draws = (random.Random(f"text/{split}/{seed}/{index}") for index in range(count))
    return [sample(part(name, split), draw, time_step) for draw in draws]


@functools.lru_cache(8)
def part(name: str, split: str) -> str:
    """The text of one split. Raises ValueError where it is too short for a sample."""
    text = read_text(name)
    begin, end = {"train": (0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1)}[split]
    text = text[int(begin * len(text)) : int(end * len(text))]
    if len(text) < LONGEST:
        raise ValueError(f"{name} is too short: its part for {split} has {len(text)} characters of {LONGEST} needed")
    return text


def sample(text: str, draw: random.Random, contexts: int) -> dict:
    """A stretch of `contexts` + 2 chunks that ends anywhere in `text`."""
    size = draw.randint(CHUNK[0], min(CHUNK[1], LONGEST // (contexts + 2)))
    end = draw.randint((contexts + 2) * size, len(text))
    cuts = [_space_before(text, end - size * back) for back in range(contexts + 2, -1, -1)]
    *chunks, newest, target = (text[a:b].removeprefix(" ") for a, b in zip(cuts, cuts[1:]))
    answers = list(range(len(chunks)))
    return {"contexts": chunks, "input": newest, "target": target, "answers": answers, "separator": ""}


def _space_before(text: str, place: int) -> int:
    """The last space within half a chunk, which a tokenizer makes a part of the word behind it; else `place` itself."""
    space = text.rfind(" ", max(0, place - CHUNK[0] // 2), place)
    return place if space < 0 else space
