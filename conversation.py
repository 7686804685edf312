"""A conversation with a model: turns are spelled as it is used to, read once, compressed, and saved or taken up again.

Five lines are the whole of it:

    talk = open_conversation()                       # the model that ships, with ccm-concat
    talk.observe("User: My name is Ada.")            # read, compressed to a few slots
    print(*talk.reply("What is my name?"), sep="")   # answered from those
    talk.save("ada.memory")
    talk.load("ada.memory")                          # another day, on another machine
"""

import contextlib
import textwrap
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from minccm.checkpoint import adapter_fingerprint, fingerprint, load_adapter
from minccm.cli import TINY, open_base
from minccm.fast import FastSession
from minccm.methods import get_method
from minccm.online import Session
from minccm.tokenizer import Tokenizer

USER, BOT = "User:", "Bot:"  # how a dialogue marks who speaks
BEFORE, AFTER = "[INST]", "[/INST]"  # around what the user says, in the formats llama-2 and mistral
FORMATS = ("dialogue", "llama-2", "mistral")
MARKS = (USER, BOT, BEFORE, AFTER)
PIECE = 400  # characters of a long text that are read, and compressed, at a time


class Conversation:
    """A dialogue held in memory alone: the model answers from the memory, never from text.

    What was said is written down in `turns` all the same, for people to read, and so that another method can be tried
    on it. A turn is {"user", "bot"}, with "system" in the first one, or {"context"}, a text that was only observed; its
    "words" are, for each of its time steps, what each COMP token listened to. format: how a turn is spelled, see spell.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, format="dialogue", system="", adapter: str = ""):
        self.session, self.tokenizer, self.format, self.system = session, tokenizer, format, system
        self.turns, self.text_tokens, self.rate = [], 0, 0.0  # tokens of text so far, tokens per second of the reply
        self.made_for = {"base": fingerprint(session.model), "method": session.method.name, "n": session.n}
        self.made_for |= {"sink": session.method.sink, "adapter": adapter, "format": format}

    def spell(self, turn: dict) -> list[list[int]]:
        """Token ids of a turn, segment by segment: contexts c(t), the last of them an input I(t) if there is no reply.

        dialogue          what the user said is one context, the reply another: "User: Hi." and newline "Bot: Hello."
        llama-2, mistral  both are one context: "[INST] Hi. [/INST] Hello." and EOS
        A system prompt is a context of its own, or begins the first [INST]. A long text is several contexts.
        """
        tokenizer, fresh = self.tokenizer, not self.session.memory.tokens
        encode, said, system = tokenizer.encode, turn.get("bot"), turn.get("system", "")
        if "context" in turn or self.format == "dialogue":
            texts = pieces(turn.get("context", system))
            if "context" not in turn:
                texts = texts * bool(system) + [f"{USER} {piece}" for piece in pieces(turn["user"])]
                texts = [*texts[:-1], f"{texts[-1]}\n{BOT}"] if said is None else [*texts, f"{BOT} {said}".rstrip()]
            joint = tokenizer.newline if self.format == "dialogue" else []
            segments = [encode(text) for text in texts]
            return [([tokenizer.bos_id] if fresh and not i else joint) + ids for i, ids in enumerate(segments)]
        if system:
            system = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if self.format == "llama-2" else f"{system}\n\n"
        segments = [encode(piece) for piece in pieces(system + turn["user"])]
        begin = [tokenizer.bos_id] if fresh or self.format == "llama-2" else []
        segments[0] = begin + tokenizer.mark(BEFORE) + segments[0]
        segments[-1] += tokenizer.mark(AFTER)
        if said is not None:
            segments[-1] += encode(said + " " * (self.format == "llama-2")) + [tokenizer.eos_id]
        return segments

    def observe(self, text: str) -> None:
        """Reads and compresses a context that nothing is replied to."""
        self._hear({"context": clean(text)})

    def reply(self, text: str, **sampling) -> Iterator[str]:
        """Yields the reply to what the user says, piece by piece; afterwards both are compressed.

        A reply that is left early (close the iterator) counts as far as it was said.
        """
        turn = {"user": clean(text), "words": []}
        if self.system and not any("user" in earlier for earlier in self.turns):
            turn["system"] = self.system
        with self._whole():
            *contexts, prompt = self.spell(turn)
            for ids in contexts:
                self._read(ids, turn)
                yield ""
            turn["bot"] = ""
            with contextlib.suppress(GeneratorExit):
                for now in self.answer(prompt, **sampling):
                    before, turn["bot"] = turn["bot"], now
                    yield now[len(before) :]
            for ids in self.spell(turn)[len(contexts) :]:
                self._read(ids, turn)
            self.turns.append(turn)

    def answer(self, prompt: list[int], seed: int = 0, **sampling) -> Iterator[str]:
        """Yields all of the answer to an input so far, whenever another character is complete. Changes no memory.

        sampling: as of Session.generate. The seed counts from the tokens read, so that a saved conversation goes on the
        same.
        """
        generator = torch.Generator(self.session.device).manual_seed(seed + self.text_tokens)
        ids, start = [], time.perf_counter()
        for token in self.session.generate(prompt, generator=generator, **sampling):
            ids.append(token)
            self.rate = len(ids) / (time.perf_counter() - start)
            now = clean(self.tokenizer.decode(ids)).lstrip()
            if self.format == "dialogue" and "\n" in now:  # a turn is one line: what follows, others would say
                yield now.split("\n")[0]
                return
            if not now.endswith("\ufffd"):  # else a character of several tokens is not complete
                yield now

    def retold(self, turns: list[dict], session: Session | None = None, adapter: str = "") -> "Conversation":
        """Turns read anew, by another session or by one like this conversation's: what is kept of them may differ."""
        if session is None:
            session, adapter = self.session.anew(), self.made_for["adapter"]
        other = Conversation(session, self.tokenizer, self.format, self.system, adapter)
        for turn in turns:
            other._hear(turn)
        return other

    def compare(self, text: str, **sampling) -> dict[str, tuple[str, int]]:
        """Answers to the same question, and the KV pairs each is given from: {method: (answer, pairs)}."""
        answers = {}
        for name in dict.fromkeys((self.session.method.name, "full", "none")):
            other = self
            if name != self.session.method.name:
                session = Session(self.session.model, get_method(name), 0, adapted=False)
                other = self.retold(self.turns if session.method.reads else [], session)
            *contexts, prompt = other.spell({"user": clean(text)})
            *_, answers[name] = "", *other.answer(sum(contexts, []) + prompt, **sampling)
            answers[name] = answers[name], len(other.session.memory)
        return answers

    def kept(self) -> list[dict]:
        """What became of each time step: its text, the slots it still has, the words each COMP token listened to."""
        slots = Counter(self.session.memory.columns.step.tolist())
        heard = [pair for turn in self.turns for pair in zip(self.spell(turn), turn["words"])]
        texts = [(self.tokenizer.decode(ids).strip(), words) for ids, words in heard]
        return [{"step": t + 1, "slots": slots[t], "text": x, "words": words} for t, (x, words) in enumerate(texts)]

    def status(self) -> dict:
        """What is held, and what full context would hold by now."""
        memory, config = self.session.memory, self.session.model.config
        held = {"step": memory.step, "slots": len(memory), "bytes": memory.nbytes, "full_slots": self.text_tokens}
        full_bytes = self.text_tokens * config.kv_bytes_per_pair * memory.keys.element_size()
        return held | {"full_bytes": full_bytes, "tokens_per_second": round(self.rate, 1)}

    def save(self, path: str | Path) -> None:
        """Writes the memory, and what was said, to a file (whole or not at all)."""
        about = self.made_for | {"turns": self.turns, "text_tokens": self.text_tokens}
        self.session.memory.save(path, **about)

    def load(self, path: str | Path) -> None:
        """Goes on from a saved memory. Raises ValueError, in one line, for a broken file or one of another model."""
        session = self.session
        memory, about = session.memory.load(path, session.method, session.n, self.made_for)
        try:
            turns, count = [checked(turn) for turn in about["turns"]], about["text_tokens"]
            if type(count) is not int or not 0 <= count < 2**40:
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{path} is damaged: what was said cannot be read") from None
        session.memory, self.turns, self.text_tokens = memory, turns, count

    def _hear(self, turn: dict) -> None:
        """Reads and compresses a whole turn."""
        turn = turn | {"words": []}
        with self._whole():
            for ids in self.spell(turn):
                self._read(ids, turn)
            self.turns.append(turn)

    @torch.no_grad()
    def _read(self, ids: list[int], turn: dict) -> None:
        """Compresses one context, and notes the three words each COMP token listened to most."""
        attention = self.session.read(ids, watch=True)  # (n, N)
        self.text_tokens += len(ids)
        words = [(word.strip(".,:;!?\"'"), place) for word, place in self.tokenizer.words(ids) if word not in MARKS]
        words = [(word, place) for word, place in words if word]
        listened = [] if attention is None else attention.tolist()
        best = [sorted(words, key=lambda word: -sum(row[word[1]]))[:3] for row in listened]
        turn["words"].append([[word for word, _ in row] for row in best])

    @contextlib.contextmanager
    def _whole(self):
        """A turn is kept whole or not at all: memory and transcript agree whatever happens."""
        before = self.session.memory, self.text_tokens
        try:
            yield
        except BaseException:
            self.session.memory, self.text_tokens = before
            raise


