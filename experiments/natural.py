"""The natural test set: conversations in people's own words, with every question answered from the memory alone.

    python -m experiments.natural --model smollm2
    python -m experiments.natural --model smollm2 --small-talk 6 --json natural.json

The model says its part of every conversation of tests/natural.jsonl itself (greedy), up to the turn after which a
question is asked; then it answers. A reply is right if one of the expected words or phrases is in it. --small-talk adds
lines that tell nothing before each question. An adapter is compared with no context and full context, both answered by
the base with its step 1. Many conversations are held at once (minccm/fast/conversations.py).
"""

import random
import re
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from experiments.common import Adapted, add_adapters, open_adapters
from minccm.extra.evaluate import step1_name
from minccm.extra.tables import new_table, print_table
from minccm.fast.conversations import Conversations
from minccm.io import options as cli
from minccm.io.files import write_json
from minccm.io.options import name, whole
from minccm.io.templates import Template, choose_template
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import Field, check_fields, parse_json, read_lines
from minccm.io.weights import pair_bytes
from minccm.methods import Method, get_method
from minccm.model import Transformer

TESTS = Path(__file__).parents[1] / "tests"
ASKED = {"after": Field(int, 0, 10**4), "ask": Field(str), "expect": Field(list, items=Field(str))}
LINE = {"turns": Field(list, items=Field(str)), "questions": Field(list, items=Field(dict))}


class Question(NamedTuple):
    """A question of the test set."""

    ask: str
    expect: list[str]  # one of these is in a right reply
    distance: int  # turns since it was told, that one included


class Episode(NamedTuple):
    """A user's turns, and the questions in the end."""

    turns: list[str]
    questions: list[Question]


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    parser.set_defaults(model="smollm2")
    add_adapters(parser)
    parser.add_argument("--test-set", type=name, default=str(TESTS / "natural.jsonl"), help="the conversations")
    parser.add_argument("--small-talk", type=whole(0, 100), default=0, help="lines of small talk before each question")
    parser.add_argument("--batch", type=whole(1, 4096), default=None, help="conversations at once")
    parser.add_argument("--max-tokens", type=whole(1, 1024), default=48, help="of a reply")
    parser.add_argument("--count", type=whole(1), default=None, help="conversations of the test set, at most")
    parser.add_argument("--json", type=Path, default=None, help="write the table there, with all replies")
    return parser.parse_args()


def episodes(path: Path, small_talk: int, count: int | None = None, seed: int = 0) -> list[Episode]:
    """One episode for each turn after which something is asked."""
    lines = (TESTS / "small_talk.txt").read_text("utf-8").splitlines() if small_talk else []
    found = []
    with path.open("rb") as file:
        for number, line in enumerate(read_lines(file, path), 1):
            if not line.strip() or (count and number > count):
                continue
            where = f"{path}, line {number}"
            talk = check_fields(parse_json(line, where), where, LINE)
            rng = random.Random(f"{seed} {number}")
            asked: dict[int, list[Question]] = {}
            for raw in talk["questions"]:
                question = check_fields(raw, where, ASKED)
                distance = question["after"] - raw.get("told", question["after"]) + 1
                asked.setdefault(question["after"], []).append(Question(question["ask"], question["expect"], distance))
            for after, questions in asked.items():
                extra = rng.sample(lines, small_talk) if small_talk <= len(lines) else rng.choices(lines, k=small_talk)
                found.append(Episode(talk["turns"][: after + 1] + extra, questions))
    return found


def holds(text: str, phrase: str) -> bool:
    """Is a phrase in a text, as whole words, in capital or small letters?"""
    return re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text.lower()) is not None


