"""Reads plain and compressed files within limits: .gz, .xz, one member of a .zip, or any other file as it stands.

Files are untrusted. A damaged, encrypted or unreasonably large file raises a ValueError of one line.
"""

import gzip
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from minccm.io.untrusted import MAX_LINE, error, open_regular, printable

MAX_UNPACKED = 16 * 2**30  # bytes of content in one file
MAX_RATIO = 100  # content may be so many times as large as a compressed file ...
ALWAYS_ALLOWED = 64 * 2**20  # ... or have so many bytes, whichever is more
MAX_TEXT = 256 * 2**20  # bytes of a running text, which is held in memory
MAX_ZIP = 2**30  # bytes of a .zip file
MAX_XZ_MEMORY = 256 * 2**20  # bytes that unpacking an .xz file may take: `xz -9` needs 65 MiB
PIECE = 2**20  # bytes that are read at a time

# What Python's readers raise for a damaged file. RuntimeError: an encrypted .zip, or an unknown kind of compression.
DAMAGED = (zipfile.BadZipFile, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError, struct.error, RuntimeError)
DAMAGED += (ValueError, OverflowError, LookupError, OSError)


def read_whole(path: Path, max_bytes: int) -> bytes:
    """The content of a file. Raises ValueError where it has more than `max_bytes`."""
    return b"".join(read_pieces(path, max_bytes=max_bytes))


def read_lines(
    path: Path, member: str = "", max_line: int = MAX_LINE, max_bytes: int = MAX_UNPACKED
) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its line break) of each line of a file.

    Raises ValueError for a line of more than `max_line` bytes, or a content of more than `max_bytes`.
    """
    rest, number = b"", 0
    for piece in read_pieces(path, member, max_bytes):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            number += 1
            yield number, _checked(line, path, number, max_line)
        _checked(rest, path, number + 1, max_line)
    if rest:
        yield number + 1, rest


def _checked(line: bytes, path: Path, number: int, max_line: int) -> bytes:
    if len(line) > max_line:
        raise error(path, f"line {number} has more than {max_line:,} bytes")
    return line


def read_pieces(path: Path, member: str = "", max_bytes: int = MAX_UNPACKED) -> Iterator[bytes]:
    """The content of a file in pieces of at most 1 MiB; of a .zip, the first member whose name ends in `member`."""
    content, lines = 0, 0
    with open_regular(path) as file:
        unpack = {".gz": _gz, ".xz": _xz, ".zip": _zip}.get(path.suffix, _plain)
        if unpack is not _plain:
            max_bytes = min(max_bytes, max(ALWAYS_ALLOWED, MAX_RATIO * os.fstat(file.fileno()).st_size))
        pieces = unpack(file, member)
        while True:
            try:
                piece = next(pieces, None)
            except _Refused as problem:
                raise error(path, str(problem)) from None
            except DAMAGED as problem:
                why = f"{type(problem).__name__} {printable(str(problem))}".strip()
                raise error(f"{path}, after line {lines}", f"the file is damaged or cut off ({why})") from None
            if piece is None:
                return
            content += len(piece)
            if content > max_bytes:
                raise error(path, f"the file holds more than {max_bytes:,} bytes of text: split it, or unpack it first")
            lines += piece.count(b"\n")
            yield piece


class _Refused(Exception):
    """The file is whole, but of a kind that this module does not read."""


def _plain(file: BinaryIO, member: str) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def _gz(file: BinaryIO, member: str) -> Iterator[bytes]:
    return _plain(gzip.GzipFile(fileobj=file), member)


def _xz(file: BinaryIO, member: str) -> Iterator[bytes]:
    """Python's lzma.open does not limit the memory that a file can ask for; this does."""
    packed, stream = file.read(PIECE), None
    while packed or stream:
        stream = stream or lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)
        yield stream.decompress(packed, PIECE)
        packed = b""
        if stream.eof:  # another stream may follow, after zeros that fill up to a multiple of four bytes
            packed, stream = stream.unused_data.lstrip(b"\0"), None
            while not packed and (more := file.read(PIECE)):
                packed = more.lstrip(b"\0")
        elif stream.needs_input:
            packed = file.read(PIECE)
            if not packed:
                raise EOFError


def _zip(file: BinaryIO, member: str) -> Iterator[bytes]:
    if os.fstat(file.fileno()).st_size > MAX_ZIP:
        raise _Refused(f"a .zip file of more than {MAX_ZIP:,} bytes: unpack it first")
    with zipfile.ZipFile(file) as archive:
        found = [info for info in archive.infolist() if info.filename.endswith(member)]
        if not found:
            raise _Refused(f"it holds no {member}, so it belongs to another dataset")
        if found[0].flag_bits & 1:
            raise _Refused("the file is encrypted: unpack it first")
        if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Refused(f"compression {found[0].compress_type} of .zip files is not supported: unpack it first")
        with archive.open(found[0]) as content:
            yield from _plain(content, member)
