"""Training: its samples, its losses, its files, and how one training continues another."""

import json
import math
import os
import re
import shlex
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import data
import train
from data.encode import encoder
from minccm.extra.training import PaddedBatches
from minccm.io.adapters import adapter_fingerprint, load_adapter
from minccm.io.options import TINY, load_method
from minccm.io.templates import DIALOGUE, TEMPLATES
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import read_json
from minccm.io.weights import load_model, save_model
from minccm.methods import get_method
from minccm.model import LlamaConfig, Transformer
from minccm.parallel import forward_parallel
from minccm.sequence import build_sequence, pad_batch
from tests.conftest import ROOT

SETTINGS = "--data persona --steps 4 --batch 4 --r 4 --dropout 0.1 --eval-samples 0 --device cpu --dtype fp32".split()
DECAY = str(ROOT / "examples" / "decay.py")


def save_micro(folder: Path) -> Path:
    """Writes a model too small to be clever, with the tokenizer that ships, in the official layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes((TINY / "tokenizer.model").read_bytes())
    vocab_size = json.loads((TINY / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size, dim=32, ffn_dim=48, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16)
    save_model(folder, Transformer(config), torch.float32)
    return folder


@pytest.fixture(scope="session")
def micro(tmp_path_factory) -> Path:
    return save_micro(tmp_path_factory.mktemp("micro"))


@pytest.fixture
def trained(micro, tmp_path, monkeypatch):
    """Trains an adapter in this process, in the folder tmp_path/NAME, with a checkpoint every second step."""
    monkeypatch.setattr(train, "SAVE_EVERY", 2)

    def run(name: str, *more) -> Path:
        command = ["train.py", "--model", micro, "--out", tmp_path / name, *SETTINGS, *more]
        monkeypatch.setattr("sys.argv", list(map(str, command)))
        train.main()
        return tmp_path / name

    return run


@pytest.mark.parametrize("layers, chosen", [(15, "small-cpu"), (16, "pretrained")])
def test_the_recipe_is_chosen_by_the_models_depth(layers, chosen, micro, tmp_path, monkeypatch):
    """From 16 layers on a model counts as pretrained; a shallower one gets the recipe of the tiny model."""
    config = json.loads((micro / "config.json").read_text()) | {"num_hidden_layers": layers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name, recipe in train.RECIPES.items():
        monkeypatch.setitem(train.RECIPES, name, recipe | {"batch": 0 if name == chosen else 1})
    monkeypatch.setattr(train, "make_folder", lambda path: sys.exit("another recipe"))
    monkeypatch.setattr("sys.argv", ["train.py", "--model", str(tmp_path), "--device", "cpu"])
    with pytest.raises(ValueError, match="--batch 0 leaves"):
        train.main()


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in log_of(folder)]


def weights(folder: Path) -> dict:
    return load_file(folder / "adapter.safetensors")


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def steps_of(method: str, name: str = "persona", model: Path = TINY, n: int = 2, **changed) -> train.TrainingSteps:
    """The training steps of train.py with these options, for a model folder."""
    options = {"steps": 10, "batch": 8, "length_curriculum": 0.0, "max_contexts": None, "questions": 1, "seed": 0}
    options = Namespace(**options | {"context_loss": 0.0, "answers": True, "n": n} | changed)
    encode = encoder(Tokenizer(model), TEMPLATES[DIALOGUE])
    source, config = data.source(name, "train"), load_model(model).config
    return train.TrainingSteps(source, encode, config, get_method(method), PaddedBatches(2048), options)


# ------------------------------------------------------------------------------------- the same numbers, again


@pytest.mark.parametrize("fast", ["off", "pack,prune,prefix"])
def test_a_resumed_training_is_the_same(trained, monkeypatch, fast):
    """Interrupted in the middle and resumed: the same losses and the same adapter, bit for bit, also with dropout."""

    def interrupt(step, options, rate=train.learning_rate):
        if step == 3:
            raise KeyboardInterrupt
        return rate(step, options)

    whole = trained("whole", "--fast", fast)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "learning_rate", interrupt)
        trained("part", "--fast", fast)
    part = trained("part", "--fast", fast, "--resume")
    assert losses(part) == losses(whole) and len(losses(whole)) == 4
    assert_same(weights(part), weights(whole))
    assert (part / "adapter.json").read_bytes() == (whole / "adapter.json").read_bytes()
    again = trained("part", "--fast", fast, "--resume")  # nothing is left to do
    assert_same(weights(again), weights(whole))


def test_the_seed_decides(trained):
    """The same seed gives the same losses and adapter; another one gives others."""
    one, again, other = trained("one"), trained("again"), trained("other", "--seed", 1)
    assert losses(one) == losses(again) != losses(other)
    assert_same(weights(one), weights(again))


def test_the_split_into_batches_does_not_matter(trained):
    """A step's loss is the same in one forward pass of many samples and in one pass a sample."""
    one, many = (trained(name, "--dropout", 0, "--max-tokens", name) for name in ("4096", "1"))
    assert losses(one) == pytest.approx(losses(many), abs=1e-4)


