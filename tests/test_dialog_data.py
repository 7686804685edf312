"""Claims about the generated conversations: they repeat, they are sound, and only the contexts give answers away."""

import itertools
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import SPLITS, check, dialog

splits, seeds = st.sampled_from(SPLITS), st.integers(0, 10**6)
few = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def made():
    """For each split, dialogues of `generate` with the facts in them."""
    return {split: [dialog.dialogue_of(split, index) for index in range(1500)] for split in SPLITS}


def triple(fact):
    return fact.subject.key, fact.kind.name, fact.value


def words(text):
    return {word.strip(".,?!") for word in (text[0].lower() + text[1:] if text[:2] != "I " else text).split()}


def turns(sample):
    return [*sample["contexts"], sample["input"].removesuffix("\nBot:"), "Bot: " + sample["target"]]


def sound(sample):
    """What every recall sample is held to: the answer was told at its distance, and nowhere later."""
    answer, distance, contexts = sample["answer"], sample["distance"], sample["contexts"]
    assert answer in contexts[-distance]
    assert answer in sample["target"]
    later = contexts[len(contexts) - distance + 1 :]
    assert not any(answer.lower() in text.lower() for text in (*later, sample["input"]))


@few
@given(splits, seeds, st.integers(1, 20))
def test_same_seed_same_samples(split, seed, count):
    """A sample depends on the split, the seed and its number alone: a short run is the beginning of a longer one."""
    longer = list(dialog.generate(split, count + 3, seed))
    assert list(dialog.generate(split, count, seed)) == longer[:count]
    assert dialog.sample(split, count, seed) == longer[count]
    assert list(dialog.generate(split, 3, seed + 1)) != longer[:3]


def test_pinned_sample():
    """The generator makes the same on every machine: one sample is written down here."""
    sample = next(dialog.generate("test", 1))
    assert sample == PINNED


@few
@given(splits, seeds)
def test_samples_are_well_formed(split, seed):
    """Samples pass the check of the sample format, and User and Bot take turns up to the target."""
    for sample in dialog.generate(split, 8, seed):
        check(sample)
        assert sample["input"].startswith("User: ") and sample["input"].endswith("\nBot:")
        speakers = [text.split(": ")[0] for text in turns(sample)]
        assert speakers == (["User", "Bot"] * 16)[-len(speakers) :]
        for text in turns(sample):
            assert text.isascii() and not set("{}[]|\n") & set(text) and text[-1] in ".!?" and "  " not in text
            words = text.split(": ", 1)[1]
            assert words[0] == words[0].upper()


@few
@given(splits, seeds)
def test_answers_are_recalled(split, seed):
    """An answer stands in the context at its distance and in none after it, the input included."""
    for sample in dialog.generate(split, 8, seed):
        assert ("answer" in sample) == ("distance" in sample)
        if "answer" in sample:
            sound(sample)


def test_answers_in_contexts(made):
    """The contexts in "answers" are the Bot's, and repeat a fact from a context before the question."""
    every = {value for tables in dialog.VALUES.values() for table in tables for value in table}
    answers = 0
    for sample, _ in made["train"][:300]:
        for i in sample["answers"]:
            text, question, *earlier = sample["contexts"][i::-1]
            said = {value for value in every if value in text}
            assert text.startswith("Bot: ") and question.startswith("User: ")
            assert any(value in told for value in said for told in earlier), (question, text)
            answers += 1
    assert answers > 300  # one forward pass has several


def test_further_questions(made):
    """Each of a sample's further questions is answered with what a context has told, and asks for another fact."""
    every = {value for tables in dialog.VALUES.values() for table in tables for value in table}
    asked = 0
    for sample, dialogue in made["train"][:300]:
        questions = sample.get("questions", [])
        values = [fact.value for fact in dialogue.known()]
        assert len(questions) == (len(values) if "answer" in sample else 0)
        for input, target in questions:
            assert input.startswith("User: ") and input.endswith("\nBot:")
            said = [value for value in values if value in target]
            assert said and sample["answer"] not in said and set(said) <= every, (input, target)
            assert any(said[0] in context for context in sample["contexts"])
            asked += 1
    assert asked > 1000


