"""Streaming a book (paper: figure 8): a small base model of other books, adapters for it, and a book that is new to it.

    python -m experiments.books TRAIN.txt.xz BOOK.txt.xz --out runs/books
    python -m experiments.books TRAIN.txt.xz BOOK.txt.xz --base runs/reproduce/base --adapter-steps 280

The base model and the adapters train on TRAIN. Then each BOOK is streamed through each cache. Each stage is one
command, which is printed; a finished stage does not run again.
"""

import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.reproduce import Stages
from minccm.io import options as cli
from minccm.io.options import whole

ADAPTERS = {"ccm-concat": "--n 2", "ccm-merge": "--n 8"}
SHAPE = "--dim 512 --ffn 1408 --layers 8 --heads 8 --vocab 8000"


def arguments():
    parser = cli.OneLineParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("train", type=Path, help="text to train on: .txt, .txt.xz or .txt.gz")
    add("books", type=Path, nargs="+", help="texts to stream")
    add("--out", type=Path, default=Path("runs/books"), help="output folder")
    add("--base", type=Path, help="use this base model; by default one is trained")
    add("--shape", default=SHAPE, help=f"options of experiments.pretrain for its shape (default: {SHAPE})")
    add("--steps", type=whole(1), default=1200, help="of the base model (default: 1200)")
    add("--batch", type=whole(1), default=128, help="of the base model (default: 128)")
    add("--adapter-steps", type=whole(1), default=600, help="(default: 600)")
    add("--adapter-batch", type=whole(1), default=64, help="(default: 64)")
    add("--tokens", type=whole(1), default=101_000, help="of each book (default: 101000)")
    add("--token-by-token", type=whole(0), default=500, help="tokens that are also read one by one (default: 500)")
    add("--window", type=whole(1), nargs="+", default=[160, 64], help="KV pairs in the cache (default: 160 64)")
    add("--jobs", type=whole(1, 64), default=2, help="adapters and streams at the same time (default: 2)")
    add("--more", default="", help="more options for every command, as in --more='--device cpu'")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    stages = Stages(options.out, options.more)
    text = f"--data text:{shlex.quote(str(options.train.resolve()))} --length-curriculum"
    if options.base is None:
        size = f"{options.shape} --lr 1.5e-3 --batch {options.batch} --steps {options.steps} --save-every 1000000"
        stages.train("-m experiments.pretrain", "base", text, "0", size)
    base = shlex.quote(str((options.base or stages.out / "base").resolve()))
    size = f"--lr 2e-3 --batch {options.adapter_batch} --steps {options.adapter_steps}"
    wanted = {name: f"--method {name} {more}" for name, more in ADAPTERS.items()}
    stages.adapters(wanted, options.jobs, f"--model {base}", text, "0.2 --sink", size)
    for book in options.books:
        name = book.name.partition(".")[0]
        streams = [(f"{name}-{window}-{adapter}", window, adapter) for window in options.window for adapter in ADAPTERS]
        with ThreadPoolExecutor(options.jobs) as pool:
            for task in [pool.submit(stream, stages, options, base, book, *one) for one in streams]:
                task.result()
        for stage, *_ in streams:
            log = (stages.out / f"{stage}.log").read_bytes().decode("utf-8", "replace")
            print(log.rpartition("\r")[2])  # the table, which follows the progress bars


def stream(stages: Stages, options, base: str, book: Path, stage: str, window: int, adapter: str) -> None:
    """A stage of experiments.stream."""
    files = f"--json {stages.quoted}/{stage}.json --picture {stages.quoted}/{stage}.png"
    size = f"--window {window} --tokens {options.tokens} --token-by-token {options.token_by_token}"
    command = f"-m experiments.stream {shlex.quote(str(book.resolve()))} --model {base}"
    stages.run(stage, f"{command} --adapter {stages.quoted}/{adapter} {size} {files} {options.more}".strip())


if __name__ == "__main__":
    cli.run(main)
