"""Files are written whole or not at all: beside the place where they are to be, and then renamed."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has write(path) make the file. On a full disk, or when interrupted, the one that was there stays."""
    beside = path.with_name(path.name + ".part")
    try:
        write(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file."""
    write_whole(path, partial(save_file, {name: tensor.contiguous() for name, tensor in tensors.items()}))


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    write_whole(path, lambda beside: beside.write_text(text, "utf-8"))


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file, and makes its folder."""
    make_folder(path.parent)
    write_text(path, json.dumps(value, indent=1) + "\n")


def make_folder(folder: str | Path) -> Path:
    """Makes an output folder. Raises ValueError, in one line, where nothing can be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".part"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # several processes may try it at the same moment
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): give another folder with --out") from None
    return folder
