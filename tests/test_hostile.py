"""Nothing in a file is believed: damaged and hostile configs, weights, adapters and memories.

Each kind of file is damaged in many ways with fixed seeds. The result is one clear ValueError or a valid object, and
nothing runs, starts, or writes elsewhere (see tests/hostile.py). MINCCM_FUZZ_CASES=20000 runs more cases of each kind.
"""

import json
import os
import random
import shutil
import subprocess
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load, save

from minccm.io.adapters import export_adapter, load_adapter, save_adapter
from minccm.io.config import read_config, to_json
from minccm.io.memory_file import load_memory, save_memory
from minccm.io.untrusted import MAX_DEPTH, Field, check_fields, clean_text, parse_json, printable
from minccm.io.weights import load_model, save_model
from minccm.memory import Memory
from minccm.methods import METHODS, Method, TokenInfo, get_method
from minccm.model import LlamaConfig, Transformer
from minccm.session import Session
from tests import hostile
from tests.hostile import Forbidden, check_error, fuzz, guarded, mutate_json, mutate_safetensors, mutate_zip

CONFIG = LlamaConfig(vocab_size=40, dim=16, ffn_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4)
PARAMS = dict(dim=16, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=24, norm_eps=1e-5, vocab_size=40)
PARAMS |= dict(multiple_of=8, ffn_dim_multiplier=1.0, use_scaled_rope=True, rope_scaling_factor=8.0, max_seq_len=64)
pytestmark = pytest.mark.filterwarnings("ignore")  # of zipfile and pickletools, about damaged files
ROPE = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
ROPE |= dict(original_max_position_embeddings=8192, rope_theta=5e5)


def a_model(n=2, method="ccm-concat", seed=0) -> Transformer:
    """A tiny model with an adapter of random numbers; n = 0 is none."""
    torch.manual_seed(seed)
    model = Transformer(CONFIG).eval()
    if n:
        model.add_adapter(n, r=2, alpha=4, learned=METHODS[method].learned)
        for tensor in model.adapter_state().values():
            torch.nn.init.normal_(tensor, std=0.5)
    return model.requires_grad_(False)


def finite(model: Transformer) -> None:
    """Asserts that a model that was accepted has finite weights."""
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.fixture(scope="module", autouse=True)
def warm_up(tmp_path_factory):
    """Libraries import parts of themselves at their first use: use all of them once before the guard."""
    folder = tmp_path_factory.mktemp("warm")
    save_model(folder, a_model(0), torch.float32)
    load_model(folder)
    torch.save({"a": torch.ones(1)}, folder / "a.bin")


# The reader of JSON


@pytest.mark.parametrize(
    "text, says",
    [
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000, "nested"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested"),
        ("[" + "[]," * 5_000_000 + "[]]", "values"),
        ("[NaN]", "NaN is not finite"),
        ("[-Infinity]", "not finite"),
        ("[1e999]", "not finite"),
        ("[" + "9" * 5000 + "]", "18 digits"),
        ('{"a": 1, "a": 2}', "twice"),
        (b'"\xff"', "UTF-8"),
        ('{"a": 1', "not JSON"),
        ("", "not JSON"),
        ('"a\nb"', "not JSON"),
        ("x" * 2**24 + "x", "larger than"),
    ],
)
def test_json(tmp_path, text, says):
    """Depth, size, numbers and names are checked, by one line of error."""
    with pytest.raises(ValueError) as error, guarded(tmp_path):
        parse_json(text, "file.json")
    assert says in check_error(error.value) and str(error.value).startswith("file.json: ")


def test_json_that_is_fine():
    """What is within the limits comes back, and half a surrogate pair does not."""
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deep, "x") == json.loads(deep)
    assert parse_json('["' + "[" * 200 + '", "\\"[[", -1.5, 10, true, null]', "x") == [
        "[" * 200,
        '"[[',
        -1.5,
        10,
        True,
        None,
    ]
    assert parse_json('{"a\\ud800": ["\\udfffb", "\\ud83d\\ude00"]}', "x") == {"a": ["b", "\U0001f600"]}


