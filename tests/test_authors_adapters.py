"""The authors' adapters, in and out: what their folders' names say, older keys, step 1 below step 2, and our export."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval
import weights
from conversation import open_conversation
from minccm import cli
from minccm.checkpoint import load_adapter, load_model, save_adapter, save_model
from minccm.config import LlamaConfig
from minccm.methods import get_method
from minccm.model import Transformer
from minccm.online import Session
from tests.conftest import oracle

CONFIG = LlamaConfig(vocab_size=40, dim=16, ffn_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4)


def base() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).eval()


def write(folder, rows, seed=1, key=lambda key: key, binary=False, model=None):
    """An adapter as the authors' code saves it, with `rows` COMP (and SUM) embeddings; 0 is a plain step-1 LoRA."""
    model = model or base()
    torch.manual_seed(seed)
    model.add_adapter(rows, r=2, alpha=4)
    names = {name: name.replace("comp_", "embed_tokens.comp_") for name in model.adapter_state()}
    names = {name: key(f"base_model.model.model.{long}.weight") for name, long in names.items()}
    tensors = {names[name]: torch.randn(place.shape) / 2 for name, place in model.adapter_state().items()}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    torch.save(tensors, folder / "pytorch_model.bin") if binary else save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.mark.parametrize(
    "name, rows, method, n, sink",
    [
        ("finetune/llama-7b-no-online-concat_recur-ntok2", 2, "ccm-concat", 2, False),
        ("finetune/llama-7b-no-online-concat_recur-ntok2-sink", 2, "ccm-concat", 2, True),
        ("finetune/llama-7b-no-online-merge_recur-ntok8", 16, "ccm-merge", 8, False),
        ("finetune/llama-7b-no-online-concat-ntok8", 8, "ccm-concat-independent", 8, False),
        ("finetune/llama-7b-no-online-merge", 2, "ccm-merge-independent", 1, False),  # one COMP, one SUM
        ("finetune/llama-7b-no-fixed-gist-ntok4", 4, "gist", 4, False),
        ("llama-2-7b-chat-online-merge_recur-ntok8-sink", 16, "ccm-merge", 8, True),
        ("llama-2-7b-chat-online-concat_recur-ntok2-sink_pajama", 2, "ccm-concat", 2, True),
        ("llama-7b-no", 0, "full", 0, False),
    ],
)
def test_names(tmp_path, name, rows, method, n, sink):
    """Method, n and sink are told by the folder's name; of merge adapters the COMP rows are taken, not the SUM rows."""
    tensors = write(tmp_path / name, rows)
    model = base()
    found, count = load_adapter(model, tmp_path / name)
    assert (found.name, count, found.sink) == (method, n, sink)
    if n:
        rows = tensors["base_model.model.model.embed_tokens.comp_embeddings.weight"]
        assert torch.equal(model.comp_embeddings, rows[:n])


@pytest.mark.parametrize("old, new", [(".weight", ".default.weight"), ("comp_embeddings", "gist_embeddings")])
@pytest.mark.parametrize("binary", [False, True])
def test_older_keys(tmp_path, old, new, binary):
    """Keys with `.default`, and the older name of the embeddings."""
    name = "llama-7b-online-concat_recur-ntok2"
    write(tmp_path / "a" / name, 2)
    write(tmp_path / "b" / name, 2, key=lambda key: key.replace(old, new), binary=binary)
    a, b = base(), base()
    load_adapter(a, tmp_path / "a" / name), load_adapter(b, tmp_path / "b" / name)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_by_hand(tmp_path):
    """A folder whose name says nothing: a clear error, or what is given by hand."""
    write(tmp_path / "download", 4)
    with pytest.raises(ValueError, match="--method"):
        load_adapter(base(), tmp_path / "download")
    method, n = load_adapter(base(), tmp_path / "download", "ccm-merge", sink=True)
    assert (method.name, n, method.sink) == ("ccm-merge", 2, True)
    assert load_adapter(base(), tmp_path / "download", "ccm-concat", 3)[1] == 3


