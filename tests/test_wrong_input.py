"""What a user can get wrong is answered by one clear line and a non-zero exit status, never by a traceback."""

import io
import json
import shutil

import pytest

import chat
import eval
import train
from minccm import cli
from minccm.checkpoint import load_model, save_adapter
from minccm.layout import check_length, lay_out
from minccm.methods import get_method


@pytest.fixture
def complains(monkeypatch, capsys):
    def check(script, *arguments, says):
        monkeypatch.setattr("sys.argv", ["script", *map(str, arguments), "--device", "cpu"])
        with pytest.raises(SystemExit) as stop:
            cli.run(script.main)
        error = capsys.readouterr().err.strip().split("\r")[-1].splitlines()[-1]
        assert stop.value.code == 2 and error.startswith("error: "), error
        for part in says:
            assert part in error

    return check


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the shipped base model that a test may spoil."""
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        shutil.copy(tiny / name, tmp_path)
    return tmp_path


def test_unknown_names(complains, tmp_path):
    """An unknown method or dataset is answered with those there are."""
    complains(train, "--method", "ccm-magic", "--out", tmp_path, says=["ccm-magic", "ccm-concat", "ccm-merge"])
    complains(train, "--data", "nonsense", "--out", tmp_path, says=["nonsense", "dialog", "icl", "persona"])
    complains(eval, "--data", "nonsense", says=["nonsense", "dialog"])
    complains(chat, "--method", "ccm-magic", says=["ccm-magic", "ccm-concat"])


def test_wrong_adapter(complains, tiny, copy):
    """An adapter for another base or another method, or none at all."""
    raw = json.loads((copy / "config.json").read_text()) | {"rms_norm_eps": 0.1}
    (copy / "config.json").write_text(json.dumps(raw))
    complains(chat, "--model", copy, "--adapter", tiny / "ccm-concat", says=["another base"])
    complains(chat, "--adapter", tiny / "ccm-merge", "--method", "ccm-concat", says=["ccm-merge", "not for ccm-concat"])
    complains(chat, "--adapter", copy, says=["holds no adapter"])
    complains(chat, "--adapter", copy / "nowhere", says=["is not there"])


def test_spoilt_adapter(complains, tiny, tmp_path):
    """A truncated adapter, a missing tensor, a broken adapter.json."""
    shutil.copytree(tiny / "ccm-concat", tmp_path / "a")
    whole = (tmp_path / "a" / "adapter.safetensors").read_bytes()
    (tmp_path / "a" / "adapter.safetensors").write_bytes(whole[: len(whole) // 2])
    complains(chat, "--adapter", tmp_path / "a", says=["adapter.safetensors", "truncated"])
    (tmp_path / "a" / "adapter.safetensors").unlink()
    complains(chat, "--adapter", tmp_path / "a", says=["adapter.safetensors", "missing"])
    (tmp_path / "a" / "adapter.json").write_text('{"method": 3}')
    complains(chat, "--adapter", tmp_path / "a", says=["adapter.json", "method"])


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.5, 0.999])
def test_truncated_weights(complains, copy, share):
    """A weights file cut off anywhere."""
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: int(share * len(whole))])
    complains(eval, "--model", copy, says=["model.safetensors", "truncated"])


def test_missing_files(complains, copy):
    """Missing weights, tokenizer, config, model."""
    (copy / "model.safetensors").unlink()
    complains(eval, "--model", copy, says=["holds no weights"])
    (copy / "config.json").write_text("{}")
    complains(eval, "--model", copy, says=["config.json", "num_attention_heads"])
    complains(eval, "--model", copy / "nowhere", says=["holds no model"])


def test_too_long(complains, copy, monkeypatch, tmp_path):
    """A prompt or a sample longer than the model's positions."""
    raw = json.loads((copy / "config.json").read_text()) | {"max_position_embeddings": 8}
    (copy / "config.json").write_text(json.dumps(raw))
    save_adapter(copy / "adapter", adapted(copy), get_method("ccm-concat"), 2)
    complains(eval, "--model", copy, "--samples", 2, says=["longer", "8 positions"])
    complains(train, "--model", copy, "--out", tmp_path / "out", says=["longer", "8 positions"])
    monkeypatch.setattr("sys.stdin", io.StringIO("a long story " * 10))
    complains(chat, "--model", copy, "--adapter", copy / "adapter", says=["longer", "8 positions"])


def test_longest_sample():
    """A sample may fill the model's positions to the last, and not one more; COMP tokens take none of their own."""
    layout = lay_out(get_method("ccm-concat"), 2, 100, [[5] * 4], [6] * 3, [7, 2])  # positions 0 to 8
    check_length(layout, 9)
    with pytest.raises(ValueError, match="9 tokens"):
        check_length(layout, 8)


def adapted(folder):
    model = load_model(folder)
    model.add_adapter(n=2)
    return model


def test_unwritable_output(complains, tmp_path):
    """An output folder that cannot be written."""
    (tmp_path / "file").write_text("")
    complains(train, "--out", tmp_path / "file" / "out", says=["cannot be written"])


def test_impossible_settings(complains, tmp_path):
    """Settings with which nothing can be trained, and nothing to resume."""
    complains(train, "--batch", 0, "--out", tmp_path, says=["--batch"])
    complains(train, "--method", "none", "--out", tmp_path, says=["nothing to train"])
    complains(train, "--resume", "--out", tmp_path, says=["nothing to resume"])
    complains(train, "--turns", 2, "--out", tmp_path, says=["--turns", "as ccm-merge, not ccm-concat"])
    merge = "--method", "ccm-merge", "--n", 4, "--out", tmp_path
    complains(train, *merge, "--turns", 5, says=["--turns 5", "up to 4"])
    complains(train, *merge, "--turns", 2, "--recurrent", says=["leave --recurrent out"])
    other = cli.TINY / "ccm-merge"
    complains(train, "--adapter", other, "--n", 2, "--out", tmp_path, says=[f"{other}", "more than --n 2"])


@pytest.mark.parametrize(
    "line, says",
    [
        ("{", "line 2"),
        ('{"contexts": [], "input": "a"}', "'target' is missing"),
        ('{"contexts": "a", "input": "a", "target": "b"}', "'contexts' is to be a list of strings"),
        ('{"contexts": ["a"], "input": "a", "target": "b", "options": ["c"]}', "'target' is not among 'options'"),
        ('{"contexts": ["a"], "input": "a", "target": "b", "answer": "c"}', "'answer' is not part of 'target'"),
        ('{"contexts": ["a"], "input": "a", "target": "b", "answers": [1]}', "'answers' is to be a list of numbers"),
        ('{"contexts": [], "input": "a", "target": "b", "questions": [["a", ""]]}', "'questions' is to be a list of"),
        ("[]", "a sample is a JSON object"),
        ("\udcff", "line 2"),
    ],
)
def test_bad_data_line(complains, tmp_path, line, says):
    """A bad line of a data file is named by file, line and what is wrong with it."""
    path = tmp_path / "mine.jsonl"
    good = '{"contexts": ["a", "b"], "input": "c", "target": "d"}'
    path.write_text(f"{good}\n{line}\n{good}\n", errors="surrogateescape")
    complains(train, "--data", path, "--out", tmp_path / "out", says=["mine.jsonl, line 2", says])
