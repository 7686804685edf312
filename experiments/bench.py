"""Speed compared with the machine's own limits: training, decoding at batch 1, serving many (paper: table 1).

    python -m experiments.bench --model random:7b                     # all of it, on a GPU
    python -m experiments.bench --model random:1m --what train        # or decode, serve; on a CPU with smaller shapes
    python -m experiments.bench --model smollm2 --what steps --profile    # training of a small model, by kernel
    python -m experiments.bench --model smollm2 --what chat --device cpu

First come the machine's limits: the rate of one large matrix product, and of one large copy, bytes read and written.
Each figure is then compared with its value at that limit. Training: 4 operations per weight and token (forward, and
backward to the input, since W is frozen). Decoding: all weights, and all keys and values, are read once per token.
Serving: whichever of the two takes longer, for the input and for each token.

Training is measured in whole optimizer steps of 128 samples, the paper's batch. A sample in MetaICL's shape has 16
contexts of 50 tokens with n = 8, an input of 40 and an output of 10; in DailyDialog's, 12 contexts of 15 with n = 2,
15 and 15. Serving takes an input of 50 tokens and generates 32, from a memory of 8 pairs (ccm-merge), 128 (ccm-concat)
or 800 (full context) that holds random numbers.

Two measurements are for small models. `steps` trains on one row full of samples; on a GPU, a CUDA graph replays it. A
chat has 12 contexts of 17 tokens, an input of 12 and an output of 10; a dialogue has DailyDialog's shape. Where every
turn is in the loss, each second context is an answer of weight 1, and other text has the weight 0.1. `host_ms` is the
time of one process to build the sequences and the row, `mask_ms` that of the device to find the blocks of the mask.
`chat` measures a conversation on a CPU, where the limit is the rate of reading memory with all cores.
"""

import argparse
import json
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.markup import escape
from torch import Tensor

from experiments.common import free_memory, seconds, synchronize
from minccm.extra.tables import new_table, print_table
from minccm.extra.training import PlainStep
from minccm.fast.conversations import Conversations
from minccm.fast.cpu_decode import CPUSession
from minccm.fast.fused import join_weights
from minccm.fast.step import LARGE as LARGE_MODEL
from minccm.fast.step import FastOptions, FastStep, parse_fast
from minccm.io import options as cli
from minccm.io.files import write_json
from minccm.io.options import whole
from minccm.io.weights import load_model, pair_bytes
from minccm.methods import COMP, PAD, SLOT, TEXT, Method, get_method
from minccm.model import Transformer
from minccm.sequence import Sequence, build_sequence
from minccm.session import Session

MEMORY_PAIRS = {"ccm-merge": 8, "ccm-concat": 128, "full": 800}  # KV pairs of memory to decode and serve from


@dataclass(frozen=True)
class Shape:
    """The shape of training samples, in tokens."""

    contexts: int
    context: int
    n: int
    input: int
    output: int

    @property
    def tokens(self) -> int:
        """Tokens of a sample, with BOS and COMP tokens."""
        return 1 + self.contexts * (self.context + self.n) + self.input + self.output


@dataclass(frozen=True)
class Sizes:
    """What is measured: large on a GPU, small on a CPU."""

    metaicl: Shape
    dialog: Shape
    batch: int  # samples per optimizer step
    max_tokens: int  # of one forward and backward pass
    row: int  # tokens of a row in `steps`
    n: int  # COMP tokens to compress a turn
    turn: int  # tokens of a turn to decode from, or to compress
    shrink: int  # MEMORY_PAIRS are divided by this
    query: int  # tokens of an input to serve
    answer: int  # tokens to generate


LARGE = Sizes(Shape(16, 50, 8, 40, 10), Shape(12, 15, 2, 15, 15), 128, 16384, 32768, 8, 50, 1, 50, 32)
SMALL = Sizes(Shape(4, 12, 2, 10, 5), Shape(3, 5, 2, 5, 5), 4, 512, 1024, 2, 10, 8, 10, 4)
DECODED = 32  # tokens over which decoding is timed
WHAT = "train", "steps", "decode", "chat", "serve"


