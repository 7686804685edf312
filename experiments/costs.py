"""The cost of compression, and how long a context must be for it to save operations (paper: tables 1 and 17).

    python -m experiments.costs --model random:7b --dtype bf16 --json costs.json --picture costs.png

After some context, 50 more tokens are read (and compressed), and an input is answered. Full context attends to all
tokens so far. Compressed memory has n pairs for each 50 tokens (concat) or n in all (merge), but n COMP tokens more to
read. Measured: time, KV pairs, memory. By formula: floating-point operations, and the length of context at which
the shorter memory begins to save more of them than the COMP tokens cost.

--fast measures minccm/fast/conversations.py in place of the plain Session: on a GPU, a turn is one CUDA graph. Its
memory then holds random numbers, whose values do not change the cost.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from experiments.bench import fill, random_texts
from experiments.common import free_memory, pyplot, seconds
from minccm.extra.evaluate import save_figure
from minccm.extra.tables import new_table, print_table
from minccm.fast.conversations import Conversations
from minccm.fast.fused import join_weights
from minccm.io import options as cli
from minccm.io.config import SHAPES
from minccm.io.files import write_json
from minccm.io.weights import load_model, pair_bytes
from minccm.methods import Method, get_method
from minccm.model import LlamaConfig, Transformer
from minccm.session import Session

CONTEXT, INPUT, OUTPUT = 50, 32, 32  # tokens; a demonstration of MetaICL has about 50
LENGTHS = (250, 500, 1000, 2000, 4000, 8000)
RANK = 8
READS, WARMUP = 5, 1  # contexts that are read to measure one, and work before the clock starts
COMPRESSED = ("ccm-concat", "ccm-merge")


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    parser.set_defaults(n=2)
    parser.add_argument("--fast", action="store_true", help="the fast code instead of Session")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers there, as a list of rows")
    parser.add_argument("--picture", type=Path, default=None, help="draw time and memory by length of context there")
    return parser.parse_args()


def flops(config: LlamaConfig, tokens: int, before: int, comp: int = 0, r: int = 0, logits: int = 0) -> int:
    """Floating-point operations of one forward pass of the plain model. A multiply-add counts two.

    tokens: all tokens of the pass; `comp` of them are COMP tokens, with LoRA of rank r. Each attends to `before` KV
    pairs and to the pass itself (the scores that the mask hides are computed, too). logits: tokens that are predicted
    from.
    """
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    projections = config.dim * (2 * q_dim + 2 * kv_dim)  # of one token: q, k, v, o
    lora = r * (4 * config.dim + 2 * q_dim + 2 * kv_dim)  # of one token
    attention = 2 * q_dim * (before + tokens)  # of one token: q k and p v
    swiglu = 3 * config.dim * config.ffn_dim
    layer = tokens * (projections + attention + swiglu) + comp * lora
    return 2 * (config.n_layers * layer + logits * config.dim * config.vocab_size)


def step_flops(config: LlamaConfig, length: int, n: int | None, merged: bool = False) -> int:
    """Operations to read 50 tokens after a context of `length`; n: with compression to n pairs (None: full context)."""
    if n is None:
        return flops(config, CONTEXT, length)
    return flops(config, CONTEXT + n, n if merged else length // CONTEXT * n, n, RANK)


def pays_from(config: LlamaConfig, n: int, merged: bool) -> int | None:
    """The shortest context after which reading and compressing takes fewer operations than full context does."""
    lengths = range(CONTEXT, 100_000, CONTEXT)
    return next((x for x in lengths if step_flops(config, x, n, merged) < step_flops(config, x, None)), None)


class Held(NamedTuple):
    """A memory that holds a context, and the work that is measured from there on."""

    pairs: int
    nbytes: int
    answer: Callable[[], object]  # leaves the memory unchanged
    read: Callable[[], object]


def plain_memories(model: Transformer, method: Method, n: int, lengths: tuple[int, ...]) -> Iterator[Held]:
    """The memories of a Session that reads on and on."""
    session, (context,), (question,) = Session(model, method, n), *texts(model)
    with tqdm(total=max(lengths), desc=method.name, unit="token", leave=False, dynamic_ncols=True) as bar:
        for length in lengths:
            while session.memory.text < length:
                session.read(context)
                bar.update(CONTEXT)
            memory = session.memory

            def read():
                session.memory = memory  # noqa: B023  used at once
                session.read(context)

            answer = lambda: list(session.generate(question, OUTPUT, stop_ids=()))
            yield Held(len(memory), memory.nbytes, answer, read)
            session.memory = memory


def fast_memories(model: Transformer, method: Method, n: int, lengths: tuple[int, ...]) -> Iterator[Held]:
    """Memories of the fast code, filled with random numbers. Their buffers have room for the turns to be measured."""
    context, question = texts(model)
    each = 0 if method.merge_rate else n or CONTEXT  # pairs that a step adds
    for length in tqdm(lengths, method.name, leave=False):
        pairs = length // CONTEXT * each or n
        talks = Conversations(model, method, n, 1, pairs + (READS + WARMUP) * each, CONTEXT, OUTPUT)
        fill(talks, pairs)
        answer = partial(talks.generate, question, OUTPUT, stop_ids=())
        yield Held(pairs, pairs * pair_bytes(model), answer, partial(talks.read, context))


def texts(model: Transformer) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of a context and of an input, each as the only one of a batch."""
    return random_texts(model, 1, CONTEXT), random_texts(model, 1, INPUT)


