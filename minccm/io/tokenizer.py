"""Text to token ids and back, with the model's own tokenizer.

    tokenizer.model   sentencepiece (LLaMA, Llama 2, Mistral), or Meta's own byte-level BPE (Llama 3)
    tokenizer.json    byte-level BPE (Llama 3, SmolLM2, Qwen2, GPT-2)
    FILE.gguf         either kind

Byte-level BPE splits a text by a pattern of its family, then joins the bytes of each part by learned merges. The
package tiktoken does both. The files are untrusted: a pattern is never taken from a file, only recognized.
"""

import base64
import re
import struct
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from minccm.io import gguf
from minccm.io.config import read_config
from minccm.io.files import write_whole
from minccm.io.untrusted import (
    HALF_PAIR,
    MAX_TOKENIZER_BYTES,
    Field,
    check_fields,
    error,
    printable,
    read_bytes,
    read_json,
)

CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
SMOLLM2 = rf"{CONTRACTIONS}| ?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?=\p{{N}})|\s+(?!\S)|\s+"  # digits one by one
GGUF_PATTERNS = {
    "gpt-2": GPT2,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
    "smollm": SMOLLM2,
}
SUPPORTED = "those of GPT-2, Llama 3, Qwen2 and SmolLM2 are supported"
LLAMA3_CONTROL = {  # by their place in the 256 control tokens that follow the list in Meta's tokenizer.model
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 8,
    "<|eot_id|>": 9,
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of pieces, in sentencepiece and GGUF
MAX_VOCAB = 2**20
MAX_SPACES = 10_000  # tiktoken fails on far longer runs of whitespace
LETTERS = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level BPE writes as this letter
BYTE_OF = {chr(byte): byte for byte in LETTERS}  # the other bytes have letters from 256 on
BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(sorted({*range(256)} - {*LETTERS}))}


