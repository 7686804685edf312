"""The README and docs are true: their commands, options, links, names and numbers exist, and the quick start runs."""

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import data
from minccm.methods import METHODS, Method
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text("utf-8")
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}


def snippet(text: str, start: str) -> str:
    """The Python block of a document that starts so."""
    (found,) = re.findall(rf"```python\n({re.escape(start)}.*?)```", text, re.DOTALL)
    return found


# Commands


def commands(*documents: str) -> list[list[str]]:
    """The commands in documents (by default all): the script or -m module, then its options."""
    found = []
    for name in documents or DOCUMENTS:
        text = DOCUMENTS[name].read_text("utf-8")
        lines = [line for line in text.splitlines() if line.startswith("    ")] + re.findall(r"`([^`\n]+)`", text)
        for part in (part for line in lines for part in re.split(r"&&|[|>]", line)):
            if match := re.search(
                r"\b(?:python3?|--nproc-per-node 8) ((?:[a-z]+\.py|-m (?:data|experiments)\.\w+).*)", part
            ):
                found.append(shlex.split(match[1], comments=True))
    return found


class Parsed(Exception):
    """The options were read, and the script must not go on."""


def parse(command: list[str], monkeypatch) -> None:
    """Lets the script's own parser read a command. Raises Parsed, or SystemExit for an option that does not exist."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser):
        parse_args(parser, command[2 if command[0] == "-m" else 1 :])
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    module = command[1] if command[0] == "-m" else command[0].removesuffix(".py")
    name = module.removeprefix("data.")
    if name in data.PREPARED:
        data.prepared.main(None, "", name)
    elif name in data.GENERATED:
        data.main(None)
    else:
        importlib.import_module(module).main()


def test_every_command_can_be_parsed(monkeypatch):
    """README, CONTRIBUTING and docs name no script, option or choice that does not exist."""
    assert len(commands("README.md")) > 10 and len(commands()) > 40
    for command in commands():
        path = ROOT / (command[0] if command[0] != "-m" else command[1].replace(".", "/") + ".py")
        assert path.is_file(), command
        if "--help" in command:
            continue
        try:
            with pytest.raises(Parsed):
                parse(command, monkeypatch)
        except SystemExit:
            pytest.fail(f"this command is wrong: {shlex.join(command)}")
        monkeypatch.undo()
    with pytest.raises(SystemExit):
        parse(["eval.py", "--no-such-option"], monkeypatch)


def test_every_option_in_the_text_exists():
    """Each `--option` that a document names on its own is an option of some script."""
    scripts = [path for folder in ("", "data", "experiments", "minccm/io") for path in (ROOT / folder).glob("*.py")]
    known = set(re.findall(r'"(--[a-z][a-z0-9-]*)"', "".join(path.read_text("utf-8") for path in scripts)))
    known |= {"--help", "--fix", "--no-deps"}
    for name, path in DOCUMENTS.items():
        named = set(re.findall(r"`(--[a-z][a-z0-9-]*)", path.read_text("utf-8"))) - known
        assert not named - REMOVED.get(name, set()), (name, named)


REMOVED = {"docs/log.md": {"--save-every", "--warmup", "--short"}}  # options that a log of the past may name


def test_the_test_command():
    """README's test command is what .ci/run and the workflow run."""
    (command,) = [line.strip() for line in README.splitlines() if "pytest" in line and line.startswith("    ")]
    for path in (ROOT / ".ci" / "run", ROOT / ".github" / "workflows" / "tests.yml"):
        assert command in [line.strip() for line in path.read_text("utf-8").splitlines()], path


