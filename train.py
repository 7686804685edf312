"""Train a compression adapter (the paper's step 2), full-context LoRA (its step 1), or a small base model from nothing.

    python train.py --data dialog                                       # ccm-concat for the model that ships
    python train.py --data dialog --method full --out runs/step1        # step 1, then step 2 from it:
    python train.py --data dialog --method ccm-merge --init runs/step1
    python train.py --pretrain --data dialog,icl,persona --out runs/base --steps 2000
    torchrun --nproc-per-node 8 train.py --model DIR --data dialog      # on 8 GPUs

Step 2 in one line: lay out c(1) COMP ... c(T) COMP I O, one forward pass under the mask, cross-entropy on O, and
gradients for nothing but the conditional LoRA and the COMP embeddings (paper: algorithm 1).
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
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data
from eval import BASELINES, BY_TURNS, TIME_STEPS, Run, close_gaps, evaluate, show
from minccm import cli, ranks
from minccm.checkpoint import load_adapter, load_model, save_adapter, save_model
from minccm.config import LlamaConfig
from minccm.distill import divergence, lesson
from minccm.files import make_folder, write_text, write_whole
from minccm.graphs import Replayed
from minccm.layout import Batch, Layout, check_length, collate, group, lay_out, more_segments, pack, segments
from minccm.mask import blocks_of, fixed_weights, predict
from minccm.methods import Method, get_method, in_turns
from minccm.model import Transformer
from minccm.recurrent import predict_recurrent
from minccm.tokenizer import Tokenizer, train_tokenizer

SETTINGS = (
    "data method n sink r alpha dropout lr batch steps warmup text_weight grow longest short questions seed distill "
    "validate turns".split()
)


def arguments():
    """The command line. Raises ValueError for numbers below 1 (recipe of the paper: table 13)."""
    parser = cli.parser(__doc__.split("\n")[0])
    parser.set_defaults(method="ccm-concat", sink=False)
    add = parser.add_argument
    add("--data", default="dialog", help=f"{', '.join(data.GENERATED)}, JSON-lines files; several with commas between")
    add("--out", default=None, help="output folder; by default runs/DATA-METHOD")
    add("--steps", type=int, default=420, help="optimizer steps")
    add("--batch", type=int, default=128, help="samples a step")
    add("--lr", type=float, default=3e-3, help="peak learning rate; cosine to a tenth")
    add("--warmup", type=float, default=0.03, help="share of the steps in which the learning rate rises")
    add("--grow", type=float, default=None, help="share of steps in which samples grow: 0.5, on a CPU 1.8; 0: never")
    add("--longest", type=int, default=None, help="contexts of a sample at most")
    add("--short", type=int, default=7, help="one sample in so many stays short, of four contexts at most")
    add("--questions", type=int, default=1, help="asked at the end of a sample at most, where its data has several")
    add("--r", type=int, default=32, help="rank of LoRA")
    add("--alpha", type=float, default=64, help="scale of LoRA: alpha / r")
    add("--dropout", type=float, default=0.0, help="of LoRA's input")
    add("--text-weight", type=float, default=None, help="loss weight of other text; by default 0.01, --pretrain 0.03")
    add(
        "--row-tokens",
        type=int,
        default=None,
        help="tokens of one forward pass; 2048, on a GPU what its memory holds, or a step needs",
    )
    add("--adapter", default=None, help="go on from this one; a larger --n or --r widens it")
    add("--turns", type=int, default=None, help="of merging: parts of the slots that take turns first, then ever less")
    add("--recurrent", action="store_true", help="backpropagate through time, step by step: to compare, it is slower")
    add("--distill", type=float, default=0.0, help="weight of KL from the full-context model's predictions of targets")
    add("--validate", type=int, default=0, help="validation samples that tell which checkpoint to keep; 0: the last")
    add("--patience", type=int, default=0, help="stop after so many checkpoints no better than the best; 0: never")
    bools = argparse.BooleanOptionalAction
    add(
        "--compile",
        action=bools,
        help="compile the blocks: slower to start, then faster; for large models or long runs on a GPU",
    )
    add("--checkpoint", action="store_true", help="keep little for the backward pass, compute it again: small memory")
    add("--shard", action="store_true", help="under torchrun: spread a base that does not fit one GPU over all (FSDP2)")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--save-every", type=int, default=100, help="steps between checkpoints")
    add("--eval-samples", type=int, default=100, help="test samples a time step in the final table; 0 for no table")
    add("--pretrain", action="store_true", help="train a base model, from nothing or the model --init, and write it")
    for name, value in (("dim", 192), ("ffn", 512), ("layers", 6), ("heads", 6), ("vocab", 3072), ("positions", 2048)):
        add(f"--{name}", type=int, default=value, help="shape of the --pretrain model")
    options = parser.parse_args()
    if options.pretrain:
        options.method = "full"
    options.text_weight = (0.03 if options.pretrain else 0.01) if options.text_weight is None else options.text_weight
    for name in "steps batch longest short questions turns r save_every row_tokens dim layers heads".split():
        if vars(options)[name] is not None and vars(options)[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} is to be at least 1")
    if options.pretrain and (options.recurrent or options.distill):
        raise ValueError("--recurrent and --distill are for training an adapter: leave --pretrain out")
    if options.turns and options.recurrent:
        raise ValueError("--turns is a matter of the parallel pass: leave --recurrent out")
    if options.patience and not options.validate:
        raise ValueError("--patience needs --validate: the best checkpoint is that of the lowest validation loss")
    options.method = get_method(options.method).name
    kind = "base" if options.pretrain else options.method
    names = "-".join(Path(part).stem for part in dict.fromkeys(options.data.split(",")))
    options.out = Path(options.out or f"runs/{names}-{kind}")
    return options


class Steps(Dataset):
    """Item i: the batches of optimizer step i. Made from the seed and i alone, so a resumed run gets the same."""

    def __init__(self, source, tokenizer: Tokenizer, config: LlamaConfig, method: Method, n: int, options):
        self.source, self.tokenizer, self.config, self.method, self.n = source, tokenizer, config, method, n
        self.options = options

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> list[Batch]:
        return self.batches(self.layouts(step))

    def batches(self, layouts: list[Layout]) -> list[Batch]:
        """Samples in packed rows, or in groups of like length."""
        options = self.options
        lengths = [len(layout.tokens) for layout in layouts]
        if options.pack:
            rows = [[layouts[i] for i in row] for row in pack(lengths, options.row_tokens, options.multiple)]
            apart = not (options.replay or options.shard)  # a graph has one shape; all shards pass as often
            return collate(rows, options.multiple, options.least, apart).split()
        return [collate([[layouts[i]] for i in indices]) for indices in group(lengths, options.row_tokens)]

    def layouts(self, step: int) -> list[Layout]:
        """The samples of a step."""
        layouts = []
        grown = (step + 1) / max(1, self.options.grow * self.options.steps)
        # Short samples first: what is close is learned many times faster than what is far, and carries over.
        longest = self.options.longest
        longest = longest if grown >= 1 else min(longest or 30, 2 + int(28 * grown**5))
        for index in range(step * self.options.batch + ranks.RANK, (step + 1) * self.options.batch, ranks.COUNT):
            # Some stay short: else what is short is forgotten.
            limits = longest, 4 if self.options.grow and index % self.options.short == 0 else None
            sample = self.source(index, self.method.contexts or min(filter(None, limits), default=None))
            contexts, input, target = segments(self.tokenizer, sample, self.method.reads)
            more = more_segments(self.tokenizer, sample, self.options.questions - 1, self.method.reads)
            while sample.get("separator") == "" and len(sum(contexts, input + target)) > self.config.max_positions:
                sample = data.shorten(sample, len(contexts) - 1)  # running text may begin anywhere
                contexts, input, target = segments(self.tokenizer, sample, self.method.reads)
            answered = answer_lengths(self.tokenizer, sample, contexts)
            vocab_size, weight = self.config.vocab_size, self.options.text_weight
            layout = lay_out(self.method, self.n, vocab_size, contexts, input, target, weight, answered, more)
            check_length(layout, self.config.max_positions)
            layouts.append(layout)
        return layouts

    def settle(self) -> None:
        """From here on all steps have one shape, that of the largest of the last eight and a little more."""
        options, last = self.options, [self.layouts(step) for step in range(max(0, len(self) - 8), len(self))]
        if options.row_tokens is None:
            needed = max(sum(len(layout.tokens) for layout in layouts) for layouts in last)
            options.row_tokens = min(65536, -(-int(1.1 * needed) // 1024) * 1024)
        options.multiple = options.row_tokens
        sizes = [batch.sizes for layouts in last for batch in self.batches(layouts)]
        options.least = tuple(map(max, zip(*sizes)))


def answer_lengths(tokenizer: Tokenizer, sample: dict, contexts: list[list[int]]) -> list[int]:
    """How many tokens at the end of each context are an answer: a demonstration's label, or all that the Bot says."""
    labels = [tokenizer.encode(option) for option in sample.get("options", [])]
    lengths = [max((len(x) for x in labels if ids[-len(x) :] == x), default=0) for ids in contexts]
    before = max(1, len(tokenizer.after(sample.get("separator", ""))))
    for i in sample.get("answers", []):
        lengths[i] = len(contexts[i]) - before
    return lengths


