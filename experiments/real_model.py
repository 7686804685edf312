"""The paper on a real model: step 1, an adapter for each method and seed, and their table (paper: tables 18, 23 to 25).

    python -m experiments.real_model --data dailydialog --data-dir DATA --out runs/real       # DailyDialog on SmolLM2
    python -m experiments.real_model --data icl,persona --out runs/tasks                      # demonstrations, profiles
    python -m experiments.real_model --data dailydialog --data-dir DATA --n 1 2 4 8 --methods ccm-concat --out runs/n
    python -m experiments.real_model --data dailydialog --data-dir DATA --model BASE --out runs/small
    python -m experiments.scale runs/real runs/n runs/small                                   # one table of such runs

Step 1 is a plain LoRA on full context. Then each adapter learns to predict from its memory, and is evaluated on all
test samples. A finished stage does not run again: an adapter is finished when its folder has rows.json. --budget stops
before a stage that would take too long; the same command continues later. The table has all that is finished.

Of dialogues, every turn is an output. After each context c(t) a question asks for turn t + 2, with turn t + 1 as its
input, as the evaluation does. So one sequence trains all time steps of a dialogue:

    c(1) COMP [c(2) c(3)] c(2) COMP [c(3) c(4)] c(3) COMP ...           [input output]: no later token attends to it
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import data
from data import dailydialog, prepared
from data.encode import Encoder, encode_within, encoder
from experiments.common import free_memory, synchronize
from experiments.reproduce import METHODS, markdown
from minccm.extra import evaluate
from minccm.extra.evaluate import BASELINES, Evaluator, Run
from minccm.fast.step import FastStep, parse_fast
from minccm.io import options as cli
from minccm.io.adapters import keep_step1, save_adapter
from minccm.io.files import make_folder, write_json, write_tensors, write_text
from minccm.io.options import name, open_base, real, whole
from minccm.io.templates import choose_template
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import read_json
from minccm.methods import TEXT, Method, TokenInfo, get_method
from minccm.model import Transformer
from minccm.sequence import Sequence, build_sequence, step_rows

N = 2  # COMP tokens per step; an adapter with another number is named so
WARMUP = 0.03  # of the training
WARM = 4  # steps until a CUDA graph is captured
TURNS = 16  # of a dialogue in training: time step 12 takes 15
COUNTED = 8  # training steps whose sizes are counted, to fix the shapes of all
MEASURED = 100  # samples whose memory is measured
COMPILING = 70  # seconds, about, that the first adapter of a method waits for the compiler


def arguments():
    parser = cli.OneLineParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=name, default="smollm2", help="base model: a folder, a .gguf file, or smollm2")
    add("--n", type=whole(1, 1024), nargs="+", default=[N], help="COMP tokens per step")
    add("--template", type=name, default=None, help="chat template; by default the one in the model's files")
    add("--seed", type=whole(0, 2**31 - 1), default=0, help="of step 1 and of the test samples")
    add("--device", type=name, default="auto", help="cuda, cpu or auto")
    add("--dtype", default="auto", choices=["auto", *cli.DTYPES], help="of the base model's weights")
    add("--data", type=name, default="dailydialog", help="names as in train.py, or prepared folders")
    add("--data-dir", type=Path, help="a folder with the original DailyDialog in dailydialog/, and llama/")
    add("--out", type=name, default="runs/real", help="output folder")
    add("--methods", type=name, default=",".join(METHODS), help="with adapters; none and full are always there")
    add("--seeds", type=name, default="0,1,2", help="of the adapters")
    add("--steps", type=whole(1), default=2000, help="optimizer steps of an adapter at most")
    add("--seconds", type=real(0, 1e6, above=True), default=150, help="training of an adapter at most, after compiling")
    add("--step1-steps", type=whole(1), default=350, help="optimizer steps of step 1")
    add("--scale", type=real(0, 100, above=True), default=1.0, help="both numbers of steps are multiplied by this")
    add("--tokens", type=whole(256, 2**20), default=12288, help="of a training step")
    add("--lr", type=real(0, 10), default=1e-3, help="peak learning rate of an adapter")
    add("--r", type=whole(1, 4096), default=64, help="rank of an adapter; alpha is twice as much")
    add("--step1-lr", type=real(0, 10), default=5e-4, help="peak learning rate of step 1")
    add("--step1-r", type=whole(1, 4096), default=32, help="rank of step 1; alpha is twice as much")
    add("--distill", type=real(0, 1e3), default=2.0, help="weight of KL from the full-context model's predictions")
    add("--context-loss", type=real(0, 1e3), default=0.0, help="loss weight of contexts, predicted from memory only")
    add("--merge-after-concat", action="store_true", help="ccm-merge begins as the ccm-concat of its seed and n")
    add("--budget", type=real(0, 1e9, above=True), default=1e9, help="seconds of this call, about")
    add("--samples", type=whole(0, 10**7), default=0, help="test samples per time step; 0: all, or 200 generated ones")
    add("--time-steps", type=whole(0, 4096), nargs="+", help="numbers of contexts in the table")
    add("--max-tokens", type=whole(1, 2**24), help="tokens of one forward pass in evaluation")
    add("--fast", type=name, default="compile,no-prune", help="see train.py; on a CPU pack,no-prune")
    add("--workers", type=whole(0, 256), default=14, help="processes that make the batches, on a GPU")
    return parser.parse_args()


def build_turns(
    method: Method,
    n: int,
    vocab_size: int,
    contexts: list[list[int]],
    questions: list[tuple[list[int], list[int]]],
    context_loss: float = 0.0,
) -> Sequence:
    """The sequence of a dialogue: after each context comes its question (input, output).

    The loss covers all outputs. Contexts have the loss weight context_loss.
    """
    tokens, positions, loss_weights, info, slots, text = [], [], [], [], [], 0

    def add(ids: list[int], step: int, question: int, weights: list[float]) -> None:
        offsets, of_step, new_slots = step_rows(method, n, len(ids), step, len(tokens), question)
        comp = len(offsets) - len(ids)
        tokens.extend(ids + [vocab_size + j for j in range(comp)])
        positions.extend(text + offset for offset in offsets)
        loss_weights.extend(weights[1:] + [0.0] * (comp + 1))  # the weight of a token goes where it is predicted
        info.extend(of_step)
        slots.extend(new_slots)

    for step, (context, (input, output)) in enumerate(zip(contexts, questions)):
        add(context, step, 0, [context_loss] * len(context))
        text += len(context)
        add(input + output, step + 1, step + 1, [0.0] * len(input) + [1.0] * len(output))
    info, slots = TokenInfo.from_rows(info), TokenInfo.from_rows(slots)
    return Sequence(torch.tensor(tokens), torch.tensor(positions), torch.tensor(loss_weights), info, slots)


@dataclass
class Source:
    """Training sequences of one method: sample number `index` of a seed."""

    names: str
    method: Method
    n: int
    encode: Encoder
    config: object
    context_loss: float = 0.0

    def __post_init__(self):
        self.parts = []  # of each dataset: a function (index, seed) -> Sequence
        for part in data.expand(self.names):
            folder = prepared.folder_of(part)
            if folder and prepared.read_about(folder)["dataset"] in ("dailydialog", "soda"):
                lines = prepared.open_split(folder, "train")[1]
                self.parts.append(lambda index, seed, lines=lines: self._turns(lines, index, seed))
            else:
                self.parts.append(lambda index, seed, part=part: self._sample(part, index, seed))
        self.open = {}

    def __call__(self, index: int, seed: int) -> Sequence:
        return self.parts[index % len(self.parts)](index // len(self.parts), seed)

    def _turns(self, lines, index: int, seed: int) -> Sequence:
        """A dialogue with a question after each context; of step 1, with every turn from the third in the loss."""
        rng, method = random.Random(f"{seed} {index}"), self.method
        turns = lines[rng.randrange(len(lines))]["turns"]
        most = (method.max_train_contexts or TURNS - 2) + 2
        first = rng.randint(0, max(0, len(turns) - most))
        turns, vocab_size = turns[first : first + most], self.config.vocab_size
        if method.name == "full":
            contexts, questions, answers = self.encode(dailydialog.dialogue(turns))
            answers[:2] = [0] * len(answers[:2])
            return build_sequence(method, 0, vocab_size, contexts, questions, answers)
        contexts = self.encode(dailydialog.dialogue(turns)).contexts
        parts = [self.encode(dailydialog.dialogue(turns[t - 1 : t + 2])) for t in range(1, len(turns) - 1)]
        questions = [part.questions[0] for part in parts]  # they depend on two turns only
        return build_turns(method, self.n, vocab_size, contexts, questions, self.context_loss)

    def _sample(self, part: str, index: int, seed: int) -> Sequence:
        """A sample of another dataset, with all its questions and answers; half of the samples are shorter."""
        method, config, rng = self.method, self.config, random.Random(f"{seed} {index}")
        longest = method.max_train_contexts or (rng.randint(1, TURNS) if rng.random() < 0.5 else None)
        if (part, seed) not in self.open:
            self.open[part, seed] = data.source(part, "train", seed)
        sample = self.open[part, seed](index, longest)
        limits = self.n, config.max_positions, 8
        contexts, questions, answers = encode_within(self.encode, sample, method, *limits, f"{seed}/{index}")
        return build_sequence(method, self.n, config.vocab_size, contexts, questions, answers, self.context_loss)


def sizes_of(method: Method, sequence: Sequence) -> tuple[int, ...]:
    """What decides about a batch's shape: tokens, COMP tokens, tokens with a loss, steps, tokens of a pooled part."""
    info, pooled = sequence.info, 0
    if method.pools == TEXT:
        parts = torch.stack([info.step, info.slot])[:, info.slot >= 0].unique(dim=1, return_counts=True)[1]
        pooled = int(parts.max())
    steps = int(info.step.max()) + 1
    return len(sequence), int(info.is_comp.sum()), int((sequence.loss_weights > 0).sum()), steps, pooled


