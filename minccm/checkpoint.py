"""Weights on disk: official LLaMA folders in and out, our adapters in and out, the authors' adapters in.

Official: config.json with model.safetensors, or with shards and model.safetensors.index.json. Meta's own: params.json
with consolidated*.safetensors, where rotary pairs are neighbours and are put apart here. An adapter is a folder:
adapter.safetensors (A, B, COMP embeddings) and adapter.json (method, n, r, alpha, the base it was made for).
"""

import hashlib
import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minccm.config import LlamaConfig, read_config
from minccm.methods import Method, get_method
from minccm.model import Transformer

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
AUTHORS_NAMES = {  # the authors' attn_type, as it stands in their folders' names
    "concat_recur": "ccm-concat",
    "merge_recur": "ccm-merge",
    "concat": "ccm-concat-independent",
    "merge": "ccm-merge-independent",
    "gist": "gist",
}


def load_model(folder: str | Path, device="cpu", dtype: torch.dtype | None = None) -> Transformer:
    """The model of an official folder, frozen, tensor by tensor from the mapped file to its place.

    dtype: of the weights; None is fp32 on a CPU and bf16 elsewhere. Raises ValueError, in one line that names the file
    and the tensor, for anything missing, truncated or of another shape.
    """
    folder, device = Path(folder), torch.device(device)
    config = read_config(folder)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    with torch.device("meta"):
        model = Transformer(config)
    model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    model.tie_weights()  # moving to the device has parted them
    wanted = dict(model.named_parameters())  # tied weights stand in it once, as embed_tokens
    for path, name, read in _tensors(folder):
        place = wanted.pop(name, None)
        if place is None:
            if name == "lm_head.weight" and config.tied_embeddings or name.endswith("inv_freq"):
                continue
            raise ValueError(f"{path}: the tensor {name} is not a part of this model, or stands there twice")
        tensor = read()
        if tensor.shape != place.shape:
            raise ValueError(f"{path}: {name} has the shape {list(tensor.shape)}, not {list(place.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} holds {tensor.dtype}, no floating-point numbers")
        place.data.copy_(tensor)
    if wanted:
        raise ValueError(f"{folder}: the tensor {next(iter(wanted))} is missing ({len(wanted)} in all)")
    return model


