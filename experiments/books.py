"""Streaming a book (paper: figure 8): adapters trained on other books, and a book that is new to them.

    python -m experiments.books TRAIN.txt.xz BOOK.txt.xz --base smollm2 --out runs/books
    python -m experiments.books TRAIN.txt.xz BOOK.txt.xz --out runs/books34       # a small base, trained from nothing

The base model and the adapters train on TRAIN. Then each BOOK is streamed through each cache. A training sample is a
stream (stream.AtOnce): all tokens with a memory before them count in the loss, and full context teaches. An adapter
learns all sizes of the cache. A finished stage does not run again; --budget stops before one that takes too long.
"""

import math
import shlex
import time
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.running import part, read_text
from experiments.common import free_memory
from experiments.real_model import optimize, write_adapter
from experiments.reproduce import Stages
from experiments.stream import AtOnce, Pieces, Sizes, compare, kv_bytes, measure, picture, show
from minccm.fast.graphs import Replayed
from minccm.fast.inference import block_forward, embed
from minccm.fast.loss import chunked_loss
from minccm.io import options as cli
from minccm.io.adapters import load_adapter
from minccm.io.files import make_folder, write_json
from minccm.io.options import name, open_base, real, whole
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import read_json
from minccm.methods import Method, get_method
from minccm.model import Transformer, attend, rotary_frequencies, rotary_table

ADAPTERS = {"ccm-concat": 2, "ccm-merge": 8}  # and n
SHAPE = "--dim 512 --ffn 1408 --layers 8 --heads 8 --vocab 8000"


def add_training(parser) -> None:
    """Adds the options of training an adapter for streaming, and those of the model."""
    add = parser.add_argument
    add("--seconds", type=real(0, 1e6, above=True), default=150, help="training of an adapter at most")
    add("--adapter-steps", type=whole(1), default=2000, help="training steps of an adapter at most")
    add("--scale", type=real(0, 100, above=True), default=1.0, help="the training steps are multiplied by this")
    add("--length", type=whole(16, 2**20), default=1060, help="tokens of a training sample, about")
    add("--row-tokens", type=whole(16, 2**24), default=12288, help="tokens of a training step, about")
    add("--lr", type=real(0, 10), default=1e-3, help="peak learning rate")
    add("--r", type=whole(1, 4096), default=64, help="rank of LoRA; alpha is twice as much")
    add("--distill", type=real(0, 1e3), default=1.0, help="weight of KL from the full-context model's predictions")
    add("--window", type=whole(4, 10**6), nargs="+", default=[160, 64], help="KV pairs in the cache")
    add("--budget", type=real(0, 1e9, above=True), default=1e9, help="seconds of this call, about")
    add("--seed", type=whole(0, 2**31 - 1), default=0, help="of the adapters")
    add("--device", type=name, default="auto", help="cuda, cpu or auto")
    add("--dtype", default="auto", choices=["auto", *cli.DTYPES], help="of the base model's weights")
    add("--workers", type=whole(0, 256), default=8, help="processes that cut and encode texts, on a GPU")
    add("--compile", action="store_true", help="compile the blocks: pays off in long trainings")


def arguments():
    parser = cli.OneLineParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("train", type=Path, help="text to train on: .txt, .txt.xz or .txt.gz")
    add("books", type=Path, nargs="+", help="texts to stream")
    add("--out", type=Path, default=Path("runs/books"), help="output folder")
    add("--base", type=name, help="a base model: a folder, a .gguf file, or smollm2; by default one is trained")
    add("--shape", default=SHAPE, help="options of experiments.pretrain for its shape")
    add("--steps", type=whole(1), default=1200, help="of the base model")
    add("--batch", type=whole(1), default=128, help="of the base model")
    add("--more", default="", help="more options for experiments.pretrain, as in --more='--device cpu'")
    add("--tokens", type=whole(1), default=100_000, help="of each book")
    add("--recursive", action="store_true", help="stream segment by segment; the numbers are the same, it takes longer")
    add_training(parser)
    return parser.parse_args()


