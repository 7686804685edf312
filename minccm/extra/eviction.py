"""KV caches that keep some text tokens and drop the rest. They need no training: to compare with CCM.

    window   the newest tokens and the first one, the attention sink (StreamingLLM)
    h2o      half of the budget: the newest tokens; the other half: the tokens with the most attention so far (H2O)
    snapkv   as h2o, with the attention of the newest turn only, as the maximum over neighbors (SnapKV)

A turn is read in one pass: its tokens attend to the cache and to each other. Then each layer and KV head keeps its
`budget` best pairs. So between turns a cache holds exactly `budget` pairs, like a compressed memory, and the tokens of
an input and its output come on top, also like there. A query of grouped-query attention counts for its KV head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minccm.extra.evaluate import Evaluator, Run, memory_pairs
from minccm.io.weights import pair_bytes
from minccm.model import Transformer
from minccm.sequence import Sequence, build_sequence

POOL = 5  # neighbors of a token in SnapKV, itself included


class Candidates(NamedTuple):
    """The pairs of one layer among which those that stay are chosen, each (B, kv_heads, K), sorted by order."""

    order: Tensor  # int64, number of the token in its sample; -1: padding
    total: Tensor  # fp32, attention received so far
    newest: Tensor  # fp32, attention received from the newest turn
    budget: Tensor  # int64 (B, 1, 1)

    def among_last(self, count: Tensor) -> Tensor:
        """Is a pair one of the last `count`? bool (B, kv_heads, K)."""
        return self.order.argsort(-1, descending=True).argsort(-1) < count


def window(pairs: Candidates) -> Tensor:
    return torch.where(pairs.order == 0, torch.inf, pairs.order.float())


def h2o(pairs: Candidates) -> Tensor:
    return pairs.total.masked_fill(pairs.among_last(pairs.budget // 2), torch.inf)


def snapkv(pairs: Candidates) -> Tensor:
    pooled = F.max_pool1d(pairs.newest, POOL, stride=1, padding=POOL // 2)
    return pooled.masked_fill(pairs.among_last(pairs.budget // 2), torch.inf)


POLICIES: dict[str, Callable[[Candidates], Tensor]] = {"window": window, "h2o": h2o, "snapkv": snapkv}


class EvictingKV:
    """The cache of a batch of conversations. policy: gives each pair a priority (B, kv_heads, K).

    budgets: int64 (B,), pairs that each conversation keeps in each layer and KV head.
    """

    def __init__(self, model: Transformer, policy: Callable[[Candidates], Tensor], budgets: Tensor):
        config, weight = model.config, model.embed_tokens.weight
        self.policy, self.budget = policy, budgets.to(weight.device)[:, None, None]
        shape = len(budgets), config.n_kv_heads, 0
        pairs = torch.empty(*shape, config.head_dim, dtype=weight.dtype, device=weight.device)
        order = torch.empty(shape, dtype=torch.int64, device=weight.device)
        # of each layer: keys, values (B, kv_heads, K, head_dim), order and total attention (B, kv_heads, K)
        self.layers = [(pairs, pairs, order, order.float())] * config.n_layers

    def begin(self, order: Tensor, keep: bool) -> None:
        """The next pass reads tokens of this order, int64 (B, N), -1 for padding. keep: the cache gets them."""
        self.turn, self.keep = order, keep

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, heads, N, head_dim), k and v (B, kv_heads, N, head_dim) -> (B, heads, N, head_dim)."""
        keys, values, order, total = self.layers[layer]
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        order = torch.cat([order, self.turn[:, None].expand(k.shape[:3])], 2)
        allowed = (order[:, :, None] >= 0) & (order[:, :, None] <= self.turn[:, None, :, None])  # (B, kv_heads, N, K)
        grouped = q.unflatten(1, (k.shape[1], -1))  # (B, kv_heads, group, N, head_dim)
        scores = (grouped @ keys[:, :, None].mT).float() * q.shape[3] ** -0.5
        lowest = torch.finfo(scores.dtype).min  # not -inf: padding has no key at all
        weights = scores.masked_fill(~allowed[:, :, None], lowest).softmax(-1)
        y = weights.to(v.dtype) @ values[:, :, None]
        if self.keep:
            newest = (weights * (self.turn >= 0)[:, None, None, :, None]).sum((2, 3))  # (B, kv_heads, K)
            total = F.pad(total, (0, k.shape[2])) + newest
            self.layers[layer] = self._evict(keys, values, Candidates(order, total, newest, self.budget))
        return y.flatten(1, 2)

    def _evict(self, keys: Tensor, values: Tensor, pairs: Candidates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pairs that stay, sorted by order, with padding where a conversation has fewer than another."""
        priority = self.policy(pairs).masked_fill(pairs.order < 0, -torch.inf)
        best = priority.argsort(dim=-1, descending=True, stable=True)[
            :, :, : int(self.budget.max())
        ]  # ties: the older one
        rank = torch.arange(best.shape[2], device=keys.device)
        order, by_order = pairs.order.gather(2, best).masked_fill(rank >= self.budget, -1).sort(-1)
        index = best.gather(2, by_order)
        wide = index[..., None].expand(-1, -1, -1, keys.shape[3])
        return keys.gather(2, wide), values.gather(2, wide), order, pairs.total.gather(2, index)

    def __len__(self) -> int:
        """The most pairs that a conversation holds in a layer and KV head."""
        return max(int((order >= 0).sum(2).max()) for _, _, order, _ in self.layers)


@dataclass
class EvictionEvaluator(Evaluator):
    """Measures full context (Run(METHODS["full"])) from an evicted cache with as many pairs as the memory of `like`."""

    policy: str = "window"
    like: Run | None = None

    def budget(self, sequence: Sequence) -> int:
        """Pairs that the memory of `like` holds after the contexts of a sample."""
        lengths = sequence.info.step[sequence.info.question == 0].bincount().tolist()
        contexts, method, n = [[0] * length for length in lengths], self.like.method, self.like.n
        return max(1, memory_pairs(method, build_sequence(method, n, 1, contexts, [([0], [0])])))

    @torch.no_grad()
    def score(self, run: Run, sequences: list[Sequence]) -> list[tuple[Tensor, Tensor]]:
        """As Evaluator.score; the sequences are those of full context."""
        groups: dict[int, list[int]] = {}  # samples with equally many steps
        for i, sequence in enumerate(sequences):
            groups.setdefault(int(sequence.info.step.max()), []).append(i)
        scores: list = [None] * len(sequences)
        for indices in groups.values():
            size = max(1, self.max_tokens // max(len(sequences[i]) for i in indices))
            for start in range(0, len(indices), size):
                part = indices[start : start + size]
                for i, score in zip(part, self._score([sequences[i] for i in part])):
                    scores[i] = score
        return scores

    def _score(self, sequences: list[Sequence]) -> list[tuple[Tensor, Tensor]]:
        device = self.model.embed_tokens.weight.device
        budgets = torch.tensor([self.budget(sequence) for sequence in sequences])
        kv, last = EvictingKV(self.model, POLICIES[self.policy], budgets), int(sequences[0].info.step.max())
        pad = lambda rows, value: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
        for step in range(last + 1):
            turns = [sequence.info.step == step for sequence in sequences]
            fields = [(s.tokens[turn], s.positions[turn], s.info.order[turn]) for s, turn in zip(sequences, turns)]
            tokens, positions, order = (pad(rows, value).to(device) for rows, value in zip(zip(*fields), (0, 0, -1)))
            at = pad([s.loss_weights[turn] > 0 for s, turn in zip(sequences, turns)], False).to(device)
            kv.begin(order, keep=step < last)
            logits = self.model(tokens, positions, kv, at=at)
        labels = tokens.roll(-1, dims=1)[at]
        logprobs = -F.cross_entropy(logits.float(), labels, reduction="none").cpu()
        lengths = at.sum(1).tolist()
        return list(zip(logprobs.split(lengths), (logits.argmax(-1) == labels).cpu().split(lengths)))

    def sizes(self, method, sequences: list[Sequence]) -> dict:
        """Mean pairs and bytes of the cache before the input: the budget, or all tokens where they are fewer."""
        held = [min(self.budget(s), int((s.info.question == 0).sum())) for s in sequences]
        pairs = sum(held) / len(held)
        return {"kv_pairs": pairs, "kv_bytes": pairs * pair_bytes(self.model)}
