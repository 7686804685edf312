"""The table by time step (paper: tables 23 to 25): perplexity, recall or accuracy, with the KV memory that it takes.

Perplexity is over the output's tokens without EOS. An answer is recalled if each of its tokens is the most likely one,
given the true output before it. Accuracy takes the option of the highest log-likelihood: by the sum over its tokens and
EOS, and by the mean (as the paper does on MetaICL); for real data without EOS, as in the paper, and where there are
several tasks, each task weighs the same.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

import data
from data import dialog
from data.encode import Encoder, check_length
from minccm.extra.tables import new_table, print_table
from minccm.io.adapters import adapter_fingerprint
from minccm.io.files import make_folder, write_json, write_whole
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import MAX_ERROR, printable
from minccm.io.weights import pair_bytes
from minccm.methods import Method, TokenInfo, attention_mask, get_method
from minccm.model import Transformer
from minccm.parallel import forward_parallel
from minccm.sequence import Sequence, bucket_by_length, build_sequence, pad_batch

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
AHEAD = 1.1  # a gap closed above this is not memory alone


@dataclass
class Run:
    """What is evaluated: a method with n COMP tokens a step."""

    method: Method
    n: int = 0
    label: str = field(default="")

    def __post_init__(self):
        self.label = self.label or self.method.name


BASELINES = [Run(get_method("none")), Run(get_method("full"))]


@dataclass
class Evaluator:
    """A model, how samples are written for it, and the number of tokens in one forward pass."""

    model: Transformer
    tokenizer: Tokenizer
    encode: Encoder
    max_tokens: int = 4096

    def by_time_step(self, run: Run, name: str, time_steps, count: int, seed: int = 0) -> list[dict]:
        """Rows of the table, one a time step: data, method, n, time_step, the metrics, kv_pairs, kv_bytes, ...

        count: test samples a time step; 0 means all of a file. Raises ValueError if there are none.
        """
        rows = []
        for time_step in time_steps:
            samples = data.at_step(name, "test", time_step, count, seed)
            if samples := [sample for sample in samples if self.reaches(sample, time_step)]:
                about = {"data": Path(name).name, "method": run.label, "n": run.n, "time_step": time_step}
                rows.append(about | self.measure(run, samples))
        if not rows:
            counts = ", ".join(map(str, time_steps))
            raise ValueError(f"{name} has no test samples with {counts} contexts: choose others with --time-steps")
        return rows

    def reaches(self, sample: dict, time_step: int) -> bool:
        """Does a chat have that many contexts? It depends on the template. Other samples are chosen by it already."""
        if "messages" not in sample:
            return True
        whole = {"messages": sample["messages"]}  # without "max_contexts"
        return len(self.encode(whole, True).contexts) >= time_step

    def by_dataset(
        self, run: Run, names: str, count: int, seed: int = 0, time_steps=None, base: str | None = None
    ) -> list[dict]:
        """Rows of by_time_step for each dataset of `names`. base: a name for the base model, if it is not plain."""
        rows = []
        for name in dict.fromkeys(data.expand(names)):
            steps = time_steps or TIME_STEPS.get(data.prepared.kind(name), BY_TURNS)
            rows += self.by_time_step(run, name, steps, count, seed)
        return [row | {"base": base} if base else row for row in rows]

    def by_distance(self, run: Run, distances, count: int, seed: int = 0) -> list[dict]:
        """Rows for dialog by `distance`: recall of a fact told d contexts ago, among d to 20 contexts."""
        rows = []
        for distance in distances:
            lengths = range(distance, max(distance, 20) + 1)
            samples = [dialog.sample_at("test", i, lengths[i % len(lengths)], seed, distance) for i in range(count)]
            about = {"data": "dialog", "method": run.label, "n": run.n, "distance": distance}
            rows.append(about | self.measure(run, samples))
        return rows

    @torch.no_grad()
    def measure(self, run: Run, samples: list[dict]) -> dict:
        """The metrics that the samples allow: accuracy where there are options, else perplexity, and recall."""
        sequences, outputs, firsts = [], [], []
        for sample in samples:
            firsts.append(len(sequences))
            for target in sample.get("options") or [None]:
                encoded = self.encode(
                    sample if target is None else sample | {"target": target}, run.method.reads_context
                )
                check_length(encoded, run.method, run.n, self.model.config.max_positions)
                contexts, questions, _ = encoded
                sequences.append(build_sequence(run.method, run.n, self.model.config.vocab_size, contexts, questions))
                outputs.append(questions[0][1])
        scores = self.score(run, sequences)
        nll, tokens, recalled, right = 0.0, 0, [], {}
        for first, sample in zip(firsts, samples):
            if options := sample.get("options"):
                end = -1 if "separator" in sample else None  # in real data
                logprobs = [scores[first + i][0][:end] for i in range(len(options))]
                best = [max(range(len(options)), key=lambda i: by(logprobs[i])) for by in CHOICES.values()]
                right.setdefault(sample.get("task"), []).append([options[i] == sample["target"] for i in best])
                continue
            logprobs, hits = scores[first]
            nll, tokens = nll - float(logprobs[:-1].sum()), tokens + len(logprobs) - 1  # EOS is last
            if sample.get("answer"):
                begin, end = span(self.tokenizer, outputs[first][:-1], sample["answer"])
                recalled.append(bool(hits[begin:end].all()))
        out = {"samples": len(samples)}
        if tokens:
            out["perplexity"] = math.exp(min(700.0, nll / tokens))
        if recalled:
            out["recall"] = sum(recalled) / len(recalled)
        if right:
            shares = np.mean([np.mean(of_task, 0) for of_task in right.values()], 0)  # of each task, then over tasks
            out |= dict(zip(CHOICES, shares.tolist()))
        return out | self.sizes(run.method, [sequences[first] for first in firsts])

    def score(self, run: Run, sequences: list[Sequence]) -> list[tuple[Tensor, Tensor]]:
        """For each sequence: log-probabilities (L,) of its L output tokens, and bool (L,), is each the most likely?"""
        scores: list = [None] * len(sequences)
        device = self.model.embed_tokens.weight.device
        for indices in bucket_by_length([len(sequence) for sequence in sequences], self.max_tokens):
            batch = pad_batch([sequences[i] for i in indices]).to(device)
            at = batch.loss_weights > 0
            labels = batch.tokens.roll(-1, dims=1)[at]
            logits = forward_parallel(self.model, run.method, batch)  # (R, vocab_size)
            logprobs = -F.cross_entropy(logits.float(), labels, reduction="none").cpu()
            hits = (logits.argmax(-1) == labels).cpu()
            lengths = at.sum(1).tolist()
            for i, one, hit in zip(indices, logprobs.split(lengths), hits.split(lengths)):
                scores[i] = one, hit
        return scores

    def sizes(self, method: Method, sequences: list[Sequence]) -> dict:
        """Mean KV pairs and bytes of the memory, and at most while compressing and while answering."""
        pairs = np.mean([(memory_pairs(method, x), *peak_pairs(method, x)) for x in sequences], 0)
        out = {}
        for name, size in zip(("kv", "peak_compression", "peak_inference"), pairs):
            out |= {f"{name}_pairs": float(size), f"{name}_bytes": float(size * pair_bytes(self.model))}
        return out


def span(tokenizer: Tokenizer, ids: list[int], part: str) -> tuple[int, int]:
    """Tokens [first, last) of ids that cover the last occurrence of `part` in their text."""
    ends = [len(tokenizer.decode(ids[:count])) for count in range(len(ids) + 1)]  # characters of the first tokens
    begin = tokenizer.decode(ids).rindex(part)
    inside = [i for i in range(len(ids)) if ends[i + 1] > begin and ends[i] < begin + len(part)]
    return inside[0], inside[-1] + 1


def memory_pairs(method: Method, sequence: Sequence) -> int:
    """KV pairs of earlier steps that the input and output attend to: the memory that is kept."""
    query, keys = sequence.info[-1:], TokenInfo.cat([sequence.info, sequence.slots])
    return int((attention_mask(method, query, keys) & (keys.step < query.step)).sum())


def peak_pairs(method: Method, sequence: Sequence) -> tuple[int, int]:
    """Most KV pairs held while contexts are compressed, and while the output is generated: memory and own tokens."""
    keys = TokenInfo.cat([sequence.info, sequence.slots])
    _, lengths = sequence.info.step.unique_consecutive(return_counts=True)
    ends = sequence.info[lengths.cumsum(0) - 1]  # each step's last token
    held = torch.zeros(len(lengths), len(keys), dtype=torch.bool)
    for question in (0, 1):  # what an input would attend to is held, even where a context does not attend to it
        query = TokenInfo(ends.kind, ends.step, ends.slot, ends.order, torch.full_like(ends.kind, question))
        held |= attention_mask(method, query, keys) & (keys.step < ends.step[:, None])
    held = held.sum(1) + lengths
    return int(max(held[:-1], default=0)), int(held[-1])


def average(rows: list[dict]) -> list[dict]:
    """Rows of the same data, method and time step as one: means of the metrics, and NAME_std, their deviation."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in ("data", "method", "time_step", "distance")), []).append(row)
    averaged = []
    for seeds in groups.values():
        row, bases = dict(seeds[0]), {one.get("base") for one in seeds}
        if len(bases) > 1:  # each seed with a step-1 adapter of its own
            row["base"] = f"{len(bases)} bases"
        for key in (*METRICS, *sorted(set(GAPS.values()))):
            if values := [one[key] for one in seeds if key in one]:
                row |= {key: float(np.mean(values)), "seeds": len(values)}
                row |= {f"{key}_std": float(np.std(values, ddof=1))} if len(values) > 1 else {}
        averaged.append(row)
    return averaged


