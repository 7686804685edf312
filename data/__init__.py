"""Data: a sample is one JSON line, and a dataset is a module that makes or reads such lines.

    {"contexts": ["User: I live in Oslo.", "Bot: How nice!"], "input": "User: Where?\\nBot:", "target": "Oslo."}

contexts are c(1) ... c(t) of the paper, input is I(t) and target O(t). Optional fields:

    options    the candidates of a multiple choice; the target is one of them
    answer     the part of the target that counts as recalled
    distance   how many contexts ago the answer was told (1: in the last context)
    answers    numbers (from 0) of the contexts that answer from earlier ones, as the target does: training can learn
               from these in the same forward pass
    questions  more pairs [input, target] that could be asked after the same contexts; training can use these, too
    separator  the text between all parts, in place of a line break (real data has it)
    task       accuracy is averaged by it (real data has it)

A line can also be a chat, {"messages": [{"role": "user", "content": "Hi!"}, ...]}: see data/chats.py.

Files are untrusted. These limits hold, and an error names the file, the line and the limit:

    a line           16 MiB in UTF-8, with JSON of at most 64 levels
    a sample         1,048,576 characters in all; 4,096 contexts, options, questions or answers
    a chat           1,048,576 characters in all; 10,000 messages
    a file           5 million lines, 2 GiB of text; a running text: 256 MiB (data/running.py)
    .gz, .xz, .zip   100 times as much text as the file's size, or 64 MiB if that is more (data/archives.py)
    a prepared file  20 million records (data/prepared.py)

Halves of surrogate pairs ("\\ud83d" without its other half) are not characters: the reader removes them.

A dataset module has `sample(split, index, seed)`, the index-th sample of "train", "validation" or "test"; where a time
step t is more than "the first t contexts", it also has `sample_at(split, index, time_step, seed)`.
"""

import functools
import importlib
import json
import random
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from data import archives, prepared, running
from minccm.io.untrusted import HALF_PAIR, error, parse_json, printable

GENERATED = ("dialog", "icl", "persona", "everyday", "episodes")  # our own: no download, the same everywhere
PREPARED = prepared.DATASETS  # real files, see data/prepared.py
MIXTURES = {"unified": ("metaicl", "soda")}  # several datasets by one name, evenly mixed
SPLITS = ("train", "validation", "test")

MAX_CHARACTERS = 2**20  # of all texts of a sample together
MAX_PARTS = 4096  # contexts, options, questions or answers of a sample
MAX_SAMPLES = 5_000_000  # of a JSON-lines file, which is held in memory
MAX_FILE = 2 * 2**30  # bytes of a JSON-lines file


