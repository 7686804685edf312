"""Speed compared with the machine's own limits: training, decoding at batch 1, serving many (paper: table 1).

    python -m experiments.bench --model random:7b                     # all of it, on a GPU
    python -m experiments.bench --model random:1m --what train        # or decode, serve; on a CPU with smaller shapes

First come the machine's limits: the rate of one large matrix product, and of one large copy, bytes read and written.
Each figure is then compared with its value at that limit. Training: 4 operations per weight and token (forward, and
backward to the input, since W is frozen). Decoding: all weights, and all keys and values, are read once per token.
Serving: whichever of the two takes longer, for the input and for each token.

Training is measured in whole optimizer steps of 128 samples, the paper's batch. A sample in MetaICL's shape has 16
contexts of 50 tokens with n = 8, an input of 40 and an output of 10; in DailyDialog's, 12 contexts of 15 with n = 2,
15 and 15. Serving takes an input of 50 tokens and generates 32, from a memory of 8 pairs (ccm-merge), 128 (ccm-concat)
or 800 (full context) that holds random numbers.
"""

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.common import seconds
from minccm.extra.training import PlainStep
from minccm.fast.conversations import Conversations
from minccm.fast.fused import join_weights
from minccm.fast.step import FastOptions, FastStep
from minccm.io import options as cli
from minccm.io.files import write_json
from minccm.io.options import whole
from minccm.io.weights import load_model
from minccm.methods import COMP, PAD, SLOT, TEXT, Method, get_method
from minccm.model import Transformer
from minccm.sequence import Sequence, build_sequence
from minccm.session import Session

MEMORY_PAIRS = {"ccm-merge": 8, "ccm-concat": 128, "full": 800}  # KV pairs of memory to decode and serve from


@dataclass(frozen=True)
class Shape:
    """The shape of training samples, in tokens."""

    contexts: int
    context: int
    n: int
    input: int
    output: int

    @property
    def tokens(self) -> int:
        """Tokens of a sample, with BOS and COMP tokens."""
        return 1 + self.contexts * (self.context + self.n) + self.input + self.output


@dataclass(frozen=True)
class Sizes:
    """What is measured: large on a GPU, small on a CPU."""

    metaicl: Shape
    dialog: Shape
    batch: int  # samples per optimizer step
    max_tokens: int  # of one forward and backward pass
    n: int  # COMP tokens to compress a turn
    turn: int  # tokens of a turn to decode from, or to compress
    shrink: int  # MEMORY_PAIRS are divided by this
    query: int  # tokens of an input to serve
    answer: int  # tokens to generate


LARGE = Sizes(Shape(16, 50, 8, 40, 10), Shape(12, 15, 2, 15, 15), 128, 16384, 8, 50, 1, 50, 32)
SMALL = Sizes(Shape(4, 12, 2, 10, 5), Shape(3, 5, 2, 5, 5), 4, 512, 2, 10, 8, 10, 4)
DECODED = 32  # tokens over which decoding is timed


def arguments() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=cli.name, default="random:1m", help="base model, or random weights: random:1b, random:7b, ...")
    add("--what", default="all", choices=["all", "train", "decode", "serve"], help="what to measure")
    add("--max-tokens", type=whole(1), default=None, help="tokens of one forward pass in training")
    add("--device", type=cli.name, default="auto", help="cuda, cpu or auto")
    add("--dtype", default="auto", choices=["auto", *cli.DTYPES], help="of the base model's weights")
    add("--json", type=Path, default=None, help="write the rows there")
    return parser.parse_args()


