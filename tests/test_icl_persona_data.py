"""Tests of the in-context-learning and the personalization data."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import SPLITS, check, icl, persona

MODULES = [icl, persona]
STEPS = (1, 2, 4, 8, 16)
each_module = pytest.mark.parametrize("module", MODULES, ids=["icl", "persona"])
splits = st.sampled_from(SPLITS)


@cache
def samples(module, split: str, count: int = 3000) -> list[dict]:
    """The first samples of a split, made once."""
    return list(module.generate(split, count))


def chance(many: list[dict]) -> float:
    """The accuracy of a guess among the options."""
    return sum(1 / len(sample["options"]) for sample in many) / len(many)


# What both have in common


@each_module
@settings(max_examples=25, deadline=None)
@given(split=splits, seed=st.integers(0, 5), short=st.integers(0, 8), more=st.integers(0, 8))
def test_a_short_run_is_the_beginning_of_a_long_one(module, split, seed, short, more):
    """Sample i depends on split, seed and i only, not on how many are made, and `sample` gives the same one."""
    long = list(module.generate(split, short + more, seed))
    assert list(module.generate(split, short, seed)) == long[:short]
    assert [module.sample(split, index, seed) for index in reversed(range(short))] == long[:short][::-1]


@each_module
def test_same_samples_in_another_process(module):
    """Neither the hash seed of the process nor the global random state changes a sample."""
    code = f"import json, random; random.seed(7); from {module.__name__} import generate as g; "
    code += "print(json.dumps([list(g(split, 20)) for split in ('train', 'validation', 'test')]))"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    output = subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parents[1], env=environment)
    assert json.loads(output) == [list(module.generate(split, 20)) for split in SPLITS]


@each_module
@settings(max_examples=60, deadline=None)
@given(split=splits, seed=st.integers(0, 1000), index=st.integers(0, 10**9))
def test_a_sample_is_well_formed(module, split, seed, index):
    """16 contexts and 2 to 4 different options, plain ASCII on one line, and the input is not among the contexts."""
    sample = module.sample(split, index, seed)
    check(sample)
    texts = [*sample["contexts"], sample["input"], *sample["options"]]
    assert len(sample["contexts"]) == 16
    assert 2 <= len(set(sample["options"])) == len(sample["options"]) <= 4
    assert all(text.isascii() and text == text.strip() and "\n" not in text and "{" not in text for text in texts)
    assert not any(context.startswith(sample["input"] + " ") for context in sample["contexts"])


@each_module
def test_seeds_and_splits_differ(module):
    """Another seed or another split gives other samples."""
    runs = [list(module.generate(split, 5, seed)) for split in SPLITS for seed in (0, 1)]
    assert all(first[i] != second[i] for first, second in combinations(runs, 2) for i in range(5))


@each_module
@pytest.mark.parametrize("split", SPLITS)
def test_the_position_of_the_answer_tells_nothing(module, split):
    """Always taking the first, or the last, option is as good as a guess."""
    many = samples(module, split)
    for position in (0, -1):
        right = sum(sample["options"][position] == sample["target"] for sample in many)
        assert right / len(many) == pytest.approx(chance(many), abs=0.03)


# In-context learning


@cache
def phrase_pattern(family: str) -> re.Pattern:
    """Finds any phrase of a family, the longest one first."""
    phrases = sorted((p for phrases in icl.FAMILIES[family].values() for p in phrases), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, phrases))})(?![\w-])")


@cache
def class_by_phrase(family: str) -> dict[str, str]:
    """The class of each phrase of a family."""
    return {phrase: name for name, phrases in icl.FAMILIES[family].items() for phrase in phrases}


def phrase_of(family: str, text: str) -> str:
    """The one phrase of the family that a text has, where the label and a named class do not count."""
    (phrase,) = phrase_pattern(family).findall(re.sub(r" - [a-z ]+", "", text))
    return phrase


def icl_score(sample: dict, family: str, step: int) -> float:
    """How likely one is right who knows all classes of a family and has seen the first contexts."""
    classes = class_by_phrase(family)
    labels = {}
    for context in sample["contexts"][:step]:
        text, label = context.rsplit(" ", 1)
        assert labels.setdefault(classes[phrase_of(family, text)], label) == label
    name = classes[phrase_of(family, sample["input"])]
    if name in labels:
        return float(labels[name] == sample["target"])
    assert sample["target"] not in labels.values()
    return 1 / (len(sample["options"]) - len(labels))


def test_icl_tables():
    """At least 30 kinds of words; each phrase has one class in its family, and is no label word, invented or not."""
    assert len(icl.WORDS) >= 30
    assert len(set(icl.LABELS)) == len(icl.LABELS) >= 150
    labels = {*icl.LABELS, *(first + second for first in icl.SYLLABLES for second in icl.SYLLABLES)}
    for family, classes in icl.FAMILIES.items():
        phrases = [phrase for phrases in classes.values() for phrase in phrases]
        assert len(set(phrases)) == len(phrases)
        assert not labels & set(phrases)
        assert all(len(phrases) >= (15 if family == "word" else 12) for phrases in classes.values())


def test_icl_splits_share_no_task():
    """No set of classes is in two splits, and those of a validation or test set are never together in a train set."""
    sets = {split: set() for split in SPLITS}
    for split in SPLITS:
        for family, sizes in icl.class_sets(split).items():
            sets[split].update((family, names) for of_one_size in sizes.values() for names in of_one_size)
    assert not sets["train"] & sets["validation"] | sets["train"] & sets["test"] | sets["validation"] & sets["test"]
    for size in (2, 3, 4):
        subsets = {(family, subset) for family, names in sets["train"] for subset in combinations(names, size)}
        assert not subsets & (sets["validation"] | sets["test"])
    known = {(family, name) for family, names in sets["train"] for name in names}
    assert known == {(family, name) for family, classes in icl.FAMILIES.items() for name in classes}
    for split in SPLITS:
        drawn = {icl.task_of(split, index)[:2] for index in range(1000)}
        assert drawn <= sets[split]


def test_icl_task_of_is_the_task_of_the_sample():
    """`task_of` tells the family, the classes and the format that sample i really has, with any seed."""
    for index in range(200):
        family, names, layout = icl.task_of("train", index, 3)
        sample = icl.sample("train", index, 3)
        phrases = [phrase_of(family, context.rsplit(" ", 1)[0]) for context in sample["contexts"]]
        assert {class_by_phrase(family)[phrase] for phrase in phrases} == set(names)
        assert sample["input"].startswith(layout.split("{x}")[0])
        assert sample["input"].endswith(layout.split("{x}")[1])


def test_icl_has_many_tasks():
    """More than 300 tasks are drawn for training, more than 60 for validation and test each."""
    for split, least in {"train": 300, "validation": 60, "test": 60}.items():
        assert len({icl.task_of(split, index) for index in range(1000)}) >= least


def test_icl_repeats_no_item():
    """Neither the query nor a demonstration has the word or phrase of another one."""
    for index, sample in enumerate(samples(icl, "train")[:500]):
        family = icl.task_of("train", index)[0]
        texts = [*(context.rsplit(" ", 1)[0] for context in sample["contexts"]), sample["input"]]
        assert len({phrase_of(family, text) for text in texts}) == 17


def test_icl_classes_are_shown_early_and_drawn_independently():
    """Every class is demonstrated, mostly within the first few; the rarest label so far is no likelier than another."""
    early, rarest = 0, []
    for sample in samples(icl, "test"):
        labels = [context.rsplit(" ", 1)[1] for context in sample["contexts"]]
        counts = Counter(labels)
        assert set(counts) == set(sample["options"])
        rarest.append(sample["target"] == min(counts, key=counts.get))
        early += len(set(labels[: len(counts)])) == len(counts)
    assert 0.65 < early / len(rarest) < 0.85
    assert sum(rarest) / len(rarest) == pytest.approx(chance(samples(icl, "test")), abs=0.03)


def test_icl_labels_tell_nothing():
    """The most frequent label, the last one, or one that is frequent in other samples is as good as a guess."""
    many = samples(icl, "train")
    shown = [[context.rsplit(" ", 1)[1] for context in sample["contexts"]] for sample in many]
    frequent = Counter(sample["target"] for sample in many)
    guesses = {
        "most frequent": [Counter(labels).most_common(1)[0][0] for labels in shown],
        "last": [labels[-1] for labels in shown],
        "first": [labels[0] for labels in shown],
    }
    for guess in guesses.values():
        right = sum(label == sample["target"] for label, sample in zip(guess, many))
        assert right / len(many) == pytest.approx(chance(many), abs=0.03)
    assert frequent.most_common(1)[0][1] / len(many) < 0.015  # of more than 150 labels
    invented = sum(sample["target"] not in icl.LABELS for sample in many)
    assert invented / len(many) == pytest.approx(icl.INVENTED, abs=0.03)


def test_icl_names_classes_in_training_only():
    """Part of the train samples name the class of each item; no sample of validation or test does."""
    named = {split: sum(" - " in sample["input"] for sample in samples(icl, split)) / 3000 for split in SPLITS}
    assert named["train"] == pytest.approx(icl.NAMED, abs=0.03)
    assert named["validation"] == named["test"] == 0
    assert not any(" - " in context for sample in samples(icl, "test") for context in sample["contexts"])


@pytest.mark.parametrize("split", SPLITS)
def test_icl_is_solved_by_class_knowledge(split):
    """Who knows the classes is right more often with each step, and always with all 16 contexts."""
    many = samples(icl, split)[:1000]
    families = [icl.task_of(split, index)[0] for index in range(len(many))]
    scores = [sum(icl_score(*pair, step) for pair in zip(many, families)) / len(many) for step in STEPS]
    assert scores == sorted(scores)
    assert scores[0] < 0.75
    assert scores[-1] == 1


# Personalization


@cache
def condition_patterns(kind: str) -> dict[str, re.Pattern]:
    """Finds each condition of a kind, however it is put."""
    return {
        name: re.compile(rf"(?<![\w-])({'|'.join(phrases).format(day='[a-z]+')})(?![\w-])", re.IGNORECASE)
        for name, phrases in persona.CONDITIONS[kind].items()
    }


def condition_of(domain: str, text: str) -> str:
    """The one condition of the domain that a text tells."""
    (name,) = [n for n, p in condition_patterns(persona.DOMAINS[domain][0]).items() if p.search(text)]
    return name


DOMAIN_BY_CHOICE = {choice: domain for domain, choices in persona.CHOICES.items() for choice in choices}


def event_of(text: str) -> tuple[str, str, str]:
    """Domain, condition and choice that an entry tells."""
    (choice,) = [word for word in re.findall(r"\w+", text) if word in DOMAIN_BY_CHOICE]
    domain = DOMAIN_BY_CHOICE[choice]
    return domain, condition_of(domain, text), choice


@cache
def parsed(split: str, count: int = 1000) -> list[tuple]:
    """Of each sample: the events of its entries, the domain and condition asked for, and the target."""
    result = []
    for sample in samples(persona, split)[:count]:
        domain = DOMAIN_BY_CHOICE[sample["target"]]
        asked = (domain, condition_of(domain, sample["input"]))
        result.append(([event_of(context) for context in sample["contexts"]], asked, sample["target"]))
    return result


def persona_score(events: list, asked: tuple, target: str, step: int) -> float:
    """How likely one is right who counts what the first entries tell about the asked domain and condition."""
    counts = Counter(event[2] for event in events[:step] if event[:2] == asked)
    if not counts:
        return 1 / 4
    best = [choice for choice, count in counts.items() if count == max(counts.values())]
    return (target in best) / len(best)


def test_persona_tables():
    """At least 14 domains of four choices of their own, five entries that have all slots, and a kind of conditions."""
    assert len(persona.DOMAINS) >= 14
    assert len(DOMAIN_BY_CHOICE) == 4 * len(persona.DOMAINS)
    assert len(set(persona.NAMES)) == len(persona.NAMES) >= 150
    for kind, _, entries, questions in persona.DOMAINS.values():
        assert 2 <= len(persona.CONDITIONS[kind]) <= 3
        assert len(set(entries)) >= 5
        assert all(slot in entry for entry in entries for slot in ("{n}", "{c}", "{x}"))
        assert all(slot in question for question in questions for slot in ("{n}", "{c}"))
        assert not any("{x}" in question for question in questions)
        phrases = [phrase for phrases in persona.CONDITIONS[kind].values() for phrase in phrases]
        assert len(set(phrases)) == len(phrases)
        assert not set(re.findall(r"\w+", " ".join([*entries, *questions, *phrases]))) & set(DOMAIN_BY_CHOICE)


def test_persona_splits_share_no_persona():
    """No set of habits is in two splits."""
    drawn = {split: {frozenset(persona.persona_of(split, i, 1)) for i in range(4000)} for split in SPLITS}
    assert all(not drawn[first] & drawn[second] for first, second in combinations(SPLITS, 2))
    assert all(persona._split_of(tuple(habits)) == split for split in SPLITS for habits in list(drawn[split])[:500])
    for habits in list(drawn["train"])[:200]:  # the order of the habits is no part of a persona
        assert persona._split_of(tuple(sorted(habits))) == persona._split_of(tuple(sorted(habits, reverse=True)))


def test_persona_of_is_the_persona_of_the_sample():
    """`persona_of` tells the habits of sample i: 3 or 4 domains, 2 conditions each; its entries are about no other."""
    for index, (events, asked, target) in enumerate(parsed("test")):
        habits = persona.persona_of("test", index)
        assert len(habits) in (6, 8)
        assert set(Counter(habit[0] for habit in habits).values()) == {2}
        assert {event[:2] for event in events} == {habit[:2] for habit in habits}
        assert (*asked, target) in habits


@pytest.mark.parametrize("split", SPLITS)
def test_persona_entries_follow_the_habits(split):
    """About nine entries in ten tell the habit, and the habit of the question leads with at least two."""
    habitual = 0
    for index, (events, asked, target) in enumerate(parsed(split)):
        habits = set(persona.persona_of(split, index))
        habitual += sum(event in habits for event in events)
        counts = Counter(event[2] for event in events if event[:2] == asked)
        assert counts[target] >= 2
        assert all(count < counts[target] for choice, count in counts.items() if choice != target)
    assert habitual / (16 * len(parsed(split))) == pytest.approx(0.9, abs=0.02)


def test_persona_options_are_the_choices_of_the_domain():
    """The options are the four choices of the question's domain."""
    for sample in samples(persona, "train"):
        assert sorted(sample["options"]) == sorted(persona.CHOICES[DOMAIN_BY_CHOICE[sample["target"]]])


