"""The commands that measure, from end to end at toy size, and what they say of wrong settings."""

import json

import pytest

import eval
from data import dialog
from measure import stability, talks
from minccm import cli
from minccm.tokenizer import Tokenizer
from tests.conftest import ROOT


@pytest.fixture
def measured(monkeypatch, tmp_path, capsys):
    """Runs eval.py with --json and --picture; returns the rows, and what was printed."""

    def call(*arguments, picture=True):
        paths = tmp_path / "result.json", tmp_path / "result.png"
        more = ["--device", "cpu", "--json", paths[0], "--picture", paths[1]]
        monkeypatch.setattr("sys.argv", ["eval.py", *map(str, (*arguments, *more))])
        eval.main()
        assert not picture or paths[1].read_bytes()[:4] == b"\x89PNG"
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


def test_whole_conversations(measured, monkeypatch):
    """Three facts, that no training sample tells, twelve exchanges, three questions; what is answered is counted."""
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
    rows, out = measured("--talks", 1, "--method", "ccm-merge", picture=False)
    assert asked == 2 * [*lines, *(of[3] for of in talks.TOLD.values())]
    assert [(row["method"], row["city"], row["name"], row["all"]) for row in rows] == [
        ("full", 1, 0, 0),
        ("ccm-merge, n = 32", 1, 0, 0),
    ]
    assert rows[1]["wrong"] == [{name: [facts[name], "In the city of nothing"] for name in ("name", "country")}]
    assert "100%" in out


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
        (["--talks", 0], "--talks is to be at least 1"),
        (["--costs", "--model", "nowhere"], "holds no model"),
    ],
)
def test_wrong_settings(monkeypatch, capsys, arguments, says):
    """One line, status 2."""
    monkeypatch.setattr("sys.argv", ["eval.py", *map(str, arguments), "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        cli.run(eval.main)
    assert stop.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]
