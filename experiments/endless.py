"""Conversations without end: recall of recent facts and perplexity, after up to 1,000,000 tokens.

    python -m experiments.endless --method examples/sliding.py --json endless.json --picture endless.png

Two questions about each memory. Does it recall a fact told at most 8 turns ago, at turn 20, 100, 300 and 1,000? Does
the perplexity stay the same from 10,000 to 1,000,000 tokens of one conversation?

The conversations are those of data/dialog.py (test split), continued without end: facts are told all the time, with
small talk between them. A turn is one context, which for a model with a chat template is a whole exchange. A fact
counts as told in the last turn that names its value. It is recalled if the reply, generated greedily, names the value.
No question is remembered.

The perplexity at a mark is that of the tokens since the mark before, and that of a probe: the same text, read at each
mark by a copy of the memory. Only the text before the probe differs. The first token of a turn does not count.

--method FILE.py (several with commas) is measured on adapters of other methods, too: on those that merge if it merges,
else on those that do not. Each adapter with its own method is measured for comparison, up to --compare tokens and
--compare-turns turns, because its memory may grow.
"""

import argparse
import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data import dialog
from experiments.common import adapter_folders, add_adapters, pyplot
from minccm.extra.evaluate import memory_pairs, save_figure
from minccm.extra.tables import new_table, print_table
from minccm.fast.conversations import Conversations
from minccm.io import options as cli
from minccm.io.adapters import load_adapter
from minccm.io.files import write_json
from minccm.io.options import load_method, method_of, open_base, whole
from minccm.io.templates import Template, choose_template
from minccm.io.tokenizer import Tokenizer
from minccm.memory import Memory
from minccm.methods import Method, TokenInfo
from minccm.model import Transformer
from minccm.sequence import build_sequence, step_rows
from minccm.session import StepKV

MARKS = (1_000, 10_000, 100_000, 1_000_000)  # tokens
NEAR, FAR = 8, 16  # turns since a fact was told
KNOWN = 16  # facts that may come up again; older ones are told again with another value
BLOCK = 32  # turns that go through the model together when perplexity is measured
PROBE, WARM_UP = 400, 40  # turns of the probe; the first ones do not count, because they fill the memory
OUTPUT = 32  # tokens of a reply, at most


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    parser.set_defaults(method="examples/sliding.py")
    add_adapters(parser)
    add = parser.add_argument
    add("--turns", type=whole(1, 10**5), nargs="+", default=[20, 100, 300, 1000], help="ask after so many turns")
    add("--talks", type=whole(0, 10**5), default=60, help="number of conversations with questions; 0: no recall")
    add("--batch", type=whole(1, 4096), default=64, help="conversations at once")
    add("--tokens", type=whole(0), default=1_000_000, help="tokens whose perplexity is measured; 0: none")
    add("--compare", type=whole(0), default=20_000, help="tokens for each adapter with its own method; 0: none")
    add("--compare-turns", type=whole(0), default=300, help="the most turns for each adapter with its own method")
    add("--json", type=Path, default=None, help="write the tables there, as a list of rows")
    add("--picture", type=Path, default=None, help="draw the tables there")
    return parser.parse_args()


class Writer(NamedTuple):
    """How a model's exchanges are written as token ids."""

    tokenizer: Tokenizer
    template: Template

    def exchange(self, user: str, reply: str | None = None, first: bool = False) -> list[list[int]]:
        """The contexts of an exchange; without a reply, the input is the last of them."""
        return [segment.ids for segment in self.template.encode_exchange(self.tokenizer, user, reply, first=first)]


def exchanges(name: str) -> Iterator[tuple[str, str, dialog.Dialogue]]:
    """A conversation without end: what the user says, the reply, and the conversation, which knows the facts."""
    talk = dialog.Dialogue(random.Random(f"endless/{name}"), "test")
    talk.mix = dialog.MIX[None]  # of every exchange alike, so that the text does not change over time
    while True:
        talk.contexts, talk.answers = [], []
        talk.exchange()
        user, reply = talk.contexts
        talk.told, talk.used = talk.told[-KNOWN:], talk.used[-2 * KNOWN :]
        yield user.removeprefix("User: "), reply.removeprefix("Bot: "), talk


def endless(writer: Writer, name: str) -> Iterator[list[int]]:
    """The contexts of a conversation without end."""
    for number, (user, reply, _) in enumerate(exchanges(name)):
        yield from writer.exchange(user, reply, first=number == 0)


class Question(NamedTuple):
    """A question about a fact."""

    ids: list[int]
    value: str
    distance: int  # turns since the value was told; 1: in the last one


