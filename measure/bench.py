"""Speed beside the machine's own limits: training, decoding at batch 1, serving many (paper: table 1).

    python eval.py --bench train --model random:7b           # or decode, serve, all; random:1m on a CPU

First the machine is measured: the rate of one large matrix product, and of one large copy, bytes read and written.
Each figure then stands beside what it would be at that limit. Training: 4 operations a weight and token (forward, and
backward to the input: W is frozen). Decoding: every weight, and every key and value that is there, read once a token.
Serving: the one, or the other where that takes longer, for the input and for each token.

Training is by whole optimizer steps of 128 samples, the paper's batch. Shapes: a sample of MetaICL's has 16 contexts of
50 tokens with n = 8, an input of 40 and a target of 10; one of DailyDialog's 12 contexts of 15 with n = 2, 15 and 15.
To serve is to take an input of 50 tokens and answer with 32, out of a memory of 8 pairs (ccm-merge), 128 (ccm-concat),
or 800 (full context), which is filled with random numbers.
"""

import gc
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from minccm import cli
from minccm.checkpoint import load_model
from minccm.fast import Conversations
from minccm.files import write_json
from minccm.layout import Batch, collate, lay_out, pack
from minccm.mask import blocks_of, predict
from minccm.methods import COMP, Columns, Method, columns, get_method
from minccm.model import Transformer
from minccm.online import Session

SHAPES = {"metaicl": (16, 50, 8, 40, 10), "dialog": (12, 15, 2, 15, 15)}  # contexts, their tokens, n, input, target
TOY = {"metaicl": (4, 12, 2, 10, 5), "dialog": (3, 5, 2, 5, 5)}
SERVED = {"ccm-merge": 8, "ccm-concat": 128, "full": 800}  # method: pairs of memory
QUERY, ANSWER = 50, 32  # tokens


