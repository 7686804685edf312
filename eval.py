"""Evaluate: the table by time step, as in the paper's tables 23 to 25, for a model and its adapters.

    python eval.py --data dialog                  # the model that ships: none, full, and each adapter beside it
    python eval.py --data icl --adapter DIR --json result.json --picture result.png
    python eval.py --masks masks.png              # who sees whom, for every method
    python eval.py --stream FILE                  # a long text in a cache of fixed size: measure/stream.py
    python eval.py --stability                    # the same over 1,000,000 tokens: measure/stability.py
    python eval.py --show attention               # or mask, memory: measure/inside.py
    python eval.py --costs                        # time, memory and FLOP by length of context: measure/costs.py
    python eval.py --method-picture method.png    # the method over time
    python eval.py --bench all --model random:7b  # speed, beside the machine's own limits

Perplexity is over the target's tokens without EOS. Recall is the share of answers of which every token is the likeliest
one, given the true target before it. Accuracy takes the option of the highest log-likelihood: by the sum over its
tokens and EOS, and by the mean (as the paper does on MetaICL); of real data without EOS, as in the paper, and where
there are several tasks, each task weighing the same. With --average several adapters of one method are seeds: mean and
deviation.
"""

import importlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import data
from data import dialog
from minccm import cli
from minccm.checkpoint import load_adapter
from minccm.files import make_folder, write_json, write_whole
from minccm.layout import Layout, check_length, collate, group, lay_out, segments
from minccm.mask import predict
from minccm.methods import Columns, Method, get_method, visible
from minccm.model import Transformer
from minccm.tokenizer import Tokenizer

BY_TURNS, BY_EXAMPLES = (1, 2, 4, 8, 12), (1, 2, 4, 8, 16)
TIME_STEPS = {"soda": (1, 4, 7)} | dict.fromkeys(("icl", "persona", "metaicl", "lamp"), BY_EXAMPLES)
METRICS = {
    "perplexity": "perplexity",
    "recall": "exact recall of the answer",
    "accuracy": "multiple-choice accuracy",
    "accuracy_mean": "multiple-choice accuracy by the mean log-likelihood",
}
GAPS = {"perplexity": "gap_closed", "accuracy": "gap_closed", "accuracy_mean": "gap_closed_mean"}
CHOICES = {"accuracy": torch.sum, "accuracy_mean": torch.mean}


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
            about = {"data": Path(name).name, "method": run.label, "n": run.n, "time_step": time_step}
            rows.append(about | measured)
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
    nll, tokens, recalled, right = 0.0, 0, [], {}
    for first, sample in zip(firsts, samples):
        if options := sample.get("options"):
            ends = -1 if "separator" in sample else None  # in real data
            logprobs = [scores[first + i][0][:ends] for i in range(len(options))]
            best = [max(range(len(options)), key=lambda i: by(logprobs[i])) for by in CHOICES.values()]
            of_task = right.setdefault(sample.get("task"), [])
            of_task.append([options[i] == sample["target"] for i in best])
            continue
        logprobs, hits = scores[first]
        nll, tokens = nll - float(logprobs[:-1].sum()), tokens + len(logprobs) - 1  # EOS is last
        if sample.get("answer"):
            begin, end = tokenizer.span(sample["target"], sample["answer"])
            recalled.append(bool(hits[begin:end].all()))
    pairs = np.mean([memory_pairs(run.method, layouts[first]) for first in firsts])
    peaks = np.mean([peak_pairs(run.method, layouts[first]) for first in firsts], 0)
    per_pair = model.config.kv_bytes_per_pair * model.embed_tokens.weight.element_size()
    out = {"samples": len(samples)}
    if tokens:
        out["perplexity"] = math.exp(nll / tokens)
    if recalled:
        out["recall"] = sum(recalled) / len(recalled)
    if right:
        shares = np.mean([np.mean(of_task, 0) for of_task in right.values()], 0)  # of each task, then over tasks
        out |= dict(zip(CHOICES, shares.tolist()))
    for name, size in (("kv", pairs), ("peak_compression", peaks[0]), ("peak_inference", peaks[1])):
        out |= {f"{name}_pairs": float(size), f"{name}_bytes": float(size * per_pair)}
    return out


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


def peak_pairs(method: Method, layout: Layout) -> tuple[int, int]:
    """KV pairs held at most while contexts are compressed, and while the target is answered: memory and own tokens."""
    columns = Columns(torch.cat([layout.columns, layout.slots]))
    steps, lengths = Columns(layout.columns).step.unique_consecutive(return_counts=True)
    ends = layout.columns[lengths.cumsum(0) - 1].repeat(2, 1, 1)  # each step's last token, twice (2, T, 7)
    ends[1, :, 5] = 1  # what an input would see is held, even where a context does not see it
    ends = Columns(ends)[:, :, None]
    held = (visible(method, ends, columns) & (columns.step < ends.step)).any(0).sum(1) + lengths
    return int(max(held[:-1], default=0)), int(held[-1])


