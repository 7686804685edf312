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
import math
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data
from data.encode import encode_within, encoder
from minccm.extra import evaluate
from minccm.extra.curriculum import length_limit, merge_mixture
from minccm.extra.training import PlainStep, RecallWatch, next_step, prepare_adapter, write_adapter
from minccm.fast import distributed
from minccm.fast.step import FastStep, parse_fast
from minccm.io import options as command_line
from minccm.io.checkpoint import Checkpoint
from minccm.io.config import read_config
from minccm.io.files import make_folder
from minccm.io.options import output_file, real, whole
from minccm.io.templates import choose_template
from minccm.methods import Method
from minccm.sequence import Sequence, build_sequence

OURS = dict(r=64, alpha=128.0, dropout=0.0, questions=8, answers=True, max_contexts=None, distill=0.0, context_loss=0.0,
            beta1=0.6, schedule="cosine")  # fmt: skip
RECIPES = {
    "paper": dict(  # its table 13, for DailyDialog; the loss is on the output only
        steps=1000, batch=128, lr=3e-4, r=8, alpha=16.0, dropout=0.05, n=2, questions=1, answers=False,
        max_contexts=None, length_curriculum=0.0, distill=0.0, context_loss=0.0, beta1=0.9, schedule="cosine",
    ),  # the others: see docs/log.md
    "small": OURS | dict(steps=1500, batch=64, lr=3e-3, n=6, max_contexts=12, length_curriculum=1.0, schedule="linear"),
    "pretrained": OURS | dict(steps=1000, batch=32, lr=1e-3, n=4, length_curriculum=0.5, distill=1.0, beta1=0.9),
}  # fmt: skip
RECIPES["small-cpu"] = RECIPES["small"] | dict(steps=290)  # what two cores do in four minutes
SETTINGS = "model data method sink init adapter template merge_curriculum validate seed".split()
WARMUP, SAVE_EVERY = 0.03, 100  # a share of the steps; steps


def arguments() -> argparse.Namespace:
    """The command line. Options that a recipe sets are None until it is known (see main)."""
    parser, name = command_line.parser(__doc__.split("\n")[0]), command_line.name
    parser.set_defaults(method="ccm-concat", sink=False)
    add = parser.add_argument
    add("--data", type=name, default="dialog", help=f"{', '.join(data.GENERATED)} or files; several with commas")
    add("--out", type=name, help="output folder; by default runs/DATA-METHOD")
    settings = [f"{key}: " + ", ".join(f"{k} {v}" for k, v in recipe.items()) for key, recipe in RECIPES.items()]
    add("--recipe", choices=RECIPES, help=f"by default by the model's depth and the device: {'; '.join(settings)}")
    add("--steps", type=whole(1), help="optimizer steps")
    add("--batch", type=whole(1, 2**16), help="samples per step")
    add("--lr", type=real(0, 10), help="peak learning rate")
    add("--r", type=whole(1, 4096), help="rank of LoRA")
    add("--alpha", type=real(0, 1e6, above=True), help="scale of LoRA: alpha / r")
    add("--dropout", type=real(0, 0.99), help="of LoRA's input")
    add("--context-loss", type=real(0, 1e3), help="loss weight of text that is not an output or an answer")
    add("--length-curriculum", type=real(0, 100), help="samples grow longer during this share of the steps; 0: none")
    add("--questions", type=whole(1, 4096), help="questions per sample at most, where the data has several")
    add("--distill", type=real(0, 1e3), help="weight of KL from the full-context model's predictions of the outputs")
    add("--merge-curriculum", type=whole(1, 1024), help="slots take turns at first, in this many parts")
    add("--max-contexts", type=whole(1, 4096), help="contexts per sample at most")
    add("--adapter", type=name, help="continue from this adapter; a larger --n or --r widens it")
    add("--validate", type=whole(0, 10**6), default=0, help="samples whose loss chooses the checkpoint; 0: the last")
    add("--patience", type=whole(0), default=0, help="stop after this many checkpoints without a better one; 0: never")
    add("--resume", action="store_true", help="continue from the checkpoint in the output folder, if there is one")
    add("--max-tokens", type=whole(1, 2**24), help="tokens of one forward pass; by default what fits")
    add("--fast", type=name, default="auto", help="speed: auto, off, or names such as compile,checkpoint,fsdp")
    add("--eval-samples", type=whole(0, 10**6), default=100, help="test samples per time step in the table; 0: none")
    add("--json", type=output_file, help="write the table there, as a list of rows")
    options = parser.parse_args()
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
        first = step * self.options.batch
        indices = range(first + distributed.RANK, first + self.options.batch, distributed.WORLD_SIZE)
        return [self.sequence(index, step) for index in indices]

    def sequence(self, index: int, step: int) -> Sequence:
        """Sample number `index` as the sequence c(1) COMP ... c(T) COMP I O."""
        options, method, config = self.options, self.method, self.config
        share = 0.0 if self.validation else options.length_curriculum
        longest = length_limit(index, step, options.steps, share, options.max_contexts)
        sample = self.source(index, method.max_train_contexts or longest)
        limits, seed = (options.n, config.max_positions, options.questions), f"{options.seed}/{index}"
        contexts, questions, answers = encode_within(self.encode, sample, method, *limits, seed)
        if not ("messages" in sample or options.answers):
            answers = None
        context_loss = 0.0 if self.validation else options.context_loss
        return build_sequence(method, options.n, config.vocab_size, contexts, questions, answers, context_loss)


