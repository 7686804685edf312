"""The README and docs are true: their commands, options, links, names and numbers exist, and the quick start runs."""

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import data
from experiments import scale
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


def rows_of_tables(text: str) -> list[list[list[str]]]:
    """Each table of a document: the cells of each row. The first row is the heading, the second a line."""
    return [
        [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    ]


def tables(text: str) -> list[dict[str, list[str]]]:
    """Each table of a document: the cells of each row, by the row's first cell; the heading's by ""."""
    return [{"": rows[0]} | {row[0]: row[1:] for row in rows[2:]} for rows in rows_of_tables(text)]


def rows_below(document: str, title: str) -> list[list[str]]:
    """The rows of the one table of a document whose heading begins so."""
    (rows,) = [rows for rows in rows_of_tables(DOCUMENTS[document].read_text("utf-8")) if rows[0][0].startswith(title)]
    return rows[2:]


def labelled(row: dict) -> str:
    """The first cell of a row of measurements: the method, with its n."""
    return f"{row['method'].partition(',')[0]}, n = {row['n']}" if row["n"] else row["method"]


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


# Each of these functions returns a table of a document from the rows of a JSON file: cells, by a row's first cell.


def equal_memory_table(rows: list[dict], dataset: str = "dialog", metric: str = "recall") -> dict[str, list[str]]:
    """Recall (or accuracy) by time step: of the adapters, and of each cache with the pairs of one of them."""
    rows = [row for row in rows if row["data"] == dataset]
    found, adapters = {}, {row["like"]: row["n"] for row in rows if row["like"] == row["method"]}
    for method, like in {(row["method"], row["like"]): None for row in rows}:
        line = [row for row in rows if (row["method"], row["like"]) == (method, like)]
        if like:
            label = f"{method}, n = {adapters[like]}" if method == like else f"{method}, the pairs of {like}"
        else:
            label = "full, step 1" if method == "full" else method
        last = f"{line[-1]['kv_pairs']:.0f}", f"{line[-1]['kv_bytes'] / 1024:,.0f}"
        found[label] = [*(f"{row[metric]:.1%}" for row in line), *last]
    return found


def natural_table(rows: list[dict]) -> dict[str, list[str]]:
    """The share of right answers, in all and by distance."""
    found = {}
    for row in rows:
        shares = [f"{row['share']:.1%}", *(f"{row[span]:.0%}" for span in ("1-3", "4-9", "10-99"))]
        found[labelled(row)] = [*shares, str(row["pairs"]), f"{row['bytes'] / 1024:,.0f}"]
    return found


def dailydialog_table(rows: list[dict]) -> dict[str, list[str]]:
    """Perplexity by time step, the gap closed, and the memory; with the deviation of several seeds."""
    found = {}

    def shown(row: dict, key: str) -> str:
        return f"{row[key]:.2f}" + (f" ± {row[f'{key}_std']:.2f}" if f"{key}_std" in row else "")

    for method in dict.fromkeys(row["method"] for row in rows):
        line = [row for row in rows if row["method"] == method]
        last = line[-1]
        peak = max(last["peak_compression_pairs"], last["peak_inference_pairs"])
        gap = shown(last, "gap_closed") if last["n"] else ""
        cells = [shown(row, "perplexity") for row in line]
        found[labelled(last)] = [*cells, gap, f"{last['kv_pairs']:.0f}", f"{peak:.0f}"]
    return found


def accuracy_table(rows: list[dict], dataset: str) -> dict[str, list[str]]:
    """Accuracy by time step, the gap closed, and the pairs of memory."""
    found = {}
    for row in rows:
        if row["data"] == dataset:
            found.setdefault(labelled(row), []).append(row)
    return {
        label: [
            *(f"{row['accuracy']:.1%}" for row in line),
            f"{line[-1]['gap_closed']:.2f}" if line[-1]["n"] else "",
            f"{line[-1]['kv_pairs']:.0f}",
        ]
        for label, line in found.items()
    }


def scale_table(rows: list[dict]) -> list[list[str]]:
    """The gap closed by size of the base and n. A label may stand several times."""
    found = []
    for row in rows:
        gap = f"{row['gap_closed']:.2f}" if row["n"] else ""
        label = f"{scale.size(row['parameters'])}, {scale.kind(row)}"
        found.append([label, str(row["n"] or ""), f"{row['perplexity']:.2f}", gap, f"{row['kv_pairs']:.0f}"])
    return found


def books_table(rows: list[dict]) -> dict[str, list[str]]:
    """Perplexity by book and window, and how much it is below the sliding window's."""
    found = {}
    for row in rows:
        below = f" ({row['below_window']:.1%})".replace("%", "") if "below_window" in row else ""
        found.setdefault(row["method"], []).append(f"{row['perplexity']:.2f}{below}")
    sizes = {method: [f"{row['kv_bytes'] / 1024:,.0f}" for row in rows if row["method"] == method] for method in found}
    return {method: [*cells, ", ".join(sizes[method][:2])] for method, cells in found.items()}


def domains_table(rows: list[dict], window: int) -> list[list[str]]:
    """Perplexity by kind of text and length: full context, the sliding window, and the adapters."""
    found, order = {}, list(dict.fromkeys(row["cache"] for row in rows))
    at = {(row["domain"], row["length"], row["cache"]): row for row in rows if row["window"] in (0, window)}
    for domain in dict.fromkeys(row["domain"] for row in rows):
        for length in sorted({row["length"] for row in rows}):
            of_window, cells = at[domain, length, "sliding window"]["perplexity"], []
            for cache in order:
                perplexity = at[domain, length, cache]["perplexity"] if (domain, length, cache) in at else None
                below = f" ({100 * (1 - perplexity / of_window):.1f})" if "trained" in cache else ""
                cells.append("" if perplexity is None else f"{perplexity:.2f}{below}")
            found[domain, length] = [domain, f"{length:,}", *cells]
    return list(found.values())


def endless_table(rows: list[dict]) -> dict[str, list[str]]:
    """Recall by turn, and the pairs of memory."""
    found = {}
    for span, key in (("1 to 8", "recall_near"), ("9 to 16", "recall_far")):
        for method in dict.fromkeys(row["method"] for row in rows):
            line = [row for row in rows if row["method"] == method and "turn" in row]
            cells = [f"{row[key]:.1%}" for row in line] + [""] * (4 - len(line))
            pairs = ", ".join(dict.fromkeys(str(row["pairs"]) for row in line))
            found[f"{span} turns ago, {method.removeprefix('ccm-concat as ')}"] = [*cells, pairs]
    return found


def perplexity_table(rows: list[dict]) -> dict[str, list[str]]:
    """Perplexity by mark."""
    found, rows = {}, [row for row in rows if "tokens" in row]
    marks = sorted({row["tokens"] for row in rows})
    for method in dict.fromkeys(row["method"] for row in rows):
        at, short = {row["tokens"]: row for row in rows if row["method"] == method}, method.partition(" as ")[2]
        digits = 3 if short else 2
        found[short or method] = [f"{at[mark]['perplexity']:.{digits}f}" if mark in at else "" for mark in marks]
        if short:
            found[f"{short}, probe"] = [f"{at[mark]['probe']:.3f}" if mark in at else "" for mark in marks]
    return found


def steps_table(rows: list[dict]) -> dict[str, list[str]]:
    """Training speed, as a share of the limit."""
    names = {"ccm-concat": "ccm-concat, n = 2", "ccm-merge": "ccm-merge, n = 8"}
    return {
        names.get(row["method"], row["method"]): [
            f"{row['figure']:,.0f}",
            f"{row['share']:.0%}",
            f"{row['step_ms']:.1f}",
            f"{row['peak_gib']:.1f}",
        ]
        for row in rows[1:]
    }


def cpu_table(rows: list[dict]) -> dict[str, list[str]]:
    """Answers and turns on a CPU, in bf16 and in fp32."""
    found = {}
    for dtype in ("bfloat16", "float32"):
        for row in rows[1:]:
            if row["shape"] == dtype:
                unit = row["unit"].removesuffix("/turn")
                found.setdefault(row["method"], []).extend((f"{row['figure']:.1f} {unit}", f"{row['share']:.0%}"))
    return found


def costs_table(rows: list[dict], decimals: int = 0) -> dict[str, list[str]]:
    """Time to read a turn and to answer, and the memory, by length of context."""
    shown = {
        "read 50 tokens, {}, ms": lambda row: f"{1000 * row['read_s']:.{decimals}f}",
        "answer, {}, ms": lambda row: f"{1000 * row['answer_s']:,.0f}",
        "KV memory, {}, KiB": lambda row: f"{row['kv_bytes'] / 1024:,.0f}",
        "peak memory, {}, MiB": lambda row: f"{row.get('peak_bytes', 0) / 2**20:,.0f}",
    }
    found = {}
    for label, cell in shown.items():
        for row in rows:
            if "read_s" in row:
                found.setdefault(label.format(labelled(row)), []).append(cell(row))
    return found


@pytest.mark.parametrize(
    "document, title, file, made",
    [
        ("results", "SmolLM2, dialog: recall", "smollm2-equal", equal_memory_table),
        ("results", "tiny model, dialog: recall", "equal", equal_memory_table),
        ("results", "tiny model, icl", "equal-tasks", partial(equal_memory_table, metric="accuracy", dataset="icl")),
        (
            "results",
            "tiny model, persona",
            "equal-tasks",
            partial(equal_memory_table, metric="accuracy", dataset="persona"),
        ),
        ("results", "answered right | all", "smollm2-natural", natural_table),
        ("results", "answered right after small talk", "smollm2-natural-talk", natural_table),
        ("results", "answered right, written later", "smollm2-natural-later", natural_table),
        ("results", "answered right, third set", "smollm2-natural-third", natural_table),
        ("results", "SmolLM2, dailydialog", "smollm2-dailydialog", dailydialog_table),
        ("results", "SmolLM2, icl", "smollm2-tasks", partial(accuracy_table, dataset="icl")),
        ("results", "SmolLM2, persona", "smollm2-tasks", partial(accuracy_table, dataset="persona")),
        ("streaming", "books: perplexity", "books", books_table),
        ("streaming", "tiny model: recall", "endless", endless_table),
        ("streaming", "SmolLM2: recall", "smollm2-endless", endless_table),
        ("streaming", "tiny model: perplexity", "endless", perplexity_table),
        ("performance", "training SmolLM2", "smollm2-steps", steps_table),
        ("performance", "SmolLM2 on a CPU", "smollm2-cpu", cpu_table),
        ("costs", "SmolLM2 on a CPU", "smollm2-costs-cpu", costs_table),
        ("costs", "SmolLM2 on a GPU, after", "smollm2-costs-gpu", costs_table),
        ("costs", "SmolLM2 on a GPU, fast", "smollm2-costs-fast", partial(costs_table, decimals=1)),
    ],
)
def test_tables_of_measurements(document, title, file, made):
    """These tables have the numbers that their commands printed; the documents may leave out rows and last columns."""
    text = DOCUMENTS[f"docs/{document}.md"].read_text("utf-8")
    (table,) = [table for table in tables(text) if " | ".join(table[""]).startswith(title)]
    wanted = made(json.loads((ROOT / "docs" / f"{file}.json").read_text("utf-8")))
    rows = {name: cells for name, cells in table.items() if name not in ("", "questions")}
    assert len(rows) >= min(3, len(wanted))
    for name, cells in rows.items():
        assert cells == wanted[name][: len(cells)], name


@pytest.mark.parametrize("window", [160, 64])
def test_tables_of_domains(window):
    """docs/streaming.md has the numbers of docs/domains.json."""
    shown = rows_below("docs/streaming.md", f"{window} pairs: perplexity")
    assert shown == domains_table(json.loads((ROOT / "docs" / "domains.json").read_text("utf-8")), window)


def test_table_of_scale():
    """docs/results.md has the rows of docs/smollm2-scale.json, without the methods that one base alone has."""
    shown = rows_below("docs/results.md", "dailydialog after 12 contexts")
    rows = scale_table(json.loads((ROOT / "docs" / "smollm2-scale.json").read_text("utf-8")))
    assert shown == [row for row in rows if not row[0].endswith(("compressive", "gist-online"))]


def test_tables_of_readme():
    """README's tables have the numbers of the JSON files in docs."""
    found = tables(README)
    (small,) = [table for table in found if "ccm-merge" in table and table[""][0].endswith("right answers")]
    (real,) = [table for table in found if "ccm-merge" in table and table is not small]
    (tiny,) = [table for table in found if "ccm-merge, n = 32" in table]
    rows = json.loads((ROOT / "docs" / "smollm2-dailydialog.json").read_text("utf-8"))
    recalled, natural, talk = (
        {name.partition(",")[0]: cells for name, cells in made(json.loads(text)).items() if "pairs of" not in name}
        for file, made in (("equal", equal_memory_table), ("natural", natural_table), ("natural-talk", natural_table))
        for text in [(ROOT / "docs" / f"smollm2-{file}.json").read_text("utf-8")]
    )
    dialogues = {name.removesuffix(", n = 2"): cells for name, cells in dailydialog_table(rows).items()}
    names = {"no context": "none", "full context": "full"}
    for shown, cells in list(small.items())[1:]:
        method = names.get(shown, shown)
        right, *_, pairs, kib = natural[method]
        assert cells == [right, talk[method][0], pairs, kib, *recalled[method][4:6]], shown
    for method, cells in list(real.items())[1:]:
        assert cells[:5] == [cell.split()[0] for cell in dialogues[method][:5]], method
        gap = dialogues[method][5].split()[:1] or [{"none": "0", "full": "1"}[method]]
        assert [cells[5]] == gap, method
    for method, cells in list(tiny.items())[1:]:
        gap = metric_row("dialog", method, "gap_closed", "time_step", "{:.2f}")[-1]
        assert cells[:5] == metric_row("dialog", method, "recall", "time_step", "{:.1%}"), method
        assert float(cells[5]) == float(gap), method
