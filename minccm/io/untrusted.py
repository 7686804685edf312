"""Files are untrusted: the one place that reads JSON and shows text from a file.

Every limit is checked before the work that it bounds. Every error is a ValueError of one printable line,
"FILE: PROBLEM", with fewer than 400 characters.
"""

import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_JSON_BYTES = 16 * 2**20  # a config, an index of shards, an adapter.json
MAX_TOKENIZER_BYTES = 64 * 2**20  # a tokenizer.json
MAX_LINE = 16 * 2**20  # bytes in one line of a data file
MAX_DEPTH = 64  # lists and objects inside each other
MAX_VALUES = 4_000_000  # values in one JSON text
MAX_DIGITS = 18  # of a whole number, so that it fits int64
MAX_ERROR = 390  # characters of an error

HALF_PAIR = re.compile(r"[\ud800-\udfff]")  # half of a surrogate pair: UTF-8 cannot hold it
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]")  # ASCII below the space, but tab and newline stay


def printable(value: object, limit: int = 60) -> str:
    """Text that is safe to print: one line, no control codes, at most `limit` characters."""
    text = str(value) if isinstance(value, (str, Path)) else reprlib.repr(value)
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def error(where: object, problem: str) -> ValueError:
    """The ValueError "where: problem", in one printable line. A long path keeps its end."""
    where = str(where)
    where = where if len(where) <= 200 else "..." + where[-197:]
    return ValueError(printable(f"{where}: {problem}", MAX_ERROR))


def clean_text(text: str) -> str:
    """Text that was read or typed, without halves of surrogate pairs and control codes (tab and newline stay)."""
    return CONTROL.sub("", text)


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading. Raises ValueError for a missing file, a folder, a pipe or a device."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would block open()
    try:
        file = os.open(path, flags)
    except FileNotFoundError:
        raise error(path, "the file is missing") from None
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the name
        raise error(path, f"the file cannot be read ({getattr(problem, 'strerror', None) or problem})") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise error(path, "this is not a regular file")
    return os.fdopen(file, "rb")


