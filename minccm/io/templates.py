"""Chat templates as data: how a model expects a user's text and its own reply to be written.

    chatml     SmolLM2, Qwen: <|im_start|>user, the text, <|im_end|>, <|im_start|>assistant, the reply, <|im_end|>
    llama-3    the same with <|start_header_id|>, <|end_header_id|> and <|eot_id|>
    llama-2    <s>[INST] the text [/INST] the reply </s>
    mistral    the same with one <s> before everything
    dialogue   User: the text, and on the next line Bot: the reply. For models without a template

In the first four an exchange (a user's text and its reply) is one context; in a dialogue each turn is one. COMP tokens
follow each context. A template in a model's own files is recognized by its marks, and never executed.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from minccm.io import gguf
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import clean_text, printable, read_bytes, read_json

PIECE = 400  # characters of a long text in one context
USER, BOT = "User:", "Bot:"  # who speaks in a dialogue
BEFORE, AFTER = "[INST]", "[/INST]"  # around the user's text, for llama-2 and mistral
MARKS = (USER, BOT, BEFORE, AFTER)
MAX_TEMPLATE_BYTES = 2**20


class Segment(NamedTuple):
    """A context, or at the end an input without its output, as token ids."""

    ids: list[int]
    answer: int = 0  # how many tokens at the end are the reply


@dataclass(frozen=True)
class Template:
    """How an exchange is written: rows of pieces, each a control token or a text, with the fields in braces filled in.

    {bos} and {eos} are the model's own tokens. [INST] is a control token in some vocabularies and text in others.
    """

    name: str
    user: tuple[str, ...] = ()  # the user's text
    begin_reply: tuple[str, ...] = ()  # between it and the reply
    reply: tuple[str, ...] = ()  # the reply and the token that ends it
    system: tuple[str, ...] = ()  # a system prompt, before the first user's text
    system_in_user: str = ""  # a system prompt, where it is a part of the first user's text
    first: tuple[str, ...] = ()  # before the first exchange
    later: tuple[str, ...] = ()  # before every other exchange
    stop: tuple[str, ...] = ()  # tokens that end a reply, besides EOS
    default_system: str = ""  # the system prompt of a conversation without one

    def encode_exchange(
        self, tokenizer: Tokenizer, user: str | None, reply: str | None = None, system: str = "", first: bool = True
    ) -> list[Segment]:
        """The token ids of an exchange: contexts; without a reply the last one is an input instead.

        user: None where the assistant speaks first. A text of more than PIECE characters takes several contexts.
        system: only the first exchange has one. Raises ValueError if the tokenizer has no such control tokens.
        """
        system = (system or self.default_system) if first else ""
        if self.name == DIALOGUE:
            return _encode_turns(tokenizer, user, reply, system, first)
        contexts = [self._encode(tokenizer, self.first if first else self.later)[0]]
        if system and self.system_in_user:
            user = self.system_in_user.replace("{system}", system) + (user or "")
        elif system:
            contexts = _join(contexts, self._encode(tokenizer, self.system, system))
            contexts += [[]] * (len(system) + len(user or "") > PIECE)
            contexts = _join(contexts, self._encode(tokenizer, self.later))
        row = self.begin_reply if user is None and self.begin_reply else self.user + self.later + self.begin_reply
        *contexts, prompt = _join(contexts, self._encode(tokenizer, row, user or ""))
        contexts = [Segment(ids) for ids in contexts]
        if reply is None:
            return [*contexts, Segment(prompt)]
        start, *more = self._encode(tokenizer, self.reply, reply)
        return [*contexts, Segment(prompt + start, len(start)), *(Segment(ids, len(ids)) for ids in more)]

    def encode_context(self, tokenizer: Tokenizer, text: str, first: bool = True) -> list[list[int]]:
        """The token ids of a text that has no reply, as contexts. Where there is a system role, that is who says it."""
        if self.system:
            return _join(
                self._encode(tokenizer, self.first if first else self.later), self._encode(tokenizer, self.system, text)
            )
        joint = tokenizer.newline if self.name == DIALOGUE else []
        contexts = [joint + tokenizer.encode(piece) for piece in pieces(text)]
        if first:
            contexts[0] = [tokenizer.bos_id] + contexts[0][len(joint) :]
        return contexts

    def encode_reply(self, tokenizer: Tokenizer, reply: str) -> list[int]:
        """The token ids of a reply after an input, with the token that ends it; never cut."""
        if self.name == DIALOGUE:
            return [*tokenizer.spaced(reply), tokenizer.eos_id]
        text, end = self.reply
        return tokenizer.encode(text.replace("{reply}", reply)) + self._token(tokenizer, end)

    def begin(self, tokenizer: Tokenizer) -> list[int]:
        """The tokens before the first text: BOS, but for chatml."""
        return [] if self.name == "chatml" else [tokenizer.bos_id]

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens that end a reply."""
        ids = [tokenizer.eos_id, *(tokenizer.control(token) for token in self.stop)]
        return tuple({id: None for id in ids if id is not None})

    def _encode(self, tokenizer: Tokenizer, row: tuple[str, ...], text: str = "") -> list[list[int]]:
        """A row of pieces with a text for its field; one list of ids for each piece of a long text."""
        contexts = [[]]
        for piece in row:
            if field := re.search(r"{(user|reply|system)}", piece):
                parts = pieces(text)
                parts[0] = piece[: field.start()] + parts[0]
                parts[-1] += piece[field.end() :]
                contexts = _join(contexts, [tokenizer.encode(part) for part in parts])
            else:
                contexts[-1] += self._token(tokenizer, piece)
        return contexts

    def _token(self, tokenizer: Tokenizer, piece: str) -> list[int]:
        if piece in ("{bos}", "{eos}"):
            return [tokenizer.bos_id if piece == "{bos}" else tokenizer.eos_id]
        if piece in (BEFORE, AFTER):
            return tokenizer.mark(piece)
        if not piece.startswith("<|"):
            return tokenizer.encode(piece)
        if (id := tokenizer.control(piece)) is None:
            raise ValueError(f"this model's tokenizer has no {piece}: the template {self.name} is not for it")
        return [id]


