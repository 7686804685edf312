"""The reproduction runs from nothing to its table at toy size, and what is done is not done again."""

import json

import pytest

import reproduce
from data import dialog
from minccm import cli
from tests.test_real_data import daily_folder


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # also on a machine that is busy with other tests

    def run(*more) -> tuple[int, str]:
        monkeypatch.setattr(
            "sys.argv", ["reproduce.py", *map(str, (tmp_path / "data", "--out", tmp_path / "out", *more))]
        )
        status = 0
        try:
            cli.run(reproduce.main)
        except SystemExit as stop:
            status = stop.code
        printed = capfd.readouterr()
        return status, printed.out + printed.err

    return run


def test_from_nothing_to_the_table(call, tmp_path):
    """Every stage at toy size; a second call shows the same table and trains nothing; other settings are refused."""
    raw = tmp_path / "data"
    daily_folder(raw / "dailydialog")
    made = [dialog.sample("train", index, 0) for index in range(120)]
    turns = [[*sample["contexts"], sample["input"], sample["target"]] for sample in made]
    (raw / "dialogs.jsonl").write_text("".join(json.dumps({"dialog": one}) + "\n" for one in turns))
    (raw / "book.txt").write_text("\n".join(turn for one in turns for turn in one))
    wanted = "--scale", "toy", "--seeds", "0", "--methods", "ccm-merge"
    status, printed = call(*wanted)
    assert status == 0, printed
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["method"] for row in rows} == {"none", "full", "ccm-merge"}
    assert {row["time_step"] for row in rows} == {1, 2, 4, 8, 12}
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000 and "| ccm-merge |" in printed
    status, again = call(*wanted)
    assert status == 0 and "python train.py" not in again and "| ccm-merge |" in again
    status, printed = call(*wanted, "--steps", "0.5")
    assert status == 2 and "base was made by another command" in printed


def test_a_failing_stage_says_why(call, tmp_path):
    """With the last line of its log, and where that is."""
    (tmp_path / "data").mkdir()
    status, printed = call("--scale", "toy")
    assert status == 2 and "books failed" in printed and "books.log" in printed and "holds no .txt files" in printed
