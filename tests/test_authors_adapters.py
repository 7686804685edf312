"""The authors' adapters, in and out: what their folders' names say, older keys, step 1 below step 2, and our export."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from minccm.io.adapters import export_adapter, load_adapter, plain_name, save_adapter
from minccm.io.weights import load_model, save_model
from minccm.methods import METHODS, Method, get_method
from minccm.model import LlamaConfig, Transformer
from minccm.session import Session
from tests.conftest import oracle
from tests.hostile import check_error, guarded

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
    """The folder's name holds method, n and sink; of merge adapters the COMP rows are taken, not the SUM rows."""
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
    """A folder whose name says nothing: a clear error, or the caller's method and n."""
    write(tmp_path / "download", 4)
    with pytest.raises(ValueError, match="--method"):
        load_adapter(base(), tmp_path / "download")
    method, n = load_adapter(base(), tmp_path / "download", "ccm-merge", sink=True)
    assert (method.name, n, method.sink) == ("ccm-merge", 2, True)
    assert load_adapter(base(), tmp_path / "download", "ccm-concat", 3)[1] == 3


@pytest.mark.parametrize("spoil", ["shape", "missing", "extra", "nan", "rank", "n"])
def test_nothing_half_loaded(tmp_path, spoil):
    """An adapter that does not fit: the tensor is named, and the model is unchanged."""
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
    """Step 1 merges W + (alpha / r) B A into the base; the compression adapter then goes on top of that."""
    step1, step2 = chain
    merged, by_hand, plain = load_model(tiny), load_model(tiny), load_model(tiny)
    load_adapter(merged, step1)
    tensors = load_file(step1 / "model.safetensors")
    for name, module in by_hand.named_modules():
        if a := [tensors[key] for key in tensors if f".{name}.lora_" in key]:
            module.weight += 2 * a[1] @ a[0]
    session, expected, without = (Session(m, *load_adapter(m, step2)) for m in (merged, by_hand, plain))
    for one in (session, expected, without):
        one.read([1, 5, 6, 7])
    logits = expected.logits([8, 9])
    torch.testing.assert_close(session.logits([8, 9]), logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(without.logits([8, 9]), logits, atol=1e-1)


def test_step_1_is_merged_once(tiny, chain, tmp_path):
    """An adapter of ours that brings its step 1 does not get it a second time."""
    step1, _ = chain
    model = load_model(tiny)
    model.add_adapter(2, r=2)
    save_adapter(tmp_path / "ours", model, get_method("ccm-concat"), 2)
    shutil.copytree(step1, tmp_path / "ours" / "init")
    model = load_model(tiny)
    load_adapter(model, step1)
    assert model.step1 == str(step1)
    with pytest.raises(ValueError, match="leave --init out"):
        load_adapter(model, tmp_path / "ours")
    model = load_model(tiny)
    load_adapter(model, tmp_path / "ours")
    assert model.step1 == str(tmp_path / "ours" / "init")


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
    step2 = export_adapter(tmp_path / "ours", out)
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
    step2 = export_adapter(tmp_path / "ours", tmp_path / "out")
    assert step2 == tmp_path / "out" / "finetune" / "llama-7b-no-online-concat_recur-ntok2"
    assert load_adapter(base(), tmp_path / "out" / "llama-7b-no")[0].name == "full"


def fill(model):
    """Random numbers in an adapter."""
    for tensor in model.adapter_state().values():
        torch.nn.init.normal_(tensor)
    return model


def test_export_of_what_they_have_not(tmp_path):
    """A method that the authors' code does not have cannot be exported."""
    model = base()
    model.add_adapter(2, r=2)
    save_adapter(tmp_path, model, get_method("ccm-merge-ema"), 2)
    with pytest.raises(ValueError, match="ccm-merge-ema"):
        export_adapter(tmp_path, tmp_path / "out")


CASES = oracle("ccm")


@pytest.mark.skipif(not (CASES / "cases.json").is_file(), reason=f"no recorded numbers at {CASES}: set MINCCM_ORACLE")
def test_recorded_keys(tmp_path):
    """A recorded adapter, read, saved as ours and exported, has the recorded keys and shapes, settings and numbers."""
    for case in json.loads((CASES / "cases.json").read_text()):
        folder, model = CASES / case["name"], load_model(CASES / "base")
        save_adapter(tmp_path / case["name"], model, *load_adapter(model, folder), base_name="llama")
        exported = export_adapter(tmp_path / case["name"], tmp_path / "out")
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
    memories = []
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
        model = load_model(tmp_path / f"base{more}")
        session = Session(model, *load_adapter(model, tmp_path / "tiny-online-concat_recur-ntok2"))
        session.read([1, 5, 6, 7])
        memories.append(session.memory.keys)
    assert all(torch.equal(a, b) for a, b in zip(*memories))


# Adapters of a stranger


def ours(folder, method=None, n=2, alpha=4, **more):
    """An adapter of ours with random numbers."""
    model = base()
    model.add_adapter(n, r=2, alpha=alpha)
    save_adapter(folder, fill(model), method or get_method("ccm-concat"), n, **more)
    return folder


def change(folder, **entries):
    """Changes entries of adapter.json."""
    path = folder / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(folder, *arguments, model=None, **options) -> str:
    """The error of load_adapter; the model must stay unchanged."""
    model = model or base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as error, guarded(folder):
        load_adapter(model, folder, *arguments, **options)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert getattr(model, "step1", None) is None
    return check_error(error.value)


def test_no_method_is_imported(tmp_path):
    """adapter.json that names a file as its method runs nothing, with or without the mark of a method from a file."""
    folder, evil = ours(tmp_path / "a"), tmp_path / "a" / "m.py"
    evil.write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')")
    for mark in (True, False):
        change(folder, method=str(evil), method_file=mark)
        refused(folder)
        assert "from a file" in refused(folder, str(evil)) or not mark
    assert not (tmp_path / "RAN").exists()


def test_method_from_a_file(tmp_path):
    """An adapter says that its method is from a file, and takes it from the caller only."""
    mine = Method("mine", "as ccm-concat", lambda q, k: k.is_comp)
    folder = ours(tmp_path, mine)
    assert json.loads((tmp_path / "adapter.json").read_text())["method_file"] is True
    assert "was trained with the method mine from a file: give it with --method FILE.py" in refused(folder)
    assert "--method FILE.py" in refused(folder, "mine")
    assert "not for other" in refused(folder, Method("other", "", lambda q, k: k.is_comp))
    assert load_adapter(base(), folder, mine, sink=False)[0] == mine
    builtin = ours(tmp_path / "b")
    assert "method_file" not in json.loads((builtin / "adapter.json").read_text())
    assert "built in" in refused(builtin, Method("ccm-concat", "another one", lambda q, k: k.is_comp))
    assert load_adapter(base(), builtin, METHODS["ccm-concat"])[0].name == "ccm-concat"


BAD_NUMBERS = [0, -1, True, "4", None, 10**400, 10**17, float("nan"), float("inf"), -float("inf"), [4]]


@pytest.mark.parametrize("name", ["alpha", "r", "n", "sink", "method", "base"])
def test_entries_of_adapter_json(tmp_path, name):
    """alpha, r and n that are no such number, not finite, or huge; the model stays unchanged."""
    folder = ours(tmp_path)
    for value in BAD_NUMBERS:
        if not (name in ("sink", "method", "base") and value == "4") and not (name == "sink" and value is True):
            change(folder, **{name: value})
            assert "adapter.json" in refused(folder) or value == 0


@pytest.mark.parametrize("name", ["r", "lora_alpha"])
def test_entries_of_adapter_config_json(tmp_path, name):
    """The same for the authors' adapters."""
    folder = tmp_path / "x-concat_recur-ntok2"
    write(folder, 2)
    for value in BAD_NUMBERS:
        entries = {"r": 2, "lora_alpha": 4} | {name: value}
        (folder / "adapter_config.json").write_text(json.dumps(entries))
        assert "adapter_config.json" in refused(folder)


def test_nested_json(tmp_path):
    """JSON of any depth is one line of error."""
    folder = ours(tmp_path)
    for text in ("[" * 100_000, '{"a":' * 100_000, "[" * 1000 + "]" * 1000):
        (folder / "adapter.json").write_text(text)
        assert "nested" in refused(folder)


def test_long_names_take_no_time(tmp_path):
    """A tensor's name of 200,000 characters is refused at once."""
    folder = tmp_path / "x-concat_recur-ntok2"
    tensors = write(folder, 2)
    for name in ("comp_" * 40_000, "comp_embeddings" * 13_000, "\n" * 200_000):
        save_file(tensors | {name: torch.ones(1)}, folder / "model.safetensors")
        with guarded(folder, seconds=5):
            assert "characters" in refused(folder)


def test_merging_stays_finite(tmp_path):
    """A step-1 adapter that would make the base infinite is refused before it changes anything."""
    model = base()
    model.add_adapter(0, r=2)
    for tensor in model.adapter_state().values():
        tensor.data.fill_(1e30)
    save_adapter(tmp_path / "a", model, get_method("full"), 0)
    assert "not finite" in refused(tmp_path / "a")
    shutil.copytree(tmp_path / "a", ours(tmp_path / "b") / "init")
    assert "not finite" in refused(tmp_path / "b")


def test_broken_step_1_changes_nothing(tmp_path):
    """What is wrong with the adapter below an adapter is found before either is used; chains end."""
    folder = ours(tmp_path / "a")
    ours(folder / "init")
    assert "not for full" in refused(folder)
    shutil.rmtree(folder / "init")
    below = folder
    for _ in range(12):
        below = ours(below / "init", get_method("full"), n=0)
    assert "step-1 adapters" in refused(folder)


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "..", ".", "", "a/b", "a\\b", "a\nb", "\x1b[2J", "x" * 200, "\0"]
)
def test_export_stays_in_its_folder(tmp_path, name):
    """base_name is only ever a part of a file's name."""
    folder = ours(tmp_path / "deep" / "ours", base_name=name)
    ours(folder / "init", get_method("full"), n=0, base_name=name)
    with guarded(tmp_path / "deep" / "out"):
        step2 = export_adapter(folder, tmp_path / "deep" / "out")
    assert step2.resolve().parent == (tmp_path / "deep" / "out" / "finetune").resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert load_adapter(base(), step2)[0].name == "ccm-concat" and plain_name(name).isprintable()