def power(count: float) -> int:
    """The next power of two, 128 at least; 0 stays 0."""
    return max(128, 1 << (math.ceil(count) - 1).bit_length()) if count else 0


class Steps(Dataset):
    """Item i: the batches of training step i, one packed row. They depend on the seed and i only.

    All rows have one shape, so that one CUDA graph serves all steps and all seeds.
    """

    def __init__(self, source: Source, packing: Callable, tokens: int, steps: int):
        self.source, self.packing, self.tokens, self.steps, self.seed = source, packing, tokens, steps, 0
        method = source.method
        self.most = 64 if method.pools == TEXT else 128 if method.merge_rate else 256  # samples of a row
        self.limits = (tokens - 1, 2**30, 2**30, 64, 64)
        found = [[sizes_of(method, one) for one in self.sequences(step)] for step in range(COUNTED)]
        comp, loss = (power(0.9 * max(sum(one[i] for one in row) for row in found)) for i in (1, 2))
        steps = -(-max(one[3] for row in found for one in row) // 8) * 8
        pooled = power(max(one[4] for row in found for one in row)) // 2
        self.limits = (tokens - 1, comp, loss, steps, pooled)
        merges = bool(method.merge_rate)
        packing.max_tokens = packing.pad_multiple = tokens
        pooled = max(pooled, 1)
        packing.min_sizes = comp, loss, self.most, steps * merges, pooled * merges
        mean = [sum(sum(one[i] for one in row) for row in found) / len(found) for i in range(3)]
        counts = ", ".join(f"{x:.0f} of {most}" for x, most in zip(mean, self.limits))
        print(f"{method.name}: rows of {len(found[0])} samples; tokens, COMP, loss: {counts}", flush=True)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list:
        return self.packing(self.sequences(step))

    def sequences(self, step: int) -> list[Sequence]:
        """Samples until the row is full. One that is too large for any row is left out."""
        found, total = [], [0, 0, 0]
        for number in range(self.most):
            one = self.source(step * self.most + number, self.seed)
            sizes = sizes_of(self.source.method, one)
            if any(size > limit for size, limit in zip(sizes, self.limits)):
                continue
            after = [a + b for a, b in zip(total, sizes)]
            if any(size > limit for size, limit in zip(after, self.limits)):
                break
            found.append(one)
            total = after
        if not found:
            raise ValueError(f"no sample fits in a training step of {self.tokens} tokens: take more --tokens")
        return found


class Trainer:
    """Trains adapters of one method and n for a model, one after another. They share compiled code and CUDA graph."""

    def __init__(self, model: Transformer, method: Method, n: int, r: int, encode: Encoder, options, steps: int):
        self.model, self.method, self.n, self.options = model, method, n, options
        self.r = r
        model.add_adapter(n, r, 2.0 * r, 0.0, method.learned)
        device = model.embed_tokens.weight.device
        self.on_gpu = device.type == "cuda"
        distill = 0.0 if method.name == "full" else options.distill
        text = options.fast if self.on_gpu else "pack,no-prune"
        self.step = FastStep(model, method, parse_fast(text, device, 1.0), options.tokens, distill)
        source = Source(options.data, method, n, encode, model.config, options.context_loss)
        self.steps = Steps(source, self.step.batches, options.tokens, steps)
        self.warm = False

    @torch.no_grad()
    def begin(self, seed: int) -> None:
        """A fresh adapter, in the tensors of the last one: a CUDA graph reads them there."""
        torch.manual_seed(seed)
        tensors = self.model.adapter_state()
        self.model.add_adapter(self.n, self.r, 2.0 * self.r, 0.0, self.method.learned)
        for key, new in self.model.adapter_state().items():
            tensors[key].requires_grad_().data.copy_(new)  # add_adapter has frozen it
            path, _, last = key.rpartition(".")
            setattr(self.model.get_submodule(path), last, tensors[key])

    @torch.no_grad()
    def begin_as(self, folder: Path) -> None:
        """The adapter of another method with the same n and r, from its folder."""
        values = load_file(folder / "adapter.safetensors")
        for key, tensor in self.model.adapter_state().items():
            tensor.data.copy_(values[key])

    def train(self, seed: int, lr: float, seconds: float, label: str) -> dict:
        """Trains the present adapter. Returns what `optimize` returns."""
        self.steps.seed = seed
        workers = self.options.workers if self.on_gpu else 0
        loader = DataLoader(self.steps, None, num_workers=workers, prefetch_factor=4 if workers else None)
        tokens = 0

        def backward(batches: list) -> Tensor:
            nonlocal tokens
            tokens += self.step.token_count(batches)
            return self.step.backward(batches, sum(float(batch.loss_weights.sum()) for batch in batches))

        about = optimize(self.model, loader, backward, lr, seconds, label, 0 if self.warm else WARM)
        self.warm = True
        return about | {"tokens": tokens, "lr": lr, "r": self.r}


def optimize(
    model: Transformer, loader: DataLoader, backward: Callable, lr: float, seconds: float, label: str, warm: int = 0
) -> dict:
    """Trains the model's adapter with the batches of a loader. Returns the steps, seconds and the last loss.

    backward: a function from an item of the loader to its loss (), which adds the gradients. It trains for `seconds`
    at most. The clock starts after the first `warm` steps, which compile code and capture CUDA graphs.
    """
    state, on_gpu = model.adapter_state(), model.embed_tokens.weight.is_cuda
    model.train()
    optimizer = torch.optim.AdamW(state.values(), lr, (0.9, 0.95), weight_decay=0.0, fused=on_gpu)
    began = started = time.perf_counter()
    mean, step, steps = None, 0, len(loader)
    for step, batch in enumerate(loader):
        if step == warm:
            synchronize()
            started = time.perf_counter()
        now = time.perf_counter() - started if step >= warm else 0.0
        progress = max(step / steps, now / seconds)
        if progress >= 1:
            break
        rate = min(1.0, progress / WARMUP + 0.01) * (0.03 + 0.97 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        loss = backward(batch)
        norm = torch.nn.utils.clip_grad_norm_(state.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            mean = float(loss) if mean is None else 0.8 * mean + 0.2 * float(loss)
            if not math.isfinite(float(norm)):
                raise ValueError(f"{label}: the gradient is {float(norm)} at step {step}: try a smaller --lr")
        if step % 200 == 0:
            print(f"{label}: step {step} loss {mean:.3f} norm {float(norm):.2f}, {now:.0f} s", flush=True)
    else:
        step = steps
    synchronize()
    took, in_all = time.perf_counter() - started, time.perf_counter() - began
    print(f"{label}: {step} steps in {took:.0f} s ({in_all:.0f} s with compiling), loss {mean:.3f}", flush=True)
    model.eval()
    return {"steps": step, "training_s": took, "loss": mean}


def write_adapter(folder: Path, model: Transformer, method: Method, n: int, about: dict) -> None:
    """Writes the adapter, rounded to bf16 in the file and in the model: so the table is that of the file."""
    for tensor in model.adapter_state().values():
        tensor.data.copy_(tensor.data.bfloat16())
    save_adapter(folder, model, method, n, **about)
    values = {key: x.detach().bfloat16().cpu() for key, x in model.adapter_state().items()}
    write_tensors(folder / "adapter.safetensors", values)


class QuickEvaluator(Evaluator):
    """An Evaluator that measures the memory of the first samples only, which is most of its time on a CPU."""

    def sizes(self, method: Method, sequences: list[Sequence]) -> dict:
        return super().sizes(method, sequences[:MEASURED])


def prepare_data(options, out: Path) -> str:
    """The datasets as names and folders. DailyDialog is prepared in out/dailydialog from its original files."""
    names = data.expand(options.data)
    if "dailydialog" in names and options.data_dir:
        folder = out / "dailydialog"
        if not (folder / "dataset.json").is_file():
            llama = options.data_dir / "llama"
            count = Tokenizer(llama if llama.is_dir() else options.model).encode
            work = prepared.Preparation("dailydialog", folder, lambda text: len(count(text)), False)
            try:
                dailydialog.prepare(options.data_dir / "dailydialog", work)
                work.finish()
            finally:
                work.close()
        names = [str(folder) if part == "dailydialog" else part for part in names]
    return ",".join(names)


def check_settings(options, out: Path) -> None:
    """Raises ValueError where `out` has results of another model, other data or another step 1."""
    settings = {key: getattr(options, key) for key in ("data", "step1_steps", "step1_lr", "step1_r", "scale")}
    settings |= {"model": Path(options.model).name, "samples": options.samples}
    path = out / "settings.json"
    if path.is_file() and read_json(path) != settings:
        raise ValueError(f"{out} was made with other settings: give another --out, or remove {path}")
    write_json(path, settings)


def main() -> None:
    options, began = arguments(), time.perf_counter()
    device, dtype = cli.device_and_dtype(options)
    torch.set_num_threads(1 if device.type == "cuda" else torch.get_num_threads())
    out = make_folder(options.out)
    check_settings(options, out)
    options.data = prepare_data(options, out)
    template = choose_template(options.model, options.template)
    max_tokens = options.max_tokens or (16384 if device.type == "cuda" else 4096)
    steps = max(2, round(options.steps * options.scale))
    named = {"base_name": Path(options.model).name}
    left = lambda: options.budget - (time.perf_counter() - began)

    if not (out / "step1" / "adapter.json").is_file():
        model, tokenizer = open_base(options.model, None, device, dtype)
        method = replace(get_method("full"), conditional=False)
        step1_steps = max(2, round(options.step1_steps * options.scale))
        torch.manual_seed(options.seed)
        trainer = Trainer(model, method, 0, options.step1_r, encoder(tokenizer, template), options, step1_steps)
        about = trainer.train(options.seed, options.step1_lr, 1e9, "step 1")
        folder = make_folder(out / "step1")
        write_adapter(folder, model, method, 0, named | {"data": options.data} | about)
        del trainer, model
        free_memory()

    model, tokenizer = open_base(options.model, str(out / "step1"), device, dtype)
    encode = encoder(tokenizer, template)
    evaluator = QuickEvaluator(model.eval(), tokenizer, encode, max_tokens)
    parameters = sum(weight.numel() for weight in model.parameters())  # of the base

    def measure(run: Run, **about) -> list[dict]:
        rows = evaluator.by_dataset(run, options.data, options.samples, options.seed, options.time_steps)
        return [row | about | {"parameters": parameters} for row in rows]

    if not (out / "baselines.json").is_file():
        start = time.perf_counter()
        write_json(out / "baselines.json", [row for run in BASELINES for row in measure(run)])
        print(f"no context and full context: measured in {time.perf_counter() - start:.0f} s", flush=True)
    for n in options.n:
        for method in map(get_method, options.methods.split(",")):
            trainer = None
            for seed in map(int, options.seeds.split(",")):
                stage = f"{method.name}-n{n}-seed{seed}"
                folder = out / stage
                if (folder / "rows.json").is_file():
                    continue
                if left() < options.seconds + 20 + COMPILING * (trainer is None):
                    print(f"{stage}: the budget is too small; the same command continues here", flush=True)
                    continue
                trainer = trainer or Trainer(model, method, n, options.r, encode, options, steps)
                earlier = out / stage.replace("ccm-merge", "ccm-concat")
                trainer.begin(seed)
                if options.merge_after_concat and method.name == "ccm-merge" and (earlier / "adapter.json").is_file():
                    trainer.begin_as(earlier)
                about = trainer.train(seed, options.lr, options.seconds, stage) | {"seed": seed}
                write_adapter(make_folder(folder), model, method, n, named | {"data": options.data} | about)
                keep_step1(str(out / "step1"), None, folder)
                start = time.perf_counter()
                label = method.name if n == N else f"{method.name}, n = {n}"
                rows = measure(Run(method, n, label), **about)
                write_json(folder / "rows.json", rows)
                print(f"{stage}: measured in {time.perf_counter() - start:.0f} s", flush=True)
            del trainer
            free_memory()
    report(out, options)
    print(f"{time.perf_counter() - began:.0f} s in all, of this call")


def report(out: Path, options) -> None:
    """Prints the table of all that is finished, and writes it as results.json, .md and .png."""
    rows = read_json(out / "baselines.json")
    for path in sorted(out.glob("*/rows.json")):
        rows += read_json(path)
    evaluate.close_gaps(rows)
    rows = evaluate.average(rows)
    evaluate.show(rows)
    write_json(out / "results.json", rows)
    write_text(out / "results.md", markdown(rows))
    evaluate.picture(rows, out / "results.png")
    print(f"\n{markdown(rows)}\n{out / 'results'}.json, .md and .png")


if __name__ == "__main__":
    cli.run(main)
