"""Make a base model from nothing: a tokenizer and a small LLaMA, trained on whole samples with full context.

    python -m experiments.pretrain --data dialog,icl,persona --out runs/base --steps 2000
    python train.py --model runs/base --data dialog

All text is learned: outputs and answers with weight 1, other text with weight --context-loss. --init continues from a
base model; so it fine-tunes all weights on full context, the step 1 of small models.
"""

import argparse
import json
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data
from data.encode import Encoder, check_length, encoder
from minccm.extra.curriculum import length_limit
from minccm.extra.evaluate import BASELINES, BY_TURNS, TIME_STEPS, Evaluator, close_gaps, show
from minccm.extra.training import PlainStep
from minccm.fast.step import FastStep, parse_fast
from minccm.io import options as cli
from minccm.io.checkpoint import Checkpoint
from minccm.io.files import make_folder
from minccm.io.options import real, whole
from minccm.io.templates import DIALOGUE, TEMPLATES, choose_template
from minccm.io.tokenizer import Tokenizer, train_tokenizer
from minccm.io.weights import load_model, save_model
from minccm.methods import Method, get_method
from minccm.model import LlamaConfig, Transformer
from minccm.sequence import Sequence, build_sequence

SHAPE = {"dim": 192, "ffn": 512, "layers": 6, "heads": 6, "vocab": 3072, "positions": 2048}
SETTINGS = (  # a resumed training must have these in common
    "data init lr batch steps warmup context_loss length_curriculum max_contexts questions validate seed".split()
    + list(SHAPE)
)


def arguments():
    about, defaults = __doc__.split("\n")[0], argparse.ArgumentDefaultsHelpFormatter
    parser = cli.OneLineParser(description=about, formatter_class=defaults)
    add = parser.add_argument
    add("--data", type=cli.name, default="dialog,icl,persona", help="as of train.py; several with commas between")
    add("--init", type=cli.name, default=None, help="folder of a base model to continue from")
    add("--out", type=cli.name, default=None, help="output folder; by default runs/DATA-base")
    for name, value in SHAPE.items():
        add(f"--{name}", type=whole(1, 2**20), default=value, help="shape of the model")
    add("--steps", type=whole(1), default=2000, help="optimizer steps")
    add("--batch", type=whole(1, 2**16), default=128, help="samples per step")
    add("--lr", type=real(0, 10), default=3e-3, help="peak learning rate; cosine to a tenth")
    add("--warmup", type=real(0, 1), default=0.03, help="share of the steps with a rising learning rate")
    add("--context-loss", type=real(0, 1), default=0.03, help="loss weight of text that is no answer; 0: outputs only")
    add("--length-curriculum", type=real(0, 10), default=0.5, help="share of steps with short samples; 0: none")
    add("--max-contexts", type=whole(1, 4096), default=None, help="contexts of a sample at most")
    add("--questions", type=whole(1, 4096), default=1, help="questions of a sample at most, where its data has several")
    add("--validate", type=whole(0), default=0, help="validation samples that choose the checkpoint; 0: the last")
    add("--patience", type=whole(0), default=0, help="stop after this many checkpoints without improvement; 0: never")
    add("--save-every", type=whole(1), default=100, help="steps between checkpoints")
    add("--resume", action="store_true", help="continue from the checkpoint in the output folder")
    add("--eval-samples", type=whole(0), default=100, help="test samples per time step in the final table; 0: no table")
    add("--fast", type=cli.name, default="auto", help="speed: auto, off, or names such as compile, as of train.py")
    add("--max-tokens", type=whole(1), default=None, help="tokens in one forward pass")
    add("--seed", type=whole(0, 2**31 - 1), default=0, help="of all random numbers")
    add("--device", type=cli.name, default="auto", help="cuda, cpu or auto")
    add("--dtype", default="auto", choices=["auto", *cli.DTYPES], help="of the weights in the final table")
    options = parser.parse_args()
    if options.patience and not options.validate:
        raise ValueError("--patience needs --validate: the best checkpoint has the lowest validation loss")
    names = "-".join(Path(part).stem for part in dict.fromkeys(options.data.split(",")))
    options.out = make_folder(options.out or f"runs/{names}-base")
    return options


