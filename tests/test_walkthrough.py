"""docs/walkthrough.md: its snippets run, and print the text below them; docs/walkthrough.ipynb is made from it.

python -m tests.test_walkthrough writes the outputs, the pictures and the notebook again.
"""

import base64
import contextlib
import io
import json
import re
from typing import NamedTuple

import pytest

from minccm.io.files import write_text, write_whole
from tests.conftest import ROOT

DOCUMENT, NOTEBOOK = ROOT / "docs" / "walkthrough.md", ROOT / "docs" / "walkthrough.ipynb"
SNIPPET = re.compile(
    r"```python\n(?P<code>.*?)```\n"
    r"(?:\n```text\n(?P<output>.*?)```\n)?"
    r"(?:\n!\[[^]]*\]\((?P<picture>[^)]+)\)\n)?",
    re.DOTALL,
)
NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")  # with a point; a whole number must be the same
SETUP = """# This notebook is made from docs/walkthrough.md. Run it in the folder of the project, or in docs/.
import os
import sys

if os.path.isdir("../minccm"):
    os.chdir("..")
sys.path.insert(0, os.getcwd())
"""


class Result(NamedTuple):
    """What a snippet has done."""

    snippet: re.Match
    printed: str
    picture: bytes | None  # PNG, of a snippet with a picture below


def run_snippets(document: str) -> list[Result]:
    """Runs the snippets in order, in one namespace."""
    import matplotlib

    matplotlib.use("Agg")
    namespace, results = {}, []
    for snippet in SNIPPET.finditer(document):
        printed, picture = io.StringIO(), io.BytesIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(snippet["code"], str(DOCUMENT), "exec"), namespace)
        if snippet["picture"]:
            namespace["figure"].savefig(picture, format="png", dpi=110)
        results.append(Result(snippet, printed.getvalue(), picture.getvalue() or None))
    return results


def check(expected: str, got: str) -> None:
    """The same text; numbers with a point may differ by 0.002 (or 0.2%) from one CPU to another."""
    assert NUMBER.sub("#", got) == NUMBER.sub("#", expected)
    numbers = [float(number) for number in NUMBER.findall(expected)]
    assert [float(number) for number in NUMBER.findall(got)] == pytest.approx(numbers, rel=2e-3, abs=2e-3)


def cells(document: str, pictures: list[bytes | None]) -> list[dict]:
    """The cells of the notebook: the text between snippets, and the snippets with their outputs."""
    found, end = [code_cell(SETUP, [])], 0
    for snippet, picture in zip(SNIPPET.finditer(document), pictures):
        found.append(markdown_cell(document[end : snippet.start()]))
        outputs = []
        if snippet["output"]:
            outputs.append({"name": "stdout", "output_type": "stream", "text": lines(snippet["output"])})
        if picture:
            shown = {"image/png": base64.b64encode(picture).decode() + "\n", "text/plain": ["<Figure>"]}
            outputs.append({"data": shown, "metadata": {}, "output_type": "display_data"})
        found.append(code_cell(snippet["code"], outputs))
        end = snippet.end()
    found.append(markdown_cell(document[end:]))
    for number, cell in enumerate(found):
        cell["id"] = f"cell-{number}"
    return found


def lines(text: str) -> list[str]:
    """A text as notebooks hold it: a list of lines, the last without its line break."""
    return text.rstrip("\n").splitlines(keepends=True)


def markdown_cell(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": lines(text.strip("\n"))}


def code_cell(code: str, outputs: list[dict]) -> dict:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": outputs,
        "source": lines(code),
    }


def notebook(document: str, pictures: list[bytes | None]) -> str:
    """The notebook as JSON."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells(document, pictures), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def pictures_on_disk(document: str) -> list[bytes | None]:
    """For each snippet, the file in docs/ of the picture below it."""
    names = [snippet["picture"] for snippet in SNIPPET.finditer(document)]
    return [(DOCUMENT.parent / name).read_bytes() if name else None for name in names]


def test_the_snippets_print_what_the_walkthrough_says():
    """Every python block of the document, against the text block below it."""
    results = run_snippets(DOCUMENT.read_text("utf-8"))
    assert len(results) >= 10
    for result in results:
        check(result.snippet["output"] or "", result.printed)
    assert any(result.picture for result in results)


def test_a_wrong_output_is_noticed():
    """A small rounding passes; another number, another word or a missing line does not."""
    check("loss 1.0001 of 3\n", "loss 1.0002 of 3\n")
    for other in ("loss 1.01 of 3\n", "loss 1.0001 of 4\n", "lost 1.0001 of 3\n", ""):
        with pytest.raises(AssertionError):
            check("loss 1.0001 of 3\n", other)


def test_the_notebook_is_the_walkthrough():
    """The notebook holds the text, snippets, outputs and pictures of the present document."""
    document = DOCUMENT.read_text("utf-8")
    assert NOTEBOOK.read_text("utf-8") == notebook(document, pictures_on_disk(document))


def test_the_walkthrough_follows_the_core():
    """It has a section for each of the seven files, in the reading order of minccm/__init__.py."""
    headings = re.findall(r"^## \d\. `(\w+)\.py`", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    order = re.findall(r"^    (\w+)\.py ", (ROOT / "minccm" / "__init__.py").read_text("utf-8"), re.MULTILINE)
    assert headings == order
    assert len(order) == 7


if __name__ == "__main__":
    text, parts, end = DOCUMENT.read_text("utf-8"), [], 0
    for result in run_snippets(text):
        snippet = result.snippet
        parts += [text[end : snippet.start()], f"```python\n{snippet['code']}```\n"]
        parts += [f"\n```text\n{result.printed}```\n"] if result.printed else []
        if result.picture:
            write_whole(DOCUMENT.parent / snippet["picture"], lambda path, data=result.picture: path.write_bytes(data))
            parts.append(snippet[0][snippet[0].index("\n![") :])
        end = snippet.end()
    text = "".join(parts) + text[end:]
    write_text(DOCUMENT, text)
    write_text(NOTEBOOK, notebook(text, pictures_on_disk(text)))
