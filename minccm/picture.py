"""Pictures of who sees whom, drawn from the same predicate that makes the masks (paper: algorithm 1)."""

import torch

from minccm.layout import Layout, lay_out
from minccm.methods import METHODS, Columns, Method, visible


def grid(method: Method, layout: Layout) -> torch.Tensor:
    """bool (N, N + M): what the N tokens of a sample see of its N tokens and M slots."""
    keys = Columns(torch.cat([layout.columns, layout.slots]))
    return visible(method, Columns(layout.columns)[:, None], keys[None])


def draw_mask(axis, method: Method, n: int = 2, contexts=(4, 3, 4), input: int = 3, target: int = 2) -> None:
    """One method's mask: rows are queries, columns keys; COMP tokens and slots in colours of their own."""
    from matplotlib.colors import ListedColormap

    layout = lay_out(method, n, 100, [[5] * length for length in contexts], [5] * input, [5] * target)
    seen = grid(method, layout)
    kinds = torch.cat([layout.columns, layout.slots])[:, 1]
    image = torch.where(seen, kinds[None] + 2, 1)
    ahead = torch.arange(len(kinds))[None] > torch.arange(len(seen))[:, None]
    image[ahead & ~seen & (kinds < 2)[None]] = 0
    axis.imshow(
        image.numpy(), cmap=ListedColormap(["#ffffff", "#f0f0f0", "#4c72b0", "#dd8452", "#55a868"]), vmin=0, vmax=4
    )
    steps = layout.columns[:, 2]
    for edge in (steps[1:] != steps[:-1]).nonzero()[:, 0].tolist():
        axis.axhline(edge + 0.5, color="white", linewidth=1.5)
        axis.axvline(edge + 0.5, color="white", linewidth=1.5)
    if len(layout.slots):
        axis.axvline(len(steps) - 0.5, color="black", linewidth=0.8)
    axis.set_title(method.name, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def draw_masks():
    """A figure with the masks of all methods over one dialogue of three contexts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    columns = 5
    rows = -(-len(METHODS) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, method in zip(axes.flat, METHODS.values()):
        axis.set_axis_on()
        draw_mask(axis, method)
    named = [("#4c72b0", "text"), ("#dd8452", "COMP token"), ("#55a868", "memory slot"), ("#f0f0f0", "hidden")]
    handles = [Patch(color=colour, label=label) for colour, label in named]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Who (row) sees whom (column): three contexts, then input and output")
    return figure
