"""Train adapters for SmolLM2: step 1, then ccm-concat on top of it, then ccm-merge, which continues from ccm-concat.

    python -m experiments.smalltalk --model smollm2 --out data/smollm2/small_talk.jsonl.gz
    python -m experiments.smollm2 --out runs/smollm2 --ship data/smollm2
    torchrun --nproc-per-node 2 -m experiments.smollm2 --out runs/smollm2 --stages ccm-merge     # on two GPUs

Training data: chats of hand-written episodes (data/episodes.py) and of data/everyday.py, and dialogues of
data/dialog.py. A step fills one row of a fixed number of tokens on each GPU, so the whole step is one CUDA graph. Chats
grow longer during a stage. The memory of ccm-merge is first split among places that take turns
(minccm/extra/curriculum.py).
"""

import math
import random
import time
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from data import dialog, episodes, everyday
from data.encode import encoder
from experiments.common import free_memory
from minccm.extra.curriculum import take_turns
from minccm.extra.evaluate import Evaluator, Run
from minccm.fast import distributed
from minccm.fast.step import FastStep, parse_fast
from minccm.io import options as cli
from minccm.io.adapters import keep_step1, load_adapter, save_adapter
from minccm.io.files import make_folder, write_json, write_tensors
from minccm.io.options import name, open_base, real, whole
from minccm.io.templates import choose_template
from minccm.io.untrusted import read_json
from minccm.methods import Method, get_method
from minccm.sequence import EncodedSample, build_sequence

WARMUP = 0.03
LENGTHS = (1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 11, 12, 13, 15, 17, 20, 23, 26)  # exchanges of a chat
REPLIES = 0.25  # loss weight of replies in a chat; answers to the questions after it have 1
MOST = 64  # samples of a row
LONGEST_COMPLETION = 20  # words


@dataclass(frozen=True)
class Stage:
    """How one of the adapters is trained."""

    name: str  # of its folder
    method: str
    n: int
    r: int
    lr: float
    steps: int
    after: str = ""  # the adapter that this one continues, or the step-1 adapter
    distill: float = 0.0
    first_limit: int = 4  # exchanges of a chat at the beginning
    places: int = 0  # of the merge curriculum,
    turns: float = 0.1  # they take turns during this share of the training,
    fading: float = 0.5  # and the turns fade during this one
    completions: int = 2  # questions of a chat that ask for a message's own words, at most
    longer: float = 0.0  # the share of chats (episodes, everyday) with the longer of two lengths


STAGES = [
    Stage("step1", "full", 0, 64, 7e-4, 4680, first_limit=max(LENGTHS)),
    Stage("ccm-concat", "ccm-concat", 4, 64, 1e-3, 15480, "step1", 1.0, 3),
    Stage("ccm-merge", "ccm-merge", 16, 64, 1e-3, 13800, "ccm-concat", 1.0, 6, places=4, completions=1),
]


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    parser.set_defaults(model="smollm2")
    add = parser.add_argument
    add("--out", type=name, default="runs/smollm2", help="a folder for each adapter is made there")
    add("--stages", type=name, default=",".join(stage.name for stage in STAGES), help="which ones, in order")
    add("--tokens", type=whole(512, 2**20), default=20480, help="tokens of a training step")
    add("--scale", type=real(0, 100, above=True), default=1.0, help="all numbers of steps are multiplied by this")
    shares = "of the samples from episodes, everyday and dialog"
    add("--shares", type=real(0, 1e6), nargs=3, default=[6.0, 1.5, 2.5], help=shares)
    add("--seconds", type=str, default="", help="of each stage at most; the learning rate falls in time")
    add("--set", type=str, default="", help="other settings of the stages: lr=5e-4,distill=0.5")
    add("--fast", default="compile,no-prune", help="see train.py")
    add("--ship", type=str, default="", help="copy the adapters there as bf16, in the end")
    add("--samples", type=whole(0), default=100, help="test samples by time step after each stage")
    return parser.parse_args()


