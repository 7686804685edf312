"""Several GPUs: torchrun starts one process for each, and each takes its share of a step's samples.

    torchrun --nproc-per-node 8 train.py ...

Every process holds the same adapter and takes the same steps: gradients are summed over all of them, and a loss is
divided by the weight of the whole step, so losses are those of one GPU. The base model stands on each GPU as a whole;
where it does not fit, `shard` spreads its weights over all (PyTorch's FSDP2), and each layer is put together when it is
its turn.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor

RANK, COUNT = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun tells
MAIN = RANK == 0  # who writes files and speaks


def start() -> None:
    """Joins the others, if there are any. Each process's "cuda" is then a GPU of its own."""
    if COUNT > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def over_all(number: float, operation: str = "SUM") -> float:
    """The sum (or MAX) of a number over all processes."""
    if COUNT == 1:
        return number
    held = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(held, getattr(dist.ReduceOp, operation))
    return held.item()


@torch.no_grad()
def sum_gradients(parameters: list[Tensor], loss: Tensor) -> Tensor:
    """Makes every gradient the sum over all processes, in one message, with the loss (); returns the loss's sum."""
    if COUNT == 1:
        return loss
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    message = torch.cat([p.grad.flatten() for p in parameters] + [loss.float().reshape(1)])
    dist.all_reduce(message)
    for p, part in zip(parameters, message[:-1].split([p.numel() for p in parameters])):
        p.grad.copy_(part.view_as(p))
    return message[-1]


def shard(model, device: torch.device) -> None:
    """Spreads the frozen weights of a model over the processes' devices; the adapter stays whole on each."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from minccm.checkpoint import fingerprint

    model.base = fingerprint(model)  # while the weights are whole
    adapter = set(model.adapter_state().values())
    for p in adapter:
        p.data = p.data.to(device)
    mesh = init_device_mesh(device.type, (COUNT,))
    for block in model.layers:
        fully_shard(block, mesh=mesh, ignored_params=adapter)
    fully_shard(model, mesh=mesh, ignored_params=adapter)
