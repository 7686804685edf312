"""Weights on disk: official LLaMA folders in and out, our adapters in and out, the authors' adapters in.

Official: config.json with model.safetensors, or with shards and model.safetensors.index.json (or pytorch_model.bin
likewise). Meta's own: params.json with consolidated files, where rotary pairs are neighbours and are put apart here.
An adapter is a folder: adapter.safetensors (A, B, COMP embeddings) and adapter.json (method, n, r, alpha, its base).
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from minccm.config import SHAPES, UNTOLD, read_config
from minccm.files import make_folder, write_json, write_tensors
from minccm.methods import Method, get_method
from minccm.model import Transformer, is_adapter

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
AUTHORS_NAMES = {  # the authors' attn_type, as it stands in their folders' names
    "concat_recur": "ccm-concat",
    "merge_recur": "ccm-merge",
    "concat": "ccm-concat-independent",
    "merge": "ccm-merge-independent",
    "gist": "gist",
}


def load_model(folder: str | Path, device="cpu", dtype: torch.dtype | None = None) -> Transformer:
    """The model of an official folder, frozen, tensor by tensor from the mapped file to its place.

    folder: or "random:7b", random weights of a shape in config.SHAPES. dtype: of the weights; None is fp32 on a CPU
    and bf16 elsewhere. Raises ValueError, in one line that names the file and the tensor, for anything missing,
    truncated, not finite or of another shape.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    if str(folder).startswith("random:"):
        return random_model(str(folder).removeprefix("random:"), device, dtype)
    folder = Path(folder)
    config = read_config(folder)
    found = _find_tensors(folder, config.head_dim)
    if config.vocab_size == UNTOLD:
        config = replace(config, vocab_size=sum(sum(part.shape[:1]) for part in found.get("lm_head.weight", [])) or 1)
    if config.n_layers > len(found):
        raise ValueError(f"{folder} holds {len(found)} tensors, too few for {config.n_layers} layers")
    if config.tied_embeddings:
        found.pop("lm_head.weight", None)  # embed_tokens is both
    with torch.device("meta"):
        model = Transformer(config)
    _check_fit(folder, found, dict(model.named_parameters()))  # before anything is allocated
    _allocate(model, device, dtype)
    for name, place in tqdm(list(model.named_parameters()), f"loading {folder.name}", leave=False, delay=1):
        _fill(place.data, name, found[name])
    if dtype == torch.float16:  # where small numbers are lost; the base is told by what the file holds
        empty = partial(torch.empty, dtype=torch.bfloat16)
        model.base = fingerprint(model, lambda name: _fill(empty(model.get_parameter(name).shape), name, found[name]))
    return model


