"""Helpers for tests with hostile files: mutations, and a guard that watches what reading a file does.

`fuzz(kind, count, folder, spoil, read, valid)` is the whole loop: spoil(random) writes a damaged file, read() reads it
under the guard, and the result must be a valid object or one clear ValueError. Case i of a kind is always the same:
its random numbers have the seed "kind i". MINCCM_FUZZ_CASES sets another number of cases for every kind;
MINCCM_FUZZ_CASE runs a single one.
"""

import copy
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 20  # a case may take this long, on a busy machine
MEGABYTES = 1024  # a case may add this much address space


# The guard

PROCESS_EVENTS = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.")
NETWORK_EVENTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "webbrowser.open")
PATH_EVENTS = {  # event: how many of its first arguments are paths that are changed
    **dict.fromkeys(["os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.chown", "os.utime"], 1),
    **dict.fromkeys(["os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile", "shutil.copytree"], 2),
}
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TRUSTED = [str(ROOT / part) for part in ("minccm", "data", "tests")]  # code may come from here, and from Python itself
TRUSTED += [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), "<frozen"]


class Forbidden(BaseException):
    """Raised in the place of an action that reading a file must not cause. No `except Exception` catches it."""


class _Guard:
    folder: str | None = None  # the only folder where files may be written; None: the guard is off
    seen: list[str] = []


def _hook(event: str, args: tuple) -> None:
    if _Guard.folder is None:
        return
    problem = None
    if event.startswith(PROCESS_EVENTS + NETWORK_EVENTS):
        problem = f"{event} {args}"
    elif event == "exec" and not _trusted(getattr(args[0], "co_filename", "")):
        problem = f"code of {args[0].co_filename} runs"
    elif event == "compile" and not _trusted(args[1]):
        problem = f"{str(args[0])[:80]!r} of {args[1]} is compiled"
    elif event == "open" and isinstance(args[2], int) and args[2] & WRITE_FLAGS and not _inside(args[0]):
        problem = f"{args[0]} is opened for writing"
    elif event in PATH_EVENTS and not all(_inside(path) for path in args[: PATH_EVENTS[event]][-1:]):
        problem = f"{event} {args}"
    if problem:
        _Guard.seen.append(problem)
        raise Forbidden(problem)


def _trusted(filename: object) -> bool:
    filename = os.fsdecode(filename) if isinstance(filename, (str, bytes)) else ""
    return filename.startswith(tuple(TRUSTED)) and not filename.startswith(_Guard.folder)


def _inside(path: object) -> bool:
    if isinstance(path, int):  # a file descriptor that is open already
        return True
    path = os.path.abspath(os.fsdecode(path))
    return path == os.devnull or path.startswith(_Guard.folder + os.sep) or path == _Guard.folder


def _too_late(*_) -> None:
    raise Forbidden(f"more than {SECONDS} seconds")


@contextmanager
def guarded(folder: str | Path, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Iterator[None]:
    """Within it nothing may be executed, started, or written outside `folder`; time and memory are limited.

    Run the guarded code once before, without the guard: libraries import parts of themselves at their first use.
    """
    if not hasattr(sys, "minccm_hook"):  # a hook stays for the life of the process: add one only
        sys.minccm_hook = True
        sys.addaudithook(_hook)
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old_handler = signal.signal(signal.SIGALRM, _too_late)
    _Guard.seen.clear()
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20, before[1]))
    _Guard.folder = os.path.abspath(folder)
    try:
        yield
    finally:
        _Guard.folder = None
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)
        sys.dont_write_bytecode = bytecode
    assert not _Guard.seen, _Guard.seen


def check_error(error: BaseException) -> str:
    """Asserts that an error is one clear, printable ValueError; returns its text."""
    text = str(error)
    assert isinstance(error, ValueError), f"{type(error).__name__}: {text[:300]}"
    assert 0 < len(text) < 400 and text.isprintable(), repr(text[:500])
    return text