class Talk(NamedTuple):
    """A conversation: its contexts, and the questions after so many of them."""

    contexts: list[list[int]]
    questions: dict[int, list[Question]]


def talk_with_questions(writer: Writer, name: str, turns: Iterable[int]) -> Talk:
    """A conversation with questions about all facts told at most FAR turns before each of `turns`.

    Where an exchange has two contexts, the questions come after the second one.
    """
    contexts, lines, questions = [], [], {}
    left = sorted(turns)
    for number, (user, reply, talk) in enumerate(exchanges(name)):
        new = writer.exchange(user, reply, first=number == 0)
        contexts += new
        lines += [user, reply] if len(new) == 2 else [f"{user}\n{reply}", *[""] * (len(new) - 1)]
        if len(contexts) < left[0]:
            continue
        questions[len(contexts)] = asked = []
        for fact in talk.told:
            recent = range(len(lines) - FAR, len(lines))
            told = max((i for i in recent if i >= 0 and fact.value.lower() in lines[i].lower()), default=None)
            if told is not None:
                ids = sum(writer.exchange(talk.question(fact)), [])
                asked.append(Question(ids, fact.value, len(lines) - told))
        while left and left[0] <= len(contexts):
            left.pop(0)
        if not left:
            return Talk(contexts, questions)


def names(text: str, value: str) -> bool:
    """Is a value in a text, as whole words, in capital or small letters?"""
    return re.search(rf"(?<!\w){re.escape(value.lower())}(?!\w)", text.lower()) is not None


def pairs_after(method: Method, n: int, turns: int) -> int:
    """KV pairs of a memory after so many turns."""
    return memory_pairs(method, build_sequence(method, n, 1, [[0]] * turns, [([0], [0])]))


def recall(model: Transformer, method: Method, n: int, writer: Writer, talks: list[Talk]) -> dict[int, dict]:
    """By turn: hits, a list of (distance, was it recalled?), and the pairs that the memory holds."""
    turns, longest = max(len(talk.contexts) for talk in talks), max(len(ids) for talk in talks for ids in talk.contexts)
    asked = [question for talk in talks for questions in talk.questions.values() for question in questions]
    width = max([longest, *(len(question.ids) for question in asked)])
    pairs, stop_ids = pairs_after(method, n, turns), writer.template.stop_ids(writer.tokenizer)
    batch = Conversations(model, method, n, len(talks), pairs, width, OUTPUT, graphs=False)
    found: dict[int, dict] = {}
    for turn in tqdm(range(1, turns + 1), desc="recall", leave=False, dynamic_ncols=True):
        batch.read([talk.contexts[turn - 1] if turn <= len(talk.contexts) else None for talk in talks])
        due = [talk.questions.get(turn, []) for talk in talks]
        for row in itertools.zip_longest(*due):  # one question of each conversation, which the others do not see
            filler = next(question for question in row if question)
            replies = batch.generate([(question or filler).ids for question in row], stop_ids=stop_ids)
            at = found.setdefault(turn, {"hits": [], "pairs": len(batch)})
            for question, reply in zip(row, replies):
                if question:
                    at["hits"].append((question.distance, names(writer.tokenizer.decode(reply), question.value)))
    return found


def recall_rows(model: Transformer, method: Method, n: int, writer: Writer, label: str, talks, batch: int):
    """A row for each turn: recall of facts told at most NEAR turns ago, and of those told up to FAR turns ago."""
    found: dict[int, dict] = {}
    for start in range(0, len(talks), batch):
        for turn, part in recall(model, method, n, writer, talks[start : start + batch]).items():
            at = found.setdefault(turn, {"hits": [], "pairs": 0})
            at["hits"], at["pairs"] = at["hits"] + part["hits"], max(at["pairs"], part["pairs"])
    rows = []
    for turn, at in sorted(found.items()):
        row = {"method": label, "n": n, "turn": turn, "pairs": at["pairs"]}
        row["kv_bytes"] = at["pairs"] * pair_bytes(model, method)
        for name, low, high in (("near", 1, NEAR), ("far", NEAR + 1, FAR)):
            hits = [hit for distance, hit in at["hits"] if low <= distance <= high]
            row |= {f"recall_{name}": sum(hits) / max(1, len(hits)), f"questions_{name}": len(hits)}
        rows.append(row)
    return rows


def pair_bytes(model: Transformer, method: Method) -> int:
    """Bytes of one KV pair, in the precision that the memory has."""
    dtype = Memory.empty(model.config, method, model.embed_tokens.weight.dtype).keys.dtype
    return model.config.kv_numbers_per_pair * dtype.itemsize