def test_fields():
    """A bool is not a number, numbers are finite and in range, and the entry is named."""
    schema = {"n": Field(int, 1, 5), "x": Field(float, above=0, optional=True, default=2.0)}
    assert check_fields({"n": 3, "other": 1}, "f", schema) == {"n": 3, "x": 2.0}
    for value in (True, 0, 6, "3", None, 3.0, [3], float("nan")):
        with pytest.raises(ValueError, match="f: the entry 'n'"):
            check_fields({"n": value}, "f", schema)
    for value in (0, -1, float("inf"), False, "1"):
        with pytest.raises(ValueError, match="f: the entry 'x'"):
            check_fields({"n": 3, "x": value}, "f", schema)


def test_text():
    """Text is safe to print and safe for a tokenizer."""
    assert printable("a\n\x1b[2J\u202eb" + "x" * 100, 20) == "a??[2J?bxxxxxxxxx..."
    assert clean_text("a\x00\x1b\ud800b\n\tc\r") == "ab\n\tc"


def test_the_guard_guards(tmp_path):
    """What the fuzzing relies on: running, starting and writing are noticed even when an error is swallowed."""
    actions = [
        lambda: exec("1"),
        lambda: os.system("true"),
        lambda: subprocess.run(["true"]),
        lambda: open(tmp_path / "other", "w"),
        lambda: os.remove(tmp_path / "x"),
        lambda: os.rename(tmp_path / "in" / "a", tmp_path / "b"),
    ]
    for action in actions:
        with pytest.raises((Forbidden, AssertionError)), guarded(tmp_path / "in"):
            try:
                action()
            except BaseException as error:
                assert isinstance(error, Forbidden)
    with pytest.raises(Forbidden, match="seconds"), guarded(tmp_path, seconds=0.05):
        while True:
            pass
    with pytest.raises((RuntimeError, MemoryError)), guarded(tmp_path, megabytes=200):
        torch.empty(2**31)


# Fuzzing


def test_config(tmp_path):
    """config.json in the older and the newer form, and Meta's params.json."""
    forms = [to_json(CONFIG), to_json(CONFIG) | {"rope_parameters": ROPE, "sliding_window": None}, PARAMS]
    forms.append(to_json(CONFIG) | {"rope_scaling": ROPE, "eos_token_id": [2, 3], "model_type": "mistral"})

    def spoil(random: random.Random):
        form = random.choice(forms)
        for name in ("config.json", "params.json"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / ("params.json" if form is PARAMS else "config.json")).write_bytes(mutate_json(random, form))

    def valid(config: LlamaConfig):
        with torch.device("meta"):
            Transformer(replace(config, n_layers=1, vocab_size=8, bos_id=1, eos_id=2))

    results = fuzz("config", 1000, tmp_path, spoil, lambda: read_config(tmp_path), valid)
    assert all(results.values())


def test_safetensors_weights(tmp_path):
    """model.safetensors and shards with their index."""
    save_model(tmp_path, a_model(0), torch.float32)
    whole = (tmp_path / "model.safetensors").read_bytes()
    save_model(tmp_path, a_model(0), torch.float32, shard_bytes=10000)
    shards = {path.name: path.read_bytes() for path in tmp_path.glob("model-*.safetensors")}
    index = tmp_path / "model.safetensors.index.json"
    index_json = json.loads(index.read_text())

    def spoil(random: random.Random):
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        index.write_text(json.dumps(index_json))
        for name, data in shards.items():
            (tmp_path / name).write_bytes(data)
        kind, name = random.choice(["whole", "shard", "index"]), random.choice(sorted(shards))
        if kind == "whole":
            (tmp_path / "model.safetensors").write_bytes(mutate_safetensors(random, whole))
        elif kind == "shard":
            (tmp_path / name).write_bytes(mutate_safetensors(random, shards[name]))
        else:
            index.write_bytes(mutate_json(random, index_json))

    results = fuzz("safetensors", 400, tmp_path, spoil, lambda: load_model(tmp_path), finite)
    assert all(results.values())