class Steps(Dataset):
    """Item i: the batches of step i. They depend on the seed, the stage and i only."""

    def __init__(self, stage: Stage, method: Method, encode, tokenizer, template, config, packing, options):
        self.stage, self.method, self.encode, self.packing = stage, method, encode, packing
        self.tokenizer, self.template, self.config, self.options = tokenizer, template, config, options

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list:
        return self.packing(self.sequences(step))

    def sequences(self, step: int) -> list:
        """Samples until the row is full, MOST at most."""
        progress = step / max(1, self.stage.steps)
        limit = self.stage.first_limit + (max(LENGTHS) - self.stage.first_limit) * min(1.0, progress / 0.5) ** 2
        found, tokens = [], 0
        for number in range(MOST):
            index = (step * distributed.WORLD_SIZE + distributed.RANK) * MOST + number
            one = self.sequence(index, round(limit))
            if tokens + len(one) >= self.options.tokens:
                if found:
                    break
                continue
            found.append(one)
            tokens += len(one)
        return found

    def sequence(self, index: int, limit: int):
        """Sample number `index`, of at most `limit` exchanges."""
        stage, rng = self.stage, random.Random(f"{self.options.seed} {self.stage.name} {index}")
        index += (zlib.crc32(stage.name.encode()) % 1000) * 10**7
        module = rng.choices([episodes, everyday, dialog], self.options.shares)[0]
        if module is not dialog:
            exchanges = rng.choice(LENGTHS)
            if stage.longer and rng.random() < stage.longer:
                exchanges = max(exchanges, rng.choice(LENGTHS))
            sample = module.sample_at("train", index, min(limit, exchanges), self.options.seed)
            encoded = self.with_questions(sample, rng.randint(8, 12), rng)
        else:
            t = min(2 * limit, rng.choice([1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 20]))
            sample = dialog.sample_at("train", index, t, self.options.seed)
            encoded = self.encode(sample, True, 8)
        vocab_size, lengths = self.config.vocab_size, encoded.answer_lengths
        sequence = build_sequence(self.method, stage.n, vocab_size, encoded.contexts, encoded.questions, lengths)
        if module is not dialog:  # there, replies are answers, too
            sequence.loss_weights[sequence.info.question == 0] *= REPLIES
        return sequence

    def with_questions(self, sample: dict, questions: int, rng: random.Random) -> EncodedSample:
        """A chat with further questions."""
        encoded = self.encode(sample)
        asked = sample["questions"][:questions]
        for user, reply in asked + completions(sample["messages"], self.stage.completions, rng):
            prompt = self.template.encode_exchange(self.tokenizer, user, first=not encoded.contexts)
            ids = sum((segment.ids for segment in prompt), [])
            encoded.questions.append((ids, self.template.encode_reply(self.tokenizer, reply)))
        return encoded


def completions(messages: list[dict], most: int, rng: random.Random) -> list[tuple[str, str]]:
    """At most `most` questions of how a message of the user goes on. The answer is the message's own words.

    They ask for any word of a message, so a memory has to keep them all.
    """
    texts = [message["content"] for message in messages[:-2:2]]
    found = []
    for text in rng.sample(texts, min(len(texts), rng.randint(0, most))):
        words = text.split()
        start = " ".join(words[: rng.randint(3, max(3, len(words) - 2))])
        if len(words) >= 6 and sum(other.count(start) for other in texts) == 1:
            rest = text.removeprefix(start).split()[:LONGEST_COMPLETION]
            found.append((f'What did I say after "{start}"?', " ".join(rest)))
    return found


def power(count: int) -> int:
    """The next power of two; 0 stays 0."""
    return 1 << (count - 1).bit_length() if count else 0


