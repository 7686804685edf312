"""Weights on disk: every layout gives the same model, reading takes no second copy, and errors are clear."""

import json
import os
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minccm.io import weights
from minccm.io.adapters import load_adapter
from minccm.io.config import LLAMA3_ROPE, SHAPES, read_config
from minccm.io.files import make_folder, write_json, write_tensors, write_whole
from minccm.io.untrusted import read_json
from minccm.io.weights import fingerprint, load_model, save_model
from minccm.model import LlamaConfig, Transformer
from tests.hostile import check_error, guarded

CONFIG = LlamaConfig(vocab_size=60, dim=32, ffn_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8)
PARAMS = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "norm_eps": 1e-5, "vocab_size": -1}


def a_model(config=CONFIG, seed=0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(config).eval()


@pytest.fixture
def folder(tmp_path):
    """A whole model in one safetensors file."""
    save_model(tmp_path, a_model(), torch.float32)
    return tmp_path


def same(a: Transformer, b: Transformer) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def complaint(folder, dtype=None) -> str:
    """The error of load_model: a ValueError of one line."""
    with pytest.raises(ValueError) as error:
        load_model(folder, dtype=dtype)
    return check_error(error.value)


# Layouts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard_bytes, shards", [(2**31, 1), (16000, 6)])
def test_round_trip(tmp_path, dtype, shard_bytes, shards):
    """Load, save, load: the same bytes, in one file and in shards; and tied embeddings stay tied."""
    tied = LlamaConfig(**vars(CONFIG) | {"tied_embeddings": True})
    shard_bytes = shard_bytes * dtype.itemsize // 4
    save_model(tmp_path / "a", a_model(tied), dtype, shard_bytes)
    model = load_model(tmp_path / "a", dtype=dtype)
    save_model(tmp_path / "b", model, dtype, shard_bytes)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len([name for name in files if name.endswith(".safetensors")]) == shards
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert model.lm_head.weight is model.embed_tokens.weight and same(load_model(tmp_path / "b", dtype=dtype), model)


def test_shards_replace_one_file(folder):
    """A model in shards, written where one in a single file was, is the one that is read."""
    save_model(folder, a_model(seed=1), torch.float32, shard_bytes=8000)
    assert same(load_model(folder), a_model(seed=1))


@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_files(folder, shards):
    """pytorch_model.bin, and its shards with their index."""
    tensors = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    names = [f"pytorch_model-{i}.bin" for i in range(shards)] if shards > 1 else ["pytorch_model.bin"]
    for i, name in enumerate(names):
        torch.save(dict(tensors[i::shards]), folder / name)
    weight_map = {key: names[i % shards] for i, (key, _) in enumerate(tensors)}
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same(load_model(folder), a_model())


def write_meta(folder, model, files, embedding_axis, suffix):
    """The model as Meta writes it: rotary pairs side by side, split over model-parallel files."""
    config, axes = model.config, {"wo": 1, "w2": 1, "tok_embeddings": embedding_axis}
    parts = [{"rope.freqs": torch.zeros(4)} for _ in range(files)]
    words = {ours: theirs for theirs, ours in weights.META_NAMES.items()}
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            half = config.head_dim // 2
            within = [i // 2 + half * (i % 2) for i in range(config.head_dim)]  # 0, half, 1, half + 1, ...
            weight = weight[[h + i for h in range(0, len(weight), config.head_dim) for i in within]]
        key = ".".join(words.get(word, word) for word in name.split("."))
        split = [weight] * files if weight.ndim == 1 else weight.chunk(files, axes.get(key.split(".")[-2], 0))
        for part, share in zip(parts, split):
            part[key] = share.clone()
    (folder / "params.json").write_text(json.dumps(PARAMS))
    for i, part in enumerate(parts):
        path = folder / f"consolidated.{i:02}.{suffix}"
        save_file(part, path) if suffix == "safetensors" else torch.save(part, path)


@pytest.mark.parametrize("files, embedding_axis", [(1, 0), (2, 1), (2, 0)])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_meta_files(tmp_path, files, embedding_axis, suffix):
    """Meta's files, also several model-parallel ones (embeddings by column as LLaMA-2, by row as Llama-3)."""
    write_meta(tmp_path, a_model(), files, embedding_axis, suffix)
    assert same(load_model(tmp_path), a_model())  # with vocab_size -1 in params.json
    if files == 2:
        (tmp_path / f"consolidated.00.{suffix}").unlink()
        assert "shape" in complaint(tmp_path) and f"consolidated.01.{suffix}" in complaint(tmp_path)


def test_random_shapes():
    """--model random:NAME: the same weights each time, and a name that is not known is answered with those that are."""
    assert same(load_model("random:1m"), load_model("random:1m"))
    assert "random:7b" in complaint("random:8b")


def test_seven_billion():
    """random:7b has LLaMA-2-7B's shape: 6,738,415,616 parameters."""
    with torch.device("meta"):
        model = Transformer(SHAPES["7b"])
    assert sum(weight.numel() for weight in model.parameters()) == 6738415616


@pytest.mark.parametrize("saved, dtype", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_no_second_copy(tmp_path, saved, dtype):
    """Reading holds the model and at most its largest tensor, beyond the mapped file, while it goes on."""
    config = LlamaConfig(vocab_size=8000, dim=1024, ffn_dim=2048, n_layers=4, n_heads=8, n_kv_heads=8, head_dim=128)
    with torch.device("meta"):
        model = Transformer(config)
    save_model(tmp_path, model.to_empty(device="cpu").requires_grad_(False).apply(zero), saved)
    del model
    load_model("random:1m")  # libraries load parts of themselves at their first use
    peak, model = peak_memory(lambda: load_model(tmp_path, dtype=dtype))
    sizes = [weight.nbytes for weight in model.parameters()]
    assert sum(sizes) >> 20 == 222
    assert peak <= sum(sizes) + max(sizes) + 32 * 2**20


def peak_memory(call):
    """The most bytes that a call holds, mapped files not counted, and its result."""
    done, seen = threading.Event(), []

    def watch():
        while not done.wait(0.002):  # Linux keeps no peak of RssAnon
            status = Path("/proc/self/status").read_text()
            seen.append(int(status.split("RssAnon:")[1].split()[0]) * 1024)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    time.sleep(0.05)
    before = seen[-1]
    result = call()
    done.set()
    thread.join()
    return max(seen) - before, result


def zero(module):
    for weight in module.parameters(recurse=False):
        weight.zero_()


def test_one_tensor_at_a_time(folder, monkeypatch):
    """A tensor of the file is let go before the next is read, so that none is held twice."""
    held = []

    def watched(path, open_tensors=weights.open_tensors):
        def read(part):
            assert not any(ref() is not None for ref in held)
            tensor = part.read()
            held.append(weakref.ref(tensor))
            return tensor

        parts = open_tensors(path)
        return {name: part._replace(read=lambda part=part: read(part)) for name, part in parts.items()}

    monkeypatch.setattr(weights, "open_tensors", watched)
    assert same(load_model(folder), a_model()) and len(held) == 21


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
def test_a_base_is_known_in_every_dtype(tmp_path, saved):
    """An adapter fits its base whether that is read as fp32, bf16 or fp16, which is too coarse for small weights."""
    model = a_model()
    model.norm.weight.data[:4] = torch.tensor([1e-8, 3e-7, 1e-5, 1.0])
    save_model(tmp_path, model, saved)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    assert len({fingerprint(load_model(tmp_path, dtype=dtype)) for dtype in dtypes}) == 1


def test_the_fingerprint_names_the_base(tmp_path, tiny):
    """The same in every format of one model; another for other norms or another shape; shipped adapters have it."""
    model = a_model()
    torch.nn.init.normal_(model.norm.weight)
    own = fingerprint(model)
    save_model(tmp_path / "official", model, torch.float32)
    (tmp_path / "meta").mkdir()
    write_meta(tmp_path / "meta", model, 2, 0, "pth")
    assert fingerprint(load_model(tmp_path / "official")) == fingerprint(load_model(tmp_path / "meta")) == own
    same_base = {"max_positions": 99, "bos_id": 3, "eos_id": 4, "rope_theta": 10000}
    for changes, same_name in ((same_base, True), ({"rope_theta": 5e5}, False), ({"norm_eps": 1e-6}, False)):
        other = Transformer(LlamaConfig(**vars(CONFIG) | changes))
        other.load_state_dict(model.state_dict())
        assert (fingerprint(other) == own) is same_name
    model.layers[1].input_layernorm.weight.data[3] = 2.0
    assert fingerprint(model) != own
    for name in ("ccm-concat", "ccm-merge"):
        load_adapter(load_model(tiny), tiny / name)


def test_others_may_read(tmp_path):
    """Files of tensors have the permissions of any new file, so that an adapter can be shared."""
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_files_are_whole(tmp_path):
    """If writing fails, the old file stays, and nothing else is left."""

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(OSError):
        write_whole(tmp_path / "a.json", fail)
    with pytest.raises(OSError):
        write_tensors(tmp_path / "nowhere" / "a.safetensors", {"a": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(ValueError, match="cannot write"):
        make_folder(tmp_path / "a.json" / "b")


# Errors


def test_missing_shard(folder):
    """A shard that is not there is named."""
    save_model(folder, a_model(), torch.float32, shard_bytes=30000)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert complaint(folder).endswith("model-00002-of-00003.safetensors: the file is missing, one of 3 shards")


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj.weight is missing"),
        (lambda t: t.update({"model.layers.0.bias": torch.ones(1)}), "layers.0.bias is not a part"),
        (lambda t: t.update({"model.norm.weight": torch.ones(31)}), "norm.weight has the shape [31], not [32]"),
        (lambda t: t.update({"model.norm.weight": torch.ones(32).int()}), "norm.weight holds I32"),
        (lambda t: t.update({"model.norm.weight": torch.ones(32).to(torch.float8_e5m2)}), "norm.weight holds F8_E5M2"),
        (lambda t: t["lm_head.weight"][59].fill_(torch.nan), "lm_head.weight holds numbers that are not finite"),
        (lambda t: t["lm_head.weight"][:, 31].fill_(-torch.inf), "lm_head.weight holds numbers that are not finite"),
    ],
)
def test_wrong_tensor(folder, change, says):
    """A tensor that is missing, too many, of another shape or kind, or not finite is named with its file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    assert says in complaint(folder)
    assert str(folder if "missing" in says else path) in complaint(folder)


def test_twice(folder):
    """A tensor that stands in two shards."""
    save_file(load_file(folder / "model.safetensors"), folder / "b.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}')
    assert "is in a.safetensors, too" in complaint(folder)


def test_too_large_for_fp16(folder):
    """What is finite in the file and not in --dtype is no silent infinity."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, folder / "model.safetensors")
    load_model(folder, dtype=torch.bfloat16)
    assert "norm.weight" in complaint(folder, torch.float16) and "float16" in complaint(folder, torch.float16)


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a pickle was run')",)


class Huge:
    def __reduce__(self):
        return bytearray, (2**40,)


def nested_key():
    """A tuple that takes 2^60 steps to hash."""
    key = ()
    for _ in range(60):
        key = (key, key)
    return key


def as_pickle(folder, tensors):
    """Writes tensors as pytorch_model.bin in the place of model.safetensors."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(tensors, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "what",
    [
        {"a": Harmful()},
        {"a": Huge()},
        [torch.ones(2)],
        {"a": 1},
        {1: torch.ones(2)},
        {("a", "b"): torch.ones(2)},
        {"a": torch.ones(2, 2).to_sparse()},
        {"a": torch.empty(2, device="meta")},
        {"a": torch.ones(1).expand(2**40)},
        {"a": torch.ones(4, dtype=torch.complex64)},
    ],
)
def test_pickle_of_other_things(folder, what):
    """A file of torch.save that holds anything but tensors is not loaded, and runs nothing."""
    as_pickle(folder, what)
    with guarded(folder):
        assert "pytorch_model.bin" in complaint(folder) and "more than tensors" in complaint(folder)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_pickle_with_strides(folder, name):
    """Transposed weights, parameters, a view of a larger tensor, and weights that share their numbers are read."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].t().contiguous().t()
    tensors["model.norm.weight"] = torch.stack([torch.zeros(32), tensors["model.norm.weight"]])[1]
    tensors[name] = torch.nn.Parameter(tensors[name])
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    as_pickle(folder, tensors)
    model = load_model(folder)
    assert torch.equal(model.lm_head.weight, a_model().embed_tokens.weight)
    assert torch.equal(model.norm.weight, a_model().norm.weight)


def test_names_are_shown_safely(folder):
    """A tensor's name with newlines or escape codes cannot write to the terminal; an endless one is refused."""
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"a\n\x1b[2Jb": torch.ones(1)}, folder / "model.safetensors")
    assert "a??[2Jb" in complaint(folder)
    save_file(tensors | {"x" * 200_000: torch.ones(1)}, folder / "model.safetensors")
    assert "200,000 characters" in complaint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_pipes_do_not_block(folder, name):
    """A pipe in the place of a file is refused at once: opening it would wait for ever."""
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with guarded(folder, seconds=5):
        assert str(folder) in complaint(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "a\0b", "a\nb", "", 7, None])
