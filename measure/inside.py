"""Seeing inside: eval.py --show attention, mask or memory; on the terminal, and with --picture FILE as a picture.

attention: what COMP tokens listen to over a conversation, its words shaded. mask: who sees whom, of one method for the
lengths in --layout. memory: norms of what each step leaves behind, by layer, and how alike successive steps are.
"""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data import dialog
from eval import adapters_of, save_figure
from minccm import cli
from minccm.checkpoint import load_adapter
from minccm.layout import lay_out
from minccm.methods import get_method
from minccm.online import Session
from minccm.picture import draw_mask, grid

COLOURS = ("#dd8452", "#4c72b0", "#55a868", "#c44e52")  # of COMP tokens 1, 2, ...
LINE = 96  # characters


def main(options) -> None:
    if options.show == "mask":
        return mask(options)
    model, tokenizer = cli.open_base(options.model, options.init, *cli.device_and_dtype(options))
    adapters = adapters_of(options)
    wanted = options.method  # of those in the model's folder, the first of this method
    for folder in adapters:
        if len(adapters) == 1 or not wanted or wanted in (folder / "adapter.json").read_text("utf-8"):
            break
    else:
        raise ValueError(f"{options.model} holds no adapter" + f" for {wanted}" * bool(wanted) + ": give --adapter")
    method, n = load_adapter(model, folder, wanted, options.n, options.sink)
    if method.comp != "step":
        raise ValueError(f"{method.name} has no COMP tokens after each step to be shown")
    turns = dialog.sample_at("test", 0, (options.time_steps or [8])[0], options.seed)
    name = folder.name if folder.name == method.name else f"{folder.name}: {method.name}"
    session, title = Session(model, method, n), f"{name}, n = {n}"
    with torch.no_grad():
        (attention if options.show == "attention" else memory)(options, session, tokenizer, turns["contexts"], title)


def spell(tokenizer, turns: list[str]) -> list[list[int]]:
    """Token ids of each turn, as in training: BOS first, and a line break before each later one."""
    return [([tokenizer.newline, [tokenizer.bos_id]][i == 0]) + tokenizer.encode(turn) for i, turn in enumerate(turns)]


def attention(options, session: Session, tokenizer, turns: list[str], title: str) -> None:
    """Each turn once for each COMP token (or once for all, if they are more than there are colours)."""
    lines: list[tuple[str, str, list[tuple[str, float]]]] = []  # name, colour, words and how much attention they got
    for ids in spell(tokenizer, turns):
        shares = session.read(ids, watch=True)  # (n, N)
        rows = shares if len(shares) <= len(COLOURS) else shares.mean(0, keepdim=True)
        for j, row in enumerate(rows.tolist()):
            words = [(word, sum(row[place])) for word, place in tokenizer.words(ids) if word]
            name = f"COMP {j + 1}" if len(rows) == len(shares) else f"{len(shares)} COMP"
            lines.append((name if j or len(rows) < 2 else f"COMP {j + 1}", COLOURS[j], words))
    console, most = Console(), [max(share for _, share in words) for *_, words in lines]
    console.print(f"What COMP tokens listened to ({title}): the darker, the larger the share of their attention")
    for (name, colour, words), top in zip(lines, most):
        text = Text(f"{name:8}", style="dim")
        for word, share in words:
            text.append(word, style=f"black on {shade(colour, share / top)}")
            text.append(" ")
        console.print(text)
    if options.picture:
        draw_attention(lines, most, title, options.picture)


