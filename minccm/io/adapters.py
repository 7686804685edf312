"""Adapters on disk: ours in and out, the authors' in, and ours in the authors' layout.

Ours is a folder: adapter.safetensors (A, B, COMP embeddings) and adapter.json (method, n, r, alpha, its base model). If
it was trained on top of a step-1 adapter, that one is in the folder `init`.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minccm.io.checkpoint import LOG, STATE
from minccm.io.files import make_folder, write_json, write_tensors, write_whole
from minccm.io.tensors import Part, open_tensors
from minccm.io.untrusted import Field, check_fields, error, open_regular, printable, read_json
from minccm.io.weights import check_fit, fill, fingerprint
from minccm.methods import METHODS, Method, get_method
from minccm.model import Transformer

AUTHORS_NAMES = {  # the authors' attn_type, as their folders' names contain it
    "concat_recur": "ccm-concat",
    "merge_recur": "ccm-merge",
    "concat": "ccm-concat-independent",
    "merge": "ccm-merge-independent",
    "gist": "gist",
}
AUTHORS_FILES = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
AUTHORS_NUMBERS = dict(r=Field(int, 1, 2**16 - 1), lora_alpha=Field(float, above=0, high=1e9))
OURS = {
    "method": Field(str, 1, 100),
    "method_file": Field(bool, optional=True, default=False),  # the method is defined in a file of the user's
    "n": Field(int, 0, 2**16 - 1),
    "sink": Field(bool),
    "r": Field(int, 1, 2**16 - 1),
    "alpha": Field(float, above=0, high=1e9),
    "base": Field(str, 1, 100),  # fingerprint of the base model
    "base_name": Field(str, 0, 200, optional=True, default="llama"),
}
MAX_STEP1 = 8  # step-1 adapters below each other


class Stored(NamedTuple):
    """An adapter folder whose entries are checked, its tensors not read yet."""

    info: dict  # the entries of OURS; an adapter of the authors has no base
    parts: dict[str, list[Part]]


class Loaded(NamedTuple):
    """An adapter that is checked and read, and that a model can take without any further error."""

    folder: Path
    method: Method
    info: dict
    values: dict[str, Tensor]  # fp32, by the names of Transformer.adapter_state


def save_adapter(folder: str | Path, model: Transformer, method: Method, n: int, **more) -> None:
    """Writes the model's adapter. `more` is added to adapter.json (the base's name, the settings of the training)."""
    folder = make_folder(folder)
    q_proj = model.layers[0].self_attn.q_proj
    r = len(q_proj.lora_A)
    info = {"method": method.name} | ({"method_file": True} if is_from_file(method) else {})
    info |= {"n": n, "sink": method.sink, "r": r, "alpha": q_proj.scale * r, "base": fingerprint(model)} | more
    tensors = {name: value.detach().float().cpu() for name, value in model.adapter_state().items()}
    write_tensors(folder / "adapter.safetensors", tensors)
    write_json(folder / "adapter.json", info)


def is_from_file(method: Method) -> bool:
    """Is a method defined in a file of the user's, and not in METHODS?"""
    return method.name not in METHODS or METHODS[method.name].attends is not method.attends


def load_adapter(
    model: Transformer,
    folder: str | Path,
    method: Method | str | None = None,
    n: int | None = None,
    sink: bool | None = None,
    merge_step1: bool = True,
) -> tuple[Method, int]:
    """Adds an adapter, ours or the authors', to a base model. Returns its method and n.

    An adapter of the paper's step 1 (method full) is merged into the base model; model.step1 is then its folder.
    Without merge_step1, `folder` itself stays an adapter, which can be trained further.
    method, n, sink: the values that the adapter must have, or those of an authors' adapter whose folder's name lacks
    them. A method from a file must be given as a Method: nothing that an adapter names is imported. Raises ValueError,
    in one line, if the files are missing or broken or fit another base or method; the model is then unchanged.
    """
    loaded = [_load(model, Path(folder), method, n, sink)]  # all are read and checked before the model is changed
    step1 = getattr(model, "step1", None)
    while (below := loaded[0].folder / "init").is_dir():  # it was trained on top of this one
        if len(loaded) > MAX_STEP1:
            raise error(folder, f"there are more than {MAX_STEP1} step-1 adapters below each other")
        loaded.insert(0, _load(model, below, "full", None, None))
    if step1 and (len(loaded) > 1 or loaded[0].method.name == "full"):
        raise error(folder, f"{step1} is a part of the base model already: leave --init out")
    merged = len(loaded) - 1 + (merge_step1 and loaded[-1].method.name == "full")  # so many, from the first on
    _check_merging(model, loaded[:merged])
    for i, adapter in enumerate(loaded):
        _apply(model, adapter, merge=i < merged)
    return loaded[-1].method, loaded[-1].info["n"]


