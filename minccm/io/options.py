"""The command line: options that the scripts share, checked numbers, and errors as one line."""

import argparse
import importlib.util
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from minccm.io.adapters import is_from_file, load_adapter, read_ours
from minccm.io.config import read_config
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import MAX_ERROR, printable
from minccm.io.weights import load_model
from minccm.methods import Method, get_method
from minccm.model import Transformer
from minccm.parallel import ParallelKV
from minccm.sequence import build_sequence, pad_batch

TINY = Path(__file__).parents[2] / "data" / "tiny"  # the model that ships
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST = 10**9  # of an option without a limit of its own


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one printable line."""

    def __init__(self, **settings):
        super().__init__(**{"formatter_class": HelpFormatter} | settings)

    def error(self, message: str):
        self.exit(2, f"error: {printable(message, MAX_ERROR)}\n")


def whole(low: int, high: int = MOST) -> Callable[[str], int]:
    """A type for add_argument: an integer from low to high."""

    def parse(text: str) -> int:
        digits = text.strip().lstrip("+-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"must be an integer from {low:,} to {high:,}, not {printable(text)!r}")
        return int(text)

    return parse


def real(low: float, high: float, above: bool = False) -> Callable[[str], float]:
    """A type for add_argument: a finite number from low (if `above`: above low) to high."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high or (above and number == low):
            limits = f"above {low:g}, up to {high:g}" if above else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"must be a number {limits}, not {printable(text)!r}")
        return number

    return parse


def name(text: str) -> str:
    """A type for add_argument: a text that is not empty and that can be written to a file."""
    if not text.strip() or "\0" in text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"must be a name, not {printable(text)!r}")
    return text


def output_file(text: str) -> Path:
    """A type for add_argument: a file to write, in a folder that exists or that can be made."""
    path = Path(name(text))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, and {printable(text)!r} is a folder")
    return path


def parser(description: str) -> OneLineParser:
    """A parser with the options that train.py, eval.py and chat.py have in common."""
    options = OneLineParser(description=description)
    add = options.add_argument
    add("--model", type=name, default=str(TINY), help="base model: a folder, a .gguf file, or smollm2")
    add("--init", type=name, default=None, help="step-1 adapter to merge into the base model")
    add("--method", type=name, default=None, help="a method of minccm/methods.py, or FILE.py that defines METHOD")
    add("--n", type=whole(1, 1024), default=None, help="COMP tokens per step; in training 2, or 8 for merging")
    add("--sink", action="store_true", default=None, help="keep BOS visible to every token")
    add("--template", type=name, default=None, help="chat template; by default the one in the model's files")
    add("--seed", type=whole(0, 2**31 - 1), default=0, help="of all random numbers")
    add("--device", type=name, default="auto", help="cuda, cpu or auto")
    add("--dtype", default="auto", choices=["auto", *DTYPES], help="of the base model's weights")
    return options


def load_method(text: str, sink: bool = False) -> Method:
    """The method that the user typed: a name, or a file FILE.py that defines METHOD, which is run.

    Only ever for a text from the command line, never for a name from a file. Raises ValueError.
    """
    if not text.endswith(".py"):
        return get_method(text, sink)
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"--method {printable(text)}: there is no such file")
    # a module like any other in sys.modules, because torch.compile looks functions up by their module's name
    spec = importlib.util.spec_from_file_location(f"method_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        method = getattr(module, "METHOD", None)
        if not isinstance(method, Method):
            raise TypeError("it does not define METHOD = Method(...)")
        try_method(method)
    except (Exception, SystemExit) as error:
        problem = printable(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"--method {printable(text)} cannot be used: {problem}") from None
    return Method(**{**vars(method), "sink": sink})


def try_method(method: Method) -> None:
    """Makes the mask and the merge matrix of a small sample. Raises what the method's functions raise, or TypeError."""
    sequence = build_sequence(method, 2, 9, [[1, 2], [3, 4, 5], [6]], [([7], [8, 2])])
    bound = method.bind(SimpleNamespace(learned=torch.tensor(method.learned)))
    kv = ParallelKV(bound, pad_batch([sequence]))
    if kv.mask.dtype != torch.bool:
        raise TypeError(f"attends must return bool, not {kv.mask.dtype}")


def method_of(adapter: str | Path, methods: list[Method]) -> Method | None:
    """The one of these methods from files, which the user typed, that an adapter was trained with."""
    if not (Path(adapter) / "adapter.json").is_file():
        return None
    named = read_ours(adapter, None).info["method"]
    return next((method for method in methods if method.name == named and is_from_file(method)), None)


def open_base(source, init=None, device="cpu", dtype: torch.dtype | None = None) -> tuple[Transformer, Tokenizer]:
    """The base model and its tokenizer, with the step-1 adapter `init`, if any, merged into the model.

    Raises ValueError, in one line, where these do not fit together.
    """
    config, tokenizer = read_config(source), Tokenizer(source)  # quick checks first, then the weights
    if tokenizer.vocab_size > config.vocab_size:
        sizes = f"its tokenizer has {tokenizer.vocab_size} pieces, the model a vocabulary of {config.vocab_size}"
        raise ValueError(f"{printable(source, 200)}: {sizes}: they do not belong together")
    model = load_model(source, device, dtype)
    if init and load_adapter(model, init)[0].name != "full":
        raise ValueError(f"--init {printable(init, 200)} is not a step-1 adapter: train one with --method full")
    return model, tokenizer


def shipped_adapters(source) -> Path:
    """The folder with the adapters of a base model: its own folder, or data/smollm2 for the model smollm2."""
    return TINY.parent / "smollm2" if str(source) == "smollm2" or Path(source).suffix == ".gguf" else Path(source)


def has_bf16() -> bool:
    """Does this CPU have instructions for bf16? Without them, bf16 is slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def device_and_dtype(options: argparse.Namespace, cpu_dtype: str = "fp32") -> tuple[torch.device, torch.dtype]:
    """The device that --device names, and the dtype: by default cpu_dtype on a CPU and bf16 on a GPU."""
    wanted = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {printable(wanted)} is not available on this machine: try --device cpu") from None
    torch.set_float32_matmul_precision("high")  # fp32 products in TF32, on GPUs that have it
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for each new shape, which takes longer than it saves
    default = cpu_dtype if device.type == "cpu" else "bf16"
    return device, DTYPES[default if options.dtype == "auto" else options.dtype]


def next_command(script: str, **options: object) -> str:
    """A command line that works in the shell that has started this program: with the same Python and folder.

    script: a file in the folder of this program. Options that are None are left out.
    """
    python, here = Path(sys.executable), Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python
    words = [str(python), str(Path(sys.argv[0]).with_name(script))]
    for option, value in options.items():
        words += [f"--{option}", str(value)] if value is not None else []
    return shlex.join(words)


def run(main: Callable[[], None]) -> None:
    """Runs a script's main function. An error that a user can cause becomes one line and exit status 2."""
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error), MAX_ERROR)}", file=sys.stderr)
        sys.exit(2)
    except (torch.OutOfMemoryError, MemoryError):
        print("error: out of memory: try a smaller --max-tokens or --batch", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
