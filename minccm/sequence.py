"""From a sample to the token sequence of the paper's algorithm 1, and from sequences to a padded batch.

    c(1) COMP c(2) COMP ... c(T) COMP I O

Only text advances the position. After t text tokens, COMP token j is at position t + j, and the next text token is at
position t again. Several questions (I, O) can follow the same contexts: they start at the same position and cannot
attend to each other.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minccm.methods import COMP, PAD, SLOT, TEXT, Method, TokenInfo

LATEST = 2**30  # the order of padding: every token comes before it


class EncodedSample(NamedTuple):
    """A sample as token ids."""

    contexts: list[list[int]]
    questions: list[tuple[list[int], list[int]]]  # (input, output with EOS)
    answer_lengths: list[int]  # for each context, how many tokens at its end are an answer that the loss may cover


def encode_sample(tokenizer, sample: dict, reads_context: bool = True, max_questions: int = 1) -> EncodedSample:
    """Token ids of a sample (fields: data/__init__.py). BOS comes first, a newline begins each later segment.

    A sample can have a "separator" in place of the newline, which then also stands before the output. Its "questions"
    beyond the first are added up to max_questions. reads_context: False leaves the contexts out.
    """
    joint = tokenizer.after(sample["separator"]) if "separator" in sample else tokenizer.newline
    texts = sample["contexts"] if reads_context else []
    contexts = [joint + tokenizer.encode(text) for text in texts]
    if contexts:
        contexts[0] = [tokenizer.bos_id] + contexts[0][len(joint) :]
    questions = []
    for input, target in [(sample["input"], sample["target"]), *sample.get("questions", [])][:max_questions]:
        begin = joint if contexts else [tokenizer.bos_id]
        input = begin + tokenizer.encode(input) + (joint if "separator" in sample else [])
        target = tokenizer.encode(target) if "separator" in sample else tokenizer.spaced(target)
        questions.append((input, target + [tokenizer.eos_id]))
    options = [tokenizer.spaced(option) for option in sample.get("options", [])]  # a demonstration ends in its label
    answer_lengths = [max((len(x) for x in options if ids[-len(x) :] == x), default=0) for ids in contexts]
    for i in sample.get("answers", []) if contexts else []:  # a whole context that answers an earlier one
        answer_lengths[i] = len(contexts[i]) - max(1, len(joint))
    return EncodedSample(contexts, questions, answer_lengths)


@dataclass
class Sequence:
    """One sample as N tokens. A batch has the same fields with a leading dimension B."""

    tokens: Tensor  # int64 (N,); the id of COMP token j is vocab_size + j
    positions: Tensor  # int64 (N,)
    loss_weights: Tensor  # fp32 (N,): weight of predicting the NEXT token
    info: TokenInfo  # (N,)
    slots: TokenInfo  # (M,): the memory slots that exist after each step, empty if nothing is merged

    def to(self, device) -> "Sequence":
        """The same on a device."""
        return Sequence(**{name: field.to(device) for name, field in vars(self).items()})

    def __len__(self) -> int:
        return self.tokens.shape[-1]


def step_rows(
    method: Method, n: int, length: int, step: int, start: int, question: int = 0
) -> tuple[list[int], list[tuple], list[tuple]]:
    """One time step: `length` text tokens, then n COMP tokens unless this is a question.

    start: tokens before this step. Returns the tokens' positions relative to the step's first token, and rows for
    TokenInfo.from_rows: of the tokens, and of the memory slots that exist after the step. Training joins these over
    all steps; inference uses them one step at a time.
    """
    comp = n if method.comp_after and not question else 0
    pooled = method.pools == TEXT and not question
    part = [i * n // length if pooled else -1 for i in range(length)]
    rows = [(TEXT, step, part[i], start + i, question) for i in range(length)]
    rows += [(COMP, step, j, start + length + j, question) for j in range(comp)]
    positions = [*range(length), *range(length, length + comp)]
    slots = sorted(set(part)) if pooled else range(n)
    exist = method.merge_rate and not question and step >= method.delay
    return positions, rows, [(SLOT, step, j, start + length + comp, 0) for j in slots if exist]


def build_sequence(
    method: Method,
    n: int,
    vocab_size: int,
    contexts: list[list[int]],
    questions: list[tuple[list[int], list[int]]],
    answer_lengths: list[int] | None = None,
    context_loss: float = 0.0,
) -> Sequence:
    """The sequence of one sample, given as token ids.

    The loss covers the outputs, their EOS included, with weight 1. So it does for the last answer_lengths[t] tokens of
    context t. All other text has weight context_loss, where it has a predecessor in its own step.
    """
    if not method.reads_context:
        contexts = []
    if method.comp_after == "end" and contexts:  # gist: all contexts are compressed at once
        contexts, answer_lengths = [sum(contexts, [])], None
    segments = [(text, 0, length) for text, length in zip(contexts, answer_lengths or [0] * len(contexts))]
    segments += [(input + output, i, len(output)) for i, (input, output) in enumerate(questions, 1)]
    tokens, positions, loss_weights, info, slots, text_tokens = [], [], [], [], [], 0
    for step, (text, question, answer) in enumerate(segments):
        step = min(step, len(contexts))  # all questions belong to the last step
        offsets, step_info, step_slots = step_rows(method, n, len(text), step, len(tokens), question)
        tokens += text + [vocab_size + j for j in range(len(offsets) - len(text))]
        positions += [text_tokens + offset for offset in offsets]
        info += step_info
        slots += step_slots
        counts = ([context_loss] * (len(text) - answer) + [1.0] * answer)[1:]  # the weight of each text token ...
        loss_weights += counts + [0.0] * (len(offsets) - len(counts))  # ... goes where the token before predicts it
        text_tokens += 0 if question else len(text)  # COMP tokens do not advance the position
    info, slots = TokenInfo.from_rows(info), TokenInfo.from_rows(slots)
    return Sequence(torch.tensor(tokens), torch.tensor(positions), torch.tensor(loss_weights), info, slots)


def pad_batch(sequences: list[Sequence]) -> Sequence:
    """Right-pads sequences to one batch (B, N). Padding is PAD with step -1, so no token of a sample attends to it."""
    padding = dict(kind=PAD, step=-1, slot=-1, order=LATEST, question=0)

    def pad(rows: list[Tensor], value: float = 0) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value)

    def pad_info(rows: list[TokenInfo]) -> TokenInfo:
        return TokenInfo(**{name: pad([getattr(row, name) for row in rows], value) for name, value in padding.items()})

    return Sequence(
        pad([sequence.tokens for sequence in sequences]),
        pad([sequence.positions for sequence in sequences]),
        pad([sequence.loss_weights for sequence in sequences]),
        pad_info([sequence.info for sequence in sequences]),
        pad_info([sequence.slots for sequence in sequences]),
    )


def bucket_by_length(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences in groups of similar length, each of at most max_tokens when padded (at least one)."""
    groups, longest = [], 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or longest * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups
