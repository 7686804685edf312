"""Evaluate: the table by time step, as in the paper's tables 23 to 25, for a model and its adapters.

    python eval.py --data dialog                  # the model that ships: none, full, and each adapter beside it
    python eval.py --data icl --adapter DIR --json result.json --picture result.png

Perplexity is over the target's tokens without EOS. Recall is the share of answers of which every token is the likeliest
one, given the true target before it. Accuracy takes the option of the highest summed log-likelihood, EOS included.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import data
from minccm import cli
from minccm.checkpoint import load_adapter, load_model, make_folder, write_text
from minccm.layout import Layout, collate, group, lay_out, segments
from minccm.mask import predict
from minccm.methods import Method, get_method, visible
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
        raise ValueError(f"{name} has no test samples with {', '.join(map(str, time_steps))} contexts: see --time-steps")
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
    longest = max(int(layout.positions.max()) for layout in layouts) + 1
    if longest > model.config.max_positions:
        raise ValueError(f"a sample of {longest} tokens is longer than the model's {model.config.max_positions} positions")
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
        out["perplexity"] = float(torch.tensor(nll / tokens).exp())
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
    query = layout.columns[-1:]
    return sum(int((visible(method, query, k) & (k.step < query.step)).sum()) for k in (layout.columns, layout.slots))


def close_gaps(rows: list[dict]) -> None:
    """Adds gap_closed to rows: 0 as without context, 1 as with full context; by log-perplexity or by accuracy."""
    for row in rows:
        at = {r["method"]: r for r in rows if (r["data"], r["time_step"]) == (row["data"], row["time_step"])}
        if "none" not in at or "full" not in at:
            continue
        if "accuracy" in row:
            none, full, this = (at[name]["accuracy"] for name in ("none", "full", row["method"]))
        else:
            none, full, this = (-torch.tensor(at[name]["perplexity"]).log().item() for name in ("none", "full", row["method"]))
        row["gap_closed"] = (this - none) / (full - none) if full != none else float("nan")


def show(rows: list[dict], console: Console | None = None) -> None:
    """Prints a table for each metric: a line a method, a column a time step, and the memory at the last one."""
    console = console or Console()
    for name in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == name]
        time_steps = sorted({row["time_step"] for row in of_data})
        for metric, title in METRICS.items():
            if metric not in of_data[0]:
                continue
            table = Table(title=f"{name}: {title} after t contexts", title_justify="left")
            table.add_column("method")
            for t in time_steps:
                table.add_column(f"t = {t}", justify="right")
            for heading in ("gap closed", "KV pairs", "KV memory"):
                table.add_column(heading + f" at {time_steps[-1]}", justify="right")
            for method in dict.fromkeys(row["method"] for row in of_data):
                at = {row["time_step"]: row for row in of_data if row["method"] == method}
                cells = [_number(at[t][metric], metric) if t in at else "" for t in time_steps]
                last = at[max(at)]
                gap = f"{last['gap_closed']:.2f}" if "gap_closed" in last and method not in ("none", "full") else ""
                table.add_row(method, *cells, gap, f"{last['kv_pairs']:.0f}", f"{last['kv_bytes'] / 1024:.0f} KiB")
            console.print(table)


def _number(value: float, metric: str) -> str:
    return f"{value:.2f}" if metric == "perplexity" else f"{100 * value:.1f}%"
