"""Evaluation counts as the paper does: options by sum and mean, tasks evenly, memory at its peak, seeds apart.

An adapter is compared with no context and full context on its own base model.
"""

import io
import json
import math

import pytest
import torch
from rich.console import Console

import eval
from data.encode import encoder
from data.metaicl import make_sample
from minccm.extra import evaluate
from minccm.extra.evaluate import Evaluator, Run, average, close_gaps, peak_pairs, step1_name
from minccm.extra.tables import new_table, print_table
from minccm.io.adapters import load_adapter
from minccm.io.options import TINY, load_method
from minccm.io.templates import DIALOGUE, TEMPLATES
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import read_json
from minccm.io.weights import load_model
from minccm.methods import METHODS, get_method
from minccm.sequence import build_sequence
from minccm.session import Session
from tests.conftest import ROOT, random_model
from tests.test_training import micro, trained  # noqa: F401  fixtures

DECAY = str(ROOT / "examples" / "decay.py")


def evaluator_of(model, folder=TINY) -> Evaluator:
    tokenizer = Tokenizer(folder)
    return Evaluator(model, tokenizer, encoder(tokenizer, TEMPLATES[DIALOGUE]), 100)


@pytest.fixture
def evaluated(monkeypatch, tmp_path, capsys):
    """Runs eval.py in this process. Returns its rows and its output."""

    def run(*arguments) -> tuple[list[dict], str]:
        common = ["--device", "cpu", "--samples", "2", "--data", "persona", "--time-steps", "1"]
        path = tmp_path / "rows.json"
        monkeypatch.setattr("sys.argv", ["eval.py", *common, "--json", str(path), *map(str, arguments)])
        eval.main()
        return read_json(path), capsys.readouterr().out

    return run


def test_options_by_sum_and_by_mean_and_tasks_evenly(monkeypatch):
    """A long option wins by the mean, a short one by the sum, without EOS; three samples of one task weigh as one."""
    evaluator = evaluator_of(load_model(TINY))
    made = {2: [-3.0], 4: [-2.0, -2.0, -2.0]}  # log-probabilities by the length of an option with its EOS

    def scored(self, run, sequences):
        return [
            (torch.tensor(made[int((x.loss_weights > 0).sum())] + [-99.0 if i % 2 else 0.0]), None)
            for i, x in enumerate(sequences)
        ]

    monkeypatch.setattr(Evaluator, "score", scored)
    short, long = "A", "A A A"
    assert [len(evaluator.tokenizer.encode(text)) for text in (short, long)] == [1, 3]
    samples = []
    for task, target in (("one", short), ("one", short), ("one", long), ("other", long)):
        record = {"task": task, "input": "x", "output": target, "tokens": 5, "options": [long, short]}
        samples.append(make_sample(record, []))
    measured = evaluator.measure(Run(get_method("full")), samples)
    assert measured["accuracy"] == pytest.approx((2 / 3 + 0) / 2)  # by the sum always the short one
    assert measured["accuracy_mean"] == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_peak_memory_is_that_of_the_recursion(name):
    """At most so many KV pairs are held online, while contexts are read and while the output is generated."""
    method, n = get_method(name, sink=True), 2
    model = random_model(n, learned=method.learned)
    contexts, input, output = [[1] + [5] * 6, [6] * 9, [7] * 3], [8, 9], [10, 11, 2]
    session, reading = Session(model, method, n), [0]
    with torch.no_grad():
        for context in [sum(contexts, [])] if method.comp_after == "end" else contexts:
            before = len(session.memory)
            session.read(context)
            reading.append(before + len(context) + (n if method.comp_after else 0))
    sequence = build_sequence(method, n, 40, contexts, [(input, output)])
    expected = (max(reading) if method.reads_context else 0, len(session.memory) + len(input) + len(output))
    assert peak_pairs(method, sequence) == expected


def test_seeds_are_averaged_after_gaps_are_closed():
    """Mean and standard deviation of each metric over rows that differ by seed; the gap is closed seed by seed."""
    common = {"data": "d", "time_step": 1}
    rows = [common | {"method": "none", "perplexity": math.exp(2)}]
    rows += [common | {"method": "full", "perplexity": math.exp(1)}]
    rows += [common | {"method": "m", "perplexity": math.exp(x)} for x in (1.0, 1.5, 1.25)]
    close_gaps(rows)
    *_, row = average(rows)
    assert row["gap_closed"] == pytest.approx(0.75) and row["gap_closed_std"] == pytest.approx(0.25)
    assert row["seeds"] == 3 and row["perplexity_std"] > 0
    assert "perplexity_std" not in average(rows)[0]