@torch.no_grad()
def measure(model: Transformer, name: str, n: int, lengths: tuple[int, ...], memories=plain_memories) -> list[dict]:
    """A row for each length of context: seconds to read 50 tokens more and to answer, and memory."""
    rows, method, on_gpu = [], get_method(name), model.embed_tokens.weight.is_cuda
    for length, held in zip(lengths, memories(model, method, n, lengths)):
        free_memory()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        row = {"method": name, "n": n, "context": length, "kv_pairs": held.pairs, "kv_bytes": held.nbytes}
        row["answer_s"] = seconds(held.answer, 3, WARMUP)
        row["read_s"] = seconds(held.read, READS, WARMUP)
        if on_gpu:
            row["peak_bytes"] = torch.cuda.max_memory_allocated()
        rows.append(row | {"read_flops": step_flops(model.config, length, n or None, bool(method.merge_rate))})
    return rows


def main() -> None:
    options = arguments()
    device, dtype = cli.device_and_dtype(options)
    model = load_model(options.model, device, dtype)
    if options.fast:
        join_weights(model)
    memories = fast_memories if options.fast else plain_memories
    rows = measure(model, "full", 0, LENGTHS, memories)
    torch.manual_seed(options.seed)
    model.add_adapter(options.n, RANK)  # not trained: a trained one costs the same
    for name in COMPRESSED:
        rows += measure(model.eval(), name, options.n, LENGTHS, memories)
    name = Path(options.model).name
    shapes = {name: model.config, **{shape: SHAPES[shape] for shape in ("1b", "7b", "13b")}}
    pays = [
        {"shape": shape, "method": method, "n": n, "pays_from": pays_from(config, n, method == "ccm-merge")}
        for shape, config in shapes.items()
        for method in COMPRESSED
        for n in (1, 2, 4, 8)
    ]
    show(rows, pays, f"{name}, {device.type}, {str(model.embed_tokens.weight.dtype).removeprefix('torch.')}")
    if options.json:
        write_json(options.json, rows + pays)
    if options.picture:
        picture(rows, options.picture, name)


def show(rows: list[dict], pays: list[dict], title: str) -> None:
    """Prints a table for each quantity, by length of context, and where compression begins to save operations."""
    cells = {
        "ms to read (and compress) 50 tokens": lambda row: f"{1000 * row['read_s']:.1f}",
        f"ms to answer, {INPUT} tokens in and {OUTPUT} out": lambda row: f"{1000 * row['answer_s']:.0f}",
        "GFLOP to read (and compress) 50 tokens": lambda row: f"{row['read_flops'] / 1e9:.3g}",
        "KV memory, KiB": lambda row: f"{row['kv_bytes'] / 1024:,.0f}",
        "peak memory, MiB": lambda row: f"{row['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in row else "",
    }
    for heading, cell in cells.items():
        if not any(map(cell, rows)):
            continue
        lengths = dict.fromkeys(row["context"] for row in rows)
        table = new_table(f"{heading} ({title})", "tokens of context", *(f"{length:,}" for length in lengths))
        for method in dict.fromkeys(row["method"] for row in rows):
            line = [row for row in rows if row["method"] == method]
            table.add_row(f"{method}, n = {line[0]['n']}" if line[0]["n"] else method, *map(cell, line))
        print_table(table)
    heading = "length of context at which compression begins to save FLOP"
    table = new_table(heading, "shape", "method", "n = 1", "2", "4", "8", left=2)
    for shape, method in dict.fromkeys((row["shape"], row["method"]) for row in pays):
        line = [row["pays_from"] for row in pays if (row["shape"], row["method"]) == (shape, method)]
        table.add_row(shape, method, *(f"{x:,}" if x else "never" for x in line))
    print_table(table)


def picture(rows: list[dict], path: Path, name: str) -> None:
    """Draws time to read and to answer, and KV memory, by length of context."""
    figure, axes = pyplot().subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    panels = [
        ("read_s", 1000, "ms to read (and compress) 50 tokens"),
        ("answer_s", 1000, "ms to answer"),
        ("kv_bytes", 2**-20, "KV memory, MiB"),
    ]
    for axis, (key, scale, label) in zip(axes, panels):
        for method in dict.fromkeys(row["method"] for row in rows):
            line = [row for row in rows if row["method"] == method]
            axis.plot([r["context"] for r in line], [scale * r[key] for r in line], "o-", markersize=4, label=method)
        axis.set(xlabel="tokens of context so far", ylabel=label)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    axes[0].set_title(name)
    axes[2].set_yscale("symlog", linthresh=0.01)
    save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