@pytest.mark.parametrize("spoil", ["shape", "missing", "extra", "nan", "rank", "n"])
def test_nothing_half_loaded(tmp_path, spoil):
    """An adapter that does not fit: the tensor is named, and the model is as it was."""
    tensors = write(tmp_path / "x-concat_recur-ntok2", 2)
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    if spoil == "missing":
        del tensors[key]
    else:
        tensors[key + "x" * (spoil == "extra")] = torch.full((9 if spoil == "shape" else 8, 2), torch.nan)
    save_file(tensors, tmp_path / "x-concat_recur-ntok2" / "model.safetensors")
    if spoil == "rank":
        (tmp_path / "x-concat_recur-ntok2" / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 4}')
    model = base()
    with pytest.raises(ValueError) as error:
        load_adapter(model, tmp_path / "x-concat_recur-ntok2", n=5 if spoil == "n" else None)
    says = "layers.1.self_attn.v_proj"
    says = {"rank": "k_proj.lora_A has the shape [2, 16], not [3, 16]", "n": "comp_embeddings"}.get(spoil, says)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not model.adapter_state() and model.projections()[0].lora_A is None


@pytest.fixture
def chain(tiny, tmp_path):
    """For the model that ships, adapters in the authors' layout: step 1, and a step 2 that was trained on top of it."""
    write(tmp_path / "tiny-no", 0, seed=1, model=load_model(tiny))
    write(tmp_path / "finetune" / "tiny-no-online-concat_recur-ntok2", 2, seed=2, model=load_model(tiny))
    return tmp_path / "tiny-no", tmp_path / "finetune" / "tiny-no-online-concat_recur-ntok2"


