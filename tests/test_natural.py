"""The natural test sets: conversations in people's own words, none from a template of the generators.

natural.jsonl is the one that training data were improved for. natural_later.jsonl was written by others, after the
adapters of that day had been trained, and showed what else to write. natural_third.jsonl was not looked at before the
adapters that ship were measured.

One conversation a line:

    {"turns": ["Hi! I'm Oliver, ...", ...],                      what the user says, turn by turn
     "questions": [{"after": 1, "ask": "Who am I?", "expect": ["Oliver"], "told": 0}, ...]}

A question is asked after turn `after` (from 0), and is no part of the conversation: the memory stays as it is. It was
told in turn `told`, so `after - told + 1` turns earlier. A reply is right if one of the words or phrases in `expect`
is in it, as whole words, in capital or small letters. small_talk.txt has lines that tell nothing: to ask a
question later, say some of them first.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from data import source

FOLDER = Path(__file__).parent
NAMES = "natural", "natural_later", "natural_third"
SETS = {name: (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines() for name in NAMES}
CONVERSATIONS = [json.loads(line) for lines in SETS.values() for line in lines]
SMALL_TALK = (FOLDER / "small_talk.txt").read_text("utf-8").splitlines()
QUESTIONS = [question for conversation in CONVERSATIONS for question in conversation["questions"]]


def holds(text: str, phrase: str) -> bool:
    """Is a phrase in a text, as whole words?"""
    return re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text.lower()) is not None


def sentences(text: str) -> list[str]:
    """The sentences of a turn, each without its names and numbers and in small letters."""
    text = text.removeprefix("User:").removeprefix("Bot:").removesuffix("\nBot:").strip()
    return [without_names(sentence) for sentence in re.split(r"(?<=[.?!])\s+", text)]


def without_names(sentence: str) -> str:
    words = re.findall(r"[\w'-]+", sentence)
    is_name = lambda i, word: word[0].isdigit() or (i and word[0].isupper() and word.split("'")[0] != "I")
    return " ".join("_" if is_name(i, word) else word.lower() for i, word in enumerate(words))


@pytest.mark.parametrize(
    "name, conversations, questions, nearest, farthest, far",
    [("natural", 50, 277, 1, 20, 119), ("natural_later", 28, 137, 1, 19, 91), ("natural_third", 20, 104, 2, 14, 69)],
)
def test_counts(name, conversations, questions, nearest, farthest, far):
    """So many conversations and questions, asked 1 to 20 turns later; many of them a good while later."""
    talks = [json.loads(line) for line in SETS[name]]
    distances = [question["after"] - question["told"] + 1 for talk in talks for question in talk["questions"]]
    assert (len(talks), len(distances)) == (conversations, questions)
    assert (min(distances), max(distances)) == (nearest, farthest)
    assert sum(distance >= 4 for distance in distances) == far
    assert sum(distance >= 10 for distance in distances) >= 10


def test_format():
    """Every line has the fields above, and each answer was told where the line says."""
    for conversation in CONVERSATIONS:
        turns = conversation["turns"]
        assert conversation.keys() == {"turns", "questions"} and conversation["questions"]
        assert all(turn == turn.strip() and turn and turn.isprintable() for turn in turns)
        for question in conversation["questions"]:
            assert question.keys() == {"after", "ask", "expect", "told"}, question
            assert 0 <= question["told"] <= question["after"] < len(turns), question
            assert question["ask"].strip() and question["expect"] and all(question["expect"]), question
            assert any(holds(turns[question["told"]], phrase) for phrase in question["expect"]), question
            assert not any(holds(question["ask"], phrase) for phrase in question["expect"]), question


def test_nothing_twice():
    """No line of a conversation and no question is there twice; nobody is asked the same of two conversations."""
    for lines in ([turn for conversation in CONVERSATIONS for turn in conversation["turns"]], SMALL_TALK):
        assert [line for line, count in Counter(lines).items() if count > 1] == []
    assert [ask for ask, count in Counter(question["ask"] for question in QUESTIONS).items() if count > 2] == []


def test_small_talk_tells_nothing():
    """No line of small talk holds an answer."""
    assert len(SMALL_TALK) >= 24
    for question in QUESTIONS:
        assert not any(holds(line, phrase) for line in SMALL_TALK for phrase in question["expect"]), question


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_template(split):
    """No sentence, whatever its names and numbers, is one that the generator of dialogues makes."""
    made, generate = set(), source("dialog", split)
    for index in range(3000):
        sample = generate(index)
        texts = [*sample["contexts"], sample["input"], *(input for input, _ in sample.get("questions", []))]
        made.update(sentence for text in texts for sentence in sentences(text))
    ours = [turn for conversation in CONVERSATIONS for turn in conversation["turns"]]
    for line in ours + [question["ask"] for question in QUESTIONS]:
        same = [sentence for sentence in sentences(line) if sentence in made and len(sentence.split()) > 2]
        assert not same, f"{line!r} is in a natural test set, and the generator makes such sentences, too"
