"""Parts of train.py: the step in plain form, the adapter to train and to write, and a look at its recall.

minccm/fast/step.py has the fast form of the step, with the same methods and the same numbers.
"""

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

import data
from minccm.extra.curriculum import MixtureKV, check_merge_curriculum
from minccm.extra.distill import distillation_loss, teacher_logits
from minccm.extra.evaluate import Evaluator, Run
from minccm.io.adapters import is_from_file, keep_step1, load_adapter, save_adapter
from minccm.io.checkpoint import STATE
from minccm.io.options import TINY, method_of, next_command
from minccm.io.untrusted import printable
from minccm.methods import Method
from minccm.model import Transformer
from minccm.parallel import ParallelKV, forward_parallel, weighted_loss
from minccm.sequence import Sequence, bucket_by_length, pad_batch

CPU_TOKENS, GPU_TOKENS = 2048, 65536  # of one forward pass


class PlainStep:
    """The training step that needs nothing but the plain core."""

    def __init__(self, model: Transformer, method: Method, max_tokens: int | None = None, distill: float = 0.0):
        """max_tokens: of one forward pass. distill: weight of the distillation loss."""
        self.model, self.method, self.distill = model, method, distill
        self.device = model.embed_tokens.weight.device
        self.batches = PaddedBatches(max_tokens or (CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS))

    def fix_shapes(self, steps: Iterable[list[Sequence]]) -> None:
        """Nothing to do: batches can have any shape."""

    def token_count(self, batches: list[Sequence]) -> int:
        """Tokens of the batches, padding included."""
        return sum(batch.tokens.numel() for batch in batches)

    def backward(self, batches: list[Sequence], total_weight: float, mixture=None) -> Tensor:
        """The loss () of a step: the weighted sum over tokens, divided by total_weight. Adds its gradients to p.grad.

        mixture: see curriculum.merge_mixture; None merges as the method does.
        """
        total = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self.loss(batch.to(self.device), mixture) / total_weight
            loss.backward()
            total += loss.detach()
        return total

    def loss(self, batch: Sequence, mixture=None) -> Tensor:
        """The weighted sum of cross-entropy over the tokens of one batch, plus the distillation loss."""
        kv = MixtureKV(mixture, batch) if mixture else ParallelKV(self.method.bind(self.model), batch)
        logits = forward_parallel(self.model, self.method, batch, kv)  # (R, vocab_size)
        loss = weighted_loss(logits, batch)
        if self.distill:
            outputs = batch.loss_weights[batch.loss_weights > 0] >= 1
            teacher = teacher_logits(self.model, self.method, batch)
            loss = loss + self.distill * distillation_loss(logits[outputs], teacher)
        return loss

    @torch.no_grad()
    def held_out_loss(self, batches: list[Sequence]) -> float:
        """Weighted mean cross-entropy in nats, without dropout and distillation."""
        distill, self.distill = self.distill, 0.0
        self.model.eval()
        total = sum(float(self.loss(batch.to(self.device))) for batch in batches)
        self.model.train()
        self.distill = distill
        return total / sum(float(batch.loss_weights.sum()) for batch in batches)


class PaddedBatches:
    """A function from sequences to padded batches of similar length, which loader processes can run."""

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens

    def __call__(self, sequences: list[Sequence]) -> list[Sequence]:
        buckets = bucket_by_length([len(sequence) for sequence in sequences], self.max_tokens)
        return [pad_batch([sequences[i] for i in bucket]) for bucket in buckets]


class RecallWatch:
    """Now and then during training: the share of a few held-out facts that the memory recalls, for the progress bar."""

    def __init__(self, evaluator: Evaluator, run: Run, name: str, seconds=20.0, distance=2, samples=32):
        """name: the dataset; there is something to watch only where it is `dialog`. seconds: between two looks."""
        self.evaluator, self.run, self.seconds, self.distance = evaluator, run, seconds, distance
        self.samples = data.at_step(name, "validation", distance, samples) if name == "dialog" else []
        self.last, self.text = time.perf_counter(), ""

    def __call__(self) -> str:
        """The text to show; measured again once `seconds` have passed."""
        if self.samples and time.perf_counter() - self.last > self.seconds:
            model = self.evaluator.model
            model.eval()
            recall = self.evaluator.measure(self.run, self.samples).get("recall", 0.0)
            model.train()
            self.text = f", facts told up to {self.distance} turns ago: {100 * recall:.0f}%"
            self.last = time.perf_counter()
        return self.text


def prepare_adapter(model: Transformer, method: Method, options, out: Path) -> int:
    """Gives the model the adapter to train: a new one, or the one of options.adapter. Returns n.

    options: init, adapter, n, r, alpha, dropout, merge_curriculum, as train.py has them. out: where the adapter will be
    written. Raises ValueError for options that do not fit together.
    """
    if options.init and Path(options.init).resolve() == out.resolve():
        raise ValueError(f"--init {printable(options.init)} would be overwritten: choose another folder with --out")
    n = 0 if method.name == "full" else options.n
    if method.name == "none":
        raise ValueError("--method none has nothing to train")
    if options.adapter:
        found, least = load_adapter(model, options.adapter, method_of(options.adapter, [method]))
        n = n or least
        if found.name == "full":
            raise ValueError(f"--adapter {options.adapter} is a step-1 adapter: give it as --init")
        if n < least:
            raise ValueError(f"--adapter {options.adapter} has n = {least}, more than --n {n}")
        model.widen_adapter(n, options.r)
        for projection in model.projections():
            projection.dropout = options.dropout
        if found.name != method.name:
            model.set_learned(method.learned)
    else:
        n = n if n is not None else 8 if method.merge_rate and method.comp_after else 2
        model.add_adapter(n, options.r, options.alpha, options.dropout, method.learned)
    if options.merge_curriculum:
        check_merge_curriculum(method, n, options.merge_curriculum)
    return n


def write_adapter(out: Path, model: Transformer, method: Method, options, step: int) -> None:
    """Writes the adapter after `step` steps, and at the first checkpoint its step-1 adapter below it, in out/init.

    The adapter of an earlier training is removed before: it must never stand on another step-1 adapter.
    """
    if not (out / STATE).exists():
        (out / "adapter.json").unlink(missing_ok=True)
        step1 = Path(options.init) if options.init else Path(options.adapter) / "init" if options.adapter else None
        if step1 is None or step1.resolve() != (out / "init").resolve():
            shutil.rmtree(out / "init", ignore_errors=True)
        keep_step1(options.init, options.adapter, out)
    about = {"base_name": Path(options.model).name, "data": options.data, "steps": step, "seed": options.seed}
    save_adapter(out, model, method, options.n, **about)


def next_step(options, method: Method, out: Path) -> str:
    """The command to type after a training: train.py on top of a step-1 adapter, or chat.py with the adapter in out."""
    common = {"model": None if options.model == str(TINY) else options.model, "template": options.template}
    if method.name == "full":
        return next_command("train.py", **common, data=options.data, init=out)
    from_file = options.method if is_from_file(method) else None
    return next_command("chat.py", **common, method=from_file, adapter=out)