def random_model(name: str, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A frozen model of a shape in config.SHAPES, its random weights always the same on one kind of device."""
    if name not in SHAPES:
        raise ValueError(f"random:{name} is not known: random:{', random:'.join(SHAPES)} are")
    with torch.device("meta"):
        model = Transformer(SHAPES[name])
    generator = torch.Generator(device).manual_seed(0)
    for weight in _allocate(model, device, dtype).parameters():
        weight.data.normal_(0, 0.02, generator=generator) if weight.ndim == 2 else weight.data.fill_(1)
    return model


def _allocate(model: Transformer, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Gives a model without memory its memory, still without values."""
    model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    model.tie_weights()  # moving to the device has parted them
    return model


class Part(NamedTuple):
    """A tensor on disk: the whole of it, or what one of Meta's model-parallel files holds of it."""

    path: Path
    shape: tuple[int, ...]
    dtype: str  # as its kind of file calls it
    read: Callable[[], Tensor]


def open_tensors(path: Path) -> dict[str, Part]:
    """What a safetensors or PyTorch file holds, mapped, by name. Raises ValueError, in one line."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        if path.suffix == ".safetensors":
            file = safe_open(path, framework="pt")
            heads = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  not a dict
            return {
                key: Part(path, tuple(head.get_shape()), head.get_dtype(), partial(file.get_tensor, key))
                for key, head in heads.items()
            }
        raw = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not all(isinstance(tensor, Tensor) and tensor.layout == torch.strided for tensor in raw.values()):
            raise ValueError("other things than tensors")
        return {key: Part(path, tuple(tensor.shape), str(tensor.dtype), tensor.detach) for key, tensor in raw.items()}
    except Exception as error:  # of many kinds, and of none to many lines
        kind = "no safetensors file" if path.suffix == ".safetensors" else "holds more than tensors: it is not loaded"
        raise ValueError(f"{path} is truncated or {kind} ({str(error).partition(chr(10))[0][:80]})") from None


def _find_tensors(folder: Path, head_dim: int) -> dict[str, list[Part]]:
    """The tensors of a folder's weights by our name: one part each, or one in each of Meta's model-parallel files."""
    files = []
    for path in (folder / "model.safetensors", folder / "pytorch_model.bin"):
        index = path.with_name(path.name + ".index.json")
        try:
            if not files and path.is_file():
                files = [path]
            elif not files and index.is_file():
                files = sorted({folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is no index of shards") from None
    meta = not files
    files = files or sorted(folder.glob("consolidated*.safetensors")) or sorted(folder.glob("consolidated*.pth"))
    if not files:
        raise ValueError(f"{folder} holds no weights: neither model.safetensors, shards nor consolidated files")
    found: dict[str, list[Part]] = {}
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is missing, one of {len(files)} shards")
        for key, part in open_tensors(path).items():
            name = key.removeprefix("model.")
            if meta:
                name = ".".join(META_NAMES.get(word, word) for word in key.split("."))
                if "q_proj" in name or "k_proj" in name:
                    if not part.shape or part.shape[0] % head_dim:
                        raise ValueError(f"{path}: {name} has the shape {list(part.shape)}, no whole heads")
                    part = part._replace(read=partial(_put_apart, part.read, head_dim))
            elif name in found:
                raise ValueError(f"{path}: {key} stands in {found[name][0].path.name}, too")
            if not name.endswith(("inv_freq", "rope.freqs")):  # these are computed
                found.setdefault(name, []).append(part)
    return found


def _put_apart(read, head_dim: int) -> Tensor:
    """Meta's q_proj or k_proj, with the two rows of a rotary pair, neighbours there, half a head apart."""
    weight = read()  # rows (head, pair, 2) -> (head, 2, pair)
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _slots(place: Tensor, parts: list[Part]) -> list[Tensor] | None:
    """The slices of `place` that its parts fill: equal shares along the axis that their shapes tell, or all of it."""
    for axis in range(place.ndim):
        slots = list(place.chunk(len(parts), axis))
        if [slot.shape for slot in slots] == [part.shape for part in parts]:
            return slots
    return [place] if all(part.shape == place.shape for part in parts) else None  # norms: the same in every file


def _check_fit(folder: Path, found: dict[str, list[Part]], wanted: dict[str, Tensor]) -> None:
    """Raises ValueError unless the tensors found are just those that are wanted, in name, kind and shape."""
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{folder}: the tensor {missing[0]} is missing ({len(missing)} in all)")
    for name, parts in found.items():
        if name not in wanted:
            raise ValueError(f"{parts[0].path}: the tensor {name} is not a part of this model")
        if kinds := {part.dtype for part in parts} - FLOATS:
            raise ValueError(
                f"{parts[0].path}: {name} holds {kinds.pop()}, no floating-point numbers of 16 bits or more"
            )
        if _slots(wanted[name], parts) is None:
            shapes = " + ".join(str(list(part.shape)) for part in parts)
            raise ValueError(f"{parts[0].path}: {name} has the shape {shapes}, not {list(wanted[name].shape)}")


def _fill(place: Tensor, name: str, parts: list[Part]) -> Tensor:
    """Reads a tensor to its place, which has its own dtype and device, and where its numbers are to be finite."""
    for part, slot in zip(parts, _slots(place, parts)):
        slot.copy_(part.read())
    low, high = place.aminmax()  # NaN spreads to both; unlike isfinite() this takes no memory
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"{parts[0].path}: {name} holds numbers that are not finite in {place.dtype}")
    return place


def save_model(
    folder: str | Path, model: Transformer, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = 2 * 2**30
) -> None:
    """Writes config.json and model.safetensors in the official layout; what is larger than shard_bytes, in shards."""
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
    raw = model.config.to_json() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", raw)


