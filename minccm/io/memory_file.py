"""A saved memory: one safetensors file with keys, values and info, and with a JSON object from the caller.

The file is untrusted. load_memory accepts only what `method` can have left behind after that many steps: which pairs
there must be follows from the method's attention rule.
"""

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minccm.io.files import write_tensors
from minccm.io.untrusted import Field, check_fields, check_regular, error, parse_json, printable
from minccm.memory import Memory
from minccm.methods import COMP, SLOT, TEXT, Method, TokenInfo, attention_mask

FORMAT = 2  # 1 had seven columns of information
MAX_STEPS = 2**20
MAX_PAIRS = 2**23  # steps times n: so many pairs are checked for their presence
COUNTERS = {
    "format": Field(int, FORMAT, FORMAT),
    "step": Field(int, 0, MAX_STEPS),
    "text": Field(int, 0, 2**40),
    "tokens": Field(int, 0, 2**40),
}
FLOATS = ("F16", "BF16", "F32", "F64")
NAMES = [field.name for field in fields(TokenInfo)]  # the columns of the tensor `info`


def save_memory(path: str | Path, memory: Memory, about: dict) -> None:
    """Writes a memory. about: anything that JSON can hold; load_memory returns it."""
    info = torch.stack([getattr(memory.info, name) for name in NAMES], -1)  # int64 (M, 5)
    tensors = {
        name: tensor.cpu() for name, tensor in (("keys", memory.keys), ("values", memory.values), ("info", info))
    }
    counters = {"format": FORMAT, "step": memory.step, "text": memory.text, "tokens": memory.tokens}
    write_tensors(Path(path), tensors, {"about": json.dumps(about | counters)})


def load_memory(path: str | Path, like: Memory, method: Method, n: int, made_for: dict) -> tuple[Memory, dict]:
    """The memory of a file, with the shape, dtype and device of `like`, and the object `about` that was saved with it.

    Raises ValueError, in one line, if an entry of `made_for` differs from that in `about`, or if `method` with n COMP
    tokens cannot have left such a memory behind.
    """
    damaged = "the file is damaged, or no memory that was saved here"
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("about")
            slices = {name: file.get_slice(name) for name in ("keys", "values", "info")}
            kinds = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except Exception:  # safetensors raises many kinds
        raise error(path, damaged) from None
    if about is None:
        raise error(path, damaged)
    about = parse_json(about, path)
    counters = check_fields(about, path, COUNTERS)
    for name, value in made_for.items():
        if about.get(name) != value:
            was = printable(about.get(name))
            raise error(path, f"the memory was saved with another {name}: {was}, not {printable(value)}")
    pairs = shapes["info"][0] if shapes["info"] else 0
    shape = (*like.keys.shape[:2], pairs, like.keys.shape[3])
    if shapes != {"keys": shape, "values": shape, "info": (pairs, len(NAMES))} or kinds["info"] != "I64":
        raise error(path, "the file is damaged: its tensors do not have the shape of this model's memory")
    if kinds["keys"] not in FLOATS or kinds["values"] not in FLOATS:
        raise error(path, "the file is damaged: keys and values must be floating-point numbers")
    with safe_open(path, framework="pt") as file:
        keys, values, info = (file.get_tensor(name).clone() for name in ("keys", "values", "info"))
    info = TokenInfo(**dict(zip(NAMES, info.unbind(-1))))
    if problem := _problem(info, method, n, counters["step"], counters["text"], counters["tokens"]):
        raise error(path, f"the file is damaged: {problem}")
    keys, values = keys.to(like.keys), values.to(like.keys)
    if not (keys.isfinite().all() and values.isfinite().all()):
        raise error(path, f"the file is damaged: it holds numbers that are not finite in {keys.dtype}")
    info = info.to(keys.device)
    return Memory(keys, values, info, counters["step"], counters["tokens"], counters["text"]), about


def _problem(info: TokenInfo, method: Method, n: int, step: int, text: int, tokens: int) -> str | None:
    """Why `method` cannot have left these pairs behind after `step` steps; None if it can."""
    comp = n if method.comp_after else 0
    if tokens != text + comp * step:
        return f"{text} text tokens and {step} steps do not make {tokens} tokens"
    if not method.reads_context and step:
        return f"{method.name} reads no context"
    if step * max(n, 1) > MAX_PAIRS:
        return f"{step} steps of n = {n} are too many"
    pooled = method.pools == TEXT
    kind, slot = info.kind, info.slot
    is_text = kind == TEXT
    in_slots = (slot >= 0) & (slot < n)
    legal = is_text & (in_slots if pooled else slot == -1)
    if comp:
        legal |= (kind == COMP) & in_slots
    if method.merge_rate:
        legal |= (kind == SLOT) & in_slots & (info.step >= method.delay)
    legal &= (info.step >= 0) & (info.step < step) & (info.question == 0)
    legal &= (info.order >= 0) & torch.where(kind == SLOT, info.order <= tokens, info.order < tokens)
    if not legal.all():
        return "it holds pairs that this method does not keep"
    # two later queries, one in a context and one in an input
    later = TokenInfo.from_rows([(TEXT, step, -1, tokens, 0), (TEXT, step, -1, tokens, 1)])
    if len(info) and not attention_mask(method, later, info).any(0).all():
        return "it holds pairs that are hidden from all later tokens"
    if problem := _order_problem(info):
        return problem
    if method.sink and text and not info.is_bos.any():
        return "the attention sink is missing"
    if comp and not _all_there(info, COMP, method, n, step, tokens):
        return "COMP tokens are missing"
    if method.merge_rate and not _all_there(info, SLOT, method, n, step, tokens):
        return "slots are missing"
    if pooled and method.merge_rate and not _lengths_fit(info[kind == SLOT], n, step, tokens):
        return "slots are missing"
    steps = torch.arange(step)
    kept = _surely_kept(method, TEXT, steps, torch.full_like(steps, 0 if pooled else -1), step, tokens)
    if len(kept) == step and is_text.sum() != text:
        return "text tokens are missing"
    return None


