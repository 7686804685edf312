"""From a sample of any dataset to token ids, written as the model is used to.

A chat is written by the model's chat template, and so is a dialogue whose contexts begin with "User:" or "Bot:". All
other samples (demonstrations, lines of a profile, running text) are plain text.
"""

import random
from collections.abc import Callable

from data.chats import encode_chat, encode_dialogue
from minccm.io.templates import BOT, DIALOGUE, USER, Template
from minccm.io.tokenizer import Tokenizer
from minccm.methods import Method
from minccm.sequence import EncodedSample, encode_sample

Encoder = Callable[..., EncodedSample]
MAX_MASK = 2**28  # entries of one sample's attention mask, a byte each


def encoder(tokenizer: Tokenizer, template: Template) -> Encoder:
    """A function (sample, reads_context=True, max_questions=1, rng=None) -> EncodedSample.

    rng: a random.Random that chooses which part of a long chat is used; None takes its end.
    """

    def encode(
        sample: dict, reads_context: bool = True, max_questions: int = 1, rng: random.Random | None = None
    ) -> EncodedSample:
        if "messages" in sample:
            encoded = encode_chat(tokenizer, template, sample["messages"], sample.get("max_contexts"), rng)
            return encoded if reads_context else EncodedSample([], encoded.questions, [])
        turns = [*sample["contexts"], sample["input"]]
        if template.name != DIALOGUE and all(turn.startswith((USER, BOT)) for turn in turns):
            return encode_dialogue(tokenizer, template, sample, reads_context, max_questions)
        return encode_sample(tokenizer, sample, reads_context, max_questions)

    return encode


def check_length(encoded: EncodedSample, method: Method, n: int, max_positions: int) -> None:
    """Raises ValueError for a sample that is too long, before anything is sized by its length."""
    context = sum(map(len, encoded.contexts)) if method.reads_context else 0
    longest = context + max(len(input) + len(output) for input, output in encoded.questions)
    if longest > max_positions:
        raise ValueError(f"a sample of {longest:,} tokens is longer than the model's {max_positions:,} positions")
    steps = len(encoded.contexts)
    tokens = context + steps * n + sum(len(input) + len(output) for input, output in encoded.questions)
    if tokens * (tokens + steps * n * bool(method.merge_rate)) > MAX_MASK:
        raise ValueError(f"a sample of {steps:,} contexts and {n} COMP tokens a step is too long: use fewer contexts")
