"""Stream a text file through a cache of fixed size: perplexity and speed (paper: figure 8).

    python -m experiments.stream book.txt --model DIR --adapter DIR --window 160 64 --picture stream.png
    python -m experiments.stream book.txt --model smollm2 --adapter DIR --at-once

Each adapter's compressed cache is compared with a sliding window with a sink, which is as large at every moment. The
table has the perplexity of the whole text; the picture also shows the perplexity of the last tenth at every point.

With --at-once, all segments of the text are one forward pass (AtOnce), as in the paper's parallel training. It gives
the numbers of the stream in seconds, and it has gradients: experiments.books trains with it.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data.running import read_text
from experiments.common import add_adapters, open_adapters, pyplot
from minccm.extra.evaluate import save_figure
from minccm.extra.stream import Stream, max_slots
from minccm.extra.tables import new_table, print_table
from minccm.fast.inference import block_forward, embed, lora_tokens
from minccm.io import options as cli
from minccm.io.files import write_json
from minccm.io.options import whole
from minccm.methods import COMP, SLOT, Method, TokenInfo, merge_weights
from minccm.model import Transformer, rotary_frequencies, rotary_table, rotate

ROWS = 4096  # logits that are computed at a time


@dataclass(frozen=True)
class Sizes:
    """The sizes of a stream's cache, as in minccm.extra.stream.Stream."""

    n: int
    window: int
    chunk: int
    memory: int
    sink: int = 1

    def of(self, method: Method | None) -> "Sizes":
        """The same for a method: merged memory has n slots."""
        return replace(self, memory=max_slots(method, self.n, self.memory))


@dataclass
class Pieces:
    """What a stream holds in each piece of a text: P pieces of at most `chunk` tokens, each followed by n COMP tokens.

    A segment, all tokens between two compressions, is one piece or several. The COMP tokens of its last piece read the
    chunk that is compressed then; those of other pieces are never attended to.
    """

    text: Tensor  # int64 (P, chunk): the numbers of its tokens; padding repeats the last one
    is_text: Tensor  # bool (P, chunk)
    raw: Tensor  # int64 (P, window + 1): tokens of the cache, compressed memory left out, and of the piece
    held: Tensor  # int64 (P,): slots of compressed memory
    done: Tensor  # int64 (P,): compressions so far
    compressing: Tensor  # int64 (G,): the piece at whose end compression g happens

    @classmethod
    def of(cls, method: Method | None, sizes: Sizes, length: int) -> "Pieces":
        """The pieces of a text of `length` tokens. method None: a sliding window."""
        n, window, chunk, memory, sink = sizes.n, sizes.window, sizes.chunk, sizes.memory, sizes.sink
        rows, compressing = [], []  # of each piece: first token, end, first token after the sink in the cache, held
        begin, raw, slots = 0, sink, 0  # slots: those of the compressed cache, which a window does not hold
        while begin < length:
            held = slots if method else 0
            full = begin + window + 1 - (held + max(begin - raw, 0) + min(begin, sink))
            for first in range(begin, min(full, length), chunk):
                rows.append((first, min(first + chunk, full, length), raw, held, len(compressing)))
            before, slots = slots, min(slots + n, memory)
            if full <= length:
                compressing.append(len(rows) - 1)
            raw += chunk if method else chunk - (slots - before)
            begin = full
        first, end, raw, held, done = torch.tensor(rows).T
        text = first[:, None] + torch.arange(chunk)
        raw = raw[:, None] + torch.arange(window + 1)
        last = end[:, None] - 1
        return cls(text.minimum(last), text <= last, raw, held, done, torch.tensor(compressing, dtype=torch.int64))


