"""CUDA graphs: what a GPU is to do again and again at the same shapes is captured once, and then replayed at one call.

A small model's pass is some hundred kernels of a few microseconds each, and to launch them one by one takes longer than
they do. A memory that does not grow keeps the shapes the same.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import is_dataclass

import torch
from torch import Tensor


def capture(work: Callable[[], None], then: Callable[[], None] = lambda: None, pool=None) -> torch.cuda.CUDAGraph:
    """The graph of work() and then(); work is done twice before, to compile and to set up what it needs, then is not.

    pool: of memory, shared with graphs that are not replayed at the same time.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        work()
        then()
    return graph


def leaves(x) -> list:
    """What is in x, in any nesting of dataclasses, lists and tuples: tensors and other things."""
    if is_dataclass(x):
        x = tuple(vars(x).values())
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, (list, tuple)) else [x]


class Replayed:
    """A function that gives a tuple of tensors, replayed by a graph where inputs of the same shapes come a third time.

    Inputs are tensors, or dataclasses, lists and tuples of tensors. The function is to change nothing.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]):
        self.function, self.met, self.graphs, self.pool = function, Counter(), {}, None

    def __call__(self, *inputs) -> tuple[Tensor, ...]:
        """Without a GPU just the function."""
        given = leaves(inputs)
        shapes = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in given)
        given = [leaf for leaf in given if isinstance(leaf, Tensor)]
        self.met[shapes] += 1
        if not given[0].is_cuda or self.met[shapes] < 3:
            return self.function(*inputs)
        if shapes not in self.graphs:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            places, outputs = copy.deepcopy(inputs), []
            graph = capture(lambda: outputs.append(self.function(*places)), pool=self.pool)
            places = [leaf for leaf in leaves(places) if isinstance(leaf, Tensor)]
            self.graphs[shapes] = graph, places, outputs[-1]
        graph, places, outputs = self.graphs[shapes]
        torch._foreach_copy_(places, given)
        graph.replay()
        return tuple(output.clone() for output in outputs)
