"""Running text: chunks that run on as the text does, splits that share nothing, and files that cannot be used."""

import lzma
import random

import pytest

import data
from data import running
from minccm.layout import lay_out, segments
from minccm.methods import get_method
from minccm.tokenizer import Tokenizer
from train import answer_lengths


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """100,000 words of which each occurs once, so that a place can be found again."""
    path = tmp_path_factory.mktemp("book") / "book.txt"
    words = [f"w{number}" for number in range(100_000)]
    path.write_text("".join(word + "\n "[number % 12 > 0] for number, word in enumerate(words)), "utf-8")
    return path


def test_chunks_run_on(book, tiny):
    """Contexts, input and target stand in the file one behind the other, and so do their tokens."""
    tokenizer, whole = Tokenizer(tiny), book.read_text("utf-8")
    make, longest = data.source(str(book), "train"), 0
    for index in range(40):
        sample = make(index)
        data.check(sample)
        joint = " ".join([*sample["contexts"], sample["input"], sample["target"]])
        assert joint in whole and len(joint) <= running.LONGEST
        contexts, input, target = segments(tokenizer, sample)
        ids = [*sum(contexts, []), *input, *target]
        assert ids == [tokenizer.bos_id, *tokenizer.encode(joint), tokenizer.eos_id]
        longest = max(longest, len(contexts))
    assert longest == running.CONTEXTS and make(7) == make(7) != make(8)
    assert len(make(7, 1)["contexts"]) == 1  # short samples first


def test_every_chunk_is_learned(book, tiny):
    """Each token of each chunk counts in the loss, but the first ones, which follow no token of their step."""
    tokenizer, sample = Tokenizer(tiny), data.source(str(book), "train")(3)
    contexts, input, target = segments(tokenizer, sample)
    answered = answer_lengths(tokenizer, sample, contexts)
    layout = lay_out(get_method("ccm-concat"), 2, tokenizer.vocab_size, contexts, input, target, 0.5, answered)
    assert int((layout.weights == 1).sum()) == sum(len(ids) - 1 for ids in contexts) + len(target)


def test_splits_share_nothing(book):
    """No word of validation or test occurs in training; at a time step there are so many contexts, ending alike."""
    seen = {}
    for split in data.SPLITS:
        make = data.source(f"text:{book}", split)
        samples = [make(index) for index in range(200)]
        seen[split] = {word for s in samples for part in (*s["contexts"], s["target"]) for word in part.split()[1:-1]}
    assert not seen["train"] & (seen["validation"] | seen["test"]) and not seen["validation"] & seen["test"]
    for time_step in (1, 8, 12):
        samples = data.at_step(str(book), "test", time_step, 5)
        assert [len(sample["contexts"]) for sample in samples] == [time_step] * 5


def test_packed_and_unbroken_text(tmp_path):
    """A .xz file is read as it is; a text without spaces is cut anywhere, and nothing is lost."""
    unbroken = "".join(random.Random(0).choices("日本語の文章", k=80_000))
    with lzma.open(tmp_path / "a.txt.xz", "wt", encoding="utf-8") as file:
        file.write(unbroken)
    sample = data.source(str(tmp_path / "a.txt.xz"), "train")(0)
    assert "".join([*sample["contexts"], sample["input"], sample["target"]]) in unbroken


def test_files_that_cannot_be_used(tmp_path):
    """Missing, empty, short, not text, not packed: one line that names the file."""
    for name, content, says in (
        ("none.txt", None, "not there"),
        ("empty.txt", b" \n", "empty"),
        ("short.txt", b"a few words " * 20, "too short"),
        ("binary.txt", bytes(range(256)) * 99, "no text in UTF-8"),
        ("plain.txt.xz", b"not packed at all", "no text in UTF-8"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=says) as error:
            data.source(str(tmp_path / name), "train")
        assert name in str(error.value) and "\n" not in str(error.value)
