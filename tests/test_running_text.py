"""Running text: chunks follow each other as in the text, splits share nothing, unusable files are refused."""

import gzip
import lzma
import random

import pytest

import data
from data import running
from minccm.io.tokenizer import Tokenizer
from minccm.methods import get_method
from minccm.sequence import build_sequence, encode_sample


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """100,000 different words, so that a test can find the place of a chunk."""
    path = tmp_path_factory.mktemp("book") / "book.txt"
    words = [f"w{number}" for number in range(100_000)]
    path.write_text("".join(word + "\n "[number % 12 > 0] for number, word in enumerate(words)), "utf-8")
    return path


def test_chunks_run_on(book, tiny):
    """Contexts, input and target follow each other in the file, and so do their tokens."""
    tokenizer, whole = Tokenizer(tiny), book.read_text("utf-8")
    make, longest = data.source(str(book), "train"), 0
    for index in range(40):
        sample = make(index)
        data.check(sample)
        joint = " ".join([*sample["contexts"], sample["input"], sample["target"]])
        assert joint in whole and len(joint) <= running.LONGEST
        contexts, ((input, output),), _ = encode_sample(tokenizer, sample)
        ids = [*sum(contexts, []), *input, *output]
        assert ids == [tokenizer.bos_id, *tokenizer.encode(joint), tokenizer.eos_id]
        longest = max(longest, len(contexts))
    assert longest == running.CONTEXTS and make(7) == make(7) != make(8)
    assert len(make(7, 1)["contexts"]) == 1  # short samples first


def test_every_chunk_is_learned(book, tiny):
    """The loss covers every token of every chunk except the first ones, which have no predecessor in their step."""
    tokenizer, sample = Tokenizer(tiny), data.source(str(book), "train")(3)
    contexts, questions, answer_lengths = encode_sample(tokenizer, sample)
    method, size = get_method("ccm-concat"), tokenizer.vocab_size
    sequence = build_sequence(method, 2, size, contexts, questions, answer_lengths=answer_lengths, context_loss=0.5)
    covered = sum(len(ids) - 1 for ids in contexts) + len(questions[0][1])
    assert int((sequence.loss_weights == 1).sum()) == covered


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


def test_compressed_and_unbroken_text(tmp_path):
    """A compressed file is read like a plain one; a text without spaces is cut anywhere, and nothing is lost."""
    unbroken = "".join(random.Random(0).choices("日本語の文章", k=80_000))
    for name, opener in (("a.txt", open), ("a.txt.xz", lzma.open), ("a.txt.gz", gzip.open)):
        with opener(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write(unbroken)
        sample = data.source(str(tmp_path / name), "train")(0)
        assert "".join([*sample["contexts"], sample["input"], sample["target"]]) in unbroken


@pytest.mark.parametrize("letters", ["a", "é", "日", "\U0001f600", "a\U0001f600", " \U0001f600", "\U0001f600    "])
def test_chunks_are_bounded_in_bytes(tmp_path, letters):
    """Whatever the text is made of, a chunk has at most 1.5 * 320 bytes and a space's way, and no chunk is empty."""
    draw = random.Random(letters)
    text = "".join(draw.choice(letters) for _ in range(60_000))
    (tmp_path / "a.txt").write_text(text, "utf-8")
    for contexts in (1, 4, 12):
        for sample in data.at_step(str(tmp_path / "a.txt"), "train", contexts, 50):
            data.check(sample)
            chunks = [*sample["contexts"], sample["input"], sample["target"]]
            assert len(chunks) == contexts + 2 and all(chunks)
            assert all(len(chunk.encode()) <= 480 + 4 * 40 for chunk in chunks)
            assert len("".join(chunks).encode()) <= 1.5 * running.LONGEST + 4 * 40


def test_ordinary_text_keeps_its_chunks():
    """The limit in bytes changes nothing where a chunk has less than 1.5 bytes a character."""
    text = " ".join(f"wörd{number}" for number in range(5000))
    for index in range(100):
        draw = random.Random(index)
        sample = running.sample(text, draw, 4)
        draw = random.Random(index)
        size = draw.randint(80, 320)
        end = draw.randint(6 * size, len(text))
        places = [end - size * back for back in range(6, -1, -1)]
        cuts = [(text.rfind(" ", max(0, place - 40), place), place) for place in places]
        cuts = [place if space < 0 else space for space, place in cuts]
        chunks = [text[a:b].removeprefix(" ") for a, b in zip(cuts, cuts[1:])]
        assert [*sample["contexts"], sample["input"], sample["target"]] == chunks


def test_files_that_cannot_be_used(tmp_path):
    """Missing, empty, short, not text, not packed: one line that names the file."""
    for name, content, says in (
        ("none.txt", None, "missing"),
        ("empty.txt", b" \n", "empty"),
        ("short.txt", b"a few words " * 20, "too short"),
        ("binary.txt", bytes(range(256)) * 99, "not text in UTF-8"),
        ("plain.txt.xz", b"not packed at all", "damaged"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=says) as error:
            data.source(str(tmp_path / name), "train")
        assert name in str(error.value) and "\n" not in str(error.value)
