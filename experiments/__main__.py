"""python -m experiments: lists the experiments."""

import ast
from pathlib import Path

HELPERS = ("__init__", "__main__", "common")


def main() -> None:
    """Prints each experiment's name and the first line of its docstring."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in HELPERS:
            about = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            print(f"python -m experiments.{path.stem:12} {about.partition(chr(10))[0]}")


if __name__ == "__main__":
    main()