def fingerprint(model: Transformer, read=None) -> str:
    """Tells base models apart: a hash of the shape and a few weights, the same in fp32, bf16 and (from a file) fp16.

    The weights are such as LoRA never touches: a step-1 adapter merged in fp32 and in bf16 rounds differently.
    """
    if model.base and not read:
        return model.base
    read = read or model.get_parameter
    digest = hashlib.sha256(json.dumps(model.config.to_json(), sort_keys=True).encode())
    last = f"layers.{model.config.n_layers - 1}.mlp.down_proj.weight"
    for weight in (read("norm.weight"), read("embed_tokens.weight")[-1], read(last)[0]):
        digest.update(weight.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_fingerprint(folder: str | Path) -> str:
    """Tells adapters apart: a hash of the files of weights in a folder, with those of the step-1 adapter below it."""
    folder, digest = Path(folder), hashlib.sha256()
    for path in sorted(
        [*folder.glob("*.safetensors"), *folder.glob("*_model.bin"), *folder.glob("init/*.safetensors")]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def save_adapter(folder: str | Path, model: Transformer, method: Method, n: int, **more) -> None:
    """Writes the model's adapter. `more` goes into adapter.json as it is (the base's name, the training's settings)."""
    folder = make_folder(folder)
    q_proj = model.layers[0].self_attn.q_proj
    r = q_proj.lora_A.shape[0]
    info = {"method": method.name, "n": n, "sink": method.sink, "r": r, "alpha": q_proj.scale * r}
    info |= {"base": fingerprint(model)} | more
    write_tensors(
        folder / "adapter.safetensors", {k: v.detach().float().cpu() for k, v in model.adapter_state().items()}
    )
    write_json(folder / "adapter.json", info)


def load_adapter(
    model: Transformer, folder: str | Path, method: str | None = None, n: int | None = None, sink: bool | None = None
) -> tuple[Method, int]:
    """Adds an adapter, ours or the authors', to a base model; returns its method and n.

    A plain adapter of the paper's step 1 (method full) is merged into the base. method, n, sink: what is to be found
    there, or for an authors' folder whose name does not tell, what to take it as. Raises ValueError, in one line, when
    the files are missing or broken or were made for another base or method; the model is then as it was.
    """
    folder = Path(folder)
    if (folder / "adapter.json").is_file():
        info, parts = read_ours(folder, model)
    elif (folder / "adapter_config.json").is_file():
        info, parts = _read_authors(folder, method, n, sink)
    else:
        raise ValueError(f"{folder} holds no adapter: neither adapter.json nor adapter_config.json is there")
    method = method and get_method(method).name
    if method is not None and info["method"] != method:
        raise ValueError(f"{folder} was made for the method {info['method']}, not for {method}")
    if n is not None and info["n"] != n:
        raise ValueError(f"{folder} was made with n = {info['n']}, not {n}")
    if sink is not None and info["sink"] != sink:
        raise ValueError(f"{folder} was made {'with' if info['sink'] else 'without'} a sink")
    found, n, r = get_method(info["method"], info["sink"]), info["n"], info["r"]
    with torch.device("meta"):
        bare = Transformer(model.config)
        bare.add_adapter(n, r, learned=found.learned)
    places = bare.adapter_state()
    _check_fit(folder, parts, places)
    values = {name: _fill(torch.empty(place.shape), name, parts[name]) for name, place in places.items()}
    step1 = folder / "init"  # it was trained on top of this one
    if model.step1 and (step1.is_dir() or found.name == "full"):
        raise ValueError(f"{folder}: {model.step1} is a part of the base already: leave --init out")
    if step1.is_dir():
        load_adapter(model, step1, "full")
    model.add_adapter(n, r, info["alpha"], dropout=0.0, learned=found.learned)
    for name, place in model.adapter_state().items():
        place.data.copy_(values[name])
    if found.name == "full":
        for projection in model.projections():
            projection.merge_lora()
        model.step1 = str(folder)
    return found, n


def read_ours(folder: Path, model: Transformer | None) -> tuple[dict, dict[str, list[Part]]]:
    """adapter.json and the tensors of an adapter of ours; with a model, only one that was made for it."""
    path = folder / "adapter.json"
    try:
        info = json.loads(path.read_text("utf-8"))
        fits = {"method": str, "n": int, "sink": bool, "r": int, "alpha": (int, float), "base": str}
        wrong = [key for key, kind in fits.items() if not isinstance(info.get(key), kind)]
    except (ValueError, AttributeError, OSError):
        raise ValueError(f"{path} is missing or no JSON object") from None
    wrong = wrong or [key for key, least in (("n", 0), ("r", 1)) if not least <= info[key] < 2**16]
    if wrong:
        raise ValueError(f"{path}: the entry {wrong[0]!r} is missing or of a wrong kind")
    if model and info["base"] != fingerprint(model):
        raise ValueError(
            f"{folder} was made for another base model ({info.get('base_name', info['base'])}): give that as --model"
        )
    return info, {name: [part] for name, part in open_tensors(folder / "adapter.safetensors").items()}


def _read_authors(
    folder: Path, method: str | None, n: int | None, sink: bool | None
) -> tuple[dict, dict[str, list[Part]]]:
    """The authors' adapters, saved by PEFT; merge adapters have n more rows for SUM tokens, which are dropped."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        r, alpha = config["r"], config["lora_alpha"]
        if not (0 < r < 2**16 and 0 < alpha < math.inf):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: r and lora_alpha are not there, or no numbers above 0") from None
    names = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin")
    parts = {}
    for key, part in open_tensors(path).items():
        name = key.removeprefix("base_model.model.").removeprefix("model.").replace(".default", "")
        name = name.removesuffix(".weight") if "lora_" in name or "embeddings" in name else name
        parts[re.sub(r".*(comp|gist)_embeddings", "comp_embeddings", name)] = [part]
    title = folder.resolve().name
    in_name = re.search(r"(?:^|-)(concat_recur|merge_recur|concat|merge|gist)(?=[-_]|$)", title)
    tokens = re.search(r"-ntok(\d+)", title)  # which n = 1 has not
    if "comp_embeddings" not in parts:
        method, n = "full", 0  # their step 1: plain LoRA on every token
    method = method or (in_name and AUTHORS_NAMES[in_name[1]])
    if method is None:
        raise ValueError(f"{folder}: its name does not tell the method: give it with --method")
    if method != "full":
        (part,) = parts["comp_embeddings"]
        rows = part.shape[0] if part.shape else 0
        n = n or (int(tokens[1]) if tokens else rows // 2 if "merge" in method else rows)
        parts["comp_embeddings"] = [part._replace(shape=(min(n, rows), *part.shape[1:]), read=lambda: part.read()[:n])]
    sink = bool(re.search(r"-sink(?=[-_]|$)", title)) if sink is None else sink
    return {"method": method, "n": n, "sink": sink, "r": r, "alpha": alpha}, parts
