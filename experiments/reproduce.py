"""The paper's conversation experiment, from nothing: one command, one GPU, under 30 minutes (tables 16, 18, 21 and 25).

    python -m experiments.reproduce DATA                # DailyDialog, books and other dialogues in DATA: see README
    python -m experiments.reproduce DATA --scale toy    # at toy size: minutes on a CPU, and meaningless numbers
    python -m experiments.reproduce DATA --ablations    # more adapters: 1 to 8 tokens per step, plain LoRA, and so on
    python -m experiments.reproduce --generated         # all methods on icl and persona, with the model that ships

Books and dialogues make a base model. Step 1 fine-tunes it on DailyDialog with full context (all weights, because it is
small). Then come an adapter for each method and seed, the table, and the figure of perplexity against KV memory. Each
stage is one command, which is printed; its output is in --out/STAGE.log. A finished stage does not run again, and an
interrupted one continues from its last checkpoint.
"""

import json
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minccm.io import options as cli
from minccm.io.checkpoint import STATE
from minccm.io.files import make_folder, write_text
from minccm.io.options import real, whole
from minccm.io.untrusted import printable, read_json

ROOT = Path(__file__).parents[1]
SCALES = {  # options of each stage's command
    "full": {
        "base": "--dim 512 --ffn 1408 --layers 8 --heads 8 --vocab 8000 --steps 2400 --batch 128 --lr 1.5e-3 "
        "--validate 256 --save-every 200 --fast compile",
        "step1": "--steps 900 --batch 128 --lr 3e-4 --validate 525 --patience 3 --save-every 50",
        "adapter": "--steps 600 --batch 128 --lr 3e-3 --r 32 --alpha 64 --dropout 0.05 --context-loss 0.1 --distill 1 "
        "--validate 525 --fast compile",
        "table": "--samples 0 --max-tokens 32768",
        "generated": "--steps 1500 --length-curriculum 0.4",
        "generated table": "--samples 200",
    },
    "toy": {
        "base": "--dim 32 --ffn 48 --layers 2 --heads 2 --vocab 600 --steps 6 --batch 4 --lr 1e-3",
        "step1": "--steps 4 --batch 4 --lr 1e-3 --validate 4 --save-every 2",
        "adapter": "--steps 4 --batch 4 --lr 1e-3 --validate 4",
        "table": "--samples 4",
        "generated": "--steps 2 --batch 2",
        "generated table": "--samples 4",
    },
}
METHODS = ("ccm-concat", "ccm-merge", "gist-online", "compressive")
ABLATIONS = {
    **{f"concat-{n}": f"--method ccm-concat --n {n}" for n in (1, 4, 8)},
    **{f"merge-{n}": f"--method ccm-merge --n {n}" for n in (1, 4, 8)},
    "ema": "--method ccm-merge-ema --n 2",
    "plain-concat": "--method ccm-concat-plain --n 2",
    "plain-merge": "--method ccm-merge-plain --n 2",
    "independent-concat": "--method ccm-concat-independent --n 2",
    "independent-merge": "--method ccm-merge-independent --n 2",
    "target-only": "--method ccm-concat --n 2 --context-loss 0",  # the others learn from every turn
    "undistilled": "--method ccm-concat --n 2 --distill 0",
}
PAPER = {  # dataset: whose numbers these are, and LLaMA-7B's by time step (tables 25, 23 and 24)
    "dailydialog": (
        "LLaMA-7B in the paper",
        {
            "none": (8.93, 9.06, 9.33, 9.85, 9.67),
            "full": (6.97, 6.62, 6.30, 5.84, 5.56),
            "gist-online": (7.42, 7.47, 7.47, 7.68, 7.44),
            "compressive": (7.60, 7.14, 6.91, 6.52, 6.38),
            "ccm-concat": (7.38, 6.97, 6.64, 6.17, 5.91),
            "ccm-merge": (7.47, 7.04, 6.85, 6.53, 6.27),
        },
    ),
    "icl": (
        "LLaMA-7B on MetaICL in the paper",
        {
            "none": (51.7,),
            "full": (62.8, 64.4, 68.7, 69.9, 70.8),
            "gist-online": (61.7, 62.6, 62.7, 59.7, 57.7),
            "compressive": (59.6, 60.7, 66.7, 67.6, 67.8),
            "ccm-concat": (63.0, 64.4, 67.8, 68.9, 70.0),
            "ccm-merge": (62.7, 65.5, 68.5, 69.3, 69.6),
        },
    ),
    "persona": (
        "LLaMA-7B on LaMP in the paper",
        {
            "none": (69.5,),
            "full": (79.1, 80.6, 81.8, 83.1, 85.1),
            "ccm-concat": (78.6, 79.5, 82.3, 84.0, 84.7),
            "ccm-merge": (79.1, 80.4, 82.2, 83.5, 83.9),
        },
    ),
}


