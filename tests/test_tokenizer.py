"""Text to ids and back: sentencepiece, byte-level BPE of each family, and tokenizers that do not fit the model."""

import base64
import json
import os
import random
import shutil
import sys

import pytest
import torch

from minccm.io import options, tokenizer
from minccm.io.config import read_config
from minccm.io.tokenizer import BYTE_OF, Tokenizer, train_tokenizer
from minccm.io.weights import load_model, save_model
from minccm.model import Transformer
from tests.conftest import oracle

RECORDED = oracle("dialog") / "dailydialog.json"
LLAMA = os.environ.get("MINCCM_TOKENIZER") or RECORDED.parent.parent.parent / "data" / "llama" / "tokenizer.model"
LETTER = {byte: letter for letter, byte in BYTE_OF.items()}  # how byte-level BPE writes a byte
SPACE, NEWLINE = LETTER[32], LETTER[10]
MERGES = [f"{SPACE} t", "h e", f"{SPACE}t he", "1 2", "a t", "1 1", f"! {NEWLINE}"]
CONTROL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NO_PATTERN = BYTE_LEVEL | {"use_regex": False}


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*steps: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(steps)}


FAMILIES = {  # how tokenizer.json names a pattern, and how the pattern splits the text below
    "gpt-2": (BYTE_LEVEL, "| the| |11|12| |at|!|\n"),
    "llama-3": (sequence(split(tokenizer.LLAMA3), NO_PATTERN), "| the| |11|1|2| |at|!\n"),
    "qwen2": (sequence(split(tokenizer.QWEN2), NO_PATTERN), "| the| |1|1|1|2| |at|!\n"),
    "smollm": (sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL), "| the| |1|1|1|2| |at|!|\n"),
}
TEXT = " the 1112 at!\n"