def test_gaps_are_closed_on_the_same_base():
    """Two adapters with the same accuracy have other gaps where no and full context differ on their base models."""
    common, rows = {"data": "d", "time_step": 1}, []
    for base, values in ((None, (0.2, 0.6, 0.6)), ("step 1", (0.2, 1.0, 0.6))):
        more = {"base": base} if base else {}
        rows += [common | more | {"method": m, "accuracy": x} for m, x in zip(("none", "full", "m"), values)]
    close_gaps(rows)
    assert [row["gap_closed"] for row in rows if row["method"] == "m"] == pytest.approx([1.0, 0.5])
    averaged = average(rows)
    assert averaged[-1]["gap_closed"] == pytest.approx(0.75) and averaged[-1]["base"] == "2 bases"


def test_step_one_is_part_of_the_base_of_all_rows(trained, micro, evaluated):  # noqa: F811
    """An adapter with init/ is compared with none and full on the same step-1 base; the table and its JSON say which.

    One without is compared on the plain base, in the same table of results.
    """
    step1 = trained("step1", "--method", "full", "--lr", 0.3, "--steps", 8)
    adapters = trained("with", "--init", step1), trained("without")
    rows, printed = evaluated("--model", micro, "--adapter", *adapters)
    base = step1_name(adapters[0])
    assert [(row["method"], row.get("base")) for row in rows] == [
        *((name, base) for name in ("none", "full", "ccm-concat")),
        *((name, None) for name in ("none", "full", "ccm-concat")),
    ]
    title = " ".join(printed.split())
    assert f"(base: {base})" in title and "persona: multiple-choice accuracy (%) after t contexts method" in title

    plain, merged = load_model(micro), load_model(micro)
    load_adapter(merged, step1)
    samples = evaluate.data.at_step("persona", "test", 1, 2)

    def of(name, model):
        return evaluator_of(model, micro).score(Run(get_method(name)), sequences_of(name, model, samples))[0][0]

    def sequences_of(name, model, samples):
        contexts, questions, _ = evaluator_of(model, micro).encode(samples[0], get_method(name).reads_context)
        return [build_sequence(get_method(name), 0, model.config.vocab_size, contexts, questions)]

    assert (of("full", plain) - of("full", merged)).abs().max() > 1e-3  # step 1 does something
    for name in ("none", "full"):  # the rows are those of the merged model
        expected = evaluator_of(merged, micro).measure(Run(get_method(name)), samples)
        (row,) = (row for row in rows if (row["method"], row.get("base")) == (name, base))
        assert row["accuracy"] == expected["accuracy"]


def test_an_adapter_with_step_one_has_the_baselines_of_init(trained, micro, evaluated):  # noqa: F811
    """The same numbers as with --init and an adapter whose init/ was taken away, to the last digit."""
    step1 = trained("step1", "--method", "full", "--lr", 0.3, "--steps", 8)
    adapter = trained("with", "--init", step1)
    rows, _ = evaluated("--model", micro, "--adapter", adapter, "--data", "dialog")
    (adapter / "init").rename(adapter.parent / "apart")
    others, printed = evaluated("--model", micro, "--adapter", adapter, "--data", "dialog", "--init", step1)
    plain, _ = evaluated("--model", micro, "--method", "none", "--data", "dialog")
    perplexities = [[row.get("perplexity") for row in some] for some in (rows, others)]
    assert perplexities[0] == perplexities[1]
    assert perplexities[0][1] != plain[1]["perplexity"] and "(base: step 1 step1)" in printed


def test_a_step_one_adapter_is_compared_with_the_plain_base(trained, micro, evaluated):  # noqa: F811
    """The rows none and full are without it, and "full, trained" is with it."""
    step1 = trained("step1", "--method", "full", "--lr", 0.3, "--steps", 8)
    rows, _ = evaluated("--model", micro, "--adapter", step1, "--data", "dialog")
    by_name = {row["method"]: row for row in rows if "time_step" in row}
    assert list(by_name) == ["none", "full", "full, trained"]
    samples = evaluate.data.at_step("dialog", "test", 1, 2)
    expected = evaluator_of(load_model(micro), micro).measure(Run(get_method("full")), samples)
    assert by_name["full"]["perplexity"] == pytest.approx(expected["perplexity"])
    assert by_name["full, trained"]["perplexity"] != by_name["full"]["perplexity"]


