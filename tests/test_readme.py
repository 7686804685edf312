"""README keeps its word: the test command is the one that is run for every change, and what it names exists."""

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

import data
from minccm.methods import METHODS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command():
    """.ci/run runs exactly README's test command."""
    commands = [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]
    (test,) = [command for command in commands if "pytest" in command]
    assert test in (ROOT / ".ci" / "run").read_text().splitlines()


# What the paper numbers, of what this project speaks of. PAPER is what code here is; others are held beside it.
PAPER = {"figure": {2, 5, 10}, "algorithm": {1}, "table": {13, 15, 16, 18, 19, 21, 23, 24, 25}}
NUMBERED = {"figure": PAPER["figure"] | {8}, "algorithm": {1}, "table": PAPER["table"] | {1, 12, 17, 22}}


def numbered(text: str) -> set[tuple[str, int]]:
    """The figures, algorithms and tables that a text names, as in "table 16" or "tables 23 to 25"."""
    found = re.findall(r"\b(figure|algorithm|table)s? (\d+)(?: (to|and) (\d+))?", text)
    spans = [(kind, int(a), int(b or a), word) for kind, a, word, b in found]
    return {(kind, i) for kind, a, b, word in spans for i in (range(a, b + 1) if word == "to" else (a, b))}


def defined(name: str, text: str) -> bool:
    """Is this a function, class or constant of a file, a method or field of a class, or a key such as "gist"?"""
    owner, _, last = name.rpartition(".")
    owned = not owner or re.search(rf"^class {owner}\b", text, re.MULTILINE)
    indent = "" if not owner else "    "
    return (
        bool(owned and re.search(rf"^{indent}(def|class) {last}\b|^{last} = ", text, re.MULTILINE))
        or f'"{last}"' in text
    )


def test_the_map_names_what_exists():
    """Each `name` that the map from paper to code places in a file is defined there; each `--option` is one."""
    section = README.split("| paper | code |")[1].split("\n\n")[0]
    rows = [row.split("|")[2] for row in section.splitlines()[2:]]
    assert len(rows) > 8
    options = "".join((ROOT / name).read_text() for name in ("train.py", "eval.py", "minccm/cli.py"))
    for row in rows:
        names, placed = [], 0
        for word in re.findall(r"`([^`]+)`", row):
            if word.startswith("--"):
                assert f'"{word.split()[0]}"' in options, word
            elif word.endswith(".py"):
                text, placed = (ROOT / word).read_text(), placed + 1
                for name in names:
                    assert defined(name, text), (name, word)
                names = []
            else:
                names.append(word)
        assert placed and not names, f"in no file: {names or row}"


def test_the_map_is_whole():
    """What of the paper has code here stands in the map."""
    section = README.split("| paper | code |")[1].split("\n\n")[0]
    assert numbered(section) >= {(kind, number) for kind, numbers in PAPER.items() for number in numbers}


def test_the_papers_numbers():
    """No file speaks of another figure, algorithm or table of the paper than those that were checked."""
    files = [path for pattern in ("*.md", "docs/*.md", "*.py", "minccm/*.py") for path in ROOT.glob(pattern)]
    for path in files:
        for kind, number in numbered(path.read_text("utf-8")):
            assert number in NUMBERED[kind], (path.name, kind, number)


def commands() -> list[list[str]]:
    """What README, CONTRIBUTING and docs say to type to Python: script or -m module, and options."""
    found = []
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text("utf-8")
        lines = [line for line in text.splitlines() if line.startswith("    ")] + re.findall(r"`([^`\n]+)`", text)
        for part in (part for line in lines for part in re.split(r"&&|[|>]", line)):
            if match := re.search(r"\bpython3? ((?:[a-z]+\.py|-m (?:data|measure)\.\w+).*)", part):
                words = shlex.split(match[1], comments=True)
                found.append([word for word in words if word != "..."])  # and so on
    return found


class Parsed(Exception):
    """The options were read; nothing more is to be done."""


def parse(command: list[str], monkeypatch) -> None:
    """Has the script's own parser read the command's options. Raises Parsed, or SystemExit if one is not there."""
    read = argparse.ArgumentParser.parse_args

    def stop(parser):
        read(parser, command[2 if command[0] == "-m" else 1 :])
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    if command[0] == "-m" and command[1].startswith("measure."):
        importlib.import_module(command[1]).main()
    if command[0] == "-m":
        name = command[1].removeprefix("data.")
        data.prepared.main(None, "", name) if name in data.PREPARED else data.main(None)
    importlib.import_module(command[0].removesuffix(".py")).main()


def test_every_command_has_the_options_it_names(monkeypatch):
    """README, CONTRIBUTING and docs name no script, option or choice that is not there."""
    assert len(commands()) > 20
    for command in (command for command in commands() if "--help" not in command):
        assert (ROOT / (command[0] if command[0] != "-m" else command[1].replace(".", "/") + ".py")).is_file(), command
        with pytest.raises(Parsed):
            parse(command, monkeypatch)
        monkeypatch.undo()
    with pytest.raises(SystemExit):
        parse(["eval.py", "--no-such-option"], monkeypatch)


QUICK = ("--masks", "--method-picture", "data.dialog")


@pytest.mark.parametrize("quick", QUICK)
def test_quick_commands_run_as_printed(quick, tmp_path):
    """Pictures are drawn, and samples printed, by the command that stands in README."""
    command = next(command for command in commands() if quick in command)
    script = command if command[0] == "-m" else [str(ROOT / command[0]), *command[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if quick == "data.dialog":
        assert len([data.check(json.loads(line)) for line in done.stdout.splitlines()]) == 3
    else:
        assert (tmp_path / command[-1]).read_bytes().startswith(b"\x89PNG")
        assert (ROOT / command[-1]).is_file()


def test_the_library_snippet_runs(tmp_path, monkeypatch, capsys):
    """README's use as a library answers, and saves and loads."""
    (snippet,) = re.findall(r"```python\n(from conversation.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    assert capsys.readouterr().out.strip() and (tmp_path / "ada.memory").is_file()


def test_the_methods_are_all_there():
    """The table of methods lists each one."""
    table = "".join(line for line in README.splitlines() if line.startswith("| `"))
    assert all(f"`{name}`" in table for name in METHODS)