def some_text(source, samples: int = 20000, characters: int = 20_000_000):
    """The texts of some train samples, enough of them for a tokenizer."""
    for sample in map(source, range(samples)):
        texts = *sample["contexts"], sample["input"], sample["target"]
        yield from texts
        characters -= sum(map(len, texts))
        if characters < 0:
            return


def new_base(options, device) -> tuple[Transformer, Tokenizer]:
    """A LLaMA from nothing, and a tokenizer trained on the data's text; or both from the folder --init, to go on."""
    path = make_folder(options.out) / "tokenizer.model"
    if options.init:
        tokenizer = Tokenizer(options.init)
        if not path.exists():
            shutil.copy(Path(options.init) / "tokenizer.model", path)
        return load_model(options.init, device, torch.float32).requires_grad_(True), tokenizer
    if not (options.resume and path.is_file()):
        source = data.source(options.data, "train", options.seed)
        train_tokenizer(some_text(source), path, options.vocab)
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
        if weight.ndim == 2:  # not the usual std of 0.02, with which a small model hardly learns to copy
            torch.nn.init.normal_(weight, std=1.0 if name == "embed_tokens.weight" else weight.shape[1] ** -0.5)
    return model.to(device), tokenizer


def prepare_speed(model: Transformer, method: Method, options, device: torch.device) -> None:
    """Settles how a step's samples become batches (options.pack, row_tokens, multiple), and compiles the blocks.

    Compiled on a GPU, samples are packed into rows of few lengths, under FlexAttention's block mask: what is compiled
    for each length pays in a long run, or with a large model. Elsewhere groups of like length are padded: a small
    model would wait for the compiler longer than it computes, and a CPU has no such backward pass. The packed rows of a
    small model's adapter are all of one length, and options.replay: a CUDA graph does its step.
    """
    large = device.type == "cuda" and sum(p.numel() for p in model.parameters()) > 5e8
    compiled = large if options.compile is None else options.compile
    options.pack = compiled and device.type == "cuda" and not options.recurrent
    options.replay = options.pack and not (large or options.pretrain or options.checkpoint or method.learned)
    options.replay &= ranks.COUNT == 1
    rows = row_tokens_for(model, options) if large else 2048 if device.type == "cpu" else 65536
    options.row_tokens = options.row_tokens or (None if options.replay else rows)
    options.multiple, options.least = max(128, (options.row_tokens or 0) // 8 // 128 * 128), (0,) * 5
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # asked for here alone: to load the compiler takes seconds
        for block in model.layers:
            block.compile(dynamic=not options.pack)


def row_tokens_for(model: Transformer, options) -> int:
    """How many tokens a forward and backward pass may have, by the memory that is free on the GPU; a power of two."""
    config, nbytes = model.config, model.embed_tokens.weight.element_size()
    heads = 2 * config.n_heads + 2 * config.n_kv_heads  # queries, output, keys, values
    block = nbytes * (2 * config.dim + heads * config.head_dim + 2 * config.ffn_dim)  # kept of a token
    kept = config.n_layers * config.dim * nbytes + block if options.checkpoint else config.n_layers * block
    kept += 4 * nbytes * config.vocab_size if options.text_weight else 0
    return min(65536, max(2048, 2 ** int(math.log2(0.6 * torch.cuda.mem_get_info()[0] / kept))))


def main():
    options = arguments()
    ranks.start()
    device, dtype = cli.device_and_dtype(options)
    if options.batch < ranks.COUNT:
        raise ValueError(f"--batch {options.batch} leaves some of {ranks.COUNT} processes without a sample")
    if (options.pretrain and ranks.COUNT > 1) or (options.shard and ranks.COUNT == 1):
        raise ValueError("torchrun is for adapters, whose base --shard spreads over its processes")
    if options.validate and ranks.COUNT > 1:
        raise ValueError("--validate is for a single process")
    options.grow = (1.8 if device.type == "cpu" else 0.5) if options.grow is None else options.grow
    method = get_method(options.method, options.sink)
    if options.n is None and not options.adapter:
        options.n = 8 if method.rate and method.comp else 2
    options.n = 0 if method.name in ("none", "full") else options.n
    if method.name == "none" or (options.n is not None and options.n < 1 and method.name != "full"):
        raise ValueError(f"--method {method.name} with --n {options.n} has nothing to train")
    means = method.rate and method.comp == "step" and not (method.learned or method.delay or method.stride > 1)
    if options.turns and not means:
        raise ValueError(
            f"--turns is for methods that merge all steps at a fixed rate, as ccm-merge, not {method.name}"
        )
    out = make_folder(options.out)
    source = data.source(options.data, "train", options.seed)
    torch.manual_seed(options.seed)

    # What trains: the whole of a new base model, or the adapter of a frozen one.
    if options.pretrain:
        model, tokenizer = new_base(options, device)
        trained = dict(model.named_parameters())
    else:
        model, tokenizer = cli.open_base(options.model, options.init, "cpu" if options.shard else device, dtype)
        step1 = options.init
        if options.adapter:
            found, n = load_adapter(model, options.adapter)
            options.n = n if options.n is None else options.n
            if found.name == "full":
                raise ValueError(f"--adapter {options.adapter} is a step-1 adapter: give it as --init")
            if options.n < n:
                raise ValueError(f"--adapter {options.adapter} has n = {n}, more than --n {options.n}")
            model.widen_adapter(options.n, options.r)
            for projection in model.projections():
                projection.dropout = options.dropout
            if found.name != method.name:
                model.add_learned(method.learned)
            step1 = step1 or Path(options.adapter) / "init"
        else:
            model.add_adapter(options.n, options.r, options.alpha, options.dropout, method.learned)
        if options.turns and options.turns > options.n:
            raise ValueError(f"--turns {options.turns} is more than there are slots: take up to {options.n}")
        if ranks.MAIN and step1 and Path(step1).is_dir() and Path(step1).resolve() != (out / "init").resolve():
            shutil.copytree(step1, out / "init", dirs_exist_ok=True)
        trained = model.adapter_state()
    model.train()
    model.checkpoint = options.checkpoint
    if options.shard:
        ranks.shard(model, device)
    elif not options.pretrain:
        model.join_weights()
    prepare_speed(model, method, options, device)
    if device.type == "cuda":
        torch.set_num_threads(1)  # the cores are for those who make the samples
    else:
        torch.set_num_threads(torch.get_num_threads())  # left alone it may follow the load, and rounding with it
    decay = 0.1 if options.pretrain else 0.0
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(trained.values(), options.lr, (0.9, 0.95), weight_decay=decay, fused=fused)

    kept = {"loss": math.inf, "stale": 0}  # of the checkpoint that is kept, and how many came after it
    first = resume(out, options, trained, optimizer, kept) if options.resume else 0
    if not ranks.MAIN:
        torch.manual_seed(options.seed + ranks.RANK + first)  # what is dropped differs
    log = open(out / "log.jsonl" if ranks.MAIN else os.devnull, "a" if first else "w", buffering=1)
    steps = Steps(source, tokenizer, model.config, method, options.n, options)
    if options.replay:
        steps.settle()
    held_out = held_out_batches(tokenizer, model.config, method, options) if options.validate else []
    workers = 0 if device.type == "cpu" else max(1, (min(16, os.cpu_count()) - 2) // ranks.COUNT)
    # the loader must not draw from the generator that dropout draws from, or a resumed run would differ
    order, apart = range(first, options.steps), torch.Generator()
    loader = DataLoader(steps, batch_size=None, sampler=order, num_workers=workers, generator=apart)
    bar = tqdm(loader, total=options.steps, initial=first, unit="step", dynamic_ncols=True, disable=not ranks.MAIN)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.pretrain and device.type == "cuda")

    def loss_of(batch: Batch, weight, merging=None, blocks=None, taught=None) -> Tensor:
        """A batch's share of its step's loss. merging: weights to merge by, if not the method's own.

        blocks, taught: of mask.blocks_of, if known, and of the teacher.
        """
        with autocast:
            if options.recurrent:
                logits, rows = predict_recurrent(model, method, batch)  # (R, vocab_size)
            else:
                logits, rows = predict(model, method, batch, options.pack, blocks=blocks, weights=merging)
            losses = F.cross_entropy(logits.float(), batch.labels.flatten()[rows], reduction="none")  # (R,)
            loss = (losses * batch.weights.flatten()[rows]).sum()
            if options.distill:
                loss = loss + options.distill * divergence(model, method, batch, logits, rows, options.pack, taught)
        return loss / weight

    def gradients(*inputs) -> tuple[Tensor, ...]:
        loss = loss_of(*inputs)
        return loss.detach(), *torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)

    def views(batch: Batch) -> list[tuple[Method, Batch]]:
        return [(method, batch), lesson(method, batch)] if options.distill else [(method, batch)]

    replayed = Replayed(gradients)

    started = time.perf_counter()
    for step, batches in enumerate(bar, first):
        began = time.perf_counter()
        lr = options.lr * schedule(step, options.steps, options.warmup)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr
        weight = sum(float(batch.weights.sum()) for batch in batches)
        weight = ranks.over_all(weight)  # of the whole step, however it is split
        if options.shard:  # all have to take part in as many passes: some with nothing to learn
            idle = replace(batches[-1], weights=torch.zeros_like(batches[-1].weights), last=None)
            batches += [idle] * (int(ranks.over_all(len(batches), "MAX")) - len(batches))
        total, batches = torch.zeros((), device=device), [batch.to(device) for batch in batches]
        # first of all, as the CPU waits there for the GPU: which blocks are seen
        seen = [[blocks_of(*view) for view in views(batch)] if options.pack else [] for batch in batches]
        for batch, blocks in zip(batches, seen):
            merging = taking_turns(step, options, method, batch) if options.turns else None
            if options.replay:
                loss, *found = replayed(batch, torch.full((), weight, device=device), merging, *blocks)
                for parameter, gradient in zip(trained.values(), found):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            else:
                loss = loss_of(batch, weight, merging, *blocks)
                loss.backward()
            total += loss.detach()
        total = ranks.sum_gradients(list(trained.values()), total)
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        total = float(total)
        if not math.isfinite(total):
            raise ValueError(f"the loss is {total} at step {step + 1}: try a smaller --lr")
        speed = ranks.COUNT * sum(batch.count for batch in batches) / (time.perf_counter() - began)
        entry = {"step": step + 1, "loss": total, "lr": lr, "norm": float(norm), "tokens_per_s": speed}
        checkpoint = (step + 1) % options.save_every == 0 or step + 1 == options.steps
        if checkpoint and held_out:
            with autocast:
                entry["validation"] = held_out_loss(model, method, held_out, options.pack)
        log.write(json.dumps(entry | {"s": time.perf_counter() - started}) + "\n")
        bar.set_postfix_str(f"loss {total:.3f}, {speed:,.0f} tokens/s")
        if checkpoint and ranks.MAIN:
            better = entry.get("validation", -math.inf) < kept["loss"]
            kept = {"loss": entry["validation"], "stale": 0} if better and held_out else kept
            kept["stale"] += not better
            save(out, options, trained, optimizer, step + 1, kept)
            if better and options.pretrain and held_out:
                save_model(out, model)
            if better and not options.pretrain:
                made = {"base_name": Path(options.model).name, "data": options.data, "steps": step + 1}
                save_adapter(out, model, method, options.n, **made, seed=options.seed)
            if options.patience and kept["stale"] >= options.patience:
                break
    log.close()
    bar.close()

    model.eval()
    if not (ranks.MAIN or options.shard):
        return ranks.end()
    if options.pretrain:
        if not held_out:
            save_model(out, model)
        model = load_model(out, device, dtype)  # as it was written, in bf16
        runs = BASELINES
    else:
        if held_out:  # the one that was kept
            for name, value in load_file(out / "adapter.safetensors").items():
                trained[name].data.copy_(value)
        label = "full, trained" if method.name == "full" else method.name
        runs = BASELINES + [Run(method, options.n, label=label)]
    if options.eval_samples:
        report(options, model, tokenizer, runs)
    ranks.end()
    if not ranks.MAIN:
        return
    base = "" if options.model == str(cli.TINY) else f" --model {options.model}"
    if options.pretrain:
        print(f"next: python train.py --model {out} --data {options.data}")
    elif method.name == "full":
        print(f"next: python train.py{base} --data {options.data} --init {out}")
    else:
        print(f"next: python chat.py{base} --adapter {out}")