def test_every_time_step_and_distance():
    """generate_at keeps to its time step and distance, and its samples are sound as well."""
    for step in range(1, 29):
        for distance in range(1, min(step, 20) + 1):
            (sample,) = dialog.generate_at("train", 1, step, seed=step, distance=distance)
            assert (len(sample["contexts"]), sample["distance"]) == (step, distance)
            check(sample)
            sound(sample)
    for step, distance in ((0, None), (2, 3), (4, 0), (4, -1)):
        with pytest.raises(ValueError):
            next(dialog.generate_at("train", 1, step, distance=distance))


def test_answer_by_chance(monkeypatch):
    """A dialogue is discarded if small talk repeats the answer by chance after its fact was told."""

    def gossip(self):
        return f"I heard of {self.rng.choice(self.told).value if self.told else 'nothing'}.", "Me too.", None

    monkeypatch.setattr(dialog.Dialogue, "chat", gossip)
    for sample in dialog.generate_at("train", 100, 12, distance=10):
        sound(sample)


@pytest.mark.parametrize("step", [1, 4, 12, 28])
def test_distances_are_spread(step):
    """Without a distance, generate_at spreads it evenly over all that the time step allows, up to 20."""
    counts = Counter(sample["distance"] for sample in dialog.generate_at("validation", 600, step))
    expected = 600 / min(step, 20)
    assert sorted(counts) == list(range(1, min(step, 20) + 1))
    assert all(expected / 2.5 < count < expected * 2.5 for count in counts.values())


