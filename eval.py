"""Evaluate: the table by time step, as in the paper's tables 23 to 25, for a model and its adapters.

    python eval.py --data dialog                  # the model that ships: none, full, and each adapter beside it
    python eval.py --data icl --adapter DIR --json result.json --picture result.png
    python eval.py --masks masks.png              # who sees whom, for every method
    python eval.py --bench all --model random:7b  # speed, beside the machine's own limits

Perplexity is over the target's tokens without EOS. Recall is the share of answers of which every token is the likeliest
one, given the true target before it. Accuracy takes the option of the highest summed log-likelihood, EOS included.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import data
from data import dialog
from minccm import cli
from minccm.checkpoint import load_adapter, load_model
from minccm.files import make_folder, write_text, write_whole
from minccm.layout import Layout, check_length, collate, group, lay_out, segments
from minccm.mask import predict
from minccm.methods import Columns, Method, get_method, visible
from minccm.model import Transformer
from minccm.tokenizer import Tokenizer

TIME_STEPS = {"dialog": (1, 2, 4, 8, 12), "icl": (1, 2, 4, 8, 16), "persona": (1, 2, 4, 8, 16)}
METRICS = {"perplexity": "perplexity", "recall": "exact recall of the answer", "accuracy": "multiple-choice accuracy"}


@dataclass
class Run:
    """What is evaluated: a method with n COMP tokens, with or without the model's adapter."""

    method: Method
    n: int = 0
    adapted: bool = True
    adapter: Path | None = None
    label: str = field(default="")

    def __post_init__(self):
        self.label = self.label or self.method.name


BASELINES = [Run(get_method("none"), adapted=False), Run(get_method("full"), adapted=False)]


def evaluate(
    model: Transformer, tokenizer: Tokenizer, run: Run, name: str, time_steps, count: int, seed: int, budget: int
) -> list[dict]:
    """Rows of the results table, one a time step: data, method, time_step, perplexity or accuracy or recall, kv_*."""
    rows = []
    for time_step in time_steps:
        if samples := data.at_step(name, "test", time_step, count, seed):
            measured = measure(model, tokenizer, run, samples, budget)
            rows.append({"data": name, "method": run.label, "n": run.n, "time_step": time_step} | measured)
    if not rows:
        raise ValueError(
            f"{name} has no test samples with {', '.join(map(str, time_steps))} contexts: see --time-steps"
        )
    return rows


@torch.no_grad()
def measure(model: Transformer, tokenizer: Tokenizer, run: Run, samples: list[dict], budget: int) -> dict:
    """The metrics that the samples allow: accuracy where there are options, else perplexity, and recall for answers."""
    layouts, firsts = [], []
    for sample in samples:
        firsts.append(len(layouts))
        for target in sample.get("options") or [sample["target"]]:
            contexts, input, output = segments(tokenizer, sample | {"target": target}, run.method.reads)
            layouts.append(lay_out(run.method, run.n, model.config.vocab_size, contexts, input, output))
            check_length(layouts[-1], model.config.max_positions)
    scores = score(model, run, layouts, budget)
    nll, tokens, recalled, right = 0.0, 0, [], []
    for first, sample in zip(firsts, samples):
        if options := sample.get("options"):
            sums = [scores[first + i][0].sum() for i in range(len(options))]
            right.append(options[int(torch.stack(sums).argmax())] == sample["target"])
            continue
        logprobs, hits = scores[first]
        nll, tokens = nll - float(logprobs[:-1].sum()), tokens + len(logprobs) - 1  # EOS is last
        if sample.get("answer"):
            begin, end = tokenizer.span(sample["target"], sample["answer"])
            recalled.append(bool(hits[begin:end].all()))
    pairs = sum(memory_pairs(run.method, layouts[first]) for first in firsts) / len(firsts)
    per_pair = model.config.kv_bytes_per_pair * model.embed_tokens.weight.element_size()
    out = {"samples": len(samples)}
    if tokens:
        out["perplexity"] = math.exp(nll / tokens)
    if recalled:
        out["recall"] = sum(recalled) / len(recalled)
    if right:
        out["accuracy"] = sum(right) / len(right)
    return out | {"kv_pairs": pairs, "kv_bytes": pairs * per_pair}


