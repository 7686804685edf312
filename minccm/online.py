"""Online: read a context, compress it, forget it; answer an input from the memory (paper: figure 5).

Three lines are the whole of it:

    session = Session(model, method, n)
    session.read(ids)             # h(t) = g_comp(Mem(t-1), c(t)), Mem(t) = g_update(Mem(t-1), h(t))
    session.generate(ids)         # O(t) ~ p( . | Mem(t), I(t))
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minccm.layout import step_columns
from minccm.lora import lora_gate
from minccm.memory import Memory
from minccm.methods import Columns, Method, visible
from minccm.model import Transformer, attention


class Recursive:
    """The view of one step online: [memory; the step's own tokens]. It catches the step's keys and values."""

    def __init__(self, method: Method, memory: Memory, added: Columns, watch: bool = False):
        self.memory, self.keys, self.values = memory, [], []
        self.comp, self.attention = added.comp, [] if watch else None
        seen = Columns(torch.cat([memory.columns.data, added.data]))
        self.mask = visible(method, added[:, None], seen)  # (N, M + N)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys and values (1, H, N, head_dim) -> (1, H, M + N, head_dim): [memory; the step's own]."""
        self.keys.append(keys[0])
        self.values.append(values[0])
        return (
            torch.cat([self.memory.keys[None, layer], keys], 2),
            torch.cat([self.memory.values[None, layer], values], 2),
        )

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (1, heads, N, head_dim) over keys and values (1, H, M + N, head_dim) -> (1, heads, N, head_dim)."""
        if self.attention is not None:  # of the step's COMP tokens to its text
            text = keys[0, :, len(self.memory) :][:, ~self.comp].repeat_interleave(queries.shape[1] // keys.shape[1], 0)
            scores = queries[0, :, self.comp] @ text.transpose(1, 2) * text.shape[2] ** -0.5  # (heads, n, N)
            self.attention.append(scores.float().softmax(-1).mean(0))
        return attention(queries, keys, values, self.mask)


class Session:
    """One conversation with a model, its context held as memory of `method` with n COMP tokens a step.

    adapted: False leaves the model's adapter out, for full or no context under a base that carries one.
    """

    def __init__(self, model: Transformer, method: Method, n: int, adapted: bool = True):
        self.model, self.method, self.n, self.adapted = model, method.of(model), n, adapted
        weight = model.embed_tokens.weight
        self.device = weight.device
        self.memory = Memory.empty(model.config, weight.dtype, weight.device)

    def anew(self) -> "Session":
        """One like this that has read nothing yet."""
        return type(self)(self.model, self.method, self.n, self.adapted)

    def read(self, ids: list[int], watch: bool = False) -> Tensor | None:
        """Compresses one context, given as token ids, into the memory.

        watch: returns what its COMP tokens listened to, fp32 (n, N): which share of the attention that they paid to
        the context's N text tokens went to each, as a mean over layers and heads; None where there are no COMP tokens.
        """
        if not self.method.reads:
            return None
        _, keys, values, added, slots, attention = self._forward(self.memory, ids, last=False, watch=watch)
        self.memory = self.memory.updated(self.method, keys, values, added, slots, text=len(ids))
        return torch.stack(attention).mean(0) if watch and self.method.comp else None

    def logits(self, ids: list[int]) -> Tensor:
        """Logits (N, vocab_size) on input (and output) ids, from the memory. Changes nothing."""
        return self._forward(self.memory, ids, last=True)[0]

    @torch.no_grad()
    def generate(
        self,
        ids: list[int],
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stop: bool = True,
    ) -> Iterator[int]:
        """Token ids of an output, one by one, up to EOS (which is not yielded; stop=False goes on past it).

        The memory stays as it is.

        temperature 0 takes the likeliest token; above it, tokens are drawn from the likeliest ones that together have
        the probability top_p.
        """
        memory = self.memory
        for _ in range(max_tokens):
            logits, keys, values, added, *_ = self._forward(memory, ids, last=True)
            token = int(sample(logits[-1:], temperature, top_p, generator))
            if stop and token == self.model.config.eos_id:
                return
            yield token
            memory = memory.extended(keys, values, added)
            memory.position, memory.tokens = memory.position + len(ids), memory.tokens + len(ids)
            ids = [token]

    def _check(self, ids: list[int]) -> None:
        """Raises ValueError for a text longer than the model's positions."""
        most = self.model.config.max_positions
        if len(ids) > most:
            raise ValueError(f"a text of {len(ids)} tokens is longer than the model's {most} positions: split it")

    def _forward(self, memory: Memory, ids: list[int], last: bool, watch: bool = False):
        """The model on one step, or the next piece of the last: logits, keys, values, columns, slots, attention."""
        self._check(ids)
        config = self.model.config
        offsets, added, slots = step_columns(self.method, self.n, [len(ids)], memory.step, memory.tokens, last)
        comp_ids = list(range(config.vocab_size, config.vocab_size + len(offsets) - len(ids)))
        tokens = torch.tensor([ids + comp_ids], dtype=torch.long, device=self.device)
        added, slots = Columns.of(added, self.device), Columns.of(slots, self.device)
        positions = torch.from_numpy(memory.position + offsets).to(self.device)[None]
        comp = added.comp.nonzero()[:, 0] if comp_ids else None  # without one, the adapter has nothing to do
        gate = lora_gate(comp, self.method.conditional, self.adapted)
        view = Recursive(self.method, memory, added, watch)
        rows = torch.arange(tokens.shape[1] if last else 0, device=self.device)  # a context is not predicted from
        logits = self.model(tokens, positions, view, comp, gate, rows)  # (N, vocab_size)
        return logits, torch.stack(view.keys), torch.stack(view.values), added, slots, view.attention


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None = None) -> Tensor:
    """Tokens (B,) drawn from logits (B, vocab_size): see Session.generate."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits.float() / temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities  # the likeliest token always stays
    picked = torch.multinomial(probabilities * (before < top_p), 1, generator=generator)
    return order.gather(-1, picked)[:, 0]
