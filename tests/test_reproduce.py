"""The reproduction runs from nothing to its table at toy size, and a finished stage does not run again."""

import json

from data import dialog
from experiments import books, reproduce
from tests.test_real_data import daily_folder


def dialogues(count: int) -> list[list[str]]:
    """The turns of some generated dialogues."""
    samples = [dialog.sample("train", index, 0) for index in range(count)]
    return [[*sample["contexts"], sample["input"], sample["target"]] for sample in samples]


def test_from_nothing_to_the_table(call, tmp_path):
    """All stages at toy size. A second call shows the table and trains nothing; other settings are refused."""
    raw, out = tmp_path / "data", tmp_path / "out"
    daily_folder(raw / "dailydialog")
    turns = dialogues(120)
    (raw / "dialogs.jsonl").write_text("".join(json.dumps({"dialog": one}) + "\n" for one in turns))
    (raw / "book.txt").write_text("\n".join(turn for one in turns for turn in one))
    wanted = raw, "--out", out, "--scale", "toy", "--seeds", "0", "--methods", "ccm-merge"
    status, printed = call(reproduce, *wanted)
    assert status == 0, printed
    rows = json.loads((out / "results.json").read_text())
    assert {row["method"] for row in rows} == {"none", "full", "ccm-merge"}
    assert {row["time_step"] for row in rows} == {1, 2, 4, 8, 12}
    assert (out / "results.png").stat().st_size > 1000 and "| ccm-merge |" in printed
    status, again = call(reproduce, *wanted)
    assert status == 0 and "python train.py" not in again and "| ccm-merge |" in again
    status, printed = call(reproduce, *wanted, "--steps", "0.5")
    assert status == 2 and "base was made by another command" in printed


def test_a_failed_stage(call, tmp_path):
    """The error has the last line of its log, and the log's name."""
    (tmp_path / "data").mkdir()
    status, printed = call(reproduce, tmp_path / "data", "--out", tmp_path / "out", "--scale", "toy")
    assert status == 2 and "books failed" in printed and "books.log" in printed and "holds no .txt files" in printed


def test_streaming_a_book(call, tmp_path):
    """A base model and adapters of one text, which then stream another. A second call shows the table only."""
    for name in ("train", "book"):
        (tmp_path / f"{name}.txt").write_text("\n".join(turn for one in dialogues(200) for turn in one))
    shape = "--shape=--dim 16 --ffn 24 --layers 1 --heads 2 --vocab 600"
    sizes = ["--steps", 2, "--batch", 2, "--adapter-steps", 2, "--length", 150, "--row-tokens", 300, "--r", 4]
    arguments = [tmp_path / "train.txt", tmp_path / "book.txt", "--out", tmp_path / "out", shape, *sizes]
    arguments += ["--tokens", 300, "--window", 64, "--device", "cpu", "--more=--device cpu"]
    status, printed = call(books, *arguments)
    assert status == 0, printed
    rows = json.loads((tmp_path / "out" / "book.json").read_text())
    assert [row["method"] for row in rows] == ["sliding window", "ccm-concat, n = 2", "ccm-merge, n = 8"]
    assert [row["tokens"] for row in rows] == [300] * 3 and all("below_window" in row for row in rows[1:])
    status, again = call(books, *arguments)
    assert status == 0 and "python -m" not in again and "step 0" not in again and "sliding window" in again
