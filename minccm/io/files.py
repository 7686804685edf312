"""Files are written whole or not at all: under another name first, then renamed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

UMASK = os.umask(0)  # reading it means setting it
os.umask(UMASK)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path), then renames the file to `path`. If anything fails, the old file stays."""
    temporary = path.with_name(path.name + ".part")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # the data must be on the disk before the name is
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file. metadata: strings for its header."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(0o666 & ~UMASK)  # as any new file: by itself, save_file lets the owner alone read it

    try:
        write_whole(path, write)
    except SafetensorError as problem:  # a full disk, or no such folder
        raise OSError(f"cannot write {path}: {problem}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, "utf-8"))


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file, and makes its folder."""
    make_folder(path.parent)
    write_text(path, json.dumps(value, indent=1) + "\n")


def make_folder(folder: str | Path) -> Path:
    """Makes an output folder. Raises ValueError, in one line, if files cannot be written there."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".part"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # several processes may try this at the same moment
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): choose another folder with --out") from None
    return folder