def test_shards_are_in_the_folder(folder, name):
    """An index cannot name a file elsewhere."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    assert "index.json" in complaint(folder)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "mistral", "sliding_window": 1024}, "sliding_window 1024"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
        ({"rope_scaling": "linear"}, "must be an object"),
        ({"num_key_value_heads": 3}, "3 key/value heads"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"hidden_size": "32"}, "config.json"),
        ({"rms_norm_eps": float("nan")}, "config.json"),
        ({"num_hidden_layers": 1000}, "too few"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
        ({"hidden_size": 10**400}, "more than 18 digits"),
        ({"rope_theta": 1e-300}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "llama3"} | LLAMA3_ROPE | {"low_freq_factor": 4.0}}, "low_freq_factor"),
        ({"eos_token_id": 60}, "EOS"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"vocab_size": 10**6}, "lm_head.weight has the shape [60, 32], not [1000000, 32]"),
        ({"attention_bias": True}, "attention_bias"),
    ],
)
def test_wrong_config(folder, change, says):
    """A config that is not supported, or lies, is answered before anything is allocated."""
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | change))
    assert says in complaint(folder)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"sliding_window": 4096}, "sliding_window"),
        ({"moe": {"num_experts": 8}}, "experts"),
        ({"use_scaled_rope": True}, "rope_scaling_factor"),
    ],
)
def test_wrong_params(tmp_path, change, says):
    """Meta's params.json likewise."""
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | change))
    with pytest.raises(ValueError, match=says):
        read_config(tmp_path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_pickle(folder, share):
    """A pickled file cut off."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: int(share * len(whole))])
    assert "pytorch_model.bin: the file is truncated" in complaint(folder)
