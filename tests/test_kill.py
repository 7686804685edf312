"""A training that dies at any file operation of a checkpoint, and is resumed, ends as if nothing had happened.

SIGKILL comes right before and right after every operation on a file in the output folder, and in the middle of a file
of tensors. The processes are forks of one that has loaded all modules. Where several kills leave the same files, the
training is resumed once.
"""

import builtins
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from minccm.io import files
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
    "plain": ([], 0),
    "validated": (["--validate", "3"], 0),
    "resumed": ([], 2),
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
            if self.inside or not (by_number or any(path.startswith(self.folder) for path in paths)):
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
    import train

    sys.stdout.flush()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == (signal.SIGKILL if kill_at else 0), (status, kill_at, when)
        return [] if kill_at or stop else json.loads((folder.parent / "operations.json").read_text())
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        train.SAVE_EVERY = 2
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


def kill_everywhere(work: Path, base: list[str], scenario: str) -> dict:
    """Kills a training at every file operation, and resumes it. Returns how often."""
    more, stop = SCENARIOS[scenario]
    arguments = base + [str(work / "step1") if word == "step1" else word for word in more]
    if "--init" in arguments:
        run(work / "step1", [*base, "--method", "full"])
    start = work / "start"  # what is in the folder before the run that is killed
    start.mkdir()
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
            run(out, arguments if stop else [*arguments, "--resume"])
            found = contents(out)
            different = [name for name in {**whole, **found} if whole.get(name) != found.get(name)]
            assert not different, f"{scenario}: killed {when} operation {k} ({names[k - 1]}), other {different}"
    return {"operations": len(names), "kills": len(points), "resumed": len(states)}


def main(work: Path) -> None:
    """Runs one scenario in an empty folder, and prints what kill_everywhere returns."""
    import torch

    torch.set_num_threads(1)  # a process with more threads cannot be forked
    model = save_micro(work / "micro")
    sample = {"contexts": ["User: I am Ada.", "Bot: Hi."], "input": "User: Who?\nBot:", "target": "Ada."}
    (work / "data.jsonl").write_text("".join(json.dumps(sample | {"target": f"{i}."}) + "\n" for i in range(9)))
    arguments = ["--model", str(model), "--data", str(work / "data.jsonl"), "--steps", "4", "--batch", "2", "--r", "2"]
    arguments += ["--dropout", "0.1", "--eval-samples", "0", "--device", "cpu"]
    print(json.dumps(kill_everywhere(work, arguments, sys.argv[2])))


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_and_resumed(tmp_path, scenario):
    """Adapter, log and state of the resumed run are bit for bit those of an undisturbed one."""
    command = [sys.executable, "-m", "tests.test_kill", str(tmp_path), scenario]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["operations"] > 20 and counts["resumed"] > 8, counts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