class Talks:
    """A batch of conversations: the model says its part."""

    def __init__(self, model: Transformer, method: Method, n: int, tokenizer: Tokenizer, template: Template, options):
        self.model, self.method, self.n = model, method, n
        self.tokenizer, self.template, self.options = tokenizer, template, options
        self.stop_ids = template.stop_ids(tokenizer)

    @torch.no_grad()
    def run(self, batch: list[Episode]) -> list[list[str]]:
        """For each episode, the replies to its questions."""
        longest = max(len(episode.turns) for episode in batch)
        self.began = [False] * len(batch)
        said = [
            text for episode in batch for text in (*episode.turns, *(question.ask for question in episode.questions))
        ]
        self.turn = max(len(ids) for text in said for ids in self.encode(0, text)) + self.options.max_tokens + 16
        pairs = {"full": 80 * longest + 256, "none": 16}.get(self.method.name, self.n * (longest + 8))
        self.talks = Conversations(
            self.model, self.method, self.n, len(batch), pairs, self.turn, self.options.max_tokens, graphs=False
        )
        for turn in range(longest):
            users = [episode.turns[turn] if turn < len(episode.turns) else None for episode in batch]
            self.exchange(users)
        self.pairs = len(self.talks)
        answers: list[list[str]] = [[] for _ in batch]
        for number in range(max(len(episode.questions) for episode in batch)):
            asks = [e.questions[number].ask if number < len(e.questions) else None for e in batch]
            for answer, reply in zip(answers, self.replies(asks)):
                answer += [] if reply is None else [reply]
        return answers

    def encode(self, i: int, user: str, reply: str | None = None) -> list[list[int]]:
        """Token ids of an exchange of conversation i; without a reply, the last ones are an input."""
        segments = self.template.encode_exchange(self.tokenizer, user, reply, first=not self.began[i])
        return [segment.ids for segment in segments]

    def replies(self, users: list[str | None]) -> list[str | None]:
        """The replies to what some of the users say now. Nothing is remembered."""
        prompts = [None if user is None else sum(self.encode(i, user), []) for i, user in enumerate(users)]
        filler = next(prompt for prompt in prompts if prompt)
        texts = [prompt or filler for prompt in prompts]
        outputs = self.talks.generate(texts, stop_ids=self.stop_ids)
        return [None if prompt is None else self.tokenizer.decode(ids).strip() for prompt, ids in zip(prompts, outputs)]

    def exchange(self, users: list[str | None]) -> None:
        """The users say something, the model replies, and both are compressed."""
        replies = self.replies(users)
        parts = [
            [] if user is None else self.encode(i, user, reply or "...")
            for i, (user, reply) in enumerate(zip(users, replies))
        ]
        for number in range(max(map(len, parts))):
            self.talks.read([part[number][: self.turn] if number < len(part) else None for part in parts])
        self.began = [began or bool(part) for began, part in zip(self.began, parts)]


def measure(talks: Talks, found: list[Episode], label: str, batch: int) -> dict:
    """The row of a method: the share of right answers, in all and by distance, the memory, and all replies."""
    rows, pairs = [], []
    order = sorted(found, key=lambda episode: len(episode.turns))
    for start in tqdm(range(0, len(order), batch), desc=label, leave=False):
        part = order[start : start + batch]
        for episode, answers in zip(part, talks.run(part)):
            for question, reply in zip(episode.questions, answers):
                right = any(holds(reply, phrase) for phrase in question.expect)
                rows.append(question._asdict() | {"reply": reply, "right": right})
        pairs.append(talks.pairs)
    row = {"method": label, "n": talks.n, "questions": len(rows), "right": sum(r["right"] for r in rows)}
    row["share"] = row["right"] / len(rows)
    for low, high in ((1, 3), (4, 9), (10, 99)):
        near = [r["right"] for r in rows if low <= r["distance"] <= high]
        row[f"{low}-{high}"] = sum(near) / len(near) if near else None
    row["pairs"] = max(pairs)
    row["bytes"] = row["pairs"] * pair_bytes(talks.model)
    return row | {"replies": rows}


def main() -> None:
    options = arguments()
    device, dtype = cli.device_and_dtype(options)
    found = episodes(Path(options.test_set), options.small_talk, options.count, options.seed)
    template = choose_template(options.model, options.template)
    batch = options.batch or (512 if device.type == "cuda" else 32)
    rows, bases = [], set()

    def add(adapted: Adapted, method: Method, label: str) -> None:
        n = adapted.n if method.comp_after else 0
        talks = Talks(adapted.model, method, n, adapted.tokenizer, template, options)
        rows.append(measure(talks, found, label, batch))

    for adapted in open_adapters(options, device, dtype):
        base = str(adapted.folder) if adapted.method.name == "full" else step1_name(adapted.folder)
        if base and base not in bases:  # LoRA acts on COMP tokens only, and here are none: this is the base with step 1
            for method in ("none", "full"):
                add(adapted, get_method(method), f"{method}, step 1")
        bases.add(base)
        if adapted.method.name != "full":
            add(adapted, adapted.method, adapted.label)
    lines = f", {options.small_talk} lines of small talk before each" if options.small_talk else ""
    spans = [key for key in rows[0] if re.fullmatch(r"\d+-\d+", key)]
    title = f"{rows[0]['questions']} questions answered right{lines}, by the turns since it was told"
    table = new_table(title, "method", "n", "right", *(f"{span} turns" for span in spans), "pairs", "KiB")
    for row in rows:
        shares = ["" if row[span] is None else f"{row[span]:.0%}" for span in spans]
        kib = f"{row['bytes'] / 1024:,.0f}"
        table.add_row(row["method"], str(row["n"]), f"{row['share']:.1%}", *shares, str(row["pairs"]), kib)
    print_table(table)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    cli.run(main)
