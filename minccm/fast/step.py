"""The training step in its fast form: one optimizer step's samples to a loss and gradients.

    fast = parse_fast("auto", device, parameters)           # None: the plain form, extra.training.PlainStep
    step = FastStep(model, method, fast)
    batches = step.batches(sequences)                       # on the CPU, in the workers of a data loader
    loss = step.backward(batches, total_weight)             # gradients are added to p.grad of what trains

Both forms have the same methods and give the same numbers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from minccm.fast import distributed
from minccm.fast.block_mask import Blocks, batch_blocks
from minccm.fast.driver import PackedForward
from minccm.fast.fused import join_weights
from minccm.fast.graphs import Replayed
from minccm.fast.loss import chunked_loss, weighted_loss
from minccm.fast.packing import NO_MIN_SIZES, PackedBatch, fill_rows, pack_rows
from minccm.fast.sparse_merge import Mixture, mixed_weights
from minccm.methods import METHODS, Method
from minccm.model import Transformer
from minccm.sequence import Sequence, bucket_by_length

LARGE = 5e8  # parameters; compiling pays from here on
LARGE_VOCABULARY = 16384  # pieces; logits of fewer are no large tensor, and a CPU is faster without chunks
MAX_ROW = 65536  # tokens of one forward pass, at most


@dataclass(frozen=True)
class FastOptions:
    """Which ideas the fast form uses, each where the device and the method allow it."""

    compile: bool = False  # compile the blocks
    pack: bool = False  # rows without padding; on a GPU under FlexAttention's block mask
    prune: bool = False  # leave out what the last layer does not need
    prefix: bool = False  # the first context's text runs under no_grad
    replay: bool = False  # the whole step as one CUDA graph; all steps then have one shape
    checkpoint: bool = False  # keep only the inputs of blocks, and compute the rest again: less memory
    fsdp: bool = False  # spread the base model over all GPUs


def parse_fast(text: str, device: torch.device, parameters: float) -> FastOptions | None:
    """The options that a text asks for; None for the plain form. parameters: how many the model has.

    "off": the plain form. "auto": the fast form, which prunes. On a GPU it also packs; the blocks of large models are
    compiled, and the step of small ones is replayed as one CUDA graph, which starts sooner. Otherwise "auto" with
    changes: names of FastOptions, or no-NAME, with commas between. Raises ValueError.
    """
    names = [field.name for field in fields(FastOptions)]
    if text == "off":
        return None
    asked = {}
    for word in text.split(","):
        name = word.removeprefix("no-")
        if name not in names and word != "auto":
            choices = f"auto, off, or names with commas between: {', '.join(names)}, or no-NAME"
            raise ValueError(f"--fast {word!r:.40} is unknown: choose {choices}")
        asked[name] = name == word
    on_gpu = device.type == "cuda"
    large = on_gpu and parameters > LARGE
    compile = asked.get("compile", large)
    pack = asked.get("pack", on_gpu and (compile or not large))
    replay = pack and on_gpu and not large
    defaults = {"compile": compile, "pack": pack, "prune": True, "prefix": pack, "replay": replay}
    return FastOptions(**{name: asked.get(name, defaults.get(name, False)) for name in names})


def teacher_method(method: Method) -> Method:
    """The teacher of distillation: text attends to all earlier text and to no COMP token, which is full context."""
    return replace(method, attends=METHODS["full"].attends, merge_rate=None, learned=(), conditional=True)


@dataclass
class Packing:
    """Makes the batches of a step, in the workers of a data loader. It knows nothing of the model."""

    method: Method
    options: FastOptions
    max_tokens: int | None  # of one forward pass; None: not known before fix_shapes
    pad_multiple: int
    min_sizes: tuple[int, ...] = NO_MIN_SIZES

    def __call__(self, sequences: list[Sequence]) -> list[PackedBatch]:
        """Packed rows of one shape, each as a batch; or, without packing, padded batches of like lengths."""
        lengths, max_tokens = [len(x) for x in sequences], self.max_tokens or MAX_ROW
        parts = {"prefix": self.options.prefix, "prune": self.options.prune}
        if self.options.pack:
            rows = fill_rows(lengths, max_tokens, self.pad_multiple)
            rows = [[sequences[i] for i in row] for row in rows]
            return pack_rows(self.method, rows, self.pad_multiple, self.min_sizes, **parts).split()
        buckets = bucket_by_length(lengths, max_tokens)
        return [pack_rows(self.method, [[sequences[i]] for i in bucket], **parts) for bucket in buckets]


class FastStep:
    """The fast form: packed batches through driver.PackedForward."""

    def __init__(
        self,
        model: Transformer,
        method: Method,
        options: FastOptions,
        max_tokens: int | None = None,
        distill: float = 0.0,
        context_loss: float = 0.0,
    ):
        self.model, self.method, self.distill = model, method, distill
        self.device = device = model.embed_tokens.weight.device
        frozen = not model.embed_tokens.weight.requires_grad
        replay = options.replay and options.pack and frozen and device.type == "cuda"
        replay &= not (options.checkpoint or method.learned or distributed.joined())
        # FlexAttention is compiled for each shape, which pays if there is one shape, or if all else is compiled, too
        pack = options.pack and (replay or options.compile or not (options.replay and device.type == "cuda"))
        # a graph has one shape; with fsdp, all processes need as many passes
        prefix = options.prefix and pack and frozen and not replay and not options.fsdp
        self.options = options = replace(options, pack=pack, replay=replay, prefix=prefix)
        self.flex = options.pack and device.type == "cuda"  # FlexAttention has no backward pass on a CPU
        if frozen and not options.fsdp:
            join_weights(model)
        self.forward = PackedForward(model, options.compile, self.flex, options.checkpoint, options.fsdp)
        self.largest = max_tokens or _max_tokens(model, options, context_loss)
        max_tokens = max_tokens if replay else self.largest
        self.batches = Packing(method, options, max_tokens, max(128, (max_tokens or 0) // 8 // 128 * 128))
        # the loss in chunks, for a large vocabulary; fsdp has W of lm_head only during a forward pass
        self.chunked = frozen and not options.fsdp and model.config.vocab_size >= LARGE_VOCABULARY
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.replayed = Replayed(self._gradients)

    def fix_shapes(self, steps: Iterable[list[Sequence]]) -> None:
        """Gives the batches of all steps one shape, if a graph replays them: the largest of these steps, and some more.

        Call it with the sequences of a few of the longest steps, before a data loader copies `batches`.
        """
        if not self.options.replay:
            return
        steps, packing = list(steps), self.batches
        if packing.max_tokens is None:
            needed = max(sum(map(len, sequences)) for sequences in steps)
            packing.max_tokens = min(self.largest, -(-int(1.1 * needed) // 1024) * 1024)
        packing.pad_multiple = packing.max_tokens
        sizes = [batch.sizes for sequences in steps for batch in packing(sequences)]
        packing.min_sizes = tuple(map(max, zip(*sizes)))

    def token_count(self, batches: list[PackedBatch]) -> int:
        """Tokens of the batches, with padding."""
        return sum(batch.token_count for batch in batches)

    def backward(self, batches: list[PackedBatch], total_weight: float, mixture: Mixture | None = None) -> Tensor:
        """The loss () of a step: the weighted sum over tokens, divided by total_weight. Adds its gradients to p.grad.

        mixture: merge by the weighted sum of these methods' merge weights, not by the method's own.
        """
        batches, total = self._on_device(batches), torch.zeros((), device=self.device)
        blocks = [self.blocks(batch) for batch in batches]  # before all else, as the CPU waits for the GPU here
        for batch, of_batch in zip(batches, blocks):
            weights = mixture and mixed_weights(mixture, batch.merge_index.shape[2], self.device)
            if self.options.replay:
                divisor = torch.full((), total_weight, device=self.device)
                loss, *gradients = self.replayed(batch, divisor, weights, *of_batch)
                for p, gradient in zip(self.trained, gradients):
                    p.grad = gradient if p.grad is None else p.grad.add_(gradient)
            else:
                loss = self.loss(batch, weights, *of_batch) / total_weight
                loss.backward()
            total = total + loss.detach()
        return total

    def _on_device(self, batches: list[PackedBatch]) -> list[PackedBatch]:
        """The batches on the device. With fsdp, batches without a loss follow: all processes need as many passes."""
        if self.options.fsdp:
            last = batches[-1]
            idle = replace(last, loss_weights=torch.zeros_like(last.loss_weights), last=None)
            batches = batches + [idle] * (int(distributed.all_reduce(len(batches), "MAX")) - len(batches))
        return [batch.to(self.device) for batch in batches]

    def loss(self, batch: PackedBatch, weights: Tensor | None = None, *blocks) -> Tensor:
        """loss.weighted_loss of one batch. weights: merge by these. blocks: as `blocks` returns them, if known."""
        of_student, of_teacher = blocks or ((None,) * 3, (None,) * 3)
        output = self.forward(self.method, batch, of_student, weights, hidden=self.chunked)
        teacher, about = None, (batch.labels.flatten(), batch.loss_weights.flatten())
        if self.distill:
            with torch.no_grad():
                teacher = self.forward(*self._teacher(batch), of_teacher, lora=False, hidden=self.chunked)
        if not self.chunked:
            return weighted_loss(output, *about, teacher, self.distill)
        compile = self.options.compile and output.is_cuda
        return chunked_loss(output, self.model.lm_head.weight, *about, teacher, self.distill, compile)

    @torch.no_grad()
    def held_out_loss(self, batches: list[PackedBatch]) -> float:
        """Weighted mean cross-entropy in nats, without dropout and distillation."""
        distill, self.distill = self.distill, 0.0
        self.model.eval()
        total = sum(float(self.loss(batch)) for batch in self._on_device(batches))
        self.model.train()
        self.distill = distill
        return total / sum(float(batch.loss_weights.sum()) for batch in batches)

    def _teacher(self, batch: PackedBatch) -> tuple[Method, PackedBatch]:
        """The teacher's method and batch: its last layer reads the contexts, too."""
        return teacher_method(self.method), replace(batch, last=None)

    def blocks(self, batch: PackedBatch) -> tuple[tuple[Blocks | None, ...], ...]:
        """block_mask.batch_blocks for the student and for the teacher, where FlexAttention needs them."""
        nothing = (None,) * 3
        if not self.flex:
            return nothing, nothing
        teacher = batch_blocks(*self._teacher(batch)) if self.distill else nothing
        return batch_blocks(self.method, batch), teacher

    def _gradients(self, batch: PackedBatch, divisor: Tensor, weights: Tensor | None, *blocks) -> tuple[Tensor, ...]:
        """The loss and the gradients of what trains, for a graph."""
        loss = self.loss(batch, weights, *blocks) / divisor
        return loss.detach(), *torch.autograd.grad(loss, self.trained, materialize_grads=True)


def _max_tokens(model: Transformer, options: FastOptions, context_loss: float) -> int:
    """How many tokens a forward and backward pass may have: a power of two, by the free memory of the GPU."""
    weight, config = model.embed_tokens.weight, model.config
    if weight.device.type == "cpu":
        return 2048
    heads = 2 * config.n_heads + 2 * config.n_kv_heads  # queries, output, keys, values
    block = 2 * config.dim + heads * config.head_dim + 2 * config.ffn_dim  # numbers kept per token and block
    kept = config.n_layers * config.dim + block if options.checkpoint else config.n_layers * block
    kept *= 1.0 if options.compile else 2.5  # a compiled block computes some of it again
    kept += 4 * config.vocab_size if context_loss else 0
    free = torch.cuda.mem_get_info()[0]
    return min(MAX_ROW, max(2048, 2 ** int(math.log2(0.6 * free / (kept * weight.element_size())))))