def test_pickled_weights(tmp_path):
    """pytorch_model.bin: a zip file with a pickle in it."""
    model = a_model(0)
    save_model(tmp_path, model, torch.float32)
    (tmp_path / "model.safetensors").unlink()
    torch.save({f"model.{name}": x for name, x in model.state_dict().items()}, tmp_path / "pytorch_model.bin")
    whole = (tmp_path / "pytorch_model.bin").read_bytes()

    def spoil(random: random.Random):
        (tmp_path / "pytorch_model.bin").write_bytes(mutate_zip(random, whole))

    results = fuzz("bin", 400, tmp_path, spoil, lambda: load_model(tmp_path), finite)
    assert results["error"]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_meta_weights(tmp_path, suffix):
    """Meta's consolidated files, one of two parts damaged."""
    from tests.test_weights import write_meta

    write_meta(tmp_path, a_model(0), 2, 0, suffix)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"vocab_size": -1}))
    whole = {path: path.read_bytes() for path in sorted(tmp_path.glob("consolidated*"))}
    mutate = mutate_zip if suffix == "pth" else mutate_safetensors

    def spoil(random: random.Random):
        victim = random.choice(list(whole))
        for path, data in whole.items():
            path.write_bytes(mutate(random, data) if path == victim else data)

    results = fuzz(f"meta {suffix}", 200, tmp_path, spoil, lambda: load_model(tmp_path), finite)
    assert results["error"]


def adapter_files(folder, method="ccm-concat", n=2):
    """An adapter of ours on top of a step-1 adapter; returns its files as {path: bytes}."""
    save_adapter(folder, a_model(n, method), get_method(method), n, base_name="tiny", steps=3)
    step1 = a_model(0)
    step1.add_adapter(0, r=2)
    save_adapter(folder / "init", step1, get_method("full"), 0)
    return {path: path.read_bytes() for path in sorted(folder.rglob("adapter.*"))}


def spoil_one(files):
    """A function that damages one of some files, and restores the others."""

    def spoil(random: random.Random):
        victim = random.choice(list(files))
        for path, data in files.items():
            if path == victim and path.suffix == ".json":
                data = mutate_json(random, json.loads(data))
            elif path == victim:
                data = (mutate_zip if path.suffix == ".bin" else mutate_safetensors)(random, data)
            path.write_bytes(data)

    return spoil


@pytest.mark.parametrize("method", ["ccm-concat", "ccm-merge"])
def test_our_adapters(tmp_path, method):
    """adapter.json and adapter.safetensors, also of the step-1 adapter below; a failed load changes nothing."""
    spoil = spoil_one(adapter_files(tmp_path, method))
    model = a_model(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def read():
        try:
            return load_adapter(model, tmp_path)
        except ValueError:
            after = model.state_dict()
            assert before.keys() == after.keys() and all(torch.equal(x, after[name]) for name, x in before.items())
            raise

    def valid(result):
        nonlocal model
        assert result[0].name == method and result[1] == 2
        finite(model)
        model = a_model(0)

    results = fuzz(f"our adapters {method}", 250, tmp_path, spoil, read, valid)
    assert all(results.values())


@pytest.mark.parametrize("binary", [False, True])
def test_authors_adapters(tmp_path, binary):
    """adapter_config.json with model.safetensors or pytorch_model.bin."""
    from tests.test_authors_adapters import base, write

    folder = tmp_path / "llama-7b-no-online-concat_recur-ntok2"
    write(folder, 2, binary=binary, model=base())
    spoil = spoil_one({path: path.read_bytes() for path in sorted(folder.iterdir())})

    def read():
        model = base()
        load_adapter(model, folder)
        return model

    results = fuzz(f"authors' adapters {binary}", 300, tmp_path, spoil, read, finite)
    assert results["error"]


def test_exported_adapters(tmp_path):
    """Exporting a damaged adapter writes below the output folder only."""
    spoil = spoil_one(adapter_files(tmp_path / "ours"))
    out = tmp_path / "out"

    def valid(folder):
        assert folder.resolve().is_relative_to(out.resolve())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "out"]
        shutil.rmtree(out)

    results = fuzz("export", 250, out, spoil, lambda: export_adapter(tmp_path / "ours", out), valid)
    assert all(results.values())