def pieces(text: str) -> list[str]:
    """A text in parts of at most PIECE characters, cut between words if there are any."""
    return textwrap.wrap(text, PIECE, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False) or [""]


def clean(text: str) -> str:
    """Text without what could steer a terminal, or is no character: control codes and halves of surrogate pairs."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))


def checked(turn: dict) -> dict:
    """A turn as it stands in a file. Raises ValueError or the like if it is none."""
    texts = {key: clean(turn[key]) for key in ("system", "user", "bot", "context") if key in turn}
    if not (texts.keys() == {"context"} or {"user", "bot"} <= texts.keys() <= {"system", "user", "bot"}):
        raise ValueError
    return texts | {"words": [[[clean(word) for word in best] for best in step] for step in turn["words"]]}


def usual_format(folder: str | Path) -> str:
    """The format of a model: as its chat template tells, or the folder's name; else dialogue."""
    path, name = Path(folder) / "tokenizer_config.json", Path(folder).resolve().name.lower()
    template = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    if "<<SYS>>" in template or ("llama-2" in name and "chat" in name):
        return "llama-2"
    return "mistral" if "[INST]" in template or ("mistral" in name and "instruct" in name) else "dialogue"


def open_conversation(
    model=TINY,
    adapter=None,
    method=None,
    init=None,
    n=None,
    sink=None,
    format=None,
    system="",
    device="cpu",
    dtype=torch.float32,
    compile=False,
) -> Conversation:
    """A conversation with the model of a folder, by default the one that ships.

    adapter: a folder, by default the one in the model's folder that is named as the method, by default ccm-concat.
    init: a step-1 adapter to merge into the model. n, sink: of the adapter, where its folder does not tell.
    compile: answer by compiled code and CUDA graphs, see fast.FastSession.
    Raises ValueError, in one line, where they do not fit together.
    """
    base, tokenizer = open_base(model, init, device, dtype)
    format, kind = format or usual_format(model), FastSession if compile else Session
    if method in ("full", "none"):
        return Conversation(kind(base, get_method(method), 0, adapted=False), tokenizer, format, system)
    if method:
        method = get_method(method).name  # a wrong name is said as such
    folder = Path(adapter or Path(model) / (method or "ccm-concat"))
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there: train an adapter with train.py and give it with --adapter")
    found, n = load_adapter(base, folder, method, n, sink)
    session = kind(base, found, n, adapted=found.name != "full")
    return Conversation(session, tokenizer, format, system, adapter_fingerprint(folder))