class Reader:
    """Reads contexts one after another and predicts the tokens of each from the memory of the earlier ones.

    Up to `block` contexts go through the model in one pass, under the method's mask; the numbers are those of
    Session.read, one context at a time. Slots are made one step at a time, so with merging a block is one context.
    """

    def __init__(self, model: Transformer, method: Method, n: int, block: int = BLOCK):
        self.model, self.method, self.n = model, method.bind(model), n
        self.block = 1 if method.merge_rate else block
        weight = model.embed_tokens.weight
        self.memory = Memory.empty(model.config, method, weight.dtype, weight.device)

    @torch.no_grad()
    def read(self, contexts: list[list[int]]) -> list[Tensor]:
        """For each context, the negative log-likelihoods of its tokens but the first: fp32 (length - 1,)."""
        found = []
        for start in range(0, len(contexts), self.block):
            found += self._read(contexts[start : start + self.block])
        return found

    def _read(self, contexts: list[list[int]]) -> list[Tensor]:
        memory, device = self.memory, self.memory.keys.device
        tokens, positions, at, info, slots, text = [], [], [], [], [], memory.text
        for step, ids in enumerate(contexts, memory.step):
            offsets, rows, step_slots = step_rows(self.method, self.n, len(ids), step, memory.tokens + len(tokens))
            tokens += ids + [self.model.config.vocab_size + j for j in range(len(rows) - len(ids))]
            positions += [text + offset for offset in offsets]
            at += [True] * (len(ids) - 1) + [False] * (len(rows) - len(ids) + 1)  # the tokens with a next one
            info, slots, text = info + rows, slots + step_slots, text + len(ids)
        tokens, positions, at = (torch.tensor(row, device=device) for row in (tokens, positions, at))
        info, slots = TokenInfo.from_rows(info, device), TokenInfo.from_rows(slots, device)
        kv, lora_mask = StepKV(self.method, memory, info), self.method.lora_mask(info)
        logits = self.model(tokens[None], positions[None], kv, lora_mask[None], at[None])
        nll = F.cross_entropy(logits.float(), tokens.roll(-1)[at], reduction="none")
        keys, values = torch.stack(kv.keys), torch.stack(kv.values)
        last = replace(memory, step=memory.step + len(contexts) - 1)
        self.memory = last.update(self.method, keys, values, info, slots, text - memory.text)
        return list(nll.split([len(ids) - 1 for ids in contexts]))


def perplexity(reader: Reader, writer: Writer, tokens: int, seed: int, label: str) -> list[dict]:
    """A row for each mark: perplexity since the mark before and of the probe, and the pairs of the memory."""
    stream = endless(writer, f"stream/{seed}")
    probe = list(itertools.islice(endless(writer, f"probe/{seed}"), PROBE + 2))[2:]  # without the beginning, or BOS
    marks, rows, counted, total = [*(mark for mark in MARKS if mark < tokens), tokens], [], 0, 0.0
    with tqdm(total=tokens, desc=label, unit="token", unit_scale=True, dynamic_ncols=True, leave=False) as bar:
        while len(rows) < len(marks):
            contexts = list(itertools.islice(stream, BLOCK))
            nll = torch.cat(reader.read(contexts))
            counted, total = counted + len(nll), total + float(nll.double().sum())
            bar.update(reader.memory.text - bar.n)
            if reader.memory.text >= marks[len(rows)]:
                held = reader.memory
                row = {"method": label, "n": reader.n, "tokens": held.text, "pairs": len(held), "kv_bytes": held.nbytes}
                row["perplexity"], row["counted"] = math.exp(total / counted), counted
                counted, total = 0, 0.0
                again = torch.cat(reader.read(probe)[WARM_UP:])
                row["probe"], row["probe_tokens"] = math.exp(float(again.double().mean())), len(again)
                reader.memory = held
                rows.append(row)
    return rows


def measured_methods(options: argparse.Namespace) -> Iterator[tuple[str, Transformer, Method, int, Tokenizer]]:
    """Label, model, method, n and tokenizer: each adapter with its own method, and with those of --method that fit."""
    device, dtype = cli.device_and_dtype(options)
    given = given_methods(options)
    for folder in adapter_folders(argparse.Namespace(**vars(options) | {"method": None})):
        model, tokenizer = open_base(options.model, options.init, device, dtype)
        own, n = load_adapter(model, folder, method_of(folder, given), options.n, options.sink)
        yield folder.name, model, own, n, tokenizer
        for method in given:
            if method.name != own.name and keeps(method) == keeps(own):
                yield f"{folder.name} as {method.name}", model, method, n, tokenizer