def close_gaps(rows: list[dict]) -> None:
    """Adds gap_closed to rows: 0 as without context, 1 as with full context; by log-perplexity or by accuracy.

    And gap_closed_mean, by accuracy_mean. Rows are compared with the baselines of the same "base", where they name one.
    """
    at = {(row["data"], row["time_step"], row["method"], row.get("base")): row for row in rows}

    def gain(row: dict, metric: str) -> float:
        return -math.log(row[metric]) if metric == "perplexity" else row[metric]

    for row in rows:
        none, full = (at.get((row["data"], row["time_step"], name, row.get("base"))) for name in ("none", "full"))
        for metric, name in GAPS.items():
            if none and full and metric in row and gain(full, metric) - gain(none, metric) > 0.05:  # else there is none
                row[name] = (gain(row, metric) - gain(none, metric)) / (gain(full, metric) - gain(none, metric))


def show(rows: list[dict], by: str = "time_step", console: Console | None = None) -> None:
    """Prints a table for each metric: a line a method, a column a time step (or distance), and its memory."""
    console = console or Console()
    after = {"time_step": "after t contexts", "distance": "of a fact told d contexts ago"}[by]
    kinds = dict.fromkeys((row["data"], row.get("base"), metric) for row in rows for metric in METRICS if metric in row)
    for name, base, metric in kinds:
        if by == "distance" and metric != "recall":
            continue
        of_data = [row for row in rows if row["data"] == name and row.get("base") == base]
        steps = sorted({row[by] for row in of_data})
        on = f" (base: {base})" if base else ""
        unit = "" if metric == "perplexity" else " (%)"
        headings = "method", *(f"{by[0]}={step}" for step in steps), "gap", "pairs", "KiB"
        table = new_table(f"{name}: {METRICS[metric]}{unit} {after}{on}", *headings)
        for method in dict.fromkeys(row["method"] for row in of_data):
            at = {row[by]: row for row in of_data if row["method"] == method}
            cells = [_number(at[step], metric).removesuffix("%") if step in at else "" for step in steps]
            last, closed = at[max(at)], GAPS.get(metric, "gap_closed")
            gap = _number(last, closed) if closed in last and method not in ("none", "full") else ""
            table.add_row(method, *cells, gap, f"{last['kv_pairs']:.0f}", f"{last['kv_bytes'] / 1024:.0f}")
        table.caption = f"gap: gap closed; KV pairs and KiB of memory at {by[0]}={steps[-1]}"
        print_table(table, console)


