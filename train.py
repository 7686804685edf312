"""Train a compression adapter (the paper's step 2), or fine-tune on full context (its step 1).

    python train.py --data dialog                                       # ccm-concat for the model that ships
    python train.py --data dialog --method full --out runs/step1        # step 1, then step 2 on top of it:
    python train.py --data dialog --method ccm-merge --init runs/step1
    python train.py --model DIR --data mine.jsonl --recipe paper        # official weights, the paper's recipe
    torchrun --nproc-per-node 8 train.py --model DIR --data dialog      # on 8 GPUs

A training step: samples become sequences c(1) COMP ... c(T) COMP I O; one forward pass under the mask gives the loss on
O; gradients reach nothing but the conditional LoRA and the COMP embeddings (paper: algorithm 1).
"""

import argparse
import json
import math
import os
import random
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data
from data.encode import check_length, encoder
from minccm.extra import evaluate
from minccm.extra.curriculum import length_limit, merge_mixture
from minccm.extra.training import PlainStep, RecallWatch, prepare_adapter
from minccm.fast import distributed
from minccm.fast.step import FastStep, parse_fast
from minccm.io import options as command_line
from minccm.io.adapters import keep_step1, save_adapter
from minccm.io.checkpoint import Checkpoint
from minccm.io.files import make_folder
from minccm.io.options import real, whole
from minccm.io.templates import choose_template
from minccm.methods import Method
from minccm.sequence import Sequence, build_sequence

RECIPES = {
    # the paper's table 13, for DailyDialog: loss on the output only
    "paper": dict(steps=1000, batch=128, lr=3e-4, r=8, alpha=16.0, dropout=0.05, context_loss=0.0, questions=1)
    | dict(distill=0.0, length_curriculum=0.0),
    # for models of some million parameters: a larger rank and learning rate, short samples first
    "small": dict(steps=420, batch=128, lr=3e-3, r=32, alpha=64.0, dropout=0.0, context_loss=0.01, questions=1)
    | dict(distill=0.0, length_curriculum=0.5),
}
SETTINGS = "model data method n sink init adapter template recipe max_contexts merge_curriculum validate seed".split()
WARMUP, SAVE_EVERY = 0.03, 100  # a share of the steps; steps


def arguments() -> argparse.Namespace:
    """The command line. Options that a recipe sets are None until the recipe fills them in."""
    parser = command_line.parser(__doc__.split("\n")[0])
    parser.set_defaults(method="ccm-concat", sink=False)
    add = parser.add_argument
    add(
        "--data",
        type=command_line.name,
        default="dialog",
        help=f"{', '.join(data.GENERATED)} or files; several with commas",
    )
    add("--out", type=command_line.name, default=None, help="output folder; by default runs/DATA-METHOD")
    settings = "; ".join(
        f"{name}: " + " ".join(f"{k} {v:g}" for k, v in recipe.items()) for name, recipe in RECIPES.items()
    )
    add("--recipe", choices=list(RECIPES), default="small", help=f"sets what follows: {settings}")
    add("--steps", type=whole(1), help="optimizer steps")
    add("--batch", type=whole(1, 10**6), help="samples per step")
    add("--lr", type=real(0, 10, above=True), help="peak learning rate; 3%% warm-up, then cosine to a tenth")
    add("--r", type=whole(1, 4096), help="rank of LoRA")
    add("--alpha", type=real(0, 1e6, above=True), help="scale of LoRA: alpha / r")
    add("--dropout", type=real(0, 0.99), help="of LoRA's input")
    add("--context-loss", type=real(0, 1e3), help="loss weight of text that is not an output or an answer")
    add("--questions", type=whole(1, 4096), help="questions per sample at most, where the data has several")
    add("--distill", type=real(0, 1e3), help="weight of KL from the full-context model's predictions of the outputs")
    add("--length-curriculum", type=real(0, 100), help="share of the steps in which samples grow longer; 0: none")
    add("--merge-curriculum", type=whole(1, 1024), default=None, help="slots take turns at first, in this many parts")
    add("--max-contexts", type=whole(1, 4096), default=None, help="contexts per sample at most")
    add(
        "--adapter",
        type=command_line.name,
        default=None,
        help="continue from this adapter; a larger --n or --r widens it",
    )
    add(
        "--validate", type=whole(0, 10**6), default=0, help="validation samples that choose the checkpoint; 0: the last"
    )
    add("--patience", type=whole(0), default=0, help="stop after this many checkpoints without a better one; 0: never")
    add("--resume", action="store_true", help="continue from the checkpoint in the output folder, if there is one")
    add("--max-tokens", type=whole(1, 2**24), default=None, help="tokens of one forward pass; by default what fits")
    add("--fast", default="auto", help="speed, in minccm/fast: auto, off, or names such as compile,checkpoint,fsdp")
    add(
        "--eval-samples", type=whole(0, 10**6), default=100, help="test samples per time step in the table; 0: no table"
    )
    add("--json", type=Path, default=None, help="write the table there, as a list of rows")
    options = parser.parse_args()
    for name, value in RECIPES[options.recipe].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.patience and not options.validate:
        raise ValueError("--patience needs --validate: the best checkpoint has the lowest validation loss")
    return options