def new_model(options) -> tuple[Transformer, Tokenizer]:
    """A LLaMA with random fp32 weights, and a tokenizer trained on the data's text."""
    path = options.out / "tokenizer.model"
    if not (options.resume and path.is_file()):
        train_tokenizer(some_text(data.source(options.data, "train", options.seed)), path, options.vocab)
    tokenizer = Tokenizer(path)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        dim=options.dim,
        ffn_dim=options.ffn,
        n_layers=options.layers,
        n_heads=options.heads,
        n_kv_heads=options.heads,
        head_dim=options.dim // options.heads,
        max_positions=options.positions,
    )
    model = Transformer(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:  # with the usual deviation of 0.02, a small model hardly learns to copy
            torch.nn.init.normal_(weight, std=1.0 if name == "embed_tokens.weight" else weight.shape[1] ** -0.5)
    return model, tokenizer


def some_text(source, samples: int = 20000, characters: int = 20_000_000):
    """The texts of some train samples, enough for a tokenizer."""
    for sample in map(source, range(samples)):
        if "messages" in sample:
            texts = [message["content"] for message in sample["messages"]]
        else:
            texts = [*sample["contexts"], sample["input"], sample["target"]]
        yield from texts
        characters -= sum(map(len, texts))
        if characters < 0:
            return


def continued_model(options) -> tuple[Transformer, Tokenizer]:
    """The base model of --init, whose tokenizer is copied to the output folder."""
    for name in ("tokenizer.model", "tokenizer.json"):
        if (Path(options.init) / name).is_file() and not (options.out / name).exists():
            shutil.copyfile(Path(options.init) / name, options.out / name)
    return load_model(options.init, dtype=torch.float32).requires_grad_(True), Tokenizer(options.init)


class Batches(Dataset):
    """Item i: the batches of optimizer step i. They depend on the seed and i only, so a resumed run gets the same."""

    def __init__(self, source, encode: Encoder, config: LlamaConfig, method: Method, options, make_batches):
        self.source, self.encode, self.config, self.method = source, encode, config, method
        self.options, self.make_batches = options, make_batches

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> list:
        first = step * self.options.batch
        return self.make_batches([self.sequence(i, step) for i in range(first, first + self.options.batch)])

    def sequence(self, index: int, step: int) -> Sequence:
        """Sample number `index`, as long as the curriculum allows in this step."""
        options = self.options
        limit = length_limit(index, step, options.steps, options.length_curriculum, options.max_contexts)
        sample = self.source(index, limit)
        if sample.get("separator") == "":  # running text can begin anywhere
            sample = data.fit(sample, lambda part: token_count(self.encode(part)), self.config.max_positions)
        encoded = self.encode(sample, max_questions=options.questions)
        check_length(encoded, self.method, 0, self.config.max_positions)
        answer_lengths = encoded.answer_lengths if "messages" in sample or options.context_loss else None
        text = encoded.contexts, encoded.questions
        return build_sequence(self.method, 0, self.config.vocab_size, *text, answer_lengths, options.context_loss)


def token_count(encoded) -> int:
    """Tokens of the contexts and the first question."""
    return sum(map(len, (*encoded.contexts, *encoded.questions[0])))


def held_out_batches(encode: Encoder, config: LlamaConfig, method: Method, options, make_batches) -> list:
    """The validation samples that choose the checkpoint, with a loss on their outputs only."""
    options = argparse.Namespace(**vars(options) | {"context_loss": 0.0, "length_curriculum": 0.0})
    parts = -(-options.validate // options.batch)  # as large as a step, so that the shapes are alike
    options.batch = -(-options.validate // parts)
    batches = Batches(data.source(options.data, "validation"), encode, config, method, options, make_batches)
    return [batch for part in range(parts) for batch in batches[part]]


def learning_rate(step: int, options) -> float:
    """A linear rise, then a cosine to a tenth of the peak."""
    rise = max(1, round(options.warmup * options.steps))
    if step < rise:
        return options.lr * (step + 1) / rise
    done = (step - rise) / max(1, options.steps - rise)
    return options.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def main() -> None:
    options = arguments()
    device, dtype = cli.device_and_dtype(options)
    on_gpu = device.type == "cuda"
    torch.manual_seed(options.seed)
    torch.set_num_threads(1 if on_gpu else torch.get_num_threads())  # a fixed number: rounding depends on it
    template = choose_template(options.init) if options.init else TEMPLATES[DIALOGUE]
    model, tokenizer = continued_model(options) if options.init else new_model(options)
    model, encode = model.to(device).train(), encoder(tokenizer, template)
    method = replace(get_method("full"), conditional=False)  # all tokens train the model
    fast = parse_fast(options.fast, device, sum(p.numel() for p in model.parameters()))
    if fast is None:
        training_step = PlainStep(model, method, options.max_tokens)
    else:
        training_step = FastStep(model, method, fast, options.max_tokens, context_loss=options.context_loss)

    trained: dict[str, Tensor] = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(trained.values(), options.lr, (0.9, 0.95), weight_decay=0.1, fused=on_gpu)
    settings = {name: vars(options)[name] for name in SETTINGS}
    checkpoint = Checkpoint(options.out, trained, optimizer, settings, lambda step: save_model(options.out, model))
    first = checkpoint.resume() if options.resume else 0
    source = data.source(options.data, "train", options.seed)
    batches = Batches(source, encode, model.config, method, options, training_step.batches)
    held_out = []
    if options.validate:
        held_out = held_out_batches(encode, model.config, method, options, training_step.batches)
    workers = min(16, (os.cpu_count() or 2) - 1) if on_gpu else 0
    order = range(first, options.steps)
    loader = DataLoader(batches, batch_size=None, sampler=order, num_workers=workers, generator=torch.Generator())
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=on_gpu)

    with open(options.out / "log.jsonl", "a" if first else "w", buffering=1) as log:
        bar = tqdm(loader, total=options.steps, initial=first, unit="step", dynamic_ncols=True)
        started = time.perf_counter()
        for step, step_batches in enumerate(bar, first):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, options)
            weight = sum(float(batch.loss_weights.sum()) for batch in step_batches)
            with autocast:
                loss = float(training_step.backward(step_batches, weight))
            norm = float(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            if not math.isfinite(loss):
                raise ValueError(f"the loss is {loss} at step {step + 1}: try a smaller --lr")
            speed = training_step.token_count(step_batches) / (time.perf_counter() - began)
            entry = {"step": step + 1, "loss": loss, "lr": learning_rate(step, options), "norm": norm}
            entry |= {"tokens_per_s": speed, "s": time.perf_counter() - started}
            at_checkpoint = (step + 1) % options.save_every == 0 or step + 1 == options.steps
            if at_checkpoint and held_out:
                with autocast:
                    entry["validation"] = training_step.held_out_loss(held_out)
            log.write(json.dumps(entry) + "\n")
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
            if at_checkpoint:
                checkpoint.save(step + 1, entry.get("validation"))
                if options.patience and checkpoint.worse >= options.patience:
                    break
        bar.close()

    if options.eval_samples:
        evaluate(options, load_model(options.out, device, dtype), tokenizer, encode)  # from the file, which is bf16
    print(f"next: python train.py --model {options.out} --data {options.data}")


def evaluate(options, model: Transformer, tokenizer: Tokenizer, encode: Encoder) -> None:
    """Prints the table of test data: no context, and full context."""
    evaluator = Evaluator(model, tokenizer, encode)
    for name in dict.fromkeys(data.expand(options.data)):
        time_steps, rows = TIME_STEPS.get(data.prepared.kind(name), BY_TURNS), []
        for run in BASELINES:
            rows += evaluator.by_time_step(run, name, time_steps, options.eval_samples, options.seed)
        close_gaps(rows)
        show(rows)


if __name__ == "__main__":
    cli.run(main)