def _load(model: Transformer, folder: Path, method: Method | str | None, n: int | None, sink: bool | None) -> Loaded:
    name = method.name if isinstance(method, Method) else method
    if (folder / "adapter.json").is_file():
        info, parts = read_ours(folder, model)
    elif (folder / "adapter_config.json").is_file():
        info, parts = _read_authors(folder, name, n, sink)
    else:
        raise error(folder, "no adapter is there: neither adapter.json nor adapter_config.json")
    found = _find_method(folder, info, method)
    if n is not None and info["n"] != n:
        raise error(folder, f"the adapter was made with n = {info['n']}, not {n}")
    if sink is not None and info["sink"] != sink:
        raise error(folder, f"the adapter was made {'with' if info['sink'] else 'without'} a sink")
    _check_n(folder, found, info["n"])
    with torch.device("meta"):
        bare = Transformer(model.config)
        bare.add_adapter(info["n"], info["r"], learned=found.learned)
    wanted = bare.adapter_state()
    check_fit(folder, parts, wanted)
    values = {name: fill(torch.empty(place.shape), name, parts[name]) for name, place in wanted.items()}
    return Loaded(folder, found, info, values)


def _find_method(folder: Path, info: dict, given: Method | str | None) -> Method:
    """The method of an adapter: one of METHODS, or the caller's if the adapter was trained with one from a file."""
    name, shown = given.name if isinstance(given, Method) else given, printable(info["method"])
    if name is not None and info["method"] != name:
        raise error(folder, f"the adapter was made for the method {shown}, not for {printable(name)}")
    from_file = isinstance(given, Method) and is_from_file(given)
    if info["method_file"]:
        if not from_file:
            problem = f"the adapter was trained with the method {shown} from a file: give it with --method FILE.py"
            raise error(folder, problem)
        return replace(given, sink=info["sink"])
    if info["method"] not in METHODS:
        raise error(folder, f"the adapter was made for the method {shown}, which does not exist here")
    if from_file:
        raise error(folder, f"the adapter was made for the method {shown} that is built in, not for one from a file")
    return get_method(info["method"], info["sink"])


def _check_n(folder: Path, method: Method, n: int) -> None:
    """Raises ValueError for a step-1 adapter with COMP tokens, or for none where the method needs them."""
    needed = bool(method.comp_after or method.merge_rate)
    if (needed and n == 0) or (method.name == "full" and n):
        raise error(folder, f"n = {n} does not fit the method {method.name}")


def _low_rank(adapter: Loaded, name: str) -> Tensor:
    """(alpha / r) B A of a projection: fp32 (out, in)."""
    A, B = adapter.values[f"{name}.lora_A"], adapter.values[f"{name}.lora_B"]
    return adapter.info["alpha"] / adapter.info["r"] * B @ A


def _check_merging(model: Transformer, adapters: list[Loaded]) -> None:
    """Raises ValueError if W + (alpha / r) B A of a step-1 adapter is not finite in the dtype of W."""
    for name in [name for name, _ in model.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))]:
        weight = model.get_submodule(name).weight
        for adapter in adapters:
            weight = (weight + _low_rank(adapter, name).to(weight.device)).to(weight.dtype)
            if not weight.isfinite().all():
                raise error(adapter.folder, f"{name} with the adapter merged in is not finite in {weight.dtype}")


def _apply(model: Transformer, adapter: Loaded, merge: bool) -> None:
    """Adds a checked adapter to a model, and merges it into the base if asked."""
    info = adapter.info
    model.add_adapter(info["n"], info["r"], info["alpha"], dropout=0.0, learned=adapter.method.learned)
    for name, place in model.adapter_state().items():
        place.data.copy_(adapter.values[name])
    if merge:
        for projection in model.projections():
            projection.merge_lora()
        model.step1 = str(adapter.folder)


