"""Base models on disk, in and out.

Official: config.json with model.safetensors, or with shards and model.safetensors.index.json (or pytorch_model.bin
likewise). Meta's own: params.json with consolidated files, in which the two rows of a rotary pair are neighbors; here
they are half a head apart. GGUF: see gguf.py.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minccm.io import gguf
from minccm.io.config import meta_files, read_config, to_json
from minccm.io.files import make_folder, write_json, write_tensors
from minccm.io.tensors import Part, open_tensors, split_pairs
from minccm.io.untrusted import Field, check_fields, error, printable, read_json
from minccm.model import LlamaConfig, Transformer, is_adapter

META_NAMES = {
    "tok_embeddings": "embed_tokens",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention": "self_attn",
    "feed_forward": "mlp",
    "wq": "q_proj",
    "wk": "k_proj",
    "wv": "v_proj",
    "wo": "o_proj",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
}
FLOATS = {"F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}
INDEX = {"weight_map": Field(dict, 1, 2**20, items=Field(str, 1, 200))}
NOT_IN_FINGERPRINT = (  # what formats of one model write differently, or leave out
    "architectures",
    "model_type",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
)


def load_model(source: str | Path, device="cpu", dtype: torch.dtype | None = None) -> Transformer:
    """A frozen base model, read tensor by tensor from the mapped file into its place.

    source: a folder, a GGUF file, "smollm2", or "random:7b" for random weights of a shape in config.SHAPES.
    dtype: of the weights; None means fp32 on a CPU and bf16 elsewhere. Raises ValueError, in one line that names the
    file and the tensor, for anything missing, truncated, not finite or of another shape.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    if str(source).startswith("random:"):
        return random_model(str(source), device, dtype)
    config = read_config(source)
    if gguf.is_gguf(source):
        found = {name: [part] for name, part in gguf.load_gguf(source)[1].items()}
    else:
        found = _find_tensors(Path(source), config.head_dim)
    if 9 * config.n_layers > len(found):
        raise error(source, f"{len(found)} tensors are too few for {config.n_layers} layers")
    if config.tied_embeddings:
        found.pop("lm_head.weight", None)  # embed_tokens is both
    with torch.device("meta"):
        model = Transformer(config)
    check_fit(source, found, dict(model.named_parameters()))  # before anything is allocated
    _allocate(model, device, dtype)
    for name, place in tqdm(list(model.named_parameters()), f"loading {Path(source).name}", leave=False, delay=1):
        fill(place.data, name, found[name])
    if dtype == torch.float16:  # small numbers are lost in fp16, so the fingerprint is taken from the file
        norms = {name: torch.empty(place.shape, dtype=torch.bfloat16) for name, place in _norms(model)}
        model.base_fingerprint = _fingerprint(config, [(name, fill(x, name, found[name])) for name, x in norms.items()])
    return model


