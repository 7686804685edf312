"""What the scripts share on the command line: options, the device, and errors as one line."""

import argparse
import sys
from pathlib import Path

import torch

TINY = Path(__file__).parent.parent / "data" / "tiny"  # the model that ships


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that train.py, eval.py and chat.py have in common."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--model", default=str(TINY), help="folder of a base model in the official LLaMA layout")
    options.add_argument("--method", default=None, help="a method, see minccm/methods.py")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="auto", help="cuda, cpu or auto")
    options.add_argument(
        "--dtype", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="of the base's weights"
    )
    return options


def device_and_dtype(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device that --device names and the dtype: unless told otherwise fp32 on a CPU and bf16 on a GPU."""
    name = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name} is not to be had on this machine: try --device cpu") from None
    torch.set_float32_matmul_precision("high")  # fp32 products by TF32, where there is such a thing
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