class TrainingSteps(Dataset):
    """Item i: the batches of optimizer step i. They depend on the seed and i only, so a resumed run gets the same."""

    def __init__(self, source, encode, model_config, method: Method, batches, options, validation: bool = False):
        self.source, self.encode, self.config, self.method = source, encode, model_config, method
        self.batches, self.options, self.validation = batches, options, validation

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> list:
        return self.batches(self.sequences(step))

    def sequences(self, step: int) -> list[Sequence]:
        """The samples of a step (of this process's share of it) as sequences."""
        batch = self.options.batch
        return [self.sequence(i, step) for i in range(step * batch, (step + 1) * batch)][
            distributed.RANK :: distributed.WORLD_SIZE
        ]

    def sequence(self, index: int, step: int) -> Sequence:
        """Sample number `index` as the sequence c(1) COMP ... c(T) COMP I O."""
        options, method, longest = self.options, self.method, self.options.max_contexts
        if not self.validation:
            longest = length_limit(index, step, options.steps, options.length_curriculum, longest)
        sample = self.source(index, method.max_train_contexts or longest)
        rng = lambda: random.Random(f"{options.seed}/{index}")

        def encode(sample: dict):
            return self.encode(sample, method.reads_context, options.questions, rng())

        if sample.get("separator") == "":  # running text can begin anywhere
            sample = data.fit(sample, lambda x: tokens_of(encode(x)), self.config.max_positions)
        encoded = encode(sample)
        check_length(encoded, method, options.n, self.config.max_positions)
        answers = encoded.answer_lengths if "messages" in sample or options.context_loss else None
        context_loss = 0.0 if self.validation else options.context_loss
        contexts, questions, vocab_size = encoded.contexts, encoded.questions, self.config.vocab_size
        return build_sequence(method, options.n, vocab_size, contexts, questions, answers, context_loss)


def tokens_of(encoded) -> int:
    """Positions that an encoded sample takes."""
    return sum(map(len, encoded.contexts)) + max(len(input) + len(output) for input, output in encoded.questions)


def learning_rate(step: int, options) -> float:
    """A linear rise, then a cosine to a tenth."""
    rise = max(1, round(WARMUP * options.steps))
    if step < rise:
        return options.lr * (step + 1) / rise
    return options.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - rise) / max(1, options.steps - rise))) / 2)


