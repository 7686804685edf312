"""The tensors of one file by name, each read when it is needed: safetensors files, and zip files of torch.save.

A file of torch.save contains a pickle, and a pickle is a program. It is never run: _dict_of_pickle follows only those
instructions that a dict of tensors needs, calls nothing that the file names, and refuses all others.
"""

import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from minccm.io.untrusted import check_regular, error, open_regular, printable

MAX_HEADER = 16 * 2**20  # bytes of a safetensors header, or of a pickle without its numbers
MAX_NAME = 256  # characters in a tensor's name
STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}


class Part(NamedTuple):
    """A tensor on disk: all of it, or the share in one of Meta's model-parallel files."""

    path: Path
    shape: tuple[int, ...]
    dtype: str  # as its kind of file calls it: "F32" or "torch.float32"
    read: Callable[[], Tensor]


def open_tensors(path: Path) -> dict[str, Part]:
    """The tensors of a safetensors or torch.save file, by name. Raises ValueError for a damaged or other file."""
    size = check_regular(path)
    safe = path.suffix == ".safetensors"
    try:
        parts = _open_safetensors(path, size) if safe else _open_zip(path, size)
    except Exception as problem:  # of many kinds, some without text, some of many lines
        kind = "is not a safetensors file" if safe else "holds more than tensors: it is not loaded"
        text = printable(str(problem).partition("\n")[0], 100)
        raise error(path, f"the file is truncated or {kind} ({text})") from None
    for name in parts:
        if len(name) > MAX_NAME:
            raise error(path, f"the name of a tensor has {len(name):,} characters, more than {MAX_NAME}")
    return parts


def _open_safetensors(path: Path, size: int) -> dict[str, Part]:
    with open_regular(path) as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(size - 8, MAX_HEADER):
        raise ValueError(f"a header of {header:,} bytes")
    file = safe_open(path, framework="pt")
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
    return {
        name: Part(path, tuple(part.get_shape()), part.get_dtype(), partial(file.get_tensor, name))
        for name, part in slices.items()
    }


class _Name(NamedTuple):
    """A class or function that a pickle names. It is compared, never imported."""

    text: str


class _Storage(NamedTuple):
    """Numbers in a row, in one member of the zip file."""

    key: str
    dtype: torch.dtype
    numel: int


class _View(NamedTuple):
    """A tensor: which numbers of a storage it has."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _open_zip(path: Path, size: int) -> dict[str, Part]:
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("data.pkl")]
        if len(pickles) != 1 or len(members) != len(archive.infolist()):
            raise ValueError("not one pickle, or a member that occurs twice")
        folder = pickles[0].removesuffix("data.pkl")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ValueError("a compressed member")
        if members[pickles[0]].file_size > MAX_HEADER:
            raise ValueError(f"a pickle of more than {MAX_HEADER:,} bytes")
        if folder + "byteorder" in members and archive.read(folder + "byteorder") != b"little":
            raise ValueError("not in little-endian order")
        views = _dict_of_pickle(archive.read(pickles[0]))
        parts, total = {}, 0
        for name, view in views.items():
            if not isinstance(view, _View):
                raise ValueError(f"{printable(name, 40)} is not a tensor")
            place = _place(file, members[f"{folder}data/{view.storage.key}"], view, size)
            total += math.prod(view.shape) * view.storage.dtype.itemsize
            if total > 2 * size:  # tied weights may share their numbers; a tensor must not repeat a few endlessly
                raise ValueError("tensors larger than the file")
            parts[name] = Part(path, view.shape, str(view.storage.dtype), partial(_read_view, path, place, view))
    return parts


def _place(file, member: zipfile.ZipInfo, view: _View, size: int) -> int:
    """Where in the file a tensor's storage begins. Raises ValueError if the tensor is not within it."""
    storage, offset, shape, strides = view
    numbers = [storage.numel, offset, *shape, *strides]
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers) or len(shape) != len(strides):
        raise ValueError("an impossible shape")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
    if 0 not in shape and last >= storage.numel or math.prod(shape) > storage.numel:
        raise ValueError("a tensor larger than its numbers")
    file.seek(member.header_offset)
    local = file.read(30)  # a member's own header: its last two fields are the lengths of what follows it
    place = member.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
    nbytes = storage.numel * storage.dtype.itemsize
    if nbytes > member.file_size or place + nbytes > size:
        raise ValueError("a tensor that is cut off")
    return place


def _read_view(path: Path, place: int, view: _View) -> Tensor:
    nbytes = view.storage.numel * view.storage.dtype.itemsize
    if 0 in view.shape:
        return torch.empty(view.shape, dtype=view.storage.dtype)
    if place + nbytes > os.stat(path).st_size:
        raise error(path, "the file has become shorter")
    numbers = torch.from_numpy(np.memmap(path, np.uint8, "c", place, (nbytes,)))
    return numbers.view(view.storage.dtype).as_strided(view.shape, view.strides, view.offset)


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
PUSHED = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _dict_of_pickle(data: bytes) -> dict[str, object]:
    """The dict that a pickle of torch.save describes, its tensors as _View. Raises an exception for anything else."""
    stack, marks, memo = [], [], {}

    def pop_items(count: int | None = None) -> list:
        """The last `count` values of the stack, or all after the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        if start < 0:
            raise ValueError("an empty stack")
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in PUSHED:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE" or name in TUPLES:
            stack.append(tuple(pop_items(TUPLES.get(name))))
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            function, arguments = pop_items(2)
            stack.append(_call(function, arguments))
        elif name in ("SETITEM", "SETITEMS"):
            items = pop_items(2 if name == "SETITEM" else None)
            keys, values = items[::2], items[1::2]
            if not all(isinstance(key, str) for key in keys) or not isinstance(stack[-1], dict):
                raise ValueError("a name that is not a string")
            stack[-1].update(zip(keys, values))
        elif name == "BUILD":
            stack.pop()  # attributes of a dict, which are not needed
        elif name == "STOP":
            break
        elif name != "PROTO":
            raise ValueError(f"the instruction {name}")
    if len(stack) != 1 or not isinstance(stack[0], dict):
        raise ValueError("not a dict of tensors")
    return stack[0]


def _storage(identity: object) -> _Storage:
    kind, dtype, key, _, numel = identity
    if kind != "storage" or not isinstance(dtype, _Name) or not isinstance(key, str) or type(numel) is not int:
        raise ValueError("a storage of another kind")
    if dtype.text not in STORAGES:
        raise ValueError(f"numbers of the kind {printable(dtype.text, 40)}")
    return _Storage(key, STORAGES[dtype.text], numel)


def _call(function: object, arguments: object) -> object:
    """The result of a function that torch.save uses for a dict of tensors. No other is accepted."""
    text = function.text if isinstance(function, _Name) else "no function"
    if text == "collections OrderedDict" and arguments == ():
        return {}
    if text == "torch._utils _rebuild_parameter" and isinstance(arguments[0], _View):
        return arguments[0]
    if text == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple):
            return _View(storage, offset, shape, strides)
    raise ValueError(f"a call of {printable(text, 40)}")


def split_pairs(read: Callable[[], Tensor], head_dim: int) -> Tensor:
    """q_proj or k_proj with the two rows of a rotary pair half a head apart, from files that have them adjacent."""
    weight = read()  # rows (head, pair, 2) -> (head, 2, pair)
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