DIALOGUE = "dialogue"
TEMPLATES = {
    template.name: template
    for template in [
        Template(DIALOGUE),
        Template(
            "chatml",
            user=("<|im_start|>", "user\n{user}", "<|im_end|>"),
            begin_reply=("<|im_start|>", "assistant\n"),
            reply=("{reply}", "<|im_end|>"),
            system=("<|im_start|>", "system\n{system}", "<|im_end|>"),
            later=("\n",),
            stop=("<|im_end|>", "<|endoftext|>"),
        ),
        Template(
            "llama-2",
            user=("{bos}", BEFORE, "{user}", AFTER),
            reply=("{reply} ", "{eos}"),
            system_in_user="<<SYS>>\n{system}\n<</SYS>>\n\n",
        ),
        Template(
            "llama-3",
            user=("<|start_header_id|>", "user", "<|end_header_id|>", "\n\n{user}", "<|eot_id|>"),
            begin_reply=("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
            reply=("{reply}", "<|eot_id|>"),
            system=("<|start_header_id|>", "system", "<|end_header_id|>", "\n\n{system}", "<|eot_id|>"),
            first=("{bos}",),
            stop=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        ),
        Template(
            "mistral",
            user=(BEFORE, "{user}", AFTER),
            reply=("{reply}", "{eos}"),
            system_in_user="{system}\n\n",
            first=("{bos}",),
        ),
    ]
}
SIGNS = {"<|im_start|>": "chatml", "<|start_header_id|>": "llama-3", "<<SYS>>": "llama-2", BEFORE: "mistral"}
DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\n|\\n)([^<>{}'\"+\\]{1,1000})<\|im_end\|>")


def get_template(name: str) -> Template:
    """The template of a name. Raises ValueError, with the known names, if there is none."""
    if name not in TEMPLATES:
        raise ValueError(f"there is no template {printable(name)!r}: {', '.join(TEMPLATES)} are known")
    return TEMPLATES[name]


def choose_template(source: str | Path, name: str | None = None) -> Template:
    """The template of a --model, or the one that --template names. Raises ValueError, in one line."""
    if name is not None:
        get_template(name)
    found = recognize(source)
    return found if name in (None, found.name) else TEMPLATES[name]


def recognize(source: str | Path) -> Template:
    """The template that a model's files or the name of its folder tell; dialogue if they tell none.

    Raises ValueError, in one line, for a file that is broken.
    """
    text, folder = chat_template(source), Path(source).resolve().name.lower()
    name = next((name for sign, name in SIGNS.items() if sign in text), DIALOGUE)
    if not text and "llama-2" in folder and "chat" in folder:
        name = "llama-2"
    elif not text and "mistral" in folder and "instruct" in folder:
        name = "mistral"
    default = DEFAULT_SYSTEM.search(text)
    return replace(TEMPLATES[name], default_system=clean_text(default[1]) if default else "")


def chat_template(source: str | Path) -> str:
    """The text of a model's own chat template, or "" if it has none."""
    if gguf.is_gguf(source):
        template = gguf.read_header(source).metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else ""
    path = Path(source) / "chat_template.jinja"
    if path.is_file():
        return read_bytes(path, MAX_TEMPLATE_BYTES).decode("utf-8", "replace")
    path = Path(source) / "tokenizer_config.json"
    if not path.is_file():
        return ""
    config = read_json(path)
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):  # several, each with a name
        template = next((x.get("template") for x in template if isinstance(x, dict) and x.get("name") == "default"), "")
    return template if isinstance(template, str) else ""


def pieces(text: str) -> list[str]:
    """A text in parts of at most PIECE characters, cut between words if possible."""
    text, parts, start = text.rstrip(), [], 0
    while len(text) - start > PIECE:
        part = text[start : start + PIECE + 1]
        words = re.match(r".*\S(?=\s)", part, re.DOTALL)
        parts.append(words[0] if words else part[:PIECE])
        start += len(parts[-1])
        while text[start].isspace():
            start += 1
    return [*parts, text[start:]]


def _join(contexts: list[list[int]], more: list[list[int]]) -> list[list[int]]:
    """Contexts that are continued: the first of `more` is the rest of the last one."""
    return [*contexts[:-1], contexts[-1] + more[0], *more[1:]]


def _encode_turns(tokenizer: Tokenizer, user: str | None, reply: str | None, system: str, first: bool) -> list[Segment]:
    """An exchange of a dialogue, where each turn is a context: "User: Hi." and, on the next line, "Bot: Hello."."""
    texts = pieces(system) if system else []
    if user is not None:
        texts += [f"{USER} {piece}" for piece in pieces(user)]
    count = len(texts)
    if reply is None:
        texts[-1] += f"\n{BOT}"
    else:
        texts += [f"{BOT} {piece}".rstrip() for piece in pieces(reply)]
    segments, head = [], len(tokenizer.encode(BOT))
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text)
        joint = [tokenizer.bos_id] if first and i == 0 else tokenizer.newline
        segments.append(Segment(joint + ids, max(0, len(ids) - head) if i >= count else 0))
    return segments
