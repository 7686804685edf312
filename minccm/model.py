"""LLaMA: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

One argument knows of compressed memory: `kv`. Its method attend(layer, q, k, v) computes the attention of these queries
over the memory and the tokens' own keys and values. There is a kv for parallel training (parallel.ParallelKV) and one
for online inference (session.StepKV). Without it, this is the ordinary causal transformer.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minccm.lora import ConditionalLoRA


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model. Raises ValueError for sizes out of range or sizes that do not fit together."""

    vocab_size: int
    dim: int  # width of the residual stream
    ffn_dim: int  # width inside SwiGLU
    n_layers: int
    n_heads: int
    n_kv_heads: int  # fewer than n_heads: grouped-query attention
    head_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # {"rope_type": "linear" | "llama3", ...}; None: plain RoPE
    max_positions: int = 2048
    tied_embeddings: bool = False
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self):
        for name in ("vocab_size", "dim", "ffn_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "max_positions"):
            size = getattr(self, name)
            if type(size) is not int or not 1 <= size <= 2**20:
                raise ValueError(f"{name} must be an integer from 1 to {2**20}, not {str(size):.40}")
        if self.n_heads % self.n_kv_heads or self.head_dim % 2:
            raise ValueError(f"{self.n_heads} heads of {self.head_dim} do not fit {self.n_kv_heads} key/value heads")
        scaling = [number for key, number in (self.rope_scaling or {}).items() if key != "rope_type"]
        for number in (self.norm_eps, self.rope_theta, *scaling):
            if type(number) not in (int, float) or not 0 < number < 2**53:
                raise ValueError(f"norm_eps and the numbers of RoPE must be above 0 and finite, not {str(number):.40}")
        if any(type(id) is not int or not 0 <= id < 2**20 for id in (self.bos_id, self.eos_id)):
            raise ValueError("the ids of BOS and EOS must be integers from 0")

    @property
    def kv_numbers_per_pair(self) -> int:
        """How many numbers one KV pair holds, over all layers and key/value heads."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """Radians per position of each channel pair: fp64 (head_dim / 2,), with linear or llama3 scaling."""
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device="cpu")  # also inside a meta device
    frequencies = config.rope_theta ** -(channels / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    # llama3: high frequencies stay, low ones are divided by `factor`, those in between are interpolated
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / scaling["factor"])


def rotary_table(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, each (B, 1, N, head_dim / 2), of positions (B, N). Angles are fp64."""
    angles = positions[:, None, :, None] * frequencies.to(positions.device)
    dtype = torch.promote_types(dtype, torch.float32)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies rotary positions to x (B, heads, N, head_dim); channels i and i + head_dim / 2 form a pair."""
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q (B, heads, N, head_dim) over k and v (B, kv_heads, K, head_dim) -> (B, heads, N, head_dim).

    mask: bool (B or 1, 1, N, K), which query attends to which key; None: causal.
    """
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=gqa)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim, kv_dim = config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = ConditionalLoRA(config.dim, config.n_heads * config.head_dim)
        self.k_proj = ConditionalLoRA(config.dim, kv_dim)
        self.v_proj = ConditionalLoRA(config.dim, kv_dim)
        self.o_proj = ConditionalLoRA(config.n_heads * config.head_dim, config.dim)

    def forward(self, x: Tensor, layer: int, cos: Tensor, sin: Tensor, kv, lora_mask: Tensor | None) -> Tensor:
        def split_heads(y: Tensor) -> Tensor:  # (B, N, heads * head_dim) -> (B, heads, N, head_dim)
            return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        q = rotate(split_heads(self.q_proj(x, lora_mask)), cos, sin)
        k = rotate(split_heads(self.k_proj(x, lora_mask)), cos, sin)  # keys are stored and merged after rotation
        v = split_heads(self.v_proj(x, lora_mask))
        y = attend(q, k, v) if kv is None else kv.attend(layer, q, k, v)
        return self.o_proj(y.transpose(1, 2).flatten(2), lora_mask)


class FeedForward(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, layer: int, cos: Tensor, sin: Tensor, kv, lora_mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), layer, cos, sin, kv, lora_mask)
        return x + self.mlp(self.post_attention_layernorm(x))


