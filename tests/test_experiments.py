"""The experiments, from end to end at toy size, and their errors for wrong settings."""

import argparse
import importlib
import json
import re
from dataclasses import replace

import pytest
import torch

from data import dialog
from data.encode import encoder
from experiments import pretrain, stability, talks
from experiments.__main__ import HELPERS
from minccm.io import options as cli
from minccm.io.adapters import load_adapter, save_adapter
from minccm.io.options import load_method
from minccm.io.templates import DIALOGUE, TEMPLATES
from minccm.io.tokenizer import Tokenizer
from minccm.io.weights import load_model
from minccm.methods import get_method
from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem not in HELPERS)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs an experiment in this process; returns its output."""

    def run(name, *arguments) -> str:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        importlib.import_module(f"experiments.{name}").main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def measured(call, tmp_path):
    """Runs an experiment with --json and --picture; returns the rows and its output."""

    def run(name, *arguments, picture=True):
        files = tmp_path / "result.json", tmp_path / "result.png"
        more = ["--device", "cpu", "--json", files[0], *(["--picture", files[1]] if picture else [])]
        out = call(name, *arguments, *more)
        assert not picture or files[1].read_bytes()[:4] == b"\x89PNG"
        return json.loads(files[0].read_text()), out

    return run


@pytest.mark.parametrize("name", NAMES)
def test_help(name, call, capsys):
    """python -m experiments.NAME --help begins with one line about it, and explains its options."""
    with pytest.raises(SystemExit) as stop:
        call(name, "--help")
    out = capsys.readouterr().out
    about = importlib.import_module(f"experiments.{name}").__doc__.partition("\n")[0]
    assert stop.value.code == 0 and about.split()[0] in out and "options:" in out


def test_list(call, capsys):
    """python -m experiments names each of them, with one line about it."""
    importlib.import_module("experiments.__main__").main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [f"experiments.{name}" for name in NAMES]
    assert all(len(line.split()) > 6 for line in lines)


def test_stream(measured, tiny, tmp_path):
    """Both caches have one size; segments and single tokens give the same; the perplexity is the printed one."""
    path = tmp_path / "chat.txt"
    path.write_text("User: I live in Oslo.\nBot: How nice! It is a fine place, they say.\n" * 30)
    sizes = ["--window", 40, "--chunk", 16, "--memory", 4, "--token-by-token", 120]
    rows, out = measured("stream", path, "--adapter", tiny / "ccm-concat", *sizes)
    assert [row["method"] for row in rows] == ["sliding window (4)", "ccm-concat, n = 2 (4)"]
    assert rows[0]["kv_bytes"] == rows[1]["kv_bytes"] and rows[0]["tokens"] == rows[1]["tokens"] > 500
    for row in rows:
        assert row["largest_difference"] < 1e-3 and f"{row['perplexity']:.3f}" in out


def test_stability(measured, monkeypatch):
    """A row for each mark and each distance; merged memory is the exact mean of its chunks."""
    monkeypatch.setattr(stability, "MARKS", (600,))
    monkeypatch.setattr(stability, "DISTANCES", (2, 4))
    rows, out = measured("stability", "--method", "ccm-merge", "--tokens", 800, "--samples", 10, "--window", 120)
    drifts = [row for row in rows if "tokens" in row]
    assert {row["method"] for row in drifts} == {"full context", "sliding window", "ccm-merge"}
    assert all(row["finite"] for row in drifts) and "peak MiB" in out
    merged = [row for row in drifts if row["method"] == "ccm-merge"]
    assert [row["tokens"] for row in merged] == [600, 800] and all(row["error"] < 1e-9 for row in merged)
    recalls = {(row["method"], row["distance"]): row for row in rows if "distance" in row}
    assert recalls["ccm-merge, turn by turn", 4]["questions"] == 10
    assert recalls["sliding window, stream", 2]["recall"] >= 0.8


def test_inside(call, tmp_path):
    """The words of each turn once per COMP token, and a row for each layer."""
    picture = tmp_path / "inside.png"
    out = call("inside", "attention", "--method", "ccm-concat", "--turns", 3, "--picture", picture, "--device", "cpu")
    assert out.count("COMP 1") == out.count("COMP 2") == 3 and picture.stat().st_size > 1000
    out = call("inside", "memory", "--method", "ccm-merge", "--turns", 3, "--picture", picture, "--device", "cpu")
    assert len(re.findall(r"(?m)^ 5 ", out)) == 3 and "t=3" in out


def test_masks(call, tmp_path):
    """One row for each token: contexts of 2 and 3 tokens with a COMP token each, then input and output."""
    paths = [tmp_path / name for name in ("mask.png", "all.png", "time.png")]
    out = call("masks", "--method", "ccm-merge", "--lengths", 2, 3, 1, 1, "--n", 1, "--picture", paths[0])
    rows = [line for line in out.splitlines()[1:] if "██" in line or "··" in line]
    assert len(rows) == 3 + 4 + 2 and rows[-1].count("██") == 3  # itself, the input, Mem(2)
    assert not call("masks", "--all", paths[1], "--over-time", paths[2])
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)


def test_talks(measured, monkeypatch):
    """Three facts of the test split, twelve exchanges, three questions; right answers are counted."""
    facts, lines = talks.script(0)
    assert len(lines) == 15 and all(value in line for value, line in zip(facts.values(), lines))
    assert (ROOT / "docs" / "conversation.txt").read_text().splitlines()[:15] == lines
    for name, value in facts.items():
        assert value not in dialog.values("I", *talks.TOLD[name][:2], "train")
    asked = []

    def reply(talk, text):
        asked.append(text)
        yield "In the city of "
        yield facts["city"] if text == "Where do I live?" else "nothing"

    monkeypatch.setattr(talks.Conversation, "reply", reply)
    rows, out = measured("talks", "--talks", 1, "--method", "ccm-merge", picture=False)
    assert asked == 2 * [*lines, *(of[3] for of in talks.TOLD.values())]
    assert [(row["method"], row["city"], row["name"], row["all"]) for row in rows] == [
        ("full", 1, 0, 0),
        ("ccm-merge, n = 32", 1, 0, 0),
    ]
    assert rows[1]["wrong"] == [{name: [facts[name], "In the city of nothing"] for name in ("name", "country")}]
    assert "100%" in out


def test_a_conversation_for_recall(tiny):
    """Each fact is told once, in the noted turn, and its value is in no later turn."""
    turns, facts = stability.conversation(0, 0)
    assert len(facts) == stability.FACTS and len(turns) >= max(stability.DISTANCES) + 2 * len(facts)
    for told, _, answer, value in facts:
        assert value in turns[told] and value in answer
        assert not any(value in turn for turn in turns[told + 1 :])
    ids = stability.endless(Tokenizer(tiny), 0, None)
    assert next(ids) == Tokenizer(tiny).bos_id and next(ids) != next(ids)


@pytest.fixture
def pretrained(call, tmp_path):
    """Makes a tiny base model in a folder of this name; returns the folder."""

    data = tmp_path / "dialogues.jsonl"
    data.write_text("".join(json.dumps(dialog.sample_at("train", index, 3)) + "\n" for index in range(200)))

    def run(name, *more):
        shape = ["--dim", 16, "--ffn", 24, "--layers", 1, "--heads", 2, "--vocab", 600, "--device", "cpu"]
        steps = ["--data", data, "--steps", 6, "--batch", 3, "--save-every", 2, "--eval-samples", 0]
        call("pretrain", *shape, *steps, "--out", tmp_path / name, *more)
        return tmp_path / name

    return run


def test_pretrain(pretrained, monkeypatch):
    """A base model that loads, with its tokenizer. An interrupted training that is resumed gives the same bits."""
    whole = pretrained("whole", "--validate", 4)
    model, tokenizer = load_model(whole), Tokenizer(whole)
    assert (model.config.dim, model.config.n_layers, model.config.vocab_size) == (16, 1, tokenizer.vocab_size)
    rate = pretrain.learning_rate
    with monkeypatch.context() as context:
        context.setattr(pretrain, "learning_rate", lambda step, options: rate(step, options) if step < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):  # at the fourth step; the checkpoint is that of the second
            pretrained("part", "--validate", 4)
    part = pretrained("part", "--validate", 4, "--resume")
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    read_losses = lambda folder: [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert read_losses(part) == read_losses(whole) and len(read_losses(whole)) == 6


def test_pretrain_from_a_base_model(pretrained):
    """--init continues with all weights; with a learning rate of 0 they stay the same."""
    first = pretrained("first")
    second = pretrained("second", "--init", first, "--lr", 0, "--context-loss", 0)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (second / "tokenizer.model").is_file()


def test_pretrain_fast(pretrained):
    """The fast form of the step gives the losses of the plain one, to rounding."""
    losses = {}
    for fast in ("off", "pack,prune"):
        log = (pretrained(fast, "--fast", fast, "--context-loss", 0) / "log.jsonl").read_text()
        losses[fast] = [json.loads(line)["loss"] for line in log.splitlines()]
    assert losses["off"] == pytest.approx(losses["pack,prune"], abs=1e-4)


def test_only_outputs_and_answers_count(tiny):
    """With a context loss, other text counts a little; without, only the output counts."""
    tokenizer = Tokenizer(tiny)
    sample = {
        "contexts": ["Bot: Hello.", "User: Where?", "Bot: In Oslo."],
        "input": "User: So?\nBot:",
        "target": "Yes.",
        "answers": [2],
    }
    config, method = load_model(tiny).config, get_method("full")
    for context_loss, learned in ((0.1, ["Bot:InOslo.", "Yes."]), (0.0, ["Yes."])):
        shape = dict(steps=1, batch=1, length_curriculum=0, max_contexts=None, questions=1, context_loss=context_loss)
        encode, options = encoder(tokenizer, TEMPLATES[DIALOGUE]), argparse.Namespace(**shape)
        batches = pretrain.Batches(lambda *_: sample, encode, config, method, options, None)
        sequence = batches.sequence(0, 0)
        ids = sequence.tokens.roll(-1)[sequence.loss_weights == 1].tolist()
        assert tokenizer.decode(ids).replace(" ", "") == "".join(learned)
        assert bool((sequence.loss_weights == torch.tensor(0.1)).any()) == bool(context_loss)


def test_recurrent(call, tmp_path, tiny):
    """Trained in parallel and step by step: the same losses and gradients. The adapter can be kept."""
    files = ["--json", tmp_path / "cost.json", "--out", tmp_path / "adapter", "--device", "cpu"]
    call("recurrent", "--batch", 2, "--steps", 1, "--method", "ccm-merge", *files)
    found = json.loads((tmp_path / "cost.json").read_text())
    assert found["parallel"]["losses"] == pytest.approx(found["recurrent"]["losses"], rel=1e-4)
    assert found["recurrent"]["seconds"] > 0 and found["largest_gradient_difference"] < 1e-3
    assert load_adapter(load_model(tiny), tmp_path / "adapter") == (get_method("ccm-merge"), 2)


def test_weights(call, tmp_path, tiny):
    """A random model is written and read again; an adapter is exported in the authors' layout."""
    out = call("weights", "--model", "random:1m", "--out", tmp_path / "model", "--device", "cpu")
    assert "host peak MiB" in out
    written, made = load_model(tmp_path / "model"), load_model("random:1m")
    assert torch.equal(written.layers[0].mlp.up_proj.weight, made.layers[0].mlp.up_proj.weight)
    out = call("weights", "--adapter", tiny / "ccm-concat", "--out", tmp_path / "theirs")
    assert (tmp_path / "theirs" / "tiny-online-concat_recur-ntok2" / "pytorch_model.bin").is_file(), out


