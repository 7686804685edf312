"""A new method is a short file. The core gives it the rest: mask, parallel training, recursion, saving, picture."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minccm.extra.picture import draw_masks
from minccm.io.adapters import load_adapter, save_adapter
from minccm.io.options import load_method
from minccm.methods import TokenInfo, attention_mask, get_method, merge_weights
from minccm.session import Session
from tests.conftest import ALL_METHODS, EXAMPLES, ROOT, random_model
from tests.test_parallel_is_recursive import TOLERANCE, gradients, parallel_logits, recursive_logits

FILES = sorted((ROOT / "examples").glob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
words = st.lists(st.integers(3, 39), max_size=3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(FILES), st.integers(1, 2), st.lists(words, min_size=9, max_size=20), st.booleans())
def test_parallel_is_recursive(path, n, contexts, sink):
    """Logits and gradients, over more steps than the examples keep apart."""
    method, question = load_method(str(path), sink), ([5], [7, 8])
    model = random_model(n, learned=method.learned)
    (parallel,) = parallel_logits(model, method, n, [(contexts, question)])
    recursive = recursive_logits(model, method, n, contexts, question)
    torch.testing.assert_close(parallel, recursive, **TOLERANCE)
    expected = gradients(model, recursive, question[1])
    for name, gradient in gradients(model, parallel, question[1]).items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCE)


def test_decay_learns_its_rate():
    """The rate has a gradient, and a step's weight falls by (1 - a) with each later step."""
    method = EXAMPLES["decay"]
    model = random_model(2, learned=method.learned)
    (logits,) = parallel_logits(model, method, 2, [([[5, 6], [7], [8]], ([9], [10]))])
    logits.sum().backward()
    assert model.learned.grad.abs() > 0
    weights, a = merge_weights(method.bind(model), 4)[3, :, 0], torch.sigmoid(model.learned)
    torch.testing.assert_close(weights[1:], torch.cat([a * (1 - a) ** 2, a * (1 - a), a]))


@pytest.mark.parametrize("name, pairs", [("decay", [2] * 12), ("two-level", [2, 4, 6, 8, 10, 12] + [14] * 6)])
def test_memory_stops_growing(name, pairs):
    """KV pairs held after each of 12 steps, n = 2."""
    method = EXAMPLES[name]
    session, held = Session(random_model(2, learned=method.learned), method, 2), []
    for step in range(12):
        session.read([5 + step, 6])
        held.append(len(session.memory))
    assert held == pairs


def test_carousel_is_concat_until_it_is_full():
    """Up to eight steps its answers are those of ccm-concat; after that it holds no more."""
    model, sessions = random_model(2), []
    for method in (get_method("ccm-concat"), EXAMPLES["carousel"]):
        sessions.append(Session(model, method, 2))
        for step in range(8):
            sessions[-1].read([5 + step, 6])
    concat, carousel = sessions
    torch.testing.assert_close(carousel.logits([3, 4]), concat.logits([3, 4]), **TOLERANCE)
    for session in sessions:
        session.read([20, 21])
    assert (len(concat.memory), len(carousel.memory)) == (18, 16)
    assert not torch.allclose(carousel.logits([3, 4]), concat.logits([3, 4]))


def test_saved_and_loaded(tmp_path):
    """An adapter keeps the numbers that the method learned. It is refused unless the user gives the method's file."""
    method = EXAMPLES["decay"]
    model = random_model(2, torch.float32, learned=method.learned)
    save_adapter(tmp_path, model, method, 2)
    fresh = random_model(2, torch.float32, adapter=False)
    assert load_adapter(fresh, tmp_path, method) == (method, 2)
    assert torch.equal(fresh.learned, model.learned)
    with pytest.raises(ValueError, match="give it with --method FILE.py"):
        load_adapter(random_model(2, torch.float32, adapter=False), tmp_path)


def test_in_the_picture():
    """The masks of all methods can be drawn, those of the examples included."""
    titles = {axes.get_title() for axes in draw_masks(ALL_METHODS.values()).axes}
    assert ALL_METHODS.keys() <= titles


@each_file
def test_about_20_lines(path):
    assert len(path.read_text().splitlines()) <= 25


def test_trains_and_is_evaluated(tmp_path):
    """From the command line, by the name of the file."""
    method = ["--method", "examples/two_level.py", "--device", "cpu"]
    steps = ["--steps", "2", "--batch", "2", "--eval-samples", "0", "--out", str(tmp_path)]
    for command in (
        ["train.py", *method, *steps],
        ["eval.py", *method, "--adapter", str(tmp_path), "--samples", "2", "--time-steps", "2"],
    ):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "two-level" in done.stdout


@each_file
def test_can_be_compiled(path):
    """torch.compile looks up where functions come from. It finds those of a method's file."""
    method, some = load_method(str(path)), TokenInfo.from_rows([(kind, 1, 0, 5, 0) for kind in range(3)])
    rule = lambda q, k: attention_mask(method, q, k)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(rule, backend="eager", fullgraph=True)(some, some), rule(some, some))


def test_a_file_without_a_method(tmp_path):
    (tmp_path / "empty.py").write_text("METHOD = 3\n")
    with pytest.raises(ValueError, match="does not define METHOD"):
        load_method(str(tmp_path / "empty.py"))