def seconds(work: Callable, repeat: int = 5, warm: int = 2) -> float:
    """Median time of some work, after `warm` times for nothing."""
    times = []
    for i in range(warm + repeat):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times += [time.perf_counter() - began] if i >= warm else []
    return sorted(times)[len(times) // 2]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def limits(device: torch.device, dtype: torch.dtype) -> dict:
    """The machine's own rates: FLOP/s of a matrix product, bytes/s of a copy (read and written), of random numbers."""
    size, count = (8192, 2**31) if device.type == "cuda" else (1024, 2**25)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    rate = 2 * size**3 / seconds(lambda: a @ b, 10)
    x = torch.empty(count // 2, dtype=torch.float16, device=device).normal_()
    y = torch.empty_like(x)
    return {"flops": rate, "bytes": 2 * x.nbytes / seconds(lambda: y.copy_(x), 10)}


def matrix_weights(model: Transformer) -> int:
    """How many weights every token meets in products: the layers' matrices, without vocabulary and adapter."""
    matrices = [p for name, p in model.layers.named_parameters() if p.ndim == 2 and "lora" not in name]
    return sum(matrix.numel() for matrix in matrices)


def training_rows(model: Transformer, method: Method, shape: tuple, samples: int, tokens: int) -> list[Batch]:
    """Samples of random tokens, packed in rows of `tokens` tokens at most, each as a batch."""
    contexts, length, n, input, target = shape
    make = torch.Generator().manual_seed(0)
    ids = lambda count: torch.randint(3, model.config.vocab_size, (count,), generator=make).tolist()
    texts = lambda: ([ids(length + (t == 0)) for t in range(contexts)], ids(input), ids(target))
    layouts = [lay_out(method, n, model.config.vocab_size, *texts()) for _ in range(samples)]
    multiple = 128 if model.embed_tokens.weight.is_cuda else 1
    rows = pack([len(layout.tokens) for layout in layouts], tokens, multiple)
    return collate([[layouts[i] for i in row] for row in rows], multiple, apart=True).split()


def training_step(model: Transformer, method: Method, batches: list[Batch]) -> Callable[[], Tensor]:
    """The work of one optimizer step, as train.py does it."""
    device = model.embed_tokens.weight.device
    flex = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.adapter_state().values(), lr=1e-4, weight_decay=0.0, fused=flex)
    batches = [batch.to(device) for batch in batches]

    def step() -> Tensor:
        total = torch.zeros((), device=device)
        seen = [blocks_of(method, batch) if flex else None for batch in batches]
        for batch, blocks in zip(batches, seen):
            logits, rows = predict(model, method, batch, flex, blocks=blocks)
            losses = F.cross_entropy(logits.float(), batch.labels.flatten()[rows], reduction="none")
            loss = (losses * batch.weights.flatten()[rows]).sum() / len(batches)
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


def bench_train(model: Transformer, limit: dict, tokens: int, toy: bool) -> list[dict]:
    """Samples per second of training, in rows of about `tokens` tokens; at last for a small card."""
    rows, concat, batch = [], "ccm-concat", 4 if toy else 128
    cases = ("metaicl", concat, 1), ("metaicl", "ccm-merge", 1), ("dialog", concat, 1), ("metaicl", concat, 2)
    for shape, name, part in cases:
        method, sizes = get_method(name), (TOY if toy else SHAPES)[shape]
        contexts, length, n, input, target = sizes
        each = 1 + contexts * (length + n) + input + target
        model.checkpoint = part > 1
        model.add_adapter(n, r=8, alpha=16, dropout=0.05)
        model.train()
        batches = training_rows(model, method, sizes, batch, tokens // part)
        began = time.perf_counter()
        step = training_step(model, method, batches)
        step()
        wait()
        compiled = time.perf_counter() - began
        reset_peak()
        rate = batch / seconds(step, 2, 0)
        best = limit["flops"] / (4 * matrix_weights(model) * each)
        more = ", --checkpoint" if model.checkpoint else ""
        row = {"bench": "train", "shape": shape, "method": name + more, "batch": batch, "rows": len(batches)}
        row |= {"first_s": compiled, "figure": rate, "unit": "samples/s", "limit": best, "share": rate / best}
        rows.append(show(row | peak()))
    model.checkpoint = False
    return rows


def fill(talks: Conversations, pairs: int) -> None:
    """Gives every conversation a memory of `pairs` pairs of random numbers."""
    for buffer in (talks.keys, talks.values):
        for layer in buffer:
            layer.normal_()
    kind = COMP if talks.method.comp else 0
    kind = 2 if talks.method.rate else kind
    data = columns(kind=kind, step=0, index=-1, order=torch.arange(pairs).numpy())
    talks.reset()
    talks.columns[:, :pairs] = Columns.of(data, talks.device).data
    talks.step[:], talks.position[:], talks.tokens[:] = 1, pairs, pairs


def random_texts(model: Transformer, count: int, length: int) -> list[list[int]]:
    return torch.randint(
        3, model.config.vocab_size, (count, length), generator=torch.Generator().manual_seed(1)
    ).tolist()


def weight_bytes(model: Transformer) -> int:
    """Bytes of weights that a token needs: the matrices of all layers, and the vocabulary projection."""
    return (matrix_weights(model) + model.lm_head.weight.numel()) * model.lm_head.weight.element_size()


def bench_decode(model: Transformer, limit: dict, toy: bool) -> list[dict]:
    """Batch 1: ms per token by memory, and what compressing a turn of 50 tokens takes beside a plain pass of 58."""
    n, turn = (2, 10) if toy else (8, QUERY)
    model.add_adapter(n)
    model.eval()
    rows = [decode(model, limit, get_method(name), pairs // (8 if toy else 1), turn) for name, pairs in SERVED.items()]
    rows.append(decode_plainly(model, limit, get_method("ccm-concat"), n, turn))
    return rows + [compress(model, get_method(name), n, turn) for name in ("ccm-concat", "ccm-merge")]


def decode(model: Transformer, limit: dict, method: Method, pairs: int, turn: int) -> dict:
    """ms per token of an answer to an input of `turn` tokens."""
    talks = Conversations(model, method, 0, 1, pairs, turn, ANSWER + 1, adapted=False)
    fill(talks, pairs)
    texts = random_texts(model, 1, turn)
    first = seconds(lambda: talks.logits(texts))
    took = (seconds(lambda: talks.generate(texts, ANSWER + 1, stop=False)) - first) / ANSWER
    return show(token_row(model, limit, method.name, pairs, turn, took) | {"input_ms": 1e3 * first})


@torch.no_grad()
def decode_plainly(model: Transformer, limit: dict, method: Method, n: int, turn: int) -> dict:
    """The same by online.Session, which compiles nothing: ms per token after 16 contexts."""
    session, (text,) = Session(model, method, n), random_texts(model, 1, turn)
    for _ in range(16):
        session.read(text)
    answer = lambda count: seconds(lambda: list(session.generate(text, count, stop=False)))
    took = (answer(ANSWER + 1) - answer(1)) / ANSWER
    return show(token_row(model, limit, f"{method.name}, online.Session", len(session.memory), turn, took))


def token_row(model: Transformer, limit: dict, name: str, pairs: int, turn: int, took: float) -> dict:
    """The row of a token, seconds each, beside what reading all that it needs takes."""
    per_pair = model.config.kv_bytes_per_pair * model.embed_tokens.weight.element_size()
    best = (weight_bytes(model) + (pairs + turn + ANSWER / 2) * per_pair) / limit["bytes"]
    row = {"bench": "decode", "method": name, "pairs": pairs, "figure": 1e3 * took, "unit": "ms/token"}
    return row | {"limit": 1e3 * best, "share": best / took}


def compress(model: Transformer, method: Method, n: int, turn: int) -> dict:
    """ms to compress one turn, of 16; the limit here is a forward pass of as many tokens by the same code."""
    talks = Conversations(model, method, n, 1, 128, turn, ANSWER)
    text, turns = random_texts(model, 1, turn), 16  # n = 8 of which fill a concatenated memory

    def read() -> None:
        talks.reset()
        for _ in range(turns):
            talks.read(text)

    took = seconds(read, 10) / turns
    plain = Conversations(model, method, n, 1, 128, turn + n, 1, adapted=False)
    text_and_comp = random_texts(model, 1, turn + n)
    best = seconds(lambda: plain.logits(text_and_comp), 10)
    row = {"bench": "decode", "method": f"compress, {method.name}", "figure": 1e3 * took, "unit": "ms/turn"}
    return show(row | {"limit": 1e3 * best, "share": best / took})


def bench_serve(model: Transformer, limit: dict, toy: bool) -> list[dict]:
    """Samples per second by memory and batch: an input of 50 tokens, 32 new ones."""
    rows = []
    model.eval()
    for name, pairs in SERVED.items():
        pairs, query, answer = (pairs // 8, 10, 4) if toy else (pairs, QUERY, ANSWER)
        for batch in batches_for(model, pairs + query + answer):
            free()
            rows.append(serve(model, limit, get_method(name), batch, pairs, query, answer))
    return rows


def serve(model: Transformer, limit: dict, method: Method, batch: int, pairs: int, query: int, answer: int) -> dict:
    """Samples per second of one batch."""
    talks = Conversations(model, method, 0, batch, pairs, query, answer, adapted=False)
    fill(talks, pairs)
    texts = random_texts(model, batch, query)
    reset_peak()
    took = seconds(lambda: talks.generate(texts, answer, stop=False), 2, 1)
    per_pair = model.config.kv_bytes_per_pair * model.embed_tokens.weight.element_size()
    work = 2 * matrix_weights(model) / limit["flops"]  # seconds a token
    best = work * query + max(work, weight_bytes(model) / limit["bytes"] / batch) * answer
    best += sum(pairs + query + i for i in range(answer)) * per_pair / limit["bytes"]
    row = {"bench": "serve", "method": method.name, "pairs": pairs, "batch": batch, "figure": batch / took}
    return show(row | {"unit": "samples/s", "limit": 1 / best, "share": best / (took / batch)} | peak())


def batches_for(model: Transformer, pairs: int) -> list[int]:
    """Batch sizes to try: about all that memory holds beside the weights, and half of that; 1,024 at most."""
    if not torch.cuda.is_available():
        return [2]
    per_pair = model.config.kv_bytes_per_pair * model.embed_tokens.weight.element_size()
    room = 0.8 * (torch.cuda.get_device_properties(0).total_memory - sum(p.nbytes for p in model.parameters()))
    most = min(1024, int(room / (pairs * per_pair + 8 * model.config.dim * 50)))
    return sorted({max(1, most // 32 * 32), max(1, most // 64 * 32)}, reverse=True)


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict:
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(row: dict) -> dict:
    """Prints a line as soon as it is known."""
    of = ", ".join(str(row[key]) for key in ("shape", "method", "pairs", "batch") if key in row)
    more = "".join(f", {key} {row[key]:.1f}" for key in ("peak_gib", "first_s", "input_ms") if key in row)
    print(f"{row['bench']}: {of}: {row['figure']:.2f} {row['unit']} ({100 * row['share']:.0f}%){more}", flush=True)
    return row


def table(rows: list[dict], limit: dict) -> Table:
    title = f"the machine: {limit['flops'] / 1e12:.3g} TFLOP/s, {limit['bytes'] / 1e12:.3g} TB/s"
    out = Table(
        "figure", "method", "KV pairs", "batch", "measured", "limit", "share", title=title, title_justify="left"
    )
    for row in rows:
        name = f"{row['bench']} {row.get('shape', '')}"
        of = (str(row.get(key, "")) for key in ("method", "pairs"))
        batch, unit = str(row.get("batch", "")), row["unit"]
        out.add_row(
            name, *of, batch, f"{row['figure']:.4g} {unit}", f"{row['limit']:.4g}", f"{100 * row['share']:.0f}%"
        )
    return out


def main(options) -> None:
    """eval.py --bench."""
    rows = run(options.bench, load_model(options.model, *cli.device_and_dtype(options)))
    if options.json:
        write_json(options.json, rows)


def run(which: str, model: Transformer, row_tokens: int | None = None) -> list[dict]:
    """The rows of one bench, or of "all"; prints them as they come, and as a table."""
    device, dtype = model.embed_tokens.weight.device, model.embed_tokens.weight.dtype
    toy = device.type == "cpu"
    limit = limits(device, dtype)
    print(f"the machine: {limit['flops'] / 1e12:.3g} TFLOP/s, {limit['bytes'] / 1e12:.3g} TB/s", flush=True)
    free()
    model.join_weights()
    rows = [{"bench": "machine", "device": name_of(device), "dtype": str(dtype).removeprefix("torch.")} | limit]
    if which in ("train", "all"):
        if not toy:
            torch._dynamo.config.recompile_limit = 64  # as in train.py
            for block in model.layers:
                block.compile(dynamic=False)
        rows += bench_train(model, limit, row_tokens or (512 if toy else 16384), toy)
        for block in model.layers:
            block._compiled_call_impl = None
        torch._dynamo.reset()
    if which in ("decode", "all"):
        rows += bench_decode(model, limit, toy)
    if which in ("serve", "all"):
        rows += bench_serve(model, limit, toy)
    Console().print(table(rows[1:], limit))
    return rows


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