def read_ours(folder: str | Path, model: Transformer | None) -> Stored:
    """adapter.json, checked, and the tensors of an adapter of ours. With a model: only if it was made for that one."""
    folder = Path(folder)
    path = folder / "adapter.json"
    info = check_fields(read_json(path), path, OURS)
    if model is not None and info["base"] != fingerprint(model):
        other = printable(info["base_name"])
        raise error(folder, f"the adapter was made for another base model ({other}): give that one with --model")
    return Stored(info, {name: [part] for name, part in open_tensors(folder / "adapter.safetensors").items()})


def _authors_weights(folder: Path) -> Path:
    path = next((folder / name for name in AUTHORS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise error(folder, "no weights are there: neither model.safetensors nor pytorch_model.bin")
    return path


def _read_authors(folder: Path, method: str | None, n: int | None, sink: bool | None) -> Stored:
    """An adapter of the authors, saved by PEFT; merge adapters have n more rows for SUM tokens, which are dropped."""
    path = folder / "adapter_config.json"
    raw = read_json(path)
    numbers = check_fields(raw, path, AUTHORS_NUMBERS)
    for other in ("use_rslora", "use_dora"):
        if raw.get(other):
            raise error(path, f"{other} is not supported")
    parts = {}
    for key, part in open_tensors(_authors_weights(folder)).items():
        name = _our_name(key)
        if name in parts:
            raise error(part.path, f"the tensor {printable(name, 100)} is there twice")
        parts[name] = [part]
    title = folder.resolve().name
    in_name = re.search(r"(?:^|-)(concat_recur|merge_recur|concat|merge|gist)(?=[-_]|$)", title)
    n_in_name = re.search(r"-ntok([0-9]{1,5})(?![0-9])", title)  # missing where n is 1
    if "comp_embeddings" not in parts:
        method, n = "full", 0  # their step 1: plain LoRA on every token
    elif method == "full":
        raise error(folder, "an adapter with COMP embeddings is not a step-1 adapter")
    method = method or (in_name and AUTHORS_NAMES[in_name[1]])
    if method is None:
        raise error(folder, "the folder's name does not tell the method: give it with --method")
    if method != "full":
        (part,) = parts["comp_embeddings"]
        rows = part.shape[0] if part.shape else 0
        n = n or (int(n_in_name[1]) if n_in_name else rows // 2 if "merge" in method else rows)
        shape, read = (min(n, rows), *part.shape[1:]), part.read
        parts["comp_embeddings"] = [part._replace(shape=shape, read=lambda: read()[:n])]
    sink = bool(re.search(r"-sink(?=[-_]|$)", title)) if sink is None else sink
    info = {"method": method, "method_file": method not in METHODS, "n": n, "sink": sink}
    return Stored(info | {"r": numbers["r"], "alpha": numbers["lora_alpha"]}, parts)


def _our_name(key: str) -> str:
    """Our name of a tensor of the authors' adapters."""
    name = key.removeprefix("base_model.model.").removeprefix("model.").replace(".default", "")
    name = name.removesuffix(".weight") if "lora_" in name or "embeddings" in name else name
    return "comp_embeddings" if name.endswith(("comp_embeddings", "gist_embeddings")) else name


def adapter_fingerprint(folder: str | Path) -> str:
    """Identifies an adapter: a hash of the files of weights in its folder, and in that of its step-1 adapter."""
    folder, digest = Path(folder), hashlib.sha256()
    patterns = ("*.safetensors", "*_model.bin", "init/*.safetensors", "init/*_model.bin")
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)} - {folder / STATE}):
        with open_regular(path) as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:16]