def test_two_processes_are_one(trained, micro, tmp_path):
    """They have the losses of one process, validation included, stop at the same step, and write one adapter."""
    more = ["--batch", "5", "--dropout", "0", "--validate", "7", "--patience", "2", "--lr", "0", "--steps", "8"]
    one = trained("one", *more)
    code = "import train; from minccm.io.options import run; train.SAVE_EVERY = 2; run(train.main)"
    command = [sys.executable, "-c", code, "--model", str(micro), "--out", str(tmp_path / "two"), *SETTINGS, *more]
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = str(held.getsockname()[1])
    world = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, env=world | {"RANK": rank, "LOCAL_RANK": rank}, **pipes) for rank in "01"]
    for rank, run in enumerate(runs):
        out, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
        assert ("next: " in out) == (rank == 0)
    logs = log_of(one), log_of(tmp_path / "two")
    assert [len(log) for log in logs] == [6, 6]  # two checkpoints that were no better than the first
    for entry, other in zip(*logs):
        assert other["loss"] == pytest.approx(entry["loss"], abs=1e-4)
        assert other.get("validation") == pytest.approx(entry.get("validation"), abs=1e-3)
    assert read_json(tmp_path / "two" / "adapter.json") == read_json(one / "adapter.json")


# --------------------------------------------------------------------------------------- samples and losses


def test_samples_grow():
    """With the length curriculum samples have two contexts at first; later as many as there are, or --max-contexts."""

    def longest(step, **changed):
        steps = steps_of("ccm-concat", "dialog", batch=24, length_curriculum=0.5, **changed)
        return max(int(sequence.info.step.max()) for sequence in steps.sequences(step))

    assert longest(0) == longest(0, max_contexts=6) == 2
    assert longest(9) > 15 and longest(9, max_contexts=6) == 6


def test_gist_online_trains_on_one_context():
    """Its samples have one context, where those of the method it runs as have many."""
    counts = {}
    for name in ("gist-online", "ccm-concat-independent"):
        counts[name] = max(int(sequence.info.step.max()) for sequence in steps_of(name).sequences(0))
    assert counts["gist-online"] == 1 and counts["ccm-concat-independent"] > 4


def test_several_questions_of_a_sample():
    """With --questions 3, two more questions of a sample are learned, each as if it were asked alone."""
    sample = data.source("persona", "train")(0)
    asked = [[sample["input"], sample["target"]], *sample["questions"]]
    assert len(asked) >= 3
    for count in (1, 3):
        steps = steps_of("ccm-merge", questions=count)
        sequence = steps.sequence(0, 0)
        for question, (input, target) in enumerate(asked[:count], 1):
            (expected,) = steps.encode(sample | {"input": input, "target": target}).questions
            at = sequence.info.question == question
            assert sequence.tokens[at].tolist() == sum(expected, [])
            assert sequence.positions[at].min() == (sequence.info.is_text & ~sequence.info.is_query).sum()
            assert sequence.loss_weights[at].sum() == len(expected[1])
        assert sequence.info.question.max() == count


def test_answers_in_contexts_are_learned():
    """Whatever the Bot answers, and the label of each demonstration, is learned as the output is; other text less."""
    tokenizer = Tokenizer(TINY)
    chat = {"contexts": ["Bot: Hello.", "User: Where?", "Bot: In Oslo."], "input": "User: So?\nBot:", "target": "Yes."}
    demonstrations = {"contexts": ["a: amber", "b: nova"], "input": "c:", "target": "nova"}
    demonstrations |= {"options": ["amber", "nova"]}
    for sample, learned in ((chat | {"answers": [2]}, "Bot: In Oslo.Yes."), (demonstrations, "ambernovanova")):
        for name in ("full", "ccm-concat", "ccm-merge", "gist"):
            steps = steps_of(name, context_loss=0.01)
            steps.source = lambda index, longest=None, sample=sample: sample
            sequence = steps.sequence(0, 0)
            ids = sequence.tokens.roll(-1)[sequence.loss_weights == 1].tolist()
            only = sample["target"] if name == "gist" else learned  # gist compresses once, after all contexts
            assert tokenizer.decode(ids).replace(" ", "") == only.replace(" ", "")
            assert (sequence.loss_weights[sequence.loss_weights > 0] < 1).any()
            steps.options.answers, steps.options.context_loss = False, 0.0  # the paper's recipe: outputs only
            ids = steps.sequence(0, 0).tokens.roll(-1)[steps.sequence(0, 0).loss_weights > 0].tolist()
            assert tokenizer.decode(ids).strip() == sample["target"] and ids[-1] == tokenizer.eos_id