def given_methods(options: argparse.Namespace) -> list[Method]:
    """The methods of --method."""
    return [load_method(text) for text in options.method.split(",")]


def keeps(method: Method) -> tuple:
    """What a method needs of an adapter: two methods with the same can share one."""
    return bool(method.merge_rate), method.comp_after, method.pools, method.learned


def main() -> None:
    options = arguments()
    template, recalls, perplexities, talks = choose_template(options.model, options.template), [], [], {}
    for label, model, method, n, tokenizer in measured_methods(options):
        writer, turns, tokens = Writer(tokenizer, template), tuple(options.turns), options.tokens
        if method.name not in {given.name for given in given_methods(options)}:
            turns, tokens = tuple(t for t in turns if t <= options.compare_turns), min(tokens, options.compare)
        if options.talks and turns:
            if turns not in talks:
                numbers = range(options.talks)
                talks[turns] = [talk_with_questions(writer, f"{options.seed}/{i}", turns) for i in numbers]
            recalls += recall_rows(model, method, n, writer, label, talks[turns], options.batch)
        if tokens:
            perplexities += perplexity(Reader(model, method, n), writer, tokens, options.seed, label)
    show(recalls, perplexities)
    if options.json:
        write_json(options.json, recalls + perplexities)
    if options.picture:
        picture(recalls, perplexities, options.picture)


def show(recalls: list[dict], perplexities: list[dict]) -> None:
    """Prints the tables."""
    if recalls:
        title = f"recall in conversations without end: a fact told 1 to {NEAR}, {NEAR + 1} to {FAR} turns ago"
        headings = ("method", "n", "turn", f"1 to {NEAR}", "questions", f"{NEAR + 1} to {FAR}", "questions")
        rows = [
            (row["method"], str(row["n"]), f"{row['turn']:,}", *share(row, "near"), *share(row, "far"), *size(row))
            for row in recalls
        ]
        show_table(title, headings, rows)
    if perplexities:
        title = (
            f"perplexity of one conversation; probe: the same {perplexities[0]['probe_tokens']:,} tokens at each mark"
        )
        headings = ("method", "n", "tokens read", "since the last", "probe", "probe, change")
        rows, first = [], {row["method"]: row for row in reversed(perplexities)}
        for row in perplexities:
            cells = f"{row['perplexity']:,.3f}", f"{row['probe']:,.3f}"
            change = f"{row['probe'] / first[row['method']]['probe'] - 1:+.2%}"
            rows.append((row["method"], str(row["n"]), f"{row['tokens']:,}", *cells, change, *size(row)))
        show_table(title, headings, rows)


def share(row: dict, distance: str) -> tuple[str, str]:
    """Recall at a distance, and the number of questions."""
    count = row[f"questions_{distance}"]
    return f"{row[f'recall_{distance}']:.1%}" if count else "", str(count)


def size(row: dict) -> tuple[str, str]:
    """Pairs and KiB of a row's memory."""
    return f"{row['pairs']:,}", f"{row['kv_bytes'] / 1024:,.0f}"


def show_table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Prints a table whose last two columns are pairs and KiB."""
    table = new_table(title, *headings, "pairs", "KiB")
    for i, row in enumerate(rows):
        table.add_row(*row, end_section=i + 1 < len(rows) and rows[i + 1][0] != row[0])
    print_table(table)


def picture(recalls: list[dict], perplexities: list[dict], path: Path) -> None:
    """Draws recall by turns, the perplexity of the probe by tokens, and KV memory by turns."""
    figure, axes = pyplot().subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    panels = ((recalls, "turn", "recall_near"), (perplexities, "tokens", "probe"), (recalls, "turn", "kv_bytes"))
    for axis, (rows, x, y) in zip(axes, panels):
        for i, method in enumerate(dict.fromkeys(row["method"] for row in recalls + perplexities)):
            line = [row for row in rows if row["method"] == method]
            scale = 1 / 1024 if y == "kv_bytes" else 1
            axis.plot(
                [r[x] for r in line], [r[y] * scale for r in line], "o-", markersize=4, color=f"C{i}", label=method
            )
        axis.set_xscale("log")
    axes[0].set(xlabel="turn", ylabel=f"recall, told at most {NEAR} turns ago", ylim=(-0.03, 1.03))
    axes[1].set(xlabel="tokens read", ylabel="perplexity of the same text", yscale="log")
    axes[2].set(xlabel="turn", ylabel="KV memory (KiB)", yscale="log")
    axes[0].legend(fontsize=7)
    save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