def score(model: Transformer, run: Run, layouts: list[Layout], budget: int) -> list[tuple[Tensor, Tensor]]:
    """Of each layout: the log-probabilities (L,) of its L target tokens, and bool (L,), is each the likeliest?"""
    scores: list = [None] * len(layouts)
    device = model.embed_tokens.weight.device
    for indices in group([len(layout.tokens) for layout in layouts], budget):
        batch = collate([[layouts[i]] for i in indices]).to(device)
        logits, rows = predict(model, run.method, batch, adapted=run.adapted)  # (R, vocab_size)
        labels = batch.labels.flatten()[rows]
        logprobs = -F.cross_entropy(logits.float(), labels, reduction="none").cpu()
        hits = (logits.argmax(-1) == labels).cpu()
        lengths = (batch.weights > 0).sum(1).tolist()
        for i, one, hit in zip(indices, logprobs.split(lengths), hits.split(lengths)):
            scores[i] = one, hit
    return scores


def memory_pairs(method: Method, layout: Layout) -> int:
    """KV pairs of earlier steps that the input and output see: the memory that is kept."""
    query, keys = Columns(layout.columns[-1:]), Columns(torch.cat([layout.columns, layout.slots]))
    return int((visible(method, query, keys) & (keys.step < query.step)).sum())


def close_gaps(rows: list[dict]) -> None:
    """Adds gap_closed to rows: 0 as without context, 1 as with full context; by log-perplexity or by accuracy."""
    at = {(row["data"], row["time_step"], row["method"]): row for row in rows}

    def gain(row: dict) -> float:
        return row["accuracy"] if "accuracy" in row else -math.log(row["perplexity"])

    for row in rows:
        none, full = (at.get((row["data"], row["time_step"], method)) for method in ("none", "full"))
        if none and full and gain(full) - gain(none) > 0.05:  # else there is no gap to close
            row["gap_closed"] = (gain(row) - gain(none)) / (gain(full) - gain(none))


def evaluate_distances(
    model: Transformer, tokenizer: Tokenizer, run: Run, distances, count: int, seed: int, budget: int
) -> list[dict]:
    """Rows for dialog by `distance`: recall of a fact told d contexts ago, in conversations of d to 20 contexts."""
    rows = []
    for distance in distances:
        lengths = range(distance, max(distance, 20) + 1)
        samples = [dialog.sample_at("test", i, lengths[i % len(lengths)], seed, distance) for i in range(count)]
        measured = measure(model, tokenizer, run, samples, budget)
        rows.append({"data": "dialog", "method": run.label, "n": run.n, "distance": distance} | measured)
    return rows


def show(rows: list[dict], by: str = "time_step", console: Console | None = None) -> None:
    """Prints a table for each metric: a line a method, a column a time step (or distance), and its memory."""
    console = console or Console()
    after = {"time_step": "after t contexts", "distance": "of a fact told d contexts ago"}[by]
    for name, metric in dict.fromkeys((row["data"], metric) for row in rows for metric in METRICS if metric in row):
        if by == "distance" and metric != "recall":
            continue
        of_data = [row for row in rows if row["data"] == name]
        columns = sorted({row[by] for row in of_data})
        table = Table(title=f"{name}: {METRICS[metric]} {after}", title_justify="left")
        for heading in ("method", *(f"{by[0]}={c}" for c in columns)):
            table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
        for heading in ("gap closed", "KV pairs", "KiB"):
            table.add_column(heading, justify="right")
        for method in dict.fromkeys(row["method"] for row in of_data):
            at = {row[by]: row for row in of_data if row["method"] == method}
            cells = [_number(at[c][metric], metric) if c in at else "" for c in columns]
            last = at[max(at)]
            gap = f"{last['gap_closed']:.2f}" if "gap_closed" in last and method not in ("none", "full") else ""
            table.add_row(method, *cells, gap, f"{last['kv_pairs']:.0f}", f"{last['kv_bytes'] / 1024:.0f}")
        table.caption = f"gap closed and KV memory at {by[0]}={columns[-1]}"
        console.print(table)


def _number(value: float, metric: str) -> str:
    return f"{value:.2f}" if metric == "perplexity" else f"{100 * value:.1f}%"