def run(command: list[str], folder, text: str = "") -> str:
    """What a command prints, run with this Python in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = command if command[0] == "-m" else [str(ROOT / command[0]), *command[1:]]
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, input=text, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quick_start(tmp_path):
    """Chat, train (two small steps), and chat with the adapter just trained, as README says and as train.py prints."""
    talk, train, talk_again = commands("README.md")[:3]
    facts = "My name is Ada.\nWhat is my name?\n"
    assert "Ada" in run(talk, tmp_path, facts).splitlines()[-1]
    printed = run([*train, "--steps", "2", "--batch", "4", "--eval-samples", "2"], tmp_path)
    following = shlex.split(printed.strip().splitlines()[-1].removeprefix("next: "))
    assert [Path(following[1]).name, *following[2:]] == talk_again
    assert len(run(talk_again, tmp_path, facts).splitlines()) == 2


@pytest.mark.parametrize("quick", ["--all", "--over-time", "data.dialog"])
def test_quick_commands_run_as_printed(quick, tmp_path):
    """Commands that draw pictures and print samples."""
    command = next(command for command in commands() if quick in command)
    printed = run(command, tmp_path)
    if quick == "data.dialog":
        assert len([data.check(json.loads(line)) for line in printed.splitlines()]) == 3
    else:
        assert (tmp_path / command[-1]).read_bytes().startswith(b"\x89PNG")
        assert (ROOT / command[-1]).is_file()


# Code in the documents


def test_the_session_snippet_runs(capsys):
    """README's Session answers from its memory."""
    exec(snippet(README, "from minccm.io.adapters"), {})
    printed = capsys.readouterr().out
    assert "Ada" in printed and printed.strip().endswith(" 2 KV pairs")


def test_the_method_snippet_is_the_method():
    """README's ccm-merge is that of minccm/methods.py."""
    shown = eval(snippet(README, "Method("), {"Method": Method})
    merge = METHODS["ccm-merge"]
    assert (shown.name, shown.about) == (merge.name, merge.about)
    assert [shown.merge_rate(t) for t in (1, 2, 5)] == [merge.merge_rate(t) for t in (1, 2, 5)]
    assert shown.attends.__code__.co_names == merge.attends.__code__.co_names


def test_the_conversation_snippet_runs(tmp_path, monkeypatch, capsys):
    """The library of docs/models.md answers, saves and loads."""
    monkeypatch.chdir(tmp_path)
    exec(snippet(DOCUMENTS["docs/models.md"].read_text("utf-8"), "from minccm.extra.conversation"), {})
    assert capsys.readouterr().out.strip() and (tmp_path / "ada.memory").is_file()


# Links


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    """Each link to a file or to a heading of one, and each picture."""
    text = DOCUMENTS[name].read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = DOCUMENTS[name].parent / file if file else DOCUMENTS[name]
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text("utf-8")), target


def test_every_picture_and_document_is_linked():
    """No picture in docs/ is left over, and the index names every document."""
    texts = {name: path.read_text("utf-8") for name, path in DOCUMENTS.items()}
    for path in (*ROOT.glob("docs/*.png"), *ROOT.glob("docs/*.svg")):
        assert any(path.name in text for text in texts.values()), path.name
    for path in ROOT.glob("docs/*.md"):
        assert path.name == "README.md" or f"({path.name})" in texts["docs/README.md"], path.name


# The map from the paper to the code

# What the paper numbers: PAPER has code here, and NUMBERED is all that the project may name.
PAPER = {"figure": {2, 5, 8, 10}, "algorithm": {1}, "table": {1, 13, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25}}
NUMBERED = {"figure": PAPER["figure"], "algorithm": {1}, "table": PAPER["table"] | {12}}
MAP = re.findall(r"^\| ([^|]+) \| ([^|]*`[^|]*) \|$", DOCUMENTS["docs/paper.md"].read_text("utf-8"), re.MULTILINE)


def numbered(text: str) -> set[tuple[str, int]]:
    """The figures, algorithms and tables that a text names, as in "table 16" or "tables 23 to 25"."""
    found = re.findall(r"\b(figure|algorithm|table)s? (\d+)(?: (to|and) (\d+))?", text)
    spans = [(kind, int(a), int(b or a), word) for kind, a, word, b in found]
    return {(kind, i) for kind, a, b, word in spans for i in (range(a, b + 1) if word == "to" else (a, b))}


def defined(name: str, text: str) -> bool:
    """Is this a function, class or constant of a file, a method of a class, or a name such as "gist"?"""
    owner, _, last = name.rpartition(".")
    if owner:
        text = text.partition(f"\nclass {owner}")[2].partition("\nclass ")[0]
        return re.search(rf"^    def {last}\b", text, re.MULTILINE) is not None
    return re.search(rf"^(def|class) {last}\b|^{last} = ", text, re.MULTILINE) is not None or f'"{last}"' in text


