"""A worked example: one dialogue of three turns, with everything that training computes from it written out by hand.

Each word is one token here, and n = 2. Read it with the paper's algorithm 1.
"""

import pytest
import torch

from minccm.methods import COMP, TEXT, TokenInfo, get_method
from minccm.parallel import ParallelKV, merge_matrix
from minccm.sequence import build_sequence, encode_sample, pad_batch
from minccm.session import Session
from tests.conftest import random_model

SAMPLE = {"contexts": ["I am", "Hi", "So"], "input": "Who", "target": "You"}
WORDS = ["<unk>", "<s>", "</s>", "NL", "I", "am", "Hi", "So", "Who", "You"]  # the id of a word is its place here
VOCAB_SIZE, N = 40, 2

#         c(1)                 c(2)            c(3)            I        O         NL: a line break
TOKENS = "<s> I am  C0 C1      NL Hi C0 C1     NL So C0 C1     NL Who   You </s>"
POSITIONS = [0, 1, 2, 3, 4,    3, 4, 5, 6,     5, 6, 7, 8,     7, 8,    9, 10]  # fmt: skip
STEPS = [0, 0, 0, 0, 0,        1, 1, 1, 1,     2, 2, 2, 2,     3, 3,    3, 3]  # fmt: skip
LORA = [0, 0, 0, 1, 1,         0, 0, 1, 1,     0, 0, 1, 1,     0, 0,    0, 0]  # fmt: skip
LOSS = [0, 0, 0, 0, 0,         0, 0, 0, 0,     0, 0, 0, 0,     0, 1,    1, 0]  # fmt: skip
# LOSS[i] weighs the prediction of token i + 1: "Who" predicts "You", and "You" predicts the end

# A row is a query, a column is a key: # where the query attends to the key.
CONCAT_MASK = """
            c(1)    c(2)   c(3)   I O
    <s>     #....   ....   ....   ....
    I       ##...   ....   ....   ....
    am      ###..   ....   ....   ....
    C0      ####.   ....   ....   ....
    C1      #####   ....   ....   ....

    NL      ...##   #...   ....   ....
    Hi      ...##   ##..   ....   ....
    C0      ...##   ###.   ....   ....
    C1      ...##   ####   ....   ....

    NL      ...##   ..##   #...   ....
    So      ...##   ..##   ##..   ....
    C0      ...##   ..##   ###.   ....
    C1      ...##   ..##   ####   ....

    NL      ...##   ..##   ..##   #...
    Who     ...##   ..##   ..##   ##..
    You     ...##   ..##   ..##   ###.
    </s>    ...##   ..##   ..##   ####
"""

# ccm-merge has memory slots as further keys: two after each context. The last two are Mem(3), which I and O read.
MERGE_MASK = """
            c(1)    c(2)   c(3)   I O    Mem(1) Mem(2) Mem(3)
    <s>     #....   ....   ....   ....   ..     ..     ..
    I       ##...   ....   ....   ....   ..     ..     ..
    am      ###..   ....   ....   ....   ..     ..     ..
    C0      ####.   ....   ....   ....   ..     ..     ..
    C1      #####   ....   ....   ....   ..     ..     ..

    NL      .....   #...   ....   ....   ##     ..     ..
    Hi      .....   ##..   ....   ....   ##     ..     ..
    C0      .....   ###.   ....   ....   ##     ..     ..
    C1      .....   ####   ....   ....   ##     ..     ..

    NL      .....   ....   #...   ....   ..     ##     ..
    So      .....   ....   ##..   ....   ..     ##     ..
    C0      .....   ....   ###.   ....   ..     ##     ..
    C1      .....   ....   ####   ....   ..     ##     ..

    NL      .....   ....   ....   #...   ..     ..     ##
    Who     .....   ....   ....   ##..   ..     ..     ##
    You     .....   ....   ....   ###.   ..     ..     ##
    </s>    .....   ....   ....   ####   ..     ..     ##
"""

# The matrix P in tenths: how much of each token a slot holds. 5 is 1/2, 3 is 1/3, X is 1.
#                  c(1)    c(2)   c(3)   I O
MERGE_MATRIX = """
    Mem(1), j=0    ...X.   ....   ....   ....
    Mem(1), j=1    ....X   ....   ....   ....
    Mem(2), j=0    ...5.   ..5.   ....   ....
    Mem(2), j=1    ....5   ...5   ....   ....
    Mem(3), j=0    ...3.   ..3.   ..3.   ....
    Mem(3), j=1    ....3   ...3   ...3   ....
"""