def check_regular(path: str | Path) -> int:
    """The size in bytes of a regular file. Raises ValueError as open_regular does."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def read_bytes(path: str | Path, max_bytes: int) -> bytes:
    """All bytes of a regular file. Raises ValueError if it is larger than `max_bytes`, before it is read."""
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise error(path, f"the file is larger than {max_bytes:,} bytes")
    return data


def read_lines(file: BinaryIO, where: object, max_bytes: int = MAX_LINE) -> Iterator[bytes]:
    """The lines of an open file, one at a time. Raises ValueError for a line of more than `max_bytes`."""
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            raise error(where, f"line {number} is longer than {max_bytes:,} bytes")
        yield line


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> object:
    """The value of a JSON file; see parse_json."""
    return parse_json(read_bytes(path, max_bytes), path, max_bytes)


def parse_json(data: bytes | str, where: object, max_bytes: int = MAX_JSON_BYTES) -> object:
    """The value of a JSON text in UTF-8. Raises ValueError if it breaks a limit.

    The limits: `max_bytes`, MAX_DEPTH, MAX_VALUES, whole numbers of MAX_DIGITS digits, finite numbers, and no name
    twice in one object. Halves of surrogate pairs are removed from strings.
    """
    if len(data) > max_bytes:
        raise error(where, f"the text is larger than {max_bytes:,} bytes")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(where, f"not UTF-8 at byte {problem.start}") from None
    _check_nesting(text, where)
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=_real, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as problem:
        raise error(where, f"not JSON: {problem.msg} at line {problem.lineno}, column {problem.colno}") from None
    except (ValueError, RecursionError) as problem:
        raise error(where, str(problem)) from None
    return _without_half_pairs(value) if re.search(r"\\u[dD][89a-fA-F]", text) else value


def _check_nesting(text: str, where: object) -> None:
    """Raises ValueError for too many or too deeply nested values. Linear in the length of the text."""
    if text.count("[") + text.count("{") <= MAX_DEPTH and text.count(",") <= MAX_VALUES:
        return
    text = text.replace("\\\\", "").replace('\\"', "")  # every quote is now the end of a string
    outside = "".join(text.split('"')[::2])
    if outside.count(",") + outside.count("[") + outside.count("{") > MAX_VALUES:
        raise error(where, f"the JSON holds more than {MAX_VALUES:,} values")
    brackets = re.sub(r"[^\[\]{}]+", "", outside)
    for _ in range(MAX_DEPTH):  # each round removes the innermost level
        brackets = brackets.replace("[]", "").replace("{}", "")
    if brackets:
        raise error(where, f"the JSON is nested more than {MAX_DEPTH} deep, or its brackets do not match")


def _object(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {printable(twice)!r} occurs twice in one object")
    return value


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"the number {printable(digits, 30)} has more than {MAX_DIGITS} digits")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {printable(digits, 30)} is not finite")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the number {name} is not finite")


def _without_half_pairs(value: object) -> object:
    if isinstance(value, str):
        return HALF_PAIR.sub("", value)
    if isinstance(value, list):
        return [_without_half_pairs(item) for item in value]
    if isinstance(value, dict):
        return {HALF_PAIR.sub("", name): _without_half_pairs(item) for name, item in value.items()}
    return value


@dataclass(frozen=True)
class Field:
    """The rule for one value: the schema of check_fields and check_value.

    kind: int, float (a whole number fits, too), bool, str, list, dict, or a tuple of the strings to choose from.
    low, high: limits of a number, or of the length of a string, list or object. above: a number must be larger.
    items: the rule for each item of a list, or each value of an object. optional: may be missing or null: `default`.
    """

    kind: type | tuple[str, ...]
    low: float | None = None
    high: float | None = None
    above: float | None = None
    items: "Field | None" = None
    optional: bool = False
    default: object = None


def check_fields(raw: object, where: object, fields: dict[str, Field]) -> dict:
    """The values of an object's fields; names that are not in `fields` are left out. Raises ValueError."""
    if not isinstance(raw, dict):
        raise error(where, f"this must be an object, not {_shown(raw)}")
    values = {}
    for name, field in fields.items():
        value = raw.get(name)
        if value is None and field.optional:
            values[name] = field.default
        elif name not in raw:
            raise error(where, f"the entry {name!r} is missing")
        else:
            values[name] = check_value(value, where, repr(name), field)
    return values


def check_value(value: object, where: object, name: str, field: Field) -> object:
    """The value, if it is what the field says. `name` stands for it in an error. Raises ValueError."""
    kinds = {float: (int, float)}.get(field.kind, field.kind)
    if isinstance(kinds, tuple) and isinstance(kinds[0], str):
        fits = isinstance(value, str) and value in kinds
    else:
        fits = isinstance(value, kinds) and (field.kind is bool or not isinstance(value, bool))
    if not fits:
        raise error(where, f"the entry {name} must be {_describe(field)}, not {_shown(value)}")
    measure = len(value) if isinstance(value, (str, list, dict)) else value
    if isinstance(measure, float) and not math.isfinite(measure):
        raise error(where, f"the entry {name} must be a finite number")
    too_small = field.low is not None and measure < field.low or field.above is not None and measure <= field.above
    if too_small or field.high is not None and measure > field.high:
        raise error(where, f"the entry {name} must be {_describe(field)}, not {_shown(value)}")
    if field.items and isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            check_value(item, where, f"{name}, an item of it,", field.items)
    return value


def _describe(field: Field) -> str:
    if isinstance(field.kind, tuple):
        return "one of " + ", ".join(field.kind)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    text = names.get(field.kind) or {list: "a list", dict: "an object"}[field.kind]
    limits = [("above", field.above), ("from", field.low), ("up to", field.high)]
    limits = " ".join(f"{word} {limit:,}" for word, limit in limits if limit is not None)
    unit = {str: "characters", list: "items", dict: "entries"}.get(field.kind)
    return text if not limits else f"{text} {limits}" if unit is None else f"{text} of {limits} {unit}"


def _shown(value: object) -> str:
    return printable(repr(value) if isinstance(value, str) else value)
