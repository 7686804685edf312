"""Training: it learns, it survives a kill at any moment, and a resumed run is the same run."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import data
from minccm.checkpoint import load_adapter, load_model, save_adapter, save_model
from minccm.config import LlamaConfig
from minccm.distill import divergence
from minccm.layout import collate, lay_out, segments
from minccm.mask import predict
from minccm.methods import get_method, in_turns, merge_weights
from minccm.model import Transformer
from minccm.tokenizer import Tokenizer
from tests.conftest import ROOT
from train import Steps, answer_lengths, taking_turns

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # bit for bit also on a machine that is busy with other tests


@pytest.fixture(scope="session")
def micro(tiny, tmp_path_factory):
    """A model too small to be clever, with the shipped tokenizer, in the official layout."""
    folder = tmp_path_factory.mktemp("micro")
    (folder / "tokenizer.model").write_bytes((tiny / "tokenizer.model").read_bytes())
    vocab_size = json.loads((tiny / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size, dim=32, ffn_dim=48, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16)
    save_model(folder, Transformer(config), torch.float32)
    return folder


def train(model, out, *more, wait=True):
    command = [
        sys.executable,
        "train.py",
        "--model",
        model,
        "--out",
        out,
        "--steps",
        "8",
        "--batch",
        "4",
        "--save-every",
        "2",
    ]
    command += ["--data", "persona", "--eval-samples", "0", "--dropout", "0.1", "--device", "cpu", *more]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ONE_THREAD
    )
    if wait:
        out, err = process.communicate()
        assert process.returncode == 0, err
    return process


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_resumed_run_is_the_same_run(micro, tmp_path):
    """Killed in the middle and resumed: the same losses and the same adapter as without the kill, bit for bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(micro, whole)
    process = train(micro, killed, wait=False)
    while not (killed / "state.pt").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(losses(killed)) < 8  # it really was in the middle
    with open(killed / "log.jsonl", "a") as log:  # as if it had gone on past its last checkpoint
        log.write('{"step": 99, "loss": 99}\n')
    train(micro, killed, "--resume")
    assert losses(killed) == losses(whole) and len(losses(whole)) == 8
    one, other = load_file(whole / "adapter.safetensors"), load_file(killed / "adapter.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()
    settings = json.loads((whole / "adapter.json").read_text())
    assert (settings["method"], settings["n"]) == ("ccm-concat", 2)


def test_split_into_rows_does_not_matter(micro, tmp_path):
    """A step's loss is the same in one forward pass of many rows or in one pass a sample."""
    train(micro, tmp_path / "one", "--dropout", "0")
    train(micro, tmp_path / "many", "--dropout", "0", "--row-tokens", "1")
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "many"), abs=1e-4)


def test_step_two_starts_from_step_one(micro, tmp_path):
    """A step-1 adapter is merged into the base, goes along with the step-2 adapter, and load_adapter finds it there."""
    train(micro, tmp_path / "step1", "--method", "full", "--lr", "1e-2")
    train(micro, tmp_path / "step2", "--method", "ccm-merge", "--init", tmp_path / "step1")
    bare, adapted = load_model(micro), load_model(micro)
    assert load_adapter(adapted, tmp_path / "step2")[0].name == "ccm-merge"
    assert not torch.equal(bare.layers[0].self_attn.q_proj.weight, adapted.layers[0].self_attn.q_proj.weight)
    rounded = load_model(micro, dtype=torch.bfloat16)  # trained in fp32, used in bf16: still the same base
    assert load_adapter(rounded, tmp_path / "step2")[0].name == "ccm-merge"


def test_an_adapter_goes_on(micro, tmp_path):
    """--adapter goes on from an adapter, step 1 included: with a learning rate of 0 it stays what it was.

    It may be that of another method, which then learns numbers of its own.
    """
    train(micro, tmp_path / "step1", "--method", "full")
    train(micro, tmp_path / "one", "--init", tmp_path / "step1")
    train(micro, tmp_path / "two", "--adapter", tmp_path / "one", "--lr", "0")
    one, two = (load_model(micro) for _ in range(2))
    assert load_adapter(one, tmp_path / "one") == load_adapter(two, tmp_path / "two")
    theirs = two.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())
    train(micro, tmp_path / "three", "--adapter", tmp_path / "two", "--lr", "0", "--method", "examples/decay.py")
    ours, theirs = (load_file(tmp_path / name / "adapter.safetensors") for name in ("two", "three"))
    assert theirs.pop("learned").tolist() == list(get_method("decay").learned)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_wider_adapter_does_the_same(micro):
    """With a larger rank the logits stay; more COMP tokens stand behind those there were."""
    model, method = load_model(micro), get_method("ccm-concat")
    model.add_adapter(n=2, r=4, dropout=0.0)
    for projection in model.projections():
        torch.nn.init.normal_(projection.lora_B)
    batch = collate([[lay_out(method, 2, model.config.vocab_size, [[1, 7, 8], [9]], [5], [6, 2])]])
    before, table = predict(model, method, batch)[0], model.comp_embeddings
    model.widen_adapter(2, 6)
    assert model.projections()[0].lora_A.shape[0] == 6
    torch.testing.assert_close(predict(model, method, batch)[0], before)
    model.widen_adapter(5, 6)
    assert len(model.comp_embeddings) == 5 and torch.equal(model.comp_embeddings[:2], table)
    assert set(model.adapter_state()) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_learning_begins_with_short_samples():
    """The first steps have few contexts, the later ones more, and no answer without the context that tells it."""
    for name in ("dialog", "icl", "persona"):
        make = data.source(name, "train")
        short = [make(index, 3) for index in range(50)]
        assert max(len(sample["contexts"]) for sample in short) == 3
        assert max(len(make(index)["contexts"]) for index in range(50)) >= 16
    sample = {"contexts": list("abcdef"), "input": "x", "target": "y", "distance": 4, "answers": [1, 4]} | {
        "questions": [["?", "a"]]
    }
    assert data.shorten(sample, 2) == sample | {"contexts": list("cdef"), "answers": [2], "questions": []}