def test_chats(trained, micro, tmp_path):
    """Chats of one's own: the model's replies are learned, in any template; the adapter is written."""
    messages = [{"role": "user", "content": "Where is Ada?"}, {"role": "assistant", "content": "In Oslo."}] * 3
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    tokenizer = Tokenizer(micro)
    steps = steps_of("ccm-concat", str(path), micro)
    sequence = steps.sequence(0, 0)
    ids = sequence.tokens.roll(-1)[sequence.loss_weights == 1].tolist()
    assert tokenizer.decode(ids).count("In Oslo.") == 3 and "Ada" not in tokenizer.decode(ids)
    for template in ([], ["--template", "llama-2"]):
        folder = trained("chats", "--data", path, *template)
        assert math.isfinite(losses(folder)[-1]) and read_json(folder / "adapter.json")["data"] == str(path)


def test_distillation_adds_to_the_loss(trained):
    """With --distill the first loss is larger by a multiple of the divergence from full context."""
    first = [losses(trained(f"d{share}", "--distill", share, "--dropout", 0))[0] for share in (0, 1, 2)]
    assert first[1] - first[0] > 1e-4 and first[2] - first[0] == pytest.approx(2 * (first[1] - first[0]), abs=1e-4)


def test_merge_curriculum(trained):
    """With one place it is ordinary training; with two the first steps are others."""
    merge = "--method", "ccm-merge", "--dropout", 0
    plain = losses(trained("plain", *merge))
    one, two = (losses(trained(f"c{places}", *merge, "--merge-curriculum", places)) for places in (1, 2))
    assert one == pytest.approx(plain, abs=1e-4) and abs(two[0] - plain[0]) > 1e-4


# -------------------------------------------------------------------------------------------- the files


def test_the_best_checkpoint_is_kept(trained):
    """With --validate the adapter of the lowest validation loss stays, and --patience stops when none is lower."""
    for lr in (1, 0):
        folder = trained(f"lr{lr}", "--lr", lr, "--validate", 8, "--patience", 2, "--steps", 12, "--n", 1)
        validation = {entry["step"]: entry["validation"] for entry in log_of(folder) if "validation" in entry}
        best = min(validation, key=validation.get)
        assert read_json(folder / "adapter.json")["steps"] == best
        assert max(validation) == min(best + 4, 12)  # every second step is a checkpoint: two without a better one
    assert best == 2  # with a learning rate of 0 none is better than the first


def test_step_two_stands_on_step_one(trained, micro):
    """A step-1 adapter is merged into the base, is copied to the step-2 adapter, and load_adapter finds it there."""
    step1 = trained("step1", "--method", "full", "--lr", 1e-2)
    step2 = trained("step2", "--method", "ccm-merge", "--init", step1)
    assert sorted(path.name for path in (step2 / "init").iterdir()) == ["adapter.json", "adapter.safetensors"]
    bare, adapted = load_model(micro), load_model(micro)
    assert load_adapter(adapted, step2) == (get_method("ccm-merge"), 8)
    assert not torch.equal(bare.layers[0].self_attn.q_proj.weight, adapted.layers[0].self_attn.q_proj.weight)
    rounded = load_model(micro, dtype=torch.bfloat16)  # trained in fp32, used in bf16: the same base
    assert load_adapter(rounded, step2)[0].name == "ccm-merge"


def test_step_one_trains_plain_lora(trained, micro):
    """--method full: LoRA acts on every token, there are no COMP embeddings, and the loss gets lower."""
    step1 = trained("step1", "--method", "full", "--lr", 1e-2, "--steps", 12, "--batch", 8)
    assert "comp_embeddings" not in weights(step1) and read_json(step1 / "adapter.json")["n"] == 0
    assert losses(step1)[-1] < losses(step1)[0] - 0.3


def test_step_one_stays_an_adapter(trained, micro):
    """merge_step1=False: A and B stay trainable on an unchanged base, and compute what the merged base computes."""
    step1 = trained("step1", "--method", "full", "--lr", 1e-2)
    bare, merged, kept = load_model(micro), load_model(micro), load_model(micro)
    load_adapter(merged, step1)
    load_adapter(kept, step1, merge_step1=False)
    assert getattr(kept, "step1", None) is None and merged.adapter_state() == {}
    for key, value in weights(step1).items():
        assert torch.equal(kept.adapter_state()[key], value)
    q_proj = lambda model: model.layers[0].self_attn.q_proj
    assert torch.equal(q_proj(kept).weight, q_proj(bare).weight)
    x = torch.randn(1, 3, bare.config.dim)
    torch.testing.assert_close(q_proj(kept)(x, torch.ones(1, 3, dtype=torch.bool)), q_proj(merged)(x))