def _order_problem(info: TokenInfo) -> str | None:
    """An error if a pair is there twice, or if the order cannot be that of a sequence of steps; None otherwise."""
    is_slot = info.kind == SLOT
    token_order = info.order[~is_slot]
    if len(token_order.unique()) != len(token_order):
        return "one token is there twice"
    places = torch.stack([info.kind, info.step, info.slot], -1)[info.kind != TEXT]
    if len(places.unique(dim=0)) != len(places):
        return "one slot is there twice"
    # slots have the order of the next step's first token, and stand before it
    by_order = torch.argsort(info.order * 2 + (~is_slot).long(), stable=True)
    if (info.step[by_order].diff() < 0).any():
        return "its steps are not in order"
    comp = info[info.kind == COMP]
    first = comp.order - comp.slot  # where COMP token 0 of the step is
    pairs = torch.stack([comp.step, first], -1).unique(dim=0)
    if len(pairs) != len(comp.step.unique()):
        return "the COMP tokens of a step are not one after another"
    slots = torch.stack([info.step, info.order], -1)[is_slot].unique(dim=0)
    if len(slots) != len(slots[:, 0].unique()):
        return "the slots of a step do not belong together"
    return None


def _all_there(info: TokenInfo, kind: int, method: Method, n: int, step: int, tokens: int) -> bool:
    """Are all COMP tokens, or all slots, there that the memory must still have?"""
    pairs = info[info.kind == kind]
    have = pairs.step * n + pairs.slot
    scale = n if method.pools == TEXT else 1  # a step with fewer tokens than n has fewer slots, but one at least
    chunk = max(1, 2**18 // n)  # steps at a time
    for start in range(method.delay if kind == SLOT else 0, step, chunk):
        steps = torch.arange(start, min(step, start + chunk)).repeat_interleave(n)
        slots = torch.arange(len(steps)) % n
        wanted = start * n + _surely_kept(method, kind, steps, slots, step, tokens)
        if not torch.isin(wanted // scale, have // scale).all():
            return False
    return True


def _lengths_fit(slots: TokenInfo, n: int, step: int, tokens: int) -> bool:
    """Do the slots that text is pooled into fit the lengths of their steps? Only if slots of all steps are kept."""
    steps, counts = slots.step.unique(return_counts=True)
    if len(steps) < step or step == 0:
        return True
    ends = torch.zeros(step, dtype=torch.int64).index_put((slots.step,), slots.order)  # tokens up to the end of a step
    lengths = ends.diff(prepend=ends.new_zeros(1))
    return bool((counts == lengths.clamp(max=n)).all()) and int(ends[-1]) == tokens


def _surely_kept(method: Method, kind: int, steps: Tensor, slots: Tensor, step: int, tokens: int) -> Tensor:
    """Indices of those of the pairs (C,) that the memory has kept until `step`, wherever their tokens are.

    A pair is dropped at the first step whose queries do not attend to it. The queries that are looked at are those of
    the last four steps and of the four steps after the pair's own.
    """
    index = torch.arange(len(steps))
    for i in range(4):
        for from_start in (False, True):
            own, slot = steps[index], slots[index]
            query_step = own + 1 + i if from_start else torch.full_like(own, step - i)
            query_step = torch.where((own < query_step) & (query_step <= step), query_step, step)
            kept = torch.ones_like(index, dtype=torch.bool)
            for order in (1, max(1, tokens - 1)):
                key = _info(own, kind, slot, order, 0)
                context, question = (method.attends(_info(query_step, TEXT, -1, tokens, q), key) for q in (0, 1))
                kept &= torch.as_tensor(context) | torch.as_tensor(question)
            index = index[kept]
    return index


def _info(step: Tensor, kind: int, slot: Tensor | int, order: int, question: int) -> TokenInfo:
    """TokenInfo of the shape of `step`, with the same kind, order and question everywhere."""
    values = (torch.zeros_like(step) + value for value in (kind, step, slot, order, question))
    return TokenInfo(*values)
