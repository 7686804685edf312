"""The transformer: LLaMA's RMSNorm, rotary positions, grouped-query attention and SwiGLU.

Two lines know of compressed memory. A COMP token takes its embedding from a table of its own; and attention asks a
`view` which keys and values there are and who sees whom. The view is the parallel one in training (mask.Parallel) and
the recursive one online (online.Recursive); with the plain causal one below, this is an ordinary LLaMA.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minccm.config import LlamaConfig
from minccm.lora import ALL, ConditionalLinear, join_lora, project
from minccm.rows import Rows


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Queries (B, heads, N, head_dim) over keys and values (B, H, C, head_dim) -> (B, heads, N, head_dim).

    mask: bool, who sees whom, or what is added to a score; of a shape that broadcasts to (B, heads, N, C). None: each
    query sees the keys that are not after it.
    """
    gqa = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None, enable_gqa=gqa)


class Causal:
    """The view of an ordinary language model: the tokens' own keys and values, each token sees those not after it."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of a layer, from the tokens' keys and values (B, kv heads, N, head_dim), those to attend to."""
        return keys, values

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (B, heads, N, head_dim) -> (B, heads, N, head_dim)."""
        return attention(queries, keys, values)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), times a learned weight (dim,)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Radians a pair of channels turns by per position: float64 (head_dim / 2,), with linear or llama3 scaling."""
    frequencies = config.rope_theta ** -(
        torch.arange(0, config.head_dim, 2, dtype=torch.float64, device="cpu") / config.head_dim
    )
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    # llama3: pairs that turn fully within the original context stay, those that do not even once are slowed by
    # `factor`, and those between are blended
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / scaling["factor"])


def rope_table(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, N, head_dim / 2). Angles are float64: at position 100,000 a float32 one is off by 0.004."""
    angles = positions[:, None, :, None].double() * frequencies
    at_least_fp32 = torch.promote_types(dtype, torch.float32)
    return angles.cos().to(at_least_fp32), angles.sin().to(at_least_fp32)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: channel i and channel i + head_dim / 2 of x (B, H, N, head_dim) turn as one pair."""
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention over what the view holds; q, k, v and o can carry LoRA."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = ConditionalLinear(config.dim, config.n_heads * config.head_dim)
        self.k_proj = ConditionalLinear(config.dim, config.n_kv_heads * config.head_dim)
        self.v_proj = ConditionalLinear(config.dim, config.n_kv_heads * config.head_dim)
        self.o_proj = ConditionalLinear(config.n_heads * config.head_dim, config.dim)
        self.qkv: Tensor | None = None  # see Transformer.join_weights

    def forward(self, x: Tensor, layer: int, cos: Tensor, sin: Tensor, view, gate, rows=None, gate_on=None) -> Tensor:
        qkv = project(x, gate, [self.q_proj, self.k_proj, self.v_proj], self.qkv)
        y = self.attend(qkv, layer, cos, sin, view)
        if rows is not None:
            y, gate = Rows.apply(y.flatten(0, 1), rows)[None], gate_on
        return self.o_proj(y, gate)

    def attend(self, qkv: tuple[Tensor, ...], layer: int, cos: Tensor, sin: Tensor, view) -> Tensor:
        """Queries, keys and values, each (B, N, H * head_dim), to what each query gathers (B, N, heads * head_dim)."""

        def heads(y: Tensor) -> Tensor:  # (B, N, H * head_dim) -> (B, H, N, head_dim)
            return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        queries, keys, values = map(heads, qkv)
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)  # before keys are stored or merged
        keys, values = view.extend(layer, keys, values)  # N columns become [memory; tokens; slots]
        y = view.attend(queries, keys, values)  # (B, H, N, head_dim)
        return y.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.gate_up: Tensor | None = None  # see Transformer.join_weights

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_up is None or torch.is_grad_enabled():  # joined gradients take longer than they save
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        gate, up = F.linear(x, self.gate_up).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """Attention and SwiGLU, each after a norm and added to the residual stream."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, layer: int, cos: Tensor, sin: Tensor, view, gate, rows=None, gate_on=None) -> Tensor:
        """x (B, N, dim) -> the same; or, of the flattened tokens the `rows` (R,) alone, (1, R, dim).

        gate_on: the gate of these.
        """
        y = self.self_attn(self.input_layernorm(x), layer, cos, sin, view, gate, rows, gate_on)
        x = y + (x if rows is None else Rows.apply(x.flatten(0, 1), rows)[None])
        return x + self.mlp(self.post_attention_layernorm(x))


class Last(NamedTuple):
    """What the last block is given, where it is asked for L tokens of each row alone."""

    rows: Tensor  # int64 (B * L,), of the flattened tokens
    positions: Tensor  # int64 (B, L)
    view: Any
    gate: Tensor | bool | None


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to the adapter and not to the base."""
    return "lora_" in name or name in ("comp_embeddings", "learned")