def step1_name(adapter: str | Path) -> str | None:
    """A name for the step-1 adapter inside an adapter, which is merged into its base model; None if there is none.

    Adapters with the same name stand on the same base model.
    """
    folder = Path(adapter) / "init"
    return f"step 1 {adapter_fingerprint(folder)[:6]}" if folder.is_dir() else None


def report(evaluator: Evaluator, run: Run, options, out: Path, quiet: bool = False) -> None:
    """Prints the table of no context, full context and `run`, and a sentence about it; draws it to out/table.png.

    options: data, eval_samples, seed and json, as train.py has them. quiet: only compute, which all processes must do
    where they hold one model together. Where the data does not fit (too few contexts, or samples that are too long), it
    prints why, as the adapter is written already.
    """
    rows, base = [], step1_name(out)
    try:
        for each in tqdm([*BASELINES, run], "evaluating", leave=False, disable=quiet):
            rows += evaluator.by_dataset(each, options.data, options.eval_samples, options.seed, base=base)
    except ValueError as problem:
        quiet or print(f"no table: {printable(str(problem), MAX_ERROR)}")
        return
    if quiet:
        return
    close_gaps(rows)
    show(rows)
    print(meaning(rows))
    picture(rows, out / "table.png")
    print(f"picture: {out / 'table.png'}")
    if options.json:
        write_json(options.json, rows)