class Tokenizer:
    """vocab_size, bos_id, eos_id: int. newline: the ids of a line break, which joins contexts."""

    def __init__(self, path: str | Path):
        """path: a tokenizer.model, tokenizer.json or GGUF file; a folder with one of the first two; or "smollm2".

        Raises ValueError, in one line, for a file that is missing, broken or not supported.
        """
        path = gguf.find_model(path)
        if path.is_dir():
            path /= "tokenizer.json" if not (path / "tokenizer.model").exists() else "tokenizer.model"
        if not path.exists():
            raise error(path.with_name("tokenizer.model"), "the file is missing: put the model's tokenizer there")
        self.pieces = {".gguf": _from_gguf, ".json": _from_json}.get(path.suffix, _from_model)(path)
        self.vocab_size, self.bos_id, self.eos_id = self.pieces.vocab_size, self.pieces.bos_id, self.pieces.eos_id
        if not all(0 <= id < self.vocab_size for id in (self.bos_id, self.eos_id)):
            raise error(path, "it has no ids for the begin and the end of a text (BOS and EOS)")
        self.newline = self.after("\n")

    def encode(self, text: str) -> list[int]:
        """Token ids of text, without BOS or EOS. The name of a control token is plain text here.

        Half of a surrogate pair is no character: it becomes U+FFFD.
        """
        if HALF_PAIR.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.pieces.encode(text)

    def after(self, text: str) -> list[int]:
        """Token ids of text directly after a word, where sentencepiece puts no space before it."""
        return self.encode("a" + text)[1:] if self.pieces.adds_space else self.encode(text)

    def spaced(self, text: str) -> list[int]:
        """Token ids of text after a word and a space."""
        return self.encode(text) if self.pieces.adds_space else self.encode(" " + text)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids. Control tokens have none; incomplete characters become U+FFFD."""
        return self.pieces.decode(ids)

    def control(self, text: str) -> int | None:
        """The id of a control token, <|im_end|> for example; None if there is no such token."""
        return self.pieces.control(text)

    def mark(self, text: str) -> list[int]:
        """The ids of a mark such as [INST]: a control token in vocabularies that have it, else text."""
        id = self.control(text)
        return self.encode(text) if id is None else [id]

    def words(self, ids: list[int]) -> list[tuple[str, slice]]:
        """The words of a text given as ids, each with the slice of its tokens."""
        starts = [i for i, id in enumerate(ids) if not i or self.pieces.starts_word(id)] + [len(ids)]
        return [(self.decode(ids[a:b]).strip(), slice(a, b)) for a, b in zip(starts, starts[1:])]

    def span(self, text: str, part: str) -> tuple[int, int]:
        """Tokens [first, last) of encode(text) that cover the last place where `part` is in it."""
        begin, ids = text.rindex(part), self.encode(text)
        ends = [len(self.decode(ids[:count])) for count in range(len(ids) + 1)]  # characters in the first tokens
        inside = [i for i in range(len(ids)) if ends[i + 1] > begin and ends[i] < begin + len(part)]
        return inside[0], inside[-1] + 1


class SentencePieces:
    """The pieces of a sentencepiece model, given as the bytes of its file."""

    def __init__(self, model: bytes, bos_id: int | None = None, eos_id: int | None = None):
        """Raises RuntimeError or ValueError for a broken model."""
        self.model = sentencepiece.SentencePieceProcessor(model_proto=model)
        if self.model.unk_id() < 0:
            raise ValueError("there is no piece for unknown characters")
        self.vocab_size = self.model.vocab_size()
        self.names = [self.model.id_to_piece(id) for id in range(self.vocab_size)]
        self.bos_id = self.model.bos_id() if bos_id is None else bos_id
        self.eos_id = self.model.eos_id() if eos_id is None else eos_id
        first = self.encode("a")
        self.adds_space = bool(first) and self.names[first[0]].startswith("\u2581")  # a space, to sentencepiece

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids)

    def control(self, text: str) -> int | None:
        id = self.model.piece_to_id(text)
        return id if self.model.is_control(id) else None

    def starts_word(self, id: int) -> bool:
        return self.names[id].startswith(("\u2581", "\n"))


class BytePieces:
    """The pieces of byte-level BPE.

    tiktoken takes each piece's rank, which is its place in the order of the merges. The ids can have another order.
    """

    def __init__(
        self,
        pattern: str,
        ids: dict[bytes, int],  # of every piece that the merges can make
        merged: Iterable[bytes],  # the results of the merges, in order
        control: dict[str, int],  # ids of the control tokens
        bos_id: int,
        eos_id: int,
        other: dict[int, str] | None = None,  # the text of all other ids. encode() never returns these
        normalize: str = "",  # a normal form of Unicode
    ):
        """Raises ValueError if a merge makes a piece that has no id."""
        try:
            import tiktoken
        except ImportError:
            raise ValueError("byte-level BPE needs one more package: pip install tiktoken") from None
        ranks = {bytes([byte]): byte for byte in range(256)}
        for piece in merged:
            ranks.setdefault(piece, len(ranks))
        for piece in ranks:
            if len(piece) > 1 and piece not in ids:
                raise ValueError(f"the merges make {printable(piece)}, which has no id")
        self.encoding = tiktoken.Encoding("minccm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self.id_of_rank = [ids.get(piece) for piece in ranks]  # None: a byte outside the vocabulary is left out
        self.bytes_of = {id: piece for piece, id in ids.items()}
        self.bytes_of |= {id: text.encode("utf-8", "replace") for id, text in (other or {}).items()}
        self.bytes_of |= dict.fromkeys(control.values(), b"")
        self.ids_of_control, self.normalize, self.adds_space = control, normalize, False
        self.vocab_size, self.bos_id, self.eos_id = max(self.bytes_of, default=-1) + 1, bos_id, eos_id

    def encode(self, text: str) -> list[int]:
        if self.normalize:
            text = unicodedata.normalize(self.normalize, text)
        ranks = [rank for part in _split_spaces(text) for rank in self.encoding.encode_ordinary(part)]
        return [self.id_of_rank[rank] for rank in ranks if self.id_of_rank[rank] is not None]

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.bytes_of.get(id, b"") for id in ids).decode("utf-8", "replace")

    def control(self, text: str) -> int | None:
        return self.ids_of_control.get(text)

    def starts_word(self, id: int) -> bool:
        piece = self.bytes_of.get(id, b"")
        return not piece or piece.startswith((b" ", b"\n"))


def _split_spaces(text: str) -> list[str]:
    """A text in parts, none with more than MAX_SPACES characters of whitespace in a row. Most texts are one part."""
    if len(text) <= MAX_SPACES:
        return [text]
    runs = re.finditer(r"\s+", text)
    cuts = [cut for run in runs for cut in range(run.start() + MAX_SPACES, run.end(), MAX_SPACES)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]


def _from_model(path: Path) -> SentencePieces | BytePieces:
    """tokenizer.model: sentencepiece's, or Meta's of Llama 3."""
    data = read_bytes(path, MAX_TOKENIZER_BYTES)
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data[:1000]):
        return _from_list(path, data)
    return _open_sentencepiece(path, data)


def _open_sentencepiece(path: Path, *model) -> SentencePieces:
    try:
        return SentencePieces(*model)
    except (RuntimeError, ValueError, IndexError, OSError):  # ValueError: a piece that is not UTF-8
        raise error(path, "this is no sentencepiece model, or a damaged one") from None


def _from_list(path: Path, data: bytes) -> BytePieces:
    """Meta's format: lines of a piece in base64 and its rank, which is also its id."""
    ids = {}
    for number, line in enumerate(data.splitlines()):
        piece, _, rank = line.partition(b" ")
        try:
            piece = base64.b64decode(piece, validate=True)
        except ValueError:
            piece = b""
        if not piece or piece in ids or rank != b"%d" % number:
            raise error(path, f"line {number + 1} is not a new piece in base64 and the rank {number}")
        ids[piece] = number
    reserved = {f"<|reserved_special_token_{i}|>": len(ids) + i for i in range(256)}
    named = {name: len(ids) + place for name, place in LLAMA3_CONTROL.items()}
    control = {name: id for name, id in reserved.items() if id not in named.values()} | named
    return BytePieces(LLAMA3, ids, ids, control, named["<|begin_of_text|>"], named["<|end_of_text|>"])