class Transformer(nn.Module):
    """LLaMA. Its parameters bear the official names less the leading "model."."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.tie_weights()
        self.comp_embeddings: nn.Parameter | None = None  # (n, dim) fp32, once there is an adapter
        self.learned: nn.Parameter | None = None  # fp32, the numbers that a method learns, where there are any
        self.base: str | None = None  # its fingerprint, where it cannot be taken from the weights
        self.step1: str | None = None  # the folder of the step-1 adapter that is merged into the base
        self.checkpoint = False  # in training, keep nothing of a block but its input, and compute the rest once more
        self.frequencies = rope_frequencies(config)

    def tie_weights(self) -> None:
        """Where the config says so, lm_head is the table of embeddings itself."""
        if self.config.tied_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @torch.no_grad()
    def join_weights(self) -> None:
        """Puts q, k, v, and gate, up, of each frozen layer one behind the other, to be read by one product each.

        The parameters keep their names and become parts of these. To be called when weights are where they are to stay;
        called again, it leaves them there.
        """
        for block in self.layers:
            attention, mlp = block.self_attn, block.mlp
            for owner, name, parts in (
                (attention, "qkv", [attention.q_proj, attention.k_proj, attention.v_proj]),
                (mlp, "gate_up", [mlp.gate_proj, mlp.up_proj]),
            ):
                joint = getattr(owner, name)
                if joint is not None and joint.data_ptr() == parts[0].weight.data_ptr():
                    continue
                joint = torch.cat([part.weight for part in parts])
                setattr(owner, name, joint)
                for part, weight in zip(parts, joint.split([part.weight.shape[0] for part in parts])):
                    part.weight.data = weight

    def join_lora(self) -> None:
        """The same for A and B, of q, k and v and of o: for inference, where a few COMP tokens are read at a time."""
        for block in self.layers:
            join_lora([block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj])
            join_lora([block.self_attn.o_proj])

    def add_adapter(
        self, n: int, r: int = 8, alpha: float = 16, dropout: float = 0.05, learned: tuple[float, ...] = ()
    ) -> None:
        """Freezes the base and adds what trains: A and B of every q, k, v, o projection, and n COMP embeddings.

        learned: of a method that learns some numbers, where these start.
        """
        self.requires_grad_(False)
        for projection in self.projections():
            projection.add_lora(r, alpha, dropout)
        self.add_learned(learned)
        table = self.embed_tokens.weight.detach().float()
        if n:  # as the vocabulary's embeddings are spread
            self.comp_embeddings = nn.Parameter(table.mean(0) + table.std(0) * torch.randn(n, table.shape[1]).to(table))

    @torch.no_grad()
    def widen_adapter(self, n: int, r: int) -> None:
        """A larger rank r, and more COMP tokens up to n, which begin near those that there are."""
        for projection in self.projections():
            projection.widen_lora(r)
        if self.comp_embeddings is not None and n > len(self.comp_embeddings):
            table = self.comp_embeddings
            more = table.repeat(-(-n // len(table)) - 1, 1)[: n - len(table)]
            more = more + 0.2 * table.std() * torch.randn_like(more)
            self.comp_embeddings = nn.Parameter(torch.cat([table, more]))

    def add_learned(self, learned: tuple[float, ...]) -> None:
        """Gives the adapter the numbers that a method learns, at their start; none where it learns none."""
        numbers = torch.tensor(learned, device=self.embed_tokens.weight.device)  # fp32
        self.learned = nn.Parameter(numbers) if learned else None

    def projections(self) -> list[ConditionalLinear]:
        """All that LoRA can adapt: q, k, v and o of every layer."""
        return [module for module in self.modules() if isinstance(module, ConditionalLinear)]

    def adapter_state(self) -> dict[str, Tensor]:
        """The trainable tensors by name: layers.L.self_attn.X_proj.lora_A and lora_B, comp_embeddings, and learned."""
        return {name: p for name, p in self.named_parameters() if is_adapter(name)}

    def forward(
        self, tokens: Tensor, positions: Tensor, view=None, comp=None, gate=None, rows=None, last=None
    ) -> Tensor:
        """Logits, in the dtype of the model.

        tokens: int64 (B, N); ids from vocab_size on are COMP tokens. positions: int64 (B, N).
        view: which keys and values there are and who sees whom, or a list of one for each layer; None is plain causal
        attention.
        comp: int64 (C,), rows of the flattened tokens that are COMP tokens; None if there are none.
        gate: what LoRA acts on, see ConditionalLinear: `comp`, lora.ALL, or None for the base model alone.
        rows: int64 (R,), rows of the flattened tokens to predict from, none a COMP token and all different but for
        padding, as in rows.Rows, for logits (R, vocab_size); None for all of them, (B, N, vocab_size). Beyond its keys
        and values the last block needs no others. last: Last, if even for these it needs not all tokens; `rows` are
        then of the flattened tokens that it has.
        """
        views = view if isinstance(view, list) else [view or Causal()] * len(self.layers)
        x = self.embed(tokens, comp)  # (B, N, dim)
        self.frequencies = self.frequencies.to(x.device)  # there for good
        cos, sin = rope_table(positions, self.frequencies, x.dtype)
        none = gate if gate is None or gate is ALL else gate[:0]  # no COMP token predicts
        for layer, (block, view) in enumerate(zip(self.layers, views)):
            kept = None, None
            if last and layer + 2 == len(self.layers):
                kept = last.rows, last.gate
            elif layer + 1 == len(self.layers):
                kept = rows, none
                if last:
                    x, view, gate = x.view(*last.positions.shape, -1), last.view, last.gate  # (B, L, dim)
                    cos, sin = rope_table(last.positions, self.frequencies, x.dtype)
            inputs = x, layer, cos, sin, view, gate, *kept
            if self.checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        logits = self.logits(x)
        return logits if rows is None else logits[0]

    def logits(self, x: Tensor) -> Tensor:
        """What the last block gives, x (..., dim) -> (..., vocab_size)."""
        return self.lm_head(self.norm(x))

    def embed(self, tokens: Tensor, comp: Tensor | None) -> Tensor:
        """tokens (B, N) -> (B, N, dim); the id vocab_size + j is COMP token j of its step."""
        x = self.embed_tokens(tokens.clamp(max=self.config.vocab_size - 1))
        if comp is None or self.comp_embeddings is None:
            return x
        # F.embedding, not indexing, of which the gradient is summed in an order that changes from run to run
        numbers = (tokens.flatten()[comp] - self.config.vocab_size).clamp(min=0)  # of padding none is asked
        embeddings = F.embedding(numbers, self.comp_embeddings)  # (C, dim)
        return x.flatten(0, 1).index_copy(0, comp, embeddings.to(x.dtype)).view_as(x)