# Memories

TWO_LEVEL = Method(
    "two-level",
    "the last 3 steps concatenated, older ones merged",
    lambda q, k: (k.is_comp & (q.step - k.step <= 3)) | (k.is_slot & (k.step == q.step - 1)),
    merge_rate=lambda t: 1 / t,
    delay=3,
)
PLACES = Method(
    "places",
    "three places that take turns",
    lambda q, k: k.is_slot & (q.step - k.step <= 3),
    merge_rate=lambda t: 1 / t,
    stride=3,
)
KINDS = [*METHODS.values(), TWO_LEVEL, PLACES, replace(METHODS["ccm-merge"], sink=True), replace(TWO_LEVEL, sink=True)]
MADE_FOR = {"model": "tiny", "method": "x"}


def conversation(method: Method, steps: int, n: int = 3) -> tuple[Session, Memory]:
    """A session that has read some contexts of 1 to 5 tokens, and an empty memory of its kind."""
    session = Session(a_model(n, method.name if method.name in METHODS else "ccm-concat"), method, n)
    numbers = random.Random(steps)
    for _ in range(steps):
        session.read([numbers.randrange(40) for _ in range(numbers.randint(1, 5))])
    return session, session.fresh().memory


def columns(memory: Memory) -> torch.Tensor:
    """The info of a memory: int64 (M, 5)."""
    return torch.stack([getattr(memory.info, field.name) for field in fields(TokenInfo)], -1)


@pytest.mark.parametrize("method", KINDS, ids=lambda method: method.name + " sink" * method.sink)
def test_memory(tmp_path, method):
    """A memory of every method comes back unchanged, after any number of steps; without one pair it is refused."""
    path = tmp_path / "a.memory"
    for steps in (0, 1, 2, 3, 4, 7, 9):
        session, empty = conversation(method, steps)
        memory = session.memory
        save_memory(path, memory, MADE_FOR | {"words": ["a"]})
        again, about = load_memory(path, empty, method, 3, MADE_FOR)
        assert about["words"] == ["a"] and torch.equal(columns(again), columns(memory))
        assert torch.equal(again.keys, memory.keys) and torch.equal(again.values, memory.values)
        assert (again.step, again.text, again.tokens) == (memory.step, memory.text, memory.tokens)
        for missing in range(len(memory)):
            keep = torch.arange(len(memory)) != missing
            save_memory(path, memory.select(keep), MADE_FOR)
            assert "damaged" in refused(path, empty, method)
        for change in (dict(step=memory.step + 1), dict(text=memory.text + 1), dict(tokens=memory.tokens + 1)):
            if method.name != "full" or "step" not in change:  # a step without any text leaves nothing behind
                save_memory(path, replace(memory, **change), MADE_FOR)
                assert "damaged" in refused(path, empty, method)


def refused(path, empty, method, n=3, made_for=MADE_FOR) -> str:
    """The error of load_memory."""
    with pytest.raises(ValueError) as error:
        load_memory(path, empty, method, n, made_for)
    return check_error(error.value)


def test_memory_with_another_number_of_slots(tmp_path):
    """A ccm-merge memory holds exactly n slots: neither more, nor fewer, nor one twice."""
    method = get_method("ccm-merge")
    session, empty = conversation(method, 4)
    path, memory = tmp_path / "a.memory", session.memory
    for pairs in ([], [0], [0, 1], [0, 1, 1], [0, 1, 2, 2], [2, 1, 0]):
        save_memory(path, memory.select(torch.tensor(pairs, dtype=torch.int64)), MADE_FOR)
        if pairs == [2, 1, 0]:  # all are there, in another order
            assert len(load_memory(path, empty, method, 3, MADE_FOR)[0]) == 3
        else:
            assert "damaged" in refused(path, empty, method)
    save_memory(path, memory, MADE_FOR)
    assert "damaged" in refused(path, empty, method, n=2) and "damaged" in refused(path, empty, method, n=4)
    assert "another model" in refused(path, empty, method, made_for={"model": "other"})
    shutil.rmtree(tmp_path)
    assert "missing" in refused(path, empty, method)


