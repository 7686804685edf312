"""Imports: the plain core stands alone, each layer imports only the layers below it, and there are no cycles."""

import ast
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

CORE = {"methods", "sequence", "lora", "model", "parallel", "memory", "session"}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
BELOW = {  # what the modules of each layer may import of this project
    "core": {"core"},
    "io": {"core", "io"},
    "data": {"core", "io", "data"},
    "fast": {"core", "io", "fast"},
    "extra": {"core", "io", "data", "fast", "extra"},
    "examples": {"core"},
    "experiments": {"core", "io", "data", "fast", "extra", "experiments"},
    "scripts": {"core", "io", "data", "fast", "extra"},
}


def find_modules() -> dict[str, Path]:
    """The project's modules by name, tests left out."""
    paths = [*ROOT.glob("*.py")]
    for folder in ("minccm", "data", "experiments", "examples"):
        paths += (ROOT / folder).rglob("*.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = find_modules()


def imports_of(name: str) -> set[str]:
    """All modules that a module imports, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = parts & MODULES.keys()  # from minccm.io import gguf
            found |= modules
            if modules != parts:
                found.add(node.module)
    return found


IMPORTS = {name: imports_of(name) for name in MODULES}


def layer(name: str) -> str:
    top, _, rest = name.partition(".")
    if top in SCRIPTS:
        return "scripts"
    if top == "minccm":
        part = rest.partition(".")[0]
        return part if part in ("io", "fast", "extra") else "core"
    return top


def test_the_core_is_seven_files():
    """And at most 900 lines."""
    files = {path.stem: path for path in (ROOT / "minccm").glob("*.py") if path.stem != "__init__"}
    assert files.keys() == CORE
    assert sum(len(path.read_text("utf-8").splitlines()) for path in files.values()) <= 900


@pytest.mark.parametrize("name", [name for name in MODULES if layer(name) == "core"])
def test_the_core_needs_torch_only(name):
    """It imports itself, torch and the standard library."""
    for other in IMPORTS[name]:
        top = other.partition(".")[0]
        assert top == "torch" or top in sys.stdlib_module_names or (other in MODULES and layer(other) == "core"), other


@pytest.mark.parametrize("name", MODULES)
def test_layers(name):
    """A module imports its own layer and those below: core, io, data and fast, extra, experiments and scripts."""
    for other in IMPORTS[name] & MODULES.keys():
        assert layer(other) in BELOW[layer(name)], f"{name} imports {other}"


def test_no_script_is_imported():
    """A script is for the command line: no module, and no other script, imports it."""
    assert {"train", "eval", "chat"} <= SCRIPTS
    assert [(name, *others & SCRIPTS) for name, others in IMPORTS.items() if others & SCRIPTS] == []


def test_no_cycles():
    """Modules can be ordered so that each imports only earlier ones."""
    left = {name: IMPORTS[name] & MODULES.keys() - {name} for name in MODULES}
    while left:
        ready = {name for name, others in left.items() if not others & left.keys()}
        assert ready, f"these import each other in a circle: {sorted(left)}"
        left = {name: others for name, others in left.items() if name not in ready}
