"""Data: a sample is one JSON line, and a dataset is a module that makes or reads such lines.

    {"contexts": ["User: I live in Oslo.", "Bot: How nice!"], "input": "User: Where?\\nBot:", "target": "Oslo."}

contexts are c(1) ... c(t) of the paper, input is I(t) and target O(t). Five more fields are optional: "options", the
candidates of a multiple choice (the target is one of them); "answer", the part of the target that counts as recalled;
"distance", how many contexts ago it was told (1: in the last one before the input); "answers", the numbers (from 0)
of the contexts that answer from earlier ones as the target does: one forward pass can learn from these as well;
"questions", more pairs [input, target] that may be asked instead, of which it can learn, too. Real data has two more:
"separator", what stands between all parts instead of a line break, and "task", by which accuracy is averaged.

A dataset module has `sample(split, index, seed)`, the index-th sample of "train", "validation" or "test"; where a time
step t is more than "the first t contexts", it also has `sample_at(split, index, time_step, seed)`.
"""

import argparse
import functools
import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path

from data import prepared, running

GENERATED = ("dialog", "icl", "persona")  # made by our own generators: no download, the same everywhere
PREPARED = ("dailydialog", "soda", "lamp", "metaicl", "text")  # real files, see data/prepared.py
MIXTURES = {"unified": ("metaicl", "soda")}  # several datasets by one name, evenly mixed
SPLITS = ("train", "validation", "test")