@dataclass(frozen=True)
class Training:
    """A training of a small model."""

    name: str
    method: Method
    n: int
    every_turn: bool = False  # each second context is an answer of weight 1; other text has the weight CONTEXT_LOSS
    distill: float = 0.0


TRAININGS = [
    Training("step 1", replace(get_method("full"), conditional=False), 0),
    Training("ccm-concat", get_method("ccm-concat"), 2),
    Training("ccm-concat, every turn, distillation", get_method("ccm-concat"), 2, True, 1.0),
    Training("ccm-merge", get_method("ccm-merge"), 8),
]
STEP_SHAPES = {"chat": Shape(12, 17, 2, 12, 10), "dialog": LARGE.dialog}  # n is that of the Training
CONTEXT_LOSS = 0.1


def arguments() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=cli.name, default="random:1m", help="base model, or random weights: random:1b, random:7b, ...")
    add("--what", default="all", choices=["all", *WHAT], help="what to measure")
    add("--max-tokens", type=whole(1), default=None, help="tokens of one forward pass in training")
    add("--shape", default="chat", choices=[*STEP_SHAPES], help="of the samples in `steps`")
    add("--only", type=str, default="", help="only those of `steps` whose name contains this text")
    add("--profile", action="store_true", help="also print the time of one of the `steps` by kernel")
    add("--device", type=cli.name, default="auto", help="cuda, cpu or auto")
    add("--dtype", default="auto", choices=["auto", *cli.DTYPES], help="of the base model's weights")
    add("--json", type=Path, default=None, help="write the rows there")
    return parser.parse_args()