def _from_json(path: Path) -> BytePieces:
    """tokenizer.json of byte-level BPE. The folder's config.json says which ids are BOS and EOS."""
    raw = read_json(path, MAX_TOKENIZER_BYTES)
    optional = dict(optional=True)
    fields = {"model": Field(dict), "normalizer": Field(dict, **optional), "pre_tokenizer": Field(dict, **optional)}
    fields |= {"added_tokens": Field(list, high=MAX_VOCAB, items=Field(dict), default=[], **optional)}
    raw = check_fields(raw, path, fields)
    fields = {
        "type": Field(str, default="BPE", **optional),
        "vocab": Field(dict, high=MAX_VOCAB),
        "merges": Field(list),
    }
    fields |= {name: Field(str, high=0, **optional) for name in ("continuing_subword_prefix", "end_of_word_suffix")}
    fields |= {"byte_fallback": Field(bool, default=False, **optional)}
    model = check_fields(raw["model"], path, fields)
    if model["type"] != "BPE" or model["byte_fallback"]:
        raise error(path, "only byte-level BPE is supported: put the model's tokenizer.model next to it if it has one")
    pattern, normalize = _pattern(path, raw["pre_tokenizer"]), _normal_form(path, raw["normalizer"])
    token = {"id": Field(int), "content": Field(str), "special": Field(bool, default=False, **optional)}
    added = [check_fields(entry, path, token) for entry in raw["added_tokens"]]
    control = {entry["content"]: entry["id"] for entry in added if entry["special"]}
    other = {entry["id"]: entry["content"] for entry in added if not entry["special"]}
    plain = {text: id for text, id in model["vocab"].items() if text not in control}
    if not all(type(id) is int and 0 <= id < MAX_VOCAB for id in [*plain.values(), *control.values(), *other]):
        raise error(path, f"the ids must be whole numbers below {MAX_VOCAB:,}")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in model["merges"]]
    config = read_config(path.parent)
    return _byte_pieces(path, pattern, plain, merges, control, other, config.bos_id, config.eos_id, normalize)


def _byte_pieces(
    path: Path, pattern: str, plain: dict, merges: list, control: dict, other: dict, bos_id, eos_id, normalize=""
) -> BytePieces:
    """BytePieces from the file's own entries.

    plain: the id of each piece, which is written in the letters of byte-level BPE. merges: pairs of such pieces.
    """
    pieces = {}
    for text, id in plain.items():
        try:
            pieces[text] = bytes(map(BYTE_OF.__getitem__, text))
        except KeyError:  # not made of bytes, so no merge can make it
            other.setdefault(id, text)
    try:
        merged = [pieces[first] + pieces[second] for first, second in merges]
    except (KeyError, TypeError, ValueError):
        raise error(path, "a merge is not a pair of pieces in the vocabulary") from None
    ids = {piece: plain[text] for text, piece in pieces.items()}
    used = [*ids.values(), *control.values()]
    if len({*used}) != len(used):
        raise error(path, "two pieces have the same id")
    try:
        return BytePieces(pattern, ids, merged, control, bos_id, eos_id, other, normalize)
    except ValueError as problem:
        raise error(path, str(problem)) from None