def test_a_used_folder(trained, micro):
    """A training leaves nothing of an earlier one in its folder: no step-1 adapter that it does not stand on."""
    step1 = trained("step1", "--method", "full")
    used = trained("used", "--init", step1)
    assert (used / "init").is_dir()
    assert trained("used", "--method", "ccm-merge") == used and not (used / "init").exists()
    assert load_adapter(load_model(micro), used) == (get_method("ccm-merge"), 8)


def test_an_adapter_continues(trained, micro):
    """--adapter continues from an adapter and its step 1: with a learning rate of 0 it stays the same."""
    one = trained("one", "--init", trained("step1", "--method", "full"))
    two = trained("two", "--adapter", one, "--lr", 0)
    models = [load_model(micro) for _ in range(2)]
    assert load_adapter(models[0], one) == load_adapter(models[1], two)
    assert_same(models[0].state_dict(), models[1].state_dict())
    third = trained("third", "--adapter", two, "--lr", 0, "--method", DECAY)  # another method, with numbers of its own
    tensors = weights(third)
    assert tensors.pop("learned").tolist() == list(load_method(DECAY).learned)
    assert_same(weights(two), tensors)


def test_a_wider_adapter_does_the_same(trained, micro):
    """With a larger --r the logits stay; with a larger --n, new COMP embeddings follow the present ones."""
    narrow = trained("narrow", "--n", 2)
    wide = trained("wide", "--adapter", narrow, "--r", 6, "--lr", 0)
    more = trained("more", "--adapter", narrow, "--n", 5, "--r", 6, "--lr", 0)
    method = get_method("ccm-concat")
    batch = pad_batch([build_sequence(method, 2, 3072, [[1, 7, 8], [9]], [([5], [6, 2])])])
    logits = []
    for folder in (narrow, wide):
        model = load_model(micro)
        load_adapter(model, folder)
        logits.append(forward_parallel(model, method, batch))
    assert len(model.projections()[0].lora_A) == 6
    torch.testing.assert_close(*logits)
    embeddings = weights(more)["comp_embeddings"]
    assert len(embeddings) == 5 and torch.equal(embeddings[:2], weights(narrow)["comp_embeddings"])


def test_a_learned_method_from_a_file(trained, micro, tmp_path):
    """Its numbers train; its adapter names the method, and loading it takes --method FILE.py, which continues it."""
    folder, method = trained("decay", "--method", DECAY, "--lr", 1e-2), load_method(DECAY)
    info = read_json(folder / "adapter.json")
    assert info["method"] == "decay" and info["method_file"] is True
    learned = weights(folder)["learned"]
    assert learned.shape == (1,) and learned.tolist() != list(method.learned)
    again = trained("again", "--method", DECAY, "--adapter", folder, "--lr", 0)
    assert_same(weights(again), weights(folder))
    model = load_model(micro)
    assert load_adapter(model, folder, method)[0].name == "decay"
    with pytest.raises(ValueError, match="from a file: give it with --method FILE.py") as error:
        load_adapter(model, folder)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="give it with --method FILE.py"):
        trained("other", "--adapter", folder)


# ------------------------------------------------------------------------------------------- the next command


def test_the_next_command_works_as_printed(tmp_path, micro):
    """In the same shell, which knows no python, it talks to the adapter that was just trained."""
    out = tmp_path / "my run"
    command = [sys.executable, str(ROOT / "train.py"), "--model", str(micro), "--data", "persona", "--steps", "1"]
    command += ["--batch", "1", "--eval-samples", "0", "--device", "cpu", "--out", "my run"]
    shell = {"cwd": tmp_path, "env": {"PATH": "/nowhere", "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    done = subprocess.run(command, **shell)
    assert done.returncode == 0, done.stderr
    (following,) = re.findall(r"^next: (.*)$", done.stdout, re.MULTILINE)
    assert shlex.split(following)[-2:] == ["--adapter", "my run"]
    bash = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    talk = subprocess.run([bash, "-c", following], input="Hello\n/save a.memory\n", **shell)
    assert talk.returncode == 0 and talk.stdout, talk.stderr
    saved = (tmp_path / "a.memory").read_bytes()
    assert adapter_fingerprint(out).encode() in saved and adapter_fingerprint(TINY / "ccm-concat").encode() not in saved


def test_the_next_command_after_step_one(trained, capsys, micro, monkeypatch):
    """It trains step 2 on top of it: as printed, with fewer steps."""
    step1 = trained("step1", "--method", "full", "--template", "chatml")
    (following,) = re.findall(r"^next: (.*)$", capsys.readouterr().out, re.MULTILINE)
    python, script, *arguments = shlex.split(following)
    assert script == "train.py" and (python == sys.executable or python == os.path.relpath(sys.executable))
    assert arguments == ["--model", str(micro), "--template", "chatml", "--data", "persona", "--init", str(step1)]
