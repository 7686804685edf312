"""A look inside the memory: what COMP tokens attend to, and what the memory holds.

    python -m experiments.inside attention --method ccm-concat --picture attention.png
    python -m experiments.inside memory --method ccm-merge --turns 16 --picture memory.png

attention: each word of a conversation, shaded by its share of the COMP tokens' attention. memory: norms of keys and
values after each step, by layer, and how similar the values of successive steps are.
"""

from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from data import dialog
from experiments.common import Adapted, add_adapters, open_adapters, pyplot
from minccm.extra.evaluate import save_figure
from minccm.extra.inside import ListeningSession
from minccm.extra.tables import new_table, print_table
from minccm.io import options as cli
from minccm.io.options import whole
from minccm.io.tokenizer import Tokenizer

COLORS = ("#dd8452", "#4c72b0", "#55a868", "#c44e52")  # of COMP tokens 1, 2, ...
LINE = 96  # characters in a line of the picture
Line = tuple[str, str, list[tuple[str, float]]]  # name, color, words and their share of the attention


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("what", choices=["attention", "memory"])
    add_adapters(parser)
    add("--turns", type=whole(1, 100), default=8, help="turns of the generated conversation")
    add("--picture", type=Path, default=None, help="draw it there as well")
    return parser.parse_args()


def encode_turns(tokenizer: Tokenizer, turns: list[str]) -> list[list[int]]:
    """Token ids of each turn, as in training: BOS first, and a line break before each later turn."""
    return [([tokenizer.newline, [tokenizer.bos_id]][i == 0]) + tokenizer.encode(turn) for i, turn in enumerate(turns)]


def main() -> None:
    options = arguments()
    adapted = next(open_adapters(options, *cli.device_and_dtype(options)))  # the first of them
    if adapted.method.comp_after != "step":
        raise ValueError(f"{adapted.method.name} has no COMP tokens after each step to be shown")
    turns = dialog.sample_at("test", 0, options.turns, options.seed)["contexts"]
    title = f"{adapted.label}, n = {adapted.n}"
    with torch.no_grad():
        if options.what == "attention":
            lines = attended_words(adapted, turns)
            show_attention(lines, title)
            if options.picture:
                draw_attention(lines, title, options.picture)
        else:
            panels = memory_by_step(adapted, turns)
            show_memory(panels, len(turns), title)
            if options.picture:
                draw_memory(panels, len(turns), title, options.picture)


def attended_words(adapted: Adapted, turns: list[str]) -> list[Line]:
    """A line for each turn and COMP token; one for all of them together, if there are more than COLORS."""
    session, lines = ListeningSession(adapted.model, adapted.method, adapted.n), []
    for ids in encode_turns(adapted.tokenizer, turns):
        session.read(ids)
        shares = session.heard  # (n, N)
        together = len(shares) > len(COLORS)
        for j, row in enumerate((shares.mean(0, keepdim=True) if together else shares).tolist()):
            words = [(word, sum(row[place])) for word, place in adapted.tokenizer.words(ids) if word]
            lines.append((f"{len(shares)} COMP" if together else f"COMP {j + 1}", COLORS[j], words))
    return lines


def show_attention(lines: list[Line], title: str) -> None:
    """Prints the lines, their words shaded."""
    console = Console()
    console.print(f"What COMP tokens attend to ({title}): the darker, the larger the share of their attention")
    for name, color, words in lines:
        text = Text(f"{name:8}", style="dim")
        for word, shade in shaded(color, words):
            text.append(word, style=f"black on {shade}")
            text.append(" ")
        console.print(text)


def shaded(color: str, words: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Words with the color, mixed into white where they got less attention than the first of them."""
    most = max(share for _, share in words)
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    shade = lambda share: "#" + "".join(f"{round(255 - share / most * (255 - part)):02x}" for part in parts)
    return [(word, shade(share)) for word, share in words]


def draw_attention(lines: list[Line], title: str, path: Path) -> None:
    """Draws the lines, their words shaded; long ones are wrapped."""
    plt = pyplot()
    placed, y = [], 0.0  # column, line, word, color or None
    for name, color, words in lines:
        x = 9
        y += 0.45 if name in ("COMP 1", lines[0][0]) else 0.0  # some space between turns
        placed.append((0, y, name, None))
        for word, shade in shaded(color, words):
            if x + len(word) > LINE:
                x, y = 9, y + 1
            placed.append((x, y, word, shade))
            x += len(word) + 1
        y += 1
    figure = plt.figure(figsize=(9.6, 0.21 * y + 0.5))
    axis = figure.add_axes([0.01, 0.01, 0.98, 0.98 - 0.35 / figure.get_figheight()])
    axis.set(xlim=(-1, LINE + 1), ylim=(y, -0.6))
    axis.set_axis_off()
    for x, line, word, color in placed:
        if color:
            box = plt.Rectangle((x - 0.25, line - 0.42), len(word) + 0.5, 0.84, facecolor=color, linewidth=0)
            axis.add_patch(box)
        style = {"color": "#222222"} if color else {"color": "#999999"}
        axis.text(x, line, word.replace("$", r"\$"), family="monospace", fontsize=8.6, va="center", **style)
    figure.suptitle(f"What COMP tokens attend to ({title})", fontsize=10, y=1 - 0.1 / figure.get_figheight())
    save_figure(figure, path)


def memory_by_step(adapted: Adapted, turns: list[str]) -> dict[str, Tensor]:
    """By heading, numbers (layers, steps) of the newest n pairs of the memory after each step."""
    session = ListeningSession(adapted.model, adapted.method, adapted.n)
    keys, values = [], []  # for each step (layers, kv_heads, n, head_dim)
    for ids in encode_turns(adapted.tokenizer, turns):
        session.read(ids)
        keys.append(session.memory.keys[:, :, -session.n :].float().cpu())
        values.append(session.memory.values[:, :, -session.n :].float().cpu())
    panels = {
        f"norm of {name}": torch.stack(pairs).norm(dim=-1).mean((2, 3)).T
        for name, pairs in (("keys", keys), ("values", values))
    }
    if len(turns) > 1:
        this, before = torch.stack(values[1:]).flatten(3), torch.stack(values[:-1]).flatten(3)
        similarity = torch.nn.functional.cosine_similarity(this, before, -1)  # (steps - 1, layers, kv_heads)
        panels["values: cosine with the step before"] = similarity.mean(2).T
    return panels


def show_memory(panels: dict[str, Tensor], turns: int, title: str) -> None:
    """Prints a table for each panel, of at most eight steps."""
    for heading, numbers in panels.items():
        count = numbers.shape[1]
        shown = sorted({round(i * (count - 1) / 7) for i in range(8)})
        table = new_table(f"{heading} ({title})", "layer", *(f"t={turns - count + 1 + i}" for i in shown))
        for layer, row in enumerate(numbers.tolist()):
            table.add_row(str(layer), *(f"{row[i]:.2f}" for i in shown))
        print_table(table)


def draw_memory(panels: dict[str, Tensor], turns: int, title: str, path: Path) -> None:
    """Draws the panels as images."""
    figure, axes = pyplot().subplots(1, len(panels), figsize=(4.2 * len(panels), 2.8), layout="constrained")
    for axis, (heading, numbers) in zip(axes, panels.items()):
        first = turns - numbers.shape[1] + 1
        extent = (first - 0.5, turns + 0.5, len(numbers) - 0.5, -0.5)
        image = axis.imshow(numbers.numpy(), aspect="auto", cmap="viridis", extent=extent)
        axis.set(title=heading, xlabel="time step", ylabel="layer")
        axis.title.set_fontsize(9)
        axis.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=axis)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