def machine_limits(device: torch.device, dtype: torch.dtype) -> dict:
    """The machine's own rates: FLOP/s of a matrix product, bytes/s of a copy (read and written)."""
    size, count = (8192, 2**31) if device.type == "cuda" else (1024, 2**25)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    flops = 2 * size**3 / seconds(lambda: a @ b, 10)
    x = torch.empty(count // 2, dtype=torch.float16, device=device).normal_()
    y = torch.empty_like(x)
    return {"flops": flops, "bytes": 2 * x.nbytes / seconds(lambda: y.copy_(x), 10)}


def matrix_weights(model: Transformer) -> int:
    """How many weights each token is multiplied with: the layers' matrices, without vocabulary and adapter."""
    matrices = [p for name, p in model.layers.named_parameters() if p.ndim == 2 and "lora" not in name]
    return sum(matrix.numel() for matrix in matrices)


def weight_bytes(model: Transformer) -> int:
    """Bytes of weights that are read for a token: the matrices of all layers, and the vocabulary projection."""
    return (matrix_weights(model) + model.lm_head.weight.numel()) * model.lm_head.weight.element_size()


def pair_bytes(model: Transformer) -> int:
    """Bytes of one KV pair, over all layers."""
    return model.config.kv_numbers_per_pair * model.embed_tokens.weight.element_size()


def random_texts(model: Transformer, count: int, length: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (count, length), generator=generator).tolist()


# ------------------------------------------------------------------------------------------------------------ training


def random_sequences(model: Transformer, method: Method, shape: Shape, count: int) -> list[Sequence]:
    """Samples of random tokens. The first context has one token more, in the place of BOS."""
    lengths = [shape.context + (t == 0) for t in range(shape.contexts)] + [shape.input, shape.output]
    sequences = []
    for ids in random_texts(model, count, sum(lengths), seed=0):
        *contexts, input, output = (part.tolist() for part in torch.tensor(ids).split(lengths))
        sequences.append(build_sequence(method, shape.n, model.config.vocab_size, contexts, [(input, output)]))
    return sequences


def training_step(
    model: Transformer, method: Method, sequences: list[Sequence], max_tokens: int, checkpoint: bool
) -> tuple[Callable[[], Tensor], int]:
    """The work of one optimizer step, as in train.py; and how many forward passes it has."""
    device = model.embed_tokens.weight.device
    if on_gpu := device.type == "cuda":
        options = FastOptions(compile=True, pack=True, prune=True, prefix=True, checkpoint=checkpoint)
        step = FastStep(model, method, options, max_tokens)
        step.batches.pad_multiple = 128  # the sequences are all of one length
    else:
        step = PlainStep(model, method, max_tokens)
    optimizer = torch.optim.AdamW(model.adapter_state().values(), lr=1e-4, weight_decay=0.0, fused=on_gpu)
    batches = [batch.to(device) for batch in step.batches(sequences)]
    total_weight = sum(float(x.loss_weights.sum()) for x in sequences)

    def work() -> Tensor:
        loss = step.backward(batches, total_weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return work, len(batches)


def bench_train(model: Transformer, limit: dict, sizes: Sizes, max_tokens: int) -> list[dict]:
    """Samples per second of training, in rows of about max_tokens tokens; the last case is for a small GPU."""
    rows, concat = [], "ccm-concat"
    cases = ("metaicl", concat, 1), ("metaicl", "ccm-merge", 1), ("dialog", concat, 1), ("metaicl", concat, 2)
    if not torch.cuda.is_available():
        cases = cases[:3]
    for name, method_name, parts in cases:
        method, shape, checkpoint = get_method(method_name), getattr(sizes, name), parts > 1
        model.add_adapter(shape.n, r=8, alpha=16, dropout=0.05)
        model.train()
        sequences = random_sequences(model, method, shape, sizes.batch)
        began = time.perf_counter()
        work, passes = training_step(model, method, sequences, max_tokens // parts, checkpoint)
        work()
        synchronize()
        compiled = time.perf_counter() - began
        reset_peak()
        rate = sizes.batch / seconds(work, 2, 0)
        best = limit["flops"] / (4 * matrix_weights(model) * shape.tokens)
        label = method_name + (", checkpoint" if checkpoint else "")
        row = {"bench": "train", "shape": name, "method": label, "batch": sizes.batch, "rows": passes}
        row |= {"first_s": compiled, "figure": rate, "unit": "samples/s", "limit": best, "share": rate / best}
        rows.append(show(row | peak()))
    return rows


# ------------------------------------------------------------------------------------------------ decoding and serving


def fill(talks: Conversations, pairs: int) -> None:
    """Gives each conversation a memory of `pairs` pairs of random numbers."""
    for buffer in (talks.keys, talks.values):
        for layer in buffer:
            layer.normal_()
    talks.reset()
    info, held = talks.info, slice(pairs)
    info.kind[:, held] = SLOT if talks.method.merge_rate else COMP if talks.method.comp_after else TEXT
    info.step[:, held], info.slot[:, held], info.question[:, held] = 0, -1, 0
    info.order[:, held] = torch.arange(pairs, device=talks.device)
    talks.step[:], talks.text[:], talks.tokens[:] = 1, pairs, pairs
    assert int((info.kind != PAD).sum()) == talks.batch * pairs


def bench_decode(model: Transformer, limit: dict, sizes: Sizes) -> list[dict]:
    """Batch 1: ms per token by memory; and ms to compress a turn, compared with a plain pass over as many tokens."""
    model.add_adapter(sizes.n)
    model.eval()
    rows = [decode(model, limit, get_method(name), pairs, sizes) for name, pairs in MEMORY_PAIRS.items()]
    rows.append(decode_plainly(model, limit, get_method("ccm-concat"), sizes))
    return rows + [compress(model, get_method(name), sizes) for name in ("ccm-concat", "ccm-merge")]


def decode(model: Transformer, limit: dict, method: Method, pairs: int, sizes: Sizes) -> dict:
    """ms per token of an output."""
    pairs //= sizes.shrink
    talks = Conversations(model, method, 0, 1, pairs, sizes.turn, DECODED + 1)
    fill(talks, pairs)
    texts = random_texts(model, 1, sizes.turn)
    first = seconds(lambda: talks.logits(texts))
    took = (seconds(lambda: talks.generate(texts, DECODED + 1, stop_ids=())) - first) / DECODED
    return show(token_row(model, limit, method.name, pairs, sizes.turn, took) | {"input_ms": 1e3 * first})


@torch.no_grad()
def decode_plainly(model: Transformer, limit: dict, method: Method, sizes: Sizes) -> dict:
    """The same with session.Session, which compiles nothing: ms per token after 16 contexts."""
    session, (text,) = Session(model, method, sizes.n), random_texts(model, 1, sizes.turn)
    for _ in range(16):
        session.read(text)
    time_of = lambda count: seconds(lambda: list(session.generate(text, count, stop_ids=())))
    took = (time_of(DECODED + 1) - time_of(1)) / DECODED
    return show(token_row(model, limit, f"{method.name}, Session", len(session.memory), sizes.turn, took))


def token_row(model: Transformer, limit: dict, name: str, pairs: int, turn: int, took: float) -> dict:
    """The row of a token that takes `took` seconds, compared with reading all that it needs."""
    best = (weight_bytes(model) + (pairs + turn + DECODED / 2) * pair_bytes(model)) / limit["bytes"]
    row = {"bench": "decode", "method": name, "pairs": pairs, "figure": 1e3 * took, "unit": "ms/token"}
    return row | {"limit": 1e3 * best, "share": best / took}


def compress(model: Transformer, method: Method, sizes: Sizes) -> dict:
    """ms to compress one turn, of 16. The limit here is a forward pass of as many tokens by the same code."""
    n, turn, turns = sizes.n, sizes.turn, 16
    talks = Conversations(model, method, n, 1, turns * n, turn, DECODED)
    text = random_texts(model, 1, turn)

    def read() -> None:
        talks.reset()
        for _ in range(turns):
            talks.read(text)

    took = seconds(read, 10) / turns
    plain = Conversations(model, method, n, 1, turns * n, turn + n, 1)
    as_many = random_texts(model, 1, turn + n)
    best = seconds(lambda: plain.logits(as_many), 10)
    row = {"bench": "decode", "method": f"compress, {method.name}", "figure": 1e3 * took, "unit": "ms/turn"}
    return show(row | {"limit": 1e3 * best, "share": best / took})


def bench_serve(model: Transformer, limit: dict, sizes: Sizes) -> list[dict]:
    """Samples per second, by memory and batch."""
    rows = []
    model.eval()
    for name, pairs in MEMORY_PAIRS.items():
        pairs //= sizes.shrink
        for batch in batch_sizes(model, pairs + sizes.query + sizes.answer):
            free_memory()
            rows.append(serve(model, limit, get_method(name), batch, pairs, sizes))
    return rows


def serve(model: Transformer, limit: dict, method: Method, batch: int, pairs: int, sizes: Sizes) -> dict:
    """Samples per second of one batch."""
    query, answer = sizes.query, sizes.answer
    talks = Conversations(model, method, 0, batch, pairs, query, answer)
    fill(talks, pairs)
    texts = random_texts(model, batch, query)
    reset_peak()
    took = seconds(lambda: talks.generate(texts, answer, stop_ids=()), 2, 1)
    compute = 2 * matrix_weights(model) / limit["flops"]  # seconds per token
    best = compute * query + max(compute, weight_bytes(model) / limit["bytes"] / batch) * answer
    best += sum(pairs + query + i for i in range(answer)) * pair_bytes(model) / limit["bytes"]
    row = {"bench": "serve", "method": method.name, "pairs": pairs, "batch": batch, "figure": batch / took}
    return show(row | {"unit": "samples/s", "limit": 1 / best, "share": best / (took / batch)} | peak())


def batch_sizes(model: Transformer, pairs: int) -> list[int]:
    """Batch sizes to try: about what fits into memory with the weights, and half of that; 1,024 at most."""
    if not torch.cuda.is_available():
        return [2]
    space = 0.8 * (torch.cuda.get_device_properties(0).total_memory - sum(p.nbytes for p in model.parameters()))
    most = min(1024, int(space / (pairs * pair_bytes(model) + 8 * model.config.dim * 50)))
    return sorted({max(1, most // 32 * 32), max(1, most // 64 * 32)}, reverse=True)


# ---------------------------------------------------------------------------------------------------------- the report


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict:
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(row: dict) -> dict:
    """Prints a row at once."""
    of = ", ".join(str(row[key]) for key in ("shape", "method", "pairs", "batch") if key in row)
    more = "".join(f", {key} {row[key]:.1f}" for key in ("peak_gib", "first_s", "input_ms") if key in row)
    print(f"{row['bench']}: {of}: {row['figure']:.2f} {row['unit']} ({100 * row['share']:.0f}%){more}", flush=True)
    return row


def table(rows: list[dict], title: str) -> Table:
    """All rows."""
    names = "figure", "method", "KV pairs", "batch", "measured", "limit", "share"
    out = Table(*names, title=title, title_justify="left")
    for row in rows:
        what = f"{row['bench']} {row.get('shape', '')}"
        cells = [what] + [str(row.get(key, "")) for key in ("method", "pairs", "batch")]
        out.add_row(*cells, f"{row['figure']:.4g} {row['unit']}", f"{row['limit']:.4g}", f"{100 * row['share']:.0f}%")
    return out


def bench(what: str, model: Transformer, max_tokens: int | None = None) -> list[dict]:
    """The rows of one measurement, or of "all". Prints them as they come, and at the end as a table."""
    weight = model.embed_tokens.weight
    device, dtype = weight.device, weight.dtype
    sizes = SMALL if device.type == "cpu" else LARGE
    limit = machine_limits(device, dtype)
    title = f"the machine: {limit['flops'] / 1e12:.3g} TFLOP/s, {limit['bytes'] / 1e12:.3g} TB/s"
    print(title, flush=True)
    free_memory()
    join_weights(model)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rows = [{"bench": "machine", "device": name, "dtype": str(dtype).removeprefix("torch.")} | limit]
    if what in ("train", "all"):
        rows += bench_train(model, limit, sizes, max_tokens or sizes.max_tokens)
        if device.type == "cuda":
            torch._dynamo.reset()
    if what in ("decode", "all"):
        rows += bench_decode(model, limit, sizes)
    if what in ("serve", "all"):
        rows += bench_serve(model, limit, sizes)
    Console().print(table(rows[1:], title))
    return rows


def main() -> None:
    options = arguments()
    rows = bench(options.what, load_model(options.model, *cli.device_and_dtype(options)), options.max_tokens)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    cli.run(main)
