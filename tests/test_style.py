"""The code is linted and formatted as pyproject.toml says, and what should be short is short."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CORE = ("methods", "sequence", "lora", "model", "parallel", "memory", "session")


def count_lines(name: str) -> int:
    return len((ROOT / name).read_text("utf-8").splitlines())


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(command):
    """`ruff check` and `ruff format --check` find nothing in the project."""
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_is_short():
    """The seven files of the core have 900 lines at most, docstrings included."""
    assert sum(count_lines(f"minccm/{name}.py") for name in CORE) <= 900


def test_train_is_short():
    """train.py has 250 lines at most."""
    assert count_lines("train.py") <= 250


def test_readme_is_short():
    """README has at most 200 lines and 1,700 words."""
    assert count_lines("README.md") <= 200
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 1700


def test_lines_of_documents():
    """Text in README, CONTRIBUTING and docs has lines of at most 120 columns (tables, code, pictures: no limit)."""
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "    ", "!", "#"))]
        assert not long, (path.name, long)


def test_commands_are_code():
    """An indented command follows an empty line; otherwise a page would show it as text of the paragraph before it."""
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert not re.findall(r"^(?!    |[ \t]*[-*] )\S.*\n    .*", text, re.MULTILINE), path.name


def test_cells_of_tables():
    """A cell of a table has at most 200 characters: more belongs into a sentence below."""
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for line in path.read_text("utf-8").splitlines():
            assert not line.startswith("|") or max(map(len, line.split("|"))) <= 200, (path.name, line)
