"""Parts that several experiments share: the adapters to measure, and times."""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from minccm.io.adapters import load_adapter
from minccm.io.options import load_method, name, open_base, shipped_adapters
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import Field, check_fields, read_json
from minccm.methods import Method
from minccm.model import Transformer


class Adapted(NamedTuple):
    """A base model with an adapter."""

    folder: Path  # the adapter's
    model: Transformer
    tokenizer: Tokenizer
    method: Method
    n: int

    @property
    def label(self) -> str:
        """The adapter's folder, and its method unless the folder's name is that."""
        return self.folder.name if self.folder.name == self.method.name else f"{self.folder.name}: {self.method.name}"


def add_adapters(parser: argparse.ArgumentParser) -> None:
    """Adds the option --adapter."""
    about = "adapter folders; by default all in the model's folder, or those of --method"
    parser.add_argument("--adapter", type=name, nargs="+", default=None, help=about)


def adapter_folders(options: argparse.Namespace) -> list[Path]:
    """The adapters to measure: those of --adapter, or all in the model's folder that are of --method.

    Raises ValueError if there are none.
    """
    if options.adapter:
        return [Path(folder) for folder in options.adapter]
    wanted = load_method(options.method).name if options.method else None
    found = []
    for path in sorted(shipped_adapters(options.model).glob("*/adapter.json")):
        method = check_fields(read_json(path), path, {"method": Field(str)})["method"]
        found += [path.parent] if wanted in (None, method) else []
    if not found:
        of_method = f" for {wanted}" if wanted else ""
        raise ValueError(f"{options.model} has no adapter{of_method} in its folder: give one with --adapter")
    return found


def open_adapters(options: argparse.Namespace, device, dtype: torch.dtype) -> Iterator[Adapted]:
    """The base model with each adapter in turn. An adapter replaces the one before it in the same model."""
    base = options.model, options.init, device, dtype
    folders, method = adapter_folders(options), load_method(options.method) if options.method else None
    model, tokenizer = open_base(*base)
    step1 = getattr(model, "step1", None)
    for folder in folders:
        if getattr(model, "step1", None) != step1:  # the last adapter has merged its own step 1 into the model
            model, tokenizer = open_base(*base)
        yield Adapted(folder, model, tokenizer, *load_adapter(model, folder, method, options.n, options.sink))


def seconds(work: Callable[[], object], repeat: int = 5, warmup: int = 2) -> float:
    """The median time of some work, after `warmup` runs that do not count."""
    times = []
    for i in range(warmup + repeat):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        times += [time.perf_counter() - start] if i >= warmup else []
    return sorted(times)[len(times) // 2]


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free_memory() -> None:
    """Frees GPU memory that nothing uses any more, such as that of CUDA graphs."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pyplot():
    """matplotlib.pyplot, set to draw to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
