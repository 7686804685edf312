"""Stability over very long texts: memories of fixed size over 1,000 to 1,000,000 tokens.

    python -m experiments.stability --tokens 1000000 --samples 30 --jobs 2 --json stability.json

Three questions. Does perplexity drift while an endless conversation is streamed through each cache? How long is a fact
remembered? And how does merged memory, the mean of all compressed chunks, develop: its size, how far it still moves,
and how exact it is?

The adapters are those of the model's folder, or of --adapter. Each ccm-concat adapter is also measured as
ccm-concat-independent, where a chunk is compressed without reading the memory. This stands in for gist-online.
"""

import argparse
import copy
import itertools
import math
import random
import resource
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data import dialog
from data.running import read_text
from experiments.common import adapter_folders, add_adapters, pyplot
from minccm.extra.evaluate import save_figure
from minccm.extra.stream import Stream, max_slots
from minccm.extra.tables import new_table, print_table
from minccm.io import options as cli
from minccm.io.adapters import load_adapter
from minccm.io.files import write_json
from minccm.io.options import load_method, whole
from minccm.methods import get_method
from minccm.session import Session

MARKS = (1_000, 10_000, 50_000, 100_000, 1_000_000)  # tokens
DISTANCES = (2, 4, 10, 30, 100, 300, 1000)  # turns
FACTS = 10  # in a conversation
BLOCK = 500  # tokens at a time
FULL = 10_000  # tokens of full context: by then far beyond the positions of a small model
KINDS = (("stream", ""), ("recall", ", stream"), ("turns", ", turn by turn"))  # measurements of one adapter


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add_adapters(parser)
    add("--file", type=cli.name, default=None, help="stream this text, over and over, in place of conversations")
    add("--tokens", type=whole(1), default=100_000, help="tokens that are streamed")
    add("--samples", type=whole(1), default=200, help="questions about facts, at each distance; in tens")
    add("--window", type=whole(1, 10**6), default=160, help="KV pairs in the cache when it is full")
    add("--chunk", type=whole(1, 10**6), default=None, help="tokens compressed at once; default: 2/5 of the window")
    add("--memory", type=whole(1, 10**6), default=8, help="KV pairs of concatenated memory that are kept")
    add("--jobs", type=whole(1, 256), default=1, help="lines of the tables that are measured at the same time")
    add("--json", type=Path, default=None, help="write the tables there, as a list of rows")
    add("--picture", type=Path, default=None, help="draw the tables there")
    return parser.parse_args()


def endless(tokenizer, seed: int, file: str | None) -> Iterator[int]:
    """Token ids without end: BOS, then conversations of the test split, turn by turn; or a file over and over."""
    yield tokenizer.bos_id
    if file:
        yield from itertools.cycle(tokenizer.encode(read_text(file)))
    for index in itertools.count():
        sample = dialog.sample("test", index, seed)
        for turn in (*sample["contexts"], f"{sample['input']} {sample['target']}"):
            yield from tokenizer.encode(turn) + tokenizer.newline
        dialog._subject.cache_clear(), dialog.values.cache_clear()  # these caches grow, and memory is measured here


class WatchedStream(Stream):
    """A Stream that also averages, in fp64, all COMP keys and values that it has compressed."""

    average: Tensor | float = 0.0  # (2, layers, kv_heads, n, head_dim)
    chunks = 0

    def compress(self, comp: Tensor) -> None:
        self.average, self.chunks = self.average + comp.double(), self.chunks + 1
        super().compress(comp)


