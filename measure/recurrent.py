"""What training costs, in parallel and recurrently: the same samples, time and peak memory (the paper's table 22).

    python -m measure.recurrent --data icl                     # of the model that ships
    python -m measure.recurrent --model DIR --data dailydialog --method ccm-merge --batch 128 --json cost.json

Each way takes the same optimizer steps, forward and backward, of the same batches; the first is not counted. Memory
is what the device held at most beyond the model itself, on a GPU; on a CPU it is not measured. The losses have to be
the same.
"""

import argparse
import gc
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import data
from minccm import cli
from minccm.files import write_json
from minccm.mask import predict
from minccm.methods import get_method
from minccm.recurrent import predict_recurrent
from train import Steps

WAYS = {"parallel": predict, "recurrent": predict_recurrent}


def measure(model, method, forward, steps: list) -> dict:
    """Median seconds of a step and peak bytes beyond the model, of forward and backward over each step's batches."""
    seconds, losses, device = [], [], model.embed_tokens.weight.device
    on_gpu = device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for batches in tqdm(steps, leave=False):
        began, total = time.perf_counter(), 0.0
        for batch in batches:
            logits, rows = forward(model, method, batch := batch.to(device))
            losses_of = F.cross_entropy(logits.float(), batch.labels.flatten()[rows], reduction="none")
            loss = (losses_of * batch.weights.flatten()[rows]).sum()
            loss.backward()
            total += float(loss.detach())
        model.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)  # float() has waited for the device
        losses.append(total)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": peak, "losses": losses}


def main() -> None:
    parser = cli.parser(__doc__.split("\n")[0])
    parser.set_defaults(method="ccm-concat", sink=False)
    parser.add_argument("--data", default="dialog", help="as of train.py")
    parser.add_argument("--batch", type=int, default=16, help="samples a step")
    parser.add_argument("--steps", type=int, default=5, help="steps that count, after one that does not")
    parser.add_argument("--row-tokens", type=int, default=65536, help="tokens of one forward pass")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers there")
    options = parser.parse_args()
    model, tokenizer = cli.open_base(options.model, options.init, *cli.device_and_dtype(options))
    method, n = get_method(options.method, options.sink), options.n or 2
    model.add_adapter(n)
    made = {"batch": options.batch, "steps": options.steps + 1, "grow": 0.0, "longest": None, "questions": 1}
    made |= {"text_weight": 0.0, "row_tokens": options.row_tokens, "pack": False}
    source = data.source(options.data, "train", options.seed)
    batches = Steps(source, tokenizer, model.config, method, n, argparse.Namespace(**made))
    batches = [batches[step] for step in range(options.steps + 1)]
    results = {name: measure(model, method, forward, batches) for name, forward in WAYS.items()}
    parallel, recurrent = results["parallel"], results["recurrent"]
    table = Table(
        title=f"{method.name}, n = {n}: a step of {options.batch} samples of {options.data}", title_justify="left"
    )
    for heading in ("training", "ms a sample", "peak MiB beyond the model", "loss of the last step"):
        table.add_column(heading, justify="left" if heading == "training" else "right")
    for name, result in results.items():
        peak = f"{result['peak_bytes'] / 2**20:.0f}" if result["peak_bytes"] is not None else "not measured on a CPU"
        table.add_row(name, f"{1000 * result['seconds'] / options.batch:.2f}", peak, f"{result['losses'][-1]:.4f}")
    table.caption = f"parallel is {recurrent['seconds'] / parallel['seconds']:.1f} times faster"
    Console().print(table)
    if options.json:
        about = {"method": method.name, "n": n, "batch": options.batch, "data": options.data}
        write_json(options.json, about | results)


if __name__ == "__main__":
    cli.run(main)
