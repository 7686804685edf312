"""Several GPUs: torchrun starts a process for each, and each takes its share of a step's samples.

    torchrun --nproc-per-node 8 train.py ...

Every process holds the same adapter and takes the same steps. Gradients are summed over all processes, and every loss
is divided by the loss weight of the whole step, so the losses are those of one GPU. Each GPU holds the whole base
model. If it does not fit, `shard` spreads its weights over all GPUs (PyTorch's FSDP2); each layer is gathered when it
runs.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
IS_MAIN = RANK == 0  # rank 0 writes files and prints


def choose_device() -> None:
    """Makes "cuda" this process's own GPU."""
    if WORLD_SIZE > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def joined() -> bool:
    """Has this process joined others?"""
    return dist.is_initialized()


def start() -> None:
    """Joins the other processes, if there are any. Each process's "cuda" is then its own GPU."""
    choose_device()
    if WORLD_SIZE > 1 and not joined():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leaves the other processes."""
    if joined():
        dist.destroy_process_group()


def all_reduce(number: float, operation: str = "SUM") -> float:
    """The SUM (or MAX) of a number over all processes."""
    if WORLD_SIZE == 1:
        return number
    tensor = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
    return tensor.item()


@torch.no_grad()
def sum_gradients(parameters: list[Tensor], loss: Tensor) -> Tensor:
    """Replaces each gradient by its sum over all processes, in one message. Returns the sum of the losses ()."""
    if WORLD_SIZE == 1:
        return loss
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    message = torch.cat([p.grad.flatten() for p in parameters] + [loss.float().reshape(1)])
    dist.all_reduce(message)
    parts = message[:-1].split([p.numel() for p in parameters])
    torch._foreach_copy_([p.grad for p in parameters], [part.view_as(p) for p, part in zip(parameters, parts)])
    return message[-1]


def shard(model, device: torch.device) -> None:
    """Spreads the frozen weights of a model over the devices of all processes. The adapter stays whole on each."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from minccm.io.weights import fingerprint

    model.base_fingerprint = fingerprint(model)  # while the weights are whole
    adapter = set(model.adapter_state().values())
    for p in adapter:
        p.data = p.data.to(device)
    mesh = init_device_mesh(device.type, (WORLD_SIZE,))
    for block in model.layers:
        fully_shard(block, mesh=mesh, ignored_params=adapter)
    fully_shard(model, mesh=mesh, ignored_params=adapter)
