"""Streaming a text file through a cache of fixed size (paper: figure 8): eval.py --stream FILE.

Each adapter's compressed cache is measured beside a sliding window with sink that is as large at every moment. The
negative log-likelihood of each token given what the cache still holds is averaged: over the whole text in the table,
and in the picture also over the last tenth of it at every point.
"""

import math
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data.running import read_text
from eval import adapters_of, save_figure
from minccm import cli
from minccm.checkpoint import load_adapter
from minccm.files import write_json
from minccm.stream import Stream, slots_kept


def read(stream: Stream, ids: list[int], label: str, stretch: int | None = None) -> tuple[np.ndarray, float]:
    """Streams token ids; returns the negative log-likelihoods, fp32 (len(ids) - 1,), and tokens per second."""
    nlls, total, count = [], 0.0, 0
    started = time.perf_counter()
    bar = tqdm(total=len(ids) - 1, desc=label, unit="token", unit_scale=True, dynamic_ncols=True, leave=False)
    with bar:
        for piece in stream.score(ids, stretch):
            nlls.append(piece)
            bar.update(len(piece))
            if len(nlls) % 64 == 0 or bar.n == bar.total:  # a GPU is asked only now and then
                done = torch.cat(nlls[-64 if len(nlls) % 64 == 0 else -(len(nlls) % 64) :])
                total, count = total + float(done.sum()), count + len(done)
                bar.set_postfix_str(f"perplexity {math.exp(total / count):.2f}")
    nll = torch.cat(nlls).cpu().numpy()
    return nll, len(nll) / (time.perf_counter() - started)


def main(options) -> None:
    device, dtype = cli.device_and_dtype(options)
    text = read_text(options.stream)
    base = options.model, options.init, device, dtype
    model, tokenizer = cli.open_base(*base)
    step1 = model.step1
    ids = ([tokenizer.bos_id] + tokenizer.encode(text))[: options.tokens and options.tokens + 1]
    if not (adapters := adapters_of(options)):
        raise ValueError(f"{options.model} holds no adapter: give one with --adapter")
    rows, curves, slid = [], {}, set()
    for folder in adapters:
        if model.step1 != step1:  # the last one brought its own step 1 into the base
            model, tokenizer = cli.open_base(*base)
        adapter, n = load_adapter(model, folder, None, options.n)
        for window in options.window:
            chunk = options.chunk or window * 2 // 5
            slots = slots_kept(adapter, n, options.memory)
            for method in (None, adapter):
                label = f"{folder.name}, n = {n} ({slots})" if method else f"sliding window ({slots})"
                if (window, slots, method) in slid:
                    continue
                slid |= {(window, slots, method)} if method is None else set()
                make = lambda: Stream(model, method, n, window, chunk, slots, sink=1)  # noqa: B023  used at once
                stream = make()
                nll, speed = read(stream, ids, f"{window}: {label}")
                row = {"file": str(options.stream), "method": label, "n": n, "window": window, "chunk": chunk}
                row |= {"memory": slots, "tokens": len(nll), "perplexity": math.exp(nll.mean())}
                row |= {"kv_bytes": stream.nbytes // len(stream) * (window + 1), "tokens_per_s": speed}
                if options.token_by_token:
                    few = ids[: options.token_by_token + 1]
                    one, row["tokens_per_s_one_by_one"] = read(make(), few, "token by token", stretch=1)
                    row["farthest_apart"] = float(np.abs(one - nll[: len(one)]).max())
                rows.append(row)
                curves[f"{window}: {label}"] = nll
    show(rows)
    if options.json:
        write_json(options.json, rows)
    if options.picture:
        picture(curves, options)


def show(rows: list[dict]) -> None:
    table = Table(title=f"{rows[0]['file']}: {rows[0]['tokens']:,} tokens streamed", title_justify="left")
    for heading in ("pairs", "cache (slots of memory)", "perplexity", "KiB", "tokens/s", "one by one"):
        table.add_column(heading, justify="left" if "cache" in heading else "right")
    for row in rows:
        slow = row.get("tokens_per_s_one_by_one")
        cells = f"{row['kv_bytes'] / 1024:.0f}", f"{row['tokens_per_s']:,.0f}", f"{slow:,.0f}" if slow else ""
        table.add_row(str(row["window"]), row["method"], f"{row['perplexity']:.3f}", *cells)
    Console().print(table)


def picture(curves: dict[str, np.ndarray], options) -> None:
    """Perplexity over the text: that of all tokens so far, and thin that of the last tenth of the text."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    windows = options.window
    figure, axes = plt.subplots(1, len(windows), figsize=(5.5 * len(windows), 3.6), squeeze=False, layout="constrained")
    for axis, window in zip(axes[0], windows):
        shown = {label.partition(": ")[2]: nll for label, nll in curves.items() if label.startswith(f"{window}:")}
        for i, (label, nll) in enumerate(shown.items()):
            sums = np.concatenate([[0.0], nll.cumsum(dtype=np.float64)])
            at = np.unique(np.linspace(min(500, len(nll)), len(nll), 400).astype(int))
            back = np.minimum(at, max(1, len(nll) // 10))
            axis.plot(at, np.exp(sums[at] / at), color=f"C{i}", label=label)
            axis.plot(at, np.exp((sums[at] - sums[at - back]) / back), color=f"C{i}", linewidth=0.6, alpha=0.6)
        axis.set(title=f"a cache of {window} pairs", xlabel="tokens read", ylabel="perplexity")
        axis.legend(fontsize=8)
    save_figure(figure, options.picture)
