"""CUDA graphs: work of fixed shapes is captured once, and then replayed with one call.

A pass of a small model launches some hundred kernels of a few microseconds each. To launch them one by one takes longer
than to run them.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import is_dataclass

import torch
from torch import Tensor

from minccm.fast import distributed


def capture(work: Callable[[], None], then: Callable[[], None] = lambda: None, pool=None) -> torch.cuda.CUDAGraph:
    """Returns the graph of work() and then(). Before the capture, work() runs twice, to compile and to allocate.

    pool: graph memory, shared with graphs that are not replayed at the same time.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # NCCL watches its work from a thread of its own, which must not count as a part of the capture
    mode = "thread_local" if distributed.joined() else "global"
    with torch.cuda.graph(graph, pool=pool, capture_error_mode=mode):
        work()
        then()
    return graph


def leaves(x) -> list:
    """The tensors and other values inside any nesting of dataclasses, lists and tuples."""
    if is_dataclass(x):
        x = tuple(vars(x).values())
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, (list, tuple)) else [x]


class Replayed:
    """A function that returns a tuple of tensors. The third call with the same shapes captures a graph and replays it.

    Inputs are tensors, or dataclasses, lists and tuples of tensors. The function must not change anything. On a CPU it
    is just called.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]):
        self.function, self.calls, self.graphs, self.pool = function, Counter(), {}, None

    def __call__(self, *inputs) -> tuple[Tensor, ...]:
        given = leaves(inputs)
        shapes = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in given)
        given = [leaf for leaf in given if isinstance(leaf, Tensor)]
        self.calls[shapes] += 1
        if not given[0].is_cuda or self.calls[shapes] < 3:
            return self.function(*inputs)
        if shapes not in self.graphs:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            fixed, outputs = copy.deepcopy(inputs), []
            graph = capture(lambda: outputs.append(self.function(*fixed)), pool=self.pool)
            fixed = [leaf for leaf in leaves(fixed) if isinstance(leaf, Tensor)]
            self.graphs[shapes] = graph, fixed, outputs[-1]
        graph, fixed, outputs = self.graphs[shapes]
        torch._foreach_copy_(fixed, given)
        graph.replay()
        return tuple(output.clone() for output in outputs)
