"""Other domains: adapters trained on books alone, or on five kinds of text, and tested on each kind.

    python -m experiments.domains TRAIN.txt.xz BOOK.txt.xz --base smollm2 --books runs/books --out runs/domains

The kinds: Python source and technical documentation (both of the Python that runs this), arithmetic word problems
(generated), dialogues (generated, or a prepared dataset with --dialogs), and books. Training and test texts are
different files, topics or problems. Each test text is streamed through the sliding window and each adapter's cache.
The table has the perplexity of the second half of the first 1,000, 10,000 and 50,000 tokens, and full context up to
the model's positions.
"""

import ast
import math
import sysconfig
import time
from pathlib import Path
from random import Random
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F

from data import dialog, prepared
from data.running import part, read_text
from experiments.books import ADAPTERS, CausalKV, add_training, sizes_of, train_adapter
from experiments.common import free_memory, pyplot
from experiments.stream import ROWS, kv_bytes, measure
from minccm.extra.evaluate import save_figure
from minccm.extra.tables import new_table, print_table
from minccm.fast.inference import block_forward, embed
from minccm.io import options as cli
from minccm.io.adapters import load_adapter
from minccm.io.files import make_folder, write_json
from minccm.io.options import name, open_base, whole
from minccm.io.untrusted import read_json
from minccm.io.weights import pair_bytes
from minccm.methods import get_method
from minccm.model import rotary_frequencies, rotary_table

ENOUGH = 400_000  # characters of a test text, for 50,000 tokens and more
TRAINED = 8_000_000  # characters of a training text, at most
MOST_CHARACTERS = 12  # of a token, on average
TEST_SHARE = 5  # one file or topic of this many is for testing
LEFT_OUT = ("test", "tests", "idlelib", "site-packages", "lib2to3", "turtledemo", "ensurepip", "__pycache__")
LONG_DOC = 200  # characters of a docstring, at least

NAMES = "Anna Ben Carla David Emma Farid Grace Hugo Ines Jamal Kira Liam Maya Noah Olga Pablo Rosa Sam Tara".split()
THINGS = "apples books candles eggs marbles pencils postcards shells stamps stickers tickets tiles".split()
PLACES = "the market,the library,the school,the garden,the office,the museum,the harbour,the farm".split(",")


def arguments():
    parser = cli.OneLineParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("train", type=Path, help="books to train on: .txt, .txt.xz or .txt.gz")
    add("book", type=Path, help="a book to test on")
    add("--out", type=Path, default=Path("runs/domains"), help="output folder")
    add("--base", type=name, default="smollm2", help="a base model: a folder, a .gguf file, or smollm2")
    add("--books", type=Path, help="the folder of experiments.books with adapters of books alone; or they are trained")
    add("--dialogs", type=Path, help="a prepared dataset of dialogues, in place of generated ones")
    add("--lengths", type=whole(4), nargs="+", default=[1000, 10_000, 50_000], help="tokens of context")
    add_training(parser)
    return parser.parse_args()


