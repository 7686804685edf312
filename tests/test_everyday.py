"""The generator of everyday chats: the same everywhere, answerable from earlier messages, and varied."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import everyday
from data.chats import check_chat
from data.scenes import plural, scene

CHATS = [everyday.sample("train", index) for index in range(300)]


def test_seeded():
    """A sample depends on (split, index, seed) alone."""
    assert everyday.sample("train", 7) == everyday.sample("train", 7)
    assert everyday.sample("train", 7) != everyday.sample("train", 8)
    assert everyday.sample("train", 7) != everyday.sample("train", 7, seed=1)
    assert everyday.sample("train", 7) != everyday.sample("test", 7)


def test_is_chat():
    """Samples are chats: user and assistant take turns, and the assistant has the last word."""
    for chat in CHATS:
        assert len(check_chat(chat, "a chat")) == len(chat["messages"])
        assert all(message["content"].strip() == message["content"] for message in chat["messages"])


def test_time_step():
    """sample_at makes as many exchanges as asked before the last question."""
    for time_step in (1, 2, 5, 20):
        for index in range(10):
            assert len(everyday.sample_at("test", index, time_step)["messages"]) == 2 * time_step + 2


def test_answer_was_told():
    """The answer is in the last reply, and some user's message before it told it."""
    told = 0
    for chat in CHATS:
        *before, _, reply = (message["content"] for message in chat["messages"])
        assert chat["answer"] in reply
        answer = re.sub(r"(?i)\byour\b", "my", chat["answer"])
        told += any(answer.lower() in text.lower() for text in before[::2])
    assert told >= 0.95 * len(CHATS)  # the rest is said in other words: "you wanted" for "I wanted"


def test_no_braces():
    """No field of a template is left unfilled."""
    for chat in CHATS:
        texts = [message["content"] for message in chat["messages"]] + sum(chat["questions"], [])
        assert not any(re.search(r"[{}\[\]|]", text) for text in texts)


def test_varied():
    """Most questions have a wording of their own."""
    asked = [question for chat in CHATS for question, _ in chat["questions"]]
    assert len(set(asked)) > 0.9 * len(asked)


def test_splits_share_no_names():
    """Names that a user of the test split has are not told in training."""
    made = lambda split: {
        one.values["v"]
        for index in range(150)
        for chat in [everyday.Chat(split, everyday.random.Random(index))]
        for one in [chat.new_fact()]
        if one and one.frame.name == "myname"
    }
    assert not made("train") & made("test")


def test_through_data():
    """data.source and data.at_step know the dataset."""
    assert data.source("everyday", "train")(3) == everyday.sample("train", 3)
    assert len(data.at_step("everyday", "test", 4, 5)) == 5


def test_unknown_split():
    with pytest.raises(ValueError, match="unknown split"):
        everyday.sample("dev", 0)


@given(st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_scenes_answer_their_questions(seed):
    """Each question of a scene is answered by its sentences, and the assistant says "you" and "your"."""
    lines, asked = scene(random.Random(seed), ["my aunt", "Tomasz"])
    told = " ".join(lines).lower()
    for question, reply, value in asked:
        assert question.endswith("?") and value and value.lower() in reply.lower()
        said = re.sub(r"\byour\b", "my", value.lower()).split()
        assert any(re.sub(r"\bour\b", "my", told).count(word) for word in said), (told, value)
        assert not re.search(r"\b(my|I|our|me)\b", reply), reply


def test_plural():
    """Plural forms, also of nouns with "of" and irregular ones."""
    forms = {
        "plate": "plates",
        "box": "boxes",
        "berry": "berries",
        "mouse": "mice",
        "loaf": "loaves",
        "bunch of flowers": "bunches of flowers",
        "tree house": "tree houses",
        "potato": "potatoes",
    }
    assert {noun: plural(noun) for noun in forms} == forms


def test_sums_are_right_and_not_those_of_the_abilities():
    """Every sum of the small talk has the right answer; what experiments/abilities.py asks is not among them."""
    rng, asked = random.Random(0), set()
    for _ in range(5000):
        question, reply = everyday.plain_sum(rng)
        a, sign, b = re.search(r"(\d+) (\+|-|\*|plus|minus|times) (\d+)", question).groups()
        a, sign, b = int(a), {"plus": "+", "minus": "-", "times": "*"}.get(sign, sign), int(b)
        assert re.search(r"(-?\d+)\.$", reply)[1] == str({"+": a + b, "-": a - b, "*": a * b}[sign]), (question, reply)
        asked.add((a, sign, b))
    assert not asked & {(2, "+", 3), (7, "+", 5), (6, "*", 7)} and (3, "+", 2) in asked
