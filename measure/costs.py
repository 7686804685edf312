"""What compression costs, and from where on it pays (paper: tables 1 and 17): eval.py --costs.

A context of 50 tokens comes, is read, and an input is answered, after so many tokens of context before it. Full context
attends to them all, compressed memory to n pairs for each 50 (concat) or n in all (merge), but it reads n COMP tokens
more. Measured: time, pairs, memory. By formula: floating-point operations, and the length from which the shorter memory
saves more of them than the COMP tokens cost.
"""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from eval import save_figure
from measure.bench import seconds
from minccm import cli
from minccm.checkpoint import load_model
from minccm.config import SHAPES, LlamaConfig
from minccm.files import write_json
from minccm.methods import get_method
from minccm.online import Session

CONTEXT, INPUT, OUTPUT = 50, 32, 32  # tokens; a demonstration of MetaICL has about 50
LENGTHS = (250, 500, 1000, 2000, 4000, 8000)
RANK = 8


def flops(config: LlamaConfig, tokens: int, before: int, comp: int = 0, r: int = 0, logits: int = 0) -> int:
    """Floating-point operations of one forward pass, a multiply-add counting two, as matrix products really run.

    tokens: in the pass, of which `comp` are COMP tokens with LoRA of rank r; each attends to `before` pairs and to the
    pass itself (what a mask hides is computed, too). logits: rows that are sent through the vocabulary.
    """
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    seen = tokens * 2 * queries * (before + tokens)  # q k and p v
    qkv = tokens * config.dim * (queries + 2 * keys) + comp * r * (3 * config.dim + queries + 2 * keys)
    after = config.dim * (queries + 3 * config.ffn_dim)  # of a token: o and SwiGLU
    others = config.n_layers - 1  # the last block goes on with those rows alone that are predicted from
    rest = (others * tokens + logits) * after + others * comp * r * (queries + config.dim)
    return 2 * (config.n_layers * (qkv + seen) + rest + logits * config.dim * config.vocab_size)


def step_flops(config: LlamaConfig, length: int, n: int | None, merged: bool = False) -> int:
    """To read one context after `length` tokens of context: in full (n is None), or with compression to n pairs."""
    if n is None:
        return flops(config, CONTEXT, length)
    return flops(config, CONTEXT + n, n if merged else length // CONTEXT * n, n, RANK)


def pays_from(config: LlamaConfig, n: int, merged: bool) -> int | None:
    """The shortest context from which on reading and compressing takes fewer operations than full context does."""
    lengths = range(CONTEXT, 100_000, CONTEXT)
    return next((x for x in lengths if step_flops(config, x, n, merged) < step_flops(config, x, None)), None)


@torch.no_grad()
def measure(model, name: str, n: int, lengths, device) -> list[dict]:
    """A row for each length of context: seconds to read 50 tokens more and to answer, and memory."""
    method, rows = get_method(name), []
    session = Session(model, method, n, adapted=bool(n))
    ids = torch.randint(3, model.config.vocab_size, (max(CONTEXT, INPUT),), generator=torch.Generator().manual_seed(0))
    context, question = ids[:CONTEXT].tolist(), ids[:INPUT].tolist()
    bar = tqdm(total=max(lengths), desc=name, unit="token", leave=False, dynamic_ncols=True)
    with bar:
        for length in lengths:
            while session.memory.position < length:
                session.read(context)
                bar.update(CONTEXT)
            held = session.memory

            def read():
                session.memory = held  # noqa: B023  used at once
                session.read(context)

            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            row = {"method": name, "n": n, "context": length, "kv_pairs": len(held), "kv_bytes": held.nbytes}
            row["read_s"] = seconds(read, 5, 1)
            session.memory = held
            answer = lambda: list(session.generate(question, OUTPUT, stop=False))
            row["answer_s"] = seconds(answer, 3, 1)
            if device.type == "cuda":
                row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
            row["read_flops"] = step_flops(model.config, length, n or None, name == "ccm-merge")
            rows.append(row)
    return rows


def main(options) -> None:
    device, dtype = cli.device_and_dtype(options)
    n = options.n or 2
    model = load_model(options.model, device, dtype)
    rows = measure(model, "full", 0, LENGTHS, device)
    torch.manual_seed(options.seed)
    model.add_adapter(n, RANK)  # what it would have learned costs the same
    for name in ("ccm-concat", "ccm-merge"):
        rows += measure(model.eval(), name, n, LENGTHS, device)
    name = Path(options.model).name
    shapes = {name: model.config, **{shape: SHAPES[shape] for shape in ("1b", "7b", "13b")}}
    pays = [
        {"shape": shape, "method": method, "n": n, "pays_from": pays_from(config, n, method == "ccm-merge")}
        for shape, config in shapes.items()
        for method in ("ccm-concat", "ccm-merge")
        for n in (1, 2, 4, 8)
    ]
    show(rows, pays, f"{name}, {device.type}, {str(model.embed_tokens.weight.dtype).removeprefix('torch.')}")
    if options.json:
        write_json(options.json, rows + pays)
    if options.picture:
        picture(rows, options.picture, name)


def show(rows: list[dict], pays: list[dict], title: str) -> None:
    console = Console()
    methods = list(dict.fromkeys(row["method"] for row in rows))
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
        table = Table(title=f"{heading} ({title})", title_justify="left")
        table.add_column("after so much context")
        for length in LENGTHS:
            table.add_column(f"{length:,}", justify="right")
        for method in methods:
            line = [row for row in rows if row["method"] == method]
            table.add_row(f"{method}, n = {line[0]['n']}" if line[0]["n"] else method, *map(cell, line))
        console.print(table)
    table = Table(title="length of context from which compressing 50 tokens takes fewer FLOP", title_justify="left")
    for heading in ("shape", "method", "n = 1", "2", "4", "8"):
        table.add_column(heading, justify="left" if heading in ("shape", "method") else "right")
    for shape, method in dict.fromkeys((row["shape"], row["method"]) for row in pays):
        line = [row["pays_from"] for row in pays if (row["shape"], row["method"]) == (shape, method)]
        table.add_row(shape, method, *(f"{x:,}" if x else "never" for x in line))
    console.print(table)


def picture(rows: list[dict], path: Path, name: str) -> None:
    """Time to read and to answer, and KV memory, by length of context."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    what = (("read_s", 1000, "ms to read (and compress) 50 tokens"), ("answer_s", 1000, "ms to answer"))
    for axis, (key, scale, label) in zip(axes, (*what, ("kv_bytes", 2**-20, "KV memory, MiB"))):
        for method in dict.fromkeys(row["method"] for row in rows):
            line = [row for row in rows if row["method"] == method]
            axis.plot([r["context"] for r in line], [scale * r[key] for r in line], "o-", markersize=4, label=method)
        axis.set(xlabel="tokens of context so far", ylabel=label)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    axes[0].set_title(name)
    axes[2].set_yscale("symlog", linthresh=0.01)
    save_figure(figure, path)
