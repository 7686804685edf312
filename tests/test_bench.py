"""The benchmark measures what it says: at toy size it runs to its end, and its limits are those of the formulas."""

import json

import torch

from measure import bench
from minccm.checkpoint import load_model
from minccm.methods import COMP, get_method


def test_all_of_it(capsys):
    """Every figure stands beside a limit that it does not exceed much, in rows that JSON can hold."""
    model = load_model("random:1m")
    rows = json.loads(json.dumps(bench.run("all", model)))
    assert {row["bench"] for row in rows} == {"machine", "train", "decode", "serve"}
    assert all(row["figure"] > 0 and row["limit"] > 0 and row["share"] > 0 for row in rows[1:])
    assert [row["pairs"] for row in rows if row["bench"] == "serve"] == [1, 16, 100]
    assert "TFLOP/s" in capsys.readouterr().out


def test_shapes_are_the_paper_s():
    """MetaICL's sample has 979 tokens, DailyDialog's 235, and a token meets the matrices of all layers."""
    model = load_model("random:1m")
    for shape, tokens, comp in (("metaicl", 979, 128), ("dialog", 235, 24)):
        (batch,) = bench.training_rows(model, get_method("ccm-concat"), bench.SHAPES[shape], 1, 1024)
        data = torch.cat([batch.first.columns.data, batch.columns.data], 1)
        real = data[data[..., 0] == 0]
        assert (len(real), int((real[:, 1] == COMP).sum())) == (tokens, comp)
    shape = model.config.n_layers * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 352)
    assert bench.matrix_weights(model) == shape