def test_persona_has_no_prior():
    """Within each domain, no choice is the answer much more often than the other three, under any condition."""
    targets = defaultdict(Counter)
    for sample in samples(persona, "train", 9000):
        domain = DOMAIN_BY_CHOICE[sample["target"]]
        targets[domain, condition_of(domain, sample["input"])][sample["target"]] += 1
    assert len(targets) == sum(len(persona.CONDITIONS[kind]) for kind, *_ in persona.DOMAINS.values())
    for counts in targets.values():
        assert max(counts.values()) / counts.total() < 0.4  # a hundred samples or more
    best = sum(max(counts.values()) for counts in targets.values())
    assert best / 9000 == pytest.approx(0.25, abs=0.05)


def test_persona_needs_the_condition():
    """Who counts the choices of the domain, whatever the condition, is right much less often."""
    right = 0
    for events, (domain, _), target in parsed("test"):
        counts = Counter(event[2] for event in events if event[0] == domain)
        best = [choice for choice, count in counts.items() if count == max(counts.values())]
        right += (target in best) / len(best)
    assert right / len(parsed("test")) < 0.75


@pytest.mark.parametrize("split", SPLITS)
def test_persona_is_solved_by_counting(split):
    """Who counts the choices under the condition is right more often with each step, and always with all entries."""
    scores = [sum(persona_score(*sample, step) for sample in parsed(split)) / 1000 for step in STEPS]
    assert scores == sorted(scores)
    assert scores[0] < 0.4
    assert scores[-1] == 1
