"""Long-context stability: eval.py --stability. How a memory of fixed size holds out over 1,000 to 1,000,000 tokens.

Three questions. Does the perplexity drift, of an endless conversation streamed through each cache (minccm/stream.py)?
How long is a fact remembered that was told n turns ago? And what becomes of merged memory, the mean of all that was
ever compressed: its size, how far it still moves, and how exact it is?

The adapters are those of the model's folder or --adapter. Each ccm-concat adapter also stands in for gist-online: as
ccm-concat-independent, where each chunk is compressed alone.
"""

import copy
import itertools
import math
import random
import resource
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data import dialog
from data.running import read_text
from eval import adapters_of, save_figure
from minccm import cli
from minccm.checkpoint import load_adapter
from minccm.files import write_json
from minccm.methods import get_method
from minccm.online import Session
from minccm.stream import Stream, slots_kept

MARKS = (1_000, 10_000, 50_000, 100_000, 1_000_000)  # tokens
DISTANCES = (2, 4, 10, 30, 100, 300, 1000)  # turns
FACTS = 10  # of a conversation
BLOCK = 500  # tokens at a time
FULL = 10_000  # tokens of full context, which is by then far beyond what a small model has positions for
KINDS = (("stream", ""), ("recall", ", stream"), ("turns", ", turn by turn"))  # what is measured of an adapter


def endless(tokenizer, seed: int, file: str | None) -> Iterator[int]:
    """Token ids without end: BOS, then conversations of the test split, turn by turn; or a file, over and over."""
    yield tokenizer.bos_id
    if file:
        ids = tokenizer.encode(read_text(file))
        yield from itertools.cycle(ids)
    for index in itertools.count():
        sample = dialog.sample("test", index, seed)
        for turn in (*sample["contexts"], f"{sample['input']} {sample['target']}"):
            yield from tokenizer.encode(turn) + tokenizer.newline
        dialog._subject.cache_clear(), dialog.values.cache_clear()  # they grow, and memory is what is measured


