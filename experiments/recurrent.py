"""Train in parallel and recurrently: the same losses and gradients, different time and memory (paper: table 22).

    python -m experiments.recurrent --data icl
    python -m experiments.recurrent --model DIR --data dailydialog --method ccm-merge --batch 128 --json cost.json

Each way trains an adapter from the same start on the same batches. The first step does not count for time. Peak memory
is beyond that of the model, and is measured on a GPU only.
"""

import copy
import gc
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

import data
from data.encode import check_length, encoder
from minccm.extra.recurrent import forward_recurrent
from minccm.extra.tables import new_table, print_table
from minccm.io import options as cli
from minccm.io.adapters import save_adapter
from minccm.io.files import write_json
from minccm.io.options import load_method, real, whole
from minccm.io.templates import choose_template
from minccm.methods import Method
from minccm.model import Transformer
from minccm.parallel import forward_parallel, weighted_loss
from minccm.sequence import Sequence, bucket_by_length, build_sequence, pad_batch

WAYS = {"parallel": forward_parallel, "recurrent": forward_recurrent}


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    parser.set_defaults(method="ccm-concat", n=2)
    add = parser.add_argument
    add("--data", type=cli.name, default="dialog", help="as of train.py")
    add("--batch", type=whole(1, 2**16), default=16, help="samples per step")
    add("--steps", type=whole(1), default=5, help="optimizer steps that count, after one that does not")
    add("--lr", type=real(0, 10), default=1e-3, help="learning rate")
    add("--r", type=whole(1, 2**16), default=8, help="rank of LoRA")
    add("--max-tokens", type=whole(1), default=65536, help="tokens in one forward pass")
    add("--out", type=cli.name, default=None, help="write there the adapter that was trained recurrently")
    add("--json", type=Path, default=None, help="write the numbers there")
    return parser.parse_args()


def make_batches(options, tokenizer, config, method: Method) -> list[list[Sequence]]:
    """For each step its batches, padded and of similar length, the loss on outputs only."""
    source = data.source(options.data, "train", options.seed)
    encode, steps = encoder(tokenizer, choose_template(options.model, options.template)), []
    for step in range(options.steps + 1):
        sequences = []
        for index in range(step * options.batch, (step + 1) * options.batch):
            sample = source(index, method.max_train_contexts)
            encoded = encode(sample, method.reads_context, rng=random.Random(f"{options.seed}/{index}"))
            check_length(encoded, method, options.n, config.max_positions)
            text = encoded.contexts, encoded.questions
            sequences.append(build_sequence(method, options.n, config.vocab_size, *text))
        buckets = bucket_by_length([len(sequence) for sequence in sequences], options.max_tokens)
        steps.append([pad_batch([sequences[i] for i in bucket]) for bucket in buckets])
    return steps


def train(model: Transformer, method: Method, forward: Callable, steps: list[list[Sequence]], lr: float) -> dict:
    """Trains the model's adapter. Returns seconds per step, peak bytes, losses, and the gradients of the first step."""
    trained, device = model.adapter_state(), model.embed_tokens.weight.device
    optimizer = torch.optim.AdamW(trained.values(), lr, (0.9, 0.95), weight_decay=0.0)
    seconds, losses, first_gradients, on_gpu = [], [], None, device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for batches in tqdm(steps, leave=False):
        start, total = time.perf_counter(), 0.0
        weight = sum(float(batch.loss_weights.sum()) for batch in batches)
        for batch in batches:
            batch = batch.to(device)
            loss = weighted_loss(forward(model, method, batch), batch) / weight
            loss.backward()
            total += float(loss.detach())  # waits for the device
        first_gradients = first_gradients or {name: p.grad for name, p in trained.items() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        losses.append(total)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
    found = {"seconds": statistics.median(seconds[1:]), "peak_bytes": peak, "losses": losses}
    return found | {"gradients": {name: gradient.cpu() for name, gradient in first_gradients.items()}}


def largest_difference(one: dict, other: dict) -> float:
    """The largest difference between two ways' gradients, relative to the largest gradient of each parameter."""
    differences = [(one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1e-12) for name in one]
    return float(max(differences))


def main() -> None:
    options = arguments()
    model, tokenizer = cli.open_base(options.model, options.init, *cli.device_and_dtype(options))
    method, n = load_method(options.method, bool(options.sink)), options.n
    steps = make_batches(options, tokenizer, model.config, method)
    torch.manual_seed(options.seed)
    model.add_adapter(n, options.r, learned=method.learned)  # without dropout, which would be different in each way
    start = copy.deepcopy({name: p.data for name, p in model.adapter_state().items()})
    results = {}
    for name, forward in WAYS.items():
        for parameter, value in zip(model.adapter_state().values(), start.values()):
            parameter.data.copy_(value)
        results[name] = train(model, method, forward, steps, options.lr)
    gradients = [result.pop("gradients") for result in results.values()]
    difference = largest_difference(*gradients)
    show(results, f"{method.name}, n = {n}: a step of {options.batch} samples of {options.data}", options, difference)
    if options.json:
        about = {"method": method.name, "n": n, "batch": options.batch, "data": options.data}
        write_json(options.json, about | results | {"largest_gradient_difference": difference})
    if options.out:
        save_adapter(options.out, model, method, n, base_name=Path(options.model).name)


def show(results: dict[str, dict], title: str, options, difference: float) -> None:
    """Prints the table."""
    table = new_table(title, "training", "ms a sample", "peak MiB", "loss, first step", "last step")
    for name, result in results.items():
        peak = f"{result['peak_bytes'] / 2**20:.0f}" if result["peak_bytes"] is not None else "on GPUs only"
        losses = f"{result['losses'][0]:.5f}", f"{result['losses'][-1]:.5f}"
        table.add_row(name, f"{1000 * result['seconds'] / options.batch:.2f}", peak, *losses)
    faster = results["recurrent"]["seconds"] / results["parallel"]["seconds"]
    table.caption = f"parallel is {faster:.1f} times faster; gradients differ by {difference:.0e} of the largest"
    print_table(table)


if __name__ == "__main__":
    cli.run(main)
