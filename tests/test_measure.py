"""The commands that measure, from end to end at toy size, and what they say of wrong settings."""

import json

import pytest

import eval
from measure import stability
from minccm import cli
from minccm.tokenizer import Tokenizer


@pytest.fixture
def measured(monkeypatch, tmp_path, capsys):
    """Runs eval.py with --json and --picture; returns the rows, and what was printed."""

    def call(*arguments):
        paths = tmp_path / "result.json", tmp_path / "result.png"
        more = ["--device", "cpu", "--json", paths[0], "--picture", paths[1]]
        monkeypatch.setattr("sys.argv", ["eval.py", *map(str, (*arguments, *more))])
        eval.main()
        assert paths[1].read_bytes()[:4] == b"\x89PNG"
        rows = json.loads(paths[0].read_text()) if paths[0].exists() else None
        return rows, capsys.readouterr().out

    return call


def test_streaming_a_file(measured, tiny, tmp_path):
    """Both caches are of one size; by stretches and token by token the same; perplexity as printed."""
    path = tmp_path / "chat.txt"
    path.write_text("User: I live in Oslo.\nBot: How nice! It is a fine place, they say.\n" * 30)
    sizes = ["--window", 40, "--chunk", 16, "--memory", 4, "--token-by-token", 120]
    rows, out = measured("--stream", path, "--adapter", tiny / "ccm-concat", *sizes)
    assert [row["method"] for row in rows] == ["sliding window (4)", "ccm-concat, n = 2 (4)"]
    assert rows[0]["kv_bytes"] == rows[1]["kv_bytes"] and rows[0]["tokens"] == rows[1]["tokens"] > 500
    for row in rows:
        assert row["farthest_apart"] < 1e-3 and f"{row['perplexity']:.3f}" in out


def test_looking_inside(measured, capsys):
    """Every word of the conversation is shown for each COMP token; a mask for the layout; a row a layer."""
    _, out = measured("--show", "attention", "--method", "ccm-concat", "--time-steps", 3)
    assert out.count("COMP 1") == out.count("COMP 2") == 3
    _, out = measured("--show", "mask", "--method", "ccm-merge", "--layout", 2, 3, 1, 1, "--n", 1)
    assert sum("██" in line or "··" in line for line in out.splitlines()[1:]) == 2 + 1 + 3 + 1 + 2
    _, out = measured("--show", "memory", "--method", "ccm-merge", "--time-steps", 3)
    assert out.count("│ 5 ") == 3 and "t=3" in out


def test_a_conversation_for_recall(tiny):
    """Facts are told once each, at the turn that is noted, and no value stands anywhere else."""
    turns, facts = stability.conversation(0, 0)
    assert len(facts) == stability.FACTS and len(turns) >= max(stability.DISTANCES) + 2 * len(facts)
    for told, _, answer, value in facts:
        assert value in turns[told] and value in answer
        assert not any(value in turn for turn in turns[told + 1 :])
    ids = stability.endless(Tokenizer(tiny), 0, None)
    assert next(ids) == Tokenizer(tiny).bos_id and next(ids) != next(ids)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--stream", "nowhere.txt"], "nowhere.txt is not there"),
        (["--stream", __file__, "--window", 10], "a window of 10 has no room"),
        (["--show", "mask", "--layout", 3, 0, 2], "--layout"),
        (["--show", "memory", "--method", "gist"], "holds no adapter for gist"),
        (["--costs", "--model", "nowhere"], "holds no model"),
    ],
)
def test_wrong_settings(monkeypatch, capsys, arguments, says):
    """One line, status 2."""
    monkeypatch.setattr("sys.argv", ["eval.py", *map(str, arguments), "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        cli.run(eval.main)
    assert stop.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]
