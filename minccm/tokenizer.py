"""Text to token ids and back, with the model's own tokenizer: sentencepiece's, or Llama-3's tokenizer.json."""

from functools import partial
from pathlib import Path

import sentencepiece

from minccm.config import read_config
from minccm.files import write_whole


class Tokenizer:
    """bos_id, eos_id: int. newline: the ids of a line break, which stands between contexts."""

    def __init__(self, path: str | Path):
        """path: of tokenizer.model or tokenizer.json, or the folder that holds it. Raises ValueError, in one line."""
        path = Path(path)
        if path.is_dir():
            path /= "tokenizer.json" if not (path / "tokenizer.model").is_file() else "tokenizer.model"
        if not path.is_file():
            raise ValueError(f"{path.with_name('tokenizer.model')} is missing: put the model's tokenizer there")
        read = _json if path.suffix == ".json" else _sentencepiece
        self._encode, self._decode, self._piece, self._control, self.vocab_size, self.bos_id, self.eos_id = read(path)
        if self.bos_id < 0 or self.eos_id < 0:
            raise ValueError(f"{path} has no ids for the begin and the end of a text (BOS and EOS)")
        self.newline = self.encode("a\na")[1:-1]

    def encode(self, text: str) -> list[int]:
        """Token ids of text, without BOS or EOS."""
        return self._encode(text)

    def after(self, text: str) -> list[int]:
        """Token ids of text that goes on behind a word, and not from the begin: no space is put before it."""
        return self.encode("a" + text)[1:]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        return self._decode(ids)

    def mark(self, text: str) -> list[int]:
        """A mark of a prompt format, such as [INST]: a piece of its own in vocabularies that have one, else text."""
        id = self._control(text)
        return self.encode(text) if id is None else [id]

    def words(self, ids: list[int]) -> list[tuple[str, slice]]:
        """The words of a text given as ids, each with the place of its tokens."""
        pieces = [self._piece(id) for id in ids]  # a space before a word is \u2581 to sentencepiece, \u0120 in bytes
        starts = [i for i, piece in enumerate(pieces) if not i or piece[0] in "\u2581\n\u0120\u010a"] + [len(ids)]
        return [(self.decode(ids[a:b]).strip(), slice(a, b)) for a, b in zip(starts, starts[1:])]

    def span(self, text: str, part: str) -> tuple[int, int]:
        """Tokens [first, last) of encode(text) that cover the last place where `part` stands in it."""
        begin, ids = text.rindex(part), self.encode(text)
        ends = [len(self.decode(ids[:count])) for count in range(len(ids) + 1)]  # characters that the first tokens make
        inside = [i for i in range(len(ids)) if ends[i + 1] > begin and ends[i] < begin + len(part)]
        return inside[0], inside[-1] + 1


def _sentencepiece(path: Path):
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise ValueError(f"{path} is no sentencepiece model: of Llama-3, take tokenizer.json instead") from None

    def control(text: str) -> int | None:
        id = pieces.piece_to_id(text)
        return id if pieces.is_control(id) else None

    ids = pieces.vocab_size(), pieces.bos_id(), pieces.eos_id()
    return pieces.encode, pieces.decode, pieces.id_to_piece, control, *ids


def _json(path: Path):
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"{path} is read by one more package: pip install tokenizers") from None
    try:
        pieces = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # it raises nothing more special
        raise ValueError(f"{path} is no tokenizer.json") from None
    pieces.encode_special_tokens = True  # a user's "<|eot_id|>" is text
    config = read_config(path.parent)
    control = {token.content: id for id, token in pieces.get_added_tokens_decoder().items() if token.special}.get
    ids = pieces.get_vocab_size(), config.bos_id, config.eos_id
    return partial(_ids, pieces), pieces.decode, pieces.id_to_token, control, *ids


def _ids(pieces, text: str) -> list[int]:
    return pieces.encode(text, add_special_tokens=False).ids


def train_tokenizer(lines, path: str | Path, vocab_size: int) -> None:
    """A BPE tokenizer.model of vocab_size pieces from an iterable of texts, with LLaMA's ids of BOS (1) and EOS (2)."""

    def train(beside: Path) -> None:
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

    try:
        write_whole(Path(path), train)
    except RuntimeError as error:
        raise ValueError(f"a tokenizer of {vocab_size} pieces is too much for this text ({error})") from None