def _tensors(folder: Path):
    """(file, our name, function that reads the tensor) for every tensor of a folder's weights."""
    index = folder / "model.safetensors.index.json"
    meta = sorted(folder.glob("consolidated*.safetensors"))
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        try:
            files = sorted({folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is no index of shards") from None
    elif meta:
        files = meta
    else:
        raise ValueError(f"{folder} holds no weights: neither model.safetensors, shards nor consolidated.safetensors")
    if files == meta and len(files) > 1:
        raise ValueError(
            f"{folder} holds {len(files)} consolidated files: join Meta's model-parallel parts into one first"
        )
    config = read_config(folder)
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is missing, one of {len(files)} shards")
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  not a dict
                    read = lambda key=key: file.get_tensor(key)
                    if files == meta:
                        yield path, *_from_meta(key, read, config)
                    else:
                        yield path, key.removeprefix("model."), read
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or no safetensors file ({error})") from None


def _from_meta(key: str, read, config: LlamaConfig):
    """Our name of one of Meta's tensors, and its reader with rotary pairs put half a head apart."""
    name = ".".join(META_NAMES.get(part, part) for part in key.split("."))
    if not re.search(r"(q|k)_proj", name):
        return name, read

    def unpermuted() -> Tensor:  # rows (head, pair, 2) -> (head, 2, pair)
        weight = read()
        if weight.ndim != 2 or weight.shape[0] % config.head_dim:
            return weight  # of a wrong shape, which the caller says
        return weight.view(-1, config.head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    return name, unpermuted


def save_model(folder: str | Path, model: Transformer, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes config.json and model.safetensors in the official layout."""
    folder = make_folder(folder)
    state = {
        name: tensor for name, tensor in model.state_dict().items() if "lora_" not in name and name != "comp_embeddings"
    }
    if model.config.tied_embeddings:
        del state["lm_head.weight"]
    names = {name: name if name.startswith("lm_head") else f"model.{name}" for name in state}
    tensors = {names[name]: tensor.to(dtype).cpu().contiguous() for name, tensor in state.items()}
    write_tensors(folder / "model.safetensors", tensors)
    raw = model.config.to_json() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    write_text(folder / "config.json", json.dumps(raw, indent=1) + "\n")


def fingerprint(model: Transformer) -> str:
    """Tells base models apart: a hash of the shape and a few weights, the same for fp32 and bf16 copies of a model.

    The weights are such as LoRA never touches: a step-1 adapter merged in fp32 and in bf16 rounds differently.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_json(), sort_keys=True).encode())
    for weight in (model.norm.weight, model.embed_tokens.weight[-1], model.layers[-1].mlp.down_proj.weight[0]):
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
    write_text(folder / "adapter.json", json.dumps(info, indent=1) + "\n")


def load_adapter(
    model: Transformer, folder: str | Path, method: str | None = None, n: int | None = None, sink: bool | None = None
) -> tuple[Method, int]:
    """Adds an adapter, ours or the authors', to a base model; returns its method and n.

    A plain adapter of the paper's step 1 (method full) is merged into the base. method, n, sink: what is to be found
    there, or for an authors' folder whose name does not tell, what to take it as. Raises ValueError, in one line, when
    the files are missing or broken or were made for another base or method.
    """
    folder = Path(folder)
    if (folder / "init").is_dir():  # it was trained on top of a step-1 adapter
        load_adapter(model, folder / "init")
    if (folder / "adapter.json").is_file():
        info, tensors = _read_ours(folder, model)
    elif (folder / "adapter_config.json").is_file():
        info, tensors = _read_authors(folder, method, n, sink)
    else:
        raise ValueError(f"{folder} holds no adapter: neither adapter.json nor adapter_config.json is there")
    if method is not None and info["method"] != method:
        raise ValueError(f"{folder} was made for the method {info['method']}, not for {method}")
    if n is not None and info["n"] != n:
        raise ValueError(f"{folder} was made with n = {info['n']}, not {n}")
    model.add_adapter(info["n"], info["r"], info["alpha"], dropout=0.0)
    places = model.adapter_state()
    if missing := sorted(places.keys() - tensors.keys()):
        raise ValueError(f"{folder}: the tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := sorted(tensors.keys() - places.keys()):
        raise ValueError(f"{folder}: the tensor {extra[0]} fits nothing in this model ({len(extra)} in all)")
    for name, place in places.items():
        if tensors[name].shape != place.shape:
            raise ValueError(
                f"{folder}: {name} has the shape {list(tensors[name].shape)}, not {list(place.shape)}: another base?"
            )
    for name, place in places.items():
        place.data.copy_(tensors[name])
    found = get_method(info["method"], info["sink"])
    if found.name == "full":
        for projection in model.projections():
            projection.merge_lora()
    return found, info["n"]


def _read_ours(folder: Path, model: Transformer) -> tuple[dict, dict[str, Tensor]]:
    path = folder / "adapter.json"
    try:
        info = json.loads(path.read_text("utf-8"))
        fits = {"method": str, "n": int, "sink": bool, "r": int, "alpha": (int, float), "base": str}
        wrong = [key for key, kind in fits.items() if not isinstance(info.get(key), kind)]
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is no JSON object") from None
    if wrong:
        raise ValueError(f"{path}: the entry {wrong[0]!r} is missing or of a wrong kind")
    if info["base"] != fingerprint(model):
        raise ValueError(
            f"{folder} was made for another base model ({info.get('base_name', info['base'])}): give that as --model"
        )
    return info, read_tensors(folder / "adapter.safetensors")


def _read_authors(folder: Path, method: str | None, n: int | None, sink: bool | None) -> tuple[dict, dict[str, Tensor]]:
    """The authors' adapters, saved by PEFT; merge adapters have n more rows for SUM tokens, which are dropped."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        r, alpha = config["r"], config["lora_alpha"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / 'adapter_config.json'}: r and lora_alpha are not there") from None
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / name).is_file():
            raw = read_tensors(folder / name)
            break
    else:
        path = next((folder / x for x in ("pytorch_model.bin", "adapter_model.bin") if (folder / x).is_file()), None)
        if path is None:
            raise ValueError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin")
        try:
            raw = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # a pickle that holds anything but tensors, or is truncated
            raise ValueError(f"{path} holds more than tensors, or is truncated: it is not loaded") from None
    tensors = {}
    for key, tensor in raw.items():
        name = key.removeprefix("base_model.model.").removeprefix("model.").replace(".default", "")
        name = name.removesuffix(".weight") if "lora_" in name or "embeddings" in name else name
        tensors[re.sub(r".*(comp|gist)_embeddings", "comp_embeddings", name)] = tensor
    in_name = re.search(r"(?:^|-)(concat_recur|merge_recur|concat|merge|gist)(?=-|$)", folder.name)
    tokens = re.search(r"ntok(\d+)", folder.name)
    if "comp_embeddings" not in tensors:
        method, n = "full", 0  # their step 1: plain LoRA on every token
    method = method or (in_name and AUTHORS_NAMES[in_name[1]])
    if method is None:
        raise ValueError(f"{folder}: its name does not tell the method: give it with --method")
    if n is None:
        rows = len(tensors["comp_embeddings"])
        n = int(tokens[1]) if tokens else rows // 2 if "merge" in method else rows
    if n:
        tensors["comp_embeddings"] = tensors["comp_embeddings"][:n]
    sink = folder.name.endswith("-sink") if sink is None else sink
    return {"method": method, "n": n, "sink": sink, "r": r, "alpha": alpha}, tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError, in one line."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error})") from None


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file whole or not at all."""
    beside = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
    os.replace(beside, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: on a full disk, or when interrupted, the one that was there stays."""
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def make_folder(folder: str | Path) -> Path:
    """Makes an output folder. Raises ValueError, in one line, where nothing can be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".part"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): give another folder with --out") from None
    return folder