def drift(stream: Stream, ids: Iterator[int], tokens: int, label: str) -> list[dict]:
    """Streams so many tokens; a row for each mark: perplexity of the last fifth before it, memory, merged memory."""
    marks = [mark for mark in MARKS if mark < tokens] + [tokens]
    rows, nll, seen, held, peak = [], 0.0, 0, [(0, 0.0)], 0
    average, count, before = 0.0, 0, None
    compress = stream._compress

    def watched(comp):  # an average of our own, of all that is compressed
        nonlocal average, count
        average, count = average + comp.double(), count + 1
        compress(comp)

    stream._compress = watched
    last = next(ids)
    with tqdm(total=tokens, desc=label, unit="token", unit_scale=True, dynamic_ncols=True, leave=False) as bar:
        while seen < tokens:
            block = [last, *itertools.islice(ids, min(BLOCK, marks[len(rows)] - seen))]
            last = block[-1]
            for piece in stream.score(block):
                nll += float(piece.sum())
            seen += len(block) - 1
            bar.update(len(block) - 1)
            held = [pair for pair in held if pair[0] >= seen - max(1000, tokens // 5) - BLOCK] + [(seen, nll)]
            peak = max(peak, memory_in_use(stream.device))
            if seen in marks:
                since = max(pair for pair in held if pair[0] <= seen - max(1000, seen // 5))
                row = {"method": label, "tokens": seen, "kv_bytes": stream.nbytes, "peak_bytes": peak}
                row["perplexity"] = math.exp((nll - since[1]) / (seen - since[0]))
                row["finite"] = math.isfinite(nll) and bool(stream.memory.keys.isfinite().all())
                if stream.memory.means is not None:
                    means = stream.memory.means
                    row["norm"] = [float(part.square().mean().sqrt()) for part in means]  # of keys, of values
                    row["moved"] = float((means - before).norm() / means.norm()) if before is not None else None
                    if math.isclose(float(stream.method.rate(3)), 1 / 3):  # the running mean
                        row["error"] = float((means - average / count).abs().max())
                    before = means
                rows.append(row)
    return rows


def memory_in_use(device) -> int:
    """Bytes: of the GPU at its peak, or of this process now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (statm := Path("/proc/self/statm")).is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def conversation(index: int, seed: int) -> tuple[list[str], list[tuple[int, str, str, str]]]:
    """Turns, and facts (turns so far when it is told, question, answer, value): facts at first, then small talk."""
    talk = dialog.Dialogue(random.Random(f"stability/{seed}/{index}"), "test")
    turns, facts = [], []
    while len(turns) < 2 * FACTS + max(DISTANCES):
        if len(facts) < FACTS:
            user, _, fact = talk.telling(echo=True)
            bot = "I see."  # and does not say it again
            facts.append((len(turns), f"User: {talk.question(fact)}\nBot:", talk.answer(fact), fact.value))
        else:
            user, bot, _ = talk.chat()
        turns += [f"User: {user}", f"Bot: {bot}"]
    return turns, facts


@torch.no_grad()
def recall(reader: Session | Stream, tokenizer, turns: list[str], facts, label: str) -> dict[int, list[bool]]:
    """Which answers are recalled, every token of the value being the likeliest, by how many turns ago it was told."""
    hits: dict[int, list[bool]] = {distance: [] for distance in DISTANCES}
    unread: list[int] = []
    for at in tqdm(range(len(turns)), desc=f"recall: {label}", leave=False, dynamic_ncols=True):
        due = [fact for fact in facts if at - fact[0] in hits]  # `at` turns were said: the last of them is one turn ago
        if unread and (due or isinstance(reader, Session)):  # a stream may read many turns at once
            reader.read(unread)
            unread = []
        for told, question, answer, value in due:
            asked, target = tokenizer.newline + tokenizer.encode(question), tokenizer.encode(answer)
            first, end = tokenizer.span(answer, value)
            if isinstance(reader, Session):
                logits = reader.logits(asked + target)
            else:
                logits = copy.copy(reader).read(asked + target)  # a fork: the stream itself goes on without it
            likeliest = logits[len(asked) - 1 : -1].argmax(-1).tolist()
            hits[at - told].append(likeliest[first:end] == target[first:end])
        unread += (tokenizer.newline if at else [tokenizer.bos_id]) + tokenizer.encode(turns[at])
    return hits


def task(options, kind: str, label: str, folder: Path | None, name: str | None) -> tuple[list[dict], list[dict]]:
    """One line of the tables: rows of drift and of recall. It needs nothing of the others, nor they of it."""
    device, dtype = cli.device_and_dtype(options)
    model, tokenizer = cli.open_base(options.model, options.init, device, dtype)
    method, n = load_adapter(model, folder, None, options.n) if folder else (None, 2)
    method = get_method(name) if name else method
    window, tokens = options.window[0], options.tokens or 100_000
    chunk = options.chunk or window * 2 // 5
    slots = slots_kept(method, n, options.memory)
    if kind == "full":
        n, tokens = 0, min(tokens, FULL)
        window = tokens + chunk + slots + 1
    if kind == "turns":
        make = lambda: Session(model, method, n)
    else:
        make = lambda: Stream(model, method, n, window, chunk, slots, sink=1)
    if kind in ("stream", "full"):
        return drift(make(), endless(tokenizer, options.seed, options.stream), tokens, label), []
    hits: dict[int, list[bool]] = {}
    for index in range(max(1, options.samples // FACTS)):
        for distance, found in recall(make(), tokenizer, *conversation(index, options.seed), label).items():
            hits.setdefault(distance, []).extend(found)
    rows = [{"distance": d, "recall": sum(found) / len(found), "questions": len(found)} for d, found in hits.items()]
    return [], [{"method": label} | row for row in rows]


def main(options) -> None:
    tasks = [("full", "full context", None, None), ("stream", "sliding window", None, None)]
    tasks += [("recall", "sliding window, stream", None, None)]
    for folder in adapters_of(options):
        model, _ = cli.open_base(options.model, options.init)
        name = load_adapter(model, folder, None, options.n)[0].name
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
    show(drifts, recalls, options.window[0])
    if options.json:
        write_json(options.json, drifts + recalls)
    if options.picture:
        picture(drifts, recalls, options.picture)


def show(drifts: list[dict], recalls: list[dict], window: int) -> None:
    console = Console()
    marks = sorted({row["tokens"] for row in drifts})
    table = Table(title=f"perplexity of the last fifth of so many tokens, {window} pairs", title_justify="left")
    table.add_column("cache")
    for heading in (*(f"{mark:,}" for mark in marks), "KV KiB", "peak MiB at 10,000", "at the end"):
        table.add_column(heading, justify="right")
    for method in dict.fromkeys(row["method"] for row in drifts):
        at = {row["tokens"]: row for row in drifts if row["method"] == method}
        cells = [f"{at[mark]['perplexity']:.2f}" if mark in at else "" for mark in marks]
        peaks = [f"{at[mark]['peak_bytes'] / 2**20:.1f}" if mark in at else "" for mark in (10_000, max(at))]
        table.add_row(method, *cells, f"{max(row['kv_bytes'] for row in at.values()) / 1024:.0f}", *peaks)
    if not all(row["finite"] for row in drifts):
        table.caption = "NOT FINITE: " + ", ".join({row["method"] for row in drifts if not row["finite"]})
    console.print(table)
    table = Table(title="recall of a fact told n turns ago", title_justify="left")
    table.add_column("memory")
    for distance in DISTANCES:
        table.add_column(f"n={distance}", justify="right")
    for method in dict.fromkeys(row["method"] for row in recalls):
        table.add_row(method, *(f"{100 * row['recall']:.0f}%" for row in recalls if row["method"] == method))
    table.caption = f"{recalls[0]['questions']} questions a distance" if recalls else ""
    console.print(table)
    if merged := [row for row in drifts if "norm" in row]:
        table = Table(title="merged memory", title_justify="left")
        headings = ("adapter", "tokens", "keys, rms", "values, rms", "moved since the mark before", "from the mean")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "adapter" else "right")
        for row in merged:
            moved = "" if row["moved"] is None else f"{100 * row['moved']:.1f}%"
            error = f"{row['error']:.0e}" if "error" in row else ""
            table.add_row(row["method"], f"{row['tokens']:,}", *(f"{x:.4f}" for x in row["norm"]), moved, error)
        console.print(table)


def picture(drifts: list[dict], recalls: list[dict], path: Path) -> None:
    """Perplexity by tokens, recall by turns, and how far merged memory has moved from mark to mark."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
    for axis, rows, x, y in ((axes[0], drifts, "tokens", "perplexity"), (axes[1], recalls, "distance", "recall")):
        for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            line = [row for row in rows if row["method"] == method]
            axis.plot([r[x] for r in line], [r[y] for r in line], "o-", markersize=4, color=f"C{i}", label=method)
        axis.set_xscale("log")
        axis.legend(fontsize=7)
    axes[0].set(xlabel="tokens read", ylabel="perplexity of the last fifth")
    axes[0].set_yscale("log")
    axes[1].set(xlabel="told so many turns ago", ylabel="recall", ylim=(-0.03, 1.03))
    merged = [row for row in drifts if row.get("moved") is not None]
    for method in dict.fromkeys(row["method"] for row in merged):
        line = [row for row in merged if row["method"] == method]
        axes[2].plot([row["tokens"] for row in line], [row["moved"] for row in line], "o-", markersize=4, label=method)
    axes[2].set(xlabel="tokens read", ylabel="merged memory moved, of its norm")
    axes[2].set_xscale("log")
    axes[2].set_yscale("log")
    if merged:
        axes[2].legend(fontsize=7)
    save_figure(figure, path)
