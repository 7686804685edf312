"""The forward pass of packed rows: a loop over model.layers that leaves out work whose result is not needed.

- The prefix runs first, under no_grad. Later tokens attend to its keys and values.
- The last layer gets only the tokens that it needs, and computes outputs only where there is a loss. So the layer
  before it also computes only these outputs.
- LoRA, COMP embeddings, merging and logits use index tensors of fixed shapes. So nothing waits for the GPU, the blocks
  can be compiled, and a CUDA graph can replay the pass.
"""

import functools
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from minccm.fast import cpu_attention
from minccm.fast.block_mask import Blocks, attended_blocks, batch_keys, block_mask
from minccm.fast.fused import ALL_TOKENS, feed_forward, joined, project
from minccm.fast.inference import embed
from minccm.fast.packing import PackedBatch, packed_attention_mask
from minccm.fast.rows import SelectRows
from minccm.fast.sparse_merge import SparseMerge, cached_weights, weights_on
from minccm.methods import METHODS, Method
from minccm.model import Block, Transformer, rotary_frequencies, rotary_table, rotate

Pair = tuple[Tensor, Tensor]  # keys and values


class PackedKV:
    """Keys and values of a packed batch: [tokens; prefix; slots], under a dense mask or FlexAttention's block mask."""

    def __init__(
        self,
        method: Method,
        batch: PackedBatch,
        weights: Tensor | None,
        dtype: torch.dtype,
        flex: bool = False,
        blocks: Blocks | None = None,
    ):
        """weights: of the steps in each slot (T, T, 1 or n); None: no merging. blocks: attended_blocks, if known."""
        keys = batch_keys(method, batch)
        self.merge = self.block_mask = self.mask = None
        if weights is not None and len(batch.slots):
            self.merge = SparseMerge(batch.merge_index, weights, batch.tokens.shape[1] - 1, dtype)
        if flex and not _is_causal(method, batch):
            self.block_mask = block_mask(batch.info, keys, blocks or attended_blocks(method, batch.info, keys))
        elif not _is_causal(method, batch):
            mask = packed_attention_mask(method, batch.info, keys)[:, None]  # bool (B, 1, N, K)
            self.mask = cpu_attention.additive(mask, dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prefix: Pair | None) -> Tensor:
        """q (B, heads, N, head_dim), k and v (B, kv_heads, N, head_dim), the prefix's (B, kv_heads, N', head_dim).

        Returns (B, heads, N, head_dim).
        """
        extended = []
        for i, x in enumerate((k, v)):
            parts = [x] if prefix is None else [x, prefix[i]]
            parts += [] if self.merge is None else [self.merge(x)]
            extended.append(torch.cat(parts, 2) if len(parts) > 1 else x)
        k, v = extended
        if self.block_mask is None:
            return cpu_attention.attend(q, k, v, self.mask)
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        return flex(q, k, v, block_mask=self.block_mask, enable_gqa=q.shape[1] != k.shape[1])


@functools.cache
def _compiled_flex_attention():
    return torch.compile(flex_attention, dynamic=False)


def _is_causal(method: Method, batch: PackedBatch) -> bool:
    """Is the mask just causal? Padding comes after the text, so it hides nothing."""
    full = method.attends is METHODS["full"].attends and method.comp_after is None
    return full and not batch.has_neighbors and batch.prefix is None


