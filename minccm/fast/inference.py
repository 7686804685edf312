"""The forward pass of inference with index tensors of fixed shapes, so that a CUDA graph can hold it.

The plain model finds COMP tokens by a mask. How many there are is then known on the GPU only, and the CPU has to wait.
Here the caller says where they are. Joined weights (fused.py) are used where there are some.
"""

import torch.nn.functional as F
from torch import Tensor

from minccm.fast.fused import ALL_TOKENS, feed_forward, joined, project
from minccm.methods import Method
from minccm.model import Block, Transformer, rotate


def embed(model: Transformer, tokens: Tensor, comp_index: Tensor | None) -> Tensor:
    """model.embed: tokens (B, N) -> (B, N, dim). comp_index: int64 (C,), COMP tokens among the flattened tokens."""
    vocab_size = model.config.vocab_size
    x = model.embed_tokens(tokens.clamp(max=vocab_size - 1))
    if comp_index is None or model.comp_embeddings is None:
        return x
    number = (tokens.flatten()[comp_index] - vocab_size).clamp(min=0)  # padding gets some embedding
    own = F.embedding(number, model.comp_embeddings)
    return x.flatten(0, 1).index_copy(0, comp_index, own.to(x.dtype)).view_as(x)


def lora_tokens(method: Method, comp_index: Tensor | None) -> Tensor | bool | None:
    """The tokens that LoRA acts on, for `block_forward`."""
    return comp_index if method.conditional else ALL_TOKENS


def block_forward(
    block: Block, x: Tensor, layer: int, cos: Tensor, sin: Tensor, kv, lora_index: Tensor | bool | None
) -> Tensor:
    """Block.forward: x (B, N, dim) -> (B, N, dim). lora_index: see fused.project."""
    y = attention_forward(block, x, layer, cos, sin, kv, lora_index)
    attention = block.self_attn
    (update,) = project(y, lora_index, [attention.o_proj], attention.o_proj.weight, joined(attention, "o_lora"))
    x = x + update
    return x + feed_forward(block.mlp, block.post_attention_layernorm(x))


def attention_forward(
    block: Block, x: Tensor, layer: int, cos: Tensor, sin: Tensor, kv, lora_index: Tensor | bool | None
) -> Tensor:
    """The attention's output (B, N, heads * head_dim) before o_proj. kv gets the keys and values of x (B, N, dim)."""
    attention = block.self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    weight, lora = joined(attention, "qkv"), joined(attention, "qkv_lora")
    qkv = project(block.input_layernorm(x), lora_index, parts, weight, lora)
    return attend_heads(qkv, attention.head_dim, layer, cos, sin, kv)


def attend_heads(qkv: tuple[Tensor, ...], head_dim: int, layer: int, cos: Tensor, sin: Tensor, kv) -> Tensor:
    """q, k and v, each (B, N, heads * head_dim) and not rotated -> the attention's output (B, N, heads * head_dim)."""
    q, k, v = (y.unflatten(-1, (-1, head_dim)).transpose(1, 2) for y in qkv)
    return kv.attend(layer, rotate(q, cos, sin), rotate(k, cos, sin), v).transpose(1, 2).flatten(2)
