"""CUDA graphs: what a GPU is to do again and again at the same shapes is captured once, and then replayed at one call.

A small model's pass is some hundred kernels of a few microseconds each, and to launch them one by one takes longer than
they do. A memory that does not grow keeps the shapes the same.
"""

from collections import Counter
from collections.abc import Callable

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


class Replayed:
    """A function from tensors to a tuple of tensors, replayed by a graph where their shapes come for the third time."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]):
        self.function, self.met, self.graphs = function, Counter(), {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Without a GPU just the function."""
        shapes = tuple(tensor.shape for tensor in inputs)
        self.met[shapes] += 1
        if not inputs[0].is_cuda or self.met[shapes] < 3:
            return self.function(*inputs)
        if shapes not in self.graphs:
            places, outputs = [tensor.clone() for tensor in inputs], []
            graph = capture(lambda: outputs.append(self.function(*places)))
            self.graphs[shapes] = graph, places, outputs[-1]
        graph, places, outputs = self.graphs[shapes]
        for place, tensor in zip(places, inputs):
            place.copy_(tensor)
        graph.replay()
        return tuple(output.clone() for output in outputs)
