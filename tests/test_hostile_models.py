"""Tokenizers, GGUF files, chat templates and chats are untrusted: reading them gives a valid object or one clear error.

MINCCM_FUZZ_CASES sets the number of cases of each kind (tests/hostile.py).
"""

import json
import random
import shutil
from pathlib import Path

import pytest

import data
from data import chats
from minccm.io import gguf, templates
from minccm.io.tokenizer import Tokenizer
from tests.hostile import fuzz, mutate_bytes, mutate_json, mutate_value, timed
from tests.test_chats import CHAT
from tests.test_templates import Letters
from tests.test_tokenizer import FAMILIES, write_json, write_meta

TEXT = "Hello, world 123!\n  caf\u00e9 \U0001f980 <|im_end|> \ud800 it's"


def use(tokenizer: Tokenizer) -> list[int]:
    """What the program does with a tokenizer."""
    ids = tokenizer.encode(TEXT)
    tokenizer.decode(ids)
    tokenizer.words(ids)
    tokenizer.mark("[INST]")
    return ids


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """A tokenizer that opened is whole: ids in its range, and no control token for what a user types."""
    ids = use(tokenizer)
    assert all(0 <= id < tokenizer.vocab_size for id in [*ids, tokenizer.bos_id, tokenizer.eos_id])
    assert tokenizer.control("<|im_end|>") not in ids


def open_tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer(path)
    use(tokenizer)
    return tokenizer


def test_sentencepiece(tiny, tmp_path):
    """tokenizer.model with bytes changed."""
    data, path = (tiny / "tokenizer.model").read_bytes(), tmp_path / "tokenizer.model"
    open_tokenizer(tiny)

    def spoil(choose: random.Random) -> None:
        if choose.random() < 0.5:  # the settings at the end, and the kinds of pieces
            place = choose.choice([len(data) - 1 - choose.randrange(300), choose.randrange(len(data))])
            path.write_bytes(
                data[:place] + choose.choice([b"\0", b"\1", b"\x7f", choose.randbytes(1)]) + data[place + 1 :]
            )
        else:
            path.write_bytes(mutate_bytes(choose, data))

    assert fuzz("tokenizer.model", 300, tmp_path, spoil, lambda: open_tokenizer(path), check_tokenizer)["error"]


def test_meta_list(tmp_path):
    """Meta's tokenizer.model of Llama 3 with bytes changed."""
    pytest.importorskip("tiktoken")
    use(write_meta(tmp_path))
    path = tmp_path / "tokenizer.model"
    data = path.read_bytes()
    spoil = lambda choose: path.write_bytes(mutate_bytes(choose, data))
    assert fuzz("Meta's list", 200, tmp_path, spoil, lambda: open_tokenizer(path), check_tokenizer)["error"]


@pytest.mark.parametrize("family", ["llama-3", "smollm"])
def test_tokenizer_json(tmp_path, family):
    """tokenizer.json with values or bytes changed."""
    pytest.importorskip("tiktoken")
    use(write_json(tmp_path, FAMILIES[family][0]))
    path = tmp_path / "tokenizer.json"
    raw = json.loads(path.read_text())

    def spoil(choose: random.Random) -> None:
        if choose.random() < 0.3:  # ids and merges are most of the values, and the rest is more interesting
            rest = {name: raw[name] for name in ("added_tokens", "pre_tokenizer", "normalizer")}
            path.write_text(json.dumps(raw | mutate_value(choose, {"rest": rest})["rest"], ensure_ascii=True))
        else:
            path.write_bytes(mutate_json(choose, raw))

    def spoil_safely(choose: random.Random) -> None:
        try:
            spoil(choose)
        except (
            TypeError,
            ValueError,
            LookupError,
            OverflowError,
        ):  # no object, or no JSON
            path.write_bytes(mutate_bytes(choose, json.dumps(raw).encode()))

    assert fuzz(family, 200, tmp_path, spoil_safely, lambda: open_tokenizer(tmp_path), check_tokenizer)["error"]


