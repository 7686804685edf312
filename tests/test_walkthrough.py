"""docs/walkthrough.md tells what the code does: its snippets run, and print what stands below them.

python -m tests.test_walkthrough writes the outputs anew.
"""

import contextlib
import io
import re

import pytest

from minccm.files import write_text
from tests.conftest import ROOT

DOCUMENT = ROOT / "docs" / "walkthrough.md"
SNIPPET = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")  # with a point: a whole number has to be the same


def outputs(document: str) -> list[tuple[re.Match, str]]:
    """Runs the snippets in order, in one namespace: each with what it printed."""
    namespace, found = {}, []
    for snippet in SNIPPET.finditer(document):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(snippet["code"], str(DOCUMENT), "exec"), namespace)
        found.append((snippet, printed.getvalue()))
    return found


def check(expected: str, got: str) -> None:
    """The same text, but for numbers with a point, which may differ by 0.002 (0.2%) from one CPU to another."""
    assert NUMBER.sub("#", got) == NUMBER.sub("#", expected)
    numbers = [float(number) for number in NUMBER.findall(expected)]
    assert [float(number) for number in NUMBER.findall(got)] == pytest.approx(numbers, rel=2e-3, abs=2e-3)


def test_the_snippets_print_what_the_walkthrough_says():
    """Every python block of the document, against the text block below it."""
    found = outputs(DOCUMENT.read_text("utf-8"))
    assert len(found) >= 10
    for snippet, printed in found:
        check(snippet["output"] or "", printed)


def test_a_wrong_output_is_noticed():
    """A small rounding passes; another number, another word or a missing line does not."""
    check("loss 1.0001 of 3\n", "loss 1.0002 of 3\n")
    for other in ("loss 1.01 of 3\n", "loss 1.0001 of 4\n", "lost 1.0001 of 3\n", ""):
        with pytest.raises(AssertionError):
            check("loss 1.0001 of 3\n", other)


if __name__ == "__main__":
    text, parts, end = DOCUMENT.read_text("utf-8"), [], 0
    for snippet, printed in outputs(text):
        below = f"\n```text\n{printed}```\n" if printed else ""
        parts += [text[end : snippet.start()], f"```python\n{snippet['code']}```\n{below}"]
        end = snippet.end()
    write_text(DOCUMENT, "".join(parts) + text[end:])