def shade(colour: str, strength: float) -> str:
    """`colour` mixed into white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - strength * (255 - part)):02x}" for part in parts)


def draw_attention(lines, most: list[float], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, y = [], 0.0  # place of each word: column, line
    for (name, colour, words), top in zip(lines, most):
        x = 9
        y += 0.45 if name in ("COMP 1", lines[0][0]) else 0.0  # a little apart from the turn before
        rows.append((0, y, name, None))
        for word, share in words:
            if x + len(word) > LINE:
                x, y = 9, y + 1
            rows.append((x, y, word, shade(colour, share / top)))
            x += len(word) + 1
        y += 1
    figure = plt.figure(figsize=(9.6, 0.21 * y + 0.5))
    axis = figure.add_axes([0.01, 0.01, 0.98, 0.98 - 0.35 / figure.get_figheight()])
    axis.set(xlim=(-1, LINE + 1), ylim=(y, -0.6))
    axis.set_axis_off()
    for x, line, word, colour in rows:
        if colour:
            box = plt.Rectangle((x - 0.25, line - 0.42), len(word) + 0.5, 0.84, facecolor=colour, linewidth=0)
            axis.add_patch(box)
        style = {"color": "#222222"} if colour else {"color": "#999999"}
        axis.text(x, line, word.replace("$", r"\$"), family="monospace", fontsize=8.6, va="center", **style)
    figure.suptitle(f"What COMP tokens listen to ({title})", fontsize=10, y=1 - 0.1 / figure.get_figheight())
    save_figure(figure, path)


def mask(options) -> None:
    method, n = get_method(options.method or "ccm-concat", bool(options.sink)), options.n or 2
    *contexts, input, target = options.layout
    if not contexts or min(options.layout) < 1:
        raise ValueError("--layout takes lengths of contexts, of the input and of the target, all at least 1")
    layout = lay_out(method, n, 100, [[5] * length for length in contexts], [5] * input, [5] * target)
    seen, kinds = grid(method, layout), torch.cat([layout.columns, layout.slots])[:, 1].tolist()
    console = Console()
    console.print(f"{method.name}, n = {n}: rows see columns; ", end="")
    console.print("[#4c72b0]██ text[/] [#dd8452]██ COMP[/] [#55a868]██ slot[/]")
    for row in seen.tolist():
        line = Text()
        for kind, see in zip(kinds, row):
            line.append("██" if see else "··", style=("#4c72b0", "#dd8452", "#55a868")[kind] if see else "dim")
        console.print(line)
    if options.picture:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        side = 1.5 + 0.12 * len(kinds)
        figure, axis = plt.subplots(figsize=(side, side * len(seen) / len(kinds) + 0.4), layout="constrained")
        draw_mask(axis, method, n, contexts, input, target)
        save_figure(figure, options.picture)


def memory(options, session: Session, tokenizer, turns: list[str], title: str) -> None:
    """What the newest n slots hold after each step: keys and values, (steps, layers, kv heads, n, head_dim)."""
    keys, values = [], []
    for ids in spell(tokenizer, turns):
        session.read(ids)
        keys.append(session.memory.keys[:, :, -session.n :].float().cpu())
        values.append(session.memory.values[:, :, -session.n :].float().cpu())
    alike = torch.nn.functional.cosine_similarity(*(torch.stack(x).flatten(3) for x in (values[1:], values[:-1])), -1)
    norms = [torch.stack(x).norm(dim=-1).mean((2, 3)).T for x in (keys, values)]  # (layers, steps)
    panels = {"norm of keys": norms[0], "norm of values": norms[1]}
    if len(turns) > 1:
        panels["values: cosine with the step before"] = alike.mean(2).T  # (layers, steps - 1)
    console = Console()
    for heading, numbers in panels.items():
        table = Table(title=f"{heading} ({title})", title_justify="left")
        table.add_column("layer")
        count = numbers.shape[1]
        shown = sorted({round(i * (count - 1) / 7) for i in range(8)})  # eight steps at most
        for i in shown:
            table.add_column(f"t={len(turns) - count + 1 + i}", justify="right")
        for layer, row in enumerate(numbers.tolist()):
            table.add_row(str(layer), *(f"{row[i]:.2f}" for i in shown))
        console.print(table)
    if options.picture:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 2.8), layout="constrained")
        for axis, (heading, numbers) in zip(axes, panels.items()):
            first = len(turns) - numbers.shape[1] + 1
            extent = (first - 0.5, len(turns) + 0.5, len(numbers) - 0.5, -0.5)
            image = axis.imshow(numbers.numpy(), aspect="auto", cmap="viridis", extent=extent)
            axis.set(title=heading, xlabel="time step", ylabel="layer")
            axis.title.set_fontsize(9)
            axis.xaxis.get_major_locator().set_params(integer=True)
            figure.colorbar(image, ax=axis)
        figure.suptitle(title, fontsize=10)
        save_figure(figure, options.picture)