class Texts(Dataset):
    """Item i: of training step i, which of the lengths it has, and token ids (B, length + 1).

    The lengths take turns. Each row is BOS and a part of one of the texts.
    """

    def __init__(self, texts: list[str], tokenizer: Tokenizer, lengths: list[int], row_tokens: int, steps: int, seed):
        self.texts, self.tokenizer, self.lengths, self.steps, self.seed = texts, tokenizer, lengths, steps, seed
        self.batches = [max(1, row_tokens // length) for length in lengths]
        if not all(text.strip() for text in texts):
            raise ValueError("a text to train on is empty")

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[int, Tensor]:
        which = step % len(self.lengths)
        draws = (Random(f"{self.seed} {step} {i}") for i in range(self.batches[which]))
        return which, torch.tensor([self.row(rng, self.lengths[which] + 1) for rng in draws])

    def row(self, rng: Random, length: int) -> list[int]:
        """BOS and length - 1 tokens."""
        text, ids = rng.choice(self.texts), [self.tokenizer.bos_id]
        while len(ids) < length:
            size = 6 * (length - len(ids)) + 100  # characters
            begin = rng.randrange(max(1, len(text) - size))
            begin = text.find(" ", begin, begin + 100) + 1 or begin
            ids += self.tokenizer.encode(text[begin : begin + size])
        return ids[:length]


class CausalKV:
    """Plain causal attention, for the teacher."""

    @staticmethod
    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v)


class StreamStep:
    """The loss of streams of one shape, and its gradients."""

    def __init__(self, model: Transformer, method: Method, sizes: Sizes, length: int, distill: float, compile: bool):
        """length: about; it is cut to whole segments."""
        pieces = Pieces.of(method, sizes.of(method), length)
        if not len(pieces.compressing):
            raise ValueError(f"--length {length} is too short for a window of {sizes.window}")
        length = int(pieces.text[pieces.compressing[-1]].max()) + 1
        self.model, self.distill, self.length, self.compile = model, distill, length, compile
        self.stream = AtOnce(model, method, sizes, length)
        self.counted = self.stream.has_memory.nonzero()[:, 0]  # tokens with a loss
        self.trained = [p for p in model.parameters() if p.requires_grad]
        positions = torch.arange(length, device=self.counted.device)[None]
        self.table = rotary_table(positions, rotary_frequencies(model.config), model.embed_tokens.weight.dtype)
        self.block = torch.compile(block_forward, dynamic=False) if compile else block_forward
        self.stream.block = self.block

    def loss(self, tokens: Tensor) -> Tensor:
        """The loss () of tokens (B, length + 1): a mean over the tokens with a memory, in nats.

        It is the cross-entropy plus distill * KL(full context || stream).
        """
        labels = tokens[:, 1:].index_select(1, self.counted).flatten()
        weights = torch.ones(len(labels), device=labels.device)
        student = self._counted(self.stream.hidden(tokens[:, :-1]))
        teacher = self._counted(self._teacher(tokens[:, :-1])) if self.distill else None
        weight = self.model.lm_head.weight
        return chunked_loss(student, weight, labels, weights, teacher, self.distill, self.compile) / len(labels)

    def _counted(self, x: Tensor) -> Tensor:
        """(B, length, dim) -> the tokens with a loss (B * counted, dim)."""
        return x.index_select(1, self.counted).flatten(0, 1)

    @torch.no_grad()
    def _teacher(self, tokens: Tensor) -> Tensor:
        """The last layer's output (B, length, dim), normed, of the base model with full context."""
        x = embed(self.model, tokens, None)
        for block in self.model.layers:
            x = self.block(block, x, 0, *self.table, CausalKV, None)
        return self.model.norm(x)

    def gradients(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """The loss and the gradients of what trains."""
        loss = self.loss(tokens)
        return loss.detach(), *torch.autograd.grad(loss, self.trained, materialize_grads=True)


def sizes_of(method: Method, n: int, window: int) -> Sizes:
    """The cache of a window: two fifths of it are compressed at once, and concatenated memory has 8 slots."""
    return Sizes(n, window, window * 2 // 5, memory=8).of(method)


def train_adapter(folder: Path, model, tokenizer, method: Method, n: int, texts: list[str], options, base: str) -> None:
    """Trains an adapter on streams of these texts, one size of the cache after another, and writes it."""
    torch.manual_seed(options.seed)
    model.add_adapter(n, options.r, 2.0 * options.r)
    windows = [sizes_of(method, n, window) for window in options.window]
    steps = [StreamStep(model, method, s, options.length, options.distill, options.compile) for s in windows]
    lengths, count = [step.length for step in steps], max(2, round(options.adapter_steps * options.scale))
    source = Texts(texts, tokenizer, lengths, options.row_tokens, count, options.seed)
    workers = options.workers if model.embed_tokens.weight.is_cuda else 0
    loader = DataLoader(source, None, num_workers=workers, prefetch_factor=4 if workers else None)
    replayed = Replayed(lambda which, tokens: steps[which].gradients(tokens))  # on a GPU, a CUDA graph for each shape

    def backward(batch: tuple[int, Tensor]) -> Tensor:
        which, tokens = batch
        loss, *gradients = replayed(which, tokens.to(model.embed_tokens.weight.device))
        for parameter, gradient in zip(steps[which].trained, gradients):
            parameter.grad = gradient
        return loss

    about = optimize(model, loader, backward, options.lr, options.seconds, folder.name, 4 * len(steps))
    about |= {"base_name": Path(base).name, "data": "text", "seed": options.seed, "windows": options.window}
    write_adapter(make_folder(folder), model, method, n, about)


def make_base(options) -> str:
    """The base model's name; without --base, one is trained first."""
    if options.base:
        return options.base
    stages = Stages(options.out, options.more)
    text = f"--data text:{shlex.quote(str(options.train.resolve()))} --length-curriculum"
    size = f"{options.shape} --lr 1.5e-3 --batch {options.batch} --steps {options.steps} --save-every 1000000"
    stages.train("-m experiments.pretrain", "base", text, "0", size)
    return str(stages.out / "base")


def main() -> None:
    options, began = arguments(), time.perf_counter()
    device, dtype = cli.device_and_dtype(options)
    torch.set_num_threads(1 if device.type == "cuda" else torch.get_num_threads())
    make_folder(options.out)
    base = make_base(options)
    left = lambda: options.budget - (time.perf_counter() - began)
    model, tokenizer = open_base(base, None, device, dtype)
    for method, n in ((get_method(adapter, sink=True), n) for adapter, n in ADAPTERS.items()):
        folder = options.out / method.name
        if not (folder / "adapter.json").is_file():
            if left() < options.seconds + 30:
                print(f"{folder.name}: the budget is too small; the same command continues here", flush=True)
                return
            texts = [part(str(options.train), "train")]
            train_adapter(folder, model, tokenizer, method, n, texts, options, base)
            free_memory()
    for book in options.books:
        stream_book(book, model.eval(), tokenizer, options)
    print(f"{time.perf_counter() - began:.0f} s in all, of this call")


def stream_book(book: Path, model, tokenizer, options) -> None:
    """Streams a book through all caches. Writes BOOK.json and BOOK.png, and prints the table."""
    file = options.out / f"{book.name.partition('.')[0]}.json"
    if file.is_file():
        show(read_json(file))
        return
    ids = ([tokenizer.bos_id] + tokenizer.encode(read_text(str(book))))[: options.tokens + 1]
    rows, curves = [], {}
    for adapter in ADAPTERS:
        method, n = load_adapter(model, options.out / adapter)
        for window in options.window:
            sizes = sizes_of(method, n, window)
            for of in (None, method):
                label = f"{method.name}, n = {n}" if of else "sliding window"
                if (window, label) in curves:
                    continue
                nll, speed = measure(model, of, sizes, ids, f"{window}: {label}", at_once=not options.recursive)
                row = {"file": book.name, "method": label, "n": n if of else 0, "window": window, "chunk": sizes.chunk}
                row |= {"memory": sizes.memory, "tokens": len(nll), "perplexity": math.exp(nll.mean())}
                row |= {"kv_bytes": kv_bytes(model, of, sizes), "tokens_per_s": speed}
                rows.append(row)
                curves[window, label] = nll
    rows.sort(key=lambda row: options.window.index(row["window"]))
    compare(rows)
    write_json(file, rows)
    picture(curves, file.with_suffix(".png"))
    show(rows)


if __name__ == "__main__":
    cli.run(main)