def fix_shapes(packing, steps: Steps, tokens: int) -> None:
    """Gives all batches one shape, so that one CUDA graph serves every step."""
    counts = []
    for step in sorted({0, *(len(steps) * part // 8 for part in range(1, 8)), len(steps) - 1}):
        sequences = steps.sequences(step)
        comp = sum(int(one.info.is_comp.sum()) for one in sequences)
        loss = sum(int((one.loss_weights > 0).sum()) for one in sequences)
        most = max(int(one.info.step.max()) + 1 for one in sequences)
        counts.append((comp, loss, len(sequences), most))
    comp, loss, samples, most = (max(column) for column in zip(*counts))
    packing.max_tokens = packing.pad_multiple = tokens
    merges = bool(steps.method.merge_rate)
    packing.min_sizes = power(int(1.1 * comp)), power(int(1.08 * loss)), MOST, 32 * merges, 1 * merges
    if distributed.IS_MAIN:
        print(f"comp {comp}, loss {loss}, samples {samples}, steps {most}: sizes {packing.min_sizes}", flush=True)


def train(stage: Stage, options, device, dtype, seconds: float) -> None:
    """Trains one adapter, and writes it."""
    began = time.perf_counter()
    distributed.choose_device()
    out, folder = Path(options.out), make_folder(Path(options.out) / stage.name)
    method = get_method(stage.method)
    if stage.method == "full":
        method = replace(method, conditional=False)
    model, tokenizer = open_base(options.model, None, device, dtype)
    torch.manual_seed(options.seed)
    after = out / stage.after if stage.after else None
    if after and stage.after == "step1":
        load_adapter(model, after)
        keep_step1(str(after), None, folder)
    elif after:
        load_adapter(model, after, merge_step1=False)
        keep_step1(None, str(after), folder)
        model.widen_adapter(stage.n, stage.r)
        if stage.places:  # every place begins as the tokens that the shorter memory was trained with
            own = stage.n // stage.places
            table = model.comp_embeddings
            # .data: no autograd node of the table may be left when a CUDA graph is captured
            first = table.data[:own].repeat(stage.places, 1)
            table.data.copy_(first + 0.05 * first.std() * torch.randn(first.shape, device="cpu").to(first))
    if not after or stage.after == "step1":
        model.add_adapter(stage.n, stage.r, 2.0 * stage.r, 0.0, method.learned)
    model.train()
    trained = model.adapter_state()
    template = choose_template(options.model, options.template)
    encode = encoder(tokenizer, template)
    chosen = parse_fast(options.fast, device, sum(p.numel() for p in model.parameters()))
    step_function = FastStep(
        model, method, chosen or parse_fast("pack,no-prune", device, 1.0), options.tokens, stage.distill
    )
    steps = Steps(stage, method, encode, tokenizer, template, model.config, step_function.batches, options)
    fix_shapes(step_function.batches, steps, options.tokens)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(trained.values(), stage.lr, (0.9, 0.95), weight_decay=0.0, fused=on_gpu)
    loader = DataLoader(steps, None, num_workers=14 if on_gpu else 0, prefetch_factor=4 if on_gpu else None)
    turns = take_turns(method, stage.n, stage.places) if stage.places else None
    if distributed.WORLD_SIZE > 1:  # the graph has to be captured before the processes join
        batches = steps[0]
        for _ in range(3):
            step_function.backward(batches, 1.0, turns and [(0.5, method), (0.5, turns)])
        optimizer.zero_grad(set_to_none=True)
        distributed.start()
    started, mean = time.perf_counter(), 0.0

    def write(folder: Path, step: int) -> None:
        about = {
            "base_name": Path(options.model).name,
            "data": "episodes,everyday,dialog",
            "steps": step,
            "seed": options.seed,
        }
        save_adapter(folder, model, method, stage.n, **about)

    for step, batches in enumerate(loader):
        now = time.perf_counter() - started
        progress = distributed.all_reduce(max(step / stage.steps, now / seconds), "MAX")
        if progress >= 1:
            break
        rate = min(1.0, progress / WARMUP + 0.01) * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * rate
        total = distributed.all_reduce(sum(float(batch.loss_weights.sum()) for batch in batches))
        mixture = None
        if turns:
            share = max(0.0, min(1.0, 1 - (progress - stage.turns) / stage.fading)) ** 2
            mixture = [(1 - share, method), (share, turns)]
        loss = distributed.sum_gradients(list(trained.values()), step_function.backward(batches, total, mixture))
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or step < 5:
            mean = float(loss) if not mean else 0.8 * mean + 0.2 * float(loss)
            if not math.isfinite(float(norm)):
                raise ValueError(f"the gradient is {float(norm)} at step {step}")
        if (step % 100 == 0 or step < 5) and distributed.IS_MAIN:
            count = sum(batch.token_count for batch in batches)
            print(
                f"{stage.name} step {step} loss {mean:.3f} norm {float(norm):.2f} {now:.0f} s, row {count}", flush=True
            )
        if step % 500 == 499 and distributed.IS_MAIN:
            write(folder, step)
    else:
        step = stage.steps
    distributed.stop()
    if not distributed.IS_MAIN:
        return
    write(folder, step)
    print(f"{stage.name}: {step} steps in {now:.0f} s; all {time.perf_counter() - began:.0f} s", flush=True)
    del step_function, optimizer, loader
    if options.samples:
        report(model, tokenizer, encode, stage, method, options.samples)


@torch.no_grad()
def report(model, tokenizer, encode, stage: Stage, method: Method, count: int) -> None:
    """Prints recall by time step on all three datasets."""
    model.eval()
    evaluator = Evaluator(model, tokenizer, encode, 16384 if model.embed_tokens.weight.is_cuda else 4096)
    for module in (dialog, everyday, episodes):
        cells = []
        for t in (1, 2, 4, 8, 12):
            samples = [module.sample_at("test", i, t, 0) for i in range(count)]
            row = evaluator.measure(Run(method, stage.n), samples)
            cells.append(f"t={t} {row.get('recall', 0):.0%} ({row['perplexity']:.2f})")
        print(f"{stage.name} on {module.__name__}:", ", ".join(cells), flush=True)


def ship(out: Path, target: Path) -> None:
    """Copies the adapters to another folder, their numbers rounded to bf16."""
    for folder in (out / "ccm-concat", out / "ccm-merge"):
        for part in (folder, folder / "init"):
            if (part / "adapter.safetensors").is_file():
                there = make_folder(target / part.relative_to(out))
                values = load_file(part / "adapter.safetensors")
                write_tensors(there / "adapter.safetensors", {name: x.bfloat16() for name, x in values.items()})
                write_json(there / "adapter.json", read_json(part / "adapter.json"))


def wanted_stages(options) -> list[Stage]:
    """The stages of --stages, with the settings of --set and --scale. Raises ValueError for a wrong one."""
    known, settings, found = {stage.name: stage for stage in STAGES}, [field.name for field in fields(Stage)[2:]], []
    for stage_name in options.stages.split(","):
        if stage_name not in known:
            raise ValueError(f"--stages: there is no stage {stage_name!r:.60}: choose from {', '.join(known)}")
        stage = known[stage_name]
        for part in filter(None, options.set.split(",")):
            key, _, value = part.partition("=")
            if key not in settings:
                raise ValueError(f"--set: there is no setting {key!r:.60}: choose from {', '.join(settings)}")
            try:
                stage = replace(stage, **{key: type(getattr(stage, key))(value)})
            except ValueError:
                raise ValueError(f"--set: {part!r:.60} has no number: write it as {key}=1") from None
        found.append(replace(stage, steps=max(2, round(stage.steps * options.scale))))
    return found


def main() -> None:
    options = arguments()
    device, dtype = cli.device_and_dtype(options)
    stages = wanted_stages(options)
    if distributed.WORLD_SIZE > 1 and (len(stages) > 1 or options.ship):
        raise ValueError("with torchrun, train one of the --stages at a time, without --ship")
    seconds = [float(part) for part in options.seconds.split(",") if part]
    for i, stage in enumerate(stages):
        train(stage, options, device, dtype, seconds[i] if i < len(seconds) else 1e9)
        free_memory()
    if options.ship:
        ship(Path(options.out), Path(options.ship))


if __name__ == "__main__":
    cli.run(main)