def write_json(folder, pre_tokenizer=BYTE_LEVEL, shuffle=False, **more) -> Tokenizer:
    """Writes a small tokenizer.json with its config.json, and opens it. shuffle: the ids are in a random order."""
    texts = [*LETTER.values(), *(merge.replace(" ", "") for merge in MERGES)]
    if shuffle:
        random.Random(0).shuffle(texts)
    vocab = {text: id for id, text in enumerate(CONTROL + texts)}
    added = [{"id": vocab[text], "content": text, "special": True} for text in CONTROL]
    raw = {"added_tokens": added, "pre_tokenizer": pre_tokenizer, "normalizer": None}
    raw |= {"model": {"type": "BPE", "vocab": vocab, "merges": MERGES}} | more
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    config = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config |= dict(vocab_size=len(vocab), bos_token_id=0, eos_token_id=2)
    (folder / "config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


def write_meta(folder) -> Tokenizer:
    """Writes a small tokenizer.model of Meta's format for Llama 3, and opens it."""
    pieces = [bytes([byte]) for byte in LETTER]
    pieces += [bytes(map(BYTE_OF.get, merge.replace(" ", ""))) for merge in MERGES]
    lines = [b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return Tokenizer(folder)


def parts(opened: Tokenizer, text: str) -> str:
    """The text with | before each token."""
    return "".join("|" + opened.decode([id]) for id in opened.encode(text))


@pytest.mark.skipif(
    not (RECORDED.is_file() and os.path.isfile(LLAMA)),
    reason=f"needs {RECORDED} (MINCCM_ORACLE) and LLaMA's tokenizer at {LLAMA} (MINCCM_TOKENIZER)",
)
def test_recorded_ids():
    """Every recorded text has the recorded ids, and decodes to itself; so does every turn of the recorded dialogues."""
    recorded, opened = json.loads(RECORDED.read_text()), Tokenizer(LLAMA)
    assert (opened.bos_id, opened.eos_id, opened.vocab_size) == (1, 2, 32000)
    for case in recorded["tokenizer"]:
        assert opened.encode(case["text"]) == case["ids"]
        assert opened.decode(case["ids"]) == case["text"]
    for dialogue in recorded["preprocess"]:
        assert [opened.encode(text) for text in dialogue["clean"]] == dialogue["tokens"]
    assert opened.newline == recorded["sep_token"][:1]
    check_round_trips(opened)


def test_vocabulary_too_small(tiny, tmp_path):
    """A model with fewer embeddings than its tokenizer has pieces: an error with both numbers."""
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        shutil.copy(tiny / name, tmp_path)
    pieces = Tokenizer(tmp_path).vocab_size
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"vocab_size": pieces - 1}))
    model, state = Transformer(read_config(tmp_path)), load_model(tiny).state_dict()
    for name in ("embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:-1]
    model.load_state_dict(state)
    save_model(tmp_path, model)
    with pytest.raises(ValueError, match=f"{pieces} pieces.*{pieces - 1}"):
        options.open_base(tmp_path, None, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("shuffle", [False, True], ids=["ranks", "shuffled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, family, shuffle):
    """Each family splits a text in its own way, whatever the order of the ids; BOS and EOS come from config.json."""
    pytest.importorskip("tiktoken")
    pre_tokenizer, expected = FAMILIES[family]
    opened = write_json(tmp_path, pre_tokenizer, shuffle)
    assert parts(opened, TEXT) == expected
    assert (opened.bos_id, opened.eos_id, opened.vocab_size) == (0, 2, len(CONTROL) + 256 + len(MERGES))
    assert opened.decode(opened.newline) == "\n" and opened.control("<|im_end|>") == 2
    check_round_trips(opened)


def test_ids_by_hand(tmp_path):
    """The same as ids: 3 control tokens, 256 bytes in the order of their values, then the merges in their order."""
    pytest.importorskip("tiktoken")
    byte = lambda text: [3 + [*LETTER].index(value) for value in text.encode()]
    opened = write_json(tmp_path)
    merged = {merge.replace(" ", ""): 3 + 256 + i for i, merge in enumerate(MERGES)}
    expected = [merged[f"{SPACE}the"], *byte(" "), merged["11"], merged["12"], *byte(" "), merged["at"], *byte("!\n")]
    assert opened.encode(TEXT) == expected
    assert opened.encode("caf\u00e9") == byte("caf\u00e9") and len(byte("caf\u00e9")) == 5
    assert opened.after("he") == [merged["he"]] and opened.spaced("the") == [merged[f"{SPACE}the"]]


def test_meta_list(tmp_path):
    """Llama 3's own tokenizer.model: ranks are ids, and 256 control tokens follow them."""
    pytest.importorskip("tiktoken")
    opened, pieces = write_meta(tmp_path), 256 + len(MERGES)
    assert parts(opened, TEXT) == FAMILIES["llama-3"][1]
    assert (opened.bos_id, opened.eos_id, opened.vocab_size) == (pieces, pieces + 1, pieces + 256)
    assert opened.control("<|start_header_id|>") == pieces + 6 and opened.control("<|eot_id|>") == pieces + 9
    assert opened.control("<|reserved_special_token_250|>") == pieces + 250 and opened.control("the") is None
    check_round_trips(opened)


def test_control_tokens_are_plain_text(tmp_path, tiny):
    """What a user types is text: the name of a control token has no control token in its ids."""
    pytest.importorskip("tiktoken")
    for opened, names in ((write_json(tmp_path), CONTROL), (Tokenizer(tiny), ["<s>", "</s>"])):
        ids = [opened.control(name) for name in names]
        assert None not in ids
        text = " ".join(names)
        assert not {*ids} & {*opened.encode(text)} and opened.decode(opened.encode(text)) == text
        assert opened.decode(ids) == "" and opened.mark(names[1]) == [ids[1]]


def test_no_characters(tiny, tmp_path):
    """Half of a surrogate pair becomes U+FFFD, and two halves become their character: no tokenizer fails."""
    pytest.importorskip("tiktoken")
    for opened in (Tokenizer(tiny), write_json(tmp_path)):
        assert opened.decode(opened.encode("a \ud83d b \ude00")) == "a \ufffd b \ufffd"
        assert opened.decode(opened.encode("\ud83d\ude00")) == "\U0001f600"


@pytest.mark.parametrize("family", FAMILIES)
def test_long_runs(tmp_path, family):
    """Long runs of one character, whitespace too, are encoded in a short time and decode to themselves."""
    pytest.importorskip("tiktoken")
    opened = write_json(tmp_path, FAMILIES[family][0])
    for run in (" ", "\n", "\t \r\n", "a", "1", "!", "\u3000", " the", "'s"):
        text = run * (300_000 // len(run))
        assert opened.decode(opened.encode(text)) == text


def test_bytes_outside_the_vocabulary(tmp_path):
    """A byte without an id is left out, as the reference tokenizers do it."""
    pytest.importorskip("tiktoken")
    opened = write_json(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    del raw["model"]["vocab"][LETTER[4]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert Tokenizer(tmp_path).encode("a\x04at") == opened.encode("a") + opened.encode("at")


def test_normal_form(tmp_path):
    """Qwen2's tokenizer composes characters first (NFC)."""
    pytest.importorskip("tiktoken")
    opened = write_json(tmp_path, normalizer={"type": "NFC"})
    assert opened.encode("e\u0301") == opened.encode("\u00e9")


def test_words(tmp_path, tiny):
    """Words with the tokens that make them; a control token belongs to no word before it."""
    pytest.importorskip("tiktoken")
    for opened in (write_json(tmp_path), Tokenizer(tiny)):
        ids = opened.encode("at the cat, the\nhat")
        words = opened.words(ids)
        assert [word for word, _ in words][:4] == ["at", "the", "cat,", "the"]
        assert sum([ids[place] for _, place in words], []) == ids
        first, last = opened.span("I like the cat", "the")
        assert "the" in opened.decode(opened.encode("I like the cat")[first:last])


NOT_SUPPORTED = {
    "pre_tokenizer": {"type": "Whitespace"},
    "no pre_tokenizer": None,
    "own pattern": sequence(split(r"(a+)+b"), NO_PATTERN),
    "prefix space": BYTE_LEVEL | {"add_prefix_space": True},
    "digits together": sequence({"type": "Digits", "individual_digits": False}, BYTE_LEVEL),
    "no list": {"type": "Sequence", "pretokenizers": 3},
}


@pytest.mark.parametrize("case", NOT_SUPPORTED)
def test_unknown_pattern(tmp_path, case):
    """A pattern that is not known is refused: none is taken from a file."""
    with pytest.raises(ValueError, match="pre_tokenizer is not supported"):
        write_json(tmp_path, NOT_SUPPORTED[case])


def test_broken_files(tmp_path):
    """tokenizer.json of another kind or with mistakes, and a broken tokenizer.model: one line names the problem."""
    pytest.importorskip("tiktoken")
    good = {text: id for id, text in enumerate([*CONTROL, *LETTER.values()])}
    for model, says in (
        ({"type": "Unigram", "vocab": {}, "merges": []}, "byte-level BPE"),
        ({"type": "BPE", "vocab": {}, "merges": [], "byte_fallback": True}, "tokenizer.model"),
        ({"type": "BPE", "vocab": good, "merges": ["a b"]}, "no id"),
        ({"type": "BPE", "vocab": good, "merges": ["a"]}, "merge"),
        ({"type": "BPE", "vocab": good, "merges": [["a", "no"]]}, "merge"),
        ({"type": "BPE", "vocab": good | {"ab": 3}, "merges": []}, "same id"),
        ({"type": "BPE", "vocab": good | {"ab": -1}, "merges": []}, "ids"),
        ({"type": "BPE", "vocab": good | {"ab": True}, "merges": []}, "ids"),
        ({"type": "BPE", "vocab": good | {"<|im_end|>": 2}, "merges": ["< |", "<| im"]}, "merge"),
        ({"type": "BPE", "merges": []}, "vocab"),
    ):
        with pytest.raises(ValueError, match=says):
            write_json(tmp_path, model=model)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="model"):
        Tokenizer(tmp_path)
    for data in (b"", b"no model", b"IQ== 0\nIg== 2\n", b"IQ== 0\nIQ== 1\n", b"IQ== 0\n???? 1\n"):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(ValueError, match="sentencepiece|line 2"):
            Tokenizer(tmp_path)
    with pytest.raises(ValueError, match="missing"):
        Tokenizer(tmp_path / "no")


def test_merge_into_a_control_token(tmp_path):
    """Merges cannot make a control token out of a text."""
    pytest.importorskip("tiktoken")
    vocab = {text: id for id, text in enumerate([*LETTER.values(), "<>"])}
    model = {"type": "BPE", "vocab": vocab, "merges": ["< >"]}
    with pytest.raises(ValueError, match="no id"):
        write_json(tmp_path, model=model, added_tokens=[{"id": 256, "content": "<>", "special": True}])


def test_package_missing(tmp_path, monkeypatch):
    """Byte-level BPE without tiktoken: the error says what to install."""
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ValueError, match="pip install tiktoken"):
        write_json(tmp_path)


def test_round_trips_of_sentencepiece(tiny, tmp_path):
    """The model that ships and one just trained decode every text to itself."""
    check_round_trips(Tokenizer(tiny))
    train_tokenizer(["the cat sat on the mat"] * 9, tmp_path / "tokenizer.model", 280)
    check_round_trips(Tokenizer(tmp_path))
    with pytest.raises(ValueError, match="no tokenizer of 3000 pieces"):
        train_tokenizer(["the cat sat on the mat"] * 9, tmp_path / "tokenizer.model", 3000)


def random_texts(count: int) -> list[str]:
    """Random Unicode: letters, digits, spaces, signs, emoji, and any other characters but U+2581.

    U+2581 is left out because sentencepiece writes a space as it.
    """
    choose = random.Random(0)
    ranges = [(32, 127), (48, 58), (9, 14), (0xA0, 0x250), (0x370, 0x500), (0x4E00, 0x4F00), (0x1F600, 0x1F650)]
    ranges += [(0x600, 0x700), (0x2000, 0x2100), (0, 0xD800), (0xE000, 0x110000)]

    def text() -> str:
        letters = [chr(choose.randrange(*choose.choice(ranges))) for _ in range(choose.randrange(60))]
        return "".join(letters).replace("\u2581", " ")

    return [text() for _ in range(count)]


def check_round_trips(opened: Tokenizer) -> None:
    for text in random_texts(1000):
        ids = opened.encode(text)
        assert opened.decode(ids) == text and all(0 <= id < opened.vocab_size for id in ids), repr(text)
