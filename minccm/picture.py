"""Pictures: who sees whom, from the predicate that makes the masks (paper: algorithm 1), and the method (figure 2)."""

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


def draw_method():
    """A figure of the method over time (paper: figure 2): contexts are compressed, an input reads the memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(7.4, 4.1), layout="constrained")
    updates = ["concat:  Mem(t) = [Mem(t−1); h(t)]", "merge:  Mem(t) = (1 − aₜ) Mem(t−1) + aₜ h(t)"]
    for axis, update in zip(axes, updates):
        axis.set(xlim=(-0.15, 14.75), ylim=(-0.7, 3.3), aspect="equal")
        axis.set_axis_off()
        axis.text(-0.1, 3.05, update, fontsize=9.5, weight="bold", va="center")
        _draw_steps(axis, merged=axis is axes[1])
    return figure


def _draw_steps(axis, merged: bool, steps: int = 3, n: int = 2) -> None:
    """Three contexts of four tokens and their COMP tokens below, the memory after each above, then input and output."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    text, slot, side = "#4c72b0", "#55a868", 0.38
    comp = ["#f3c6a5", "#dd8452", "#a8511f"]  # a shade for each step, to be known again in the memory

    def squares(x: float, y: float, colours: list[str]) -> None:
        for i, colour in enumerate(colours):
            axis.add_patch(Rectangle((x + i * 0.44, y), side, side, facecolor=colour))

    def box(x: float, y: float, width: float) -> None:
        look = dict(boxstyle="round,pad=0.1", facecolor="#f7f7f7", edgecolor="#999999")
        axis.add_patch(FancyBboxPatch((x, y), width, side, **look))

    def arrow(start: tuple, end: tuple, colour: str = "#333333") -> None:
        style = dict(arrowstyle="-|>", color=colour, linewidth=1.2)
        axis.annotate("", end, start, arrowprops=style)

    for t in range(steps + 1):
        x, asks = 4.0 * t, t == steps
        box(x, 0, 2.58)
        squares(x, 0, [text] * 4 + (["#8da9d6"] * 2 if asks else [comp[t]] * n))
        left, right = ("input I", "output O") if asks else (f"context c({t + 1})", "COMP")
        axis.text(x + 0.8, -0.5, left, ha="center", fontsize=8)
        axis.text(x + 2.17, -0.5, right, ha="center", fontsize=8)
        if t:  # what the step reads: the memory of the one before
            arrow((x - 1.65, 1.84), (x + 0.2, 0.54), slot if merged else comp[1])
            axis.text(x - 0.45, 1.2, "is read", fontsize=8, color=slot if merged else comp[2])
        if asks:
            axis.text(x + 0.75, 0.8, "O ~ p( · | Mem(3), I)", fontsize=8)
            continue
        arrow((x + 2.17, 0.54), (x + 2.17, 1.84))
        axis.text(x + 2.07, 0.95, f"h({t + 1})", ha="right", fontsize=8)
        held = [slot] * n if merged else [comp[s] for s in range(t + 1) for _ in range(n)]
        begin = x + 2.2 - 0.22 * len(held)  # centred above the COMP tokens
        box(begin, 2.0, 0.44 * len(held) - 0.06)
        squares(begin, 2.0, held)
        axis.text(x + 2.17, 2.6, f"Mem({t + 1})", ha="center", fontsize=8)
        if t:  # what the update begins with
            before = n if merged else n * t
            arrow((x - 1.8 + 0.22 * before + 0.1, 2.19), (begin - 0.14, 2.19))