def fuzz(
    kind: str,
    count: int,
    folder: Path,
    spoil: Callable[[random.Random], object],
    read: Callable[[], object],
    valid: Callable[[object], object] | None = None,
) -> dict[str, int]:
    """Runs `count` cases; returns how many were "valid" and how many were an "error".

    spoil(random) writes the files of a case into `folder`. read() reads them, and valid(result) asserts that what it
    returns is whole.
    """
    count = int(os.environ.get("MINCCM_FUZZ_CASES", count))
    one = os.environ.get("MINCCM_FUZZ_CASE")
    results = {"valid": 0, "error": 0}
    for i in [int(one)] if one else range(count):
        spoil(random.Random(f"{kind} {i}"))
        try:
            try:
                with guarded(folder):
                    result = read()
            except Exception as error:
                check_error(error)
                results["error"] += 1
            else:
                if valid:
                    valid(result)
                results["valid"] += 1
        except (Forbidden, AssertionError) as error:
            raise AssertionError(f"case {i} of {kind} (MINCCM_FUZZ_CASE={i}): {str(error)[:600]}") from error
    return results


# Mutations

PIECES = [b"", b"\0", b"\xff" * 8, b"\x7f" * 8, b"9" * 20, b"-1", b"1e999", b"NaN", b"[" * 3000, b'{"a":' * 500, b"\n"]
PIECES += [b'"', b"\\ud800", b"\xed\xa0\x80", b"\x1b[2J", b"../../x", b"{}", b"[]", b"null", b"true", b" " * 100]
NUMBERS = [0, -1, 1, 2, 3, 7, 255, 2**15, 2**16, 2**20, 2**31 - 1, 2**31, 2**53, 2**62, 2**63, 2**64, 10**18, 10**400]
NUMBERS += [-(2**31), -(2**63), 0.0, -0.0, 0.5, 1.5, 1e-300, 5e-324, 1e38, 1e308, -1e308]
NUMBERS += [float("nan"), float("inf"), -float("inf")]
TEXTS = ["", "x", "\0", "\n", "a\nb", "\x1b[31mred", "\ud800", "\udfff\ud800", "\u202eevil", "../../x", "/etc/passwd"]
TEXTS += ["A" * 5000, "x.py", "evil.py", "__import__('os')", "os.system", "%s%n", "{0}", "lora_" * 2000, "NaN", "1"]


def hostile_value(random: random.Random, depth: int = 2) -> object:
    """A value for JSON that is likely to be wrong."""
    kind = random.randrange(8)
    if kind < 3:
        return copy.copy(random.choice(NUMBERS))
    if kind < 5:
        return random.choice(TEXTS)
    if kind == 5 or not depth:
        return random.choice([None, True, False, [], {}, random.randint(-5, 300)])
    if kind == 6:
        return [hostile_value(random, depth - 1) for _ in range(random.choice([1, 2, 3, 50]))]
    return {random.choice(TEXTS): hostile_value(random, depth - 1) for _ in range(random.choice([1, 2, 20]))}


