"""What a user can get wrong is answered by one clear line and exit status 2, never by a traceback.

The table of options is made from the scripts' own parsers, so a new option is in it. All scripts run in this process.
"""

import argparse
import importlib
import inspect
import io
import json
import shutil
import sys
import time
from pathlib import Path

import pytest

import chat
import eval
import train
from data.encode import check_length
from minccm.io import options as command_line
from minccm.io.adapters import save_adapter
from minccm.io.options import TINY, HelpFormatter, next_command
from minccm.io.untrusted import MAX_ERROR
from minccm.io.weights import load_model
from minccm.methods import get_method
from minccm.sequence import EncodedSample
from tests.conftest import ROOT
from tests.test_training import micro  # noqa: F401  a fixture

EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("[!_]*.py") if path.stem != "common")
SCRIPTS = ["train", "eval", "chat", *(f"experiments.{name}" for name in EXPERIMENTS)]


@pytest.fixture
def complains(monkeypatch, capsys):
    """Checks that a script ends with one line on an error, which contains each part of `says`."""

    def check(script, *arguments, says) -> None:
        monkeypatch.setattr("sys.argv", ["script.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command_line.run(script.main)
        printed = capsys.readouterr().err
        shown = [line.split("\r")[-1] for line in printed.split("\n") if line.split("\r")[-1].strip()]
        assert stop.value.code == 2, (arguments, shown)
        error = shown[-1]
        assert len(shown) == 1 or "\r" in printed, shown  # there may be a progress bar before
        assert error.startswith("error: ") and len(error) < MAX_ERROR + 20 and error.isprintable(), error
        for part in says:
            assert part in error, (arguments, error)

    return check


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped base model that a test may spoil."""
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        shutil.copy(TINY / name, tmp_path)
    return tmp_path


# --------------------------------------------------------------------------------------- every option of every script


class Captured(Exception):
    pass


def parser_of(script, monkeypatch) -> argparse.ArgumentParser:
    """The parser that a script makes."""

    def capture(self, *arguments, **more):
        raise Captured(self)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", capture)
        patch.setattr("sys.argv", ["script.py"])
        with pytest.raises(Captured) as captured:
            script.main()
    return captured.value.args[0]


def wrong_values(action: argparse.Action) -> list[str]:
    """Values that an option must refuse: too small, too large, not finite, of another type."""
    if action.nargs == 0:
        return ["1"]
    if action.choices:
        return ["", "nonsense", "0"]
    kind = getattr(action.type, "__qualname__", "")
    if kind in ("name", "output_file"):
        return ["", " ", "a\nb", "a\0b", "\x1b[31m", "\ud83d"]
    if kind not in ("whole.<locals>.parse", "real.<locals>.parse"):
        return []
    limits = inspect.getclosurevars(action.type).nonlocals
    low, high = limits["low"], limits["high"]
    values = [
        "",
        "word",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-1e400",
        "1" + "0" * 30,
        "-1" + "0" * 5000,
        "1 2",
        "1,5",
        "0x1",
    ]
    if kind.startswith("whole"):
        return values + [str(low - 1), str(high + 1), "1.5", "1e3", "True", "1_0", "\u0661" if low > 1 else "\u00b2"]
    values += [f"{high * 1.01 + 1e-9!r}", f"{low - 1e-9!r}", f"{low - 1!r}"]
    return values + ([repr(low), "-0.0"] if limits["above"] else [])


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option(name, monkeypatch, complains):
    """Each value that is too small, too large, not finite or of another type is refused; the line names the option."""
    script = importlib.import_module(name)
    parser = parser_of(script, monkeypatch)
    assert isinstance(parser, command_line.OneLineParser)
    for action in parser._actions:
        option = action.option_strings[-1] if action.option_strings else None
        for value in wrong_values(action) if option and option != "--help" else []:
            complains(script, f"{option}={value}", says=[f"argument {option}"])
    complains(script, "--nonsense", says=[])
    complains(script, "\x1b[31m\n", "--no\nsense", says=[])


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_has_limits(name, monkeypatch):
    """An option that takes a number has one of the checked types, and so its limits."""
    for action in parser_of(importlib.import_module(name), monkeypatch)._actions:
        kind = getattr(action.type, "__qualname__", "")
        assert action.type not in (int, float), action.option_strings
        default = action.default[0] if isinstance(action.default, list) else action.default
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert kind in ("whole.<locals>.parse", "real.<locals>.parse"), action.option_strings


def test_limits_are_within_range():
    """The limits themselves are accepted, in every way to write a number."""
    for kind, texts in (
        (command_line.whole(-3, 7), {"-3": -3, "7": 7, "+7": 7, " 2 ": 2, "007": 7}),
        (command_line.real(0, 2), {"0": 0.0, "2": 2.0, "1e-300": 1e-300, "-0.0": 0.0, ".5": 0.5}),
        (command_line.real(0, 2, above=True), {"2": 2.0, "5e-324": 5e-324}),
    ):
        assert {text: kind(text) for text in texts} == texts


@pytest.mark.parametrize("name", ["train", "eval", "chat"])
def test_help(name, monkeypatch, capsys):
    """--help explains every option, and shows defaults where there are some."""
    monkeypatch.setattr("sys.argv", ["script.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main()
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--seed" in text and "(default: None)" not in text
    parser = parser_of(importlib.import_module(name), monkeypatch)
    assert parser.formatter_class is HelpFormatter and all(action.help for action in parser._actions)


ROWS = {  # a command line, and what its error says
    "huge n": (train, ["--n", "100000000"], ["--n", "from 1 to 1,024"]),
    "huge r": (train, ["--r", "1000000000"], ["--r", "from 1 to 4,096"]),
    "warm-up has no option": (train, ["--warmup", "inf"], ["--warmup"]),
    "dropout nan": (train, ["--dropout", "nan"], ["--dropout", "from 0 to 0.99"]),
    "device meta": (train, ["--device", "meta"], ["--device meta", "try --device cpu"]),
    "device of chat": (chat, ["--device", "meta"], ["--device meta", "try --device cpu"]),
    "device of eval": (eval, ["--device", "cuda:-1"], ["--device cuda:-1", "try --device cpu"]),
    "no such GPU": (train, ["--device", "cuda:77"], ["--device cuda:77", "try --device cpu"]),
    "no such device": (train, ["--device", "nonsense"], ["--device nonsense", "try --device cpu"]),
    "small temperature": (chat, ["--temperature", "1e-40"], ["--temperature", "at least 0.01"]),
    "small top-p": (chat, ["--top-p", "1e-300"], ["--top-p", "from 1e-06 to 1"]),
    "huge lr": (train, ["--lr", "1e38"], ["--lr", "from 0 to 10"]),
    "negative alpha": (train, ["--alpha", "-1"], ["--alpha", "above 0"]),
    "negative distill": (train, ["--distill", "-1"], ["--distill", "from 0"]),
    "negative validate": (train, ["--validate", "-1"], ["--validate", "from 0"]),
    "negative patience": (train, ["--patience", "-1"], ["--patience", "from 0"]),
    "patience alone": (train, ["--patience", "1"], ["--patience needs --validate"]),
    "empty adapter": (train, ["--adapter", ""], ["--adapter", "must be a name"]),
    "empty adapter of chat": (chat, ["--adapter", ""], ["--adapter", "must be a name"]),
    "empty adapter of eval": (eval, ["--adapter", ""], ["--adapter", "must be a name"]),
    "no method": (train, ["--method", "ccm-magic"], ["ccm-magic", "ccm-concat", "ccm-merge"]),
    "no method of chat": (chat, ["--method", "ccm-magic"], ["ccm-magic", "ccm-concat"]),
    "no method of eval": (eval, ["--method", "ccm-magic,full"], ["ccm-magic", "ccm-concat"]),
    "no method file": (train, ["--method", "nowhere.py"], ["--method nowhere.py", "no such file"]),
    "no data": (train, ["--data", "nonsense"], ["nonsense", "dialog", "icl", "persona"]),
    "no data of eval": (eval, ["--data", "nonsense"], ["nonsense", "dialog"]),
    "empty part of data": (train, ["--data", "dialog,"], ["no dataset or file ''"]),
    "not prepared": (train, ["--data", "metaicl"], ["python -m data.metaicl"]),
    "no model": (train, ["--model", "nowhere"], ["nowhere"]),
    "no model of eval": (eval, ["--model", "nowhere"], ["nowhere"]),
    "no model of chat": (chat, ["--model", "nowhere"], ["nowhere"]),
    "no adapter": (chat, ["--adapter", "nowhere"], ["nowhere", "no adapter"]),
    "no adapter of train": (train, ["--adapter", "nowhere"], ["nowhere", "no adapter"]),
    "no adapter of eval": (eval, ["--adapter", "nowhere"], ["nowhere", "no adapter"]),
    "no step 1": (train, ["--init", "nowhere"], ["nowhere", "no adapter"]),
    "not a step 1": (train, ["--init", TINY / "ccm-concat"], ["ccm-concat", "is not a step-1 adapter"]),
    "no template": (train, ["--template", "nonsense"], ["nonsense", "chatml"]),
    "no fast": (train, ["--fast", "warp"], ["--fast 'warp'", "compile"]),
    "another method": (chat, ["--adapter", TINY / "ccm-merge", "--method", "ccm-concat"], ["not for ccm-concat"]),
    "another n": (eval, ["--adapter", TINY / "ccm-merge", "--n", "3"], ["not 3"]),
    "nothing to train": (train, ["--method", "none"], ["nothing to train"]),
    "not a merging method": (train, ["--merge-curriculum", "2"], ["as ccm-merge, not ccm-concat"]),
    "too many places": (train, ["--method", "ccm-merge", "--n", "4", "--merge-curriculum", "5"], ["1 to n = 4", "5"]),
    "narrower": (train, ["--adapter", TINY / "ccm-merge", "--n", "2"], ["ccm-merge", "more than --n 2"]),
    "alone with fsdp": (train, ["--fast", "fsdp"], ["--fast fsdp", "torchrun"]),
    "no script": (chat, ["--script", "nowhere.txt"], ["nowhere.txt"]),
    "record alone": (chat, ["--record", "a.svg"], ["--record needs --script"]),
    "no such time step": (eval, ["--data", "{data}", "--time-steps", "4"], ["no test samples with 4 contexts"]),
    "a folder as JSON": (train, ["--json", "."], ["--json", "is a folder"]),
    "not a picture": (eval, ["--data", "{data}", "--time-steps", "1", "--picture", "a.xyz"], ["must end with .png"]),
}


@pytest.mark.parametrize("case", ROWS)
def test_command_lines(case, complains, tmp_path, monkeypatch):
    """Settings that do not exist or do not fit together."""
    script, arguments, says = ROWS[case]
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text(json.dumps({"contexts": ["a"], "input": "b", "target": "c"}))
    arguments = ["data.jsonl" if argument == "{data}" else argument for argument in arguments]
    complains(script, *arguments, says=says)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "data.jsonl"]


MINE = "from minccm.methods import Method\nMETHOD = Method('mine', '', "
METHODS = {
    "raises": ("raise RuntimeError('a\\nb')", ["RuntimeError"]),
    "exits": ("import sys; sys.exit(3)", ["SystemExit"]),
    "is no Python": ("def", ["SyntaxError"]),
    "defines nothing": ("", ["does not define METHOD"]),
    "defines something else": ("METHOD = 'ccm-concat'", ["does not define METHOD"]),
    "raises in attends": (MINE + "lambda q, k: q.nonsense)", ["AttributeError"]),
    "attends by a word": (MINE + "lambda q, k: 'yes')", ["mine.py cannot be used: "]),
    "attends by numbers": (MINE + "lambda q, k: k.step)", ["mine.py cannot be used: "]),
    "merges by a word": (MINE + "lambda q, k: k.is_slot, merge_rate=lambda t: 'a')", ["mine.py cannot be used: "]),
    "has a word for its delay": (MINE + "lambda q, k: k.is_slot, merge_rate=lambda t: 1.0, delay='a')", ["TypeError"]),
}


@pytest.mark.parametrize("case", METHODS)
@pytest.mark.parametrize("script", [train, chat])
def test_wrong_method_files(case, script, complains, tmp_path, monkeypatch):
    """A file with a method that cannot be used."""
    text, says = METHODS[case]
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(text)
    complains(script, "--method", "mine.py", "--device", "cpu", says=["--method mine.py cannot be used: ", *says])


def test_the_next_command_is_quoted(monkeypatch):
    """Names with spaces and quotes come back unchanged."""
    import shlex

    monkeypatch.setattr("sys.argv", ["some where/train.py"])
    words = shlex.split(next_command("chat.py", model=None, adapter="it's $HOME", n=2))
    assert words[1:] == ["some where/chat.py", "--adapter", "it's $HOME", "--n", "2"]
    assert Path(words[0]).resolve() == Path(sys.executable).resolve()


# ------------------------------------------------------------------------------------------------- files and folders


def test_wrong_base(complains, copy):
    """An adapter for another base model."""
    raw = json.loads((copy / "config.json").read_text()) | {"rms_norm_eps": 0.1}
    (copy / "config.json").write_text(json.dumps(raw))
    for script in (chat, train, eval):
        complains(script, "--model", copy, "--adapter", TINY / "ccm-concat", says=["another base"])


def test_spoilt_adapter(complains, tmp_path):
    """A truncated adapter, a missing tensor, a broken adapter.json."""
    shutil.copytree(TINY / "ccm-concat", tmp_path / "a")
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
    """Missing weights, tokenizer, config."""
    (copy / "model.safetensors").unlink()
    complains(eval, "--model", copy, says=["no weights"])
    (copy / "tokenizer.model").unlink()
    complains(eval, "--model", copy, says=["tokenizer"])
    (copy / "config.json").write_text("{}")
    complains(eval, "--model", copy, says=["config.json"])


def test_too_long(complains, copy, monkeypatch, tmp_path):
    """A prompt or a sample longer than the model's positions."""
    raw = json.loads((copy / "config.json").read_text()) | {"max_position_embeddings": 8}
    (copy / "config.json").write_text(json.dumps(raw))
    model = load_model(copy)
    model.add_adapter(n=2)
    save_adapter(copy / "adapter", model, get_method("ccm-concat"), 2)
    complains(eval, "--model", copy, "--samples", 2, says=["longer", "8 positions"])
    complains(train, "--model", copy, "--out", tmp_path / "out", says=["longer", "8 positions"])
    monkeypatch.setattr("sys.stdin", io.StringIO("a long story " * 10))
    complains(chat, "--model", copy, "--adapter", copy / "adapter", says=["8 positions"])


def test_longest_sample():
    """A sample may fill the model's positions to the last, and not one more; COMP tokens take none of their own."""
    method, sample = get_method("ccm-concat"), EncodedSample([[5] * 4], [([6] * 3, [7, 2])], [0])
    check_length(sample, method, 2, 9)
    with pytest.raises(ValueError, match="9 tokens"):
        check_length(sample, method, 2, 8)
    check_length(sample, get_method("none"), 0, 5)  # it reads no context
    many = EncodedSample([[5]] * 1900, [([6], [2])], [0] * 1900)
    check_length(many, get_method("ccm-merge"), 1, 2048)
    with pytest.raises(ValueError, match="1,900 contexts and 8 COMP tokens a step is too long: use fewer contexts"):
        check_length(many, get_method("ccm-merge"), 8, 2048)


LONG = {  # contexts, target, and what the error says
    "a target of 200,000 characters": (["a"], "c d " * 50_000, "is longer than"),
    "a target of 2 million characters": (["a"], "c d " * 500_000, "2,000,00"),
    "4,000 contexts": (["a"] * 4000, "c", "is longer than"),
    "5,000 contexts": (["a"] * 5000, "c", "'contexts' has 5,000 items"),
    "1,000 empty contexts": ([""] * 1000, "c", "too long: use fewer contexts"),
}


@pytest.mark.parametrize("case", LONG)
def test_samples_that_are_too_long(case, complains, tmp_path):
    """They are refused in seconds, before anything is sized by their length."""
    contexts, target, says = LONG[case]
    path, start = tmp_path / "data.jsonl", time.process_time()
    path.write_text(json.dumps({"contexts": contexts, "input": "b", "target": target}))
    settings = "--recipe", "paper", "--steps", 2, "--batch", 4, "--n", 64
    complains(train, "--data", path, "--out", tmp_path / "out", *settings, says=[says])
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "text, says",
    [
        ("\U0001f600" * 100_000, ""),  # running text without a place to cut it
        (
            json.dumps({"contexts": ["a"] * 3, "input": "b", "target": "c"}),
            "no table: data.jsonl has no test samples",
        ),
    ],
    ids=["no break", "three contexts"],
)
def test_data_that_fits_only_just(micro, tmp_path, monkeypatch, capsys, text, says):  # noqa: F811
    """Training takes as much as fits. Where no table can be made of the data, it says so, and is done all the same."""
    monkeypatch.chdir(tmp_path)
    name = "data.jsonl" if says else "data.txt"
    Path(name).write_text(text)
    settings = f"--model {micro} --data {name} --out out --steps 2 --batch 1 --eval-samples 1 --device cpu"
    monkeypatch.setattr("sys.argv", ["train.py", *settings.split()])
    train.main()
    out = capsys.readouterr().out
    assert says in out and out.splitlines()[-1].startswith("next: ")


def test_unwritable_output(complains, tmp_path):
    """Output folders and files that cannot be written."""
    (tmp_path / "file").write_text("")
    complains(train, "--out", tmp_path / "file" / "out", says=["cannot write to", "--out"])
    complains(chat, "--script", tmp_path / "file", "--record", tmp_path / "no" / "a.svg", says=["no such folder"])


def test_step_one_is_not_overwritten(complains, tmp_path):
    """The output folder cannot be that of --init."""
    complains(train, "--init", tmp_path, "--out", tmp_path, says=["no adapter"])
    model = load_model(TINY)
    model.add_adapter(0)
    save_adapter(tmp_path, model, get_method("full"), 0)
    complains(train, "--init", tmp_path, "--out", tmp_path, says=["would be overwritten", "--out"])


@pytest.mark.parametrize(
    "line, says",
    [
        ("{", "line 2"),
        ('{"contexts": [], "input": "a"}', "'target' is missing"),
        ('{"contexts": "a", "input": "a", "target": "b"}', "'contexts' must be a list"),
        ('{"contexts": ["a"], "input": "a", "target": "b", "options": ["c"]}', "'target' is not among 'options'"),
        ('{"contexts": ["a"], "input": "a", "target": "b", "answer": "c"}', "'answer' is not part of 'target'"),
        ('{"contexts": ["a"], "input": "a", "target": "b", "answers": [1]}', "'answers' must be a list of numbers"),
        ('{"contexts": ["a"], "input": "a", "target": "b", "answers": [0.0]}', "'answers' must be a list of numbers"),
        ('{"contexts": [], "input": "a", "target": "b", "questions": [["a", ""]]}', "'questions' must be a list of"),
        ('{"messages": []}', "line 2"),
        ("[]", "a sample is a JSON object"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("\udcff", "line 2"),
    ],
    ids=lambda text: text[:40],
)
def test_bad_data_line(complains, tmp_path, line, says):
    """The error about a bad line of a data file names the file, the line and the problem."""
    path = tmp_path / "mine.jsonl"
    good = '{"contexts": ["a", "b"], "input": "c", "target": "d"}'
    path.write_text(f"{good}\n{line}\n{good}\n", errors="surrogateescape")
    complains(train, "--data", path, "--out", tmp_path / "out", says=["mine.jsonl, line 2", says])
