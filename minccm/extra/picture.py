"""Pictures of the attention rule (paper: algorithm 1) and of the method over time (paper: figure 2)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from minccm.methods import METHODS, SLOT, Method, TokenInfo, attention_mask
from minccm.sequence import Sequence, build_sequence

TEXT_COLOR, COMP_COLOR, SLOT_COLOR, HIDDEN_COLOR = "#4c72b0", "#dd8452", "#55a868", "#f0f0f0"
LENGTHS = (4, 3, 4, 3, 2)  # tokens of three contexts, the input and the output


def example_sequence(method: Method, n: int, lengths: Iterable[int]) -> Sequence:
    """The sequence of a sample whose contexts, input and output have these numbers of tokens.

    Raises ValueError if there is no context, or if a number is below 1.
    """
    *contexts, input, output = ([5] * length for length in lengths)
    if not contexts or not all((*contexts, input, output)):
        raise ValueError("give the lengths of contexts, of the input and of the output, all at least 1")
    return build_sequence(method, n, 100, contexts, [(input, output)])


def attention_grid(method: Method, sequence: Sequence) -> tuple[Tensor, Tensor]:
    """Which of a sample's N tokens and M slots each token attends to, bool (N, N + M), and their kinds (N + M,)."""
    keys = TokenInfo.cat([sequence.info, sequence.slots])
    return attention_mask(method, sequence.info, keys), keys.kind


def draw_mask(axis, method: Method, n: int = 2, lengths: Iterable[int] = LENGTHS) -> None:
    """One method's mask on matplotlib axes: rows are queries, columns are keys, colored by kind."""
    from matplotlib.colors import ListedColormap

    sequence = example_sequence(method, n, lengths)
    mask, kinds = attention_grid(method, sequence)
    future = torch.arange(mask.shape[1]) > torch.arange(len(mask))[:, None]
    white, hidden, first_kind = range(3)  # places in the list of colors
    image = torch.where(mask, kinds + first_kind, hidden)
    image[future & ~mask & (kinds != SLOT)] = white
    colors = ListedColormap(["#ffffff", HIDDEN_COLOR, TEXT_COLOR, COMP_COLOR, SLOT_COLOR])
    axis.imshow(image.numpy(), cmap=colors, vmin=0, vmax=4)
    step = sequence.info.step
    for edge in (step[1:] != step[:-1]).nonzero()[:, 0].tolist():
        axis.axhline(edge + 0.5, color="white", linewidth=1.5)
        axis.axvline(edge + 0.5, color="white", linewidth=1.5)
    if len(sequence.slots):
        axis.axvline(len(step) - 0.5, color="black", linewidth=0.8)
    axis.set_title(method.name, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def draw_masks(methods: Iterable[Method] = METHODS.values()):
    """A matplotlib figure with the masks of all methods over one dialogue of three contexts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    methods, columns = list(methods), 5
    rows = -(-len(methods) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, method in zip(axes.flat, methods):
        axis.set_axis_on()
        draw_mask(axis, method)
    colors = {"text": TEXT_COLOR, "COMP token": COMP_COLOR, "memory slot": SLOT_COLOR, "hidden": HIDDEN_COLOR}
    handles = [Patch(color=color, label=label) for label, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("A token (row) attends to keys (columns): three contexts, then input and output")
    return figure


def draw_method():
    """A matplotlib figure of the method over time: contexts are compressed, an input reads the memory."""
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
    """Contexts of four tokens and their COMP tokens below, the memory after each above, then input and output."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    side = 0.38
    comp = ["#f3c6a5", COMP_COLOR, "#a8511f"]  # a shade for each step: the memory shows them again

    def squares(x: float, y: float, colors: list[str]) -> None:
        for i, color in enumerate(colors):
            axis.add_patch(Rectangle((x + i * 0.44, y), side, side, facecolor=color))

    def box(x: float, y: float, width: float) -> None:
        look = dict(boxstyle="round,pad=0.1", facecolor="#f7f7f7", edgecolor="#999999")
        axis.add_patch(FancyBboxPatch((x, y), width, side, **look))

    def arrow(start: tuple, end: tuple, color: str = "#333333") -> None:
        style = dict(arrowstyle="-|>", color=color, linewidth=1.2)
        axis.annotate("", end, start, arrowprops=style)

    for t in range(steps + 1):
        x, is_query = 4.0 * t, t == steps
        box(x, 0, 2.58)
        squares(x, 0, [TEXT_COLOR] * 4 + (["#8da9d6"] * 2 if is_query else [comp[t]] * n))
        left, right = ("input I", "output O") if is_query else (f"context c({t + 1})", "COMP")
        axis.text(x + 0.8, -0.5, left, ha="center", fontsize=8)
        axis.text(x + 2.17, -0.5, right, ha="center", fontsize=8)
        if t:  # this step reads the memory of the step before
            arrow((x - 1.65, 1.84), (x + 0.2, 0.54), SLOT_COLOR if merged else comp[1])
            axis.text(x - 0.45, 1.2, "is read", fontsize=8, color=SLOT_COLOR if merged else comp[2])
        if is_query:
            axis.text(x + 0.75, 0.8, "O ~ p( · | Mem(3), I)", fontsize=8)
            continue
        arrow((x + 2.17, 0.54), (x + 2.17, 1.84))
        axis.text(x + 2.07, 0.95, f"h({t + 1})", ha="right", fontsize=8)
        pairs = [SLOT_COLOR] * n if merged else [comp[s] for s in range(t + 1) for _ in range(n)]
        begin = x + 2.2 - 0.22 * len(pairs)  # centered above the COMP tokens
        box(begin, 2.0, 0.44 * len(pairs) - 0.06)
        squares(begin, 2.0, pairs)
        axis.text(x + 2.17, 2.6, f"Mem({t + 1})", ha="center", fontsize=8)
        if t:  # the update begins with the memory of the step before
            before = n if merged else n * t
            arrow((x - 1.8 + 0.22 * before + 0.1, 2.19), (begin - 0.14, 2.19))
