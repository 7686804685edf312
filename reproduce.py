"""The paper's conversation experiment, from nothing: one command, one GPU, under 30 minutes (tables 16, 18, 21 and 25).

    python reproduce.py DATA                   # DailyDialog, books and other dialogues in the folder DATA: see README
    python reproduce.py DATA --scale toy       # all of it at toy size: on a CPU in minutes, and with no meaning
    python reproduce.py DATA --ablations       # and then more adapters: 1 to 8 tokens a step, plain LoRA, and so on
    python reproduce.py --generated            # all methods on icl and persona, with the model that ships

Text and dialogues make a base model; step 1 fine-tunes it on DailyDialog with full context (all of its weights, as it
is small); then come an adapter for each method and seed, the table, and the figure of perplexity against KV memory.
Each stage is one command of train.py, eval.py or data/, shown as it starts, with its output in --out/STAGE.log. A
stage that is done is not done again, and one that was interrupted goes on from its last checkpoint.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minccm.cli import run
from minccm.files import make_folder, write_text

SCALES = {  # options of train.py
    "full": {
        "base": "--dim 512 --ffn 1408 --layers 8 --heads 8 --vocab 8000 --steps 2400 --batch 128 --lr 1.5e-3 "
        "--validate 256 --save-every 200 --compile",
        "step1": "--steps 900 --batch 128 --lr 3e-4 --validate 525 --patience 3 --save-every 50",
        "adapter": "--steps 600 --batch 128 --lr 3e-3 --r 32 --alpha 64 --dropout 0.05 --text-weight 0.1 --distill 1 "
        "--validate 525 --compile",
        "table": "--samples 0 --row-tokens 32768",
        "generated": "--steps 1500 --grow 0.4",
        "generated table": "--samples 200",
    },
    "toy": {
        "base": "--dim 32 --ffn 48 --layers 2 --heads 2 --vocab 600 --steps 6 --batch 4 --lr 1e-3",
        "step1": "--steps 4 --batch 4 --lr 1e-3 --validate 4 --save-every 2",
        "adapter": "--steps 4 --batch 4 --lr 1e-3 --validate 4 --save-every 2",
        "table": "--samples 4",
        "generated": "--steps 2 --batch 2",
        "generated table": "--samples 4",
    },
}
METHODS = ("ccm-concat", "ccm-merge", "gist-online", "compressive")
ABLATIONS = {  # name: options of train.py
    **{f"ccm-concat-n{n}": f"--method ccm-concat --n {n}" for n in (1, 4, 8)},  # 2 is the default
    **{f"ccm-merge-n{n}": f"--method ccm-merge --n {n}" for n in (1, 4, 8)},
    "ema": "--method ccm-merge-ema --n 2",
    "plain-concat": "--method ccm-concat-plain --n 2",
    "plain-merge": "--method ccm-merge-plain --n 2",
    "independent-concat": "--method ccm-concat-independent --n 2",
    "independent-merge": "--method ccm-merge-independent --n 2",
    "target-only": "--method ccm-concat --n 2 --text-weight 0",  # the others learn from every turn
    "undistilled": "--method ccm-concat --n 2 --distill 0",
}
PAPER = {  # LLaMA-7B, perplexity at t = 1, 2, 4, 8, 12 (table 25)
    "none": (8.93, 9.06, 9.33, 9.85, 9.67),
    "full": (6.97, 6.62, 6.30, 5.84, 5.56),
    "gist-online": (7.42, 7.47, 7.47, 7.68, 7.44),
    "compressive": (7.60, 7.14, 6.91, 6.52, 6.38),
    "ccm-concat": (7.38, 6.97, 6.64, 6.17, 5.91),
    "ccm-merge": (7.47, 7.04, 6.85, 6.53, 6.27),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("data", type=Path, nargs="?", help="folder with dailydialog/, *.txt and dialogs.jsonl (.xz and .gz as well)")
    add("--out", type=Path, default=Path("runs/reproduce"), help="output folder")
    add("--scale", choices=list(SCALES), default="full")
    add("--steps", type=float, default=1.0, help="share of the steps of every training run, as in 0.1 for a trial")
    add("--seeds", default="0,1,2", help="of the adapters")
    add("--methods", default=",".join(METHODS), help="with an adapter each; none and full stand beside")
    add("--generated", action="store_true", help="another table: of icl and persona, with the model that ships")
    add("--ablations", action="store_true", help="adapters and table of the ablations as well, of the first seed")
    add("--until", choices=["base", "step1", "adapters"], help="stop after this")
    add("--jobs", type=int, default=1, help="adapters that are trained side by side")
    add("--tokenizer", type=Path, help="that counts which dialogues are too long; by default DATA/llama, or the base's")
    add("--more", default="", help="more options for every train.py, as in --more='--device cpu'")
    options = parser.parse_args()
    if not options.data and not options.generated:
        raise ValueError("give the folder with DailyDialog, books and dialogues, or --generated")
    return options


class Stages:
    """Runs commands, each once: beside its output are STAGE.log, and STAGE.done when it is done."""

    def __init__(self, out: Path, more: str):
        self.out, self.more = make_folder(out).resolve(), more
        self.quoted = shlex.quote(str(self.out))

    def run(self, stage: str, command: str) -> None:
        """Runs `python COMMAND` unless it has been. Raises ValueError with what it last said, if it fails."""
        done, log = self.out / f"{stage}.done", self.out / f"{stage}.log"
        if done.is_file():
            if json.loads(done.read_text("utf-8"))["command"] != command:
                raise ValueError(f"{stage} was made by another command: give another --out, or remove {done}")
            return
        again = " --resume" if (self.out / stage / "state.pt").is_file() else ""
        say(f"{stage}: python {command}{again}")
        began = time.perf_counter()
        with open(log, "wb") as file:
            words = [sys.executable, *shlex.split(command + again)]
            status = subprocess.call(words, stdout=file, stderr=file, cwd=Path(__file__).parent)
        if status:
            said = log.read_text("utf-8", "replace").replace("\r", "\n").strip().splitlines() or ["nothing"]
            raise ValueError(f"{stage} failed, see {log}: {said[-1]}")
        seconds = time.perf_counter() - began
        write_text(done, json.dumps({"command": command, "seconds": seconds}) + "\n")
        say(f"{stage}: {seconds:.0f} s")

    def train(self, stage: str, *parts: str) -> None:
        """A stage of train.py."""
        self.run(
            stage, " ".join(["train.py --eval-samples 0", f"--out {self.quoted}/{stage}", *parts, self.more]).strip()
        )

    def adapters(self, wanted: dict[str, str], jobs: int, *parts: str) -> None:
        """A stage of train.py for each adapter, `jobs` of them side by side."""
        with ThreadPoolExecutor(jobs) as pool:
            for task in [pool.submit(self.train, name, *parts, more) for name, more in wanted.items()]:
                task.result()

    def table(self, name: str, adapters, *parts: str) -> None:
        """A stage of eval.py, and its table as Markdown."""
        files = f"--json {self.quoted}/{name}.json --picture {self.quoted}/{name}.png"
        folders = " ".join(f"{self.quoted}/{adapter}" for adapter in adapters)
        self.run(name, " ".join(["eval.py", *parts, files, "--adapter", folders]))
        text = markdown(json.loads((self.out / f"{name}.json").read_text("utf-8")))
        write_text(self.out / f"{name}.md", text)
        print(f"\n{text}\n{self.out / name}.json, .md and .png")


def say(line: str) -> None:
    """Prints a line in one piece, as several threads may have something to say at once."""
    print(line + "\n", end="", flush=True)


def main() -> None:
    options = arguments()
    began, stages = time.perf_counter(), Stages(options.out, options.more)
    fewer = lambda found: f"--steps {max(1, round(options.steps * int(found[1])))}"
    scale = {stage: re.sub(r"--steps (\d+)", fewer, more) for stage, more in SCALES[options.scale].items()}
    seeds, methods = options.seeds.split(","), options.methods.split(",")
    wanted = {f"{method}-{seed}": f"--method {method} --n 2 --seed {seed}" for seed in seeds for method in methods}
    if options.generated:
        generated(stages, wanted, scale, options.jobs)
    else:
        conversations(stages, wanted, scale, options)
    print(f"{time.perf_counter() - began:.0f} s in all, of this run")


def conversations(stages: Stages, wanted: dict[str, str], scale: dict[str, str], options) -> None:
    """DailyDialog, from nothing."""
    out, raw = stages.quoted, shlex.quote(str(options.data.resolve()))

    # 1. The data: books and dialogues for the base.
    dialogs = next(iter(sorted(options.data.glob("dialogs.jsonl*"))), Path("dialogs.jsonl")).name
    stages.run("books", f"-m data.text {raw} --out {out}/books")
    stages.run("dialogs", f"-m data.soda {raw}/{dialogs} --out {out}/dialogs")

    # 2. A base model from nothing, every token of the text counting as much as any other.
    text = f"--data {out}/books,{out}/dialogs,{out}/dialogs --text-weight 1 --grow 0"
    stages.train("base", "--pretrain", text, scale["base"])
    if options.until == "base":
        return

    # 3. Step 1: fine-tuning on DailyDialog with full context.
    counter = options.tokenizer or (
        options.data / "llama" if (options.data / "llama").is_dir() else stages.out / "base"
    )
    counter = shlex.quote(str(counter.resolve()))
    stages.run("dailydialog", f"-m data.dailydialog {raw}/dailydialog --tokenizer {counter} --out {out}/dailydialog")
    daily = f"--data {out}/dailydialog"
    stages.train("step1", f"--pretrain --init {out}/base {daily} --text-weight 0 --grow 0", scale["step1"])
    if options.until == "step1":
        return

    # 4. Step 2: an adapter for each method and seed.
    seed = options.seeds.split(",")[0]
    ablations = {name: f"{more} --seed {seed}" for name, more in ABLATIONS.items()} if options.ablations else {}
    model = f"--model {out}/step1 {daily}"
    stages.adapters(wanted | ablations, options.jobs, model, "--grow 0", scale["adapter"])
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
    """The tables by time step; at the last one gap closed, KV pairs kept, and at most held to read or to answer.

    The paper's LLaMA-7B stands beside.
    """
    lines = []
    for name in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == name]
        metric = "perplexity" if "perplexity" in of_data[0] else "accuracy"
        steps = sorted({row["time_step"] for row in of_data})
        paper = PAPER if name == "dailydialog" else {}
        heads = [f"{name}: {metric}", *(f"t = {t}" for t in steps), "gap closed", "KV pairs", "at most"]
        heads += ["LLaMA-7B in the paper"] if paper else []
        lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        for method in dict.fromkeys(row["method"] for row in of_data):
            at = {row["time_step"]: row for row in of_data if row["method"] == method}
            last = at[max(at)]
            cells = [method, *(shown(at[t], metric) if t in at else "" for t in steps)]
            cells += [shown(last, "gap_closed") if method not in ("none", "full") else "", f"{last['kv_pairs']:.0f}"]
            cells += [f"{max(last['peak_compression_pairs'], last['peak_inference_pairs']):.0f}"]
            cells += [", ".join(f"{value:.2f}" for value in paper.get(method, ()))] if paper else []
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def shown(row: dict, metric: str) -> str:
    """A number, with ± its deviation over seeds; empty where it was not measured."""
    if metric not in row:
        return ""
    return f"{row[metric]:.2f}" + (f" ± {row[metric + '_std']:.2f}" if metric + "_std" in row else "")


if __name__ == "__main__":
    run(main)