def main():
    options = arguments()
    distributed.start()
    device, dtype = command_line.device_and_dtype(options)
    method = command_line.load_method(options.method, options.sink)
    if method.name == "full":  # step 1: plain LoRA, which acts on every token
        method = replace(method, conditional=False)
    names = "-".join(Path(part).stem for part in dict.fromkeys(options.data.split(",")))
    out = make_folder(options.out or f"runs/{names}-{method.name}")
    source = data.source(options.data, "train", options.seed)

    # The frozen base model, and the adapter that trains.
    torch.manual_seed(options.seed)
    fast = options.fast.split(",")
    model, tokenizer = command_line.open_base(options.model, options.init, "cpu" if "fsdp" in fast else device, dtype)
    encode = encoder(tokenizer, choose_template(options.model, options.template))
    options.n = prepare_adapter(model, method, options)
    if distributed.IS_MAIN:
        keep_step1(options.init, options.adapter, out)
    trained = model.adapter_state()
    model.train()

    # The step: plain (minccm/extra/training.py), or fast with the same numbers (minccm/fast).
    chosen = parse_fast(options.fast, device, sum(p.numel() for p in model.parameters()))
    if chosen is None:
        training_step = PlainStep(model, method, options.max_tokens, options.distill)
    else:
        training_step = FastStep(model, method, chosen, options.max_tokens, options.distill, options.context_loss)
    steps = TrainingSteps(source, encode, model.config, method, training_step.batches, options)
    training_step.fix_shapes(steps.sequences(step) for step in range(max(0, len(steps) - 8), len(steps)))
    torch.set_num_threads(1 if device.type == "cuda" else torch.get_num_threads())  # fixed: rounding depends on it
    optimizer = torch.optim.AdamW(
        trained.values(), options.lr, (0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda"
    )

    def write_adapter(step: int) -> None:
        about = {"base_name": Path(options.model).name, "data": options.data, "steps": step, "seed": options.seed}
        save_adapter(out, model, method, options.n, **about)

    settings = {name: getattr(options, name) for name in [*SETTINGS, *RECIPES[options.recipe]]}
    checkpoint = Checkpoint(out, trained, optimizer, settings, write_adapter)
    first = checkpoint.resume() if options.resume else 0
    if not distributed.IS_MAIN:
        torch.manual_seed(options.seed + distributed.RANK + first)  # dropout differs between processes
    held_out = held_out_batches(steps, options) if options.validate else None
    run = evaluate.Run(method, options.n, label="full, trained" if method.name == "full" else method.name)
    watch = RecallWatch(model, tokenizer, encode, run, options.data)
    log = open(out / "log.jsonl" if distributed.IS_MAIN else os.devnull, "a" if first else "w", buffering=1)
    workers = 0 if device.type == "cpu" else max(1, (min(16, os.cpu_count()) - 2) // distributed.WORLD_SIZE)
    # the loader has a generator of its own: dropout's numbers must not depend on it
    loader = DataLoader(
        steps, None, sampler=range(first, options.steps), num_workers=workers, generator=torch.Generator()
    )
    bar = tqdm(
        loader, total=options.steps, initial=first, unit="step", dynamic_ncols=True, disable=not distributed.IS_MAIN
    )
    started = time.perf_counter()

    for step, batches in enumerate(bar, first):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        total_weight = distributed.all_reduce(sum(float(batch.loss_weights.sum()) for batch in batches))
        places = options.merge_curriculum
        mixture = merge_mixture(method, options.n, places, step, options.steps) if places else None
        loss = training_step.backward(batches, total_weight, mixture)  # forward, loss, backward
        loss = float(distributed.sum_gradients(list(trained.values()), loss))
        norm = float(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise ValueError(f"the loss is {loss} at step {step + 1}, its gradient {norm}: try a smaller --lr")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        speed = distributed.WORLD_SIZE * training_step.token_count(batches) / (time.perf_counter() - began)
        entry = {"step": done, "loss": loss, "lr": group["lr"], "norm": norm, "tokens_per_s": speed}
        save = done % SAVE_EVERY == 0 or done == options.steps
        if save and held_out:
            entry["validation"] = training_step.held_out_loss(held_out)
        log.write(json.dumps(entry | {"s": time.perf_counter() - started}) + "\n")
        bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s{watch()}")
        if save and distributed.IS_MAIN:
            checkpoint.save(done, entry.get("validation"))
        if options.patience and checkpoint.worse >= options.patience:
            break
    log.close()
    bar.close()
    if held_out:  # the adapter that was kept
        for name, value in load_file(out / "adapter.safetensors").items():
            trained[name].data.copy_(value)
    model.eval()
    if options.eval_samples and (distributed.IS_MAIN or "fsdp" in fast):
        evaluator = evaluate.Evaluator(model, tokenizer, encode)
        rows = evaluate.report(
            evaluator, run, options.data, options.eval_samples, options.seed, quiet=not distributed.IS_MAIN
        )
        if distributed.IS_MAIN:
            evaluate.show_report(rows, out / "table.png", options.json)
    distributed.stop()
    if distributed.IS_MAIN:
        base = "" if options.model == str(command_line.TINY) else f" --model {options.model}"
        script = (
            f"train.py{base} --data {options.data} --init {out}"
            if method.name == "full"
            else f"chat.py{base} --adapter {out}"
        )
        print(f"next: {shlex.quote(sys.executable) if os.sep in sys.executable else 'python'} {script}")


def held_out_batches(steps: TrainingSteps, options) -> list:
    """The validation samples that choose the checkpoint, with a loss on their outputs only."""
    parts = -(-options.validate // options.batch)
    changed = argparse.Namespace(**vars(options) | {"batch": -(-options.validate // parts), "steps": parts})
    source = data.source(options.data, "validation", options.seed)
    held_out = TrainingSteps(source, steps.encode, steps.config, steps.method, steps.batches, changed, validation=True)
    return [batch for part in range(parts) for batch in held_out[part]]


if __name__ == "__main__":
    command_line.run(main)
