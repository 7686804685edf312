"""Data files are untrusted: whatever they hold, reading them gives valid samples or an error of one line.

Fuzzing: MINCCM_FUZZ_CASES sets the number of cases of each kind (tests/hostile.py). The rest are single findings.
"""
# ruff: noqa: B023 - lambdas are called where they are made

import gzip
import json
import lzma
import os
import random
import time
import zipfile
from pathlib import Path

import pytest

import data
from data import archives, dailydialog, lamp, metaicl, prepared, running, soda, text
from minccm.io.tokenizer import Tokenizer
from minccm.sequence import encode_sample
from tests import hostile
from tests.hostile import TEXTS, check_error, fuzz, guarded, mutate_bytes, mutate_zip, timed
from tests.test_real_data import daily_folder, lamp_folder, metaicl_folder, soda_folder, text_folder

GOOD = {
    "contexts": ["User: I live in Oslo.", "Bot: How nice!"],
    "input": "User: Where?\nBot:",
    "target": "Oslo.",
    "answer": "Oslo",
    "distance": 2,
    "answers": [1],
    "questions": [["User: Who?\nBot:", "You."]],
    "options": ["Oslo.", "Rome."],
    "separator": "\n",
    "task": "places",
}
MODULES = {dailydialog: daily_folder, soda: soda_folder, metaicl: metaicl_folder, lamp: lamp_folder, text: text_folder}


def refused(call, *says: str, seconds: float = 30) -> str:
    """Asserts that a call raises one clear ValueError, which holds the given words, within `seconds`."""
    began = time.perf_counter()
    with pytest.raises(ValueError) as error:
        call()
    assert time.perf_counter() - began < seconds
    message = check_error(error.value)
    for part in says:
        assert part in message, message
    return message


def mutate_json(random, value: object) -> bytes:
    """hostile.mutate_json, or a huge number where that one overflows."""
    try:
        return hostile.mutate_json(random, value)
    except OverflowError:
        return b"9" * 400