def drift(stream: WatchedStream, ids: Iterator[int], tokens: int, label: str) -> list[dict]:
    """Streams tokens. Returns a row for each mark: perplexity of the last fifth before it, memory, merged memory."""
    marks = [mark for mark in MARKS if mark < tokens] + [tokens]
    rows, nll, seen, peak, before = [], 0.0, 0, 0, None
    history = [(0, 0.0)]  # (tokens seen, the sum of their negative log-likelihoods), for the last fifth
    last = next(ids)
    with tqdm(total=tokens, desc=label, unit="token", unit_scale=True, dynamic_ncols=True, leave=False) as bar:
        while seen < tokens:
            block = [last, *itertools.islice(ids, min(BLOCK, marks[len(rows)] - seen))]
            last = block[-1]
            for piece in stream.score(block):
                nll += float(piece.sum())
            seen += len(block) - 1
            bar.update(len(block) - 1)
            history = [at for at in history if at[0] >= seen - max(1000, tokens // 5) - BLOCK] + [(seen, nll)]
            peak = max(peak, memory_in_use(stream.device))
            if seen in marks:
                since, nll_since = max(at for at in history if at[0] <= max(0, seen - max(1000, seen // 5)))
                row = {"method": label, "tokens": seen, "kv_bytes": stream.nbytes, "peak_bytes": peak}
                row["perplexity"] = math.exp((nll - nll_since) / (seen - since))
                row["finite"] = math.isfinite(nll) and bool(stream.memory.keys.isfinite().all())
                if stream.method and stream.method.merge_rate and stream.chunks:
                    row |= merged_memory(stream, before)
                    before = stream.compressed
                rows.append(row)
    return rows


def merged_memory(stream: WatchedStream, before: Tensor | None) -> dict:
    """Size of merged keys and values, how far they moved since `before`, and their distance from the exact mean."""
    pairs = stream.compressed  # (2, layers, kv_heads, slots, head_dim): keys, values
    row = {"norm": [float(part.square().mean().sqrt()) for part in pairs]}
    row["moved"] = float((pairs - before).norm() / pairs.norm()) if before is not None else None
    if stream.method.comp_after and math.isclose(float(stream.method.merge_rate(3)), 1 / 3):  # the running mean
        row["error"] = float((pairs - stream.average / stream.chunks).abs().max())
    return row


def memory_in_use(device: torch.device) -> int:
    """Bytes: of the GPU at its peak, or of this process now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (statm := Path("/proc/self/statm")).is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def conversation(index: int, seed: int) -> tuple[list[str], list[tuple[int, str, str, str]]]:
    """Turns, and facts (turns before it is told, question, answer, value): facts at first, then small talk."""
    talk = dialog.Dialogue(random.Random(f"stability/{seed}/{index}"), "test")
    turns, facts = [], []
    while len(turns) < 2 * FACTS + max(DISTANCES):
        if len(facts) < FACTS:
            user, _, fact = talk.telling(echo=True)
            bot = "I see."  # and does not repeat it
            facts.append((len(turns), f"User: {talk.question(fact)}\nBot:", talk.answer(fact), fact.value))
        else:
            user, bot, _ = talk.chat()
        turns += [f"User: {user}", f"Bot: {bot}"]
    return turns, facts


@torch.no_grad()
def recall(reader: Session | Stream, tokenizer, turns: list[str], facts, label: str) -> dict[int, list[bool]]:
    """For each distance in turns: which answers are recalled (each token of the value is the most likely one)."""
    hits: dict[int, list[bool]] = {distance: [] for distance in DISTANCES}
    unread: list[int] = []
    for now in tqdm(range(len(turns)), desc=f"recall: {label}", leave=False, dynamic_ncols=True):
        due = [fact for fact in facts if now - fact[0] in hits]  # `now` turns were said; the last is one turn ago
        if unread and (due or isinstance(reader, Session)):  # a stream may read many turns at once
            reader.read(unread)
            unread = []
        for told, question, answer, value in due:
            asked, output = tokenizer.newline + tokenizer.encode(question), tokenizer.encode(answer)
            first, end = tokenizer.span(answer, value)
            if isinstance(reader, Session):
                logits = reader.logits(asked + output)
            else:
                logits = copy.copy(reader).read(asked + output)  # the stream itself does not read it
            predicted = logits[len(asked) - 1 : -1].argmax(-1).tolist()
            hits[now - told].append(predicted[first:end] == output[first:end])
        unread += (tokenizer.newline if now else [tokenizer.bos_id]) + tokenizer.encode(turns[now])
    return hits


def task(
    options: argparse.Namespace, kind: str, label: str, folder: Path | None, name: str | None
) -> tuple[list[dict], list[dict]]:
    """One line of the tables: its rows of drift and of recall. The lines are independent of each other.

    folder: the adapter's; None is the sliding window. name: of a method to run the adapter as, if not its own.
    """
    device, dtype = cli.device_and_dtype(options)
    model, tokenizer = cli.open_base(options.model, options.init, device, dtype)
    method, n = load_adapter(model, folder, given_method(options), options.n) if folder else (None, 2)
    method = get_method(name) if name else method
    window, tokens = options.window, options.tokens
    chunk = options.chunk or window * 2 // 5
    slots = max_slots(method, n, options.memory)
    if kind == "full":
        n, tokens = 0, min(tokens, FULL)
        window = tokens + chunk + slots + 1
    if kind == "turns":
        make = lambda: Session(model, method, n)
    else:
        make = lambda: WatchedStream(model, method, n, window, chunk, slots, sink=1)
    if kind in ("stream", "full"):
        return drift(make(), endless(tokenizer, options.seed, options.file), tokens, label), []
    hits: dict[int, list[bool]] = {}
    for index in range(max(1, options.samples // FACTS)):
        for distance, found in recall(make(), tokenizer, *conversation(index, options.seed), label).items():
            hits.setdefault(distance, []).extend(found)
    rows = [{"distance": d, "recall": sum(found) / len(found), "questions": len(found)} for d, found in hits.items()]
    return [], [{"method": label} | row for row in rows]


def given_method(options: argparse.Namespace):
    """The method of --method, if one is given."""
    return load_method(options.method) if options.method else None


def main() -> None:
    options = arguments()
    tasks = [("full", "full context", None, None), ("stream", "sliding window", None, None)]
    tasks += [("recall", "sliding window, stream", None, None)]
    for folder in adapter_folders(options):
        model, _ = cli.open_base(options.model, options.init)
        name = load_adapter(model, folder, given_method(options), options.n)[0].name
        tasks += [(kind, f"{folder.name}{more}", folder, None) for kind, more in KINDS]
        if name == "ccm-concat":
            alone = f"{folder.name} as gist-online"
            tasks += [(kind, f"{alone}{more}", folder, "ccm-concat-independent") for kind, more in KINDS[:2]]
    tasks.sort(key=lambda one: one[0] != "stream")  # the long ones first
    if options.jobs > 1:  # each in a process of its own
        with get_context("spawn").Pool(options.jobs, torch.set_num_threads, (1,), maxtasksperchild=1) as pool:
            waiting = [pool.apply_async(task, (options, *one)) for one in tasks]
            done = [job.get() for job in tqdm(waiting, desc="measuring", unit="task")]
    else:
        done = [task(options, *one) for one in tqdm(tasks, desc="measuring", unit="task")]
    drifts, recalls = (sum(rows, []) for rows in zip(*done))
    show(drifts, recalls, options.window)
    if options.json:
        write_json(options.json, drifts + recalls)
    if options.picture:
        picture(drifts, recalls, options.picture)


def show(drifts: list[dict], recalls: list[dict], window: int) -> None:
    """Prints the three tables: perplexity, recall, merged memory."""
    marks = sorted({row["tokens"] for row in drifts})
    headings = "cache", *(f"{mark:,}" for mark in marks), "KV KiB", "peak MiB at 10,000", "at the end"
    table = new_table(f"perplexity of the last fifth before each mark, {window} pairs", *headings)
    for method in dict.fromkeys(row["method"] for row in drifts):
        at = {row["tokens"]: row for row in drifts if row["method"] == method}
        cells = [f"{at[mark]['perplexity']:.2f}" if mark in at else "" for mark in marks]
        peaks = [f"{at[mark]['peak_bytes'] / 2**20:.1f}" if mark in at else "" for mark in (10_000, max(at))]
        table.add_row(method, *cells, f"{max(row['kv_bytes'] for row in at.values()) / 1024:.0f}", *peaks)
    if not all(row["finite"] for row in drifts):
        table.caption = "NOT FINITE: " + ", ".join({row["method"] for row in drifts if not row["finite"]})
    print_table(table)
    table = new_table("recall of a fact told n turns ago", "memory", *(f"n={distance}" for distance in DISTANCES))
    for method in dict.fromkeys(row["method"] for row in recalls):
        table.add_row(method, *(f"{100 * row['recall']:.0f}%" for row in recalls if row["method"] == method))
    table.caption = f"{recalls[0]['questions']} questions at each distance"
    print_table(table)
    if merged := [row for row in drifts if "norm" in row]:
        headings = "adapter", "tokens", "keys, rms", "values, rms", "moved since the mark before", "from the mean"
        table = new_table("merged memory", *headings)
        for row in merged:
            moved = "" if row["moved"] is None else f"{100 * row['moved']:.1f}%"
            error = f"{row['error']:.0e}" if "error" in row else ""
            table.add_row(row["method"], f"{row['tokens']:,}", *(f"{x:.4f}" for x in row["norm"]), moved, error)
        print_table(table)


def picture(drifts: list[dict], recalls: list[dict], path: Path) -> None:
    """Draws perplexity by tokens, recall by turns, and how far merged memory moved from mark to mark."""
    figure, axes = pyplot().subplots(1, 3, figsize=(14, 3.8), layout="constrained")
    for axis, rows, x, y in ((axes[0], drifts, "tokens", "perplexity"), (axes[1], recalls, "distance", "recall")):
        for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            line = [row for row in rows if row["method"] == method]
            axis.plot([r[x] for r in line], [r[y] for r in line], "o-", markersize=4, color=f"C{i}", label=method)
        axis.set_xscale("log")
        axis.legend(fontsize=7)
    axes[0].set(xlabel="tokens read", ylabel="perplexity of the last fifth")
    axes[0].set_yscale("log")
    axes[1].set(xlabel="turns since it was told", ylabel="recall", ylim=(-0.03, 1.03))
    merged = [row for row in drifts if row.get("moved") is not None]
    for method in dict.fromkeys(row["method"] for row in merged):
        line = [row for row in merged if row["method"] == method]
        axes[2].plot([row["tokens"] for row in line], [row["moved"] for row in line], "o-", markersize=4, label=method)
    axes[2].set(xlabel="tokens read", ylabel="merged memory moved, relative to its norm")
    axes[2].set_xscale("log")
    axes[2].set_yscale("log")
    if merged:
        axes[2].legend(fontsize=7)
    save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