def test_natural_with_a_method_from_a_file(call, tiny, tmp_path):
    """Own methods can be asked the natural questions, too: here with 2 of the 16 slots that carousel can hold."""
    model, method = load_model(tiny), load_method(str(ROOT / "examples" / "carousel.py"))
    model.add_adapter(2, r=2)
    save_adapter(tmp_path / "mine", model, method, 2)
    small = ["--model", tiny, "--adapter", tmp_path / "mine", "--count", 1, "--max-tokens", 2]
    with pytest.raises(ValueError, match="give it with --method FILE.py"):
        call("natural", *small)
    call("natural", *small, "--method", ROOT / "examples" / "carousel.py", "--json", tmp_path / "rows.json")
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["method"], row["n"], row["questions"], row["pairs"]) == ("mine: carousel", 2, 4, 16)


def test_natural_with_a_step_1_adapter(call, tiny, tmp_path):
    """Step 1 is measured with and without its context: the one has a pair for every token, the other none."""
    model = load_model(tiny)
    model.add_adapter(0, r=2)
    save_adapter(tmp_path / "step1", model, replace(get_method("full"), conditional=False), 0)
    small = ["--model", tiny, "--adapter", tmp_path / "step1", "--count", 1, "--max-tokens", 2]
    call("natural", *small, "--json", tmp_path / "rows.json")
    none, full = json.loads((tmp_path / "rows.json").read_text())
    assert (none["method"], none["pairs"], full["method"]) == ("none, step 1", 0, "full, step 1")
    assert full["pairs"] > 50


@pytest.mark.parametrize(
    "name, arguments, says",
    [
        ("stream", ["nowhere.txt"], "nowhere.txt: the file is missing"),
        ("stream", [__file__, "--window", 10], "a window of 10 has no space"),
        ("masks", ["--lengths", 3, 0, 2], "--lengths"),
        ("masks", ["--lengths", 3, 2], "give the lengths"),
        ("inside", ["memory", "--method", "gist"], "has no adapter for gist"),
        ("talks", ["--talks", 0], "--talks"),
        ("costs", ["--model", "nowhere"], "nowhere"),
        ("weights", ["--adapter", "nowhere"], "give a folder for it with --out"),
        ("smollm2", ["--stages", "step2"], "there is no stage 'step2': choose from step1, ccm-concat, ccm-merge"),
        ("smollm2", ["--set", "steps=9,name=x"], "there is no setting 'name'"),
        ("smollm2", ["--set", "n"], "'n' has no number: write it as n=1"),
    ],
)
def test_wrong_settings(monkeypatch, capsys, name, arguments, says):
    """One line, and status 2."""
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(importlib.import_module(f"experiments.{name}").main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and error.count("\n") == 1