def test_several_questions_of_a_sample(tiny):
    """--questions 3: two further questions of a sample are learned as its own is, each as if asked in its place."""
    tokenizer, method = Tokenizer(tiny), get_method("ccm-merge")
    config, source = load_model(tiny).config, data.source("persona", "train")
    for count in (1, 3):
        options = dict(steps=1, batch=1, grow=0, longest=None, questions=count, text_weight=0.0, pack=False)
        (batch,) = Steps(source, tokenizer, config, method, 2, argparse.Namespace(**options, row_tokens=2048))[0]
        sample = source(0)
        asked = [[sample["input"], sample["target"]], *sample["questions"]][:count]
        parts = [segments(tokenizer, sample | dict(input=input, target=target))[1:] for input, target in asked]
        assert batch.labels[batch.weights == 1].tolist() == sum((target for _, target in parts), [])
        for question, (input, target) in enumerate(parts, 1):
            at = batch.columns.question == question
            assert batch.tokens[at].tolist() == input + target
            assert batch.positions[at].min() == batch.positions[batch.columns.text & ~batch.columns.last].max() + 1
        assert batch.columns.question.max() == count > 0 and len(sample["questions"]) >= 2


def test_answers_in_contexts_count(tiny):
    """All that the Bot answers, and each demonstration's label, is learned as the target is; other text is not."""
    tokenizer = Tokenizer(tiny)
    chat = {"contexts": ["Bot: Hello.", "User: Where?", "Bot: In Oslo."], "input": "User: So?\nBot:", "target": "Yes."}
    demonstrations = {
        "contexts": ["a: amber", "b: nova"],
        "input": "c:",
        "target": "nova",
        "options": ["amber", "nova"],
    }
    for sample, learned in ((chat | {"answers": [2]}, "Bot: In Oslo.Yes."), (demonstrations, "ambernovanova")):
        contexts, input, target = segments(tokenizer, sample)
        lengths = answer_lengths(tokenizer, sample, contexts)
        for name in ("full", "ccm-concat", "ccm-merge", "gist"):
            layout = lay_out(get_method(name), 2, tokenizer.vocab_size, contexts, input, target, 1e-9, lengths)
            ids = layout.labels[layout.weights == 1].tolist()
            only = sample["target"] if name == "gist" else learned  # gist compresses once, after all of the contexts
            assert tokenizer.decode(ids).replace(" ", "") == only.replace(" ", "")


def test_a_base_from_nothing(tmp_path):
    """--pretrain makes a folder in the official layout, with a tokenizer, that loads and that an adapter trains on."""
    shape = ["--dim", "16", "--ffn", "24", "--layers", "1", "--heads", "2", "--vocab", "600"]
    train(tmp_path, tmp_path / "base", "--pretrain", *shape)
    model = load_model(tmp_path / "base")
    assert (model.config.dim, model.config.n_layers, model.config.vocab_size) == (16, 1, 600)
    train(tmp_path / "base", tmp_path / "adapter")
    assert load_adapter(model, tmp_path / "adapter") == (get_method("ccm-concat"), 2)


def test_adapters_and_models_survive_a_round_trip(micro, tmp_path):
    """Load, save, load: the same bytes, for a model and for an adapter."""
    model = load_model(micro)
    save_model(tmp_path / "again", model, torch.float32)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (micro / "model.safetensors").read_bytes()
    model.add_adapter(n=3, r=4)
    save_adapter(tmp_path / "a", model, get_method("ccm-merge", sink=True), 3)
    fresh = load_model(micro)
    method, n = load_adapter(fresh, tmp_path / "a")
    save_adapter(tmp_path / "b", fresh, method, n)
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_recurrent_training_is_the_same_training(micro, tmp_path):
    """--recurrent gives the losses of parallel training, step by step of the optimizer."""
    for name, more in (("parallel", ()), ("recurrent", ("--recurrent",))):
        train(micro, tmp_path / name, "--dropout", "0", "--method", "ccm-merge", *more)
    assert losses(tmp_path / "parallel") == pytest.approx(losses(tmp_path / "recurrent"), abs=1e-4)


