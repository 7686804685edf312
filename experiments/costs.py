"""The cost of compression, and how long a context must be for it to save operations (paper: tables 1 and 17).

    python -m experiments.costs --model random:7b --dtype bf16 --json costs.json --picture costs.png

After some context, 50 more tokens are read (and compressed), and an input is answered. Full context attends to all
tokens so far. Compressed memory has n pairs for each 50 tokens (concat) or n in all (merge), but n COMP tokens more to
read. Measured: time, KV pairs, memory. By formula: floating-point operations, and the length of context at which
the shorter memory begins to save more of them than the COMP tokens cost.

--fast measures minccm/fast/conversations.py in place of the plain Session: on a GPU, a turn is one CUDA graph. Its
memory then holds random numbers, whose values do not change the cost.
"""

from pathlib import Path

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
from minccm.io.weights import load_model
from minccm.methods import get_method
from minccm.model import LlamaConfig
from minccm.session import Session

CONTEXT, INPUT, OUTPUT = 50, 32, 32  # tokens; a demonstration of MetaICL has about 50
LENGTHS = (250, 500, 1000, 2000, 4000, 8000)
RANK = 8
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


@torch.no_grad()
def measure(model, name: str, n: int, lengths: tuple[int, ...]) -> list[dict]:
    """A row for each length of context: seconds to read 50 tokens more and to answer, and memory."""
    session, rows = Session(model, get_method(name), n), []
    ids = torch.randint(3, model.config.vocab_size, (max(CONTEXT, INPUT),), generator=torch.Generator().manual_seed(0))
    context, question = ids[:CONTEXT].tolist(), ids[:INPUT].tolist()
    on_gpu = model.embed_tokens.weight.is_cuda
    with tqdm(total=max(lengths), desc=name, unit="token", leave=False, dynamic_ncols=True) as bar:
        for length in lengths:
            while session.memory.text < length:
                session.read(context)
                bar.update(CONTEXT)
            memory = session.memory

            def read():
                session.memory = memory  # noqa: B023  used at once
                session.read(context)

            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            row = {"method": name, "n": n, "context": length, "kv_pairs": len(memory), "kv_bytes": memory.nbytes}
            row["read_s"] = seconds(read, 5, 1)
            session.memory = memory
            row["answer_s"] = seconds(lambda: list(session.generate(question, OUTPUT, stop_ids=())), 3, 1)
            if on_gpu:
                row["peak_bytes"] = torch.cuda.max_memory_allocated()
            row["read_flops"] = step_flops(model.config, length, n or None, name == "ccm-merge")
            rows.append(row)
    return rows


@torch.no_grad()
def measure_fast(model, name: str, n: int, lengths: tuple[int, ...]) -> list[dict]:
    """The same rows, from the fast code. The buffers hold the memory and the turns that are measured, no more."""
    rows, method, repeat, warmup = [], get_method(name), 5, 2
    context, question = random_texts(model, 1, CONTEXT), random_texts(model, 1, INPUT)
    weight = model.embed_tokens.weight
    pair_bytes = model.config.kv_numbers_per_pair * weight.element_size()
    for length in tqdm(lengths, name, leave=False):
        talks = None  # the last one's memory is free from here on
        free_memory()
        if weight.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        merged, each = bool(method.merge_rate), n or CONTEXT  # pairs of a step
        pairs = n if merged else length // CONTEXT * each
        room = pairs if merged else pairs + (repeat + warmup) * each
        talks = Conversations(model, method, n, 1, room, CONTEXT, OUTPUT)
        fill(talks, pairs)
        row = {"method": name, "n": n, "context": length, "kv_pairs": pairs, "kv_bytes": pairs * pair_bytes}
        row["answer_s"] = seconds(lambda: talks.generate(question, OUTPUT, stop_ids=()), 3)  # noqa: B023  used at once
        row["read_s"] = seconds(lambda: talks.read(context), repeat, warmup)  # noqa: B023
        if weight.is_cuda:
            row["peak_bytes"] = torch.cuda.max_memory_allocated()
        rows.append(row | {"read_flops": step_flops(model.config, length, n or None, merged)})
    return rows


def main() -> None:
    options = arguments()
    device, dtype = cli.device_and_dtype(options)
    model = load_model(options.model, device, dtype)
    if options.fast:
        join_weights(model)
    run = measure_fast if options.fast else measure
    rows = run(model, "full", 0, LENGTHS)
    torch.manual_seed(options.seed)
    model.add_adapter(options.n, RANK)  # not trained: a trained one costs the same
    for name in COMPRESSED:
        rows += run(model.eval(), name, options.n, LENGTHS)
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