def held_out_batches(steps: TrainingSteps, options) -> list:
    """The validation samples that choose the checkpoint."""
    parts = -(-options.validate // options.batch)
    batch = max(-(-options.validate // parts), distributed.WORLD_SIZE)
    changed = argparse.Namespace(**vars(options) | {"batch": batch, "steps": parts})
    source = data.source(options.data, "validation", options.seed)
    held_out = TrainingSteps(source, steps.encode, steps.config, steps.method, steps.batches, changed, validation=True)
    return [batch for part in range(parts) for batch in held_out[part]]


def learning_rate(step: int, options) -> float:
    """A linear rise, then a cosine to a tenth; or constant, with a straight line to 0 over the last two fifths."""
    rise = max(1, round(WARMUP * options.steps))
    if step < rise:
        return options.lr * (step + 1) / rise
    done = (step - rise) / max(1, options.steps - rise)
    if options.schedule == "linear":
        return options.lr * min(1.0, (1 - done) / 0.4)
    return options.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def main():
    options = arguments()
    distributed.start()
    device, dtype = command_line.device_and_dtype(options, "bf16" if command_line.has_bf16() else "fp32")
    method = command_line.load_method(options.method, options.sink)
    if method.name == "full":  # step 1: plain LoRA, which acts on every token
        method = replace(method, conditional=False)
    small = "small-cpu" if device.type == "cpu" else "small"
    recipe = RECIPES[options.recipe or ("pretrained" if read_config(options.model).n_layers >= 16 else small)]
    for key, value in recipe.items():
        own_n = key == "n" and (options.adapter or method.merge_rate)  # see prepare_adapter
        if getattr(options, key, None) is None and not own_n:
            setattr(options, key, value)
    if options.batch < distributed.WORLD_SIZE:
        raise ValueError(f"--batch {options.batch} leaves some of {distributed.WORLD_SIZE} processes without a sample")
    names = "-".join(Path(part).stem for part in dict.fromkeys(options.data.split(",")))
    out = make_folder(options.out or f"runs/{names}-{method.name}")
    source = data.source(options.data, "train", options.seed)

    # The frozen base model, and the adapter that trains.
    torch.manual_seed(options.seed)
    fsdp = "fsdp" in options.fast.split(",")
    if fsdp and distributed.WORLD_SIZE == 1:
        raise ValueError("--fast fsdp spreads the base model over the processes of torchrun, and this is the only one")
    model, tokenizer = command_line.open_base(options.model, options.init, "cpu" if fsdp else device, dtype)
    encode = encoder(tokenizer, choose_template(options.model, options.template))
    options.n = prepare_adapter(model, method, options, out)
    trained = model.adapter_state()
    model.train()

    # The step: plain (minccm/extra/training.py), or fast with the same numbers (minccm/fast).
    fast = parse_fast(options.fast, device, sum(p.numel() for p in model.parameters()))
    if fsdp:
        distributed.shard(model, device)
    if fast is None:
        training_step = PlainStep(model, method, options.max_tokens, options.distill)
    else:
        training_step = FastStep(model, method, fast, options.max_tokens, options.distill, options.context_loss)
    steps = TrainingSteps(source, encode, model.config, method, training_step.batches, options)
    training_step.fix_shapes(steps.sequences(step) for step in range(max(0, len(steps) - 8), len(steps)))
    held_out = held_out_batches(steps, options) if options.validate else None
    on_gpu = device.type == "cuda"
    torch.set_num_threads(1 if on_gpu else torch.get_num_threads())  # a fixed number: rounding depends on it
    optimizer = torch.optim.AdamW(trained.values(), options.lr, (options.beta1, 0.95), weight_decay=0.0, fused=on_gpu)

    settings = {key: getattr(options, key) for key in [*SETTINGS, *recipe]}
    write = partial(write_adapter, out, model, method, options)
    checkpoint = Checkpoint(out, trained, optimizer, settings, write, distributed.IS_MAIN)
    first = checkpoint.begin(options.resume)
    if not distributed.IS_MAIN:
        torch.manual_seed(options.seed + distributed.RANK + first)  # dropout differs between processes
    evaluator = evaluate.Evaluator(model, tokenizer, encode)
    run = evaluate.Run(method, options.n, label="full, trained" if method.name == "full" else method.name)
    watch = RecallWatch(evaluator, run, "" if distributed.WORLD_SIZE > 1 else options.data)  # processes keep in step
    workers = max(1, (min(16, os.cpu_count()) - 2) // distributed.WORLD_SIZE) if on_gpu else 0
    # the loader has a generator of its own: dropout's numbers must not depend on it
    order, generator = range(first, options.steps), torch.Generator()
    loader = DataLoader(steps, None, sampler=order, num_workers=workers, generator=generator)
    quiet = not distributed.IS_MAIN
    bar = tqdm(loader, total=options.steps, initial=first, unit="step", dynamic_ncols=True, disable=quiet)
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

        done, now = step + 1, time.perf_counter()
        speed = distributed.WORLD_SIZE * training_step.token_count(batches) / (now - began)
        entry = {"step": done, "loss": loss, "lr": group["lr"], "norm": norm, "tokens_per_s": speed, "s": now - started}
        save = done % SAVE_EVERY == 0 or done == options.steps
        if save and held_out:
            validation = training_step.held_out_loss(held_out)
            entry["validation"] = distributed.all_reduce(validation) / distributed.WORLD_SIZE
        checkpoint.log(entry)
        bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s{watch()}")
        if save:
            checkpoint.save(done, entry.get("validation"))
        if options.patience and checkpoint.worse >= options.patience:
            break

    bar.close()
    if held_out:  # the adapter that was kept
        distributed.all_reduce(0.0)  # rank 0 has written it
        for key, value in load_file(out / "adapter.safetensors").items():
            trained[key].data.copy_(value)
    model.eval()
    if options.eval_samples and (distributed.IS_MAIN or fsdp):
        evaluate.report(evaluator, run, options, out, quiet)
    distributed.stop()
    quiet or print("next:", next_step(options, method, out))


if __name__ == "__main__":
    command_line.run(main)