def arguments():
    parser = cli.OneLineParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("data", type=Path, nargs="?", help="folder with dailydialog/, *.txt and dialogs.jsonl (also .xz and .gz)")
    add("--out", type=Path, default=Path("runs/reproduce"), help="output folder")
    add("--scale", choices=list(SCALES), default="full")
    add("--steps", type=real(0, 100, above=True), default=1.0, help="share of the steps of every run; 0.1 for a trial")
    add("--seeds", type=cli.name, default="0,1,2", help="of the adapters")
    add("--methods", type=cli.name, default=",".join(METHODS), help="with adapters; none and full are always there")
    add("--generated", action="store_true", help="another table: icl and persona, with the model that ships")
    add("--ablations", action="store_true", help="also adapters and table of the ablations, with the first seed")
    add("--until", choices=["base", "step1", "adapters"], help="stop after this stage")
    add("--jobs", type=whole(1, 64), default=1, help="adapters that train at the same time")
    add("--tokenizer", type=Path, help="decides which dialogues are too long; default: DATA/llama, or the base model's")
    add("--more", default="", help="more options for pretrain and train.py, as in --more='--device cpu'")
    options = parser.parse_args()
    if not options.data and not options.generated:
        raise ValueError("give the folder with DailyDialog, books and dialogues, or --generated")
    return options


class Stages:
    """Runs commands, each of them once. A stage has STAGE.log, and STAGE.done when it is finished."""

    def __init__(self, out: Path, more: str):
        self.out, self.more = make_folder(out).resolve(), more
        self.quoted = shlex.quote(str(self.out))

    def run(self, stage: str, command: str) -> None:
        """Runs `python COMMAND` unless that is done. Raises ValueError with its last line of output if it fails."""
        done, log = self.out / f"{stage}.done", self.out / f"{stage}.log"
        if done.is_file():
            finished = read_json(done)
            if not isinstance(finished, dict) or finished.get("command") != command:
                raise ValueError(f"{stage} was made by another command: give another --out, or remove {done}")
            return
        again = " --resume" if (self.out / stage / STATE).is_file() else ""
        print_line(f"{stage}: python {command}{again}")
        start = time.perf_counter()
        with open(log, "wb") as file:
            words = [sys.executable, *shlex.split(command + again)]
            status = subprocess.call(words, stdout=file, stderr=file, cwd=ROOT)
        if status:
            lines = log.read_text("utf-8", "replace").replace("\r", "\n").strip().splitlines() or ["no output"]
            raise ValueError(f"{stage} failed, see {log}: {printable(lines[-1], 200)}")
        seconds = time.perf_counter() - start
        write_text(done, json.dumps({"command": command, "seconds": seconds}) + "\n")
        print_line(f"{stage}: {seconds:.0f} s")

    def train(self, script: str, stage: str, *parts: str) -> None:
        """A stage of train.py or of experiments.pretrain."""
        command = [script, "--eval-samples 0", f"--out {self.quoted}/{stage}", *parts, self.more]
        self.run(stage, " ".join(command).strip())

    def adapters(self, wanted: dict[str, str], jobs: int, *parts: str) -> None:
        """A stage of train.py for each adapter, `jobs` of them at the same time."""
        with ThreadPoolExecutor(jobs) as pool:
            for task in [pool.submit(self.train, "train.py", name, *parts, more) for name, more in wanted.items()]:
                task.result()

    def table(self, name: str, adapters, *parts: str) -> None:
        """A stage of eval.py, and its table as Markdown."""
        files = f"--json {self.quoted}/{name}.json --picture {self.quoted}/{name}.png"
        folders = " ".join(f"{self.quoted}/{adapter}" for adapter in adapters)
        self.run(name, " ".join(["eval.py", *parts, files, "--adapter", folders]))
        text = markdown(read_json(self.out / f"{name}.json"))
        write_text(self.out / f"{name}.md", text)
        print(f"\n{text}\n{self.out / name}.json, .md and .png")


def print_line(line: str) -> None:
    """Prints a line in one piece: several threads may print at the same time."""
    print(line + "\n", end="", flush=True)


def main() -> None:
    options = arguments()
    start, stages = time.perf_counter(), Stages(options.out, options.more)
    fewer = lambda found: f"--steps {max(1, round(options.steps * int(found[1])))}"
    scale = {stage: re.sub(r"--steps (\d+)", fewer, more) for stage, more in SCALES[options.scale].items()}
    seeds, methods = options.seeds.split(","), options.methods.split(",")
    wanted = {f"{method}-{seed}": f"--method {method} --n 2 --seed {seed}" for seed in seeds for method in methods}
    if options.generated:
        generated(stages, wanted, scale, options.jobs)
    else:
        conversations(stages, wanted, scale, options)
    print(f"{time.perf_counter() - start:.0f} s in all, of this run")