def problem(rng: Random) -> str:
    """An arithmetic word problem and its solution."""
    a, b = rng.sample(NAMES, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    x, y, z = rng.randint(12, 90), rng.randint(2, 11), rng.randint(2, 9)
    product, total = y * z, y * z + x
    kinds = [  # the story, the question, the steps, the answer
        (f"{a} has {x} {thing} and finds {y} more at {place}.", f"does {a} have", f"{x} + {y} = {x + y}", x + y),
        (f"{a} has {x} {thing} and gives {y} of them to {b}.", "are left", f"{x} - {y} = {x - y}", x - y),
        (f"{a} buys {y} boxes of {z} {thing} each.", f"does {a} buy", f"{y} * {z} = {product}", product),
        (f"{y} children at {place} share {product} {thing}.", "does each get", f"{product} / {y} = {z}", z),
        (
            f"{a} collects {y} {thing} a day for {z} days, and {b} adds {x}.",
            "are there",
            f"{y} * {z} = {product}, and {product} + {x} = {total}",
            total,
        ),
        (
            f"{a} starts with {total} {thing} and uses {z} of them in each of {y} weeks.",
            "remain",
            f"{y} * {z} = {product}, and {total} - {product} = {x}",
            x,
        ),
    ]
    story, asked, steps, answer = rng.choice(kinds)
    return f"Problem: {story} How many {thing} {asked}?\nSolution: {steps}. The answer is {answer}.\n\n"


def sources(test: bool) -> list[tuple[str, str]]:
    """Names and texts of the standard library's files, for training or for testing."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not set(inside.parts[:-1]) & set(LEFT_OUT) and (crc32(str(inside).encode()) % TEST_SHARE == 0) == test:
            found.append((str(inside), path.read_text("utf-8", "replace")))
    return found


def python_source(test: bool) -> str:
    """Python source of the standard library."""
    return "\n\n".join(text for name, text in sources(test) if not name.startswith(("pydoc_data", "encodings")))


def documentation(test: bool) -> str:
    """The language reference's topics, where they are installed, and long docstrings of the standard library."""
    texts = []
    try:
        from pydoc_data.topics import topics
    except ImportError:
        topics = {}
    texts += [topics[key] for key in sorted(topics) if (crc32(key.encode()) % TEST_SHARE == 0) == test]
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    for _, source in sources(test):
        try:
            nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
        except (SyntaxError, ValueError):
            continue
        docs = [ast.get_docstring(node) or "" for node in nodes]
        texts += [doc for doc in docs if len(doc) >= LONG_DOC]
    return "\n\n".join(texts)


def word_problems(test: bool) -> str:
    """Word problems by another seed for testing."""
    rng, texts, size = Random(f"problems {test}"), [], 0
    while size < ENOUGH * (1 if test else 8):
        texts.append(problem(rng))
        size += len(texts[-1])
    return "".join(texts)


def dialogues(test: bool, folder: Path | None) -> str:
    """Dialogues, a turn a line: of a prepared dataset, or generated."""
    split, texts, size, index = "test" if test else "train", [], 0, 0
    lines = prepared.open_split(folder, split)[1] if folder else None
    while size < ENOUGH * (1 if test else 8) and (lines is None or index < len(lines)):
        if lines is None:
            sample = dialog.sample(split, index, 0)
            turns = [*sample["contexts"], sample["input"] + " " + sample["target"]]
        else:
            turns = [f"{'AB'[i % 2]}: {turn}" for i, turn in enumerate(lines[index]["turns"])]
        texts.append("\n".join(turns) + "\n\n")
        size += len(texts[-1])
        index += 1
    return "".join(texts)


def texts_of(options, test: bool) -> dict[str, str]:
    """The text of each domain, for training or for testing."""
    books = read_text(str(options.book)) if test else part(str(options.train), "train")
    return {
        "book": books,
        "Python source": python_source(test)[:TRAINED],
        "documentation": documentation(test)[:TRAINED],
        "word problems": word_problems(test),
        "dialogue": dialogues(test, options.dialogs),
    }


@torch.no_grad()
def full_context(model, ids: list[int]) -> np.ndarray:
    """The negative log-likelihoods (len(ids) - 1,) with full context."""
    tokens = torch.tensor([ids], device=model.embed_tokens.weight.device)
    positions = torch.arange(len(ids) - 1, device=tokens.device)[None]
    table = rotary_table(positions, rotary_frequencies(model.config), model.embed_tokens.weight.dtype)
    x = embed(model, tokens[:, :-1], None)
    for block in model.layers:
        x = block_forward(block, x, 0, *table, CausalKV, None)
    parts = zip(model.norm(x)[0].split(ROWS), tokens[0, 1:].split(ROWS))
    nll = [F.cross_entropy(model.lm_head(a).float(), b, reduction="none") for a, b in parts]
    return torch.cat(nll).cpu().numpy()


def add_rows(rows: list[dict], domain: str, cache: str, nll: np.ndarray, lengths: list[int], **about) -> None:
    """Adds a row for each length that the text has: the perplexity of the second half of its first tokens."""
    for length in lengths:
        if len(nll) >= length:
            perplexity = math.exp(nll[length // 2 : length].mean())
            rows.append({"domain": domain, "cache": cache, "length": length, "perplexity": perplexity} | about)


def main() -> None:
    options, began = arguments(), time.perf_counter()
    device, dtype = cli.device_and_dtype(options)
    torch.set_num_threads(1 if device.type == "cuda" else torch.get_num_threads())
    make_folder(options.out)
    left = lambda: options.budget - (time.perf_counter() - began)
    model, tokenizer = open_base(options.base, None, device, dtype)
    folders = {"books": options.books or options.out / "books", "mixture": options.out / "mixture"}
    for kind, folder in folders.items():
        texts = None
        for method, n in ((get_method(adapter, sink=True), n) for adapter, n in ADAPTERS.items()):
            if (folder / method.name / "adapter.json").is_file():
                continue
            if left() < options.seconds + 30:
                print(f"{kind}, {method.name}: the budget is too small; the same command continues here", flush=True)
                return
            if texts is None:
                found = texts_of(options, test=False)
                texts = [found["book"]] if kind == "books" else list(found.values())
            train_adapter(folder / method.name, model, tokenizer, method, n, texts, options, options.base)
            free_memory()
    if not (options.out / "domains.json").is_file():
        write_json(options.out / "domains.json", measure_all(model.eval(), tokenizer, folders, options))
    rows = read_json(options.out / "domains.json")
    show(rows)
    picture(rows, options.out / "domains.png")
    print(f"{options.out / 'domains'}.json and .png; {time.perf_counter() - began:.0f} s in all, of this call")


def measure_all(model, tokenizer, folders: dict[str, Path], options) -> list[dict]:
    """The rows of all domains: full context, the sliding window, and each adapter."""
    rows, most = [], max(options.lengths)
    texts = {domain: text[: MOST_CHARACTERS * most] for domain, text in texts_of(options, test=True).items()}
    ids = {domain: ([tokenizer.bos_id] + tokenizer.encode(text))[: most + 1] for domain, text in texts.items()}
    for domain, some in ids.items():
        positions = model.config.max_positions
        for length in options.lengths:
            if length <= min(positions, len(some) - 1):
                nll = full_context(model, some[: length + 1])
                add_rows(rows, domain, "full context", nll, [length], window=0, kv_bytes=pair_bytes(model) * length)
    for kind, folder in folders.items():
        for adapter in ADAPTERS:
            method, n = load_adapter(model, folder / adapter)
            for window in options.window:
                sizes = sizes_of(method, n, window)
                for domain, some in ids.items():
                    for of in (None, method):
                        cache = f"{method.name}, trained on {kind}" if of else "sliding window"
                        if any((row["domain"], row["cache"], row["window"]) == (domain, cache, window) for row in rows):
                            continue
                        nll, _ = measure(model, of, sizes, some, cache, at_once=True)
                        about = {"window": window, "kv_bytes": kv_bytes(model, of, sizes)}
                        add_rows(rows, domain, cache, nll, options.lengths, **about)
    at = {(row["domain"], row["cache"], row["window"], row["length"]): row["perplexity"] for row in rows}
    for row in rows:
        if "ccm" in row["cache"]:
            other = at[row["domain"], "sliding window", row["window"], row["length"]]
            row["below_window"] = 1 - row["perplexity"] / other
    return rows


def show(rows: list[dict]) -> None:
    """Prints a table for each size of the cache."""
    lengths = sorted({row["length"] for row in rows})
    for window in sorted({row["window"] for row in rows} - {0}, reverse=True):
        title = f"perplexity with {window} KV pairs; in brackets, how much below the sliding window"
        table = new_table(title, "text", "cache", *(f"{length:,} tokens" for length in lengths), "KiB", left=2)
        some = [row for row in rows if row["window"] in (0, window)]
        for domain, cache in dict.fromkeys((row["domain"], row["cache"]) for row in some):
            line = {row["length"]: row for row in some if (row["domain"], row["cache"]) == (domain, cache)}
            cells = [cell(line[length]) if length in line else "" for length in lengths]
            table.add_row(domain, cache, *cells, f"{max(row['kv_bytes'] for row in line.values()) / 1024:.0f}")
        print_table(table)


def cell(row: dict) -> str:
    below = f" ({row['below_window']:+.1%})" if "below_window" in row else ""
    return f"{row['perplexity']:.2f}{below}"


def picture(rows: list[dict], path: Path) -> None:
    """Draws perplexity below that of the sliding window, by domain and context length."""
    compared = [row for row in rows if "below_window" in row]
    windows, domains = (list(dict.fromkeys(row[key] for row in compared)) for key in ("window", "domain"))
    shape = dict(figsize=(3.2 * len(domains), 3 * len(windows)), squeeze=False, layout="constrained", sharey=True)
    figure, axes = pyplot().subplots(len(windows), len(domains), **shape)
    for window, line in zip(windows, axes):
        for domain, axis in zip(domains, line):
            some = [row for row in compared if (row["window"], row["domain"]) == (window, domain)]
            for cache in dict.fromkeys(row["cache"] for row in some):
                of_cache = [row for row in some if row["cache"] == cache]
                below = [100 * row["below_window"] for row in of_cache]
                axis.plot([row["length"] for row in of_cache], below, marker="o", markersize=4, label=cache)
            axis.axhline(0, color="grey", linewidth=0.8)
            axis.set(title=f"{domain}, {window} pairs", xscale="log", xlabel="tokens")
    axes[0, 0].set_ylabel("% below the sliding window")
    axes[0, 0].legend(fontsize=7)
    save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
