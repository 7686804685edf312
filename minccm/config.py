"""The shape of a LLaMA, read from an official config.json or from Meta's params.json."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    dim: int  # width of the residual stream
    ffn_dim: int  # width inside SwiGLU
    n_layers: int
    n_heads: int
    n_kv_heads: int  # fewer than n_heads: grouped-query attention
    head_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # {"rope_type": "linear" | "llama3", ...}; None for plain RoPE
    max_positions: int = 2048
    tied_embeddings: bool = False
    bos_id: int = 1
    eos_id: int = 2

    @property
    def kv_bytes_per_pair(self) -> int:
        """Numbers in one key/value pair over all layers and key/value heads (times the bytes of a number)."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim

    def to_json(self) -> dict:
        """The official config.json of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_id,
        }


def read_config(folder: str | Path) -> LlamaConfig:
    """The config of a model folder. Raises ValueError, in one line, for a missing, broken or unsupported one."""
    folder = Path(folder)
    for name, parse in (("config.json", _official), ("params.json", _meta)):
        path = folder / name
        if path.is_file():
            try:
                config = parse(json.loads(path.read_text("utf-8")))
            except KeyError as error:
                raise ValueError(f"{path}: the entry {error} is missing") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: {error}") from None
            return config
    raise ValueError(f"{folder} holds no model: neither config.json nor params.json is there")


def _official(raw: dict) -> LlamaConfig:
    kind = raw.get("model_type", "llama")
    if kind not in ("llama", "mistral"):
        raise ValueError(f"model_type {kind!r} is not supported: llama and mistral are")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {raw['hidden_act']!r} is not supported: LLaMA has silu")
    for bias in ("attention_bias", "mlp_bias"):
        if raw.get(bias):
            raise ValueError(f"{bias} is not supported: LLaMA has none")
    if raw.get("sliding_window") and raw["sliding_window"] < raw.get("max_position_embeddings", 2048):
        raise ValueError(f"sliding_window {raw['sliding_window']} is not supported: take a model without one")
    n_heads = raw["num_attention_heads"]
    rope = raw.get("rope_parameters") or {}  # the newer form; the older has rope_theta and rope_scaling at the top
    scaling = rope if rope else (raw.get("rope_scaling") or {})
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    bos, eos = raw.get("bos_token_id", 1), raw.get("eos_token_id", 2)
    return LlamaConfig(
        vocab_size=raw["vocab_size"],
        dim=raw["hidden_size"],
        ffn_dim=raw["intermediate_size"],
        n_layers=raw["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=raw.get("num_key_value_heads") or n_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // n_heads,
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=_scaling(scaling),
        max_positions=raw.get("max_position_embeddings", 2048),
        tied_embeddings=raw.get("tie_word_embeddings", False),
        bos_id=bos[0] if isinstance(bos, list) else bos,
        eos_id=eos[0] if isinstance(eos, list) else eos,
    )


def _scaling(raw: dict) -> dict | None:
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise ValueError(f"rope_type {kind!r} is not supported: default, linear and llama3 are")
    return {"rope_type": kind} | {key: value for key, value in raw.items() if key not in ("type", "rope_theta")}


def _meta(raw: dict) -> LlamaConfig:
    """Meta's params.json leaves the SwiGLU width to a formula."""
    dim, n_heads = raw["dim"], raw["n_heads"]
    ffn_dim = raw.get("hidden_dim")
    if ffn_dim is None:
        multiple = raw["multiple_of"]
        ffn_dim = int(raw.get("ffn_dim_multiplier", 1) * int(2 * 4 * dim / 3))
        ffn_dim = multiple * -(-ffn_dim // multiple)  # rounded up
    scaling = None
    if raw.get("use_scaled_rope"):  # the constants of Meta's Llama-3.1 code
        scaling = {
            "rope_type": "llama3",
            "factor": raw.get("rope_scaling_factor", 8.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return LlamaConfig(
        vocab_size=raw["vocab_size"],
        dim=dim,
        ffn_dim=ffn_dim,
        n_layers=raw["n_layers"],
        n_heads=n_heads,
        n_kv_heads=raw.get("n_kv_heads") or n_heads,
        head_dim=raw.get("head_dim") or dim // n_heads,
        norm_eps=raw.get("norm_eps", 1e-5),
        rope_theta=raw.get("rope_theta", 10000.0),
        rope_scaling=scaling,
        max_positions=raw.get("max_seq_len", 8192 if scaling else 4096),
    )