def source(names: str, split: str, seed: int = 0) -> Callable[..., dict]:
    """A function from index (0, 1, ...) to sample, for datasets named as in "dialog" or, mixed evenly, "dialog,icl".

    Called with `longest` as well, it gives a sample of 1 to so many contexts: the short ones that training begins with.

    A name is that of a dataset here, or the path of a JSON-lines file (which then serves every split) or of a folder
    with train.jsonl, validation.jsonl and test.jsonl (of samples, or prepared by `python -m data.NAME`). Files are gone
    through again and again, shuffled each time. Or it is the path of a plain text (data/running.py).
    Raises ValueError, in one line that says what to do, when there is no such dataset, file or split.
    """
    parts = [_source(name, split, seed) for name in expand(names)]
    return lambda index, longest=None: parts[index % len(parts)](index // len(parts), longest)


def expand(names: str) -> list[str]:
    """The datasets that are named with commas between, mixtures as their parts."""
    return [part for name in names.split(",") for part in MIXTURES.get(name, [name])]


def _source(name: str, split: str, seed: int) -> Callable[[int, int | None], dict]:
    if name in GENERATED:
        module = importlib.import_module(f"data.{name}")

        def make(index: int, longest: int | None) -> dict:
            if longest and hasattr(module, "sample_at"):
                time_step = random.Random(f"{seed}/{index}").randint(1, longest)
                return module.sample_at(split, index, time_step, seed)
            return shorten(module.sample(split, index, seed), longest)

        return make
    if running.is_text(name):
        return running.source(name, split, seed)
    if folder := prepared.folder_of(name):
        module, samples = prepared.open_split(folder, split)
        draw = lambda number, index: module.draw(samples, number, random.Random(f"{seed}/{index}"))
    else:
        samples = read_jsonl(_path(name, split))
        draw = lambda number, index: samples[number]

    @functools.lru_cache(2)
    def order(epoch: int) -> list[int]:
        return random.Random(f"{seed}/{epoch}").sample(range(len(samples)), len(samples))

    return lambda index, longest: shorten(draw(order(index // len(samples))[index % len(samples)], index), longest)


def shorten(sample: dict, longest: int | None) -> dict:
    """The sample with its last contexts only, at most `longest` and, where it has a distance, all from there on."""
    count = len(sample["contexts"])
    cut = max(0, count - max(longest or count, sample.get("distance", 1)))
    answers = [i - cut for i in sample.get("answers", []) if i >= cut]
    shorter = {"contexts": sample["contexts"][cut:], "answers": answers, "questions": []}  # not known to be from there
    return sample | shorter if cut else sample


def at_step(name: str, split: str, time_step: int, count: int, seed: int = 0) -> list[dict]:
    """Up to `count` samples of a dataset at time step t, with t contexts each: what evaluation by time step takes.

    A count of 0 means all there are, or 200 of a generated dataset. Of multiple-choice data these are the samples'
    first t contexts; of other files, the samples that have just t.
    """
    if folder := prepared.folder_of(name):
        return prepared.at_step(folder, split, time_step, count, seed)
    if name in GENERATED:
        count = count or 200
        module = importlib.import_module(f"data.{name}")
        if hasattr(module, "sample_at"):
            return [module.sample_at(split, index, time_step, seed) for index in range(count)]
        samples = [module.sample(split, index, seed) for index in range(count)]
    elif running.is_text(name):
        samples = running.at_step(name, split, time_step, count, seed)
    else:
        samples = read_jsonl(_path(name, split))
    if any("options" in sample for sample in samples):
        samples = [sample | {"contexts": sample["contexts"][:time_step]} for sample in samples]
    return [sample for sample in samples if len(sample["contexts"]) == time_step][: count or None]


def _path(name: str, split: str) -> Path:
    path = Path(name) / f"{split}.jsonl" if Path(name).is_dir() else Path(name)
    if name in PREPARED:
        raise ValueError(f"{name} is to be prepared first, from files of yours: python -m data.{name} PATH")
    if not path.is_file():
        raise ValueError(
            f"no dataset or file {name!r}: take one of {', '.join(GENERATED + PREPARED)}, or a JSON-lines file"
        )
    return path


def read_jsonl(path: str | Path) -> list[dict]:
    """Samples of a JSON-lines file. Raises ValueError naming the file, the line and what is wrong with it."""
    samples = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                sample = json.loads(line.decode("utf-8"))
                check(sample)
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors too
                raise ValueError(f"{path}, line {number}: {error}") from None
            samples.append(sample)
    if not samples:
        raise ValueError(f"{path} is empty: it needs one sample as JSON a line")
    return samples


def check(sample: object) -> None:
    """Raises ValueError saying what keeps `sample` from being one."""
    if not isinstance(sample, dict):
        raise ValueError(f"a sample is a JSON object, this is {type(sample).__name__}")
    for key in ("contexts", "input", "target"):
        if key not in sample:
            raise ValueError(f"the field {key!r} is missing")
    for key in ("contexts", "options"):
        value = sample.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{key!r} is to be a list of strings")
    for key in ("input", "target", "answer", "separator", "task"):
        if not isinstance(sample.get(key, ""), str):
            raise ValueError(f"{key!r} is to be a string")
    if not sample["target"]:
        raise ValueError("'target' is empty: there is nothing to predict")
    if sample.get("options") and sample["target"] not in sample["options"]:
        raise ValueError("'target' is not among 'options'")
    if sample.get("answer", "") not in sample["target"]:
        raise ValueError("'answer' is not part of 'target'")
    answers = sample.get("answers", [])
    if not isinstance(answers, list) or not all(i in range(len(sample["contexts"])) for i in answers):
        raise ValueError("'answers' is to be a list of numbers of contexts, the first being 0")
    questions = sample.get("questions", [])
    pair = lambda x: isinstance(x, list) and len(x) == 2 and all(isinstance(part, str) for part in x) and x[1]
    if not isinstance(questions, list) or not all(map(pair, questions)):
        raise ValueError("'questions' is to be a list of pairs of strings, [input, target]")
    distance = sample.get("distance", 1)
    if (
        isinstance(distance, bool)
        or not isinstance(distance, int)
        or not 1 <= distance <= max(len(sample["contexts"]), 1)
    ):
        raise ValueError("'distance' is to be a whole number from 1 to the number of contexts")


def main(generate) -> None:
    """What `python -m data.NAME` does: print samples as JSON lines."""
    parser = argparse.ArgumentParser(description="Prints samples as JSON lines.")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        for sample in generate(options.split, options.count, options.seed):
            print(json.dumps(sample, ensure_ascii=False))
    except BrokenPipeError:  # `| head` has seen enough
        pass
