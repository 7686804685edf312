"""The shape of a LLaMA: read from an official config.json, Meta's params.json or a GGUF file, and written."""

from dataclasses import replace
from pathlib import Path

from minccm.io import gguf
from minccm.io.tensors import open_tensors
from minccm.io.untrusted import Field, check_fields, check_value, error, printable, read_json
from minccm.model import LlamaConfig

SHAPES = {  # random weights, --model random:NAME; 1b is TinyLlama, 7b and 13b are LLaMA-2
    "1m": LlamaConfig(512, 128, 352, 4, 4, 2, 32),
    "1b": LlamaConfig(32000, 2048, 5632, 22, 32, 4, 64),
    "7b": LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, max_positions=4096),
    "13b": LlamaConfig(32000, 5120, 13824, 40, 40, 40, 128, max_positions=4096),
}
MAX_LAYERS = 1024
SIZE = Field(int, 1, 2**20)
OPTIONAL_SIZE = Field(int, 1, 2**20, optional=True)
EPSILON = Field(float, high=1, above=0)
THETA = Field(float, 1, 1e12)
FACTOR = Field(float, 1e-3, 1e6)
FLAG = Field(bool, optional=True, default=False)
TOKEN_ID = Field(int, 0, 2**20)
LLAMA3_ROPE = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)  # 3.1
SCALINGS = {  # the numbers of each kind of scaled RoPE
    "linear": {"factor": FACTOR},
    "llama3": dict.fromkeys(LLAMA3_ROPE, FACTOR) | {"original_max_position_embeddings": SIZE},
}
OFFICIAL = {
    "model_type": Field(str, high=100, optional=True, default="llama"),
    "hidden_act": Field(str, high=100, optional=True, default="silu"),
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": Field(int, 1, MAX_LAYERS),
    "num_attention_heads": SIZE,
    "num_key_value_heads": OPTIONAL_SIZE,
    "head_dim": OPTIONAL_SIZE,
    "rms_norm_eps": replace(EPSILON, optional=True, default=1e-6),
    "rope_theta": replace(THETA, optional=True, default=10000.0),
    "rope_scaling": Field(dict, optional=True),
    "rope_parameters": Field(dict, optional=True),
    "max_position_embeddings": replace(SIZE, optional=True, default=2048),
    "sliding_window": Field(int, 0, 2**40, optional=True),
    "tie_word_embeddings": FLAG,
}
META = {
    "dim": SIZE,
    "n_layers": Field(int, 1, MAX_LAYERS),
    "n_heads": SIZE,
    "n_kv_heads": OPTIONAL_SIZE,
    "head_dim": OPTIONAL_SIZE,
    "hidden_dim": OPTIONAL_SIZE,
    "multiple_of": OPTIONAL_SIZE,
    "ffn_dim_multiplier": Field(float, 1e-3, 1e3, optional=True, default=1),
    "vocab_size": Field(int, -1, 2**20),  # -1: Meta leaves it to the tokenizer, and the weights have it
    "norm_eps": replace(EPSILON, optional=True, default=1e-5),
    "rope_theta": replace(THETA, optional=True, default=10000.0),
    "use_scaled_rope": FLAG,
    "rope_scaling_factor": replace(FACTOR, optional=True),
    "max_seq_len": OPTIONAL_SIZE,
    "sliding_window": Field(int, 0, 2**40, optional=True),
}


def read_config(source: str | Path) -> LlamaConfig:
    """The config of a model: a folder, a GGUF file, "smollm2" or "random:NAME".

    Raises ValueError, in one line, for a missing, broken or unsupported one.
    """
    if str(source).startswith("random:"):
        name = str(source).removeprefix("random:")
        if name not in SHAPES:
            raise ValueError(f"unknown model {printable(source)}: choose random:{', random:'.join(SHAPES)}")
        return SHAPES[name]
    config = gguf.read_config(source) if gguf.is_gguf(source) else _read_folder(Path(source))
    for name, token in (("BOS", config.bos_id), ("EOS", config.eos_id)):
        if token >= config.vocab_size:
            raise error(source, f"the id of {name} is {token}, and the vocabulary has {config.vocab_size} pieces")
    return config


def _read_folder(folder: Path) -> LlamaConfig:
    for name, parse in (("config.json", _official), ("params.json", _meta)):
        path = folder / name
        if path.is_file():
            raw = read_json(path)
            try:
                return parse(raw, path)
            except ValueError as problem:
                raise problem if str(problem).startswith(str(path)) else error(path, str(problem)) from None
    raise error(folder, "no model is there: neither config.json nor params.json")


