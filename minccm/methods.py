"""The methods, as data: where COMP tokens go, what becomes of them, and who sees whom (paper: figure 2).

Everything else follows from an entry of METHODS: the layout of tokens, the mask and memory slots of the parallel pass,
the recursion, the picture. Columns of attention are of three kinds: text, COMP tokens, and memory slots, which hold
weighted means of keys and values. A token always sees its own step (one context, or input and output) up to itself;
`sees` says what it sees beyond. A slot of step t is what merging has made of steps 0 to t.

    concat   Mem(t) = [Mem(t-1); h(t)]                  later steps see the COMP tokens themselves
    merge    Mem(t) = (1 - a_t) Mem(t-1) + a_t h(t)     later steps see slots instead, and `rate` gives a_t

A new method is one more entry, or a file of its own, of which `--method FILE.py` takes the entry `METHOD`.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TEXT, COMP, SLOT, PAD = 0, 1, 2, 3  # kinds of columns


@dataclass(frozen=True)
class Columns:
    """What is known of the columns (keys) or rows (queries) of attention: int64 (B, C, 7), or (C, 7) for one sample."""

    data: Tensor

    sample = property(lambda self: self.data[..., 0])  # which sample of a packed row; below 0: none
    kind = property(lambda self: self.data[..., 1])  # TEXT, COMP, SLOT or PAD
    step = property(lambda self: self.data[..., 2])  # time step from 0; input and output have the last one
    index = property(lambda self: self.data[..., 3])  # j of a COMP token or slot; of text, its slot (or -1)
    order = property(lambda self: self.data[..., 4])  # place in its sample, for causality
    question = property(lambda self: self.data[..., 5])  # from 1, of input and output: several may ask one memory
    first = property(lambda self: self.data[..., 6] == 1)  # is BOS: the sink, where there is one

    last = property(lambda self: self.question > 0)  # of input and output, which answer and do not compress
    text = property(lambda self: self.kind == TEXT)
    comp = property(lambda self: self.kind == COMP)
    slot = property(lambda self: self.kind == SLOT)

    def __getitem__(self, key) -> "Columns":
        return Columns(self.data[key])

    @classmethod
    def of(cls, data: np.ndarray, device="cpu") -> "Columns":
        """From data as `columns` makes it, int64 (..., 7)."""
        return cls(torch.from_numpy(data).to(device))

    def to(self, device) -> "Columns":
        """The same columns on a device."""
        return Columns(self.data.to(device))


def columns(sample=0, kind=TEXT, step=0, index=-1, order=0, question=0, first=0) -> np.ndarray:
    """The data of C columns, int64 (C, 7), from integers and arrays (C,); one column from integers alone."""
    fields = (sample, kind, step, index, order, question, first)
    data = np.empty((next((len(field) for field in fields if isinstance(field, np.ndarray)), 1), 7), np.int64)
    for i, field in enumerate(fields):
        data[:, i] = field
    return data


@dataclass(frozen=True)
class Method:
    """One way of compressing context. n, the number of COMP tokens (or slots) a step, is chosen beside it."""

    name: str
    about: str
    sees: Callable[[Columns, Columns], Tensor | bool]  # (queries, keys) -> bool; beyond the query's own step
    comp: str | None = "step"  # COMP tokens stand after each "step", or after the "end" of all contexts, or nowhere
    rate: Callable[..., float | Tensor] | None = None  # a_t for t = 1, 2, ...: there are slots, merged at this rate
    learned: tuple[float, ...] = ()  # numbers that train with the adapter, from these on: rate(t, numbers)
    pools: str = "comp"  # what a slot is made of: "comp" tokens, or the "text" of the step in n equal parts
    delay: int = 0  # a step is merged only when this many steps have come after it
    stride: int = 1  # a slot goes on from that of this many steps before
    conditional: bool = True  # LoRA acts on COMP tokens alone; False: on every token, which is plain LoRA
    reads: bool = True  # False: contexts are left out altogether
    sink: bool = False  # BOS stays visible to everything
    contexts: int | None = None  # train samples have no more contexts than this

    def of(self, model) -> "Method":
        """The same with the numbers that a model's adapter has learned in place."""
        return replace(self, rate=lambda t, *_: self.rate(t, model.learned)) if self.learned else self