def conversations(stages: Stages, wanted: dict[str, str], scale: dict[str, str], options) -> None:
    """DailyDialog, from nothing."""
    out, raw, pretrain = stages.quoted, shlex.quote(str(options.data.resolve())), "-m experiments.pretrain"

    # 1. The data: books and dialogues for the base model.
    dialogs = next(iter(sorted(options.data.glob("dialogs.jsonl*"))), Path("dialogs.jsonl")).name
    stages.run("books", f"-m data.text {raw} --out {out}/books")
    stages.run("dialogs", f"-m data.soda {raw}/{dialogs} --out {out}/dialogs")

    # 2. A base model from nothing. All tokens of the text have the same weight.
    text = f"--data {out}/books,{out}/dialogs,{out}/dialogs --context-loss 1 --length-curriculum 0"
    stages.train(pretrain, "base", text, scale["base"])
    if options.until == "base":
        return

    # 3. Step 1: fine-tuning on DailyDialog with full context.
    llama = options.data / "llama"
    tokenizer = options.tokenizer or (llama if llama.is_dir() else stages.out / "base")
    tokenizer = shlex.quote(str(tokenizer.resolve()))
    stages.run("dailydialog", f"-m data.dailydialog {raw}/dailydialog --tokenizer {tokenizer} --out {out}/dailydialog")
    daily = f"--data {out}/dailydialog"
    step1 = f"--init {out}/base {daily} --context-loss 0 --length-curriculum 0"
    stages.train(pretrain, "step1", step1, scale["step1"])
    if options.until == "step1":
        return

    # 4. Step 2: an adapter for each method and seed.
    seed = options.seeds.split(",")[0]
    ablations = {name: f"{more} --seed {seed}" for name, more in ABLATIONS.items()} if options.ablations else {}
    model = f"--model {out}/step1 {daily}"
    stages.adapters(wanted | ablations, options.jobs, model, "--length-curriculum 0", scale["adapter"])
    if options.until == "adapters":
        return

    # 5. The table and the figure.
    stages.table("results", wanted, model, scale["table"], "--average")
    if ablations:
        both = [f"{method}-{seed}" for method in ("ccm-concat", "ccm-merge") if f"{method}-{seed}" in wanted]
        stages.table("ablations", [*both, *ablations], model, scale["table"])


def generated(stages: Stages, wanted: dict[str, str], scale: dict[str, str], jobs: int) -> None:
    """icl and persona: an adapter of the model that ships for each method and seed, and their table."""
    stages.adapters(wanted, jobs, "--data icl,persona", scale["generated"])
    stages.table("generated", wanted, "--data icl,persona --average", scale["generated table"])


def markdown(rows: list[dict]) -> str:
    """The tables by time step. For the last one: gap closed, KV pairs kept, and the most that are held at a time.

    The paper's LLaMA-7B is in the last column, and accuracies are in percent.
    """
    lines = []
    for name in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == name]
        metric = "perplexity" if "perplexity" in of_data[0] else "accuracy"
        steps = sorted({row["time_step"] for row in of_data})
        whose, paper = PAPER.get(name, ("", {}))
        heads = [f"{name}: {metric}", *(f"t = {t}" for t in steps), "gap closed", "KV pairs", "at most"]
        heads += [whose] if paper else []
        lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        for method in dict.fromkeys(row["method"] for row in of_data):
            at = {row["time_step"]: row for row in of_data if row["method"] == method}
            last = at[max(at)]
            cells = [method, *(shown(at[t], metric) if t in at else "" for t in steps)]
            cells += [shown(last, "gap_closed") if method not in ("none", "full") else "", f"{last['kv_pairs']:.0f}"]
            cells += [f"{max(last['peak_compression_pairs'], last['peak_inference_pairs']):.0f}"]
            cells += [", ".join(map(str, paper.get(method, ())))] if paper else []
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def shown(row: dict, metric: str) -> str:
    """A number, with ± its deviation over seeds; accuracy in percent; empty if it was not measured."""
    if metric not in row:
        return ""
    scale, form = (100, ".1f") if metric == "accuracy" else (1, ".2f")
    deviation = f" ± {scale * row[metric + '_std']:{form}}" if metric + "_std" in row else ""
    return f"{scale * row[metric]:{form}}{deviation}"


if __name__ == "__main__":
    cli.run(main)
