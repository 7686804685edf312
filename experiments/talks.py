"""Whole conversations, as in chat.py: the model says its part, and reads it. Are facts remembered at the end?

    python -m experiments.talks --talks 100 --json talks.json

The user tells a name, a city and a country, talks about twelve other topics, and asks for all three. The facts are from
the test split: in training, no user tells them. The table of eval.py asks one question after turns of the data. Here,
some 30 contexts lie between, half of them in the model's own words, and a wrong answer is remembered like a right one.
"""

import random
from pathlib import Path

from tqdm import tqdm

from data import dialog
from experiments.common import adapter_folders, add_adapters
from minccm.extra.conversation import Conversation, open_conversation
from minccm.extra.tables import new_table, print_table
from minccm.io import options as cli
from minccm.io.files import write_json
from minccm.io.options import load_method, whole

TOLD = {  # of each fact: its kind and values in data/dialog.py, how the user tells it, and asks for it
    "name": ("name", "names", "My name is {}.", "What is my name?"),
    "city": ("city", "cities", "I live in {}.", "Where do I live?"),
    "country": ("trip", "countries", "I booked a trip to {}.", "Where am I going on holiday?"),
}
BETWEEN = 12  # exchanges of small talk


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    add_adapters(parser)
    parser.add_argument("--talks", type=whole(1, 10**6), default=100, help="number of conversations")
    parser.add_argument("--json", type=Path, default=None, help="write the table there, as a list of rows")
    return parser.parse_args()


def script(index: int, seed: int = 0) -> tuple[dict[str, str], list[str]]:
    """Conversation number `index`: the values of its facts, and what the user says before the questions."""
    rng = random.Random(f"talk {seed} {index}")
    facts = {name: rng.choice(dialog.values("I", *of[:2], "test")) for name, of in TOLD.items()}
    small_talk = [rng.choice(rng.choice(lines)) for lines, _ in rng.sample(dialog.TALK, BETWEEN)]
    return facts, [TOLD[name][2].format(value) for name, value in facts.items()] + small_talk


def answers(talk: Conversation, lines: list[str]) -> dict[str, str]:
    """The answers to the three questions, when a fresh conversation has had these lines of the user."""
    talk = talk.replay([])
    for line in lines:
        list(talk.reply(line))
    return {name: "".join(talk.reply(question)) for name, (*_, question) in TOLD.items()}


def measure(options, folder: Path | None) -> dict:
    """The row of full context, or of an adapter's folder."""
    device, dtype = cli.device_and_dtype(options)
    method = "full" if folder is None else load_method(options.method) if options.method else None
    n, sink = (None, None) if folder is None else (options.n, options.sink)
    base = options.model, folder, method, options.init
    talk = open_conversation(*base, n, sink, options.template, device=device, dtype=dtype)
    name = f"{folder.name}, n = {talk.session.n}" if folder else "full"
    wrong = []  # for each conversation, facts and the answers that do not name them
    for index in tqdm(range(options.talks), desc=f"talking, {name}", leave=False):
        facts, lines = script(index, options.seed)
        given = answers(talk, lines).items()
        wrong.append({fact: [facts[fact], answer] for fact, answer in given if facts[fact] not in answer})
    row = {"method": name, "talks": options.talks}
    row |= {fact: 1 - sum(fact in one for one in wrong) / len(wrong) for fact in TOLD}
    return row | {"all": wrong.count({}) / len(wrong), "wrong": [one for one in wrong if one]}


def main() -> None:
    options = arguments()
    rows = [measure(options, folder) for folder in (None, *adapter_folders(options))]
    table = new_table(f"answered right in {options.talks} conversations", "method", *TOLD, "all three")
    for row in rows:
        table.add_row(row["method"], *(f"{row[key]:.0%}" for key in (*TOLD, "all")))
    print_table(table)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    cli.run(main)