METHODS = {
    method.name: method
    for method in [
        Method("none", "no context: only input and output", lambda q, k: False, comp=None, reads=False),
        Method("full", "full context: every token seen", lambda q, k: k.text, comp=None, conditional=False),
        Method("gist", "fixed context: one block of COMP after all contexts", lambda q, k: k.comp, comp="end"),
        Method("ccm-concat", "the memory grows by n slots a step", lambda q, k: k.comp),
        Method(
            "ccm-concat-independent",
            "as ccm-concat, each step compressed without seeing the memory",
            lambda q, k: k.comp & q.last,
        ),
        Method(
            "gist-online",
            "as ccm-concat-independent, trained on one context at a time",
            lambda q, k: k.comp & q.last,
            contexts=1,
        ),
        Method(
            "ccm-concat-plain",
            "as ccm-concat, with a plain LoRA that acts on text, too",
            lambda q, k: k.comp,
            conditional=False,
        ),
        Method(
            "ccm-merge",
            "the memory stays at n slots, a running mean over steps",
            lambda q, k: k.slot & (k.step == q.step - 1),
            rate=lambda t: 1 / t,
        ),
        Method(
            "ccm-merge-ema",
            "as ccm-merge, with an exponential moving average of rate 0.5",
            lambda q, k: k.slot & (k.step == q.step - 1),
            rate=lambda t: 1.0 if t == 1 else 0.5,
        ),
        Method(
            "ccm-merge-plain",
            "as ccm-merge, with a plain LoRA that acts on text, too",
            lambda q, k: k.slot & (k.step == q.step - 1),
            rate=lambda t: 1 / t,
            conditional=False,
        ),
        Method(
            "ccm-merge-independent",
            "as ccm-merge, each step compressed without seeing the memory",
            lambda q, k: k.slot & (k.step == q.step - 1) & q.last,
            rate=lambda t: 1 / t,
        ),
        Method(
            "compressive",
            "each step's text mean-pooled into n slots (Compressive Transformer)",
            lambda q, k: k.slot,
            comp=None,
            rate=lambda t: 1.0,
            pools="text",
            conditional=False,
        ),
    ]
}


def get_method(name: str, sink: bool = False) -> Method:
    """The method of that name, or of a file FILE.py that defines METHOD; with or without the attention sink.

    A method from a file joins METHODS. Raises ValueError when there is none, listing the names there are.
    """
    if name.endswith(".py") and Path(name).is_file():
        # a module like any other, as the compiler, which follows its functions, looks for it by its name
        spec = importlib.util.spec_from_file_location(f"method_{Path(name).stem}", name)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        method = getattr(module, "METHOD", None)
        if not isinstance(method, Method):
            raise ValueError(f"{name} defines no METHOD = Method(...)")
        name = METHODS.setdefault(method.name, method).name
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}: take a file FILE.py that defines it, or {', '.join(METHODS)}")
    return replace(METHODS[name], sink=sink)


def visible(method: Method, q: Columns, k: Columns) -> Tensor:
    """THE predicate: may query q see key k? Bool, of the shape that q and k broadcast to.

    Dense mask, block mask, picture, recursion and eviction all ask this one question.
    """
    own_step = (k.step == q.step) & (k.question == q.question) & ~k.slot  # padding sees itself, so no row is empty
    beyond = method.sees(q, k) | k.first if method.sink else method.sees(q, k)
    # what one question asks, no other sees
    return (k.sample == q.sample) & (k.order <= q.order) & (own_step | beyond & (k.question == 0))


def merge_rate(method: Method, step: int) -> Tensor:
    """a_t of a step, float64 (1,), or (n,) where the slots have rates of their own."""
    return torch.as_tensor(method.rate((step - method.delay) // method.stride + 1), dtype=torch.float64).flatten()


def merge_weights(method: Method, steps: int) -> Tensor:
    """float64 (steps, steps, 1 or n): the weight of step s in slot j of step t, from the recursion with rate a_t.

    Row t is (1 - a_t) times row t-1 plus a_t at s = t: 1/t each for the running mean (paper: g_update, table 16).
    """
    rows = []
    for t in range(steps):
        row = rows[t - method.stride] if t >= method.stride else torch.zeros(steps, 1, dtype=torch.float64)
        if t >= method.delay:
            rate, now = merge_rate(method, t).cpu(), torch.arange(steps) == t - method.delay
            row = (1 - rate) * row + rate * now[:, None]
        rows.append(row)
    return torch.stack(torch.broadcast_tensors(*rows)) if rows else torch.zeros(0, 0, 1, dtype=torch.float64)


@functools.cache
def in_turns(method: Method, n: int, places: int) -> Method:
    """The same with n slots, split among `places`, that take turns: step s goes into place s mod places alone.

    A slot is the mean of its own turns; before the first it is zero.
    """
    place = torch.arange(n) * places // n

    def rate(t: int) -> Tensor:  # (n,)
        return (place == (t - 1) % places).double() / ((t - 1) // places + 1)

    return replace(method, rate=rate)