def to_json(config: LlamaConfig) -> dict:
    """The official config.json of a config."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
    }


def _official(raw: object, path: Path) -> LlamaConfig:
    values = check_fields(raw, path, OFFICIAL)
    if values["model_type"] not in ("llama", "mistral"):
        raise ValueError(f"model_type {printable(values['model_type'])} is not supported: llama and mistral are")
    if values["hidden_act"] != "silu":
        raise ValueError(f"hidden_act {printable(values['hidden_act'])} is not supported: LLaMA uses silu")
    for bias in ("attention_bias", "mlp_bias"):
        if values[bias]:
            raise ValueError(f"{bias} is not supported: LLaMA has none")
    _check_sliding_window(values["sliding_window"], values["max_position_embeddings"])
    n_heads = values["num_attention_heads"]
    rope = values["rope_parameters"] or {}  # the newer form; the older has rope_theta and rope_scaling at the top
    theta = check_fields(rope, path, {"rope_theta": replace(THETA, optional=True, default=values["rope_theta"])})
    return LlamaConfig(
        vocab_size=values["vocab_size"],
        dim=values["hidden_size"],
        ffn_dim=values["intermediate_size"],
        n_layers=values["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=values["num_key_value_heads"] or n_heads,
        head_dim=values["head_dim"] or values["hidden_size"] // n_heads,
        norm_eps=float(values["rms_norm_eps"]),
        rope_theta=float(theta["rope_theta"]),
        rope_scaling=_scaling(rope or values["rope_scaling"] or {}, path),
        max_positions=values["max_position_embeddings"],
        tied_embeddings=values["tie_word_embeddings"],
        bos_id=_token_id(raw, path, "bos_token_id", 1),
        eos_id=_token_id(raw, path, "eos_token_id", 2),
    )


def _token_id(raw: dict, path: Path, name: str, default: int) -> int:
    """A token id; of a list of them the first."""
    value = raw.get(name)
    value = value[0] if isinstance(value, list) and value else value
    return default if value is None else check_value(value, path, repr(name), TOKEN_ID)


def _check_sliding_window(window: int | None, max_positions: int | None) -> None:
    if window and (max_positions is None or window < max_positions):
        raise ValueError(f"sliding_window {window} is not supported: choose a model without one")


def _scaling(raw: dict, path: Path) -> dict | None:
    kind = raw.get("rope_type", raw.get("type")) or "default"
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise ValueError(f"rope_type {printable(kind)} is not supported: default, linear and llama3 are")
    numbers = check_fields(raw, path, SCALINGS[kind])
    if kind == "llama3" and numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        raise ValueError("low_freq_factor of RoPE must be below high_freq_factor")
    return {"rope_type": kind} | {name: float(number) for name, number in numbers.items()}


def _meta(raw: object, path: Path) -> LlamaConfig:
    """Meta's params.json gives the width of SwiGLU by a formula."""
    values = check_fields(raw, path, META)
    if "moe" in raw:
        raise ValueError("a mixture of experts is not supported: llama and mistral are")
    dim, n_heads, ffn_dim, vocab_size = (values[name] for name in ("dim", "n_heads", "hidden_dim", "vocab_size"))
    if ffn_dim is None:
        multiple = check_fields(raw, path, {"multiple_of": SIZE})["multiple_of"]
        ffn_dim = int(values["ffn_dim_multiplier"] * int(2 * 4 * dim / 3))
        ffn_dim = multiple * -(-ffn_dim // multiple)  # rounded up
    scaling = None
    if values["use_scaled_rope"]:
        scaling = {"rope_type": "llama3"} | LLAMA3_ROPE
        if values["rope_scaling_factor"] is not None:
            scaling["factor"] = float(values["rope_scaling_factor"])
        elif dim < 4096:
            raise ValueError("use_scaled_rope without rope_scaling_factor: add it, 32.0 for Llama-3.2, 8.0 for 3.1")
        scaling["original_max_position_embeddings"] = float(scaling["original_max_position_embeddings"])
    _check_sliding_window(values["sliding_window"], values["max_seq_len"])
    vocab_size = _vocab_size_of_weights(path.parent) if vocab_size == -1 else vocab_size
    llama3 = vocab_size == 128256
    return LlamaConfig(
        vocab_size=vocab_size,
        dim=dim,
        ffn_dim=ffn_dim,
        n_layers=values["n_layers"],
        n_heads=n_heads,
        n_kv_heads=values["n_kv_heads"] or n_heads,
        head_dim=values["head_dim"] or dim // n_heads,
        norm_eps=float(values["norm_eps"]),
        rope_theta=float(values["rope_theta"]),
        rope_scaling=scaling,
        max_positions=values["max_seq_len"] or (8192 if scaling else 4096),
        bos_id=128000 if llama3 else 1,
        eos_id=128001 if llama3 else 2,
    )


def meta_files(folder: Path) -> list[Path]:
    """Meta's consolidated files, in the order of their model-parallel parts."""
    return sorted(folder.glob("consolidated*.safetensors")) or sorted(folder.glob("consolidated*.pth"))


def _vocab_size_of_weights(folder: Path) -> int:
    """The rows of the output layer, over all of Meta's model-parallel files."""
    parts = [open_tensors(path).get("output.weight") for path in meta_files(folder)]
    rows = sum(part.shape[0] for part in parts if part and part.shape)
    if not rows:
        raise ValueError("vocab_size is -1, and no output.weight tells the size")
    return rows
