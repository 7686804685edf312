"""Whole conversations, as in chat.py, where the model says its part and reads it: eval.py --talks 100.

The user tells a name, a city and a country (facts of the test part: in training nobody says them of themselves), talks
of twelve other things, and asks for all three. What eval.py's table asks is one question behind turns of the data; here
some 30 contexts lie between, half of them the model's own words, and a wrong answer is remembered like a right one.
"""

import random
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from conversation import Conversation, open_conversation
from data import dialog
from eval import adapters_of, wanted_of
from minccm import cli
from minccm.files import write_json

TOLD = {  # the fact: its kind and values in data/dialog.py, how it is told, and asked for
    "name": ("name", "names", "My name is {}.", "What is my name?"),
    "city": ("city", "cities", "I live in {}.", "Where do I live?"),
    "country": ("trip", "countries", "I booked a trip to {}.", "Where am I going on holiday?"),
}
BETWEEN = 12  # exchanges of small talk


def script(index: int, seed: int = 0) -> tuple[dict[str, str], list[str]]:
    """Conversation `index`: the values of its facts, and what the user says, the questions left out."""
    rng = random.Random(f"talk {seed} {index}")
    facts = {name: rng.choice(dialog.values("I", *of[:2], "test")) for name, of in TOLD.items()}
    small_talk = [rng.choice(rng.choice(lines)) for lines, _ in rng.sample(dialog.TALK, BETWEEN)]
    return facts, [TOLD[name][2].format(value) for name, value in facts.items()] + small_talk


def answers(talk: Conversation, lines: list[str]) -> dict[str, str]:
    """What is answered to the three questions, at the end of a conversation that begins anew."""
    talk = talk.retold([])
    for line in lines:
        list(talk.reply(line))
    return {name: "".join(talk.reply(question)) for name, (*_, question) in TOLD.items()}


def measure(options, folder: Path | None) -> list[dict]:
    """The row of full context, or of an adapter's folder; none for one that is not wanted."""
    wanted, method = wanted_of(options) if folder else ([], "full")
    more = (options.n, options.sink) if folder else (None, None)
    device, dtype = cli.device_and_dtype(options)
    talk = open_conversation(options.model, folder, method, options.init, *more, device=device, dtype=dtype)
    if wanted and talk.session.method.name not in wanted:
        return []
    name = f"{folder.name}, n = {talk.session.n}" if folder else method
    wrong = []  # of each conversation: facts and answers that do not name them
    for index in tqdm(range(options.talks), desc=f"talking, {name}", leave=False):
        facts, lines = script(index, options.seed)
        given = answers(talk, lines).items()
        wrong.append({fact: [facts[fact], answer] for fact, answer in given if facts[fact] not in answer})
    row = {"method": name, "talks": options.talks}
    row |= {fact: 1 - sum(fact in one for one in wrong) / len(wrong) for fact in TOLD}
    return [row | {"all": wrong.count({}) / len(wrong), "wrong": [one for one in wrong if one]}]


def main(options) -> None:
    """eval.py --talks."""
    if options.talks < 1:
        raise ValueError("--talks is to be at least 1")
    rows = sum((measure(options, folder) for folder in (None, *adapters_of(options))), [])
    table = Table("method", *TOLD, "all three", title=f"answered right in {options.talks} conversations")
    for row in rows:
        table.add_row(row["method"], *(f"{row[key]:.0%}" for key in (*TOLD, "all")))
    Console().print(table)
    if options.json:
        write_json(options.json, rows)