def test_pipes_do_not_block(tmp_path):
    """A pipe in the place of a memory, an adapter.json or adapter.safetensors is refused at once."""
    method = get_method("ccm-concat")
    _, empty = conversation(method, 1)
    adapter_files(tmp_path / "a")
    for name in ("adapter.json", "adapter.safetensors"):
        (tmp_path / "a" / name).unlink()
        os.mkfifo(tmp_path / "a" / name)
        with pytest.raises(ValueError, match="not a regular file|no adapter"), guarded(tmp_path, seconds=5):
            load_adapter(a_model(0), tmp_path / "a")
    os.mkfifo(tmp_path / "memory")
    with guarded(tmp_path, seconds=5):
        assert "not a regular file" in refused(tmp_path / "memory", empty, method)
        assert "not a regular file" in refused(tmp_path, empty, method)


def test_memory_of_many_steps(tmp_path):
    """A huge count of steps takes no time."""
    method, path = get_method("ccm-merge"), tmp_path / "a.memory"
    session, empty = conversation(method, 4)
    for step in (2**20, 2**21, 2**40, 2**62):
        memory = replace(session.memory, step=step, text=5, tokens=5 + 3 * step)
        save_memory(path, memory, MADE_FOR)
        with guarded(tmp_path, seconds=10):
            refused(path, empty, method)
    step = 2**20  # that many can be read
    info = session.memory.info
    info = replace(info, step=info.step * 0 + step - 1, order=info.order * 0 + 5 + 3 * step)
    save_memory(path, replace(session.memory, info=info, step=step, text=5, tokens=5 + 3 * step), MADE_FOR)
    with guarded(tmp_path, seconds=10):
        assert len(load_memory(path, empty, method, 3, MADE_FOR)[0]) == 3


@pytest.mark.parametrize("method", ["ccm-concat", "ccm-merge", "full", "compressive"])
def test_memories(tmp_path, method):
    """The file's bytes, its header, its JSON, and its numbers are damaged. An accepted memory can be used."""
    method, path = get_method(method, sink=True), tmp_path / "a.memory"
    session, empty = conversation(method, 4)
    save_memory(path, session.memory, MADE_FOR | {"turns": [["user", "hello"]]})
    whole = path.read_bytes()
    tensors = load(whole)
    about = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["about"])

    def spoil(random: random.Random):
        kind = random.random()
        if kind < 0.4:
            path.write_bytes(mutate_safetensors(random, whole))
        elif kind < 0.7:
            changed = mutate_json(random, about).decode("utf-8", "replace")
            path.write_bytes(save(tensors, {"about": changed}))
        else:
            changed = {name: tensor.clone() for name, tensor in tensors.items()}
            for _ in range(random.choice([1, 1, 2])):
                numbers = changed[random.choice(["info", "info", "keys", "values"])].flatten()
                place = random.randrange(len(numbers))
                wrong = [number for number in hostile.NUMBERS if isinstance(number, int) and abs(number) < 2**63]
                wrong = [float(x) for x in hostile.NUMBERS if abs(x) < 1e300] if numbers.is_floating_point() else wrong
                near = [numbers[place] + 1, numbers[place] - 1, numbers[place - 1]]
                numbers[place] = random.choice([random.choice(wrong), random.choice(near)])
            path.write_bytes(save(changed, {"about": json.dumps(about)}))

    def valid(result):
        memory = result[0]
        session.memory = memory
        assert (
            session.logits([1, 2]).isfinite().all()
            or memory.keys.abs().max() > 1e15
            or memory.values.abs().max() > 1e15
        )
        session.read([3])
        assert session.memory.step == memory.step + 1

    read = lambda: load_memory(path, empty, method, 3, MADE_FOR)
    results = fuzz(f"memory {method.name}", 300, tmp_path, spoil, read, valid)
    assert all(results.values())
