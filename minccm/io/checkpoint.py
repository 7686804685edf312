"""Checkpoints of a training: the one place that writes them, so that adapter, log and state agree after any kill.

A checkpoint is written in this order: the adapter, then state.safetensors, each whole or not at all. The state is what
counts. After a kill between the two, --resume continues from the older state, takes the same steps again and writes the
same adapter again. The state holds tensors and JSON only, and everything in it is checked before it is used.
"""

import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minccm.io.files import write_tensors, write_text
from minccm.io.untrusted import Field, check_fields, check_regular, error, parse_json, read_bytes

STATE, LOG = "state.safetensors", "log.jsonl"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of each parameter
MAX_LOG_BYTES = 2**30
FIELDS = {
    "step": Field(int, 1, 10**9),
    "settings": Field(dict, 0, 100),
    "best_loss": Field(float, 0, 1e9, optional=True),  # of the adapter that is kept
    "worse": Field(int, 0, 10**9),  # checkpoints since then
    "checksum": Field(str),
}


class Checkpoint:
    """The checkpoint of a training in the folder `out`.

    trained: the parameters that train, by name. settings: the options that a resumed training must have in common.
    write_adapter(step) writes the adapter. is_main: False in a process that must not write files. `step` is the last
    step of the checkpoint, `best_loss` the validation loss of the adapter that is kept (None without validation), and
    `worse` the number of checkpoints since then.
    """

    def __init__(
        self,
        out: Path,
        trained: dict[str, Tensor],
        optimizer: torch.optim.AdamW,
        settings: dict,
        write_adapter: Callable[[int], None],
        is_main: bool = True,
    ):
        self.out, self.trained, self.optimizer, self.is_main = out, trained, optimizer, is_main
        self.settings, self.write_adapter = json.loads(json.dumps(settings)), write_adapter
        self.step, self.best_loss, self.worse = 0, None, 0

    def begin(self, resume: bool) -> int:
        """Continues from the checkpoint in the folder (see resume), or starts a new training there. Returns its step.

        A new training removes the state of an earlier one and empties log.jsonl.
        """
        first = self.resume() if resume else 0
        if self.is_main and not first:
            (self.out / STATE).unlink(missing_ok=True)
            write_text(self.out / LOG, "")
        return first

    def log(self, entry: dict) -> None:
        """Appends a line to log.jsonl."""
        if self.is_main:
            with open(self.out / LOG, "a") as file:
                file.write(json.dumps(entry) + "\n")

    def save(self, step: int, validation_loss: float | None = None) -> None:
        """Writes a checkpoint after `step` steps. With a validation loss, the adapter only if it is the lowest.

        Raises ValueError if a number is not finite; the last checkpoint then stays.
        """
        if not all(parameter.isfinite().all() for parameter in self.trained.values()):
            raise ValueError(f"what trains is not finite after step {step}: try a smaller --lr")
        self.step, better = step, True
        if validation_loss is not None:
            if not math.isfinite(validation_loss):
                raise ValueError(f"the validation loss is {validation_loss} at step {step}: try a smaller --lr")
            better = self.best_loss is None or validation_loss < self.best_loss
            self.best_loss, self.worse = (validation_loss, 0) if better else (self.best_loss, self.worse + 1)
        if not self.is_main:
            return
        if better:
            self.write_adapter(step)
        tensors = {"rng": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["cuda_rng"] = torch.cuda.get_rng_state()
        for name, parameter in self.trained.items():
            state = self.optimizer.state.get(parameter, {})
            tensors[f"trained.{name}"] = parameter.detach().cpu()
            for moment in MOMENTS:
                tensors[f"{moment}.{name}"] = state.get(moment, torch.zeros_like(parameter)).cpu()
        about = {"step": step, "settings": self.settings, "best_loss": self.best_loss, "worse": self.worse}
        about["checksum"] = checksum(about, tensors)
        with open(self.out / LOG) as file:
            os.fsync(file.fileno())  # the log must be on the disk before the state that counts its lines
        write_tensors(self.out / STATE, tensors, {"about": json.dumps(about)})

    def resume(self) -> int:
        """Continues from the checkpoint in the folder: returns its step, or 0 where there is none yet.

        Shortens log.jsonl to that step. Raises ValueError, in one line, for a damaged state or one of other settings;
        nothing has changed then.
        """
        path, log = self.out / STATE, self.out / LOG
        if not path.exists():
            return 0
        about, tensors = self._read(path)
        for name in {**about["settings"], **self.settings}:
            then, now = about["settings"].get(name), self.settings.get(name)
            if then != now:
                raise error(path, f"it was made with --{name.replace('_', '-')} {then}, not {now}")
        lines = read_bytes(log, MAX_LOG_BYTES).split(b"\n")[:-1]
        if len(lines) < about["step"]:
            raise error(log, f"it has {len(lines)} lines, fewer than the {about['step']} steps of {STATE}")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"trained.{name}"])
        state = {}
        for i, name in enumerate(self.trained):
            state[i] = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
            state[i]["step"] = torch.tensor(float(about["step"]))
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(tensors["rng"])
        if "cuda_rng" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["cuda_rng"])
        if self.is_main:
            text = b"".join(line + b"\n" for line in lines[: about["step"]])
            write_text(log, text.decode("utf-8", "replace"))
        self.step, self.best_loss, self.worse = about["step"], about["best_loss"], about["worse"]
        return self.step

    def _read(self, path: Path) -> tuple[dict, dict[str, Tensor]]:
        """What a state file holds, checked against the parameters that train."""
        check_regular(path)
        damaged = error(path, "the file is damaged, or not a checkpoint: start again without --resume")
        try:
            with safe_open(path, framework="pt") as file:
                raw = (file.metadata() or {}).get("about", "")
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
                about = check_fields(parse_json(raw, path), path, FIELDS)
                self._check_shapes(path, found)
                tensors = {name: file.get_tensor(name) for name in found}
            torch.Generator().set_state(tensors["rng"])
            if "cuda_rng" in tensors and torch.cuda.is_available():
                torch.Generator("cuda").set_state(tensors["cuda_rng"])
        except (SafetensorError, OSError, RuntimeError):
            raise damaged from None
        if about.pop("checksum") != checksum(about, tensors):
            raise damaged
        steps = self.settings.get("steps")
        if steps is not None and about["step"] > steps:
            raise error(path, f"it has {about['step']} steps, more than --steps {steps}")
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise error(path, f"the tensor {name} is not finite: start again without --resume")
            if name.startswith("exp_avg_sq.") and (tensor < 0).any():
                raise error(path, f"the tensor {name} is negative: start again without --resume")
        return about, tensors

    def _check_shapes(self, path: Path, found: dict) -> None:
        wanted = {f"{kind}.{name}": p for name, p in self.trained.items() for kind in ("trained", *MOMENTS)}
        shapes = {name: ("F32", list(p.shape)) for name, p in wanted.items()}
        shapes["rng"] = ("U8", list(torch.get_rng_state().shape))
        if "cuda_rng" in found:
            shapes["cuda_rng"] = ("U8", [16])
        stored = {name: (part.get_dtype(), part.get_shape()) for name, part in found.items()}
        if wrong := sorted(name for name in {*shapes, *stored} if shapes.get(name) != stored.get(name)):
            raise error(path, f"the tensor {wrong[0]} is missing, unknown or of another shape than the adapter's")


def checksum(about: dict, tensors: dict[str, Tensor]) -> str:
    """A checksum of what a state file holds: a disk or a copy may have changed some bytes."""
    value = zlib.crc32(json.dumps(about).encode())
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].contiguous().view(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"
