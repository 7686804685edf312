"""Weights and adapters, in and out: measure how a model is read, write a random one, export an adapter.

python -m experiments.weights --model DIR                       # how long reading it takes, and how much memory
python -m experiments.weights --model random:7b --out DIR       # random weights in LLaMA's shape, in shards
python -m experiments.weights --adapter runs/mine --out DIR     # an adapter of ours in the authors' layout
"""

import re
import threading
import time
from pathlib import Path

import torch

from minccm.io import options as cli
from minccm.io.adapters import export_adapter
from minccm.io.weights import load_model, save_model
from minccm.model import Transformer


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    parser.add_argument("--adapter", type=cli.name, default=None, help="an adapter to export to --out")
    parser.add_argument("--out", type=cli.name, default=None, help="folder to write to")
    options = parser.parse_args()
    if options.adapter and not options.out:
        raise ValueError("--adapter exports an adapter: give a folder for it with --out")
    return options


def measure(source: str, device: torch.device, dtype: torch.dtype) -> tuple[Transformer, dict]:
    """The model that load_model reads, with seconds and MiB by name.

    Host memory is what the process holds beyond the mapped file (RssAnon), less what it held before. Linux keeps no
    peak of it, so a thread looks every 2 ms.
    """
    done, seen = threading.Event(), []

    def watch():
        while not done.wait(0.002):
            status = Path("/proc/self/status").read_text()
            seen.append(int(re.search(r"RssAnon:\s*(\d+) kB", status)[1]) * 1024)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    time.sleep(0.05)
    before, start = seen[-1], time.perf_counter()
    try:
        model = load_model(source, device, dtype)
        if device.type == "cuda":
            torch.cuda.synchronize()
        figures = {"seconds": round(time.perf_counter() - start, 2)}
    finally:
        done.set()
        thread.join()
    sizes = [weight.nbytes for weight in model.parameters()]
    memory = {"model": sum(sizes), "largest tensor": max(sizes), "host peak": max(seen) - before}
    if device.type == "cuda":
        memory |= {"GPU peak": torch.cuda.max_memory_allocated()}
    return model, figures | {f"{name} MiB": nbytes >> 20 for name, nbytes in memory.items()}


def main() -> None:
    options = arguments()
    if options.adapter:
        return print(export_adapter(options.adapter, options.out))
    device, dtype = cli.device_and_dtype(options)
    model, figures = measure(options.model, device, dtype)
    print(", ".join(f"{name} {figure}" for name, figure in figures.items()))
    if options.out:
        save_model(options.out, model, dtype)


if __name__ == "__main__":
    cli.run(main)
