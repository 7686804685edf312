"""Evaluate: the table by time step, as in the paper's tables 23 to 25, for a model and its adapters.

    python eval.py --data dialog                  # the model that ships: none, full, and each of its adapters
    python eval.py --data icl --adapter DIR --json result.json --picture result.png

Other measurements are in experiments/: `python -m experiments` lists them. The metrics: minccm/extra/evaluate.py. With
--average, several adapters of one method are seeds: the table shows their mean and deviation.

An adapter that was trained on top of a step-1 adapter is compared with no context and full context on the same base
model: step 1 merged. The table's title then names the base.
"""

from pathlib import Path

from rich.console import Console
from tqdm import tqdm

import data
from data.encode import encoder
from minccm.extra import evaluate
from minccm.extra.evaluate import BASELINES, BY_TURNS, Evaluator, Run, step1_name
from minccm.io import options as command_line
from minccm.io.adapters import load_adapter
from minccm.io.files import write_json
from minccm.io.options import method_of, output_file, whole
from minccm.io.templates import choose_template
from minccm.io.untrusted import printable
from minccm.methods import Method


def arguments():
    """The command line."""
    parser = command_line.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    datasets = ", ".join([*data.GENERATED, *data.PREPARED])
    add("--adapter", type=command_line.name, nargs="+", help="adapter folders; by default all in the model's folder")
    add("--data", type=command_line.name, default="dialog", help=f"{datasets} or files; several with commas")
    add("--time-steps", type=whole(0, 4096), nargs="+", help="numbers of contexts")
    add("--samples", type=whole(0, 10**7), default=200, help="test samples per time step; of files, 0 means all")
    add("--average", action="store_true", help="adapters of one method are seeds: show their mean and deviation")
    add("--max-tokens", type=whole(1, 2**24), default=4096, help="tokens of one forward pass")
    add("--json", type=output_file, help="write the table there, as a list of rows")
    add("--picture", type=output_file, help="draw the table there: .png, .svg or .pdf")
    return parser.parse_args()


def adapters_of(options) -> list[Path]:
    """The adapters to evaluate: those named, or all in the folders next to the model's files.

    Raises ValueError for a name that is no folder.
    """
    for adapter in options.adapter or []:
        if not Path(adapter).is_dir():
            raise ValueError(f"{printable(adapter, 200)}: no adapter is there")
    if options.adapter:
        return [Path(adapter) for adapter in options.adapter]
    return sorted(path.parent for path in command_line.shipped_adapters(options.model).glob("*/adapter.json"))


def label_of(method: Method, n: int, adapter: Path, rows: list[dict], average: bool) -> str:
    """A name for an adapter, unlike those in `rows`; with `average`, adapters of one method and n share it."""
    if method.name == "full":  # a step-1 adapter, now part of the base
        return "full, trained"
    used = {row["method"]: row["n"] for row in rows}
    label = method.name if used.get(method.name, n) == n else f"{method.name}, n = {n}"
    if label not in used or average:
        return label
    return adapter.name if adapter.name not in used else str(adapter)


def main():
    options = arguments()
    device, dtype = command_line.device_and_dtype(options)
    template = choose_template(options.model, options.template)
    methods = [command_line.load_method(name) for name in options.method.split(",")] if options.method else []
    the_one = methods[0].name if len(methods) == 1 and options.adapter else None
    opened = options.model, options.init, device, dtype
    model, tokenizer = command_line.open_base(*opened)
    step1 = getattr(model, "step1", None)  # that of --init, now part of the base
    rows, distances, measured = [], [], set()

    def measure(run: Run, base: str | None) -> None:
        """Adds the rows of one method on all datasets."""
        measured.add((run.method.name, base))
        evaluator = Evaluator(model, tokenizer, encoder(tokenizer, template), options.max_tokens)
        rows.extend(evaluator.by_dataset(run, options.data, options.samples, options.seed, options.time_steps, base))
        if "dialog" in data.expand(options.data):
            new = evaluator.by_distance(run, BY_TURNS, options.samples or 200, options.seed)
            distances.extend(row | {"base": base} if base else row for row in new)

    def measure_baselines(base: str | None) -> None:
        """Adds the rows of no context and full context, once for each base model. No LoRA acts on them."""
        for run in BASELINES:
            if (run.method.name, base) not in measured:
                measure(run, base)

    for adapter in tqdm(adapters_of(options) or [None], desc="evaluating", leave=False):
        if getattr(model, "step1", None) != step1:  # the last adapter has merged a step 1 of its own
            model, tokenizer = command_line.open_base(*opened)
        below = adapter and step1_name(adapter)
        base = below or (f"step 1 {Path(step1).name}" if step1 else None)
        if adapter:
            given = method_of(adapter, methods) or the_one
            method, n = load_adapter(model, adapter, given, options.n, options.sink)
            if method.name == "full":  # it is merged into the base: no context and full context come before
                model, tokenizer = command_line.open_base(*opened)
                measure_baselines(base)
                load_adapter(model, adapter, given, options.n, options.sink)
        measure_baselines(base)
        if adapter and (not methods or method.name in {method.name for method in methods}):
            others = [row for row in rows if row.get("base") == base or options.average]
            measure(Run(method, n, label_of(method, n, adapter, others, options.average)), base)

    wanted = {method.name for method in methods} - {run.method.name for run in BASELINES}
    if wanted and not wanted & {name for name, _ in measured}:
        raise ValueError(f"no adapter was trained with {' or '.join(sorted(wanted))}: name one with --adapter")
    evaluate.close_gaps(rows)
    if options.average:
        rows, distances = evaluate.average(rows), evaluate.average(distances)
    console = Console()
    evaluate.show(rows, console=console)
    evaluate.show(distances, by="distance", console=console)
    if options.json:
        write_json(options.json, rows + distances)
    if options.picture:
        evaluate.picture(rows, options.picture)


if __name__ == "__main__":
    command_line.run(main)
