"""Real data: DailyDialog equals the output of the authors' pipeline, and errors name the file and the line."""

import gzip
import json
import lzma
import os
import random
import zipfile
from collections import Counter
from pathlib import Path

import pytest

import data
from data import dailydialog, lamp, metaicl, prepared, soda, text
from minccm.io.tokenizer import Tokenizer
from minccm.methods import get_method
from minccm.sequence import build_sequence, encode_sample
from tests.conftest import ROOT, oracle

RECORDED = oracle("dialog") / "dailydialog.json"
RAW = Path(os.environ.get("MINCCM_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def prepare(monkeypatch, capsys, tmp_path):
    """Runs `python -m data.NAME`; returns (exit status, printed text, the folder)."""

    def call(module, path, *more):
        name, folder = module.__name__.removeprefix("data."), tmp_path / "prepared"
        monkeypatch.setattr("sys.argv", ["prepare", str(path), "--out", str(folder), *map(str, more)])
        status = 0
        try:
            prepared.main(module.prepare, module.__doc__, name)
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err.split("\r")[-1], folder

    return call


@pytest.fixture(scope="module")
def recorded():
    if not RECORDED.is_file() or not (RAW / "dailydialog").is_dir():
        pytest.skip("no recorded DailyDialog, or none of its files: set MINCCM_ORACLE and MINCCM_DATA")
    return json.loads(RECORDED.read_text()), Tokenizer(RAW / "llama" / "tokenizer.model")


def test_dailydialog_is_the_authors(recorded, prepare):
    """Cleaned turns, tokens, how many dialogues and tokens by time step, and the sequences of every recorded case."""
    expected, tokenizer = recorded
    status, printed, folder = prepare(dailydialog, RAW / "dailydialog", "--tokenizer", RAW / "llama")
    assert status == 0, printed
    assert tokenizer.after(dailydialog.SEPARATOR) == expected["sep_token"]
    for case in expected["tokenizer"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
    train, validation = (len(prepared.open_split(folder, split)[1]) for split in ("train", "validation"))
    assert train + validation == expected["train_dialogs"]
    for case in expected["preprocess"]:
        assert [dailydialog.clean(turn) for turn in case["raw"]] == case["clean"]
        assert [tokenizer.encode(turn) for turn in case["clean"]] == case["tokens"]

    samples = {int(t): data.at_step(str(folder), "test", int(t), 0) for t in expected["eval_dialogs"]}
    between = len(expected["sep_token"])
    for t, of_step in samples.items():
        counts = Counter(dialogs=len(of_step))
        for sample in of_step:
            contexts, ((input, output),), _ = encode_sample(tokenizer, sample)
            in_contexts = sum(map(len, contexts)) - 1  # the authors count neither BOS, EOS nor separators
            counts["context_tokens"] += in_contexts - between * (len(contexts) - 1)
            counts["input_tokens"] += len(input) - 2 * between
            counts["target_tokens"] += len(output) - 1
        assert len(of_step) == expected["eval_dialogs"][str(t)]
        assert counts == expected["eval_tokens"][str(t)]
    for case in expected["cases"]:
        contexts, questions, _ = encode_sample(tokenizer, samples[case["time_step"]][case["index"]])
        n, size = len(expected["comp_token"]), tokenizer.vocab_size
        sequence = build_sequence(get_method("ccm-concat"), n, size, contexts, questions)
        assert sequence.tokens.tolist() == case["input_ids"] + case["output_ids"]


# The others, on small files of the same form.


def write(path: Path, *records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def soda_folder(folder: Path) -> Path:
    turns = [f"This is turn {i} ." for i in range(9)]
    write(folder / "train.jsonl", *[{"dialogue": turns[: 2 + i % 8], "head": "x"} for i in range(80)])
    write(folder / "valid.jsonl", *[{"dialogue": turns}] * 3)
    return folder


def metaicl_folder(folder: Path) -> Path:
    def example(task, i):
        return {
            "task": task,
            "input": f" {task} number {i} ",
            "output": "yes" if i % 2 else "no",
            "options": ["no", "yes"],
        }

    for task in ("piqa", "emo"):
        write(folder / task / f"{task}_16384_100_train.jsonl", *[example(task, i) for i in range(60)])
    for part, count in (("16_100_test", 5), ("16_100_train", 16), ("16_13_train", 16)):
        write(folder / "dream" / f"dream_{part}.jsonl", *[example("dream", i) for i in range(count)])
    return folder


def lamp_folder(folder: Path) -> Path:
    asks = "Which category does this article relate to? categories: [sports, food & drink] article: It rained."
    for part, count in (("train", 30), ("dev", 4)):
        profile = [{"id": str(i), "text": f"Story {i}", "category": "sports", "title": "x"} for i in range(20)]
        questions = [{"id": f"{part}{i}", "input": asks, "profile": profile} for i in range(count)]
        golds = [{"id": f"{part}{i}", "output": "sports"} for i in range(count)]
        (folder / f"{part}_questions.json").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}_questions.json").write_text(json.dumps(questions, indent=1))
        (folder / f"{part}_outputs.json").write_text(json.dumps({"task": "LaMP_2", "golds": golds}))
    return folder


def daily_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 45), ("validation", 3), ("test", 3)):
        line = "".join(f"Hello , I am {i} . __eou__ " for i in range(15))
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            archive.writestr(f"{part}/dialogues_{part}.txt", (line + "\n") * count)
    return folder


def text_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    words = [f"word{i}" + ("\n" if i % 50 == 0 else "") for i in range(64 * 200)]
    (folder / "book.txt").write_text(" ".join(words))
    return folder


def test_samples_are_formatted_as_in_the_paper(prepare, tmp_path):
    """Each dataset's parts, separators and options; time step t has t contexts; training draws from every record."""
    status, printed, folder = prepare(soda, soda_folder(tmp_path / "soda"))
    assert status == 0 and "fewer than 3 turns" in printed
    (sample, *_) = data.at_step(str(folder), "test", 7, 0)
    assert sample["contexts"] == [f"This is turn {i}." for i in range(7)] and sample["target"] == "This is turn 8."

    status, printed, folder = prepare(metaicl, metaicl_folder(tmp_path / "metaicl"))
    assert status == 0 and "2 train tasks, 1 test tasks" in printed and "83 tasks are missing" in printed
    samples = data.at_step(str(folder), "test", 2, 0)
    assert [sample["contexts"] for sample in samples] == [
        ["Input: dream number 0 Output: no", "Input: dream number 1 Output: yes"]
    ] * 5
    assert samples[0]["input"] == "Input: dream number 0 Output:" and samples[0]["options"] == ["no", "yes"]
    source = data.source(str(folder), "train")
    for sample in map(source, range(100)):
        task = sample["task"]
        assert 1 <= len(set(sample["contexts"])) == len(sample["contexts"]) <= 16
        assert all(f" {task} " in context for context in sample["contexts"])
        assert not any(context.startswith(sample["input"] + " ") for context in sample["contexts"])

    status, printed, folder = prepare(lamp, lamp_folder(tmp_path / "lamp"))
    (sample, *_) = data.at_step(str(folder), "test", 2, 0)
    one, two = sample["contexts"]
    assert one.startswith('Instruction: the category for the article: "Story') and one.endswith('" is "sports"')
    assert two.startswith(', and the category for the article: "Story')
    assert sample["input"].startswith(". Which category") and sample["input"].endswith("\nInput: It rained.\nOutput:")
    assert sample["target"] in sample["options"] and len(sample["options"]) == 15

    status, printed, folder = prepare(text, text_folder(tmp_path / "text"))
    sample = data.source(str(folder), "train")(0)
    (number, *_), *_ = [[int(word.removeprefix("word")) for word in part.split()] for part in sample["contexts"]]
    read = " ".join([*sample["contexts"], sample["input"], sample["target"]]).split()
    assert read == [f"word{number + i}" for i in range(len(read))]  # no word is missing between the parts


def test_a_mixture_takes_turns():
    """`unified` is metaicl and soda."""
    assert data.expand("unified,dialog") == ["metaicl", "soda", "dialog"]


SPOILT = [  # dataset, folder, file, line to spoil, its new content, the error
    (soda, soda_folder, "train.jsonl", 7, '{"dialogue": [1, 2]}', "line 7: 'dialogue' is missing"),
    (soda, soda_folder, "train.jsonl", 7, '{"dialogue": ["a"', "line 7: not JSON"),
    (soda, soda_folder, "train.jsonl", 7, "\udcff", "line 7: this is not UTF-8"),
    (metaicl, metaicl_folder, "emo/emo_16384_100_train.jsonl", 3, '{"input": "x", "output": "y"}', "line 3: the field"),
    (metaicl, metaicl_folder, "emo/emo_16384_100_train.jsonl", 3, "[]", "line 3: a record must be a JSON object"),
    (metaicl, metaicl_folder, "dream/dream_16_100_test.jsonl", 2,
     '{"input": "x", "output": "y", "options": ["z"]}', "line 2: 'output' is not among"),
    (text, text_folder, "book.txt", 5, "\udcff", "line 5: this is not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize("module,make,file,line,instead,says", SPOILT)
def test_a_bad_record_is_named_or_skipped(prepare, tmp_path, module, make, file, line, instead, says):
    """A bad record is an error with file and line; with --skip-bad it is left out, counted and printed."""
    path = make(tmp_path / "raw") / file
    lines = path.read_text().split("\n")
    lines[line - 1] = instead
    path.write_text("\n".join(lines), errors="surrogateescape")
    status, printed, folder = prepare(module, tmp_path / "raw")
    assert status == 2 and f"{path}, {says}" in printed and "Traceback" not in printed
    assert not folder.exists() or not list(folder.iterdir())  # no unfinished file is left
    status, printed, _ = prepare(module, tmp_path / "raw", "--skip-bad")
    assert status == 0 and "bad: 1" in printed and f"{path}, {says}" in printed


def test_a_bad_dialogue_or_question_is_named_or_skipped(prepare, tmp_path):
    """The same within zips, and in a JSON list."""
    raw = daily_folder(tmp_path / "daily")
    with zipfile.ZipFile(raw / "train.zip", "w") as archive:
        archive.writestr("train/dialogues_train.txt", "a __eou__ b __eou__ c __eou__\n" * 30 + "no dialogue\n")
    status, printed, _ = prepare(dailydialog, raw)
    assert status == 2 and f"{raw / 'train.zip'}, line 31: no turn ends in __eou__" in printed
    assert prepare(dailydialog, raw, "--skip-bad")[0] == 0

    raw = lamp_folder(tmp_path / "lamp")
    questions = json.loads((raw / "train_questions.json").read_text())
    del questions[4]["profile"][2]["category"]
    (raw / "train_questions.json").write_text(json.dumps(questions))
    status, printed, _ = prepare(lamp, raw)
    assert status == 2 and "question 5: profile: the field 'category' is missing" in printed
    assert prepare(lamp, raw, "--skip-bad")[0] == 0
    (raw / "train_questions.json").write_text('[\n{"id": 1,\n}]')
    status, printed, _ = prepare(lamp, raw)
    assert status == 2 and "train_questions.json, question 1, from line 2: not JSON" in printed


MAKERS = (
    (dailydialog, daily_folder),
    (soda, soda_folder),
    (metaicl, metaicl_folder),
    (lamp, lamp_folder),
    (text, text_folder),
)


@pytest.mark.parametrize("module,make", MAKERS)
def test_empty_foreign_and_missing_files(prepare, tmp_path, module, make):
    """An empty file, a folder of another dataset, an empty and a missing folder: each is an error of one line."""
    raw = make(tmp_path / "raw")
    for other, elsewhere in MAKERS:
        if other is not module:
            status, printed, _ = prepare(module, elsewhere(tmp_path / "other" / other.__name__))
            assert status == 2 and printed.startswith("error: ") and printed.count("\n") == 1, printed
    (tmp_path / "nothing").mkdir()
    for path in (tmp_path / "nothing", tmp_path / "nowhere"):
        status, printed, _ = prepare(module, path)
        assert status == 2 and str(path) in printed and "Traceback" not in printed
    for path in sorted(raw.rglob("*")):
        if path.is_file():
            whole = path.read_bytes()
            path.write_bytes(b"")
            status, printed, _ = prepare(module, raw)
            assert status == 2 and path.name in printed and printed.count("\n") == 1, printed
            path.write_bytes(whole)
    assert prepare(module, raw)[0] == 0


def test_compressed_and_cut_off(prepare, tmp_path):
    """.xz and .gz are read like plain files; the error for a truncated one says that it is cut off."""
    raw = soda_folder(tmp_path)
    plain = (raw / "train.jsonl").read_bytes()
    (raw / "train.jsonl").unlink()
    for suffix, packed in ((".xz", lzma.compress(plain)), (".gz", gzip.compress(plain))):
        path = raw / f"train.jsonl{suffix}"
        path.write_bytes(packed)
        assert prepare(soda, raw)[0] == 0
        path.write_bytes(packed[: len(packed) // 2])
        status, printed, _ = prepare(soda, raw)
        assert status == 2 and f"{path}, after line" in printed and "cut off" in printed
        path.unlink()


def test_one_bad_record_among_many(prepare, tmp_path):
    """A bad last line of a long file is found; a prepared record is read from its place without loading the file."""
    good = json.dumps({"dialogue": ["Hello.", "Hi.", "Bye."]})
    path = tmp_path / "many.jsonl"
    path.write_text((good + "\n") * 250000 + '{"dialogue": "Hello."}\n')
    status, printed, _ = prepare(soda, path)
    assert status == 2 and f"{path}, line 250001: 'dialogue'" in printed
    status, printed, folder = prepare(soda, path, "--skip-bad")
    assert status == 0 and "bad: 1" in printed
    lines = prepared.open_split(folder, "train")[1]
    assert len(lines) == 235600 and lines[random.randrange(235600)] == {"turns": ["Hello.", "Hi.", "Bye."]}


def test_unprepared_and_broken(tmp_path):
    """The error for a dataset that is not prepared yet names the command; for a broken folder it is one line."""
    if not prepared.folder_of("lamp"):
        with pytest.raises(ValueError, match="python -m data.lamp PATH"):
            data.source("lamp", "train")
    (tmp_path / "dataset.json").write_text('{"dataset": "soda"}')
    with pytest.raises(ValueError, match="prepare it again"):
        data.source(str(tmp_path), "train")


def test_limits_in_tokens(prepare, tmp_path):
    """Too long parts are left out: a demonstration, all beyond 1,024 tokens, profiles, dialogues (4 bytes a token)."""
    raw = metaicl_folder(tmp_path / "metaicl")
    long = [
        {"task": "dream", "input": "x" * size, "output": "yes", "options": ["no", "yes"]} for size in (2000, *[780] * 8)
    ]
    write(raw / "dream" / "dream_16_100_train.jsonl", *long)
    status, printed, folder = prepare(metaicl, raw)
    assert status == 0 and "1 examples of more than 256 tokens" in printed
    (sample, *_) = data.at_step(str(folder), "test", 16, 0)
    assert len(sample["contexts"]) == 5  # of 195 + 2 + 2 + 1 tokens each; the question itself has 10

    raw = lamp_folder(tmp_path / "lamp")
    questions = json.loads((raw / "train_questions.json").read_text())
    for number, entries in ((0, 2), (1, 3)):  # of 20: a tenth may go, more may not
        for entry in questions[number]["profile"][:entries]:
            entry["text"] = "x" * 400
    (raw / "train_questions.json").write_text(json.dumps(questions))
    status, printed, folder = prepare(lamp, raw)
    assert status == 0 and "left out: 1 train: more than a tenth of the profile" in printed
    assert len(prepared.open_split(folder, "train")[1][0]["entries"]) == 18

    path = write(
        tmp_path / "soda.jsonl",
        *[{"dialogue": ["Hi."] * 4}] * 200,
        {"dialogue": ["x" * 516, "a", "b"]},
        {"dialogue": ["x" * 420] * 5},
    )
    status, printed, _ = prepare(soda, path)
    assert "1 train: a turn of more than 128 tokens" in printed and "1 train: more than 512 tokens" in printed