def meaning(rows: list[dict]) -> str:
    """One sentence that says what the last method of a table has achieved, next to full context."""
    last = rows[-1]
    key = last["data"], last["time_step"], "full"
    full = next((row for row in rows if (row["data"], row["time_step"], row["method"]) == key), None)
    metric = next(metric for metric in ("recall", "accuracy", "perplexity") if metric in last)
    what = {
        "recall": "it recalls {} of the facts",
        "accuracy": "it answers {} right",
        "perplexity": "its perplexity is {}",
    }
    number = _number({metric: last[metric]}, metric)
    after = f"{last['time_step']} context" + "s" * (last["time_step"] > 1)
    text = f"From {last['kv_pairs']:.0f} KV pairs {what[metric].format(number)} after {after}"
    if not full or last["method"].startswith("full"):
        return text + "."
    text += f"; full context needs {full['kv_pairs']:.0f} pairs for {_number({metric: full[metric]}, metric)}."
    if last.get("gap_closed", 0) > AHEAD and not last.get("base"):  # a base with step 1 knows this kind of text
        text += "\nThe adapter has learned this kind of text, too. To compare, train step 1 first (--method full)."
    return text


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
    figure, axes = plt.subplots(len(names), 2, figsize=(10.5, 3.2 * len(names)), squeeze=False, layout="constrained")
    for name, (left, right) in zip(names, axes):
        of_data = [row for row in rows if row["data"] == name]
        metric = "recall" if "recall" in of_data[0] else next(metric for metric in METRICS if metric in of_data[0])
        for i, (method, base) in enumerate(dict.fromkeys((row["method"], row.get("base")) for row in of_data)):
            line = [row for row in of_data if (row["method"], row.get("base")) == (method, base)]
            style = dict(marker="o", markersize=4, color=f"C{i}", label=f"{method} ({base})" if base else method)
            left.plot([row["time_step"] for row in line], [row[metric] for row in line], **style)
            right.plot([row["kv_bytes"] / 1024 for row in line], [row[metric] for row in line], **style)
        left.set(title=name, xlabel="time step t (contexts so far)", ylabel=METRICS[metric])
        right.set(xlabel="KV memory (KiB)")
        right.set_xscale("symlog", linthresh=10)
        right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def save_figure(figure, path: Path) -> None:
    """Writes a picture whole or not at all. Raises ValueError for an ending that is not a picture's."""
    make_folder(path.parent)
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"{path} must end with .png, .svg or .pdf")
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150, format=path.suffix[1:].lower()))
