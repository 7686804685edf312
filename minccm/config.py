"""The shape of a LLaMA, read from an official config.json or from Meta's params.json."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

UNTOLD = -1  # as vocab_size: Meta's params.json may leave it to the tokenizer, and the weights tell


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model. Raises ValueError, in one line, for sizes that no model has or that do not fit."""

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

    def __post_init__(self):
        for name in ("vocab_size", "dim", "ffn_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "max_positions"):
            size = getattr(self, name)
            if type(size) is not int or not (1 <= size <= 2**20 or (name, size) == ("vocab_size", UNTOLD)):
                raise ValueError(f"{name} is to be a whole number from 1 to {2**20}, not {size!r}")
        if self.n_heads % self.n_kv_heads or self.head_dim % 2:
            raise ValueError(f"{self.n_heads} heads of {self.head_dim} do not fit {self.n_kv_heads} key/value heads")
        scaling = [number for key, number in (self.rope_scaling or {}).items() if key != "rope_type"]
        for number in (self.norm_eps, self.rope_theta, *scaling):
            if not 0 < number < math.inf:
                raise ValueError(f"norm_eps and RoPE's numbers are to be above 0, not {number!r}")

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


LLAMA3_ROPE = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)  # 3.1
SHAPES = {  # for random weights, --model random:NAME; 1b is TinyLlama, 7b and 13b are LLaMA-2
    "1m": LlamaConfig(512, 128, 352, 4, 4, 2, 32),
    "1b": LlamaConfig(32000, 2048, 5632, 22, 32, 4, 64),
    "7b": LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, max_positions=4096),
    "13b": LlamaConfig(32000, 5120, 13824, 40, 40, 40, 128, max_positions=4096),
}


def read_config(folder: str | Path) -> LlamaConfig:
    """The config of a model folder. Raises ValueError, in one line, for a missing, broken or unsupported one."""
    folder = Path(folder)
    for name, parse in (("config.json", _official), ("params.json", _meta)):
        path = folder / name
        if path.is_file():
            try:
                return parse(json.loads(path.read_text("utf-8")))
            except KeyError as error:
                raise ValueError(f"{path}: the entry {error} is missing") from None
            except (TypeError, AttributeError, ArithmeticError, IndexError, RecursionError) as error:
                raise ValueError(f"{path}: an entry is of a wrong kind ({error})") from None
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
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
    _no_sliding_window(raw, raw.get("max_position_embeddings", 2048))
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


def _no_sliding_window(raw: dict, max_positions: int) -> None:
    if raw.get("sliding_window") and raw["sliding_window"] < max_positions:
        raise ValueError(f"sliding_window {raw['sliding_window']} is not supported: take a model without one")


def _scaling(raw: dict) -> dict | None:
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    wanted = {"linear": ["factor"], "llama3": list(LLAMA3_ROPE)}.get(kind)
    if wanted is None:
        raise ValueError(f"rope_type {kind!r} is not supported: default, linear and llama3 are")
    return {"rope_type": kind} | {key: raw[key] for key in wanted}


def _meta(raw: dict) -> LlamaConfig:
    """Meta's params.json leaves the SwiGLU width to a formula."""
    if "moe" in raw:
        raise ValueError("a mixture of experts is not supported: llama and mistral are")
    dim, n_heads = raw["dim"], raw["n_heads"]
    ffn_dim = raw.get("hidden_dim")
    if ffn_dim is None:
        multiple = raw["multiple_of"]
        ffn_dim = int(raw.get("ffn_dim_multiplier", 1) * int(2 * 4 * dim / 3))
        ffn_dim = multiple * -(-ffn_dim // multiple)  # rounded up
    scaling = None
    if raw.get("use_scaled_rope"):
        scaling = {"rope_type": "llama3"} | LLAMA3_ROPE
        if "rope_scaling_factor" in raw:
            scaling["factor"] = raw["rope_scaling_factor"]
        elif dim < 4096:
            raise ValueError("use_scaled_rope without rope_scaling_factor: add it, 32.0 for Llama-3.2, 8.0 for 3.1")
    _no_sliding_window(raw, raw.get("max_seq_len", math.inf))
    llama3 = raw["vocab_size"] == 128256
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
        bos_id=128000 if llama3 else 1,
        eos_id=128001 if llama3 else 2,
    )
