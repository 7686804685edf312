"""A new method is a short file, and the core gives it the rest: mask, parallel training, recursion, saving, picture."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minccm.checkpoint import load_adapter, save_adapter
from minccm.methods import METHODS, Columns, columns, get_method, merge_weights, visible
from minccm.online import Session
from minccm.picture import draw_masks
from tests.conftest import EXAMPLES, ROOT, random_model
from tests.test_parallel_is_recursive import gradients, parallel_logits, recursive_logits

FILES = sorted((ROOT / "examples").glob("*.py"))
words = st.lists(st.integers(3, 39), max_size=3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(EXAMPLES), st.integers(1, 2), st.lists(words, min_size=9, max_size=20), st.booleans())
def test_parallel_is_recursive(name, n, contexts, sink):
    """Logits, and the gradients of all that trains, over more steps than the two levels and the places hold apart."""
    method, target = get_method(name, sink), [7, 8]
    model = random_model(n, learned=method.learned)
    (parallel,) = parallel_logits(model, method, n, [[(contexts, [5], target)]])
    recursive = recursive_logits(model, method, n, contexts, [5, *target])[-3:-1]
    torch.testing.assert_close(parallel, recursive, atol=1e-9, rtol=1e-9)
    expected = gradients(model, recursive, target)
    for name, got in gradients(model, parallel, target).items():
        torch.testing.assert_close(got, expected[name], atol=1e-9, rtol=1e-9)


def test_decay_learns_its_rate():
    """The rate has a gradient, and what is k steps old counts (1 - a)^k of what it did."""
    method, model = get_method("decay"), random_model(2, learned=get_method("decay").learned)
    (logits,) = parallel_logits(model, method, 2, [[([[5, 6], [7], [8]], [9], [10])]])
    logits.sum().backward()
    assert model.learned.grad.abs() > 0
    weights, a = merge_weights(method.of(model), 4)[3, :, 0], torch.sigmoid(model.learned)
    torch.testing.assert_close(weights[1:], torch.cat([a * (1 - a) ** 2, a * (1 - a), a]))


@pytest.mark.parametrize("name, pairs", [("decay", [2] * 12), ("two-level", [2, 4, 6, 8, 10, 12] + [14] * 6)])
def test_memory_stops_growing(name, pairs):
    """What is held after each of 12 steps, n = 2."""
    method = get_method(name)
    session, held = Session(random_model(2, learned=method.learned), method, 2), []
    for step in range(12):
        session.read([5 + step, 6])
        held.append(len(session.memory))
    assert held == pairs


def test_carousel_is_concat_until_it_is_full():
    """Up to eight steps it answers as ccm-concat does, to rounding; after that it holds no more."""
    model, sessions = random_model(2), []
    for name in ("ccm-concat", "carousel"):
        sessions.append(Session(model, get_method(name), 2))
        for step in range(8):
            sessions[-1].read([5 + step, 6])
    concat, carousel = sessions
    torch.testing.assert_close(carousel.logits([3, 4]), concat.logits([3, 4]), atol=1e-9, rtol=1e-9)
    for session in sessions:
        session.read([20, 21])
    assert (len(concat.memory), len(carousel.memory)) == (18, 16)
    assert not torch.allclose(carousel.logits([3, 4]), concat.logits([3, 4]))


def test_saved_and_loaded(tmp_path):
    """An adapter keeps what the method learned; it is refused as another method, and its file is asked for by name."""
    method = get_method("decay")
    model = random_model(2, torch.float32, learned=method.learned)
    save_adapter(tmp_path, model, method, 2)
    fresh = random_model(2, torch.float32, adapter=False)
    assert load_adapter(fresh, tmp_path, str(ROOT / "examples" / "decay.py")) == (method, 2)
    assert torch.equal(fresh.learned, model.learned)
    about = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps(about | {"method": "unheard-of"}))
    with pytest.raises(ValueError, match="take a file FILE.py that defines it"):
        load_adapter(random_model(2, torch.float32, adapter=False), tmp_path)


def test_in_the_picture():
    """The masks of all methods are drawn, those of the examples among them."""
    titles = {axes.get_title() for axes in draw_masks().axes}
    assert all(any(title.startswith(name) for title in titles) for name in METHODS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_about_25_lines(path):
    assert len(path.read_text().splitlines()) <= 27


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_compiled(path):
    """The compiler, which has to find where functions come from, follows those of a method's file."""
    method, some = get_method(str(path)), Columns.of(columns(kind=torch.arange(3).numpy(), step=1))
    ask = lambda q, k: visible(method, q[:, None], k[None])
    torch._dynamo.reset()
    assert torch.equal(torch.compile(ask, backend="eager", fullgraph=True)(some, some), ask(some, some))


def test_a_file_without_a_method(tmp_path):
    (tmp_path / "empty.py").write_text("METHOD = 3\n")
    with pytest.raises(ValueError, match="defines no METHOD"):
        get_method(str(tmp_path / "empty.py"))