def test_step_2_on_step_1(tiny, chain):
    """--init merges W + (alpha / r) B A of step 1 into the base; the compression adapter then goes on top of that."""
    step1, step2 = chain
    session = open_conversation(init=step1, adapter=step2).session
    model, tensors = load_model(tiny), load_file(step1 / "model.safetensors")
    for name, module in model.named_modules():
        if a := [tensors[key] for key in tensors if f".{name}.lora_" in key]:
            module.weight += 2 * a[1] @ a[0]
    expected = Session(model, *load_adapter(model, step2))
    plain = load_model(tiny)
    without = Session(plain, *load_adapter(plain, step2))
    for one in (session, expected, without):
        one.read([1, 5, 6, 7])
    logits = expected.logits([8, 9])
    torch.testing.assert_close(session.logits([8, 9]), logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(without.logits([8, 9]), logits, atol=1e-1)


def test_step_1_is_merged_once(tiny, chain, tmp_path):
    """An adapter of ours that brings its step 1 does not get it a second time by --init, nor leaves it to the next."""
    step1, _ = chain
    model = load_model(tiny)
    model.add_adapter(2, r=2)
    save_adapter(tmp_path / "ours", model, get_method("ccm-concat"), 2)
    shutil.copytree(step1, tmp_path / "ours" / "init")
    with pytest.raises(ValueError, match="leave --init out"):
        open_conversation(init=step1, adapter=tmp_path / "ours")
    with pytest.raises(ValueError, match="no step-1 adapter"):
        cli.open_base(tiny, tmp_path / "ours", torch.device("cpu"), torch.float32)


def test_eval_starts_each_adapter_from_the_base(tiny, chain, tmp_path, monkeypatch):
    """In one table, an adapter has the numbers that it has alone, whatever the one before it brought into the base."""
    step1, _ = chain
    for name, r in (("a", 2), ("b", 3)):
        torch.manual_seed(r)
        model = load_model(tiny)
        model.add_adapter(2, r)
        save_adapter(tmp_path / name, model, get_method("ccm-concat"), 2)
        shutil.copytree(step1, tmp_path / name / "init")

    def perplexity(*adapters):
        arguments = ["--data", "dialog", "--time-steps", "1", "--samples", "2", "--json", tmp_path / "x.json"]
        arguments = [*arguments, "--device", "cpu", "--adapter", *adapters]
        monkeypatch.setattr("sys.argv", ["eval.py", *map(str, arguments)])
        eval.main()
        return json.loads((tmp_path / "x.json").read_text())[len(adapters) + 1]["perplexity"]

    alone = perplexity(tmp_path / "b")
    assert perplexity(tmp_path / "a", tmp_path / "b") == alone


@pytest.mark.parametrize("method, n", [("ccm-concat", 2), ("ccm-merge", 3), ("gist", 1), ("ccm-merge-independent", 1)])
@pytest.mark.parametrize("sink", [False, True])
def test_export(tmp_path, method, n, sink):
    """Ours, written in the authors' layout, is the same adapter when it is read back, step 1 included."""
    model, out = base(), tmp_path / "result"
    model.add_adapter(0, r=3, alpha=6)
    save_adapter(tmp_path / "ours" / "init", fill(model), get_method("full"), 0, base_name="llama-7b")
    model = base()
    model.add_adapter(n, r=2, alpha=4)
    save_adapter(tmp_path / "ours", fill(model), get_method(method, sink), n, base_name="llama-7b")
    step2 = weights.export_adapter(tmp_path / "ours", out)
    assert step2.parent == out / "finetune" and (out / "llama-7b-no").is_dir()

    ours, theirs = base(), base()
    expected = load_adapter(ours, tmp_path / "ours")
    load_adapter(theirs, out / "llama-7b-no")
    assert load_adapter(theirs, step2) == expected
    assert theirs.projections()[0].scale == ours.projections()[0].scale
    assert all(torch.equal(x, y) for x, y in zip(theirs.state_dict().values(), ours.state_dict().values()))


def test_export_on_their_step_1(tmp_path):
    """What was trained on top of a step-1 adapter of theirs goes out with it."""
    model = base()
    model.add_adapter(2, r=2)
    save_adapter(tmp_path / "ours", model, get_method("ccm-concat"), 2, base_name="llama-7b")
    write(tmp_path / "ours" / "init", 0)
    step2 = weights.export_adapter(tmp_path / "ours", tmp_path / "out")
    assert step2 == tmp_path / "out" / "finetune" / "llama-7b-no-online-concat_recur-ntok2"
    assert load_adapter(base(), tmp_path / "out" / "llama-7b-no")[0].name == "full"


def fill(model):
    for tensor in model.adapter_state().values():
        torch.nn.init.normal_(tensor)
    return model


def test_export_of_what_they_have_not(tmp_path):
    """A method that the authors' code does not have cannot be given to it."""
    model = base()
    model.add_adapter(2, r=2)
    save_adapter(tmp_path, model, get_method("ccm-merge-ema"), 2)
    with pytest.raises(ValueError, match="ccm-merge-ema"):
        weights.export_adapter(tmp_path, tmp_path / "out")


CASES = oracle("ccm")


@pytest.mark.skipif(not (CASES / "cases.json").is_file(), reason=f"no recorded numbers at {CASES}: set MINCCM_ORACLE")
def test_recorded_keys(tmp_path):
    """A recorded adapter, read, saved as ours and exported, has the recorded keys and shapes, settings and numbers."""
    for case in json.loads((CASES / "cases.json").read_text()):
        folder, model = CASES / case["name"], load_model(CASES / "base")
        save_adapter(tmp_path / case["name"], model, *load_adapter(model, folder), base_name="llama")
        exported = weights.export_adapter(tmp_path / case["name"], tmp_path / "out")
        path = folder / "model.safetensors"
        recorded = load_file(path) if path.is_file() else torch.load(folder / "pytorch_model.bin", weights_only=True)
        tensors = torch.load(exported / "pytorch_model.bin", weights_only=True)
        assert {key: t.shape for key, t in tensors.items()} == {key: t.shape for key, t in recorded.items()}
        assert all(torch.equal(t[: case["n_tok"]], recorded[key][: case["n_tok"]]) for key, t in tensors.items())
        settings, theirs = (json.loads((f / "adapter_config.json").read_text()) for f in (exported, folder))
        assert settings.items() <= theirs.items()
        assert case["attn_type"] in exported.name.split("-") and ("sink" in exported.name) == case["sink"]


def test_more_ids_than_pieces(tiny, tmp_path):
    """A vocabulary that is larger than the tokenizer says takes nothing from COMP tokens: they come after all of it."""
    tokens, memories = [1, 5, 6, 7], []
    write(tmp_path / "tiny-online-concat_recur-ntok2", 2, model=load_model(tiny))
    for more in (0, 16):
        model = load_model(tiny)
        config = LlamaConfig(**vars(model.config) | {"vocab_size": model.config.vocab_size + more})
        larger = Transformer(config)
        state = model.state_dict()
        for name in ("embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.cat([state[name], torch.full((more, config.dim), 9.0)])
        larger.load_state_dict(state)
        save_model(tmp_path / f"base{more}", larger, torch.float32)
        shutil.copy(tiny / "tokenizer.model", tmp_path / f"base{more}")
        conversation = open_conversation(tmp_path / f"base{more}", adapter=tmp_path / "tiny-online-concat_recur-ntok2")
        conversation.session.read(tokens)
        memories.append(conversation.session.memory.keys)
    assert all(torch.equal(a, b) for a, b in zip(*memories))