def held_out_batches(tokenizer: Tokenizer, config: LlamaConfig, method: Method, options) -> list[Batch]:
    """The samples of the validation part that tell which checkpoint is the best, with a loss on their targets alone.

    In parts about as large as a step, which have its shape.
    """
    parts = -(-options.validate // options.batch)
    more = {"batch": -(-options.validate // parts), "steps": parts, "text_weight": 0.0, "grow": 0.0}
    made = argparse.Namespace(**vars(options) | more)
    steps = Steps(data.source(options.data, "validation"), tokenizer, config, method, options.n, made)
    return [batch for part in range(parts) for batch in steps[part]]


@torch.no_grad()
def held_out_loss(model: Transformer, method: Method, batches: list[Batch], flex: bool) -> float:
    """Cross-entropy of the targets in nats a token, EOS included, without dropout."""
    model.eval()
    total = count = 0.0
    for batch in batches:
        logits, rows = predict(model, method, batch := batch.to(model.embed_tokens.weight.device), flex)
        there = batch.weights.flatten()[rows] > 0
        total += float(F.cross_entropy(logits[there].float(), batch.labels.flatten()[rows[there]], reduction="sum"))
        count += int(there.sum())
    model.train()
    return total / count


def schedule(step: int, steps: int, warmup: float) -> float:
    """The learning rate of a step as a share of its peak: a linear rise, then a cosine to a tenth."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def taking_turns(step: int, options, method: Method, batch: Batch) -> Tensor:
    """What slots are merged by at a step of --turns, fp32 (T, T, n): turns at first, in the end the method's weights.

    A sum of steps is hard to take apart, a slot that one step alone has written is as easy to read as a COMP token. So
    what the others write comes in little by little, ever slower, and is all there after 0.7 of the steps.
    """
    left = max(0.0, 1 - step / (0.7 * options.steps)) ** 2
    both, size = (method, in_turns(method, options.n, options.turns)), batch.sources.shape[2]
    own, turns = (fixed_weights(merging, size, batch.tokens.device, torch.float64) for merging in both)
    return torch.lerp(own.expand_as(turns), turns, left).float()


def save(out: Path, options, trained: dict, optimizer, step: int, kept: dict) -> None:
    """A checkpoint from which --resume goes on as if nothing had happened; written beside and then renamed."""
    state = {"step": step, "settings": {name: vars(options)[name] for name in SETTINGS}, "trained": trained}
    state |= {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "kept": kept}
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state()
    write_whole(out / "state.pt", lambda beside: torch.save(state, beside))


def resume(out: Path, options, trained: dict, optimizer, kept: dict) -> int:
    """Takes up the checkpoint in `out`, and what is said of the one that is kept; returns its step. Cuts the log."""
    path = out / "state.pt"
    if not path.is_file():
        raise ValueError(f"{path} is not there: nothing to resume, leave --resume out")
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in state["settings"].items():
        if vars(options)[name] != value:
            raise ValueError(f"{path} was made with --{name.replace('_', '-')} {value}, not {vars(options)[name]}")
    for name, tensor in state["trained"].items():
        trained[name].data.copy_(tensor)
    optimizer.load_state_dict(state["optimizer"])
    kept.update(state.get("kept", {}))
    torch.set_rng_state(state["rng"])
    if "cuda_rng" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_rng"])
    if ranks.MAIN:
        lines = (out / "log.jsonl").read_text().splitlines()[: state["step"]]
        write_text(out / "log.jsonl", "".join(line + "\n" for line in lines))
    return state["step"]


def report(options, model: Transformer, tokenizer: Tokenizer, runs: list[Run]) -> None:
    """The final table, on test data."""
    for name in dict.fromkeys(data.expand(options.data)):
        rows = []
        for run in tqdm(runs, desc=f"evaluating on {name}", leave=False):
            time_steps = TIME_STEPS.get(data.prepared.kind(name), BY_TURNS)
            limits = options.eval_samples, options.seed, options.row_tokens
            rows += evaluate(model, tokenizer, run, name, time_steps, *limits)
        close_gaps(rows)
        if ranks.MAIN:
            show(rows)


if __name__ == "__main__":
    cli.run(main)
