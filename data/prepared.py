"""Real data: original files are checked once and written as JSON lines. Training then reads these line by line.

    python -m data.dailydialog PATH --tokenizer llama-7b      # writes data/prepared/dailydialog, or --out FOLDER
    python train.py --data dailydialog                        # or --data FOLDER

A prepared folder holds train.jsonl, validation.jsonl and test.jsonl, with one record a line, and dataset.json, which
says how many records there are and how many were left out. "test" is what the paper evaluates on; "validation" is
every twentieth record of the paper's training data, kept out of training. A dataset's module has four functions:

    prepare(path, out)              checks the files and adds each record to a Preparation
    problem(record)                 what is wrong with a record of a prepared folder; empty if nothing is
    draw(lines, index, random)      a sample to train on, from record `index` of a Lines
    first(lines, index, time_step)  the sample of a record at time step t, or None if it has none

Both original files and prepared folders are untrusted: data/__init__.py has the limits.
"""

import importlib
import json
import mmap
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from data import archives
from minccm.io.untrusted import MAX_LINE, error, open_regular, parse_json, printable, read_json

DATASETS = ("dailydialog", "soda", "lamp", "metaicl", "text")  # a prepared folder can name no other module
HERE = Path(__file__).parent / "prepared"
HOLD_OUT = 20  # every twentieth train record is for validation
MAX_RECORDS = 20_000_000  # of one file of a prepared folder
MAX_COUNTED = 2**16  # characters of a text whose tokens are counted; every dataset's own limit is far below