def test_names_in_the_table(trained, micro, evaluated):  # noqa: F811
    """Adapters of one method get different names; with --average they are one row, with deviations."""
    one, two = trained("one"), trained("two", "--seed", 1)
    three, four = trained("three", "--n", 3), trained("four", "--n", 3, "--seed", 1)
    rows, _ = evaluated("--model", micro, "--adapter", one, two, three, four)
    assert [row["method"] for row in rows] == ["none", "full", "ccm-concat", "two", "ccm-concat, n = 3", "four"]
    rows, printed = evaluated("--model", micro, "--adapter", one, two, three, "--average", "--data", "dialog")
    averaged = {row["method"]: row for row in rows if "time_step" in row}
    assert list(averaged) == ["none", "full", "ccm-concat", "ccm-concat, n = 3"]
    assert averaged["ccm-concat"]["seeds"] == 2 and "±" in printed


def test_a_method_from_a_file(trained, micro, evaluated):  # noqa: F811
    """Its adapter is evaluated with --method FILE.py, and among others; without it, one line asks for it."""
    decay, plain = trained("decay", "--method", DECAY), trained("plain")
    rows, _ = evaluated("--model", micro, "--adapter", decay, "--method", DECAY)
    assert [row["method"] for row in rows] == ["none", "full", load_method(DECAY).name]
    rows, _ = evaluated("--model", micro, "--adapter", decay, plain, "--method", f"ccm-concat,{DECAY}")
    assert [row["method"] for row in rows] == ["none", "full", "decay", "ccm-concat"]
    for more, says in (([], "give it with --method FILE.py"), (["--method", "ccm-merge"], "not for ccm-merge")):
        with pytest.raises(ValueError, match=says):
            evaluated("--model", micro, "--adapter", decay, *more)
    with pytest.raises(ValueError, match="no adapter was trained with ccm-merge or ccm-merge-ema"):
        evaluated("--model", micro, "--adapter", plain, plain, "--method", "ccm-merge,ccm-merge-ema")


def test_the_final_table_of_training(trained, micro, tmp_path, capsys):  # noqa: F811
    """Training ends with no context, full context and its method, on the base that it trained on, and a picture."""
    step1 = trained("step1", "--method", "full", "--eval-samples", 2, "--json", tmp_path / "one.json")
    rows = read_json(tmp_path / "one.json")
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["none", "full", "full, trained"]
    folder = trained("two", "--init", step1, "--eval-samples", 2, "--json", tmp_path / "new" / "two.json")
    rows = read_json(tmp_path / "new" / "two.json")
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["none", "full", "ccm-concat"]
    assert {row["base"] for row in rows} == {step1_name(folder)}
    assert (folder / "table.png").read_bytes()[:4] == b"\x89PNG" and step1_name(folder) in capsys.readouterr().out


def test_the_sentence_below_the_table():
    """It compares with full context on the same data."""
    row = {"time_step": 8, "kv_pairs": 16.0}
    rows = [row | {"data": name, "method": "full", "recall": x, "kv_pairs": 99.0} for name, x in (("a", 0.5), ("b", 1))]
    rows.append(row | {"data": "b", "method": "ccm-concat", "recall": 0.75})
    text = evaluate.meaning(rows)
    assert text == (
        "From 16 KV pairs it recalls 75.0% of the facts after 8 contexts; full context needs 99 pairs for 100.0%."
    )
    assert "full context" not in evaluate.meaning(rows[2:])
    assert "step 1" in evaluate.meaning([*rows[:2], rows[2] | {"gap_closed": 2.2}])  # the base does not know the data
    assert evaluate.meaning([*rows[:2], rows[2] | {"gap_closed": 1.05}]) == text
    assert evaluate.meaning([*rows[:2], rows[2] | {"gap_closed": 2.2, "base": "step 1 abc"}]) == text


def test_tables_are_not_cut():
    """A table that is wider than the terminal keeps all of its cells."""
    table, file = new_table("a title", "method", "a long heading", "another long heading"), io.StringIO()
    table.add_row("x" * 30, "1", "22")
    print_table(table, Console(file=file, width=20))
    assert all(text in file.getvalue() for text in ("x" * 30, "a long heading", "another long heading", "22"))


def test_time_steps_of_chats(tmp_path):
    """A table of chats has only the time steps that some chat reaches."""
    chat = [{"role": role, "content": f"{role} {i}"} for i in range(3) for role in ("user", "assistant")]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": chat}))
    tokenizer = Tokenizer(TINY)
    evaluator = Evaluator(load_model(TINY), tokenizer, encoder(tokenizer, TEMPLATES[DIALOGUE]))
    rows = evaluator.by_time_step(Run(get_method("full"), 0), str(path), [1, 4, 8], 0)
    assert [row["time_step"] for row in rows] == [1, 4]  # 5 contexts: all turns but the last