def write_lines(path: Path, *lines: object) -> Path:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def prepare(module, raw: Path, out: Path, skip_bad: bool = False) -> dict:
    """What `python -m data.NAME RAW --out OUT` does, without the command line."""
    name = module.__name__.removeprefix("data.")
    preparation = prepared.Preparation(name, out, lambda text: -(-len(text.encode()) // 4), skip_bad)
    try:
        module.prepare(raw, preparation)
        return preparation.finish()
    finally:
        preparation.close()


def use(name: str) -> list[dict]:
    """Samples of all splits, as training and evaluation read them."""
    samples = []
    for split in data.SPLITS:
        if split != "test":
            source = data.source(name, split)
            samples += [source(index, longest) for index, longest in enumerate([None, None, 1, 2, 7])]
        samples += data.at_step(name, split, 2, 5)
    return samples


def check_all(samples: list[dict]) -> None:
    for sample in samples:
        data.check(sample)


# Fuzzing


def test_fuzz_lines(tmp_path, tiny):
    """Mutated sample lines: each file gives samples that can be tokenized, or an error that names the line."""
    path, tokenizer = tmp_path / "mine.jsonl", Tokenizer(tiny)
    first = json.dumps(GOOD | {"contexts": ["a"] * 3}).encode()

    def spoil(random):
        line = mutate_json(random, GOOD)
        whole = b"\n".join([first, line, first, b""])
        path.write_bytes(whole if random.random() < 0.9 else mutate_bytes(random, whole))

    def valid(samples):
        check_all(samples)
        for sample in samples:
            encode_sample(tokenizer, sample, max_questions=2)

    write_lines(path, GOOD)
    valid(use(str(path)))
    results = fuzz("data lines", 1500, tmp_path, spoil, lambda: use(str(path)), valid)
    assert all(results.values()) or sum(results.values()) < 100, results


def test_fuzz_chats(tmp_path):
    """Mutated chats: messages that alternate, or an error that names the line."""
    path = tmp_path / "chats.jsonl"
    chat = {"messages": [{"role": "system", "content": "Be brief."}]}
    chat["messages"] += [{"role": role, "content": f"{i}?"} for i in range(3) for role in ("user", "assistant")]

    def valid(samples):
        for sample in samples:
            turns = [message for message in sample["messages"] if message["role"] != "system"]
            assert turns and turns[-1]["role"] == "assistant" and all(message["content"] for message in turns)
            assert set(sample) <= {"messages", "max_contexts"}

    def spoil(random):
        path.write_bytes(b"\n".join([json.dumps(chat).encode(), mutate_json(random, chat), b""]))

    valid(use(str(write_lines(path, chat))))
    results = fuzz("chats", 400, tmp_path, spoil, lambda: use(str(path)), valid)
    assert all(results.values()) or sum(results.values()) < 100, results


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zip"])
def test_fuzz_archives(tmp_path, suffix):
    """Mutated archives, and archives of mutated content."""
    path = tmp_path / f"train.jsonl{suffix}"
    plain = b"".join(json.dumps({"text": f"line {i} " * 5}).encode() + b"\n" for i in range(300))

    def packed(content: bytes) -> bytes:
        if suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a/other.txt", b"x")
                archive.writestr("a/train.jsonl", content)
            return path.read_bytes()
        return gzip.compress(content, mtime=0) if suffix == ".gz" else lzma.compress(content)

    def spoil(random):
        good = packed(plain)
        if random.random() < 0.2:
            path.write_bytes(packed(mutate_bytes(random, plain)))
        elif suffix == ".zip" and random.random() < 0.3:
            path.write_bytes(mutate_zip(random, good))
        else:
            path.write_bytes(mutate_bytes(random, good))

    def read():
        member = "train.jsonl" if suffix == ".zip" else ""
        return [line for _, line in archives.read_lines(path, member)]

    path.write_bytes(packed(plain))
    assert read() == plain.splitlines()
    results = fuzz(f"archives {suffix}", 400, tmp_path, spoil, read)
    assert all(results.values()) or sum(results.values()) < 100, results


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_fuzz_original_files(tmp_path, module):
    """Original files of each dataset, with mistakes in one of them: prepared folders that work, or an error."""
    raw = MODULES[module](tmp_path / "raw")
    files = {path: path.read_bytes() for path in sorted(raw.rglob("*")) if path.is_file()}
    spoilt = []

    def spoil(random):
        for path in spoilt:
            path.write_bytes(files[path])
        path = random.choice(list(files))
        spoilt[:] = [path]
        good = files[path]
        if path.suffix == ".zip":
            bad = mutate_zip(random, good)
        elif path.suffix == ".json" and random.random() < 0.7:
            bad = mutate_json(random, json.loads(good))
        elif path.suffix == ".jsonl" and random.random() < 0.7:
            lines = good.splitlines()
            place = random.randrange(len(lines))
            lines[place] = mutate_json(random, json.loads(lines[place]))
            bad = b"\n".join([*lines, b""])
        else:
            bad = mutate_bytes(random, good)
        path.write_bytes(bad)
        read.skip_bad = random.random() < 0.5

    def read():
        prepare(module, raw, tmp_path / "out", read.skip_bad)
        return use(str(tmp_path / "out"))

    read.skip_bad = False
    check_all(read())
    results = fuzz(f"original files of {module.__name__}", 60, tmp_path, spoil, read, check_all)
    assert all(results.values()) or sum(results.values()) < 50, results


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_fuzz_prepared_folders(tmp_path, module):
    """Prepared folders with mistakes in dataset.json or in the records."""
    out = tmp_path / "out"
    prepare(module, MODULES[module](tmp_path / "raw"), out)
    files = {path: path.read_bytes() for path in sorted(out.iterdir())}
    spoilt = []

    def spoil(random):
        for path in spoilt:
            path.write_bytes(files[path])
        path = random.choice(list(files))
        spoilt[:] = [path]
        if random.random() < 0.3:
            bad = mutate_bytes(random, files[path])
        elif path.name == "dataset.json":
            bad = mutate_json(random, json.loads(files[path]))
        else:
            lines = files[path].splitlines()
            for place in range(len(lines)):
                if random.random() < 0.5:
                    lines[place] = mutate_json(random, json.loads(lines[place])).replace(b"\n", b" ")
            bad = b"\n".join([*lines, b""])
        path.write_bytes(bad)

    assert use(str(out))
    results = fuzz(f"prepared folders of {module.__name__}", 120, tmp_path, spoil, lambda: use(str(out)), check_all)
    assert all(results.values()) or sum(results.values()) < 50, results


def test_fuzz_running_text(tmp_path):
    """Texts of any Unicode, with mutated bytes, plain and compressed."""
    letters = ["word ", "\n", " ", "é", "日本", "\U0001f600", "\u202e", "\0", "\x1b[2J", "\ufeff", "a" * 700, "é" * 500]

    def spoil(random):
        some = random.sample(letters, random.randint(1, 4))
        content = "".join(random.choices(some, k=random.choice([10, 12_000, 60_000]))).encode()
        content = content if random.random() < 0.6 else mutate_bytes(random, content)
        read.name = f"text:{tmp_path / random.choice(['a.txt', 'a.txt.xz', 'a.txt.gz'])}"
        pack = {".xz": lambda data: lzma.compress(data, preset=0), ".gz": gzip.compress}
        Path(read.name[5:]).write_bytes(pack.get(Path(read.name).suffix, bytes)(content))
        running.read_text.cache_clear()
        running.part.cache_clear()

    def read():
        return use(read.name)

    results = fuzz("running text", 60, tmp_path, spoil, read, check_all)
    assert all(results.values()) or sum(results.values()) < 50, results


# Single findings


def test_long_samples(tmp_path):
    """The texts of a sample have a limit, stated in the error, whichever field holds them."""
    path, limit = tmp_path / "long.jsonl", f"{data.MAX_CHARACTERS:,}"
    long = "word " * (data.MAX_CHARACTERS // 5)
    for more in (
        {"target": long, "answer": "", "options": [], "questions": []},
        {"input": long},
        {"contexts": [long, "a"]},
        {"options": ["Oslo.", long]},
        {"questions": [[long, "a"]]},
        {"questions": [["a", long]]},
        {"separator": long},
        {"separator": long[:300], "contexts": ["a"] * 4000},
    ):
        write_lines(path, GOOD, GOOD | more)
        refused(lambda: data.source(str(path), "train"), f"{path}, line 2", "characters", limit)
    fits = {"contexts": ["a"], "input": "", "target": "a" * (data.MAX_CHARACTERS - 4)}
    assert data.check(fits) and refused(lambda: data.check(fits | {"input": "a"}), limit)
    write_lines(path, GOOD, b'{"contexts": ["' + b"a" * archives.MAX_LINE + b'"]}')
    refused(lambda: data.source(str(path), "train"), f"{path}: line 2", f"{archives.MAX_LINE:,} bytes")


def test_many_contexts(tmp_path):
    """One line of 80 KB with 20,000 empty contexts, or as many of another part, is refused at once."""
    path, limit = tmp_path / "many.jsonl", f"{data.MAX_PARTS:,}"
    for more in (
        {"contexts": [""] * 20_000},
        {"options": [""] * 20_000},
        {"questions": [["", "a"]] * 20_000},
        {"answers": [0] * 20_000},
    ):
        write_lines(path, GOOD | more)
        refused(lambda: data.source(str(path), "train"), f"{path}, line 1", "20,000", limit, seconds=5)
    data.check(GOOD | {"contexts": ["a"] * data.MAX_PARTS})
    empty = {"contexts": ["a", "", "b"], "input": "a", "target": "b", "separator": ""}
    refused(lambda: data.check(empty), "no context may be empty")  # nothing would stand for it
    refused(lambda: data.check(empty | {"contexts": ["a"], "input": ""}), "'input'")


def test_text_that_no_context_can_be_cut_from(tmp_path, tiny):
    """Emoji take four tokens each: every sample still fits the model, and shortening always ends."""
    path, tokenizer = tmp_path / "emoji.txt", Tokenizer(tiny)
    path.write_text("\U0001f600" * 100_000, "utf-8")

    def tokens(sample):
        contexts, questions, _ = encode_sample(tokenizer, sample)
        return sum(map(len, contexts)) + sum(len(input + output) for input, output in questions)

    source = data.source(str(path), "train")
    for index in range(30):
        sample = data.fit(source(index), tokens, 2048)
        assert tokens(sample) <= 2048 and sample["contexts"]
    refused(lambda: data.fit(source(0), tokens, 100), "does not fit in 100 tokens")
    out = tmp_path / "out"
    prepare(text, path, out)  # the same text, prepared
    source = data.source(str(out), "train")
    assert all(tokens(data.fit(source(index), tokens, 2048)) <= 2048 for index in range(30))


def test_fit_keeps_what_fits():
    """fit drops as few contexts as it can, none before the answer, and says so when nothing helps."""
    sample = {"contexts": [f"{i}" * 10 for i in range(9)], "input": "a", "target": "b", "answers": [2, 8]}
    length = lambda sample: sum(map(len, sample["contexts"]))
    assert data.fit(sample, length, 90) is sample
    for limit in range(10, 90):
        fitted = data.fit(sample, length, limit)
        assert fitted["contexts"] == sample["contexts"][-(limit // 10) :]
        assert all(sample["contexts"][9 - limit // 10 + i] in ("2" * 10, "8" * 10) for i in fitted["answers"])
    refused(lambda: data.fit(sample, length, 9), "1 of its contexts")
    assert len(data.fit(sample | {"distance": 4}, length, 45)["contexts"]) == 4
    refused(lambda: data.fit(sample | {"distance": 4}, length, 39), "4 of its contexts")
    refused(lambda: data.fit({"contexts": ["a"], "input": "a", "target": "b"}, length, 0), "no contexts to leave out")
    refused(lambda: data.shorten(sample, 0), "at least one context")
    assert data.shorten({"messages": []}, 3) == {"messages": [], "max_contexts": 3}


def set_flags(path: Path, flags: int = 0, kind: int | None = None) -> None:
    """Changes the flags, or the kind of compression, of every member of a zip file."""
    content = bytearray(path.read_bytes())
    for mark, flag_place, kind_place in ((b"PK\3\4", 6, 8), (b"PK\1\2", 8, 10)):
        place = content.find(mark)
        while place >= 0:
            content[place + flag_place] |= flags
            if kind is not None:
                content[place + kind_place] = kind
            place = content.find(mark, place + 4)
    path.write_bytes(content)


def test_archives_that_cannot_be_read(tmp_path):
    """Encrypted, of an unknown compression, cut off, with flipped bytes, not an archive at all: one line each."""
    raw = daily_folder(tmp_path / "daily")
    whole = (raw / "train.zip").read_bytes()
    for flags, kind, says in ((1, None, "encrypted"), (0, 99, "compression 99"), (0, 14, "compression 14")):
        (raw / "train.zip").write_bytes(whole)
        set_flags(raw / "train.zip", flags, kind)
        refused(lambda: prepare(dailydialog, raw, tmp_path / "out"), "train.zip", says)
    raw = soda_folder(tmp_path / "soda")
    plain = (raw / "train.jsonl").read_bytes()
    (raw / "train.jsonl").unlink()
    packed = {".gz": gzip.compress(plain, mtime=0), ".xz": lzma.compress(plain)}
    for suffix, whole in packed.items():
        for content in (
            whole[:-9],
            whole[: len(whole) // 2],
            b"no archive" * 9,
            whole[:30] + b"\xff" * 99 + whole[99:],
        ):
            path = raw / f"train.jsonl{suffix}"
            path.write_bytes(content)
            refused(lambda: prepare(soda, raw, tmp_path / "out"), path.name, "damaged or cut off")
            path.unlink()
    (raw / "train.jsonl.xz").write_bytes(packed[".xz"] + b"\0" * 8 + packed[".xz"])  # two streams and padding are fine
    assert prepare(soda, raw, tmp_path / "out")["found"]["train"]


def test_bombs(tmp_path):
    """A line of 1 GB, and 1 GB of short lines, from small archives: refused in seconds and without the memory."""
    for name, piece, says in (
        ("line", b"\0" * 2**24, f"line 1 has more than {archives.MAX_LINE:,} bytes"),
        ("lines", (b"{}" + b" " * 997 + b"\n") * 2**14, "bytes of text"),
    ):
        bombs = [tmp_path / f"{name}{suffix}" for suffix in (".gz", ".xz", ".zip")]
        bombs[0].write_bytes(gzip.compress(piece) * 64)
        bombs[1].write_bytes(lzma.compress(piece, preset=0) * 64)
        with zipfile.ZipFile(bombs[2], "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x", piece * 6)
        for path in bombs:
            assert path.stat().st_size < 2**22

            def read(path=path):
                with guarded(tmp_path, megabytes=256):
                    for _ in archives.read_lines(path):
                        pass

            refused(read, path.name, says)
    text_bomb = tmp_path / "a.txt.xz"
    text_bomb.write_bytes(lzma.compress(b"word " * 2**18, preset=0) * 400)
    refused(lambda: data.source(str(text_bomb), "train"), "a.txt.xz", "bytes")
    greedy = lzma.compress(b"a" * 99, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1536 * 2**20}])
    text_bomb.write_bytes(greedy)  # this file of 100 bytes asks for 1.5 GiB
    refused(lambda: data.source(str(text_bomb), "train"), "a.txt.xz", "Memory usage limit")


def test_deep_json(tmp_path):
    """100,000 brackets in a data line, an original file, or dataset.json."""
    deep = b"[" * 100_000
    for line in (deep, deep + b"]" * 100_000, b'{"contexts": ' * 50_000, b'{"contexts": ' + deep):
        path = write_lines(tmp_path / "d.jsonl", GOOD, line)
        refused(lambda: data.source(str(path), "train"), f"{path}, line 2", "64 deep")
        raw = soda_folder(tmp_path / "soda")
        write_lines(raw / "train.jsonl", *[{"dialogue": ["a", "b", "c"]}] * 3, line)
        refused(lambda: prepare(soda, tmp_path / "soda", tmp_path / "out"), "train.jsonl, line 4", "64 deep")
        raw = lamp_folder(tmp_path / "lamp")
        (raw / "train_questions.json").write_bytes(b"[" + line + b"]")
        refused(lambda: prepare(lamp, tmp_path / "lamp", tmp_path / "out"), "train_questions.json")
        raw = lamp_folder(tmp_path / "lamp")
        (raw / "train_outputs.json").write_bytes(line)
        refused(lambda: prepare(lamp, tmp_path / "lamp", tmp_path / "out"), "train_outputs.json", "64 deep")
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / "dataset.json").write_bytes(line)
        refused(lambda: data.source(str(tmp_path / "folder"), "train"), "folder", "prepare it again")
    lamp_line = tmp_path / "lamp" / "train_questions.json"
    for content in (
        b'[{"a": "' + b'\\"' * 10**6 + b"\\",
        b"[" + b"{" * 10**6,
        b'["' + b"\\" * (10**6 + 1),
        b'["]',
        b"[{}",
    ):
        lamp_line.write_bytes(content)  # a scan that took quadratic time would not end
        assert timed(lambda: list(lamp.objects(lamp_line))) < 5


def test_chats(tmp_path):
    """A file whose first line has "messages" is a file of chats; samples and chats cannot be mixed."""
    messages = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    chat = {"messages": messages, "id": 3}
    path = write_lines(tmp_path / "chats.jsonl", b"", chat, b"", chat)  # empty lines are left out
    assert data.read_jsonl(path) == [{"messages": messages}] * 2
    source = data.source(str(path), "train")
    assert source(0) == {"messages": messages} and source(0, 4) == {"messages": messages, "max_contexts": 4}
    assert data.at_step(str(path), "test", 3, 1) == [{"messages": messages, "max_contexts": 3}]
    refused(lambda: data.read_jsonl(write_lines(path, chat, GOOD)), f"{path}, line 2", "'messages' is missing")
    refused(lambda: data.read_jsonl(write_lines(path, GOOD, chat)), f"{path}, line 2", "'contexts' is missing")
    long = {"messages": [messages[0], {"role": "assistant", "content": "a" * 2**20}]}
    refused(lambda: data.read_jsonl(write_lines(path, chat, long)), f"{path}, line 2", f"{data.MAX_CHARACTERS:,}")
    refused(lambda: data.read_jsonl(write_lines(path, chat, {"messages": messages * 6000})), "line 2", "10,000")


def test_half_surrogates(tmp_path, tiny):
    """Half of a surrogate pair is removed from a file, refused in a sample, and never reaches the tokenizer."""
    line = b'{"contexts": ["a\\ud83d"], "input": "\\udc00b\\ud83d\\ude00", "target": "c\\ud800\\ud800"}'
    path = write_lines(tmp_path / "half.jsonl", line)
    sample = data.source(str(path), "train")(0)
    assert sample == {"contexts": ["a"], "input": "b\U0001f600", "target": "c"}
    assert encode_sample(Tokenizer(tiny), sample)
    for key in ("contexts", "input", "target", "options", "separator", "questions"):
        half = {"contexts": ["\ud83d"], "options": ["Oslo.", "\ud83d"], "questions": [["a", "\ud83d"]]}.get(
            key, "\ud83d"
        )
        refused(lambda: data.check(GOOD | {"answer": "", "options": []} | {key: half}), "surrogate")
    write_lines(path, b'{"contexts": ["a"], "input": "b", "target": "\\ud83d"}')
    refused(lambda: data.source(str(path), "train"), "'target' is empty")
    raw = soda_folder(tmp_path / "soda")
    write_lines(raw / "train.jsonl", *[b'{"dialogue": ["a\\ud83d", "b", "c"]}'] * 30)
    assert prepare(soda, raw, tmp_path / "out")["found"]["train"] == 29
    assert data.source(str(tmp_path / "out"), "train")(0)["contexts"] == ["a"]
    (raw / "train.jsonl").write_bytes(
        b'{"dialogue": ["\xed\xa0\xbd", "b", "c"]}\n'
    )  # half a pair in bytes is not UTF-8
    refused(lambda: prepare(soda, raw, tmp_path / "out"), "line 1", "UTF-8")


def test_broken_prepared_folders(tmp_path):
    """No validation records, another dataset's records, wrong records, empty turns, a cut line: one line each."""
    out = tmp_path / "out"
    turns = ["Hello.", "Hi.", "Bye."]

    def folder(*records, about: object = None) -> str:
        for split in data.SPLITS:
            write_lines(out / f"{split}.jsonl", *records)
        (out / "dataset.json").write_text(json.dumps({"dataset": "soda"} if about is None else about))
        return str(out)

    raw = write_lines(tmp_path / "few.jsonl", *[{"dialogue": turns}] * 101)
    prepare(soda, raw, out)
    for split in data.SPLITS:
        assert data.source(str(out), split)(0)["target"] == "Bye."
    (out / "validation.jsonl").write_bytes(b"")
    refused(lambda: data.source(str(out), "validation"), str(out), "no validation record")
    assert data.at_step(str(out), "validation", 1, 3) == []

    for record, says in (
        ({"entries": [["a", 1]], "instruction": "a", "article": "b", "output": "c", "room": 9}, "'turns' is missing"),
        ({"turns": "abc"}, "'turns'"),
        ({"turns": ["a", 2, "c"]}, "'turns'"),
        ({"turns": ["a", "b"]}, "3 turns"),
        ({"turns": ["a", "", "c"]}, "none empty"),
        ({"turns": ["a", "b", ""]}, "none empty"),
        ({"turns": ["a"] * 20_000}, f"{data.MAX_PARTS:,}"),
        ({"turns": ["a" * 2**21, "b", "c"]}, f"{data.MAX_CHARACTERS:,}"),
        ([], "JSON object"),
        (b'{"turns": ["a", "b"', "not JSON"),
        (b'{"turns": ["a", "b", "\xff"]}', "UTF-8"),
    ):
        name = folder({"turns": turns}, record)
        source = data.source(name, "train")
        refused(lambda: [source(i) for i in range(40)], "train.jsonl, line 2", says)
        if not says[0].isdigit():
            refused(lambda: data.at_step(name, "train", 1, 0), "train.jsonl, line 2", says)
    name = folder({"turns": turns})
    (out / "train.jsonl").write_bytes((out / "train.jsonl").read_bytes()[:-1])
    refused(lambda: data.source(name, "train"), "cut off")
    (out / "train.jsonl").unlink()
    refused(lambda: data.source(name, "train"), "train.jsonl is missing")
    for about in ({}, [], 3, "soda", {"dataset": 3}, {"dataset": None}, {"dataset": ["soda"]}, {"found": {"train": 3}}):
        name = folder({"turns": turns}, about=about)
        for call in (data.source, data.prepared.kind):
            refused(lambda: call(*[name, "train"][: 1 + (call is data.source)]), "'dataset' must be one of")
    for about in ({"dataset": "metaicl"}, {"dataset": "metaicl", "tasks": {"train": {"a": [5, 9]}}}):
        name = folder({"task": "a", "input": "b", "output": "c", "tokens": 3}, about=about)
        source = data.source(name, "train")
        refused(lambda: source(0), "'a'", "prepare it again")
        refused(lambda: data.at_step(name, "test", 1, 3), "no demonstrations", "'a'")
    name = folder(*[{"text": "a b c", "file": i} for i in range(9)], about={"dataset": "text"})
    refused(lambda: data.source(name, "train")(0), "no piece", "prepare it again")


def test_dataset_json_imports_nothing(tmp_path, monkeypatch):
    """dataset.json can name the five datasets and no other module, wherever it is."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\ndraw = first = problem = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"turns": ["a", "b", "c"]}\n')
    for name in ("evil", "tiny.x.evil", "..evil", "dialog", "chats", "__main__", "prepared", "text ", "", *TEXTS):
        (tmp_path / "dataset.json").write_text(json.dumps({"dataset": name}))
        for call in (
            lambda: data.source(str(tmp_path), "train"),
            lambda: data.at_step(str(tmp_path), "train", 1, 1),
            lambda: prepared.kind(str(tmp_path)),
        ):
            with guarded(tmp_path):
                refused(call, "dailydialog, soda, lamp, metaicl, text")
    assert not (tmp_path / "RAN").exists()


def test_no_regular_file(tmp_path):
    """A pipe or a folder in the place of a data file is refused without waiting for it."""
    pipes = [tmp_path / name for name in ("a.jsonl", "a.txt", "a.txt.xz")]
    for path in pipes:
        os.mkfifo(path)
        refused(lambda: data.source(str(path), "train"), str(path), seconds=5)
        refused(lambda: list(archives.read_lines(path)), "not a regular file", seconds=5)
    (tmp_path / "folder.txt").mkdir()
    refused(lambda: data.source(str(tmp_path / "folder.txt"), "train"), "folder.txt")
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "dataset.json")
    refused(lambda: data.source(str(tmp_path / "out"), "train"), str(tmp_path / "out"), seconds=5)


def test_types_of_a_sample():
    """Booleans and fractions are not numbers of contexts; two names in one object are refused."""
    for more in (
        {"answers": [True]},
        {"answers": [1.0]},
        {"answers": [-1]},
        {"answers": [2]},
        {"distance": True},
        {"distance": 1.0},
        {"distance": 10**400},
        {"distance": 0},
        {"separator": None},
        {"options": "Oslo."},
        {"questions": [["a"]]},
        {"questions": [["a", "b", "c"]]},
        {"contexts": {"a": "b"}},
        {"target": ["Oslo."]},
    ):
        refused(lambda: data.check(GOOD | more), repr(next(iter(more))))


def test_interrupted_preparation(tmp_path):
    """A preparation that stops while it moves its files leaves an incomplete folder, never a mixed one."""
    raw = write_lines(tmp_path / "a.jsonl", *[{"dialogue": ["a", "b", "c"]}] * 200)
    out = tmp_path / "out"
    prepare(soda, raw, out)
    preparation = prepared.Preparation("soda", out, len, False)
    soda.prepare(raw, preparation)

    def stop(*_):
        raise KeyboardInterrupt

    preparation._part, whole = stop, preparation._part
    with pytest.raises(KeyboardInterrupt):
        preparation.finish()
    preparation._part = whole
    preparation.close()
    assert not prepared.folder_of(str(out)) and not list(out.glob("*.part"))


def test_seeded():
    """A case of the fuzzing is the same in every run."""
    assert mutate_json(random.Random("a 1"), GOOD) == mutate_json(random.Random("a 1"), GOOD)