class Preparation:
    """Takes the records of a dataset, counts those left out and those malformed, and writes the prepared folder."""

    def __init__(self, name: str, folder: Path, count: Callable[[str], int], skip_bad: bool):
        from minccm.io.files import make_folder

        self.name, self.folder, self.skip_bad = name, make_folder(folder), skip_bad
        self._count = count
        self.found, self.left_out, self.trained = Counter(), Counter(), 0
        self.bad_records, self.first_bad = 0, []
        self.about: dict = {}  # more for dataset.json
        self.files = {
            split: open(self._part(split), "w", encoding="utf-8") for split in ("train", "validation", "test")
        }
        self.bar = tqdm(desc=name, unit=" records", leave=False)

    def count(self, text: str) -> int:
        """Tokens of a text; of a text that is far too long for any dataset, its characters."""
        return self._count(text) if len(text) <= MAX_COUNTED else len(text)

    def add(self, split: str, record: dict, hold_out: bool = True) -> None:
        """Writes a record; every twentieth train record is held out for validation."""
        if split == "train" and hold_out:
            self.trained += 1
            split = "validation" if self.trained % HOLD_OUT == 0 else "train"
        self.files[split].write(json.dumps(record, ensure_ascii=False) + "\n")
        self.found[split] += 1
        self.bar.update()

    def leave_out(self, why: str) -> None:
        """Counts a good record that the paper's filter leaves out."""
        self.left_out[why] += 1

    def bad(self, problem: ValueError) -> None:
        """Counts a malformed record with --skip-bad; otherwise raises the error."""
        if not self.skip_bad:
            raise ValueError(f"{printable(str(problem), 330)} (--skip-bad leaves such records out and counts them)")
        self.bad_records += 1
        self.first_bad = (self.first_bad + [str(problem)])[:5]

    def finish(self) -> dict:
        """Moves the files to their place; returns what dataset.json says."""
        from minccm.io.files import write_text

        for split in ("train", "test"):
            if not self.found[split]:
                hint = self.first_bad[0] if self.first_bad else f"all were left out: {dict(self.left_out)}"
                raise ValueError(f"no {split} record of {self.name} remains ({printable(hint, 320)})")
        about = {"dataset": self.name, "found": dict(self.found), "left_out": dict(self.left_out)}
        about |= {"bad": self.bad_records, "first_bad": self.first_bad} | self.about
        (self.folder / "dataset.json").unlink(missing_ok=True)  # until it is written, the folder is incomplete
        for split, file in self.files.items():
            file.close()
            self._part(split).replace(self.folder / f"{split}.jsonl")
        write_text(self.folder / "dataset.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        return about

    def close(self) -> None:
        """Removes unfinished files."""
        self.bar.close()
        for split, file in self.files.items():
            file.close()
            self._part(split).unlink(missing_ok=True)

    def _part(self, split: str) -> Path:
        return self.folder / f"{split}.jsonl.part"


def main(prepare: Callable[[Path, Preparation], None], about: str, name: str) -> None:
    """What `python -m data.NAME PATH` does: check the files at PATH, prepare them, and print the counts."""
    from minccm.io.options import OneLineParser, run
    from minccm.io.tokenizer import Tokenizer

    parser = OneLineParser(description=about.split("\n")[0])
    parser.add_argument("path", type=Path, help="folder or file of the original data")
    parser.add_argument("--tokenizer", type=Path, help="counts tokens for the paper's limits: a model's folder or "
                        "tokenizer file; without it, four bytes of text count as a token")  # fmt: skip
    parser.add_argument("--out", type=Path, default=HERE / name, help=f"by default {HERE.parent.name}/prepared/{name}")
    parser.add_argument("--skip-bad", action="store_true", help="leave malformed records out, and count them")
    options = parser.parse_args()

    def work() -> None:
        encode = Tokenizer(options.tokenizer).encode if options.tokenizer else None
        count = (lambda text: len(encode(text))) if encode else lambda text: -(-len(text.encode()) // 4)
        if not options.path.exists():
            raise ValueError(f"{options.path} does not exist")
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


# Reading original files. Every error names the file and the line.


def one_of(folder: Path, *names: str) -> Path:
    """The first of these files that exists. Raises ValueError naming them."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder} holds none of {', '.join(names)}: the README says where to get this dataset")
    return found


def text_lines(path: Path, out: Preparation, member: str = "") -> Iterator[tuple[str, str]]:
    """("FILE, line N", text) of each line of a UTF-8 file: plain, .xz, .gz, or the one in a .zip that ends in `member`.

    Raises ValueError for an empty or damaged file.
    """
    number = 0
    for number, line in archives.read_lines(path, member):
        where = f"{path}, line {number}"
        try:
            yield where, line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError:
            out.bad(error(where, "this is not UTF-8"))
    if not number:
        raise error(path, "the file is empty")


def json_lines(path: Path, out: Preparation, **fields: type) -> Iterator[tuple[str, dict]]:
    """(where, record) of each line of a JSON-lines file that is an object with these fields, of these types."""
    for where, line in text_lines(path, out):
        try:
            record = parse_json(line, where)
        except ValueError as problem:
            out.bad(problem)
            continue
        if what := lacks(record, fields):
            out.bad(error(where, what))
        else:
            yield where, record


def lacks(record: object, fields: dict[str, type]) -> str:
    """Says why a record is not an object with these fields; list means a list of strings. Empty: it is one."""
    if not isinstance(record, dict):
        return f"a record must be a JSON object, this is {type(record).__name__}"
    for name, kind in fields.items():
        if name not in record:
            return f"the field {name!r} is missing"
        value = record[name]
        fits = isinstance(value, kind) and (kind is not int or type(value) is int)
        if not fits or (kind is list and not all(isinstance(item, str) for item in value)):
            return f"{name!r} must be {'a list of strings' if kind is list else kind.__name__}"
    return ""


# Reading a prepared folder.


class Lines:
    """The records of a prepared split by number. The file is mapped, so a million of them take no memory."""

    def __init__(self, path: Path, about: dict, problem: Callable[[dict], str]):
        self.path, self.about, self.problem, self.split = path, about, problem, path.stem
        with open_regular(path) as file:
            size = file.seek(0, 2)
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        data, step, ends, count = np.frombuffer(self.bytes, np.uint8), 1 << 24, [[-1]], 0
        for start in range(0, len(data), step):
            ends.append(start + np.flatnonzero(data[start : start + step] == 10))
            count += len(ends[-1])
            if count > MAX_RECORDS:
                raise error(path, f"it holds more than {MAX_RECORDS:,} records")
        self.ends = np.concatenate(ends).astype(np.int64)  # the place of each line's line break
        if size and self.ends[-1] != size - 1:
            raise error(path, "the last line is cut off: prepare it again")

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> dict:
        where = f"{self.path}, line {index + 1}"
        begin, end = self.ends[index] + 1, self.ends[index + 1]
        if end - begin > MAX_LINE:
            raise error(where, f"the line has more than {MAX_LINE:,} bytes")
        record = parse_json(self.bytes[begin:end], where)
        if what := self.problem(record):
            raise error(where, f"{what}: this is not a record of {self.about['dataset']}, prepare it again")
        return record


def folder_of(name: str) -> Path | None:
    """The prepared folder that a name stands for: a folder itself, or that of a dataset prepared here; else None."""
    return next((folder for folder in (Path(name), HERE / name) if (folder / "dataset.json").is_file()), None)


def read_about(folder: Path) -> dict:
    """The content of a prepared folder's dataset.json. Raises ValueError if it names no dataset of this package."""
    path = folder / "dataset.json"
    try:
        about = read_json(path)
    except ValueError as problem:
        raise error(folder, f"it is not a prepared dataset, or incomplete: prepare it again ({problem})") from None
    name = about.get("dataset") if isinstance(about, dict) else None
    if not isinstance(name, str) or name not in DATASETS:
        known = ", ".join(DATASETS)
        raise error(path, f"'dataset' must be one of {known}, not {printable(name)!r}: prepare it again")
    return about


def kind(name: str) -> str:
    """The dataset that a name or a prepared folder is of."""
    folder = folder_of(name)
    return read_about(folder)["dataset"] if folder else name


def open_split(folder: Path, split: str) -> tuple[ModuleType, Lines]:
    """The dataset's module and the Lines of a split of a prepared folder. Raises ValueError if it is broken."""
    about = read_about(folder)
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise error(folder, f"it is not a prepared dataset, or incomplete: prepare it again ({path.name} is missing)")
    module = importlib.import_module(f"data.{about['dataset']}")  # one of DATASETS
    return module, Lines(path, about, module.problem)


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
