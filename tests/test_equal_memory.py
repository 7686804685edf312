"""Evicted caches: with space for everything they are full context, and they never hold more than their budget."""

import json

import pytest
import torch

from data.encode import encoder
from experiments import equal_memory
from minccm.extra.evaluate import Evaluator, Run
from minccm.extra.eviction import POLICIES, Candidates, EvictingKV, EvictionEvaluator, h2o, snapkv, window
from minccm.io.adapters import load_adapter
from minccm.io.options import open_base
from minccm.io.templates import TEMPLATES
from minccm.methods import get_method
from minccm.sequence import build_sequence
from tests.conftest import random_model

FULL = Run(get_method("full"))
each_policy = pytest.mark.parametrize("policy", POLICIES)


def sequences():
    """Samples of full context with different lengths and numbers of contexts."""
    samples = [[[1, 5, 6], [7, 8], [9] * 5], [[1, 20], [21, 22, 23, 24], [25]], [[1, 11, 12, 13]]]
    return [build_sequence(FULL.method, 0, 40, contexts, [([4, 3], [30, 31, 2])]) for contexts in samples]


def logprobs(evaluator: Evaluator) -> torch.Tensor:
    return torch.cat([score for score, _ in evaluator.score(FULL, sequences())])


def evict(model, policy: str, budget: int, max_tokens: int = 4096, like: Run | None = None) -> EvictionEvaluator:
    evaluator = EvictionEvaluator(model, None, None, max_tokens, policy, like or FULL)
    if not like:
        evaluator.budget = lambda sequence: budget
    return evaluator


@each_policy
def test_enough_memory_is_full_context(policy):
    """With a budget as large as full context, or larger, the numbers are those of full context."""
    model = random_model(2)
    expected = logprobs(Evaluator(model, None, None))
    assert torch.allclose(logprobs(evict(model, policy, 1000)), expected, atol=1e-6)  # attention is fp32 here
    assert torch.allclose(logprobs(evict(model, policy, 0, like=FULL)), expected, atol=1e-6)
    assert not torch.allclose(logprobs(evict(model, policy, 3)), expected, atol=1e-3)


@each_policy
def test_a_batch_is_its_samples(policy):
    """Padding changes nothing: each sample alone has the numbers that it has in a batch."""
    model = random_model(2)
    assert torch.allclose(logprobs(evict(model, policy, 4)), logprobs(evict(model, policy, 4, max_tokens=1)), atol=1e-6)


@each_policy
@torch.no_grad()
def test_a_budget_is_kept(policy):
    """No layer or KV head holds more pairs after a turn than its budget; a window holds the sink and the newest."""
    model = random_model(2)
    kv, start = EvictingKV(model, POLICIES[policy], torch.tensor([2, 5])), 0
    for length in (1, 3, 4, 6, 1):
        order = torch.arange(start, start + length).expand(2, -1)
        kv.begin(order, keep=True)
        model(order % 40, order, kv)
        start += length
        for _, _, held, _ in kv.layers:
            assert (held >= 0).sum(-1).tolist() == [[min(start, 2)] * 2, [min(start, 5)] * 2]
    if policy == "window":
        assert held[0, 0, -2:].tolist() == [0, 14] and held[1, 1].tolist() == [0, 11, 12, 13, 14]


def test_priorities():
    """H2O keeps the most attention of all time, SnapKV that of the newest turn and its neighbors."""
    total = torch.tensor([9.0, 0, 0, 5, 0, 0, 0, 0, 1, 0])[None, None]
    newest = torch.tensor([0.0, 0, 0, 0, 2, 0, 0, 0, 0, 0])[None, None]
    pairs = Candidates(torch.arange(10)[None, None], total, newest, torch.tensor([[[4]]]))
    kept = lambda policy, count=4: sorted(policy(pairs)[0, 0].topk(count).indices.tolist())
    assert kept(h2o) == [0, 3, 8, 9]
    assert kept(snapkv, 7) == [2, 3, 4, 5, 6, 8, 9]
    assert kept(window) == [0, 7, 8, 9]


def test_as_many_pairs_as_the_memory(tiny):
    """The budget is what the memory holds: n a step for ccm-concat, n for ccm-merge."""
    model, tokenizer = open_base(tiny)
    load_adapter(model, tiny / "ccm-concat")
    for name, n, pairs in (("ccm-concat", 2, 8), ("ccm-merge", 32, 32)):
        own = Run(get_method(name), n)
        evaluator = EvictionEvaluator(
            model, tokenizer, encoder(tokenizer, TEMPLATES["dialogue"]), policy="h2o", like=own
        )
        (row,) = evaluator.by_time_step(FULL, "dialog", [4], 2)
        assert row["kv_pairs"] == pairs and "recall" in row


def test_the_command(monkeypatch, capsys, tmp_path, tiny):
    """A table with full context, the adapter, and each policy with equally many pairs; JSON and a picture."""
    files = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png"), "--device", "cpu"]
    small = ["--adapter", str(tiny / "ccm-concat"), "--samples", "2", "--time-steps", "1", "3"]
    monkeypatch.setattr("sys.argv", ["equal_memory", *small, *files])
    equal_memory.main()
    rows = json.loads((tmp_path / "a.json").read_text())
    pairs = {(row["method"], row["time_step"]): row["kv_pairs"] for row in rows if row["like"]}
    assert pairs == {(name, t): 2 * t for name in ("ccm-concat", *POLICIES) for t in (1, 3)}
    assert "pairs of ccm-concat" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
