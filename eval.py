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
from minccm.extra.evaluate import BASELINES, BY_TURNS, TIME_STEPS, Evaluator, Run
from minccm.io import options as command_line
from minccm.io.adapters import adapter_fingerprint, is_from_file, load_adapter
from minccm.io.files import write_json
from minccm.io.options import whole
from minccm.io.templates import choose_template


def arguments():
    """The command line."""
    parser = command_line.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    datasets = ", ".join([*data.GENERATED, *data.PREPARED])
    add("--adapter", type=command_line.name, nargs="+", help="adapter folders; by default all in the model's folder")
    add("--data", type=command_line.name, default="dialog", help=f"{datasets} or files; several with commas")
    add("--time-steps", type=whole(0, 4096), nargs="+", default=None, help="numbers of contexts")
    add("--samples", type=whole(0, 10**7), default=200, help="test samples per time step; of files, 0 means all")
    add("--average", action="store_true", help="adapters of one method are seeds: show their mean and deviation")
    add("--max-tokens", type=whole(1, 2**24), default=4096, help="tokens of one forward pass")
    add("--json", type=Path, default=None, help="write the table there, as a list of rows")
    add("--picture", type=Path, default=None, help="draw the table there")
    return parser.parse_args()


def adapters_of(options) -> list[Path]:
    """The adapters to evaluate: those named, or all in the folders next to the model's files."""
    if options.adapter:
        return [Path(adapter) for adapter in options.adapter]
    return sorted(path.parent for path in command_line.shipped_adapters(options.model).glob("*/adapter.json"))


def step1_of(adapter: Path) -> str | None:
    """A name for the step-1 adapter inside an adapter: adapters with the same one stand on the same base model."""
    return f"step 1 {adapter_fingerprint(adapter / 'init')[:6]}" if (adapter / "init").is_dir() else None


def main():
    options = arguments()
    device, dtype = command_line.device_and_dtype(options)
    template = choose_template(options.model, options.template)
    methods = [command_line.load_method(name) for name in options.method.split(",")] if options.method else []
    from_file = next((method for method in methods if is_from_file(method)), None)
    rows, distances, measured, model, tokenizer = [], [], set(), None, None

    def run_all(evaluator: Evaluator, run: Run, base: str | None) -> None:
        """Adds the rows of one method on each dataset."""
        for name in dict.fromkeys(data.expand(options.data)):
            time_steps = options.time_steps or TIME_STEPS.get(data.prepared.kind(name), BY_TURNS)
            new = evaluator.by_time_step(run, name, time_steps, options.samples, options.seed)
            rows.extend(row | ({"base": base} if base else {}) for row in new)
            if name == "dialog":
                new = evaluator.by_distance(run, BY_TURNS, options.samples or 200, options.seed)
                distances.extend(row | ({"base": base} if base else {}) for row in new)

    for adapter in tqdm(adapters_of(options) or [None], desc="evaluating", leave=False):
        base = adapter and step1_of(adapter)
        if model is None or getattr(model, "step1", None) != options.init:  # an adapter may have brought its own step 1
            model, tokenizer = command_line.open_base(options.model, options.init, device, dtype)
        evaluator = Evaluator(model, tokenizer, encoder(tokenizer, template), options.max_tokens)
        if adapter:
            wanted = from_file or (methods[0].name if len(methods) == 1 and options.adapter else None)
            method, n = load_adapter(model, adapter, wanted, options.n, options.sink)
            if methods and method.name not in {method.name for method in methods}:
                continue
        if base not in measured:  # the adapter's own base model, which LoRA on COMP tokens does not touch
            measured.add(base)
            for run in BASELINES:
                run_all(evaluator, run, base)
        if not adapter:
            continue
        label, others = (
            method.name,
            {row["n"] for row in rows if row["method"] == method.name and row.get("base") == base},
        )
        if method.name == "full":  # a step-1 adapter, now part of the base
            label = "full, trained"
        elif others - {n}:
            label += f", n = {n}"
        elif others and not options.average:
            label = adapter.name
        run_all(evaluator, Run(method, n, label), base)
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
