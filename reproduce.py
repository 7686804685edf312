"""The paper's conversation experiment, from nothing: one command, one GPU, under 30 minutes (tables 16, 18, 21 and 25).

    python reproduce.py DATA                   # DailyDialog, books and other dialogues in the folder DATA: see README
    python reproduce.py DATA --scale toy       # all of it at toy size: on a CPU in minutes, and with no meaning
    python reproduce.py DATA --ablations       # and then more adapters: 1 to 8 tokens a step, plain LoRA, and so on

Text and dialogues make a base model; step 1 fine-tunes it on DailyDialog with full context (all of its weights, as it
is small); then come an adapter for each method and seed, the table, and the figure of perplexity against KV memory.
Each stage is one command of train.py, eval.py or data/, shown as it starts, with its output in --out/STAGE.log. A
stage that is done is not done again, and one that was interrupted goes on from its last checkpoint.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minccm.cli import run
from minccm.files import make_folder, write_text

SCALES = {  # options of train.py
    "full": {
        "base": "--dim 512 --ffn 1408 --layers 8 --heads 8 --vocab 8000 --steps 4000 --batch 128 --lr 1.5e-3",
        "step1": "--steps 600 --batch 128 --lr 2e-4 --validate 525 --patience 3 --save-every 50",
        "adapter": "--steps 1000 --batch 128 --lr 1e-3 --r 16 --alpha 32 --dropout 0.05 --validate 525 --patience 4",
        "table": "--samples 0 --row-tokens 32768",
    },
    "toy": {
        "base": "--dim 32 --ffn 48 --layers 2 --heads 2 --vocab 600 --steps 6 --batch 4 --lr 1e-3",
        "step1": "--steps 4 --batch 4 --lr 1e-3 --validate 4 --save-every 2",
        "adapter": "--steps 4 --batch 4 --lr 1e-3 --validate 4 --save-every 2",
        "table": "--samples 4",
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
    "distilled": "--method ccm-concat --n 2 --distill 1",
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
    add("data", type=Path, help="folder with dailydialog/, *.txt (or .txt.xz) and dialogs.jsonl (or .jsonl.xz)")
    add("--out", type=Path, default=Path("runs/reproduce"), help="output folder")
    add("--scale", choices=list(SCALES), default="full")
    add("--steps", type=float, default=1.0, help="share of the steps of every training run, as in 0.1 for a trial")
    add("--seeds", default="0,1,2", help="of the adapters")
    add("--methods", default=",".join(METHODS), help="with an adapter each; none and full stand beside")
    add(
        "--ablations",
        action="store_true",
        help="train and show the adapters of the ablations as well, of the first seed",
    )
    add("--until", choices=["base", "step1", "adapters"], help="stop after this")
    add("--jobs", type=int, default=1, help="adapters that are trained side by side")
    add("--tokenizer", type=Path, help="that counts which dialogues are too long; by default DATA/llama, or the base's")
    add("--more", default="", help="more options for every train.py, as in --more='--device cpu'")
    return parser.parse_args()


class Stages:
    """Runs commands, each once: its folder or file, beside it STAGE.log, and STAGE.done when it is done."""

    def __init__(self, out: Path):
        self.out = make_folder(out)

    def run(self, stage: str, *command) -> float:
        """Runs `python COMMAND` unless it has been; returns its seconds. Raises ValueError with what it last said."""
        command, done = list(map(str, command)), self.out / f"{stage}.done"
        if done.is_file():
            made = json.loads(done.read_text("utf-8"))
            if made["command"] != command:
                raise ValueError(
                    f"{done}: {stage} was made by another command: give another --out, or remove that file"
                )
            return made["seconds"]
        again = ["--resume"] if (self.out / stage / "state.pt").is_file() else []
        print(f"{stage}: python {' '.join(command + again)}", flush=True)
        log, began = self.out / f"{stage}.log", time.perf_counter()
        with open(log, "wb") as file:
            status = subprocess.call(
                [sys.executable, *command, *again], stdout=file, stderr=file, cwd=Path(__file__).parent
            )
        if status:
            said = log.read_text("utf-8", "replace").replace("\r", "\n").strip().splitlines() or ["nothing"]
            raise ValueError(f"{stage} failed, see {log}: {said[-1]}")
        seconds = time.perf_counter() - began
        write_text(done, json.dumps({"command": command, "seconds": seconds}) + "\n")
        print(f"{stage}: {seconds:.0f} s", flush=True)
        return seconds


def main() -> None:
    options = arguments()
    options.out, options.data = options.out.resolve(), options.data.resolve()
    stages, out = Stages(options.out), options.out
    fewer = lambda steps: f"--steps {max(1, round(options.steps * int(steps[1])))}"
    scale = {stage: re.sub(r"--steps (\d+)", fewer, more) for stage, more in SCALES[options.scale].items()}
    began = time.perf_counter()

    def train(stage: str, *more) -> None:
        fixed = "--grow", "0", "--eval-samples", "0", "--out", out / stage
        stages.run(
            stage, "train.py", *fixed, *(word for part in more for word in str(part).split()), *options.more.split()
        )

    # 1. The data: books and dialogues for the base, and DailyDialog.
    dialogs = next(iter(sorted(options.data.glob("dialogs.jsonl*"))), options.data / "dialogs.jsonl")
    stages.run("books", "-m", "data.text", options.data, "--out", out / "books")
    stages.run("dialogs", "-m", "data.soda", dialogs, "--out", out / "dialogs")

    # 2. A base model from nothing, every token of the text counting as much as any other.
    train("base", f"--pretrain --data {out}/books,{out}/dialogs,{out}/dialogs --text-weight 1", scale["base"])
    if options.until == "base":
        return
    llama = options.data / "llama"
    counter = options.tokenizer or (llama if llama.is_dir() else out / "base")
    stages.run(
        "dailydialog",
        "-m",
        "data.dailydialog",
        options.data / "dailydialog",
        "--tokenizer",
        counter,
        "--out",
        out / "dailydialog",
    )
    daily = f"--data {out}/dailydialog"

    # 3. Step 1: fine-tuning with full context.
    train("step1", f"--pretrain --init {out}/base --text-weight 0.1 {daily}", scale["step1"])
    if options.until == "step1":
        return

    # 4. Step 2: an adapter for each method and seed.
    seeds = options.seeds.split(",")
    wanted = {
        f"{method}-{seed}": f"--method {method} --n 2 --seed {seed}"
        for seed in seeds
        for method in options.methods.split(",")
    }
    ablations = {name: f"{more} --seed {seeds[0]}" for name, more in ABLATIONS.items()} if options.ablations else {}
    with ThreadPoolExecutor(options.jobs) as pool:
        tasks = [
            pool.submit(train, name, f"--model {out}/step1", daily, scale["adapter"], more)
            for name, more in (wanted | ablations).items()
        ]
        for task in tasks:
            task.result()
    if options.until == "adapters":
        return

    # 5. The table and the figure.
    evaluate = "eval.py", "--model", out / "step1", *daily.split(), *scale["table"].split()
    tables = {"results": list(wanted)} | (
        {"ablations": [f"ccm-concat-{seeds[0]}", f"ccm-merge-{seeds[0]}", *ablations]} if ablations else {}
    )
    for name, adapters in tables.items():
        files = "--json", out / f"{name}.json", "--picture", out / f"{name}.png"
        stages.run(
            name,
            *evaluate,
            *files,
            *(["--average"] if name == "results" else []),
            "--adapter",
            *(out / adapter for adapter in adapters),
        )
        text = markdown(json.loads((out / f"{name}.json").read_text("utf-8")))
        write_text(out / f"{name}.md", text)
        print(f"\n{text}\n{out / name}.json, .md and .png")
    print(f"{time.perf_counter() - began:.0f} s in all, of this run")


def markdown(rows: list[dict]) -> str:
    """The table by time step, with KV memory and gap closed at the last one, and the paper's LLaMA-7B beside it."""
    steps = sorted({row["time_step"] for row in rows})
    lines = [
        f"| perplexity | {' | '.join(f't = {t}' for t in steps)} | gap closed | KV pairs | LLaMA-7B in the paper |"
    ]
    lines += ["| --- " * (len(steps) + 4) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        at = {row["time_step"]: row for row in rows if row["method"] == method}
        cells = [shown(at[t], "perplexity") if t in at else "" for t in steps]
        last = at[max(at)]
        gap = shown(last, "gap_closed") if "gap_closed" in last and method not in ("none", "full") else ""
        paper = ", ".join(f"{value:.2f}" for value in PAPER.get(method, ()))
        lines.append(f"| {method} | {' | '.join(cells)} | {gap} | {last['kv_pairs']:.0f} | {paper} |")
    return "\n".join(lines) + "\n"


def shown(row: dict, metric: str) -> str:
    return f"{row[metric]:.2f}" + (f" ± {row[metric + '_std']:.2f}" if metric + "_std" in row else "")


if __name__ == "__main__":
    run(main)