def source(names: str, split: str, seed: int = 0) -> Callable[..., dict]:
    """A function from index (0, 1, ...) to sample, for datasets named as in "dialog" or, mixed evenly, "dialog,icl".

    Called with `longest` as well, it gives a sample of 1 to `longest` contexts: training begins with short samples. A
    chat then has `longest` as its "max_contexts".

    A name is that of a dataset here, or the path of a JSON-lines file (which then serves every split), or of a folder
    with train.jsonl, validation.jsonl and test.jsonl (samples, chats, or records prepared by `python -m data.NAME`).
    Files are read again and again, shuffled each time. A name can also be the path of a plain text (data/running.py).
    Raises ValueError of one line for an unknown name, a file that cannot be used, or an empty split.
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
        if not len(samples):
            raise error(folder, f"there is no {split} record: it has too few records to keep some apart for {split}")

        def draw(number: int, index: int) -> dict:
            sample = module.draw(samples, number, random.Random(f"{seed}/{index}"))
            return check(sample, f"{samples.path}, line {number + 1}")

    else:
        samples = read_jsonl(_path(name, split))
        draw = lambda number, index: samples[number]

    @functools.lru_cache(2)
    def order(epoch: int) -> list[int]:
        return random.Random(f"{seed}/{epoch}").sample(range(len(samples)), len(samples))

    return lambda index, longest: shorten(draw(order(index // len(samples))[index % len(samples)], index), longest)


def shorten(sample: dict, longest: int | None) -> dict:
    """The sample with its last `longest` contexts only, or with those since the answer was told where that is more.

    None: all of them. A chat gets `longest` as "max_contexts". Raises ValueError for fewer than one context.
    """
    if longest is None:
        return sample
    if longest < 1:
        raise ValueError("a sample keeps at least one context")
    if "messages" in sample:
        return sample | {"max_contexts": longest}
    cut = len(sample["contexts"]) - max(longest, sample.get("distance", 1))
    if cut <= 0:
        return sample
    answers = [i - cut for i in sample.get("answers", []) if i >= cut]
    # The remaining contexts may not answer the further questions.
    return sample | {"contexts": sample["contexts"][cut:], "answers": answers, "questions": []}


def fit(sample: dict, length: Callable[[dict], int], limit: int) -> dict:
    """The sample with as many of its last contexts as keep length(sample), such as its tokens, within `limit`.

    Raises ValueError if it does not fit with one context (or with those since the answer was told).
    """
    if length(sample) <= limit:
        return sample
    counts = range(sample.get("distance", 1), len(sample["contexts"]))
    count = bisect_right(counts, limit, key=lambda count: length(shorten(sample, count)))
    if not count:
        few = f"with {counts[0]} of its contexts" if counts else "and has no contexts to leave out"
        raise ValueError(f"a sample does not fit in {limit:,} tokens {few}: take shorter texts, or another model")
    return shorten(sample, counts[count - 1])


def at_step(name: str, split: str, time_step: int, count: int, seed: int = 0) -> list[dict]:
    """Up to `count` samples of a dataset at time step t, with t contexts each: what evaluation by time step takes.

    A count of 0 means all of them, or 200 of a generated dataset. Of multiple-choice data these are the samples' first
    t contexts; of other files, the samples with exactly t. Chats come unchanged, with t as their "max_contexts".
    """
    if folder := prepared.folder_of(name):
        return [check(sample, folder) for sample in prepared.at_step(folder, split, time_step, count, seed)]
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
        if "messages" in samples[0]:
            return [shorten(sample, time_step) for sample in samples[: count or None]]
    if any("options" in sample for sample in samples):
        samples = [sample | {"contexts": sample["contexts"][:time_step]} for sample in samples]
    return [sample for sample in samples if len(sample["contexts"]) == time_step][: count or None]


def _path(name: str, split: str) -> Path:
    path = Path(name) / f"{split}.jsonl" if Path(name).is_dir() else Path(name)
    if name in PREPARED:
        raise ValueError(f"prepare {name} first, from its original files: python -m data.{name} PATH")
    if not path.is_file():
        known = ", ".join(GENERATED + PREPARED)
        raise ValueError(f"no dataset or file {printable(name, 200)!r}: take one of {known}, or a JSON-lines file")
    return path


def read_jsonl(path: str | Path) -> list[dict]:
    """Samples or chats of a JSON-lines file. Raises ValueError naming the file, the line and the problem."""
    from data.chats import is_chat

    samples, read = [], None
    for number, line in archives.read_lines(Path(path), max_bytes=MAX_FILE):
        if number > MAX_SAMPLES:
            raise error(path, f"it holds more than {MAX_SAMPLES:,} lines: split it")
        if line.strip():
            where = f"{path}, line {number}"
            sample = parse_json(line, where)
            read = read or (_chat if is_chat(sample) else check)
            samples.append(read(sample, where))
    if not samples:
        raise error(path, "the file is empty: it needs one sample as JSON a line")
    return samples


def _chat(sample: object, where: str) -> dict:
    """The chat of a line as {"messages": [...]}. Raises ValueError if it is not one."""
    from data.chats import check_chat

    messages = check_chat(sample, where)
    characters = sum(len(message["content"]) for message in messages)
    if characters > MAX_CHARACTERS:
        raise error(where, f"its texts have {characters:,} characters, the limit is {MAX_CHARACTERS:,}")
    return {"messages": messages}


def check(sample: object, where: object = "a sample") -> dict:
    """Returns the sample. Raises ValueError, "WHERE: the problem", if it is not one."""
    if problem := _problem(sample):
        raise error(where, problem)
    return sample


def _problem(sample: object) -> str:
    """What is wrong with a sample; empty if nothing is."""
    if not isinstance(sample, dict):
        return f"a sample is a JSON object, this is {type(sample).__name__}"
    for key in ("contexts", "input", "target"):
        if key not in sample:
            return f"the field {key!r} is missing"
    for key in ("contexts", "options", "questions", "answers"):
        if not isinstance(sample.get(key, []), list):
            return f"{key!r} must be a list"
        if len(sample.get(key, [])) > MAX_PARTS:
            return f"{key!r} has {len(sample[key]):,} items, the limit is {MAX_PARTS:,}"
    for key in ("contexts", "options"):
        if not all(isinstance(item, str) for item in sample.get(key, [])):
            return f"{key!r} must be a list of strings"
    for key in ("input", "target", "answer", "separator", "task"):
        if not isinstance(sample.get(key, ""), str):
            return f"{key!r} must be a string"
    pair = lambda x: isinstance(x, list) and len(x) == 2 and all(isinstance(part, str) for part in x) and x[1]
    if not all(map(pair, sample.get("questions", []))):
        return "'questions' must be a list of pairs of strings, [input, target]"
    contexts, questions = sample["contexts"], sample.get("questions", [])
    separator = sample.get("separator", "\n")
    texts = [*contexts, sample["input"], sample["target"], *sample.get("options", [])]
    texts += [text for question in questions for text in question]
    characters = sum(map(len, texts)) + len(separator) * len(texts)
    if characters > MAX_CHARACTERS:
        return f"its texts have {characters:,} characters, the limit is {MAX_CHARACTERS:,}"
    if any(not text.isascii() and HALF_PAIR.search(text) for text in (*texts, separator)):
        return "half of a surrogate pair is not a character"
    if not sample["target"]:
        return "'target' is empty: there is nothing to predict"
    if not separator and (not all(contexts) or contexts and not sample["input"]):
        return "with an empty 'separator', no context may be empty, and 'input' may not"
    if sample.get("options") and sample["target"] not in sample["options"]:
        return "'target' is not among 'options'"
    if sample.get("answer", "") not in sample["target"]:
        return "'answer' is not part of 'target'"
    if not all(type(i) is int and 0 <= i < len(contexts) for i in sample.get("answers", [])):
        return "'answers' must be a list of numbers of contexts, the first being 0"
    distance = sample.get("distance", 1)
    if type(distance) is not int or not 1 <= distance <= max(len(contexts), 1):
        return "'distance' must be a whole number from 1 to the number of contexts"
    return ""


def main(generate) -> None:
    """What `python -m data.NAME` does: print samples as JSON lines."""
    from minccm.io.options import OneLineParser, whole

    parser = OneLineParser(description="Prints samples as JSON lines.")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=whole(0, 10**9), default=3, help="samples (default: 3)")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0)
    options = parser.parse_args()
    try:
        for sample in generate(options.split, options.count, options.seed):
            print(json.dumps(sample, ensure_ascii=False))
    except BrokenPipeError:  # `| head` has seen enough
        pass