def test_gguf(tmp_path):
    """A small GGUF file with its header or its weights changed: config, weights, tokenizer and template."""
    pytest.importorskip("tiktoken")
    from tests.test_gguf import random_weights, write_gguf  # skips without the package gguf

    path = write_gguf(tmp_path / "good.gguf", random_weights(), "Q8_0")
    data, path = path.read_bytes(), tmp_path / "model.gguf"
    tensors = gguf.read_header(tmp_path / "good.gguf").tensors
    size = min(stored.offset for stored in tensors.values())
    tokens = data.index(b"tokenizer.ggml.tokens")

    def read():
        config, parts = gguf.load_gguf(path)
        weights = {name: part.read() for name, part in parts.items()}
        return config, weights, open_tokenizer(path), templates.recognize(path)

    def spoil(choose: random.Random) -> None:
        if choose.random() < 0.5:  # the numbers and names before and after the lists of the tokenizer
            head, rest = data[:tokens], data[tokens:size]
            place = rest.index(b"tokenizer.ggml.bos_token_id")
            if choose.random() < 0.5:
                head = mutate_bytes(choose, head)
            else:
                rest = rest[:place] + mutate_bytes(choose, rest[place:])
            path.write_bytes((head + rest)[:size].ljust(size, b"\0") + data[size:])
        elif choose.random() < 0.7:
            path.write_bytes(mutate_bytes(choose, data[:size]) + data[size:])
        else:
            path.write_bytes(mutate_bytes(choose, data))

    def valid(result) -> None:
        config, weights, tokenizer, template = result
        assert weights["embed_tokens.weight"].shape == (config.vocab_size, config.dim)
        assert len(weights) == 9 * config.n_layers + 2 + (not config.tied_embeddings)
        assert all(weight.numel() for weight in weights.values()) and template.name in templates.TEMPLATES
        check_tokenizer(tokenizer)

    shutil.copy(tmp_path / "good.gguf", path)
    valid(read())
    result = fuzz("GGUF", 400, tmp_path, spoil, read, valid)
    assert result["error"] and result["valid"]


def test_sentencepiece_in_gguf(tiny, tmp_path):
    """A GGUF file with a sentencepiece vocabulary, with values of its entries or bytes changed."""
    from tests.test_gguf import random_weights, sentencepiece_entries, write_gguf

    entries, path = sentencepiece_entries(tiny), tmp_path / "model.gguf"
    names = ("tokens", "scores", "token_type")
    lists = {name: entries[f"tokenizer__ggml__{name}"][:600] for name in names}
    model = random_weights()
    data = write_gguf(path, model, **entries | {f"tokenizer__ggml__{name}": values for name, values in lists.items()})
    data = data.read_bytes()
    use(Tokenizer(path))
    begin, end = data.index(b"tokenizer.ggml.model"), data.index(b"tokenizer.chat_template")

    def spoil(choose: random.Random) -> None:
        middle = bytearray(data[begin:end])
        for _ in range(choose.choice([1, 2, 30])):
            middle[choose.randrange(len(middle))] = choose.choice([0, 1, 3, 4, 127, 255, choose.randrange(256)])
        path.write_bytes(data[:begin] + bytes(middle) + data[end:])

    assert fuzz("sentencepiece in GGUF", 200, tmp_path, spoil, lambda: open_tokenizer(path), check_tokenizer)["error"]


def test_templates(tmp_path):
    """tokenizer_config.json with values or bytes changed."""
    raw = {"chat_template": "<|im_start|>system\nBe kind.<|im_end|>", "bos_token": "<s>", "added_tokens_decoder": {}}
    path = tmp_path / "tokenizer_config.json"
    spoil = lambda choose: path.write_bytes(mutate_json(choose, raw))

    def valid(template: templates.Template) -> None:
        assert template.name in templates.TEMPLATES and len(template.default_system) <= 1000

    assert fuzz("templates", 200, tmp_path, spoil, lambda: templates.recognize(tmp_path), valid)["error"]


def test_chats(tmp_path):
    """Lines of chats with values or bytes changed."""
    path = tmp_path / "chats.jsonl"
    line = {"messages": CHAT}

    def read():
        return [encode(chat["messages"]) for chat in data.read_jsonl(path)]

    def encode(messages):
        return chats.encode_chat(Letters(), templates.TEMPLATES["chatml"], messages, 8, random.Random(0))

    def spoil(choose: random.Random) -> None:
        good = json.dumps(line).encode()
        try:
            path.write_bytes(good + b"\n" + mutate_json(choose, line))
        except OverflowError:  # a number too large for a float
            path.write_bytes(mutate_bytes(choose, good))

    def valid(samples) -> None:
        for contexts, ((input, output),), answer_lengths in samples:
            assert input and output and len(contexts) == len(answer_lengths)

    result = fuzz("chats", 300, tmp_path, spoil, read, valid)
    assert result["error"] and result["valid"]


def test_time(tmp_path):
    """Long texts and many messages take time in proportion to their length, and too many are refused."""
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": CHAT[1:] * 5000}))
    with pytest.raises(ValueError, match="10,000"):
        data.read_jsonl(path)
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "x " * 2_000_000}, CHAT[2]]}))
    encode = lambda messages: chats.encode_chat(Letters(), templates.TEMPLATES["chatml"], messages, 8)
    assert timed(lambda: encode(data.read_jsonl(path)[0]["messages"])) < 20
    path.write_text("[" * 1_000_000)
    assert timed(lambda: data.read_jsonl(path)) < 5
