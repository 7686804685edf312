"""Real data: a user's files are checked once and written as JSON lines; after that they are read line by line.

    python -m data.dailydialog PATH --tokenizer llama-7b      # writes data/prepared/dailydialog, or --out FOLDER
    python train.py --data dailydialog                        # or --data FOLDER

A prepared folder holds train.jsonl, validation.jsonl and test.jsonl, a record a line, and dataset.json, which tells
what was found and left out. "test" is what the paper evaluates on; "validation" is every twentieth record of what the
paper trains on, kept out of training. A module of such a dataset has three functions:

    prepare(path, out)              checks the files and hands over each record: see Preparation
    draw(lines, index, random)      a sample to train on, from record `index` of a Lines
    first(lines, index, time_step)  the sample of a record at time step t, or None if it has none
"""

import argparse
import contextlib
import gzip
import importlib
import json
import lzma
import mmap
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minccm.files import make_folder, write_text

HERE = Path(__file__).parent / "prepared"
HOLD_OUT = 20  # every twentieth train record is for validation


class Preparation:
    """Takes the records of a dataset, counts what is left out and what is bad, and writes the prepared folder."""

    def __init__(self, name: str, folder: Path, count: Callable[[str], int], skip_bad: bool):
        self.name, self.folder, self.count, self.skip_bad = name, make_folder(folder), count, skip_bad
        self.found, self.left_out, self.bad_ones, self.trained = Counter(), Counter(), [], 0
        self.about: dict = {}  # more for dataset.json
        self.files = {
            split: open(self._beside(split), "w", encoding="utf-8") for split in ("train", "validation", "test")
        }
        self.bar = tqdm(desc=name, unit=" records", leave=False)

    def add(self, split: str, record: dict, hold_out: bool = True) -> str:
        """Keeps a record; returns the split it went to: every twentieth train record is held out for validation."""
        if split == "train" and hold_out:
            self.trained += 1
            split = "validation" if self.trained % HOLD_OUT == 0 else "train"
        self.files[split].write(json.dumps(record, ensure_ascii=False) + "\n")
        self.found[split] += 1
        self.bar.update()
        return split

    def leave_out(self, why: str) -> None:
        """Counts a good record that the paper's filter leaves out."""
        self.left_out[why] += 1

    def bad(self, where: str, what: str) -> None:
        """A malformed record: raises ValueError, or with skip_bad counts it."""
        if not self.skip_bad:
            raise ValueError(f"{where}: {what} (--skip-bad leaves such records out and counts them)")
        self.bad_ones.append(f"{where}: {what}")

    def finish(self) -> dict:
        """Puts the files in their place; returns what dataset.json says."""
        for split in ("train", "test"):
            if not self.found[split]:
                hint = self.bad_ones[0] if self.bad_ones else "all were left out: " + (str(dict(self.left_out)))
                raise ValueError(f"no {split} record of {self.name} remains ({hint})")
        about = {"dataset": self.name, "found": dict(self.found), "left_out": dict(self.left_out)}
        about |= {"bad": len(self.bad_ones), "first_bad": self.bad_ones[:5]} | self.about
        for split, file in self.files.items():
            file.close()
            self._beside(split).replace(self.folder / f"{split}.jsonl")
        write_text(self.folder / "dataset.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        return about

    def close(self) -> None:
        """Removes what is not finished."""
        self.bar.close()
        for split, file in self.files.items():
            file.close()
            self._beside(split).unlink(missing_ok=True)

    def _beside(self, split: str) -> Path:
        return self.folder / f"{split}.jsonl.part"


def main(prepare: Callable[[Path, Preparation], None], about: str, name: str) -> None:
    """What `python -m data.NAME PATH` does: check the files at PATH, prepare them, and say what was found."""
    from minccm.cli import run
    from minccm.tokenizer import Tokenizer

    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("path", type=Path, help="where the files are")
    parser.add_argument("--tokenizer", type=Path, help="with which the paper's limits in tokens are counted: a model's "
                        "folder or file; without it, four bytes of text count as a token")  # fmt: skip
    parser.add_argument("--out", type=Path, default=HERE / name, help=f"by default {HERE.parent.name}/prepared/{name}")
    parser.add_argument("--skip-bad", action="store_true", help="leave malformed records out, and count them")
    options = parser.parse_args()

    def work() -> None:
        encode = Tokenizer(options.tokenizer).encode if options.tokenizer else None
        count = (lambda text: len(encode(text))) if encode else lambda text: -(-len(text.encode()) // 4)
        if not options.path.exists():
            raise ValueError(f"{options.path} is not there")
        out = Preparation(name, options.out, count, options.skip_bad)
        try:
            prepare(options.path, out)
            found = out.finish()
        finally:
            out.close()
        print(f"{name}: " + ", ".join(f"{split} {number:,}" for split, number in found["found"].items()))
        for why, number in found["left_out"].items():
            print(f"  left out: {number:,} {why}")
        for line in found.get("notes", []):
            print(f"  {line}")
        if found["bad"]:
            print(f"  bad: {found['bad']:,}, the first: {found['first_bad'][0]}")
        taken_as = name if options.out == HERE / name else options.out
        print(f"written to {options.out}: train.py and eval.py take it as --data {taken_as}")

    run(work)


# Reading a user's files, with file and line for whatever is wrong with them.


def one_of(folder: Path, *names: str) -> Path:
    """The first of these files that is there. Raises ValueError naming them."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder} holds none of {', '.join(names)}: see README on where this dataset is to be had")
    return found


def text_lines(path: Path, out: Preparation, member: str = "") -> Iterator[tuple[str, str]]:
    """("FILE, line N", text) of each line of a UTF-8 file: plain, .xz, .gz, or the one in a .zip that ends in `member`.

    Raises ValueError for an empty or damaged file.
    """
    number = 0
    try:
        with contextlib.ExitStack() as stack:
            if path.suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                names = [name for name in archive.namelist() if name.endswith(member)]
                if not names:
                    raise ValueError(f"{path} holds no {member}: it is another dataset's")
                file = stack.enter_context(archive.open(names[0]))
            else:
                opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
                file = stack.enter_context(opener(path, "rb"))
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                try:
                    yield where, line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError:
                    out.bad(where, "this is not UTF-8")
    except (zipfile.BadZipFile, lzma.LZMAError, gzip.BadGzipFile, EOFError):
        raise ValueError(f"{path}, after line {number}: the file is damaged or cut off") from None
    if not number:
        raise ValueError(f"{path} is empty")


def json_lines(path: Path, out: Preparation, **fields: type) -> Iterator[tuple[str, dict]]:
    """(where, record) of each line of a JSON-lines file that is an object with these fields, of these types."""
    for where, line in text_lines(path, out):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            out.bad(where, f"no JSON ({error})")
            continue
        if what := lacks(record, fields):
            out.bad(where, what)
        else:
            yield where, record


def lacks(record: object, fields: dict[str, type]) -> str:
    """What keeps a record from being an object with these fields; list means a list of strings. Empty: nothing."""
    if not isinstance(record, dict):
        return f"a record is a JSON object, this is {type(record).__name__}"
    for name, kind in fields.items():
        if name not in record:
            return f"the field {name!r} is missing"
        value = record[name]
        if not isinstance(value, kind) or (kind is list and not all(isinstance(item, str) for item in value)):
            return f"{name!r} is to be {'a list of strings' if kind is list else kind.__name__}"
    return ""


# Reading a prepared folder.


class Lines:
    """The records of a prepared split by number. The file is mapped, so a million of them take no memory."""

    def __init__(self, path: Path, about: dict):
        self.path, self.about, self.split = path, about, path.stem
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        data, step = np.frombuffer(self.bytes, np.uint8), 1 << 26
        ends = [start + np.flatnonzero(data[start : start + step] == 10) for start in range(0, len(data), step)]
        self.ends = np.concatenate([[-1], *ends]).astype(np.int64)  # of each line, the place of its line break

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> dict:
        return json.loads(self.bytes[self.ends[index] + 1 : self.ends[index + 1]])


def folder_of(name: str) -> Path | None:
    """The prepared folder that a name stands for: a folder itself, or that of a dataset prepared here; else None."""
    return next((folder for folder in (Path(name), HERE / name) if (folder / "dataset.json").is_file()), None)


def kind(name: str) -> str:
    """The dataset that a name or a prepared folder is of."""
    folder = folder_of(name)
    return json.loads((folder / "dataset.json").read_text("utf-8"))["dataset"] if folder else name


def open_split(folder: Path, split: str):
    """The dataset's module and the Lines of a split of a prepared folder. Raises ValueError if it is broken."""
    try:
        about = json.loads((folder / "dataset.json").read_text("utf-8"))
        module = importlib.import_module(f"data.{about['dataset']}")
        return module, Lines(folder / f"{split}.jsonl", about)
    except (ValueError, KeyError, TypeError, ImportError, OSError):
        raise ValueError(f"{folder} is no prepared dataset, or incomplete: prepare it again") from None


def at_step(folder: Path, split: str, time_step: int, count: int, seed: int) -> list[dict]:
    """Samples of a prepared folder at time step t: `count` of them drawn by the seed, or with 0 all, in order."""
    module, lines = open_split(folder, split)
    order = random.Random(seed).sample(range(len(lines)), len(lines)) if count else range(len(lines))
    samples = (module.first(lines, index, time_step) for index in order)
    found = []
    for sample in samples:
        if sample is not None:
            found.append(sample)
        if len(found) == count != 0:
            break
    return found