class AtOnce:
    """A stream over all tokens of a text in one forward pass. The numbers are those of Stream.

    Keys are rotated by their place in the cache, which is another one in each piece. So each piece gets copies of the
    keys and values that its cache holds, [sink; memory; tokens; COMP], and is one row of a batch in attention.
    """

    def __init__(self, model: Transformer, method: Method | None, sizes: Sizes, length: int):
        """Raises ValueError for a method that is neither concatenation nor merging of all steps."""
        if method and (method.comp_after != "step" or method.delay or method.stride > 1 or method.learned):
            raise ValueError(f"{method.name} cannot be streamed at once: take ccm-concat or ccm-merge")
        sizes = sizes.of(method)
        self.model, self.method, self.sizes, self.length = model, method, sizes, length
        self.n, self.block = sizes.n if method else 0, block_forward
        pieces, device = Pieces.of(method, sizes, length), model.embed_tokens.weight.device
        self.text, self.is_text = pieces.text.to(device), pieces.is_text.to(device)
        self.raw = pieces.raw.clamp(max=length - 1).to(device)
        self.compressing = pieces.compressing.to(device)
        self.done = pieces.done.to(device)
        slots = sizes.memory if method else 0
        # the number of each pair of memory among all COMP tokens of compressions, (P, slots)
        pair = pieces.done[:, None] * sizes.n - pieces.held[:, None] + torch.arange(slots)
        self.pair = pair.clamp(0, max(0, len(pieces.compressing) * sizes.n - 1)).to(device)
        self.weights = None
        if method and method.merge_rate and len(pieces.compressing):
            self.weights = merge_weights(method, len(pieces.compressing))[..., 0].to(device)  # (G, G)
        self.mask = self._mask(pieces).to(device)
        self.query_table, self.key_table = self._tables(pieces)
        self.unrotated = tuple(part[:, :, 0] for part in self._table(torch.zeros(1, 1, dtype=torch.int64)))
        P, N = len(self.text), sizes.chunk + self.n
        comp = torch.arange(P)[:, None] * N + sizes.chunk + torch.arange(self.n)
        self.comp = comp.flatten().to(device)  # where COMP tokens are among the P * N tokens
        self.place = torch.empty(length, dtype=torch.int64, device=device)  # where each token of the text is among them
        where = (torch.arange(P)[:, None] * N + torch.arange(sizes.chunk)).to(device)
        self.place[self.text[self.is_text]] = where[self.is_text]
        self.has_memory = torch.empty(length, dtype=torch.bool, device=device)
        self.has_memory[self.text[self.is_text]] = (self.done > 0)[:, None].expand_as(self.is_text)[self.is_text]

    def _mask(self, pieces: Pieces) -> Tensor:
        """bool (P, 1, chunk + n, sink + memory + window + 1 + n): what the tokens of each piece attend to."""
        sizes, text = self.sizes, pieces.text[:, :, None]
        P, chunk = pieces.text.shape
        slots = self.sizes.memory if self.method else 0
        sink = (torch.arange(sizes.sink) <= text).expand(P, -1, -1)
        memory = (torch.arange(slots) < pieces.held[:, None])[:, None].expand(P, chunk, slots)
        raw = pieces.raw[:, None] <= text
        nothing = torch.zeros(P, chunk, self.n, dtype=torch.bool)
        of_text = torch.cat([sink, memory, raw, nothing], 2)
        rows = lambda mask: mask.expand(P, self.n, mask.shape[-1])
        reads_memory = self.method is not None and bool(self.method.attends(*_context_and_memory(self.method)))
        own = torch.ones(self.n, self.n, dtype=torch.bool).tril()
        chunk_only = torch.arange(pieces.raw.shape[1]) < chunk
        of_comp = [rows(torch.ones(sizes.sink, dtype=torch.bool)), rows(memory[:, :1] & reads_memory)]
        of_comp += [rows(chunk_only), own.expand(P, -1, -1)]
        return torch.cat([of_text, torch.cat(of_comp, 2)], 1)[:, None]

    def _tables(self, pieces: Pieces):
        """cos and sin of the places of queries (P, chunk + n) and of keys (P, sink + memory + window + 1 + n)."""
        sizes, P = self.sizes, len(pieces.held)
        before = sizes.sink + pieces.held[:, None]  # pairs before the first token after the sink
        tokens = before + pieces.text - pieces.raw[:, :1]
        comp = before + sizes.chunk + torch.arange(self.n)
        first = torch.arange(sizes.sink + (sizes.memory if self.method else 0)).expand(P, -1)
        raw = before + torch.arange(pieces.raw.shape[1])
        return self._table(torch.cat([tokens, comp], 1)), self._table(torch.cat([first, raw, comp], 1))

    def _table(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each (1, 1, ..., head_dim / 2), of places (P, N)."""
        weight = self.model.embed_tokens.weight
        table = rotary_table(places.to(weight.device), rotary_frequencies(self.model.config), weight.dtype)
        return tuple(part.transpose(0, 1)[None] for part in table)  # (1, 1, P, N, head_dim / 2)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, heads, P * N, head_dim), k and v (B, kv_heads, P * N, head_dim), not rotated -> as q."""
        P, heads = len(self.text), q.shape[1]
        q = rotate(q.unflatten(2, (P, -1)), *self.query_table)
        k, v = self.cache(k), self.cache(v)
        k = rotate(k, *self.key_table)
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B * P, heads, ..., head_dim)
        k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        mask = self.mask.repeat(len(q) // P, 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, mask)
        return y.unflatten(0, (-1, P)).transpose(1, 2).flatten(2, 3)

    def cache(self, x: Tensor) -> Tensor:
        """Keys or values (B, kv_heads, P * N, head_dim) -> of each piece's cache (B, kv_heads, P, K, head_dim)."""
        P, B = len(self.text), len(x)
        tokens = x.index_select(2, self.place)  # (B, kv_heads, length, head_dim)
        raw = tokens.index_select(2, self.raw.flatten()).unflatten(2, (P, -1))
        sink = tokens[:, :, None, : self.sizes.sink].expand(-1, -1, P, -1, -1)
        if not self.method:
            return torch.cat([sink, raw], 3)
        comp = x.index_select(2, self.comp).unflatten(2, (P, self.n))  # (B, kv_heads, P, n, head_dim)
        written = comp.index_select(2, self.compressing)  # (B, kv_heads, G, n, head_dim)
        if not len(self.compressing):
            memory = comp.new_zeros(B, x.shape[1], P, self.sizes.memory, x.shape[3])
        elif self.weights is not None:
            dtype = torch.promote_types(x.dtype, torch.float32)
            merged = self.weights.to(dtype) @ written.to(dtype).flatten(3)  # (B, kv_heads, G, n * head_dim)
            merged = merged.to(x.dtype).unflatten(3, (self.n, -1))
            memory = merged.index_select(2, (self.done - 1).clamp(min=0))
        else:
            memory = written.flatten(2, 3).index_select(2, self.pair.flatten()).unflatten(2, (P, -1))
        return torch.cat([sink, memory, raw, comp], 3)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The last layer's output (B, length, dim), normed, of token ids (B, length)."""
        model, vocab_size = self.model, self.model.config.vocab_size
        P, B = len(self.text), len(tokens)
        pieces = tokens[:, self.text.flatten()].unflatten(1, (P, -1))
        comp = torch.arange(vocab_size, vocab_size + self.n, device=tokens.device).expand(B, P, -1)
        pieces = torch.cat([pieces, comp], 2).flatten(1)  # (B, P * N)
        starts = torch.arange(B, device=tokens.device)[:, None] * pieces.shape[1]
        comp_index = (starts + self.comp).flatten() if self.n else None
        lora = lora_tokens(self.method, comp_index) if self.method else None
        x = embed(model, pieces, comp_index)
        for block in model.layers:
            x = self.block(block, x, 0, *self.unrotated, self, lora)
        return model.norm(x.index_select(1, self.place))

    @torch.no_grad()
    def score(self, ids: list[int]) -> Tensor:
        """The negative log-likelihood of each token but the first, fp32 (length,). ids: one more than `length`."""
        tokens = torch.tensor([ids], device=self.text.device)
        x = self.hidden(tokens[:, :-1])[0]
        parts = zip(x.split(ROWS), tokens[0, 1:].split(ROWS))
        return torch.cat([F.cross_entropy(self.model.lm_head(a).float(), b, reduction="none") for a, b in parts])


def _context_and_memory(method: Method) -> tuple[TokenInfo, TokenInfo]:
    """A COMP token of a step, and a pair of the memory before it."""
    kind = SLOT if method.merge_rate else COMP
    return TokenInfo.from_rows([(COMP, 1, 0, 9, 0)]), TokenInfo.from_rows([(kind, 0, 0, 5, 0)])


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("file", type=cli.name, help="plain text: .txt, .txt.xz or .txt.gz")
    add_adapters(parser)
    add("--window", type=whole(1, 10**6), nargs="+", default=[160], help="KV pairs in the cache when it is full")
    add("--chunk", type=whole(1, 10**6), default=None, help="tokens compressed at once; default: 2/5 of the window")
    add("--memory", type=whole(1, 10**6), default=8, help="KV pairs of concatenated memory that are kept")
    add("--tokens", type=whole(1), default=None, help="only this many tokens of the file")
    add("--at-once", action="store_true", help="all segments in one forward pass; the speed is not that of a stream")
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


def measure(
    model: Transformer, method: Method | None, sizes: Sizes, ids: list[int], label: str, at_once: bool
) -> tuple[np.ndarray, float]:
    """`score` of a stream, by segments or all segments at once."""
    if not at_once:
        return score(Stream(model, method, **vars(sizes)), ids, label)
    start = time.perf_counter()
    nll = AtOnce(model, method, sizes, len(ids) - 1).score(ids).cpu().numpy()
    return nll, len(nll) / (time.perf_counter() - start)


def kv_bytes(model: Transformer, method: Method | None, sizes: Sizes) -> int:
    """Bytes of the cache when it is full. The sink and merged memory are fp64 in a Stream."""
    size = model.embed_tokens.weight.element_size()
    wide = sizes.sink + sizes.memory if method and method.merge_rate else 0
    return model.config.kv_numbers_per_pair * (size * (sizes.window + 1 - wide) + 8 * wide)


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
                model, sizes = adapted.model, Sizes(n, window, chunk, slots)
                nll, speed = measure(model, method, sizes, ids, f"{window}: {label}", options.at_once)
                row = {"file": options.file, "method": label, "n": n, "window": window, "chunk": chunk}
                row |= {"memory": slots, "tokens": len(nll), "perplexity": math.exp(nll.mean())}
                row |= {"kv_bytes": kv_bytes(model, method, sizes), "tokens_per_s": speed}
                if options.token_by_token:
                    few = ids[: options.token_by_token + 1]
                    stream = Stream(model, method, **vars(sizes))
                    one_by_one, row["tokens_per_s_one_by_one"] = score(stream, few, "token by token", max_segment=1)
                    row["largest_difference"] = float(np.abs(one_by_one - nll[: len(one_by_one)]).max())
                rows.append(row)
                curves[window, label] = nll
    compare(rows)
    show(rows)
    if options.json:
        write_json(options.json, rows)
    if options.picture:
        picture(curves, options.picture)


def compare(rows: list[dict]) -> None:
    """Adds below_window: how much lower the perplexity is than that of the sliding window of the same size."""
    for row in rows:
        windows = [one for one in rows if one["window"] == row["window"] and one["method"].startswith("sliding")]
        if row not in windows:
            row["below_window"] = 1 - row["perplexity"] / windows[0]["perplexity"]


def show(rows: list[dict]) -> None:
    """Prints the table, with the columns that some row has."""
    columns = {  # heading: key, format
        "cache (pairs of memory)": ("method", "{}"),
        "window": ("window", "{}"),
        "perplexity": ("perplexity", "{:.3f}"),
        "below window": ("below_window", "{:.1%}"),
        "KiB": ("kv_bytes", "{:.0f}"),
        "tokens/s": ("tokens_per_s", "{:,.0f}"),
        "one by one": ("tokens_per_s_one_by_one", "{:,.0f}"),
    }
    columns = {heading: of for heading, of in columns.items() if any(of[0] in row for row in rows)}
    table = new_table(f"{rows[0]['file']}: {rows[0]['tokens']:,} tokens streamed", *columns)
    for row in rows:
        row = row | {"kv_bytes": row["kv_bytes"] / 1024}
        table.add_row(*(form.format(row[key]) if key in row else "" for key, form in columns.values()))
    print_table(table)


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
