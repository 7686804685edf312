"""A look inside compression: which words of a context its COMP tokens attend to.

session = ListeningSession(model, get_method("ccm-concat"), n=2)
session.read(ids)
session.heard                  # fp32 (n, N): how much of its attention each COMP token gave to each text token
"""

import torch
from torch import Tensor

from minccm.memory import Memory
from minccm.methods import Method, TokenInfo
from minccm.session import Session, StepKV


class ListeningKV(StepKV):
    """StepKV that also records the attention of the step's COMP tokens to its text."""

    def __init__(self, method: Method, memory: Memory, info: TokenInfo):
        super().__init__(method, memory, info)
        self.is_comp = info.is_comp
        self.shares = [] if len(self.is_comp.nonzero()) else None  # for each layer (n, N): a mean over heads

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.shares is not None:
            text = k[0, :, ~self.is_comp].repeat_interleave(q.shape[1] // k.shape[1], 0)  # (heads, N, head_dim)
            scores = q[0, :, self.is_comp] @ text.transpose(1, 2) * text.shape[2] ** -0.5  # (heads, n, N)
            self.shares.append(scores.float().softmax(-1).mean(0))
        return super().attend(layer, q, k, v)


class Listening:
    """For a class of Session: `heard` says which text tokens the COMP tokens of the last context attended to.

    heard: fp32 (n, N), shares that sum to 1 over the N text tokens, as a mean over layers and heads; None without COMP
    tokens. The numbers of the session stay the same.
    """

    make_kv = ListeningKV
    heard: Tensor | None = None

    def _forward(self, memory: Memory, ids: list[int], question: int):
        logits, kv, slots = super()._forward(memory, ids, question)
        if not question:
            self.heard = torch.stack(kv.shares).mean(0) if kv.shares else None
        return logits, kv, slots


class ListeningSession(Listening, Session):
    """A Session that says what its COMP tokens attended to."""
