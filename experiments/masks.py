"""Pictures of the method: the attention mask of one method or of all, and compression over time.

python -m experiments.masks --method ccm-merge --lengths 4 3 4 3 2     # on the terminal
python -m experiments.masks --all docs/masks.png                       # of all methods, as a picture
python -m experiments.masks --over-time docs/method.png                # the paper's figure 2
"""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.common import pyplot
from minccm.extra.evaluate import save_figure
from minccm.extra.picture import (
    COMP_COLOR,
    LENGTHS,
    SLOT_COLOR,
    TEXT_COLOR,
    attention_grid,
    draw_mask,
    draw_masks,
    draw_method,
    example_sequence,
)
from minccm.io import options as cli
from minccm.io.options import load_method, whole
from minccm.methods import METHODS, Method

COLORS = (TEXT_COLOR, COMP_COLOR, SLOT_COLOR)  # by kind: methods.TEXT, COMP, SLOT


def arguments():
    parser = cli.OneLineParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--method", type=cli.name, help="a method of minccm/methods.py, or a file FILE.py; default: ccm-concat")
    add("--n", type=whole(1, 64), default=2, help="COMP tokens per step (default: 2)")
    add("--sink", action="store_true", help="keep BOS visible to every token")
    about = "tokens of the contexts, the input and the output (default: 4 3 4 3 2)"
    add("--lengths", type=whole(1, 64), nargs="+", default=LENGTHS, help=about)
    add("--picture", type=Path, help="draw the mask there as well")
    add("--all", type=Path, help="draw the masks of all methods there; with --method FILE.py, of that one too")
    add("--over-time", type=Path, help="draw there how contexts are compressed over time")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    method = load_method(options.method or "ccm-concat", options.sink)
    if options.all:
        save_figure(draw_masks((METHODS | {method.name: method}).values()), options.all)
    if options.over_time:
        save_figure(draw_method(), options.over_time)
    if options.method or options.picture or not (options.all or options.over_time):
        show(method, options.n, options.lengths)
        if options.picture:
            draw(method, options.n, options.lengths, options.picture)


def show(method: Method, n: int, lengths: list[int]) -> None:
    """Prints a mask: rows are queries, columns are keys."""
    mask, kinds = attention_grid(method, example_sequence(method, n, lengths))
    console = Console()
    console.print(f"{method.name}, n = {n}: a row attends to the colored columns; ", end="")
    console.print(f"[{TEXT_COLOR}]██ text[/] [{COMP_COLOR}]██ COMP[/] [{SLOT_COLOR}]██ slot[/]")
    for row in mask.tolist():
        line = Text()
        for kind, attends in zip(kinds.tolist(), row):
            line.append("██" if attends else "··", style=COLORS[kind] if attends else "dim")
        console.print(line)


def draw(method: Method, n: int, lengths: list[int], path: Path) -> None:
    """Draws a mask."""
    mask, _ = attention_grid(method, example_sequence(method, n, lengths))
    side = 1.5 + 0.12 * mask.shape[1]
    size = side, side * len(mask) / mask.shape[1] + 0.4
    figure, axis = pyplot().subplots(figsize=size, layout="constrained")
    draw_mask(axis, method, n, lengths)
    save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