class WordTokenizer:
    """One token per word."""

    bos_id, eos_id, newline = 1, 2, [3]

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) for word in text.split()]

    spaced = encode


def build(name: str):
    contexts, questions, _ = encode_sample(WordTokenizer(), SAMPLE)
    return build_sequence(get_method(name), N, VOCAB_SIZE, contexts, questions)


def drawn(picture: str, skip: int) -> list[str]:
    """The rows of a picture as strings without spaces; skip: the words before each row's first character."""
    lines = [line.split() for line in picture.strip("\n").splitlines()]
    return ["".join(words[skip:]) for words in lines if len(words) > skip and words[0] != "c(1)"]


@pytest.mark.parametrize("name", ["ccm-concat", "ccm-merge"])
def test_tokens_positions_and_loss(name):
    """Both methods have the same tokens. COMP tokens do not advance the position, and only the output is learned."""
    sequence = build(name)
    names = [*WORDS, *[""] * (VOCAB_SIZE - len(WORDS)), "C0", "C1"]  # COMP token j has the id vocab_size + j
    assert [names[token] for token in sequence.tokens] == TOKENS.split()
    assert sequence.positions.tolist() == POSITIONS
    assert sequence.loss_weights.tolist() == LOSS
    assert sequence.info.step.tolist() == STEPS
    assert get_method(name).lora_mask(sequence.info).int().tolist() == LORA
    assert sequence.info.kind.tolist() == [COMP if lora else TEXT for lora in LORA]


@pytest.mark.parametrize("name, picture", [("ccm-concat", CONCAT_MASK), ("ccm-merge", MERGE_MASK)])
def test_mask(name, picture):
    """The mask of the parallel pass is the one that is drawn above."""
    mask = ParallelKV(get_method(name), pad_batch([build(name)])).mask[0, 0]
    assert ["".join(".#"[seen] for seen in row) for row in mask.int().tolist()] == drawn(picture, skip=1)


def test_merge_matrix():
    """Mem(t) is the mean of the COMP tokens of steps 1 to t, each j for itself."""
    batch = pad_batch([build("ccm-merge")])
    P = merge_matrix(get_method("ccm-merge"), batch.info, batch.slots)[0]
    shares = {0: ".", 1 / 3: "3", 1 / 2: "5", 1: "X"}
    rows = ["".join(shares[min(shares, key=lambda share: abs(share - x))] for x in row) for row in P.tolist()]
    assert rows == drawn(MERGE_MATRIX, skip=2)
    torch.testing.assert_close(P.sum(1), torch.ones(6, dtype=torch.float64))  # each slot is a mean


@pytest.mark.parametrize("name, sizes", [("ccm-concat", [2, 4, 6]), ("ccm-merge", [2, 2, 2])])
def test_inference_keeps_only_the_memory(name, sizes):
    """Read turn by turn, the text is dropped: concat keeps two pairs a turn, merge two in all. The logits are equal."""
    contexts, ((input, output),), _ = encode_sample(WordTokenizer(), SAMPLE)
    model, method = random_model(N), get_method(name)
    session, held = Session(model, method, N), []
    for context in contexts:
        session.read(context)
        held.append(len(session.memory))
    assert held == sizes and not session.memory.info.is_text.any()
    batch = pad_batch([build(name)])
    parallel = model(batch.tokens, batch.positions, ParallelKV(method, batch), method.lora_mask(batch.info))
    torch.testing.assert_close(session.logits(input + output), parallel[0, -4:], atol=1e-9, rtol=1e-9)


def test_padding_is_hidden():
    """In a batch with a longer sample, this one is padded. Its tokens do not attend to the padding."""
    method = get_method("ccm-merge")
    longer = build_sequence(method, N, VOCAB_SIZE, [[1, 4, 5], [3, 6], [3, 7], [3, 6, 6]], [([3, 8], [9, 9, 2])])
    batch = pad_batch([build("ccm-merge"), longer])
    mask = ParallelKV(method, batch).mask[0, 0]
    real = TokenInfo.cat([batch.info, batch.slots])[0].step >= 0
    assert ["".join(".#"[seen] for seen in row) for row in mask[:17][:, real].int().tolist()] == drawn(MERGE_MASK, 1)
    assert not mask[:17][:, ~real].any()
