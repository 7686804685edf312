"""Online inference: read a context, compress it, forget it; answer from the memory (paper: figure 5).

session = Session(model, get_method("ccm-concat"), n=2)
session.read(context_ids)         # h(t) = g_comp(Mem(t-1), c(t)); Mem(t) = g_update(Mem(t-1), h(t))
session.generate(input_ids)       # O(t) ~ p( . | Mem(t), I(t))
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from minccm.memory import Memory
from minccm.methods import Method, TokenInfo, attention_mask
from minccm.model import attend
from minccm.sequence import step_rows


class StepKV:
    """Keys and values of one step: the memory, then the step's own, which are recorded layer by layer."""

    def __init__(self, method: Method, memory: Memory, info: TokenInfo):
        self.memory, self.info, self.keys, self.values = memory, info, [], []
        self.mask = attention_mask(method, info, TokenInfo.cat([memory.info, info]))  # bool (N, M + N)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, heads, N, head_dim), k and v (1, kv_heads, N, head_dim) -> (1, heads, N, head_dim)."""
        self.keys.append(k[0])
        self.values.append(v[0])
        k = torch.cat([self.memory.keys[None, layer].to(k.dtype), k], 2)
        v = torch.cat([self.memory.values[None, layer].to(v.dtype), v], 2)
        return attend(q, k, v, self.mask)


class Session:
    """One conversation, its context held as the memory of `method` with n COMP tokens a step."""

    make_kv = StepKV

    def __init__(self, model, method: Method, n: int):
        self.model, self.method, self.n = model, method.bind(model), n
        weight = model.embed_tokens.weight
        self.memory = Memory.empty(model.config, method, weight.dtype, weight.device)

    def fresh(self) -> "Session":
        """A session like this one that has read nothing."""
        return type(self)(self.model, self.method, self.n)

    def read(self, ids: list[int]) -> None:
        """Compresses one context, given as token ids, into the memory."""
        if self.method.reads_context:
            _, kv, slots = self._forward(self.memory, ids, question=0)
            keys, values = torch.stack(kv.keys), torch.stack(kv.values)
            self.memory = self.memory.update(self.method, keys, values, kv.info, slots, text=len(ids))

    def logits(self, ids: list[int]) -> Tensor:
        """Logits (N, vocab_size) of input (and output) ids. The memory stays as it is."""
        return self._forward(self.memory, ids, question=1)[0]

    @torch.no_grad()
    def generate(
        self,
        ids: list[int],
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stop_ids: tuple[int, ...] | None = None,
    ) -> Iterator[int]:
        """Yields the output's token ids one by one, up to one of stop_ids (by default EOS). The memory stays as it is.

        temperature 0 takes the most likely token. Otherwise tokens are drawn from the most likely ones that together
        have the probability top_p. An empty stop_ids never stops early.
        """
        memory, stop_ids = self.memory, (self.model.config.eos_id,) if stop_ids is None else stop_ids
        for _ in range(max_tokens):
            logits, kv, _ = self._forward(memory, ids, question=1)
            token = int(sample(logits[-1:], temperature, top_p, generator))
            if token in stop_ids:
                return
            yield token
            memory = memory.append(torch.stack(kv.keys), torch.stack(kv.values), kv.info)
            memory = replace(memory, tokens=memory.tokens + len(ids), text=memory.text + len(ids))
            ids = [token]

    def _forward(self, memory: Memory, ids: list[int], question: int) -> tuple[Tensor, StepKV, TokenInfo]:
        """Runs one context (question 0), or a part of an input and output, after the memory.

        Returns logits (N, vocab_size), or of a context none (0, vocab_size); its keys and values; the slots it adds.
        """
        config, device = self.model.config, memory.keys.device
        if len(ids) > config.max_positions:
            raise ValueError(
                f"a text of {len(ids)} tokens exceeds the model's {config.max_positions} positions: split it"
            )
        offsets, info, slots = step_rows(self.method, self.n, len(ids), memory.step, memory.tokens, question)
        info, slots = TokenInfo.from_rows(info, device), TokenInfo.from_rows(slots, device)
        comp_ids = [config.vocab_size + j for j in range(len(offsets) - len(ids))]
        tokens = torch.tensor([ids + comp_ids], dtype=torch.int64, device=device)
        positions = memory.text + torch.tensor([offsets], dtype=torch.int64, device=device)
        kv, lora_mask = self.make_kv(self.method, memory, info), self.method.lora_mask(info)[None]
        at = torch.full_like(tokens, question > 0, dtype=torch.bool)
        return self.model(tokens, positions, kv, lora_mask, at), kv, slots


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None = None) -> Tensor:
    """Tokens (B,) drawn from logits (B, vocab_size), as Session.generate describes."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits.float() / temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities  # the most likely token always stays
    picked = torch.multinomial(probabilities * (before < top_p), 1, generator=generator)
    return order.gather(-1, picked)[:, 0]