def mutate_value(random: random.Random, value: object) -> object:
    """A copy of a JSON value with one to three places that are replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        value = _mutate_once(random, value)
    return value


def _mutate_once(random: random.Random, value: object) -> object:
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.02:
        return hostile_value(random)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = random.choice(list(keys))
    inner = value[key]
    if isinstance(inner, (dict, list)) and inner and random.random() < 0.7:
        value[key] = _mutate_once(random, inner)
        return value
    action = random.choice(["replace"] * 4 + ["remove", "rename", "double", "swap", "add", "near"])
    other = random.choice(list(keys))
    if action == "remove":
        del value[key]
    elif action == "rename" and isinstance(value, dict):
        value[random.choice(TEXTS)] = value.pop(key)
    elif action == "double" and isinstance(value, list):
        value.insert(key, copy.deepcopy(inner))
    elif action == "swap":
        value[key], value[other] = value[other], value[key]
    elif action == "add":
        if isinstance(value, dict):
            value[random.choice(TEXTS)] = hostile_value(random)
        else:
            value.append(hostile_value(random))
    elif action == "near" and isinstance(inner, (int, float)):
        value[key] = random.choice(
            [
                inner + 1,
                inner - 1,
                -inner,
                inner * 2,
                bool(inner),
                str(inner),
                inner + 0.5 if abs(inner) < 2**53 else inner,
            ]
        )
    else:
        value[key] = hostile_value(random)
    return value


def mutate_json(random: random.Random, value: object) -> bytes:
    """The bytes of a JSON text of a value with mistakes in it, or with mistakes in its spelling."""
    kind = random.random()
    if kind < 0.8:
        data = json.dumps(mutate_value(random, value)).encode()
        return data if kind < 0.7 else mutate_bytes(random, data)
    if kind < 0.83:
        return random.choice(
            [b"", b"[" * 10**5, b'{"a":' * 10**5, b"[]" * 10**5, b"\xff\xfe{}", b"9" * 10**5, b'"' * 999]
        )
    return mutate_bytes(random, json.dumps(value).encode())


def mutate_bytes(random: random.Random, data: bytes) -> bytes:
    """Bytes with one to four places cut, overwritten, flipped, inserted, removed or repeated."""
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 4])):
        place = random.randrange(len(data) + 1)
        # often near the beginning, where most formats keep their lengths
        place = min(place, random.randrange(256)) if random.random() < 0.4 else place
        length = random.choice([1, 1, 2, 4, 8, 64, 1000])
        action = random.randrange(8)
        if action == 0:
            del data[place:]
        elif action == 1:
            data[place : place + length] = random.randbytes(length)
        elif action == 2 and place < len(data):
            data[place] ^= 1 << random.randrange(8)
        elif action == 3:
            piece = random.choice(PIECES)
            data[place : place + len(piece)] = piece
        elif action == 4:
            data[place:place] = random.choice(PIECES)
        elif action == 5:
            del data[place : place + length]
        elif action == 6:
            data[place:place] = data[place : place + length]
        else:
            number = random.choice([number for number in NUMBERS if isinstance(number, int) and abs(number) < 2**63])
            piece = struct.pack("<q", number)[: random.choice([4, 8])]
            data[place : place + len(piece)] = piece
    return bytes(data)


def mutate_safetensors(random: random.Random, data: bytes) -> bytes:
    """A safetensors file with mistakes in its header's values, in the header's text, or anywhere."""
    if random.random() < 0.3:
        return mutate_bytes(random, data)
    size = struct.unpack("<Q", data[:8])[0]
    header, numbers = data[8 : 8 + size], data[8 + size :]
    if random.random() < 0.2:
        if len(numbers) > 8:  # numbers that are not finite, or that are too large
            place = random.randrange(0, len(numbers) - 4, 4)
            piece = random.choice([b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\xff" * 4])
            numbers = numbers[:place] + piece + numbers[place + 4 :]
    elif random.random() < 0.3:
        header = mutate_bytes(random, header)
    else:
        header = json.dumps(mutate_value(random, json.loads(header))).encode()
    if random.random() < 0.9:
        size = len(header)
    return struct.pack("<Q", size) + header + numbers


def mutate_zip(random: random.Random, data: bytes) -> bytes:
    """A zip file with mistakes within its members (their checksums fit), among the members, or anywhere."""
    if random.random() < 0.3:
        return mutate_bytes(random, data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        names = old.namelist()
        victim = random.choice([name for name in names if name.endswith(".pkl")] * 8 + names)
        for name in names:
            content = old.read(name)
            if name == victim:
                if random.random() < 0.1:
                    continue
                content = mutate_bytes(random, content)
            new.writestr(name if random.random() < 0.99 else random.choice(["x", "../../x", "/x", name + "x"]), content)
    return out.getvalue()


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes; a ValueError is one way for it to end."""
    began = time.perf_counter()
    try:
        call()
    except ValueError as error:
        check_error(error)
    return time.perf_counter() - began