def _pattern(path: Path, pre_tokenizer: dict | None) -> str:
    """The pattern that a pre_tokenizer of tokenizer.json stands for. Raises ValueError if it is not a known one."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    *before, last = steps if isinstance(steps, list) and steps and all(isinstance(x, dict) for x in steps) else [{}]
    if last.get("type") == "ByteLevel" and last.get("add_prefix_space") is False:
        splits = last.get("use_regex", True)  # by GPT-2's pattern
        if not before and splits:
            return GPT2
        first = before[0] if len(before) == 1 else {}
        if first.get("type") == "Digits" and first.get("individual_digits") is True and splits:
            return SMOLLM2
        split = first.get("pattern") if first.get("type") == "Split" else None
        known = [pattern for pattern in (LLAMA3, QWEN2) if split == {"Regex": pattern}]
        if known and first.get("behavior") == "Isolated" and not first.get("invert") and not splits:
            return known[0]
    raise error(path, f"this pre_tokenizer is not supported: {SUPPORTED}")


def _normal_form(path: Path, normalizer: dict | None) -> str:
    kind = (normalizer or {"type": ""}).get("type")
    if kind not in ("", "NFC"):
        raise error(path, f"the normalizer {printable(kind)} is not supported: NFC is, or none")
    return kind


def _from_gguf(path: Path) -> SentencePieces | BytePieces:
    """The tokenizer in the metadata of a GGUF file."""
    metadata = gguf.read_header(path).metadata

    def get(name: str, kind: type, default=None):
        value = metadata.get(f"tokenizer.ggml.{name}", default)
        if type(value) is not kind:
            raise error(path, f"the entry tokenizer.ggml.{name} is missing or broken")
        return value

    def numbers(name: str, kind: str) -> list:
        values = metadata.get(f"tokenizer.ggml.{name}")
        if getattr(values, "shape", None) != (len(tokens),) or values.dtype.str[1:] != kind:
            raise error(path, f"the entry tokenizer.ggml.{name} must be a list of {len(tokens)} numbers ({kind})")
        return values.tolist()

    model, tokens = get("model", str), get("tokens", list)
    if not tokens or len(tokens) > MAX_VOCAB or not all(isinstance(token, str) for token in tokens):
        raise error(path, f"tokenizer.ggml.tokens must be a list of 1 to {MAX_VOCAB:,} strings")
    kinds, bos_id, eos_id = numbers("token_type", "i4"), get("bos_token_id", int), get("eos_token_id", int)
    if model == "llama":
        proto = _model_proto(tokens, numbers("scores", "f4"), kinds, get("add_space_prefix", bool, True))
        return _open_sentencepiece(path, proto, bos_id, eos_id)
    if model != "gpt2":
        raise error(path, f"the tokenizer {printable(model)} is not supported: llama and gpt2 are")
    if (pattern := GGUF_PATTERNS.get(get("pre", str, ""))) is None:
        raise error(path, f"the tokenizer.ggml.pre {printable(get('pre', str, ''))} is not supported: {SUPPORTED}")
    plain = {token: id for id, token in enumerate(tokens) if kinds[id] in (NORMAL, BYTE)}
    control = {token: id for id, token in enumerate(tokens) if kinds[id] == CONTROL}
    other = {id: token for id, token in enumerate(tokens) if kinds[id] not in (NORMAL, BYTE, CONTROL)}
    merges = [merge.split(" ") if isinstance(merge, str) else () for merge in get("merges", list)]
    return _byte_pieces(path, pattern, plain, merges, control, other, bos_id, eos_id)


def _model_proto(tokens: list[str], scores: list[float], kinds: list[int], add_space: bool) -> bytes:
    """The bytes of a sentencepiece model (protobuf's wire format) from the entries of a GGUF file.

    The numbers of the fields are those in sentencepiece_model.proto.
    """

    def varint(number: int) -> bytes:
        low, rest = number & 127, number >> 7
        return bytes([low | 128]) + varint(rest) if rest else bytes([low])

    def field(number: int, value: int | float | bytes) -> bytes:
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    pieces = []
    for token, score, kind in zip(tokens, scores, kinds):
        if kind == USER_DEFINED and token.startswith("<|"):
            kind = CONTROL  # a user who types it means the text
        pieces.append(field(1, field(1, token.encode()) + field(2, score) + field(3, kind & 7)))
    trainer = field(3, 2) + field(35, int(BYTE in kinds))  # BPE; byte_fallback
    normalizer = field(1, b"identity") + field(3, int(add_space)) + field(4, 0) + field(5, 1)
    return b"".join(pieces) + field(2, trainer) + field(3, normalizer)  # add_dummy_prefix; every space stays


def train_tokenizer(lines: Iterable[str], path: str | Path, vocab_size: int) -> None:
    """Writes a sentencepiece BPE model of vocab_size pieces, trained on texts, with LLaMA's BOS (1) and EOS (2)."""

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
    except RuntimeError as problem:
        reason = printable(str(problem).rpartition("]")[2].strip() or problem, 200)
        raise ValueError(f"no tokenizer of {vocab_size} pieces can be trained on this text ({reason})") from None
