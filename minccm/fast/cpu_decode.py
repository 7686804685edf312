"""Reading and answering at batch 1 on a CPU.

A token of an answer is a product of each weight matrix with one vector, so the rate of reading memory is the limit.

- PyTorch computes such products in bf16 with oneDNN by default. PyTorch's own kernel is about twice as fast for a
  single vector. So oneDNN is off while a token is computed. Longer inputs keep it.
- Keys and values are written to buffers in place. Weights are joined (fused.py), so there are fewer, longer products.
- The queries of a key/value head are a batch of rows for it. So attention copies no keys for grouped queries.
- A context, or an input, is one pass with joined weights. LoRA acts on the rows of COMP tokens only, which come last.
  The last layer of a context stops at keys and values.

    session = CPUSession(model, method, n)          # a Session, with the same numbers
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minccm.fast.fused import feed_forward, join_weights
from minccm.lora import ConditionalLoRA
from minccm.memory import Memory
from minccm.methods import Method, TokenInfo, attention_mask
from minccm.model import Block, Transformer, rotary_table
from minccm.sequence import step_rows
from minccm.session import Session, StepKV, sample

ROOM = 128  # tokens that the buffers grow by


@contextmanager
def without_onednn():
    """Turns oneDNN off for a while."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


class Answer:
    """The logits of an answer, token by token, after a memory and an input."""

    def __init__(self, model: Transformer, method: Method, memory: Memory, kv: StepKV):
        """kv: the keys, values and info of the input."""
        self.model, self.method, self.step = model, method, memory.step
        self.info = TokenInfo.cat([memory.info, kv.info])
        self.order, self.position = memory.tokens + len(kv.info), memory.text + len(kv.info)  # of the next token
        new = torch.stack(kv.keys), torch.stack(kv.values)  # (layers, kv_heads, N, head_dim)
        past = memory.keys.to(new[0].dtype), memory.values.to(new[1].dtype)
        self.buffers = [torch.cat(pair, 2) for pair in zip(past, new)]  # (layers, kv_heads, K, head_dim)
        self.place = len(self.info)
        self.next = iter(())  # cos, sin and mask of the next tokens

    def _make_room(self) -> None:
        """Makes space in the buffers, cos, sin and masks for ROOM more tokens."""
        space = self.buffers[0].new_empty(*self.buffers[0].shape[:2], ROOM, self.buffers[0].shape[3])
        self.buffers = [torch.cat([buffer, space], 2) for buffer in self.buffers]
        info = TokenInfo.from_rows(step_rows(self.method, 0, ROOM, self.step, self.order, question=1)[1])
        self.info = TokenInfo.cat([self.info, info])
        mask = attention_mask(self.method, info, self.info)  # bool (ROOM, K)
        masks = [row[: self.place + i + 1] for i, row in enumerate(mask)]
        positions = self.position + torch.arange(ROOM)
        cos, sin = rotation(self.model, positions)  # (ROOM, head_dim)
        self.next = zip(cos, sin, [None if row.all() else row for row in masks])
        self.order, self.position = self.order + ROOM, self.position + ROOM

    def __call__(self, token: int) -> Tensor:
        """Logits (1, vocab_size) after one more token of the answer."""
        if self.place == self.buffers[0].shape[2]:
            self._make_room()
        x = self.model.embed_tokens.weight[token][None]  # (1, dim)
        cos, sin, mask = next(self.next)
        with without_onednn():
            for block, keys, values in zip(self.model.layers, *self.buffers):
                x = one_token(block, x, keys, values, cos, sin, self.place, mask)
            self.place += 1
            return F.linear(rms_norm(self.model.norm, x), self.model.lm_head.weight)


