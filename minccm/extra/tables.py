"""Tables for a terminal: within 80 columns where possible, and never with a cell that is cut."""

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def new_table(title: str, *headings: str, left: int = 1) -> Table:
    """An empty table. The first `left` columns are aligned to the left, the others, with numbers, to the right."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < left else "right", no_wrap=True)
    return table


def print_table(table: Table, console: Console | None = None) -> None:
    """Prints a table in its full width. Where the terminal is narrower, it wraps lines."""
    console = console or Console()
    width = console.width
    console.width = max(width, Measurement.get(console, console.options.update(max_width=10**4), table).maximum)
    console.print(table, soft_wrap=True)
    console.width = width