def test_taking_turns(micro, tmp_path):
    """With --turns merging begins as turns and ends as the method's own; with one place it is that all the time."""
    options, method = argparse.Namespace(steps=100, n=4, turns=2), get_method("ccm-merge")
    batch = collate([[lay_out(method, 4, 9, [[5, 6]] * 3, [7], [8])]])
    own, turns = (merge_weights(of, 3).expand(-1, -1, 4).float() for of in (method, in_turns(method, 4, 2)))
    got = [taking_turns(step, options, method, batch) for step in (0, 35, 70, 99)]
    for found, expected in zip(got, (turns, (3 * own + turns) / 4, own, own)):
        torch.testing.assert_close(found, expected)
    for name, more in (("plain", ()), ("one", ("--turns", "1")), ("two", ("--turns", "2"))):
        train(micro, tmp_path / name, "--dropout", "0", "--method", "ccm-merge", *more)
    plain, one, two = (losses(tmp_path / name) for name in ("plain", "one", "two"))
    assert one == pytest.approx(plain, abs=1e-4) and abs(two[0] - plain[0]) > 1e-3


def test_the_best_checkpoint_is_kept(micro, tmp_path):
    """With --validate the adapter of the lowest validation loss stays, and --patience stops when none is lower."""
    options = ("--validate", "8", "--patience", "2", "--steps", "20", "--n", "1")
    for lr in ("1", "0"):
        train(micro, tmp_path / lr, "--lr", lr, *options)
        log = [json.loads(line) for line in (tmp_path / lr / "log.jsonl").read_text().splitlines()]
        validated = {entry["step"]: entry["validation"] for entry in log if "validation" in entry}
        best = min(validated, key=validated.get)
        assert json.loads((tmp_path / lr / "adapter.json").read_text())["steps"] == best
        assert max(validated) == min(best + 4, 20)  # every second step is a checkpoint: two without a better one
    assert best == 2  # at a rate of 0 none is better than the first


def test_distillation_is_from_full_context(tiny):
    """The teacher's predictions, from the student's own batch, are those with full context; its divergence is KL.

    It is of the targets alone, also where other text is learned a little.
    """
    model, tokenizer = load_model(tiny), Tokenizer(tiny)
    model.add_adapter(n=2)
    for name in ("ccm-concat", "ccm-merge", "compressive", "gist"):
        parts = segments(tokenizer, data.source("dialog", "train")(3))
        student, full = (lay_out(get_method(which), 2, tokenizer.vocab_size, *parts) for which in (name, "full"))
        logits, rows = predict(model, get_method(name), collate([[student]]))
        taught, _ = predict(model, get_method("full"), collate([[full]]), adapted=False)
        expected = (taught.softmax(-1) * (taught.log_softmax(-1) - logits.log_softmax(-1))).sum()
        assert expected.item() > 1
        for text_weight in (0.0, 0.1):
            batch = collate([[lay_out(get_method(name), 2, tokenizer.vocab_size, *parts, text_weight)]])
            logits, rows = predict(model, get_method(name), batch)
            got = divergence(model, get_method(name), batch, logits, rows)
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_samples_grow(micro):
    """From one or two contexts on, up to the longest there are or --longest; of those --short says, four at most."""
    model, tokenizer, counts = load_model(micro), Tokenizer(micro), {}
    for longest, short in ((None, 7), (6, 7), (None, 1)):
        options = argparse.Namespace(
            steps=10, batch=40, grow=0.5, longest=longest, short=short, questions=1, text_weight=0.0, pack=False
        )
        options.row_tokens = 10**6
        steps = Steps(data.source("dialog", "train"), tokenizer, model.config, get_method("ccm-concat"), 2, options)
        counts[longest, short] = [int(steps[step][0].columns.step.max()) for step in (0, 9)]
    assert counts[None, 7][0] == counts[6, 7][0] == 2 and counts[6, 7][1] == 6 and counts[None, 7][1] > 20
    assert counts[None, 1][1] == 4


def test_gist_online_trains_on_one_context(micro):
    """Its samples have one context, where those of the method it runs as have many."""
    counts = {}
    for name in ("gist-online", "ccm-concat-independent"):
        options = argparse.Namespace(steps=2, batch=8, grow=0, longest=None, questions=1, text_weight=0.0, pack=False)
        options.row_tokens = 10**6
        model, tokenizer = load_model(micro), Tokenizer(micro)
        source = data.source("persona", "train")
        (batch,) = Steps(source, tokenizer, model.config, get_method(name), 2, options)[0]
        counts[name] = int(batch.columns.step.max())
    assert counts["gist-online"] == 1 and counts["ccm-concat-independent"] > 4
