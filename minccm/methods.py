"""The methods, as data: what each time step keeps, and which keys a query may attend to (paper: figure 2).

Everything else follows from an entry of METHODS: the token sequence, the mask of parallel training, the recursion at
inference, and what the memory drops. There are three kinds of keys: text tokens, COMP tokens, and memory slots, which
hold weighted means of COMP keys and values. A token always attends causally within its own time step; `attends` says
which keys of earlier steps it attends to as well.

    concat   Mem(t) = [Mem(t-1); h(t)]                  later steps attend to the COMP tokens themselves
    merge    Mem(t) = (1 - a_t) Mem(t-1) + a_t h(t)     later steps attend to memory slots; merge_rate gives a_t

A new method is one more entry here, or a file of its own that defines METHOD (see examples/).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

TEXT, COMP, SLOT, PAD = range(4)  # kinds of tokens and memory slots


@dataclass(frozen=True)
class TokenInfo:
    """What attention needs to know about tokens and memory slots. Each field is int64 (..., N)."""

    kind: Tensor  # TEXT, COMP, SLOT or PAD
    step: Tensor  # time step, from 0; inputs and outputs belong to the step after the last context
    slot: Tensor  # j of COMP token j or memory slot j, and of text that is pooled into slot j; -1 for other text
    order: Tensor  # index in the sequence, for causality; 0 is BOS
    question: Tensor  # 0 in contexts; 1, 2, ... in input and output: several questions can share one memory

    is_text = property(lambda self: self.kind == TEXT)
    is_comp = property(lambda self: self.kind == COMP)
    is_slot = property(lambda self: self.kind == SLOT)
    is_bos = property(lambda self: self.order == 0)
    is_query = property(lambda self: self.question > 0)  # input and output, which are answered and not compressed

    @classmethod
    def from_rows(cls, rows: list[tuple[int, ...]], device="cpu") -> "TokenInfo":
        """TokenInfo (N,) from N tuples (kind, step, slot, order, question)."""
        return cls(*torch.tensor(rows, dtype=torch.int64, device=device).view(-1, len(fields(cls))).T)

    @staticmethod
    def cat(parts: list["TokenInfo"]) -> "TokenInfo":
        """The parts one after another along the last dimension."""
        return TokenInfo(*(torch.cat([getattr(part, f.name) for part in parts], -1) for f in fields(parts[0])))

    def map(self, function: Callable[[Tensor], Tensor]) -> "TokenInfo":
        """The function applied to each field."""
        return TokenInfo(*(function(getattr(self, f.name)) for f in fields(self)))

    def to(self, device) -> "TokenInfo":
        """The same on a device."""
        return self.map(lambda field: field.to(device))

    def __getitem__(self, index) -> "TokenInfo":
        return self.map(lambda field: field[index])

    def __len__(self) -> int:
        """N: tokens or slots in a row."""
        return self.kind.shape[-1]


@dataclass(frozen=True)
class Method:
    """One way to compress context. The number n of COMP tokens (or memory slots) per step is chosen separately."""

    name: str
    about: str
    attends: Callable[[TokenInfo, TokenInfo], Tensor | bool]  # (query, key) -> bool, for keys of earlier steps
    comp_after: str | None = "step"  # COMP tokens follow each "step", or the "end" of all contexts, or there are none
    merge_rate: Callable[..., float | Tensor] | None = None  # a_t for t = 1, 2, ...; None: nothing is merged
    learned: tuple[float, ...] = ()  # initial values of numbers that train with the adapter: merge_rate(t, numbers)
    pools: int = COMP  # what slots are made of: COMP tokens, or the TEXT of a step in n equal parts
    delay: int = 0  # a step is merged this many steps later
    stride: int = 1  # a slot continues the slot of this many steps before
    conditional: bool = True  # LoRA acts on COMP tokens only; False: plain LoRA, which acts on every token
    reads_context: bool = True  # False: contexts are left out of the sequence
    sink: bool = False  # the BOS token stays visible to every query
    max_train_contexts: int | None = None  # train samples have at most this many contexts

    def bind(self, model) -> "Method":
        """The same method with merge_rate(t) using the numbers that the model's adapter has learned."""
        if not self.learned:
            return self
        return replace(self, merge_rate=lambda t: self.merge_rate(t, model.learned), learned=())

    def lora_mask(self, info: TokenInfo) -> Tensor:
        """m of y = W x + m (alpha/r) B A x, the tokens that LoRA acts on (paper: table 21). bool (..., N)."""
        return info.is_comp if self.conditional else info.kind != PAD


