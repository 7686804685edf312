"""From a sample of any dataset to token ids, written as the model is used to.

A chat is written by the model's chat template, and so is a dialogue whose contexts begin with "User:" or "Bot:". All
other samples (demonstrations, lines of a profile, running text) are plain text.
"""

import random
from collections.abc import Callable

import data
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


def encode_within(
    encode: Encoder, sample: dict, method: Method, n: int, max_positions: int, max_questions: int = 1, seed: str = ""
) -> EncodedSample:
    """The sample encoded for a method with n COMP tokens a step, with a sequence that the model can take.

    Running text may begin anywhere: it loses contexts at its beginning until it fits. seed: chooses which part of a
    long chat is used. Raises ValueError for a sample that is too long.
    """

    def encoded(sample: dict) -> EncodedSample:
        return encode(sample, method.reads_context, max_questions, random.Random(seed))

    if sample.get("separator") == "":  # running text
        sample = data.fit(sample, lambda shorter: text_tokens(encoded(shorter)), max_positions)
    found = encoded(sample)
    check_length(found, method, n, max_positions)
    return found


def text_tokens(encoded: EncodedSample) -> int:
    """Positions that a sample takes: its contexts, and its longest input and output."""
    return sum(map(len, encoded.contexts)) + max(len(input) + len(output) for input, output in encoded.questions)


def check_length(encoded: EncodedSample, method: Method, n: int, max_positions: int) -> None:
    """Raises ValueError for a sample that is too long, before anything is sized by its length."""
    if not method.reads_context:
        encoded = encoded._replace(contexts=[])
    if text_tokens(encoded) > max_positions:
        length = f"a sample of {text_tokens(encoded):,} tokens"
        raise ValueError(f"{length} is longer than the model's {max_positions:,} positions")
    steps = len(encoded.contexts)
    tokens = steps * n + sum(len(ids) for ids in [*encoded.contexts, *sum(encoded.questions, ())])
    if tokens * (tokens + steps * n * bool(method.merge_rate)) > MAX_MASK:
        raise ValueError(f"a sample of {steps:,} contexts and {n} COMP tokens a step is too long: use fewer contexts")
