"""Hand-written episodes: they are all readable, chats are answerable from them, and the test set is not among them."""

import random
import re
from pathlib import Path

import pytest

import data
from data import episodes, everyday
from data.chats import check_chat
from experiments import abilities
from experiments.smollm2 import completions
from tests.test_natural import CONVERSATIONS

CHATS = [episodes.sample("train", index) for index in range(400)]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    """All runs of so many words."""
    found = words(text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


def test_seeded():
    """A sample depends on (split, index, seed) alone."""
    assert episodes.sample("train", 7) == episodes.sample("train", 7)
    assert episodes.sample("train", 7) != episodes.sample("train", 8)
    assert episodes.sample("train", 7) != episodes.sample("train", 7, seed=1)
    assert data.source("episodes", "train")(3) == episodes.sample("train", 3)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        episodes.sample("dev", 0)


def test_splits_share_no_episode():
    """Every episode belongs to one split, and most to training."""
    parts = {split: set(map(str, episodes.episodes(split))) for split in data.SPLITS}
    assert len(set().union(*parts.values())) == sum(map(len, parts.values()))
    assert len(parts["train"]) > 5 * len(parts["test"]) > 0


def test_what_counts_was_said():
    """The user has said nearly all that counts in the answers of each file; the rest is said in other words."""
    for path in sorted(episodes.FOLDER.glob("*.txt")):
        said = missing = 0
        for index, text in enumerate(path.read_text("utf-8").strip().split("\n\n")):
            values, told = episodes.Values(random.Random(index), "train", set()), ""
            for line in episodes.parse(text, f"{path.name}, episode {index + 1}"):
                said_now, reply = values.fill(line.text), values.fill(line.reply)
                told += f" {said_now}".lower() if line.mark == "+" else ""
                parts = re.findall(r"\[([^\[\]]+)\]", reply) if line.mark != "+" else []
                said += len(parts)
                missing += sum(part.lower() not in told for part in parts)
        assert missing <= 0.1 * said, path.name


def test_counts_in_the_documents():
    """docs/data.md says how many episodes, messages, questions and exchanges of small talk there are."""
    found = [episode for split in data.SPLITS for episode in episodes.episodes(split)]
    messages = sum(line.mark == "+" for episode in found for line in episode)
    questions = sum(map(len, found)) - messages
    exchanges = len(everyday.WRITTEN_TALK.read_text("utf-8").splitlines())
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    assert f"{len(found):,} hand-written episodes" in text and f"{exchanges:,} hand-written exchanges" in text
    assert f"{messages:,} messages" in text and f"{questions:,} questions" in " ".join(text.split())


def test_chats():
    """Samples are chats without an unfilled field or a mark, with as many exchanges as asked."""
    for chat in CHATS:
        assert len(check_chat(chat, "a chat")) == len(chat["messages"])
        texts = [message["content"] for message in chat["messages"]] + sum(chat["questions"], [])
        assert not any(re.search(r"[{}\[\]|\t]", text) or text != text.strip() for text in texts)
    for time_step in (1, 2, 5, 20):
        assert len(episodes.sample_at("test", 0, time_step)["messages"]) == 2 * time_step + 2


def test_some_chats_have_short_messages():
    """In a third of the chats the user writes short messages only, in the others of any length."""
    lengths = {True: [], False: []}
    for index in range(300):
        chat = episodes.Chat("train", random.Random(index))
        chat.chatty = chat.curious = 0.0
        chat.tell([chat.episodes[number] for number in chat.rng.sample(chat.numbers, 2)], 20)
        said = [len(message["content"].split()) for message in chat.messages[::2]]
        lengths[len(chat.numbers) < len(chat.episodes)].append(sum(said) / len(said))
    assert 75 < len(lengths[True]) < 135
    mean = {short: sum(found) / len(found) for short, found in lengths.items()}
    assert mean[True] < 11 < 15 < mean[False]


def test_changes_are_told_often(monkeypatch):
    """A chat has more episodes with changes than chance would give."""
    changes = lambda found: sum(any(line.mark == "?!" for line in one) for one in found) / len(found)
    told, tell = [], episodes.Chat.tell
    monkeypatch.setattr(
        episodes.Chat, "tell", lambda chat, chosen, limit: (told.extend(chosen), tell(chat, chosen, limit))
    )
    for index in range(300):
        episodes.sample("train", index)
    assert changes(told) > changes(episodes.episodes("train")) + 0.12


def test_answers_were_told():
    """The user has said nearly every answer before; the rest is said in other words."""
    told = 0
    for chat in CHATS:
        *before, _, reply = (message["content"] for message in chat["messages"])
        assert chat["answer"] in reply
        told += any(chat["answer"].lower() in text.lower() for text in before[::2])
    assert told >= 0.85 * len(CHATS)


def test_a_change_ends_what_was_right_before():
    """A question with ?! is asked only until the next message of its episode."""
    text = "+ It is on {day}.\n- Fine.\n?! When? > On [{day}].\n+ It moved to {day2}.\n? When now? > On [{day2}]."
    for index in range(50):
        chat = episodes.Chat("train", random.Random(index))
        chat.tell([episodes.parse(text)], 50)
        assert [question for question, _ in chat.open] == ["When now?"]
        chat = episodes.Chat("train", random.Random(index))
        chat.curious = chat.chatty = 0.0
        chat.tell([episodes.parse(text)], 1)
        assert chat.open[0][0] in ("When?", "When now?")


def test_episodes_that_could_be_mixed_up():
    """Two episodes with a cat each are not told in one chat, unless their questions name it."""
    theme = lambda asked, told: episodes.Theme(episodes.words(told) | asked, [asked])
    cat = theme({"cat"}, "My cat is ill.")
    assert episodes.mixed_up(cat, theme({"cat", "eat"}, "My cat eats tuna."))
    assert not episodes.mixed_up(cat, theme({"train"}, "My train was late."))
    assert not episodes.mixed_up(theme({"7 F"}, ""), theme({"8 F"}, ""))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+ No question.",
        "? Question first? > [Yes].",
        "+ A.\n? B? > no mark",
        "+ A {b}.\n? C? > [D].",
        "A\n? B? > [C].",
    ],
)
def test_what_cannot_be_read(text):
    """An episode that is not written as it should be is an error that shows it."""
    with pytest.raises(ValueError, match="an episode"):
        episodes.parse(text)


