"""Text to token ids and back, with an official sentencepiece tokenizer.model."""

from pathlib import Path

import sentencepiece


class Tokenizer:
    """bos_id, eos_id: int. newline: the ids of a line break, which stands between contexts."""

    def __init__(self, path: str | Path):
        """path: of a tokenizer.model, or of the folder that holds it. Raises ValueError, in one line."""
        path = Path(path)
        path = path / "tokenizer.model" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{path} is missing: put the model's sentencepiece tokenizer.model there")
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise ValueError(f"{path} is no sentencepiece model") from None
        self.vocab_size = self.pieces.vocab_size()
        self.bos_id, self.eos_id = self.pieces.bos_id(), self.pieces.eos_id()
        self.newline = self.pieces.encode("a\na")[1:-1]

    def encode(self, text: str) -> list[int]:
        """Token ids of text, without BOS or EOS."""
        return self.pieces.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.pieces.decode(ids)

    def mark(self, text: str) -> list[int]:
        """A mark of a prompt format, such as [INST]: a piece of its own in vocabularies that have one, else text."""
        id = self.pieces.piece_to_id(text)
        return [id] if self.pieces.is_control(id) else self.encode(text)

    def words(self, ids: list[int]) -> list[tuple[str, slice]]:
        """The words of a text given as ids, each with the place of its tokens."""
        pieces = [self.pieces.id_to_piece(id) for id in ids]
        starts = [i for i, piece in enumerate(pieces) if not i or piece[0] in "\u2581\n"] + [len(ids)]
        return [(self.decode(ids[a:b]).strip(), slice(a, b)) for a, b in zip(starts, starts[1:])]

    def span(self, text: str, part: str) -> tuple[int, int]:
        """Tokens [first, last) of encode(text) that cover the last place where `part` stands in it."""
        begin, ids = text.rindex(part), self.encode(text)
        ends = [len(self.decode(ids[:count])) for count in range(len(ids) + 1)]  # characters that the first tokens make
        inside = [i for i in range(len(ids)) if ends[i + 1] > begin and ends[i] < begin + len(part)]
        return inside[0], inside[-1] + 1


def train_tokenizer(lines, path: str | Path, vocab_size: int) -> None:
    """A BPE tokenizer.model of vocab_size pieces from an iterable of texts, with LLaMA's ids of BOS (1) and EOS (2)."""
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,  # any text has ids
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=["\n"],
            character_coverage=1.0,
            minloglevel=2,
        )
    beside.replace(path)