def rotation(model: Transformer, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of positions (N,), each (N, head_dim), for channels i and i + head_dim / 2.

    sin is negative in the first half: so x is rotated by x * cos + x.roll(head_dim / 2) * sin.
    """
    cos, sin = rotary_table(positions[None], model.frequencies, model.embed_tokens.weight.dtype)
    return torch.cat([cos, cos], -1)[0, 0], torch.cat([-sin, sin], -1)[0, 0]


def rms_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """norm(x) of one token, x (1, dim), by fewer operations."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = float(exact[0].dot(exact[0])) / exact.shape[1]
    return (exact * (mean + norm.eps) ** -0.5 * norm.weight).to(x.dtype)


def one_token(
    block: Block, x: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, place: int, mask: Tensor | None
) -> Tensor:
    """Block.forward of one token, x (1, dim) -> (1, dim), without LoRA. Its key and value go to `place` of the buffers.

    keys, values: (kv_heads, K, head_dim). cos, sin: (head_dim,), of `rotation`. mask: bool (place + 1,); None: all keys
    up to `place` are attended.
    """
    attention, mlp, kv_heads, head_dim = block.self_attn, block.mlp, len(keys), len(cos)
    qkv = F.linear(rms_norm(block.input_layernorm, x), attention.qkv).view(-1, head_dim)
    values[:, place] = qkv[-kv_heads:]
    qk = qkv[:-kv_heads].to(cos.dtype)
    qk = torch.addcmul(qk * cos, qk.roll(head_dim // 2, 1), sin).to(x.dtype)
    keys[:, place] = qk[-kv_heads:]
    q = qk[:-kv_heads].view(1, kv_heads, -1, head_dim)
    y = F.scaled_dot_product_attention(q, keys[None, :, : place + 1], values[None, :, : place + 1], mask)
    x = x + F.linear(y.reshape(1, -1), attention.o_proj.weight)
    gate, up = F.linear(rms_norm(block.post_attention_layernorm, x), mlp.gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, mlp.down_proj.weight)


def one_step(model: Transformer, tokens: Tensor, positions: Tensor, kv: StepKV, comp: int, logits: bool) -> Tensor:
    """Transformer.forward of tokens and positions (1, N): logits (N, vocab_size), or (0, vocab_size) without `logits`.

    LoRA acts on the last `comp` tokens. It must not be at work on others.
    """
    x, config = model.embed(tokens)[0], model.config  # (N, dim)
    cos, sin = rotation(model, positions[0])  # (N, head_dim)
    q_dim, kv_dim, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim, config.n_kv_heads

    def add_lora(y: Tensor, h: Tensor, part: ConditionalLoRA) -> None:
        """Adds the update of a projection of h to y, a view of the output."""
        if comp and part.lora_A is not None:
            y[-comp:] += (part.scale * h[-comp:].to(part.lora_A.dtype) @ part.lora_A.T @ part.lora_B.T).to(y.dtype)

    for layer, block in enumerate(model.layers):
        attention = block.self_attn
        h = block.input_layernorm(x)
        qkv = F.linear(h, attention.qkv)
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        for y, part in zip(qkv.split([q_dim, kv_dim, kv_dim], 1), parts):
            add_lora(y, h, part)
        heads = qkv.unflatten(1, (-1, config.head_dim)).transpose(0, 1)  # (n_heads + 2 kv_heads, N, head_dim)
        qk = heads[:-kv_heads].to(cos.dtype)
        qk = torch.addcmul(qk * cos, qk.roll(config.head_dim // 2, 2), sin).to(x.dtype)
        y = kv.attend(layer, qk[None, :-kv_heads], qk[None, -kv_heads:], heads[None, -kv_heads:])
        if layer == config.n_layers - 1 and not logits:
            return x.new_empty(0, config.vocab_size)
        h = y[0].transpose(0, 1).flatten(1)
        y = F.linear(h, attention.o_proj.weight)
        add_lora(y, h, attention.o_proj)
        x = x + y
        x = x + feed_forward(block.mlp, block.post_attention_layernorm(x))
    return F.linear(model.norm(x), model.lm_head.weight)


class CPUSession(Session):
    """A Session that reads and answers as above."""

    def __init__(self, model: Transformer, method: Method, n: int):
        super().__init__(model, method, n)
        join_weights(model)

    def _forward(self, memory: Memory, ids: list[int], question: int) -> tuple[Tensor, StepKV, TokenInfo]:
        """As Session._forward."""
        if not self.method.conditional or torch.is_grad_enabled() or len(ids) > self.model.config.max_positions:
            return super()._forward(memory, ids, question)
        offsets, info, slots = step_rows(self.method, self.n, len(ids), memory.step, memory.tokens, question)
        info, slots, comp = TokenInfo.from_rows(info), TokenInfo.from_rows(slots), len(offsets) - len(ids)
        tokens = torch.tensor([ids + [self.model.config.vocab_size + j for j in range(comp)]])
        kv = self.make_kv(self.method, memory, info)
        positions = memory.text + torch.tensor([offsets])
        return one_step(self.model, tokens, positions, kv, comp, question > 0), kv, slots

    @torch.no_grad()
    def generate(
        self,
        ids: list[int],
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stop_ids: tuple[int, ...] | None = None,
    ) -> Iterator[int]:
        """As Session.generate."""
        if not self.method.conditional:  # LoRA acts on text, too
            yield from super().generate(ids, max_tokens, temperature, top_p, generator, stop_ids)
            return
        stop_ids = (self.model.config.eos_id,) if stop_ids is None else stop_ids
        logits, kv, _ = self._forward(self.memory, ids, question=1)
        answer = Answer(self.model, self.method, self.memory, kv)
        for i in range(max_tokens):
            token = int(sample(logits[-1:], temperature, top_p, generator))
            if token in stop_ids:
                return
            yield token
            if i + 1 < max_tokens:
                logits = answer(token)