def test_articles_and_numbers():
    """ "a" becomes "an" where it must, and a drawn number stays the same in an episode."""
    values = episodes.Values(random.Random(0), "train", set())
    assert (
        values.fill("a {x: egg} and an {y: cup}, a {: hour} at a {: university}")
        == "an egg and a cup, an hour at a university"
    )
    assert values.fill("Plan A is out. A {x: egg} fell.") == "Plan A is out. An egg fell."
    assert values.fill("the {d: 22-22}th, 20{y: 07-07}") == "the 22nd, 2007"
    assert values.fill("{n: 3-900}") == values.fill("{n}")


def test_a_field_in_an_alternative():
    """An alternative may have alternatives of its own."""
    filled = {episodes.Values(random.Random(i), "train", set()).fill("{a: x|y {b: 1|2} z|w}") for i in range(50)}
    assert filled == {"x", "y 1 z", "y 2 z", "w"}


def test_unusual_names():
    """In training, one name in six is on no list; in the other splits none is."""
    known = set(episodes.KINDS["F"])
    for split, least, most in (("train", 0.1, 0.22), ("validation", 0.0, 0.0), ("test", 0.0, 0.0)):
        names = [episodes.Values(random.Random(seed), split, set()).fill("{F}") for seed in range(400)]
        assert least <= sum(name not in known for name in names) / len(names) <= most, split


def test_small_talk_asks_no_question_of_the_abilities():
    """What experiments/abilities.py asks, to measure the base model's knowledge, is not trained."""
    rng = random.Random(0)
    lines = {everyday.small_talk("train", rng)[0] for _ in range(20000)}
    assert len(lines) > 800 and not lines & {*abilities.QUESTIONS}


def test_the_natural_test_set_is_not_in_the_training_data():
    """Hardly any question of more than five words, and no eight words in a row of a message, are in training data."""
    asked, said = set(), set()
    for module in (episodes, everyday):
        for index in range(400):
            chat = module.sample("train", index)
            asked |= {tuple(words(question)) for question, _ in chat["questions"]}
            for message in chat["messages"][::2]:
                said |= runs(message["content"], 8)
    questions = [tuple(words(question["ask"])) for talk in CONVERSATIONS for question in talk["questions"]]
    assert sum(len(question) > 5 and question in asked for question in questions) < 0.02 * len(questions)
    assert not any(runs(turn, 8) & said for talk in CONVERSATIONS for turn in talk["turns"])
    everything = " \n ".join(" ".join(words(path.read_text("utf-8"))) for path in episodes.FOLDER.glob("*.txt"))
    for talk in CONVERSATIONS:
        for turn in talk["turns"]:
            assert not any(" ".join(run) in everything for run in runs(turn, 8)), turn


def test_completions():
    """SmolLM2 also learns how a message goes on: the quotation is in one message, and the answer follows it."""
    asked = 0
    for index, chat in enumerate(CHATS):
        said = [message["content"] for message in chat["messages"][:-2:2]]
        found = completions(chat["messages"], 2, random.Random(index))
        assert len(found) <= 2
        for question, answer in found:
            quoted = re.fullmatch(r'What did I say after "(.*)"\?', question)[1]
            (message,) = [text for text in said if quoted in text]
            assert message.startswith(f"{quoted} {answer}")
        asked += len(found)
    assert asked > len(CHATS) / 2
