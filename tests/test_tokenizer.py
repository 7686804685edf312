"""Text to ids as LLaMA's own tokenizer does it, Llama-3's tokenizer.json, and tokenizers that do not fit the model."""

import json
import os
import shutil
import sys

import pytest
import torch

from minccm import cli
from minccm.checkpoint import load_model, save_model
from minccm.config import read_config
from minccm.model import Transformer
from minccm.tokenizer import Tokenizer
from tests.conftest import oracle

RECORDED = oracle("dialog") / "dailydialog.json"
LLAMA = os.environ.get("MINCCM_TOKENIZER") or RECORDED.parent.parent.parent / "data" / "llama" / "tokenizer.model"


@pytest.mark.skipif(
    not (RECORDED.is_file() and os.path.isfile(LLAMA)),
    reason=f"needs {RECORDED} (MINCCM_ORACLE) and LLaMA's tokenizer at {LLAMA} (MINCCM_TOKENIZER)",
)
def test_recorded_ids():
    """Every recorded text has the recorded ids, and they the text; every turn of the recorded dialogues likewise."""
    recorded, tokenizer = json.loads(RECORDED.read_text()), Tokenizer(LLAMA)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 32000)
    for case in recorded["tokenizer"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    for dialogue in recorded["preprocess"]:
        assert [tokenizer.encode(text) for text in dialogue["clean"]] == dialogue["tokens"]
    assert tokenizer.newline == recorded["sep_token"][:1]


def test_vocabulary_too_small(tiny, tmp_path):
    """A model with fewer embeddings than its tokenizer has pieces: an error that names both numbers."""
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
        cli.open_base(tmp_path, None, torch.device("cpu"), torch.float32)


def test_of_tiktoken(tmp_path):
    """Meta's own tokenizer.model of Llama-3, a list for tiktoken: the error says what to take instead."""
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(ValueError, match="take tokenizer.json"):
        Tokenizer(tmp_path)


def test_package_missing(tmp_path, monkeypatch):
    """tokenizer.json without the package that reads it: the error says what to install."""
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="pip install tokenizers"):
        Tokenizer(tmp_path)


def test_tokenizer_json(tiny, tmp_path):
    """A byte-level BPE in tokenizer.json, as Llama-3 has it: there and back; special names in a text stay text."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    pieces.train_from_iterator(["the cat sat on the mat"] * 9, trainer)
    pieces.save(str(tmp_path / "tokenizer.json"))
    raw = json.loads((tiny / "config.json").read_text()) | {"bos_token_id": 0, "eos_token_id": [1, 7]}
    (tmp_path / "config.json").write_text(json.dumps(raw))

    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1) and tokenizer.vocab_size == pieces.get_vocab_size()
    text = "the cat,\n\n caf\u00e9 \u4f60 \U0001f980 <|end_of_text|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text and not {0, 1} & {*tokenizer.encode(text)}
    assert tokenizer.decode(tokenizer.newline) == "\n"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer.json"):
        Tokenizer(tmp_path)
