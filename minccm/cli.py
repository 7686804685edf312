"""What the scripts share on the command line: options, the device, and errors as one line."""

import argparse
import sys
from pathlib import Path

import torch

from minccm.checkpoint import load_adapter, load_model
from minccm.config import read_config
from minccm.model import Transformer
from minccm.tokenizer import Tokenizer

TINY = Path(__file__).parent.parent / "data" / "tiny"  # the model that ships


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that train.py, eval.py and chat.py have in common."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--model", default=str(TINY), help="folder of a base model in the official LLaMA layout")
    options.add_argument("--init", default=None, help="step-1 adapter, ours or the authors', to merge into the base")
    options.add_argument("--method", default=None, help="a method of minccm/methods.py, or of a file FILE.py")
    options.add_argument("--n", type=int, default=None, help="COMP tokens a step; in training 2, or 8 for merging")
    options.add_argument("--sink", action="store_true", default=None, help="keep BOS visible to everything")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="auto", help="cuda, cpu or auto")
    options.add_argument(
        "--dtype", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="of the base's weights"
    )
    return options


def open_base(folder, init=None, device="cpu", dtype=None) -> tuple[Transformer, Tokenizer]:
    """The base model of a folder, with the step-1 adapter `init`, if any, merged into it, and its tokenizer.

    device, dtype: as of load_model. Raises ValueError, in one line, where these do not fit together.
    """
    read_config(folder)  # what is quickly found to be wrong is said before the weights are read
    tokenizer = Tokenizer(folder)
    model = load_model(folder, device, dtype)
    if tokenizer.vocab_size > model.config.vocab_size:
        sizes = f"its tokenizer has {tokenizer.vocab_size} pieces, its vocabulary {model.config.vocab_size}"
        raise ValueError(f"{folder}: {sizes}: they do not belong together")
    if init and load_adapter(model, init)[0].name != "full":
        raise ValueError(f"--init {init} is no step-1 adapter: train one with --method full")
    return model, tokenizer


def device_and_dtype(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device that --device names and the dtype: unless told otherwise fp32 on a CPU and bf16 on a GPU."""
    name = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name} is not to be had on this machine: try --device cpu") from None
    torch.set_float32_matmul_precision("high")  # fp32 products by TF32, where there is such a thing
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for every new shape, longer than it then takes
    default = "fp32" if device.type == "cpu" else "bf16"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return device, dtype[default if options.dtype == "auto" else options.dtype]


def run(main) -> None:
    """Runs a script's main function; what a user can cause is said in one line, with exit status 2."""
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError:
        print("error: out of memory: try a smaller --row-tokens or --batch", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
