"""How much of the gap is closed, by the size of the base model and by n: a table and a picture of several runs.

    python -m experiments.scale runs/real runs/n runs/34m runs/4m --json scale.json --picture scale.png

Each folder holds the results of experiments.real_model on the same dataset. The table has the last time step that all
of them have. Gap closed: 0 is no context, 1 is full context, by log-perplexity or by accuracy.
"""

from pathlib import Path

from rich.markup import escape

from experiments.common import pyplot
from minccm.extra.evaluate import save_figure
from minccm.extra.tables import new_table, print_table
from minccm.io import options as cli
from minccm.io.files import write_json
from minccm.io.untrusted import Field, check_fields, printable, read_json

BASELINES = ("none", "full")
ROW = {
    "data": Field(str),
    "method": Field(str),
    "n": Field(int, 0, 1024),
    "time_step": Field(int, 0, 4096),
    "parameters": Field(int, 1, 10**15),
    "kv_pairs": Field(float, 0, 1e12),
    "perplexity": Field(float, 0, 1e30, optional=True),
    "accuracy": Field(float, 0, 1, optional=True),
    "gap_closed": Field(float, -1e30, 1e30, optional=True),
}


def arguments():
    parser = cli.OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of experiments.real_model")
    parser.add_argument("--data", type=cli.name, default=None, help="name of the dataset, if the runs have several")
    parser.add_argument("--json", type=Path, default=None, help="write the rows there")
    parser.add_argument("--picture", type=Path, default=None, help="draw the gap closed by size and by n there")
    return parser.parse_args()


def read_rows(folders: list[Path], dataset: str | None) -> list[dict]:
    """The rows of all runs at the last time step that they have in common, smallest base first.

    Raises ValueError if a folder has no such results, or the runs have several datasets or no common time step.
    """
    rows = []
    for folder in folders:
        path = folder / "results.json"
        found = read_json(path)
        if not isinstance(found, list):
            raise ValueError(f"{path} is not a list of rows")
        for row in found:
            checked = row | check_fields(row, path, ROW)
            rows.append(checked | {name: printable(checked[name], 80) for name in ("data", "method")})
    rows = [row for row in rows if dataset in (None, row["data"])]
    names = {row["data"] for row in rows}
    if len(names) != 1:
        raise ValueError(f"choose one dataset with --data; the runs have: {', '.join(sorted(names)) or 'nothing'}")
    groups: dict[tuple, set[int]] = {}
    for row in rows:
        groups.setdefault((row["parameters"], row["method"]), set()).add(row["time_step"])
    if not (common := set.intersection(*groups.values())):
        raise ValueError("the runs have no time step in common")
    last: dict[tuple, dict] = {}  # a base that two runs have in common stands once
    for row in rows:
        if row["time_step"] == max(common):
            last.setdefault((row["parameters"], kind(row), row["n"]), row)
    order = lambda row: (row["parameters"], kind(row) not in BASELINES, kind(row) == "full", kind(row), row["n"])
    return sorted(last.values(), key=order)


def kind(row: dict) -> str:
    """The method's name, without its n."""
    return row["method"].split(",")[0]


def size(parameters: int) -> str:
    """3.8M, 34M, 135M."""
    millions = parameters / 1e6
    return f"{millions:.1f}M" if millions < 10 else f"{millions:.0f}M"


def show(rows: list[dict]) -> None:
    """Prints a line for each base, method and n."""
    metric = "accuracy" if rows[0]["perplexity"] is None else "perplexity"
    title = f"{escape(rows[0]['data'])} after {rows[0]['time_step']} contexts, by size of the base model"
    table = new_table(title, "base", "method", "n", metric, "gap closed", "pairs")
    for row in rows:
        value = "" if row[metric] is None else f"{row[metric]:.2f}" if metric == "perplexity" else f"{row[metric]:.1%}"
        gap = "" if kind(row) in BASELINES or row["gap_closed"] is None else f"{row['gap_closed']:.2f}"
        table.add_row(
            size(row["parameters"]), escape(kind(row)), str(row["n"] or ""), value, gap, f"{row['kv_pairs']:.0f}"
        )
    print_table(table)


def picture(rows: list[dict], path: Path) -> None:
    """Draws the gap closed by the size of the base (left; the n that all bases have), and by n (right)."""
    plt = pyplot()
    adapters = [row for row in rows if kind(row) not in BASELINES and row["gap_closed"] is not None]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for i, method in enumerate(sorted({kind(row) for row in adapters})):
        of_method = [row for row in adapters if kind(row) == method]
        sizes = {row["parameters"] for row in of_method}
        by_n = {n: [row for row in of_method if row["n"] == n] for n in {row["n"] for row in of_method}}
        line = max(by_n.values(), key=len)
        if len(sizes) > 1:
            style = dict(marker="o", color=f"C{i}", label=f"{method}, n = {line[0]['n']}")
            left.plot([row["parameters"] for row in line], [row["gap_closed"] for row in line], **style)
        line = max(([row for row in of_method if row["parameters"] == one] for one in sizes), key=len)
        if len(line) > 1:
            style = dict(marker="o", color=f"C{i}", label=f"{method}, {size(line[0]['parameters'])}")
            right.plot([row["n"] for row in line], [row["gap_closed"] for row in line], **style)
    left.set(xscale="log", xlabel="parameters of the base model", ylabel="gap closed")
    right.set(xscale="log", xlabel="COMP tokens per step (n)")
    ns = sorted({row["n"] for row in adapters})
    right.set_xticks(ns, map(str, ns), minor=False)
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    save_figure(figure, path)


def main() -> None:
    options = arguments()
    rows = read_rows(options.runs, options.data)
    show(rows)
    if options.json:
        write_json(options.json, rows)
    if options.picture:
        picture(rows, options.picture)


if __name__ == "__main__":
    cli.run(main)
