"""Stream a text file through a cache of fixed size: perplexity and speed (paper: figure 8).

    python -m experiments.stream book.txt --model DIR --adapter DIR --window 160 64 --picture stream.png

Each adapter's compressed cache is compared with a sliding window with a sink, which is as large at every moment. The
table has the perplexity of the whole text; the picture also shows the perplexity of the last tenth at every point.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data.running import read_text
from experiments.common import add_adapters, open_adapters, pyplot
from minccm.extra.evaluate import save_figure
from minccm.extra.stream import Stream, max_slots
from minccm.io import options as cli
from minccm.io.files import write_json
from minccm.io.options import whole


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("file", type=cli.name, help="plain text: .txt, .txt.xz or .txt.gz")
    add_adapters(parser)
    add("--window", type=whole(1, 10**6), nargs="+", default=[160], help="KV pairs in the cache when it is full")
    add("--chunk", type=whole(1, 10**6), default=None, help="tokens compressed at once; default: 2/5 of the window")
    add("--memory", type=whole(1, 10**6), default=8, help="KV pairs of concatenated memory that are kept")
    add("--tokens", type=whole(1), default=None, help="only this many tokens of the file")
    add("--token-by-token", type=whole(0), default=0, help="read this many tokens one by one as well, to compare")
    add("--json", type=Path, default=None, help="write the table there, as a list of rows")
    add("--picture", type=Path, default=None, help="draw perplexity over the text there")
    return parser.parse_args()


def score(stream: Stream, ids: list[int], label: str, max_segment: int | None = None) -> tuple[np.ndarray, float]:
    """Streams token ids. Returns the negative log-likelihoods, fp32 (len(ids) - 1,), and tokens per second."""
    pieces, recent, total, count = [], [], 0.0, 0
    start = time.perf_counter()
    bar = tqdm(total=len(ids) - 1, desc=label, unit="token", unit_scale=True, dynamic_ncols=True, leave=False)
    with bar:
        for piece in stream.score(ids, max_segment):
            pieces.append(piece)
            recent.append(piece)
            bar.update(len(piece))
            if len(recent) == 64 or bar.n == bar.total:  # to wait for the GPU each time would be slow
                total, count = total + float(torch.cat(recent).sum()), count + sum(map(len, recent))
                recent = []
                bar.set_postfix_str(f"perplexity {math.exp(total / count):.2f}")
    nll = torch.cat(pieces).cpu().numpy()
    return nll, len(nll) / (time.perf_counter() - start)


def main() -> None:
    options = arguments()
    device, dtype = cli.device_and_dtype(options)
    text = read_text(options.file)
    rows, curves, done = [], {}, set()  # curves: the negative log-likelihoods of each line of the table
    for adapted in open_adapters(options, device, dtype):
        tokenizer, n = adapted.tokenizer, adapted.n
        ids = ([tokenizer.bos_id] + tokenizer.encode(text))[: options.tokens and options.tokens + 1]
        for window in options.window:
            chunk = options.chunk or window * 2 // 5
            slots = max_slots(adapted.method, n, options.memory)
            for method in (None, adapted.method):
                label = f"{adapted.folder.name}, n = {n} ({slots})" if method else f"sliding window ({slots})"
                if method is None and (window, slots) in done:
                    continue
                done.add((window, slots))
                make = lambda: Stream(adapted.model, method, n, window, chunk, slots, sink=1)  # noqa: B023  used at once
                stream = make()
                nll, speed = score(stream, ids, f"{window}: {label}")
                row = {"file": options.file, "method": label, "n": n, "window": window, "chunk": chunk}
                row |= {"memory": slots, "tokens": len(nll), "perplexity": math.exp(nll.mean())}
                pair_bytes = adapted.model.config.kv_numbers_per_pair * stream.recent.element_size()
                kv_bytes = stream.nbytes + (window + 1 - len(stream)) * pair_bytes  # when the cache is full
                row |= {"kv_bytes": kv_bytes, "tokens_per_s": speed}
                if options.token_by_token:
                    few = ids[: options.token_by_token + 1]
                    one_by_one, row["tokens_per_s_one_by_one"] = score(make(), few, "token by token", max_segment=1)
                    row["largest_difference"] = float(np.abs(one_by_one - nll[: len(one_by_one)]).max())
                rows.append(row)
                curves[window, label] = nll
    show(rows)
    if options.json:
        write_json(options.json, rows)
    if options.picture:
        picture(curves, options.picture)


def show(rows: list[dict]) -> None:
    """Prints the table."""
    table = Table(title=f"{rows[0]['file']}: {rows[0]['tokens']:,} tokens streamed", title_justify="left")
    for heading in ("window", "cache (pairs of memory)", "perplexity", "KiB", "tokens/s", "one by one"):
        table.add_column(heading, justify="left" if "cache" in heading else "right")
    for row in rows:
        slow = row.get("tokens_per_s_one_by_one")
        cells = f"{row['kv_bytes'] / 1024:.0f}", f"{row['tokens_per_s']:,.0f}", f"{slow:,.0f}" if slow else ""
        table.add_row(str(row["window"]), row["method"], f"{row['perplexity']:.3f}", *cells)
    Console().print(table)


def picture(curves: dict[tuple[int, str], np.ndarray], path: Path) -> None:
    """Draws perplexity over the text: a thick line for all tokens so far, a thin one for the last tenth of the text."""
    windows = list(dict.fromkeys(window for window, _ in curves))
    shape = dict(figsize=(5.5 * len(windows), 3.6), squeeze=False, layout="constrained")
    figure, axes = pyplot().subplots(1, len(windows), **shape)
    for axis, window in zip(axes[0], windows):
        lines = {label: nll for (of_window, label), nll in curves.items() if of_window == window}
        for i, (label, nll) in enumerate(lines.items()):
            sums = np.concatenate([[0.0], nll.cumsum(dtype=np.float64)])
            at = np.unique(np.linspace(min(500, len(nll)), len(nll), 400).astype(int))
            back = np.minimum(at, max(1, len(nll) // 10))
            axis.plot(at, np.exp(sums[at] / at), color=f"C{i}", label=label)
            axis.plot(at, np.exp((sums[at] - sums[at - back]) / back), color=f"C{i}", linewidth=0.6, alpha=0.6)
        axis.set(title=f"a cache of {window} pairs", xlabel="tokens read", ylabel="perplexity")
        axis.legend(fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