def random_model(source: str, device="cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """A frozen model "random:NAME" of config.SHAPES; its weights are always the same on one kind of device."""
    config = read_config(source)
    with torch.device("meta"):
        model = Transformer(config)
    generator = torch.Generator(device).manual_seed(0)
    for weight in _allocate(model, device, dtype).parameters():
        weight.data.normal_(0, 0.02, generator=generator) if weight.ndim == 2 else weight.data.fill_(1)
    return model


def _allocate(model: Transformer, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Gives a model on the meta device its memory, still without values."""
    model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    model.tie_weights()  # moving to the device has separated them
    return model


def _weight_files(folder: Path) -> tuple[list[Path], bool]:
    """The files of a folder's weights, and whether they are Meta's."""
    for path in (folder / "model.safetensors", folder / "pytorch_model.bin"):
        if path.is_file():
            return [path], False
        index = path.with_name(path.name + ".index.json")
        if index.is_file():
            names = sorted(set(check_fields(read_json(index), index, INDEX)["weight_map"].values()))
            for name in names:
                if name in (".", "..") or any(letter in name for letter in "/\\:\0") or not name.isprintable():
                    raise error(index, f"{printable(name)} is not the name of a file in this folder")
                if not (folder / name).is_file():
                    raise error(folder / name, f"the file is missing, one of {len(names)} shards")
            return [folder / name for name in names], False
    files = meta_files(folder)
    if not files:
        raise error(folder, "no weights are there: neither model.safetensors, shards nor consolidated files")
    return files, True


def _find_tensors(folder: Path, head_dim: int) -> dict[str, list[Part]]:
    """The tensors of a folder's weights by our names: one part each, or one from each of Meta's files."""
    files, meta = _weight_files(folder)
    found: dict[str, list[Part]] = {}
    for path in files:
        for key, part in open_tensors(path).items():
            name = key.removeprefix("model.")
            if meta:
                name = ".".join(META_NAMES.get(word, word) for word in key.split("."))
                if "q_proj" in name or "k_proj" in name:
                    if not part.shape or part.shape[0] % head_dim:
                        raise error(path, f"{name} has the shape {list(part.shape)}, which are no whole heads")
                    part = part._replace(read=partial(split_pairs, part.read, head_dim))
            elif name in found:
                raise error(path, f"the tensor {key} is in {found[name][0].path.name}, too")
            if not name.endswith(("inv_freq", "rope.freqs")):  # these are computed
                found.setdefault(name, []).append(part)
    return found


def _shares(place: Tensor, parts: list[Part]) -> list[Tensor] | None:
    """The slices of `place` that the parts fill: equal shares along one axis, or all of it. None if they do not fit."""
    for axis in range(place.ndim):
        shares = list(place.chunk(len(parts), axis))
        if [share.shape for share in shares] == [part.shape for part in parts]:
            return shares
    return [place] if all(part.shape == place.shape for part in parts) else None  # norms: the same in every file


def check_fit(where: str | Path, found: dict[str, list[Part]], wanted: dict[str, Tensor]) -> None:
    """Raises ValueError unless the found tensors are exactly the wanted ones: names, kinds of numbers, shapes."""
    if missing := [name for name in wanted if name not in found]:
        raise error(where, f"the tensor {missing[0]} is missing ({len(missing)} in all)")
    for name, parts in found.items():
        path = parts[0].path
        if name not in wanted:
            raise error(path, f"the tensor {printable(name, 100)} is not a part of this model")
        if kinds := {part.dtype for part in parts} - FLOATS:
            raise error(path, f"{name} holds {kinds.pop()}, not floating-point numbers of 16 bits or more")
        if _shares(wanted[name], parts) is None:
            shapes = " + ".join(str(list(part.shape)) for part in parts[:3])
            raise error(path, f"{name} has the shape {shapes:.100}, not {list(wanted[name].shape)}")


def fill(place: Tensor, name: str, parts: list[Part]) -> Tensor:
    """Reads a tensor into its place, which has its own dtype and device. Raises ValueError if it is not finite."""
    for part, share in zip(parts, _shares(place, parts)):
        share.copy_(part.read())
    low, high = place.aminmax() if place.numel() else (torch.zeros(()),) * 2  # NaN spreads to both; needs no memory
    if not (low.isfinite() and high.isfinite()):
        raise error(parts[0].path, f"{name} holds numbers that are not finite in {place.dtype}")
    return place


def save_model(
    folder: str | Path, model: Transformer, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = 2 * 2**30
) -> None:
    """Writes config.json and model.safetensors in the official layout, in shards if it exceeds shard_bytes."""
    folder = make_folder(folder)
    shards, size, total = [{}], 0, 0
    for name, tensor in model.named_parameters():  # tied weights come once
        if is_adapter(name):
            continue
        nbytes = tensor.numel() * dtype.itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name if name.startswith("lm_head") else f"model.{name}"] = tensor.detach()
        size, total = size + nbytes, total + nbytes
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files if len(shards) > 1 else ["model.safetensors"], shards):
        write_tensors(folder / file, {name: tensor.to("cpu", dtype) for name, tensor in shard.items()})
    if len(shards) > 1:
        index = {name: file for file, shard in zip(files, shards) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": index}
        write_json(folder / "model.safetensors.index.json", index)
        (folder / "model.safetensors").unlink(missing_ok=True)  # of an earlier model: it would be read first
    raw = to_json(model.config) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", raw)


def pair_bytes(model: Transformer) -> int:
    """Bytes of one KV pair of a model, over all layers."""
    return model.config.kv_numbers_per_pair * model.embed_tokens.weight.element_size()


def fingerprint(model: Transformer) -> str:
    """Identifies a base model: a hash of its shape and of all norm weights.

    The same for every format of one model and in fp32, bf16 and (from a file) fp16: norms are not quantized, and LoRA
    does not touch them.
    """
    return getattr(model, "base_fingerprint", None) or _fingerprint(model.config, _norms(model))


def _norms(model: Transformer) -> list[tuple[str, Tensor]]:
    return [(name, weight) for name, weight in model.named_parameters() if name.endswith("norm.weight")]


def _fingerprint(config: LlamaConfig, norms: Iterable[tuple[str, Tensor]]) -> str:
    shape = {name: value for name, value in to_json(config).items() if name not in NOT_IN_FINGERPRINT}
    shape |= {name: float(shape[name]) for name in ("rms_norm_eps", "rope_theta")}  # 10000 and 10000.0 are the same
    scaling = config.rope_scaling or {}
    shape["rope_scaling"] = {k: x if isinstance(x, str) else float(x) for k, x in scaling.items()}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, weight in norms:
        digest.update(name.encode())
        digest.update(weight.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
