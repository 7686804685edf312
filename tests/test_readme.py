"""README keeps its word: the test command is the one that is run for every change, and what it names exists."""

import re

from minccm.methods import METHODS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command():
    """.ci/run runs exactly README's test command."""
    commands = [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]
    (test,) = [command for command in commands if "pytest" in command]
    assert test in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_map_names_what_exists():
    """Every `name` that the map from paper to code places in a file is defined in that file."""
    rows = [line for line in README.splitlines() if line.startswith("| ") and re.search(r"`\S+\.py`", line)]
    assert len(rows) > 8
    for row in rows:
        *names, file = [name for name in re.findall(r"`([^`]+)`", row.split("|")[2]) if not name.startswith("python ")]
        text = (ROOT / file).read_text()
        for name in names:
            last = name.split(".")[-1]
            assert re.search(rf"(def|class) {last}\b", text) or f'"{last}"' in text, (name, file)


def test_the_methods_are_all_there():
    """The table of methods lists each one."""
    table = "".join(line for line in README.splitlines() if line.startswith("| `"))
    assert all(f"`{name}`" in table for name in METHODS)