@pytest.mark.parametrize("paper, code", MAP, ids=[paper[:40] for paper, _ in MAP])
def test_the_map_names_what_exists(paper, code):
    """Each `name` that the map places in a file is defined there; each `--option` is an option."""
    names, placed = [], 0
    options = "".join((ROOT / name).read_text("utf-8") for name in ("train.py", "minccm/io/options.py"))
    for word in re.findall(r"`([^`]+)`", code):
        if word.startswith("--"):
            assert f'"{word.split()[0]}"' in options, word
            placed += word.split()[0] == word and code.endswith(f"`{word}` of `train.py`")
        elif word.endswith(".py"):
            text, placed = (ROOT / word).read_text("utf-8"), placed + 1
            for name in names:
                assert defined(name, text), (name, word)
            names = []
        else:
            names.append(word)
    assert placed and not names, f"in no file: {names or code}"


def test_the_map_is_whole():
    """Whatever of the paper has code here is in the map."""
    assert len(MAP) > 20
    assert numbered(" ".join(paper for paper, _ in MAP)) == {(kind, i) for kind, all in PAPER.items() for i in all}


def test_the_papers_numbers():
    """No file names a figure, algorithm or table of the paper that was not checked."""
    files = [path for pattern in ("*.md", "docs/*.md", "*.py", "minccm/**/*.py") for path in ROOT.glob(pattern)]
    for path in files:
        for kind, number in numbered(path.read_text("utf-8")):
            assert number in NUMBERED[kind], (path.name, kind, number)


# Numbers


def tables(text: str) -> list[dict[str, list[str]]]:
    """Each table of a document: the cells of each row, by the row's first cell; the heading's by ""."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        found.append({"": rows[0]} | {row[0]: row[1:] for row in rows[2:]})
    return found


def metric_row(name: str, method: str, metric: str, by: str, places: str) -> list[str]:
    """A row of a table as docs/results.json has it, at each time step or distance."""
    rows = json.loads((ROOT / "docs" / "results.json").read_text("utf-8"))
    rows = [row for row in rows if row["data"] == name and row["method"] == method.split(",")[0] and by in row]
    return [places.format(row[metric]) for row in sorted(rows, key=lambda row: row[by])]


@pytest.mark.parametrize(
    "title, metric, by, places",
    [
        ("dialog: recall of a fact after t", "recall", "time_step", "{:.1%}"),
        ("dialog: recall of a fact told d", "recall", "distance", "{:.1%}"),
        ("dialog: perplexity", "perplexity", "time_step", "{:.2f}"),
        ("persona: accuracy", "accuracy", "time_step", "{:.1%}"),
        ("icl: accuracy", "accuracy", "time_step", "{:.1%}"),
    ],
)
def test_tables_of_results(title, metric, by, places):
    """docs/results.md has the numbers of docs/results.json."""
    (table,) = [table for table in tables(RESULTS) if table[""][0].startswith(title)]
    assert len(table) == 5
    for method in list(table)[1:]:
        wanted = metric_row(title.split(":")[0], method, metric, by, places)
        assert table[method][: len(wanted)] == wanted, method


def test_tables_of_readme():
    """README's tables have the numbers of docs/results.json."""
    small, by_step = [table for table in tables(README) if "ccm-merge, n = 32" in table]
    names = {"no context": "none", "full context": "full"}
    for shown, cells in list(small.items())[1:]:
        method = names.get(shown, shown)
        wanted = [
            metric_row("dialog", method, metric, "time_step", places)[-1]
            for metric, places in (("recall", "{:.1%}"), ("kv_pairs", "{:.0f}"), ("kv_bytes", "{}"))
        ]
        assert cells == [*wanted[:2], f"{float(wanted[2]) / 1024:,.0f}"], shown
    for method, cells in list(by_step.items())[1:]:
        gap = metric_row("dialog", method, "gap_closed", "time_step", "{:.2f}")[-1]
        assert cells[:5] == metric_row("dialog", method, "recall", "time_step", "{:.1%}"), method
        assert float(cells[5]) == float(gap), method
