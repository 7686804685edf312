"""A training that dies at any file operation of a checkpoint, and is resumed, ends as if nothing had happened.

SIGKILL comes right before and right after every operation on a file in the output folder, and in the middle of a file
of tensors. The processes are forks of one that has loaded all modules. Where several kills leave the same files, the
training is resumed once.
"""

import builtins
import gc
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import train
from minccm.io import files
from minccm.io import options as command_line
from minccm.io.checkpoint import FIELDS, checksum
from tests.conftest import ROOT
from tests.test_training import save_micro

OPERATIONS = {
    os: ("replace", "fsync", "unlink", "mkdir", "rmdir", "open", "utime", "chmod", "sendfile"),
    builtins: ("open",),
    io: ("open",),
    files: ("save_file",),
}
LOST = {"tokens_per_s", "s"}  # entries of the log that depend on the clock
SCENARIOS = {  # more arguments of train.py; the steps after which the run is resumed before it is killed, or 0
    "validated": (["--validate", "3"], 0),
    "resumed": ([], 1),
    "step 2 in a used folder": (["--init", "step1", "--method", "ccm-merge"], 0),
}


# ------------------------------------------------------------------------------------------ in a process of its own


class Counter:
    """Counts the operations on files in a folder, and kills this process at number `kill_at`.

    when: "before" it, "after" it, or "torn", in the middle of a file of tensors.
    """

    def __init__(self, folder: Path, kill_at: int = 0, when: str = "before"):
        self.folder, self.kill_at, self.when = str(folder), kill_at, when
        self.names, self.inside = [], False
        for module, names in OPERATIONS.items():
            for name in names:
                setattr(module, name, self.wrap(name, getattr(module, name)))

    def wrap(self, name: str, operation):
        def counted(*arguments, **more):
            paths = [str(argument) for argument in arguments if isinstance(argument, (str, os.PathLike))]
            by_number = name in ("fsync", "sendfile") or more.get("dir_fd") is not None
            reads = name == "open" and (arguments[1:] or (0,))[0] in (0, "r", "rb", os.O_RDONLY | os.O_CLOEXEC)
            if self.inside or reads or not (by_number or any(path.startswith(self.folder) for path in paths)):
                return operation(*arguments, **more)
            self.names.append(name)
            self.inside, kill = True, len(self.names) == self.kill_at
            if kill and self.when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return operation(*arguments, **more)
            finally:
                if kill and self.when == "torn":
                    os.truncate(paths[0], os.path.getsize(paths[0]) // 2)
                if kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.inside = False

        return counted


def run(folder: Path, arguments: list[str], kill_at: int = 0, when: str = "before", stop: int | None = None) -> list:
    """Trains in a fork of this process, which is killed at a file operation. Returns the names of the operations.

    stop: the number of steps after which the run ends, as if it had been killed between two steps.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == (signal.SIGKILL if kill_at else 0), (status, kill_at, when)
        return [] if kill_at or stop else json.loads((folder.parent / "operations.json").read_text())
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        sys.argv = ["train.py", "--out", str(folder), *arguments]
        counter = Counter(folder, kill_at, when)
        if stop:
            train.learning_rate = lambda step, options, rate=train.learning_rate: (
                os._exit(0) if step == stop else rate(step, options)
            )
        train.main()
        counter.inside = True
        (folder.parent / "operations.json").write_text(json.dumps(counter.names))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def contents(folder: Path) -> dict[str, object]:
    """All files of a folder, without what depends on the clock."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found[str(path.relative_to(folder))] = path.read_bytes().hex()
        if path.name.startswith("log.jsonl"):
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
            found[path.name] = [{k: v for k, v in line.items() if k not in LOST} for line in lines]
    return found


def state_of(folder: Path) -> bytes:
    path = folder / "state.safetensors"
    return path.read_bytes() if path.exists() else b""


def kill_everywhere(work: Path, base: list[str], scenario: str) -> dict:
    """Kills a training at every file operation, and resumes it. Returns how often."""
    more, stop = SCENARIOS[scenario]
    arguments = base + [str(work / "step1") if word == "step1" else word for word in more]
    if "--init" in arguments:
        run(work / "step1", [*base, "--method", "full"])
    start = work / "start"  # the folder before the run that is killed
    start.mkdir(parents=True)
    if stop:
        run(start, arguments, stop=stop)
        assert (start / "state.safetensors").exists()
        arguments = [*arguments, "--resume"]
    if "used" in scenario:  # by a training on another step-1 adapter
        run(work / "other", [*base, "--method", "full", "--seed", "5"])
        run(start, [*base, "--init", str(work / "other"), "--method", "ccm-merge", "--seed", "5"])
    shutil.copytree(start, work / "whole")
    names = run(work / "whole", arguments)
    whole, out, states = contents(work / "whole"), work / "out", set()
    points = [(k, when) for k in range(1, len(names) + 1) for when in ("before", "after")]
    points += [(k, "torn") for k, name in enumerate(names, 1) if name == "save_file"]
    for k, when in points:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(start, out)
        run(out, arguments, k, when)
        state = hashlib.sha256(json.dumps(contents(out)).encode()).hexdigest()
        if state not in states:
            states.add(state)
            begun = not state_of(start) or state_of(out) != state_of(
                start
            )  # otherwise the state is that of the training before
            run(out, [*arguments, "--resume"] if begun and not stop else arguments)
            found = contents(out)
            different = [name for name in {**whole, **found} if whole.get(name) != found.get(name)]
            assert not different, f"{scenario}: killed {when} operation {k} ({names[k - 1]}), other {different}"
    return {"operations": len(names), "kills": len(points), "resumed": len(states)}


def settings(work: Path) -> list[str]:
    """Makes a model and data in a folder. Returns the arguments of a short training."""
    model = save_micro(work / "micro")
    sample = {"contexts": ["User: I am Ada.", "Bot: Hi."], "input": "User: Who?\nBot:", "target": "Ada."}
    (work / "data.jsonl").write_text("".join(json.dumps(sample | {"target": f"{i}."}) + "\n" for i in range(9)))
    arguments = ["--model", str(model), "--data", str(work / "data.jsonl"), "--steps", "2", "--batch", "2", "--r", "2"]
    arguments += ["--dropout", "0.1", "--eval-samples", "0", "--device", "cpu"]
    return arguments


def main(work: Path) -> None:
    """Runs all scenarios in an empty folder, and prints what kill_everywhere returns."""
    arguments = settings(work)
    train.SAVE_EVERY = 1
    torch.set_num_threads(1)  # a process with more threads cannot be forked
    sys.argv = ["train.py", "--out", str(work / "first"), *arguments]
    train.main()  # some modules are only loaded when they are needed
    gc.disable()  # a collection would copy the pages that a fork shares
    for scenario in SCENARIOS:
        print(json.dumps(kill_everywhere(work / scenario, arguments, scenario)))


# ------------------------------------------------------------------------------------------------------- the tests


def test_killed_and_resumed(tmp_path):
    """Adapter, log and state of the resumed run are bit for bit those of an undisturbed one."""
    command = [sys.executable, "-m", "tests.test_kill", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == len(SCENARIOS)
    assert all(counts["operations"] > 20 and counts["resumed"] > 8 for counts in results)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a training that has ended, and the arguments that it had."""
    work = tmp_path_factory.mktemp("finished")
    arguments = [*settings(work), "--validate", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", "--out", str(work / "out"), *arguments])
        train.main()
    return work / "out", arguments


@pytest.fixture
def refused(finished, tmp_path, monkeypatch, capsys):
    """Checks that --resume ends with one line that says `says`, and changes no file."""
    shutil.copytree(finished[0], tmp_path / "out")

    def check(says: str, *more: str) -> None:
        before = contents(tmp_path / "out")
        monkeypatch.setattr("sys.argv", ["train.py", "--out", str(tmp_path / "out"), *finished[1], "--resume", *more])
        with pytest.raises(SystemExit) as stop:
            command_line.run(train.main)
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
        assert says in lines[0]
        assert contents(tmp_path / "out") == before

    check.path = tmp_path / "out" / "state.safetensors"
    return check


def test_damaged_bytes(refused):
    """A state that is cut off anywhere, or that has one wrong bit, is refused."""
    whole, generator = refused.path.read_bytes(), random.Random(0)
    lengths = [0, 1, 7, 8, 9, 300, len(whole) // 2, len(whole) - 1]
    for length in lengths:
        refused.path.write_bytes(whole[:length])
        refused("state.safetensors")
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        refused.path.write_bytes(damaged)
        refused("")
    refused.path.write_bytes(whole + b"more")
    refused("damaged")


def rewrite(path: Path, change, about: dict | None = None) -> None:
    """Writes a state file again, with a right checksum: change(tensors) changes its tensors, about its entries."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        entries = json.loads(file.metadata()["about"]) | (about or {})
    change(tensors)
    entries.pop("checksum", None)
    in_order = {name: entries[name] for name in FIELDS if name in entries}
    entries["checksum"] = checksum(in_order, tensors)
    save_file(tensors, path, {"about": json.dumps(entries)})


NAME = "layers.0.self_attn.q_proj.lora_A"
TENSORS = {
    "NaN": (lambda x: x[f"exp_avg.{NAME}"].fill_(float("nan")), "is not finite"),
    "infinity": (lambda x: x[f"trained.{NAME}"][0].fill_(float("inf")), "is not finite"),
    "negative": (lambda x: x[f"exp_avg_sq.{NAME}"].fill_(-1), "is negative"),
    "missing": (lambda x: x.pop(f"exp_avg.{NAME}"), "is missing, unknown or of another shape"),
    "nothing": (lambda x: x.clear(), "is missing, unknown or of another shape"),
    "no generator": (lambda x: x.pop("rng"), "rng is missing"),
    "unknown": (lambda x: x.update(other=torch.zeros(1)), "other is missing, unknown"),
    "transposed": (lambda x: x.update({f"trained.{NAME}": x[f"trained.{NAME}"].T.contiguous()}), "another shape"),
    "other numbers": (lambda x: x.update({f"trained.{NAME}": x[f"trained.{NAME}"].double()}), "another shape"),
    "short generator": (lambda x: x.update(rng=x["rng"][:9].clone()), "rng is missing, unknown or of another shape"),
    "wrong generator": (lambda x: x["rng"].fill_(255), "damaged"),
    "GPU generator": (lambda x: x.update(cuda_rng=torch.zeros(3, dtype=torch.uint8)), "cuda_rng"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_tensors(refused, case):
    """Tensors that cannot be those of this training."""
    change, says = TENSORS[case]
    rewrite(refused.path, change)
    refused(says)


ENTRIES = [{"step": step} for step in (-1, 0, True, 3, 10**9, 10**17, 1.5, "2", None, [2])]
ENTRIES += [{"worse": -1}, {"worse": True}, {"worse": 0.5}, {"best_loss": "1"}, {"best_loss": -1}, {"best_loss": [1]}]
ENTRIES += [{"settings": {}}, {"settings": None}, {"settings": []}, {"settings": {"seed": 0}}]
ENTRIES += [{"settings": {str(i): i for i in range(101)}}]


@pytest.mark.parametrize("about", ENTRIES, ids=lambda about: str(about)[:30])
def test_wrong_entries(refused, about):
    """Numbers out of range and of other types, settings of another training."""
    rewrite(refused.path, lambda tensors: None, about)
    refused("state.safetensors")


@pytest.mark.parametrize(
    "option, says",
    [
        (["--seed", "3"], "it was made with --seed 0, not 3"),
        (["--lr", "0.1"], "it was made with --lr 0.003, not 0.1"),
        (["--steps", "9"], "it was made with --steps 2, not 9"),
        (["--method", "ccm-concat-plain"], "it was made with --method ccm-concat, not ccm-concat-plain"),
        (["--dropout", "0.5"], "it was made with --dropout 0.1, not 0.5"),
        (["--r", "3"], "another shape"),
        (["--n", "3"], "another shape"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_settings(refused, option, says):
    """A training cannot continue with other settings than it had."""
    refused(says, *option)


def test_other_files(refused):
    """A log that is missing or too short; a folder or a pipe in place of the state."""
    log = refused.path.with_name("log.jsonl")
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    refused("it has 1 lines, fewer than the 2 steps")
    log.unlink()
    refused("log.jsonl: the file is missing")
    refused.path.unlink()
    refused.path.mkdir()
    refused("this is not a regular file")
    refused.path.rmdir()
    os.mkfifo(refused.path)
    refused("this is not a regular file")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