def picture(rows: list[dict], path: Path) -> None:
    """Draws each dataset's metric by time step (left) and against KV memory (right; the paper's figure 10)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = plt.subplots(len(names), 2, figsize=(9, 3.2 * len(names)), squeeze=False, layout="constrained")
    for name, (left, right) in zip(names, axes):
        of_data = [row for row in rows if row["data"] == name]
        metric = next(metric for metric in METRICS if metric in of_data[0])
        for i, method in enumerate(dict.fromkeys(row["method"] for row in of_data)):
            line = [row for row in of_data if row["method"] == method]
            style = dict(marker="o", markersize=4, color=f"C{i}", label=method)
            left.plot([row["time_step"] for row in line], [row[metric] for row in line], **style)
            right.plot([row["kv_bytes"] / 1024 for row in line], [row[metric] for row in line], **style)
        left.set(title=name, xlabel="time step t (contexts so far)", ylabel=METRICS[metric])
        right.set(xlabel="KV memory (KiB)")
        right.set_xscale("symlog", linthresh=10)
        left.legend(fontsize=8)
    save_figure(figure, path)


def save_figure(figure, path: Path) -> None:
    """Writes a picture whole or not at all."""
    make_folder(path.parent)
    write_whole(path, lambda beside: figure.savefig(beside, dpi=150, format=path.suffix[1:] or None))


def adapters_of(options) -> list[Path]:
    """The adapters to evaluate: those named, or all that stand in the model's folder."""
    if options.adapter:
        return [Path(adapter) for adapter in options.adapter]
    return sorted(path.parent for path in Path(options.model).glob("*/adapter.json"))


def main():
    parser = cli.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--adapter", nargs="+", default=None, help="adapter folders; by default all that stand in the model's folder")
    add(
        "--data",
        default="dialog",
        help=f"{', '.join(data.GENERATED)} or a JSON-lines file; several with commas between",
    )
    add("--time-steps", type=int, nargs="+", default=None, help="numbers of contexts")
    add("--samples", type=int, default=200, help="test samples a time step")
    add("--row-tokens", type=int, default=4096, help="tokens of one forward pass")
    add("--json", type=Path, default=None, help="write the table there, as a list of rows")
    add("--picture", type=Path, default=None, help="draw the table there")
    add("--masks", type=Path, default=None, help="draw the masks of all methods there, and do nothing else")
    add("--bench", choices=["train", "decode", "serve", "all"], help="measure speed, and do nothing else")
    options = parser.parse_args()
    if options.bench:
        from measure import bench

        rows = bench.run(options.bench, load_model(options.model, *cli.device_and_dtype(options)))
        if options.json:
            make_folder(options.json.parent)
            write_text(options.json, json.dumps(rows, indent=1) + "\n")
        return
    if options.masks:
        from minccm.picture import draw_masks

        return save_figure(draw_masks(), options.masks)
    base = options.model, options.init, *cli.device_and_dtype(options)
    model, tokenizer = cli.open_base(*base)
    step1 = model.step1
    wanted = [get_method(name).name for name in options.method.split(",")] if options.method else None
    method = wanted[0] if wanted and len(wanted) == 1 and options.adapter else None  # what these are to be
    rows, distances = [], []
    runs = BASELINES + [Run(get_method("none"), adapter=path) for path in adapters_of(options)]
    bar = tqdm(runs, desc="evaluating", leave=False)
    for run in bar:
        if run.adapter:
            if model.step1 != step1:  # the last one brought its own step 1 into the base
                model, tokenizer = cli.open_base(*base)
            run = Run(*load_adapter(model, run.adapter, method, options.n, options.sink), adapter=run.adapter)
            if wanted and run.method.name not in wanted:
                continue
            taken = {row["method"] for row in rows}
            run.label = run.adapter.name if run.label in taken else run.label
        bar.set_postfix_str(run.label)
        for name in dict.fromkeys(options.data.split(",")):
            time_steps = options.time_steps or TIME_STEPS.get(name, TIME_STEPS["dialog"])
            rows += evaluate(model, tokenizer, run, name, time_steps, options.samples, options.seed, options.row_tokens)
            if name == "dialog":
                distances += evaluate_distances(
                    model, tokenizer, run, TIME_STEPS["dialog"], options.samples, options.seed, options.row_tokens
                )
    close_gaps(rows)
    show(rows)
    show(distances, by="distance")
    if options.json:
        make_folder(options.json.parent)
        write_text(options.json, json.dumps(rows + distances, indent=1) + "\n")
    if options.picture:
        picture(rows, options.picture)


if __name__ == "__main__":
    cli.run(main)
