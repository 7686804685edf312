"""Equal memory: CCM next to caches that need no training, each with exactly as many KV pairs.

    python -m experiments.equal_memory --json equal.json --picture equal.png
    python -m experiments.equal_memory --model smollm2 --adapter DIR DIR --data dialog,icl

For each adapter and time step t, its memory holds some number of pairs. A sliding window with sink, and caches evicted
by attention scores (H2O, SnapKV), get the same number in each layer and KV head: minccm/extra/eviction.py. They read
the same samples with the same base model, its step-1 adapter merged if there is one. LoRA acts on COMP tokens only, so
it does not act on them.
"""

from pathlib import Path

from tqdm import tqdm

import data
from data.encode import encoder
from experiments.common import add_adapters, open_adapters, pyplot
from minccm.extra.evaluate import BASELINES, METRICS, Evaluator, Run, save_figure, step1_name
from minccm.extra.eviction import POLICIES, EvictionEvaluator
from minccm.extra.tables import new_table, print_table
from minccm.io import options as cli
from minccm.io.files import write_json
from minccm.io.options import whole
from minccm.io.templates import choose_template
from minccm.methods import get_method


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    add_adapters(parser)
    add = parser.add_argument
    datasets = ", ".join([*data.GENERATED, *data.PREPARED])
    add("--data", type=cli.name, default="dialog", help=f"{datasets} or files; several with commas")
    add("--time-steps", type=whole(1, 4096), nargs="+", help="numbers of contexts")
    add("--samples", type=whole(0, 10**7), default=200, help="test samples per time step; of files, 0 means all")
    add("--max-tokens", type=whole(1, 2**24), default=4096, help="tokens of one forward pass")
    add("--json", type=Path, default=None, help="write the table there, as a list of rows")
    add("--picture", type=Path, default=None, help="draw the table there")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    device, dtype = cli.device_and_dtype(options)
    template = choose_template(options.model, options.template)
    rows, bases = [], set()
    for adapted in tqdm(open_adapters(options, device, dtype), desc="adapters", leave=False):
        base = step1_name(adapted.folder) or ""
        about = adapted.model, adapted.tokenizer, encoder(adapted.tokenizer, template), options.max_tokens

        def measure(evaluator: Evaluator, run: Run, like: str) -> None:
            found = evaluator.by_dataset(run, options.data, options.samples, options.seed, options.time_steps)
            rows.extend(row | {"like": like, "base": base} for row in found)  # noqa: B023  used at once

        if base not in bases:
            for run in BASELINES:
                measure(Evaluator(*about), run, "")
            bases.add(base)
        own = Run(adapted.method, adapted.n, adapted.label)
        measure(Evaluator(*about), own, adapted.label)
        for policy in POLICIES:
            measure(EvictionEvaluator(*about, policy, own), Run(get_method("full"), 0, policy), adapted.label)
    show(rows)
    if options.json:
        write_json(options.json, rows)
    if options.picture:
        picture(rows, options.picture)


def metric_of(row: dict) -> str:
    """The metric to show: recall or accuracy where there is one, else perplexity."""
    return next(metric for metric in ("recall", "accuracy", "perplexity") if metric in row)


def show(rows: list[dict]) -> None:
    """Prints a table for each dataset and base: a section for each adapter, which begins with its number of pairs."""
    for name, base in dict.fromkeys((row["data"], row["base"]) for row in rows):
        of_data = [row for row in rows if (row["data"], row["base"]) == (name, base)]
        metric, steps = metric_of(of_data[0]), sorted({row["time_step"] for row in of_data})
        title = f"{name}: {METRICS[metric]} with equally many KV pairs" + f" ({base})" * bool(base)
        table = new_table(title, "memory", *(f"t={step}" for step in steps), f"KiB, t={steps[-1]}")
        for like in dict.fromkeys(row["like"] for row in of_data):
            section = [row for row in of_data if row["like"] == like]
            for method in dict.fromkeys(row["method"] for row in section):
                at = {row["time_step"]: row for row in section if row["method"] == method}
                if method in (like, "full"):  # the other lines of a section hold as many
                    pairs = [f"{at[step]['kv_pairs']:.0f}" if step in at else "" for step in steps]
                    table.add_row(f"pairs of {method}", *pairs, style="dim")
                form = ".2f" if metric == "perplexity" else ".1%"
                cells = [f"{at[step][metric]:{form}}" if step in at else "" for step in steps]
                table.add_row(method, *cells, f"{at[max(at)]['kv_bytes'] / 1024:,.0f}")
            table.add_section()
        print_table(table)


def picture(rows: list[dict], path: Path) -> None:
    """Draws a panel for each dataset and adapter: the metric by time step, with full and no context in gray."""
    keys = list(dict.fromkeys((row["data"], row["base"], row["like"]) for row in rows if row["like"]))
    shape = dict(figsize=(4.6 * len(keys), 3.6), squeeze=False, layout="constrained")
    figure, axes = pyplot().subplots(1, len(keys), **shape)
    for axis, (name, base, like) in zip(axes[0], keys):
        chosen = [row for row in rows if (row["data"], row["base"]) == (name, base) and row["like"] in ("", like)]
        metric = metric_of(chosen[0])
        for i, method in enumerate(dict.fromkeys(row["method"] for row in chosen)):
            line = [row for row in chosen if row["method"] == method]
            baseline = dict(color="gray", linestyle=":" if method == "none" else "--")
            style = dict(color=f"C{i}") if line[0]["like"] else baseline
            steps, values = [row["time_step"] for row in line], [row[metric] for row in line]
            axis.plot(steps, values, marker="o", markersize=4, label=method, **style)
        held = [f"{row['kv_pairs']:.0f}" for row in chosen if row["method"] == like]
        axis.set(title=f"{name}: the pairs of {like} ({', '.join(held)})", xlabel="time step t", ylabel=METRICS[metric])
        axis.title.set_fontsize(9)
        axis.legend(fontsize=7)
    save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