def export_adapter(folder: str | Path, out: str | Path) -> Path:
    """Writes an adapter of ours as the authors' code saves and names it, below `out`. Returns its folder.

    As in their layout, an adapter that was trained on top of a step-1 adapter goes to the folder finetune, and the
    step-1 adapter goes next to that folder. Raises ValueError, in one line, for a broken adapter or a method that their
    code does not have.
    """
    folder, out = Path(folder), Path(out)
    info, parts = read_ours(folder, None)
    ours = {ours: theirs for theirs, ours in AUTHORS_NAMES.items()}
    theirs = ours.get(info["method"])
    if theirs is None and info["method"] != "full" or info["method_file"]:
        known = ", ".join([*ours, "full"])
        raise error(folder, f"the authors' code does not have {printable(info['method'])}, but {known}")
    _check_n(folder, get_method(info["method"]), info["n"])
    tensors = {name: read() for name, read in _exported_tensors(folder, info, parts).items()}
    title = plain_name(info["base_name"])
    step1 = folder / "init"
    if step1.is_dir():
        title = f"finetune/{_export_step1(step1, out, title)}"
    if theirs is None:
        title += "-no"
    else:
        title += f"-{'fixed' if theirs == 'gist' else 'online'}-{theirs}-ntok{info['n']}" + "-sink" * info["sink"]
    if "merge" in info["method"]:  # rows for their SUM tokens, which nothing uses
        tensors["comp_embeddings"] = tensors["comp_embeddings"].repeat(2, 1)
    result = make_folder(out / title)
    names = {name: name.replace("comp_", "embed_tokens.comp_") for name in tensors}
    raw = {f"base_model.model.model.{names[name]}.weight": tensor.clone() for name, tensor in tensors.items()}
    write_whole(result / "pytorch_model.bin", lambda path: torch.save(raw, path))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": info["r"], "lora_alpha": info["alpha"]}
    config |= {"lora_dropout": 0.05, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "bias": "none"}
    config |= {"fan_in_fan_out": False, "inference_mode": True, "base_model_name_or_path": None}
    write_json(result / "adapter_config.json", config)
    return result


def plain_name(text: str) -> str:
    """A name for one file or folder: letters, digits, - _ and dots that are not at the beginning."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text[:64]).lstrip(".") or "llama"


def _export_step1(folder: Path, out: Path, base_name: str) -> str:
    """Writes a step-1 adapter, ours or theirs, below `out`. Returns the name of its folder there."""
    if (folder / "init").exists():
        raise error(folder, "their layout has one step-1 adapter only, and this one was trained on top of another")
    if (folder / "adapter.json").is_file():
        method = read_ours(folder, None).info["method"]
        if method != "full":
            raise error(folder, f"this must be a step-1 adapter, not one of {printable(method)}")
        return export_adapter(folder, out).name
    stored = _read_authors(folder, None, None, None)
    if stored.info["method"] != "full":
        raise error(folder, "this must be a step-1 adapter")
    result = make_folder(out / f"{base_name}-no")
    for path in (folder / "adapter_config.json", _authors_weights(folder)):
        shutil.copyfile(path, result / path.name)
    return result.name


def _exported_tensors(folder: Path, info: dict, parts: dict[str, list[Part]]) -> dict[str, Callable[[], Tensor]]:
    """How each tensor is read. Raises ValueError if they cannot be those of an adapter with this rank and n."""
    reads = {}
    for name, (part,) in parts.items():
        shape, words = part.shape, name.split(".")
        if name == "comp_embeddings":
            fits = len(shape) == 2 and shape[0] == info["n"]
        else:
            fits = len(words) == 5 and words[0] == "layers" and words[4] in ("lora_A", "lora_B") and len(shape) == 2
            fits = fits and shape[words[4] == "lora_B"] == info["r"]
        if not fits or not name.isprintable():
            raise error(part.path, f"{printable(name, 100)} does not belong to an adapter of this rank and n")
        reads[name] = part.read
    if (info["n"] > 0) != ("comp_embeddings" in reads) or len(reads) < 2:
        raise error(folder, "the adapter has no COMP embeddings, or more than it needs, or no LoRA")
    return reads


def keep_step1(init: str | None, adapter: str | None, out: Path) -> None:
    """Copies the step-1 adapter, `init` or the one inside `adapter`, to out/init: so `out` is complete without it."""
    step1 = Path(init) if init else Path(adapter) / "init" if adapter else None
    if step1 and step1.is_dir() and step1.resolve() != (out / "init").resolve():
        unwanted = shutil.ignore_patterns(STATE, LOG, "*.png", "*.part")
        shutil.copytree(step1, out / "init", dirs_exist_ok=True, ignore=unwanted)