def _running_mean(t: int) -> float:
    return 1 / t


def _moving_average(t: int) -> float:  # EMA (paper: table 16)
    return 1.0 if t == 1 else 0.5


def _last_slots(q: TokenInfo, k: TokenInfo) -> Tensor:
    """Merged memory as it was after the step before the query's."""
    return k.is_slot & (k.step == q.step - 1)


METHODS = {
    method.name: method
    for method in [
        Method("none", "no context: input and output only", lambda q, k: False, comp_after=None, reads_context=False),
        Method("full", "full context", lambda q, k: k.is_text, comp_after=None),
        Method("gist", "fixed context: one block of COMP after all contexts", lambda q, k: k.is_comp, comp_after="end"),
        Method("ccm-concat", "the memory grows by n pairs a step", lambda q, k: k.is_comp),
        Method(
            "ccm-concat-independent",
            "as ccm-concat; a step is compressed without reading the memory",
            lambda q, k: k.is_comp & q.is_query,
        ),
        Method(
            "gist-online",
            "as ccm-concat-independent; trained on one context at a time",
            lambda q, k: k.is_comp & q.is_query,
            max_train_contexts=1,
        ),
        Method("ccm-concat-plain", "as ccm-concat, with plain LoRA", lambda q, k: k.is_comp, conditional=False),
        Method("ccm-merge", "n slots: the mean of all steps", _last_slots, merge_rate=_running_mean),
        Method("ccm-merge-ema", "n slots: a moving average, rate 0.5", _last_slots, merge_rate=_moving_average),
        Method(
            "ccm-merge-plain",
            "as ccm-merge, with plain LoRA",
            _last_slots,
            merge_rate=_running_mean,
            conditional=False,
        ),
        Method(
            "ccm-merge-independent",
            "as ccm-merge; a step is compressed without reading the memory",
            lambda q, k: _last_slots(q, k) & q.is_query,
            merge_rate=_running_mean,
        ),
        Method(
            "compressive",
            "the text of each step, mean-pooled into n slots (Compressive Transformer)",
            lambda q, k: k.is_slot,
            comp_after=None,
            merge_rate=lambda t: 1.0,
            pools=TEXT,
            conditional=False,
        ),
    ]
}


def get_method(name: str, sink: bool = False) -> Method:
    """The method of that name, with or without an attention sink. Raises ValueError, listing the names there are."""
    if name not in METHODS:
        raise ValueError(
            f"unknown method {name!r:.60}: choose one of {', '.join(METHODS)}, or a file with --method FILE.py"
        )
    return replace(METHODS[name], sink=sink)


def attention_mask(method: Method, q: TokenInfo, k: TokenInfo) -> Tensor:
    """May query i attend to key j? bool (..., Q, K) for queries (..., Q) and keys (..., K).

    The one rule behind the training mask (paper: algorithm 1), the recursion, and what the memory keeps.
    """
    q, k = q.map(lambda field: field[..., :, None]), k.map(lambda field: field[..., None, :])
    own_step = (k.step == q.step) & (k.question == q.question) & ~k.is_slot  # padding attends to itself: no empty row
    earlier = method.attends(q, k) | k.is_bos if method.sink else method.attends(q, k)
    return (k.order <= q.order) & (own_step | earlier & (k.question == 0))


def merge_rate_at(method: Method, step: int) -> Tensor:
    """a_t of the slots made after `step` (from 0): fp64 (1,), or (n,) where slots have rates of their own."""
    return torch.as_tensor(method.merge_rate((step - method.delay) // method.stride + 1), dtype=torch.float64).flatten()


def merge_weights(method: Method, steps: int) -> Tensor:
    """Row t holds the weights of h(1), ..., h(t) in Mem(t): fp64 (T, T, 1), or (T, T, n) with a rate for each slot.

    Row t is (1 - a_t) times row t-1, plus a_t for h(t). With a_t = 1/t all of them are 1/t (paper: table 16).
    """
    rows = []
    for t in range(steps):
        row = rows[t - method.stride] if t >= method.stride else torch.zeros(steps, 1, dtype=torch.float64)
        if t >= method.delay:
            rate = merge_rate_at(method, t)
            newest = torch.zeros(steps, 1, dtype=torch.float64, device=rate.device)
            newest[t - method.delay] = 1.0
            row = (1 - rate) * row.to(rate.device) + rate * newest
        rows.append(row)
    if not rows:
        return torch.zeros(0, 0, 1, dtype=torch.float64)
    return torch.stack(torch.broadcast_tensors(*(row.to(rows[-1].device) for row in rows)))  # learned rates: on a GPU