def test_splits_share_nothing(made):
    """No dialogue and no fact, asked or only told, occurs in two splits."""
    facts = {split: {triple(fact) for _, talk in made[split] for fact in talk.told} for split in SPLITS}
    talks = {split: {"\n".join(turns(sample)) for sample, _ in made[split]} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not facts[one] & facts[other]
        assert not talks[one] & talks[other]
    for subject, kind, value in facts["test"]:
        tables = [table for common, rare in dialog.VALUES.values() for table in (common, rare)]
        assert any(value in table for table in tables), (subject, kind)


def test_values_are_shared_out():
    """Every (subject, kind) has at least 12 values in each split, disjoint, that together are the whole table."""
    for kind in dialog.KIND.values():
        for subject in ("I", "my sister", "my friend Anna"):
            for rare in (False, True) if dialog.VALUES[kind.values][1] else (False,):
                parts = [dialog.values(subject, kind.name, kind.values, split, rare) for split in SPLITS]
                assert min(map(len, parts)) >= 12
                assert sorted(sum(parts, [])) == sorted(dialog.VALUES[kind.values][rare])


def test_tables_are_complete():
    """There are at least 40 kinds, each with enough values and ways to tell, to ask, to answer and to acknowledge."""
    assert len(dialog.KIND) >= 40
    for kind in dialog.KIND.values():
        assert len(kind.tell) >= 4 and len(kind.ask) + len(kind.clause) >= 4 and len(kind.reply) >= 2 and kind.ack
        assert kind.ask and kind.clause
    for common, rare in dialog.VALUES.values():
        assert len(common) >= 48 and len(set(common)) == len(common) and not set(common) & set(rare)


@pytest.mark.parametrize("teller, group", [("user", "me"), ("bot", "me"), ("bot", "bot")])
def test_speakers_keep_their_person(teller, group):
    """Who speaks of themselves says "I", and of the other one "you", in tellings, questions and answers."""
    first, second = {"I", "my", "me", "am"}, {"you", "your"}
    own = group == "bot" or teller == "user"
    rng = random.Random(0)
    for kind in dialog.TELLABLE[teller]:
        if group not in getattr(kind, teller):
            continue
        for _ in range(30):
            talk = dialog.Dialogue(rng, "train")
            subject = dialog._subject(group, *dialog.GROUPS[group])
            fact = dialog.Fact(subject, kind, talk.value(subject, kind), teller)
            told = words(talk.tell(fact, pronoun=rng.random() < 0.5))
            assert not told & (second if own else first)
            question = words(talk.pick(kind.ask).format(**subject.user, **dialog.FIRST["user"]))
            assert not question & (first if group == "bot" else second)
            reply = words(talk.say(kind.reply, "bot", subject.bot, fact.value))
            assert not reply & (second if group == "bot" else first)


def test_dialogues_vary(made):
    """Dialogues are of 4 to 30 turns, hardly ever repeat, and about 70% end in a recall question, on every kind."""
    samples = [sample for split in SPLITS for sample, _ in made[split]]
    assert {len(turns(sample)) for sample in samples} == set(range(4, 31))
    assert len({"\n".join(turns(sample)) for sample in samples}) > 0.998 * len(samples)
    assert 0.66 < sum("answer" in sample for sample in samples) / len(samples) < 0.74
    assert {talk.asked.kind.name for split in SPLITS for _, talk in made[split] if talk.asked} == {*dialog.KIND}


def test_guessing_fails():
    """Who answers with the value that goes most often with a question, without the contexts, is right in few cases."""
    seen, right, count = defaultdict(Counter), 0, 0
    for number in range(9000):
        sample, talk = dialog.dialogue_of("train", number, seed=3)
        if "answer" not in sample:
            continue
        keys = (talk.asked.subject.key, talk.asked.kind.name), talk.asked.kind.name
        if number < 6000:
            for key in keys:
                seen[key][sample["answer"]] += 1
        else:
            guesses = [seen[key].most_common(1)[0][0] for key in keys if seen[key]]
            right, count = right + (sample["answer"] in guesses), count + 1
    assert count > 1500 and right / count < 0.08


def test_subjects_compete(made):
    """Often another fact of the asked kind stands in the dialogue: the answer has to go with its subject."""
    recall = [talk for _, talk in made["train"] if talk.asked]
    rivals = [any(fact.kind is talk.asked.kind and fact is not talk.asked for fact in talk.told) for talk in recall]
    assert sum(rivals) / len(rivals) > 0.3


def test_values_are_told_apart(made):
    """No value of a dialogue is part of another one, so that each stands for one fact only."""
    for _, talk in made["test"]:
        facts = [fact.value for fact in talk.told]
        assert not any(one in other for one, other in itertools.permutations(facts, 2))


def test_changes_of_mind(made):
    """Some of the asked facts had another value before, at most 8% of them: the latest is the answer."""
    recall = [(sample, talk) for split in SPLITS for sample, talk in made[split] if talk.asked]
    leads = tuple("User: " + lead for lead in dialog.CHANGES)
    changed = [sample for sample, _ in recall if sample["contexts"][-sample["distance"]].startswith(leads)]
    assert 0.01 < len(changed) / len(recall) < 0.08
    for sample, talk in recall:
        same = [fact for fact in talk.told if (fact.subject, fact.kind) == (talk.asked.subject, talk.asked.kind)]
        assert [fact.value for fact in same] == [sample["answer"]]


def test_unknown_split():
    """A split that does not exist is refused by name."""
    with pytest.raises(ValueError, match="'dev'"):
        next(dialog.generate("dev", 1))


PINNED = {
    "contexts": [
        "User: My brother gets up at eleven thirty every day, and he has a tiny cat as a pet.",
        "Bot: Great! A good start to the day.",
        "User: I am very down today.",
        "Bot: I am sorry to hear that.",
        "User: You are a good listener.",
        "Bot: Thank you, I try.",
        "User: Have you heard from my old friend Charles?",
        "Bot: Yes, I have a message from your old friend Charles. He wishes for a blue scarf.",
    ],
    "input": "User: What does Charles want for his birthday?\nBot:",
    "target": "Of course. Your old friend Charles wants a blue scarf.",
    "answer": "blue scarf",
    "distance": 1,
    "answers": [],
    "questions": [
        ["User: Which animal does my brother have?\nBot:", "His pet is a tiny cat."],
        ["User: I forgot when my brother's alarm is set.\nBot:", "Your brother's alarm is set for eleven thirty."],
    ],
}