def is_adapter(name: str) -> bool:
    """Does a parameter of that name belong to the adapter, and not to the base model?"""
    return "lora_" in name or name in ("comp_embeddings", "learned")


class Transformer(nn.Module):
    """LLaMA with the official parameter names, less the leading "model."."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.tie_weights()
        self.frequencies = rotary_frequencies(config)
        self.comp_embeddings: nn.Parameter | None = None  # fp32 (n, dim), see add_adapter
        self.learned: nn.Parameter | None = None  # fp32, the numbers that a method learns, if it learns any

    def tie_weights(self) -> None:
        """Makes lm_head use the embedding table, where the config says so."""
        if self.config.tied_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def projections(self) -> list[ConditionalLoRA]:
        """The layers that LoRA adapts: q, k, v and o of every block."""
        return [module for module in self.modules() if isinstance(module, ConditionalLoRA)]

    def add_adapter(
        self, n: int, r: int = 8, alpha: float = 16, dropout: float = 0.0, learned: tuple[float, ...] = ()
    ) -> None:
        """Freezes the base model and adds what trains: A and B of each projection, and n COMP embeddings.

        COMP embeddings start as random vectors with the mean and deviation of the vocabulary's. learned: initial values
        of the numbers that a method learns.
        """
        self.requires_grad_(False)
        for projection in self.projections():
            projection.add_lora(r, alpha, dropout)
        table = self.embed_tokens.weight.detach().float()
        start = table.mean(0) + table.std(0) * torch.randn(n, table.shape[1]).to(table)
        self.comp_embeddings = nn.Parameter(start) if n else None
        self.set_learned(learned)

    def set_learned(self, learned: tuple[float, ...]) -> None:
        """Gives the adapter the numbers that a method learns, at their initial values; none if it learns none."""
        numbers = torch.tensor(learned, device=self.embed_tokens.weight.device)  # fp32
        self.learned = nn.Parameter(numbers) if learned else None

    @torch.no_grad()
    def widen_adapter(self, n: int, r: int) -> None:
        """Raises the rank to r and the number of COMP tokens to n; new COMP embeddings start near the present ones."""
        for projection in self.projections():
            projection.widen_lora(r)
        table = self.comp_embeddings
        if table is not None and n > len(table):
            more = table.repeat(-(-n // len(table)) - 1, 1)[: n - len(table)]
            more = more + 0.2 * table.std() * torch.randn(more.shape).to(table)
            self.comp_embeddings = nn.Parameter(torch.cat([table, more]))

    def adapter_state(self) -> dict[str, nn.Parameter]:
        """What trains, by name: layers.L.self_attn.X_proj.lora_A and lora_B, comp_embeddings, learned."""
        return {name: parameter for name, parameter in self.named_parameters() if is_adapter(name)}

    def forward(
        self, tokens: Tensor, positions: Tensor, kv=None, lora_mask: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Logits (B, N, vocab_size), in the model's dtype, of tokens and positions, both int64 (B, N).

        kv: see the top of this file. lora_mask: bool (B, N), the tokens that LoRA acts on. at: bool (B, N), compute
        logits (R, vocab_size) of these R tokens only.
        """
        x = self.embed(tokens)  # (B, N, dim)
        self.frequencies = self.frequencies.to(x.device)
        cos, sin = rotary_table(positions, self.frequencies, x.dtype)
        if lora_mask is not None and not lora_mask.any():
            lora_mask = None
        for layer, block in enumerate(self.layers):
            x = block(x, layer, cos, sin, kv, lora_mask)
        return self.lm_head(self.norm(x if at is None else x[at]))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, N, dim). COMP token j has the id vocab_size + j and a table of its own."""
        comp = tokens >= self.config.vocab_size
        x = self.embed_tokens(tokens.masked_fill(comp, 0))
        if self.comp_embeddings is None:
            return x
        own = F.embedding(tokens[comp] - self.config.vocab_size, self.comp_embeddings)
        return x.masked_scatter(comp[..., None], own.to(x.dtype))
