"""The benchmark runs to its end at small sizes, and its limits are those of the formulas."""

import json

from experiments import bench
from minccm.io.weights import load_model
from minccm.methods import get_method


def test_all_of_it(capsys):
    """Each figure has a limit and a share of it, in rows that JSON can hold."""
    model = load_model("random:1m", "cpu")
    rows = json.loads(json.dumps(bench.bench("all", model)))
    assert {row["bench"] for row in rows} == {"machine", "train", "decode", "serve"}
    assert all(row["figure"] > 0 and row["limit"] > 0 and row["share"] > 0 for row in rows[1:])
    assert [row["pairs"] for row in rows if row["bench"] == "serve"] == [1, 16, 100]
    assert "TFLOP/s" in capsys.readouterr().out


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