def machine_limits(device: torch.device, dtype: torch.dtype) -> dict:
    """The machine's own rates: FLOP/s of a matrix product, bytes/s of a copy (read and written)."""
    size, count = (8192, 2**31) if device.type == "cuda" else (1024, 2**25)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    flops = 2 * size**3 / seconds(lambda: a @ b, 10)
    x = torch.empty(count // 2, dtype=torch.float16, device=device).normal_()
    y = torch.empty_like(x)
    return {"flops": flops, "bytes": 2 * x.nbytes / seconds(lambda: y.copy_(x), 10)}


def matrix_weights(model: Transformer) -> int:
    """How many weights each token is multiplied with: the layers' matrices, without vocabulary and adapter."""
    matrices = [p for name, p in model.layers.named_parameters() if p.ndim == 2 and "lora" not in name]
    return sum(matrix.numel() for matrix in matrices)


def weight_bytes(model: Transformer) -> int:
    """Bytes of weights that are read for a token: the matrices of all layers, and the vocabulary projection."""
    return (matrix_weights(model) + model.lm_head.weight.numel()) * model.lm_head.weight.element_size()


def random_texts(model: Transformer, count: int, length: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (count, length), generator=generator).tolist()


# ------------------------------------------------------------------------------------------------------------ training


def random_sequences(
    model: Transformer, method: Method, shape: Shape, count: int, every_turn: bool = False
) -> list[Sequence]:
    """Samples of random tokens. The first context has one token more, in the place of BOS."""
    lengths = [shape.context + (t == 0) for t in range(shape.contexts)] + [shape.input, shape.output]
    loss = ([t % 2 * (shape.context - 1) for t in range(shape.contexts)], CONTEXT_LOSS) if every_turn else ()
    sequences = []
    for ids in random_texts(model, count, sum(lengths), seed=0):
        *contexts, input, output = (part.tolist() for part in torch.tensor(ids).split(lengths))
        sequences.append(build_sequence(method, shape.n, model.config.vocab_size, contexts, [(input, output)], *loss))
    return sequences


def training_step(
    model: Transformer, method: Method, sequences: list[Sequence], max_tokens: int, checkpoint: bool
) -> tuple[Callable[[], Tensor], int]:
    """The work of one optimizer step, as in train.py; and how many forward passes it has."""
    device = model.embed_tokens.weight.device
    if on_gpu := device.type == "cuda":
        options = FastOptions(compile=True, pack=True, prune=True, prefix=True, checkpoint=checkpoint)
        step = FastStep(model, method, options, max_tokens)
        step.batches.pad_multiple = 128  # the sequences are all of one length
    else:
        step = PlainStep(model, method, max_tokens)
    optimizer = torch.optim.AdamW(model.adapter_state().values(), lr=1e-4, weight_decay=0.0, fused=on_gpu)
    batches = [batch.to(device) for batch in step.batches(sequences)]
    total_weight = sum(float(x.loss_weights.sum()) for x in sequences)

    def work() -> Tensor:
        loss = step.backward(batches, total_weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return work, len(batches)


def bench_train(model: Transformer, limit: dict, sizes: Sizes, max_tokens: int) -> list[dict]:
    """Samples per second of training, in rows of about max_tokens tokens; the last case is for a small GPU."""
    rows, concat = [], "ccm-concat"
    cases = ("metaicl", concat, 1), ("metaicl", "ccm-merge", 1), ("dialog", concat, 1), ("metaicl", concat, 2)
    if not torch.cuda.is_available():
        cases = cases[:3]
    for name, method_name, parts in cases:
        method, shape, checkpoint = get_method(method_name), getattr(sizes, name), parts > 1
        model.add_adapter(shape.n, r=8, alpha=16, dropout=0.05)
        model.train()
        sequences = random_sequences(model, method, shape, sizes.batch)
        began = time.perf_counter()
        work, passes = training_step(model, method, sequences, max_tokens // parts, checkpoint)
        work()
        synchronize()
        compiled = time.perf_counter() - began
        reset_peak()
        rate = sizes.batch / seconds(work, 2, 0)
        best = limit["flops"] / (4 * matrix_weights(model) * shape.tokens)
        label = method_name + (", checkpoint" if checkpoint else "")
        row = {"bench": "train", "shape": name, "method": label, "batch": sizes.batch, "rows": passes}
        row |= {"first_s": compiled, "figure": rate, "unit": "samples/s", "limit": best, "share": rate / best}
        rows.append(show(row | peak()))
    return rows


# ------------------------------------------------------------------------------------------- training of a small model


def bench_steps(model: Transformer, limit: dict, max_tokens: int, shape: str, only: str, profile: bool) -> list[dict]:
    """Tokens per second of training on rows of max_tokens tokens, whose padding is not counted."""
    rows = []
    if profile and torch.cuda.is_available():  # the profiler must have started once before a graph is captured
        times_by_kernel(lambda: torch.ones(1, device="cuda"))
    for training in TRAININGS:
        if only in training.name:
            rows += attempt(training.name, bench_step, model, limit, max_tokens, training, shape, profile)
    return rows


def attempt(name: str, measure: Callable[..., dict], *inputs) -> list[dict]:
    """The row of a measurement. None if it fails: the error is printed, and others can follow."""
    try:
        return [show(measure(*inputs))]
    except Exception:
        print(f"{name} failed:\n{traceback.format_exc(limit=-6)}", flush=True)
        return []
    finally:
        torch._dynamo.reset()
        free_memory()


def bench_step(
    model: Transformer, limit: dict, max_tokens: int, training: Training, shape_name: str, profile: bool
) -> dict:
    """The row of one training."""
    device, shape = model.embed_tokens.weight.device, replace(STEP_SHAPES[shape_name], n=training.n)
    model.add_adapter(training.n, r=32, alpha=64)
    model.train()
    options = parse_fast("compile" if device.type == "cuda" else "pack", device, 0)
    step = FastStep(model, training.method, options, max_tokens, training.distill)
    tokens = len(random_sequences(model, training.method, shape, 1)[0])
    make = lambda: random_sequences(model, training.method, shape, (max_tokens - 1) // tokens, training.every_turn)
    sequences = make()
    step.fix_shapes([sequences])
    host = seconds(lambda: step.batches(make()), 3, 0)
    batches = [batch.to(device) for batch in step.batches(sequences)]
    weights = torch.cat([x.loss_weights for x in sequences])
    total_weight = float(weights.sum())
    optimizer = torch.optim.AdamW(model.adapter_state().values(), 1e-4, weight_decay=0.0, fused=device.type == "cuda")

    def work() -> None:
        step.backward(batches, total_weight)
        torch.nn.utils.clip_grad_norm_(step.trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    reset_peak()
    began, (warmup, repeat) = time.perf_counter(), (4, 10) if device.type == "cuda" else (1, 1)
    for _ in range(warmup):  # the third one captures a graph
        work()
    synchronize()
    first = time.perf_counter() - began
    took = seconds(lambda: [work() for _ in range(repeat)], min(repeat, 3), 0) / repeat
    mask = seconds(lambda: [step.blocks(batch) for batch in batches])
    if profile:
        show_profile(times_by_kernel(work), took, training.name)
    count = len(sequences) * tokens
    best = limit["flops"] / training_flops(model, training, sequences) * count
    row = {"bench": "step", "shape": shape_name, "method": training.name, "batch": len(sequences), "rows": len(batches)}
    row |= {"first_s": first, "host_ms": 1e3 * host, "mask_ms": 1e3 * mask, "step_ms": 1e3 * took}
    row |= {"loss_tokens": int((weights > 0).sum()), "figure": count / took, "unit": "tokens/s", "limit": best}
    return row | {"share": count / took / best} | peak()


def training_flops(model: Transformer, training: Training, sequences: list[Sequence]) -> float:
    """Operations of a step: 4 per frozen weight and token, 2 in the teacher; attention and LoRA are not counted.

    The vocabulary counts where there is a loss. The teacher reads no COMP tokens.
    """
    matrices, vocabulary = matrix_weights(model), model.lm_head.weight.numel()
    tokens, text = sum(map(len, sequences)), sum(int(x.info.is_text.sum()) for x in sequences)
    weights = torch.cat([x.loss_weights for x in sequences])
    flops = 4 * (matrices * tokens + vocabulary * int((weights > 0).sum()))
    if training.distill:
        flops += 2 * (matrices * text + vocabulary * int((weights >= 1).sum()))
    return flops


def times_by_kernel(work: Callable[[], object]) -> list[tuple[str, int, float]]:
    """Kernels of some work (on a CPU, operations): name, calls, ms in total."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        synchronize()
    if not torch.cuda.is_available():
        return [(x.key, x.count, x.self_cpu_time_total / 1e3) for x in profiler.key_averages()]
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        return kernels_of_trace(json.loads(Path(folder, "trace.json").read_text("utf-8", "replace")))


def kernels_of_trace(trace: dict) -> list[tuple[str, int, float]]:
    """The kernels and copies in a trace of torch.profiler, which has microseconds."""
    calls, total = Counter(), Counter()
    for event in trace["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            calls[event["name"]] += 1
            total[event["name"]] += event["dur"] / 1e3
    return [(name, count, total[name]) for name, count in calls.items()]


def show_profile(found: list[tuple[str, int, float]], took: float, title: str, most: int = 25) -> None:
    """Prints the kernels that take longest, and their total, compared with the `took` seconds of a step."""
    total = sum(ms for _, _, ms in found)
    calls = sum(count for _, count, _ in found)
    about = f"{title}: {calls} kernels, {total:.2f} ms of {1e3 * took:.2f} ms a step"
    out = new_table(about, "kernel", "calls", "ms", "share")
    for name, count, ms in sorted(found, key=lambda row: -row[2])[:most]:
        name = name.removeprefix("void ").replace("at::native::", "")
        name = name if len(name) <= 52 else f"{name[:36]}..{name[-14:]}"
        out.add_row(escape(name), str(count), f"{ms:.3f}", f"{100 * ms / max(total, 1e-9):.1f}%")
    print_table(out)


# --------------------------------------------------------------------------------------------------- chatting on a CPU


def bench_chat(model: Transformer) -> list[dict]:
    """Tokens per second of an answer and ms to read a turn, in fp32 and bf16; the most memory of the process so far."""
    rows, own = [], model.embed_tokens.weight.dtype
    rate = read_rate()
    print(f"memory is read at {rate / 1e9:.1f} GB/s; bf16 instructions: {cli.has_bf16()}", flush=True)
    model.eval()
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        join_weights(model)
        flops = machine_limits(torch.device("cpu"), dtype)["flops"]
        for name, n in (("full", 0), ("ccm-concat", 4), ("ccm-merge", 16)):
            model.add_adapter(n, r=64)
            for kind in (Session, CPUSession):
                rows += attempt(f"a turn, {name}", chat_turn, kind, model, get_method(name), n, rate, flops)
        model.add_adapter(4, r=64)
        for kind in (Session, CPUSession):
            rows += attempt(f"answer, {kind.__name__}", chat_answer, kind, model, rate)
    model.to(own)
    join_weights(model)
    return rows


def read_rate() -> float:
    """Bytes per second of reading memory with all threads: the best of three passes over 256 MiB."""
    x = torch.ones(2**26)
    return x.nbytes / min(seconds(lambda: x.sum(), 1, 1) for _ in range(3))


CHAT = STEP_SHAPES["chat"]


def chat_answer(kind: type[Session], model: Transformer, rate: float) -> dict:
    """Tokens per second of an answer after 12 contexts. All weights are read once per token."""
    session = kind(model, get_method("ccm-concat"), 4)
    texts = random_texts(model, CHAT.contexts + 1, CHAT.context)
    with torch.no_grad():
        for text in texts[1:]:
            session.read(text)
    time_of = lambda count: seconds(lambda: list(session.generate(texts[0], count, stop_ids=())), 3, 1)
    took = (time_of(DECODED + 1) - time_of(1)) / DECODED
    best = rate / (weight_bytes(model) + len(session.memory) * pair_bytes(model))
    row = {"bench": "chat", "shape": dtype_of(model), "method": f"answer, {kind.__name__}"}
    row |= {"pairs": len(session.memory), "figure": 1 / took, "unit": "tokens/s", "limit": best}
    return row | {"share": 1 / took / best, "peak_gib": peak_of_process()}


@torch.no_grad()
def chat_turn(kind: type[Session], model: Transformer, method: Method, n: int, rate: float, flops: float) -> dict:
    """ms to read a turn and to compress it, in the mean of 8 turns."""
    texts = random_texts(model, 8, CHAT.context)

    def read() -> None:
        session = kind(model, method, n)
        for text in texts:
            session.read(text)

    took = seconds(read, 3, 1) / len(texts)
    matrices, tokens = matrix_weights(model), CHAT.context + n
    best = max(matrices * model.lm_head.weight.element_size() / rate, 2 * matrices * tokens / flops)
    row = {"bench": "chat", "shape": dtype_of(model), "method": f"a turn, {method.name}, n = {n}, {kind.__name__}"}
    row |= {"figure": 1e3 * took, "unit": "ms/turn", "limit": 1e3 * best}
    return row | {"share": best / took, "peak_gib": peak_of_process()}


def dtype_of(model: Transformer) -> str:
    return str(model.embed_tokens.weight.dtype).removeprefix("torch.")


def peak_of_process() -> float:
    """GiB of the process at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# ------------------------------------------------------------------------------------------------ decoding and serving


def fill(talks: Conversations, pairs: int) -> None:
    """Gives each conversation a memory of `pairs` pairs of random numbers."""
    for buffer in (talks.keys, talks.values):
        for layer in buffer:
            layer.normal_()
    talks.reset()
    info, held = talks.info, slice(pairs)
    info.kind[:, held] = SLOT if talks.method.merge_rate else COMP if talks.method.comp_after else TEXT
    info.step[:, held], info.slot[:, held], info.question[:, held] = 0, -1, 0
    info.order[:, held] = torch.arange(pairs, device=talks.device)
    talks.step[:], talks.text[:], talks.tokens[:] = 1, pairs, pairs
    assert int((info.kind != PAD).sum()) == talks.batch * pairs


def bench_decode(model: Transformer, limit: dict, sizes: Sizes) -> list[dict]:
    """Batch 1: ms per token by memory; and ms to compress a turn, compared with a plain pass over as many tokens."""
    model.add_adapter(sizes.n)
    model.eval()
    rows = [decode(model, limit, get_method(name), pairs, sizes) for name, pairs in MEMORY_PAIRS.items()]
    rows.append(decode_plainly(model, limit, get_method("ccm-concat"), sizes))
    return rows + [compress(model, get_method(name), sizes) for name in ("ccm-concat", "ccm-merge")]


def decode(model: Transformer, limit: dict, method: Method, pairs: int, sizes: Sizes) -> dict:
    """ms per token of an output."""
    pairs //= sizes.shrink
    talks = Conversations(model, method, 0, 1, pairs, sizes.turn, DECODED + 1)
    fill(talks, pairs)
    texts = random_texts(model, 1, sizes.turn)
    first = seconds(lambda: talks.logits(texts))
    took = (seconds(lambda: talks.generate(texts, DECODED + 1, stop_ids=())) - first) / DECODED
    return show(token_row(model, limit, method.name, pairs, sizes.turn, took) | {"input_ms": 1e3 * first})


@torch.no_grad()
def decode_plainly(model: Transformer, limit: dict, method: Method, sizes: Sizes) -> dict:
    """The same with session.Session, which compiles nothing: ms per token after 16 contexts."""
    session, (text,) = Session(model, method, sizes.n), random_texts(model, 1, sizes.turn)
    for _ in range(16):
        session.read(text)
    time_of = lambda count: seconds(lambda: list(session.generate(text, count, stop_ids=())))
    took = (time_of(DECODED + 1) - time_of(1)) / DECODED
    return show(token_row(model, limit, f"{method.name}, Session", len(session.memory), sizes.turn, took))


def token_row(model: Transformer, limit: dict, name: str, pairs: int, turn: int, took: float) -> dict:
    """The row of a token that takes `took` seconds, compared with reading all that it needs."""
    best = (weight_bytes(model) + (pairs + turn + DECODED / 2) * pair_bytes(model)) / limit["bytes"]
    row = {"bench": "decode", "method": name, "pairs": pairs, "figure": 1e3 * took, "unit": "ms/token"}
    return row | {"limit": 1e3 * best, "share": best / took}


def compress(model: Transformer, method: Method, sizes: Sizes) -> dict:
    """ms to compress one turn, of 16. The limit here is a forward pass of as many tokens by the same code."""
    n, turn, turns = sizes.n, sizes.turn, 16
    talks = Conversations(model, method, n, 1, turns * n, turn, DECODED)
    text = random_texts(model, 1, turn)

    def read() -> None:
        talks.reset()
        for _ in range(turns):
            talks.read(text)

    took = seconds(read, 10) / turns
    plain = Conversations(model, method, n, 1, turns * n, turn + n, 1)
    as_many = random_texts(model, 1, turn + n)
    best = seconds(lambda: plain.logits(as_many), 10)
    row = {"bench": "decode", "method": f"compress, {method.name}", "figure": 1e3 * took, "unit": "ms/turn"}
    return show(row | {"limit": 1e3 * best, "share": best / took})


def bench_serve(model: Transformer, limit: dict, sizes: Sizes) -> list[dict]:
    """Samples per second, by memory and batch."""
    rows = []
    model.eval()
    for name, pairs in MEMORY_PAIRS.items():
        pairs //= sizes.shrink
        for batch in batch_sizes(model, pairs + sizes.query + sizes.answer):
            free_memory()
            rows.append(serve(model, limit, get_method(name), batch, pairs, sizes))
    return rows


def serve(model: Transformer, limit: dict, method: Method, batch: int, pairs: int, sizes: Sizes) -> dict:
    """Samples per second of one batch."""
    query, answer = sizes.query, sizes.answer
    talks = Conversations(model, method, 0, batch, pairs, query, answer)
    fill(talks, pairs)
    texts = random_texts(model, batch, query)
    reset_peak()
    took = seconds(lambda: talks.generate(texts, answer, stop_ids=()), 2, 1)
    compute = 2 * matrix_weights(model) / limit["flops"]  # seconds per token
    best = compute * query + max(compute, weight_bytes(model) / limit["bytes"] / batch) * answer
    best += sum(pairs + query + i for i in range(answer)) * pair_bytes(model) / limit["bytes"]
    row = {"bench": "serve", "method": method.name, "pairs": pairs, "batch": batch, "figure": batch / took}
    return show(row | {"unit": "samples/s", "limit": 1 / best, "share": best / (took / batch)} | peak())


def batch_sizes(model: Transformer, pairs: int) -> list[int]:
    """Batch sizes to try: about what fits into memory with the weights, and half of that; 1,024 at most."""
    if not torch.cuda.is_available():
        return [2]
    space = 0.8 * (torch.cuda.get_device_properties(0).total_memory - sum(p.nbytes for p in model.parameters()))
    most = min(1024, int(space / (pairs * pair_bytes(model) + 8 * model.config.dim * 50)))
    return sorted({max(1, most // 32 * 32), max(1, most // 64 * 32)}, reverse=True)


# ---------------------------------------------------------------------------------------------------------- the report


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict:
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}


DETAILS = "peak_gib", "first_s", "input_ms", "step_ms", "host_ms", "mask_ms", "loss_tokens"


def show(row: dict) -> dict:
    """Prints a row at once."""
    of = ", ".join(str(row[key]) for key in ("shape", "method", "pairs", "batch") if key in row)
    more = "".join(f", {key} {row[key]:.1f}" for key in DETAILS if key in row)
    print(f"{row['bench']}: {of}: {row['figure']:.2f} {row['unit']} ({100 * row['share']:.0f}%){more}", flush=True)
    return row


def show_table(rows: list[dict], title: str) -> None:
    """Prints all rows."""
    table = new_table(title, "figure", "pairs", "batch", "measured", "", "limit", "share")
    table.columns[4].justify = "left"
    for row in rows:
        what = " ".join(str(row[key]) for key in ("bench", "shape", "method") if row.get(key))
        figures = [f"{row[key]:,.0f}" if row[key] >= 1000 else f"{row[key]:.4g}" for key in ("figure", "limit")]
        cells = [str(row.get(key, "")) for key in ("pairs", "batch")]
        table.add_row(what, *cells, figures[0], row["unit"], figures[1], f"{100 * row['share']:.0f}%")
    print_table(table)


def parts_of_all(model: Transformer, device: torch.device) -> tuple[str, ...]:
    """What "all" measures: `steps` and, on a CPU, `chat` for a small model; the paper's batches for a large one."""
    if sum(p.numel() for p in model.parameters()) > LARGE_MODEL:
        return "train", "decode", "serve"
    return ("steps", "decode", "serve") if device.type == "cuda" else ("steps", "chat", "decode", "serve")


def bench(
    what: str, model: Transformer, max_tokens: int | None = None, shape="chat", only="", profile=False
) -> list[dict]:
    """The rows of one measurement, or of "all". Prints them as they come, and at the end as a table."""
    weight = model.embed_tokens.weight
    device, dtype = weight.device, weight.dtype
    sizes = SMALL if device.type == "cpu" else LARGE
    limit = machine_limits(device, dtype)
    title = f"the machine: {limit['flops'] / 1e12:.3g} TFLOP/s, {limit['bytes'] / 1e12:.3g} TB/s"
    print(title, flush=True)
    free_memory()
    join_weights(model)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rows = [{"bench": "machine", "device": name, "dtype": str(dtype).removeprefix("torch.")} | limit]
    parts = parts_of_all(model, device) if what == "all" else (what,)
    if "train" in parts:
        rows += bench_train(model, limit, sizes, max_tokens or sizes.max_tokens)
        if device.type == "cuda":
            torch._dynamo.reset()
    if "steps" in parts:
        rows += bench_steps(model, limit, max_tokens or sizes.row, shape, only, profile)
    if "chat" in parts:
        rows += bench_chat(model)
    if "decode" in parts:
        rows += bench_decode(model, limit, sizes)
    if "serve" in parts:
        rows += bench_serve(model, limit, sizes)
    show_table(rows[1:], title)
    return rows


def main() -> None:
    options = arguments()
    model = load_model(options.model, *cli.device_and_dtype(options))
    rows = bench(options.what, model, options.max_tokens, options.shape, options.only, options.profile)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    cli.run(main)