def average(rows: list[dict]) -> list[dict]:
    """Rows of the same data, method and time step as one: means of what was measured, and NAME_std, their deviation."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in ("data", "method", "time_step", "distance")), []).append(row)
    averaged = []
    for seeds in groups.values():
        row = dict(seeds[0])
        for key in (*METRICS, *set(GAPS.values())):
            if values := [one[key] for one in seeds if key in one]:
                row |= {key: float(np.mean(values)), "seeds": len(values)}
                row |= {f"{key}_std": float(np.std(values, ddof=1))} if len(values) > 1 else {}
        averaged.append(row)
    return averaged


def close_gaps(rows: list[dict]) -> None:
    """Adds gap_closed to rows: 0 as without context, 1 as with full context; by log-perplexity or by accuracy.

    And gap_closed_mean, by accuracy_mean.
    """
    at = {(row["data"], row["time_step"], row["method"]): row for row in rows}

    def gain(row: dict, metric: str) -> float:
        return -math.log(row[metric]) if metric == "perplexity" else row[metric]

    for row in rows:
        none, full = (at.get((row["data"], row["time_step"], method)) for method in ("none", "full"))
        for metric, name in GAPS.items():
            if none and full and metric in row and gain(full, metric) - gain(none, metric) > 0.05:  # else there is none
                row[name] = (gain(row, metric) - gain(none, metric)) / (gain(full, metric) - gain(none, metric))


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
            cells = [_number(at[c], metric) if c in at else "" for c in columns]
            last = at[max(at)]
            closed = GAPS.get(metric, "gap_closed")
            gap = _number(last, closed) if closed in last and method not in ("none", "full") else ""
            table.add_row(method, *cells, gap, f"{last['kv_pairs']:.0f}", f"{last['kv_bytes'] / 1024:.0f}")
        table.caption = f"gap closed and KV memory at {by[0]}={columns[-1]}"
        console.print(table)


def _number(row: dict, metric: str) -> str:
    """With ± its deviation over seeds, where there are several."""
    scale, form, sign = (1, ".2f", "") if metric == "perplexity" or "gap" in metric else (100, ".1f", "%")
    deviation = f" ± {scale * row[metric + '_std']:{form}}" if metric + "_std" in row else ""
    return f"{scale * row[metric]:{form}}{deviation}{sign}"


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


def wanted_of(options) -> tuple[list[str], str | None]:
    """The methods to evaluate adapters of, none for all; and what those named are to be, if that is told."""
    wanted = [get_method(name).name for name in options.method.split(",")] if options.method else []
    return wanted, wanted[0] if len(wanted) == 1 and options.adapter else None


def main():
    parser = cli.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--adapter", nargs="+", default=None, help="adapter folders; by default all that stand in the model's folder")
    add(
        "--data",
        default="dialog",
        help=f"{', '.join(data.GENERATED + data.PREPARED)} or a JSON-lines file; several with commas between",
    )
    add("--time-steps", type=int, nargs="+", default=None, help="numbers of contexts")
    add("--samples", type=int, default=200, help="test samples a time step; of files, 0 is all")
    add("--average", action="store_true", help="adapters of one method are seeds: show their mean and deviation")
    add("--row-tokens", type=int, default=4096, help="tokens of one forward pass")
    add("--json", type=Path, default=None, help="write the table there, as a list of rows")
    add("--picture", type=Path, default=None, help="draw the table there")
    add("--masks", type=Path, default=None, help="draw the masks of all methods there, and do nothing else")
    add("--stream", default=None, help="stream this text file through a cache of fixed size, and do nothing else")
    add("--stability", action="store_true", help="perplexity and recall over very long texts, and nothing else")
    add("--jobs", type=int, default=1, help="--stability: so many lines of the tables at the same time")
    add("--costs", action="store_true", help="what compressing and answering take by length, and nothing else")
    add("--talks", type=int, default=None, help="so many whole conversations, as in chat.py, and nothing else")
    add("--show", choices=["attention", "mask", "memory"], help="look inside, on the terminal and with --picture")
    add("--layout", type=int, nargs="+", default=[4, 3, 4, 3, 2], help="--show mask: contexts, input, target")
    add("--window", type=int, nargs="+", default=[160], help="--stream: key/value pairs in the cache when it is full")
    add("--chunk", type=int, default=None, help="--stream: tokens compressed at once; by default two fifths of it")
    add("--memory", type=int, default=8, help="--stream: slots of concatenated memory that are kept")
    add("--tokens", type=int, default=None, help="--stream: only so many tokens of the file")
    add("--token-by-token", type=int, default=0, help="--stream: read so many tokens one by one as well, to compare")
    add("--method-picture", type=Path, default=None, help="draw how the method works there, and do nothing else")
    add("--bench", choices=["train", "decode", "serve", "all"], help="measure speed, and do nothing else")
    options = parser.parse_args()
    for name in ("stability", "stream", "costs", "talks", "show", "bench"):
        if vars(options)[name] != parser.get_default(name):
            return importlib.import_module(f"measure.{name if name != 'show' else 'inside'}").main(options)
    if options.masks or options.method_picture:
        from minccm.picture import draw_masks, draw_method

        for path, draw in ((options.masks, draw_masks), (options.method_picture, draw_method)):
            if path:
                save_figure(draw(), path)
        return
    base = options.model, options.init, *cli.device_and_dtype(options)
    model, tokenizer = cli.open_base(*base)
    step1 = model.step1
    wanted, method = wanted_of(options)
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
            others = {row["n"] for row in rows if row["method"] == run.label}
            if others - {run.n}:
                run.label += f", n = {run.n}"
            elif others and not options.average:
                run.label = run.adapter.name
        bar.set_postfix_str(run.label)
        for name in dict.fromkeys(data.expand(options.data)):
            time_steps = options.time_steps or TIME_STEPS.get(data.prepared.kind(name), BY_TURNS)
            rows += evaluate(model, tokenizer, run, name, time_steps, options.samples, options.seed, options.row_tokens)
            if name == "dialog":
                distances += evaluate_distances(
                    model, tokenizer, run, BY_TURNS, options.samples, options.seed, options.row_tokens
                )
    close_gaps(rows)
    if options.average:
        rows, distances = average(rows), average(distances)
    show(rows)
    show(distances, by="distance")
    if options.json:
        write_json(options.json, rows + distances)
    if options.picture:
        picture(rows, options.picture)


if __name__ == "__main__":
    cli.run(main)
