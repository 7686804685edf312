"""The benchmark runs to its end at small sizes, and its limits are those of the formulas."""

import json

from experiments import bench
from minccm.io.weights import load_model
from minccm.methods import get_method


def measured(capsys, what, **options):
    """The rows, read back from JSON, and the text that is printed. Each figure has a limit and a share of it."""
    rows = json.loads(json.dumps(bench.bench(what, load_model("random:1m", "cpu"), **options)))
    assert all(row["figure"] > 0 and row["limit"] > 0 and row["share"] > 0 for row in rows[1:])
    return rows, capsys.readouterr().out


def test_a_large_model(capsys, monkeypatch):
    """Of a large model, all of it are the paper's batches, decoding and serving."""
    monkeypatch.setattr(bench, "LARGE_MODEL", 0)
    rows, printed = measured(capsys, "all")
    assert {row["bench"] for row in rows} == {"machine", "train", "decode", "serve"}
    assert [row["pairs"] for row in rows if row["bench"] == "serve"] == [1, 16, 100]
    assert "TFLOP/s" in printed


def test_a_small_model(capsys):
    """Of a small model, on a CPU: steps, a chat, decoding and serving."""
    rows, printed = measured(capsys, "all")
    assert {row["bench"] for row in rows} == {"machine", "step", "chat", "decode", "serve"}
    steps = [row for row in rows if row["bench"] == "step"]
    assert [row["method"] for row in steps] == [training.name for training in bench.TRAININGS]
    assert steps[2]["loss_tokens"] > 5 * steps[1]["loss_tokens"]
    assert {row["shape"] for row in rows if row["bench"] == "chat"} == {"float32", "bfloat16"}
    assert "memory is read at" in printed


def test_a_failed_figure_does_not_stop_the_others(capsys, monkeypatch):
    """Its error is printed, and it has no row. A profile follows each of the other figures."""
    flops = bench.training_flops
    fail = lambda model, training, sequences: 1 / 0 if training.distill else flops(model, training, sequences)
    monkeypatch.setattr(bench, "training_flops", fail)
    rows, printed = measured(capsys, "steps", max_tokens=400, shape="dialog", only="concat", profile=True)
    assert [row.get("method") for row in rows] == [None, "ccm-concat"]
    assert "ZeroDivisionError" in printed and "aten::mm" in printed and "kernels" in printed


def test_operations_of_a_step():
    """4 per weight and token, 2 more in the teacher; the vocabulary at tokens with a loss."""
    model = load_model("random:1m", "cpu")
    shape = bench.Shape(2, 5, 2, 3, 4)
    for training in bench.TRAININGS[1:3]:
        sequences = bench.random_sequences(model, training.method, shape, 1, training.every_turn)
        assert len(sequences[0]) == shape.tokens == 22
        matrices, vocabulary = bench.matrix_weights(model), 128 * 512
        loss, ones = (5 + 4 + 6, 4 + 4) if training.every_turn else (4, 4)
        expected = 4 * (matrices * 22 + vocabulary * loss)
        expected += 2 * (matrices * 18 + vocabulary * ones) if training.distill else 0
        assert bench.training_flops(model, training, sequences) == expected


def test_kernels_of_a_trace():
    """Kernels and copies are added up by name; spans of the CPU and annotations are left out."""
    event = lambda cat, name, dur: {"cat": cat, "name": name, "dur": dur}
    events = [event("kernel", "a", 1000), event("kernel", "a", 500), event("gpu_memcpy", "b", 2000), {"name": "c"}]
    events += [event("cpu_op", "a", 9000), event("gpu_user_annotation", "a", 9000)]
    assert bench.kernels_of_trace({"traceEvents": events}) == [("a", 2, 1.5), ("b", 1, 2.0)]


def test_shapes_are_those_of_the_paper():
    """MetaICL's sample has 979 tokens, DailyDialog's 235; and a token is multiplied with the matrices of all layers."""
    model = load_model("random:1m", "cpu")
    for shape, tokens, comp in ((bench.LARGE.metaicl, 979, 128), (bench.LARGE.dialog, 235, 24)):
        for name in ("ccm-concat", "ccm-merge"):
            (sequence,) = bench.random_sequences(model, get_method(name), shape, 1)
            assert (len(sequence), shape.tokens, int(sequence.info.is_comp.sum())) == (tokens, tokens, comp)
            assert int((sequence.loss_weights > 0).sum()) == shape.output
    matrices = model.config.n_layers * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 352)
    assert bench.matrix_weights(model) == matrices