def query_key_value(block: Block, x: Tensor, cos: Tensor, sin: Tensor, lora_index) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, heads, N, head_dim), k and v (B, kv_heads, N, head_dim) of x (B, N, dim), rotated."""
    attention, x = block.self_attn, block.input_layernorm(x)
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    projected = project(x, lora_index, parts, joined(attention, "qkv"))
    q, k, v = (y.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for y in projected)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def packed_block(
    block: Block, x: Tensor, cos: Tensor, sin: Tensor, kv: PackedKV, prefix, lora_index, keep=None, keep_lora=None
) -> Tensor:
    """model.Block.forward for a packed batch: x (B, N, dim) -> (B, N, dim).

    prefix: its keys and values in this layer, or None. lora_index: see fused.project. keep: int64 (R,), compute the
    outputs of these rows of the flattened tokens only, (1, R, dim); keep_lora is then their lora_index.
    """
    y = kv.attend(*query_key_value(block, x, cos, sin, lora_index), prefix).transpose(1, 2).flatten(2)
    if keep is not None:
        y, x = (SelectRows.apply(z.flatten(0, 1), keep)[None] for z in (y, x))
        lora_index = keep_lora
    o_proj = block.self_attn.o_proj
    x = x + project(y, lora_index, [o_proj], o_proj.weight)[0]
    return x + feed_forward(block.mlp, block.post_attention_layernorm(x))


def prefix_block(block: Block, x: Tensor, cos: Tensor, sin: Tensor, kv: PackedKV) -> tuple[Tensor, Tensor, Tensor]:
    """The same for the prefix. Returns x (B, N', dim), and its keys and values (B, kv_heads, N', head_dim)."""
    q, k, v = query_key_value(block, x, cos, sin, None)
    y = kv.attend(q, k, v, None).transpose(1, 2).flatten(2)
    x = x + F.linear(y, block.self_attn.o_proj.weight)
    return x + feed_forward(block.mlp, block.post_attention_layernorm(x)), k, v


class PackedForward:
    """The forward pass of a model for packed batches."""

    def __init__(
        self,
        model: Transformer,
        compile: bool = False,
        flex: bool = False,
        checkpoint: bool = False,
        fsdp: bool = False,
    ):
        """flex: FlexAttention, for batches of one row on a GPU; otherwise a dense mask. compile: the blocks.

        checkpoint: keep only the inputs of each block for the backward pass. fsdp: the model is spread over several
        GPUs (distributed.shard).
        """
        self.model, self.flex, self.checkpoint = model, flex, checkpoint
        self.frequencies = rotary_frequencies(model.config).to(model.embed_tokens.weight.device)
        self.block, self.prefix_block, self.forward = packed_block, prefix_block, self._forward
        if compile:
            torch._dynamo.config.recompile_limit = 64  # one graph for each shape
            self.block, self.prefix_block = (torch.compile(f, dynamic=not flex) for f in (packed_block, prefix_block))
        if fsdp:
            self._gather_weights()

    def __call__(
        self,
        method: Method,
        batch: PackedBatch,
        blocks: tuple[Blocks | None, ...] = (None,) * 3,
        weights: Tensor | None = None,
        lora: bool = True,
        hidden: bool = False,
    ) -> Tensor:
        """Logits (B * R, vocab_size) at batch.loss_index, where the padding has a loss weight of 0.

        blocks: block_mask.batch_blocks, if known. weights: merge by these (T, T, 1 or n), not by those of the method.
        lora: False leaves LoRA out, so text is the base model's own. hidden: return what lm_head gets, (B * R, dim).
        """
        return self.forward(method, batch, blocks, weights, lora, hidden)

    def _forward(self, method: Method, batch: PackedBatch, blocks, weights, lora: bool, hidden: bool) -> Tensor:
        model, layers = self.model, list(self.model.layers)
        dtype = model.embed_tokens.weight.dtype
        if method.merge_rate and weights is None and len(batch.slots):
            make = weights_on if method.learned else cached_weights
            weights = make(method.bind(model), batch.merge_index.shape[2], batch.tokens.device, dtype)

        def kv_of(part: PackedBatch, part_blocks: Blocks | None) -> PackedKV:
            return PackedKV(method, part, weights if method.merge_rate else None, dtype, self.flex, part_blocks)

        def lora_index_of(part: PackedBatch) -> Tensor | bool | None:
            if not lora:
                return None
            return part.flat(part.comp_index) if method.conditional else ALL_TOKENS

        prefix = [None] * len(layers)
        if batch.prefix:
            prefix = self._prefix_keys_and_values(batch.prefix, kv_of(batch.prefix, blocks[1]))
        kv, lora_index = kv_of(batch, blocks[0]), lora_index_of(batch)
        last = batch.last if len(layers) > 1 else None
        loss_lora = lora_index if lora_index is ALL_TOKENS else None  # there is no loss on COMP tokens
        x = self._embed(batch)
        cos, sin = rotary_table(batch.positions, self.frequencies, x.dtype)
        for layer, block in enumerate(layers):
            keep = keep_lora = None
            if last and layer == len(layers) - 2:
                keep, keep_lora = batch.flat(batch.last_index), lora_index_of(last)
            elif layer == len(layers) - 1:
                if last:
                    x = x.view(*last.tokens.shape, -1)  # (B, L, dim)
                    kv, lora_index, prefix[layer] = kv_of(last, blocks[2]), lora_index_of(last), None
                    cos, sin = rotary_table(last.positions, self.frequencies, x.dtype)
                at_loss = last or batch
                keep, keep_lora = at_loss.flat(at_loss.loss_index), loss_lora
            inputs = block, x, cos, sin, kv, prefix[layer], lora_index, keep, keep_lora
            if self.checkpoint and torch.is_grad_enabled():
                x = checkpoint(self.block, *inputs, use_reentrant=False)
            else:
                x = self.block(*inputs)
        x = model.norm(x)[0]
        return x if hidden else model.lm_head(x)

    @torch.no_grad()
    def _prefix_keys_and_values(self, prefix: PackedBatch, kv: PackedKV) -> list[Pair]:
        """Keys and values (B, kv_heads, N', head_dim) of the prefix, in each layer."""
        x, pairs = self._embed(prefix), []
        cos, sin = rotary_table(prefix.positions, self.frequencies, x.dtype)
        for block in self.model.layers:
            x, k, v = self.prefix_block(block, x, cos, sin, kv)
            pairs.append((k, v))
        return pairs

    def _embed(self, batch: PackedBatch) -> Tensor:
        """model.embed (B, N, dim), with COMP tokens found by their index."""
        return embed(self.model, batch.tokens, batch.flat(batch.comp_index) if batch.comp_index.numel() else None)

    def _gather_weights(self) -> None:
        """Makes FSDP gather a block's weights when its packed_block runs, and the others when the pass begins."""
        from torch.distributed.fsdp import register_fsdp_forward_method

        run = self.block
        for block in self.model.layers:
            block.packed_block = MethodType(run, block)
            register_fsdp_forward_method(block, "packed_block")
        self.block = lambda block, *inputs: block.packed_block(*inputs)
        self.model.packed_forward = lambda *inputs: self._forward(*inputs)
        register_fsdp_forward_method(self.model, "packed_forward")
        self.forward = self.model.packed_forward
