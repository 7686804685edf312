"""A conversation with a model: each turn is read once and compressed; it can be saved and continued another day.

talk = open_conversation()                       # the model that ships, with ccm-concat
talk.observe("User: My name is Ada.")            # read and compressed to a few KV pairs
print(*talk.reply("What is my name?"), sep="")   # answered from these
talk.save("ada.memory")
talk.load("ada.memory")                          # another day, on another machine
"""

import contextlib
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from minccm.extra.inside import Listening, ListeningSession
from minccm.fast.conversations import FastSession
from minccm.fast.cpu_decode import CPUSession
from minccm.io.adapters import adapter_fingerprint, load_adapter
from minccm.io.gguf import find_model
from minccm.io.memory_file import load_memory, save_memory
from minccm.io.options import TINY, open_base
from minccm.io.templates import DIALOGUE, MARKS, TEMPLATES, Template, choose_template
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import Field, check_fields, error, printable, read_json
from minccm.io.weights import fingerprint, pair_bytes
from minccm.methods import Method, get_method
from minccm.session import Session

SMOLLM2 = TINY.parent / "smollm2"  # adapters for SmolLM2
ROLES = ("system", "user", "assistant")  # words of chat templates, not of the speakers
MAX_TURNS = 2**20  # in a saved conversation
WORDS = Field(list, items=Field(list, items=Field(list, high=9, items=Field(str))))
TEXT = Field(str, optional=True)
TURN = {"system": TEXT, "user": TEXT, "bot": TEXT, "context": TEXT, "words": WORDS}
SAVED = {"turns": Field(list, high=MAX_TURNS, items=Field(dict)), "text_tokens": Field(int, 0, 2**40)}


class FastListening(Listening, FastSession):
    """A FastSession that says what its COMP tokens attended to."""


class CPUListening(Listening, CPUSession):
    """A CPUSession that says what its COMP tokens attended to."""


class Conversation:
    """A dialogue held in memory only: the model answers from the compressed memory, never from text.

    `turns` is a transcript, for people to read and for compressing the conversation again with another method. A turn
    is {"user", "bot"}, with "system" in the first one, or {"context"}, a text that was only observed. Its "words" say
    for each of its time steps what each COMP token attended to most.

    adapter: a fingerprint. A saved memory is refused if it was made with another one.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        template: Template = TEMPLATES[DIALOGUE],
        system: str = "",
        adapter: str = "",
    ):
        self.session, self.tokenizer, self.template, self.system = session, tokenizer, template, clean(system)
        self.turns, self.text_tokens = [], 0  # text tokens read so far
        self.speed = 0.0  # tokens per second of the last reply
        self.made_for = {"base": fingerprint(session.model), "method": session.method.name, "n": session.n}
        self.made_for |= {"sink": session.method.sink, "adapter": adapter, "template": template.name}

    @property
    def is_fresh(self) -> bool:
        """Is the memory empty? With method none it always is."""
        return not self.session.memory.tokens

    def encode(self, turn: dict, first: bool | None = None) -> list[list[int]]:
        """Token ids of a turn, one list for each context; without a reply, the last one is an input.

        first: does the conversation begin with this turn? By default it does if nothing has been read.
        """
        first = self.is_fresh if first is None else first
        if "context" in turn:
            return self.template.encode_context(self.tokenizer, turn["context"], first)
        user, reply, system = turn["user"], turn.get("bot"), turn.get("system", "")
        segments = self.template.encode_exchange(self.tokenizer, user, reply, system, first)
        return [segment.ids for segment in segments]

    def observe(self, text: str) -> None:
        """Reads and compresses a text that gets no reply."""
        if self.is_fresh and not self.turns and self.system:
            self._read_turn({"context": self.system})
        self._read_turn({"context": clean(text)})

    def reply(self, text: str, **sampling) -> Iterator[str]:
        """Yields the reply to a user's text, piece by piece. Then both are compressed.

        A reply that is stopped early (close the iterator) is a turn up to there. sampling: see answer.
        """
        turn, first = self._question(text) | {"words": []}, self.is_fresh
        with self._transaction():
            *contexts, prompt = self.encode(turn, first)
            for ids in contexts:
                self._read(ids, turn)
                yield ""
            turn["bot"] = ""
            with contextlib.suppress(GeneratorExit):
                for now in self.answer(prompt, **sampling):
                    before, turn["bot"] = turn["bot"], now
                    yield now[len(before) :]
            for ids in self.encode(turn, first)[len(contexts) :]:
                self._read(ids, turn)
            self.turns.append(turn)

    def answer(self, prompt: list[int], seed: int = 0, **sampling) -> Iterator[str]:
        """Yields the whole answer so far whenever another character is complete. The memory does not change.

        sampling: max_tokens, temperature and top_p of Session.generate. The seed is added to the number of tokens read,
        so a conversation that was saved and loaded continues in the same way.
        """
        generator = torch.Generator(self.session.memory.keys.device).manual_seed(seed + self.text_tokens)
        stop_ids = self.template.stop_ids(self.tokenizer)
        ids, start = [], time.perf_counter()
        for token in self.session.generate(prompt, generator=generator, stop_ids=stop_ids, **sampling):
            ids.append(token)
            self.speed = len(ids) / (time.perf_counter() - start)
            now = clean(self.tokenizer.decode(ids)).lstrip()
            if self.template.name == DIALOGUE and "\n" in now:  # a turn is one line; the next would be another's
                yield now.split("\n")[0]
                return
            if not now.endswith("\ufffd"):  # else a character of several tokens is not complete
                yield now

    def replay(self, turns: list[dict], session: Session | None = None, adapter: str = "") -> "Conversation":
        """A new conversation that has read these turns, with another session or one like this conversation's."""
        if session is None:
            session, adapter = self.session.fresh(), self.made_for["adapter"]
        other = Conversation(session, self.tokenizer, self.template, self.system, adapter)
        for turn in turns:
            other._read_turn(turn)
        return other

    def compare(self, text: str, **sampling) -> dict[str, tuple[str, int]]:
        """Answers to one question from several memories: {method: (answer, KV pairs)}. Nothing is remembered.

        The methods are this conversation's own, full context, and no context.
        """
        answers = {}
        for name in dict.fromkeys((self.session.method.name, "full", "none")):
            other = self
            if name != self.session.method.name:
                kind = CPUSession if isinstance(self.session, CPUSession) else Session
                session = kind(self.session.model, get_method(name), 0)
                other = self.replay(self.turns if session.method.reads_context else [], session)
            *contexts, prompt = other.encode(other._question(text))
            *_, answers[name] = "", *other.answer(sum(contexts, []) + prompt, **sampling)
            answers[name] = answers[name], len(other.session.memory)
        return answers

    def kept(self) -> list[dict]:
        """What is left of each time step: its text, the KV pairs it still has, what each COMP token attended to."""
        slots, rows = Counter(self.session.memory.info.step.tolist()), []
        for i, turn in enumerate(self.turns):
            first = i == 0 or not self.session.method.reads_context
            for ids, words in zip(self.encode(turn, first), turn["words"]):
                text = clean(self.tokenizer.decode(ids)).strip()
                rows.append({"step": len(rows) + 1, "slots": slots[len(rows)], "text": text, "words": words})
        return rows

    def status(self) -> dict:
        """What is held, and what full context would hold by now."""
        memory, model = self.session.memory, self.session.model
        held = {"step": memory.step, "slots": len(memory), "bytes": memory.nbytes, "full_slots": self.text_tokens}
        return held | {"full_bytes": self.text_tokens * pair_bytes(model), "tokens_per_second": round(self.speed, 1)}

    def save(self, path: str | Path) -> None:
        """Writes the memory and the transcript to a file (whole or not at all)."""
        about = self.made_for | {"turns": self.turns, "text_tokens": self.text_tokens}
        save_memory(path, self.session.memory, about)

    def load(self, path: str | Path) -> None:
        """Continues from a saved memory. Raises ValueError, in one line, for a broken file or one of another model."""
        session = self.session
        memory, about = load_memory(path, session.memory, session.method, session.n, self.made_for)
        saved = check_fields(about, path, SAVED)
        turns = [check_turn(turn, path) for turn in saved["turns"]]
        session.memory, self.turns, self.text_tokens = memory, turns, saved["text_tokens"]

    def _question(self, text: str) -> dict:
        """What the user says, as a turn without a reply. The first one has the system prompt."""
        turn = {"user": clean(text)}
        return turn | {"system": self.system} if self.system and self.is_fresh else turn

    def _read_turn(self, turn: dict) -> None:
        """Reads and compresses a whole turn."""
        turn = turn | {"words": []}
        with self._transaction():
            for ids in self.encode(turn):
                self._read(ids, turn)
            self.turns.append(turn)

    @torch.no_grad()
    def _read(self, ids: list[int], turn: dict) -> None:
        """Compresses one context, and adds to the turn the three words that each COMP token attended to most."""
        self.session.read(ids)
        self.text_tokens += len(ids)
        marks = MARKS if self.template.name == DIALOGUE else MARKS + ROLES
        words = [(clean(word), place) for word, place in self.tokenizer.words(ids) if word not in marks]
        words = [(word.strip(".,:;!?\"'"), place) for word, place in words]
        words = [(word, place) for word, place in words if word]
        heard = getattr(self.session, "heard", None)  # (n, N)
        shares = [] if heard is None else heard.tolist()
        best = [sorted(words, key=lambda word: -sum(row[word[1]]))[:3] for row in shares]
        turn["words"].append([[word for word, _ in row] for row in best])

    @contextlib.contextmanager
    def _transaction(self):
        """A turn is kept whole or not at all: memory and transcript agree whatever happens."""
        before = self.session.memory, self.text_tokens
        try:
            yield
        except BaseException:
            self.session.memory, self.text_tokens = before
            raise


def clean(text: str) -> str:
    """Text without what could steer a terminal or is no character: control codes and halves of surrogate pairs."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))


def check_turn(raw: dict, where: str | Path) -> dict:
    """A turn of a saved conversation. Raises ValueError if it is none."""
    turn = check_fields(raw, where, TURN)
    texts = {key: clean(turn[key]) for key in ("system", "user", "bot", "context") if turn[key] is not None}
    if not (texts.keys() == {"context"} or {"user", "bot"} <= texts.keys() <= {"system", "user", "bot"}):
        raise error(where, "the file is damaged: a turn has no text, or two kinds of text")
    return texts | {"words": [[[clean(word) for word in best] for best in step] for step in turn["words"]]}


def find_adapter(source: str | Path, model, name: str) -> Path:
    """The folder of the adapter of that name for a --model: beside its weights, or in data/smollm2 for SmolLM2.

    Raises ValueError if there is none.
    """
    beside = (Path(source) if Path(source).is_dir() else find_model(source).parent) / name
    shipped = SMOLLM2 / name
    if beside.is_dir():
        return beside
    if (shipped / "adapter.json").is_file():
        info = check_fields(read_json(shipped / "adapter.json"), shipped, {"base": Field(str)})
        if info["base"] == fingerprint(model):
            return shipped
    shown = printable(shipped if str(source) == "smollm2" else beside, 200)
    raise ValueError(f"{shown}: no adapter is there. Train one with train.py, and give it with --adapter")


def find_step1(folder: Path) -> Path | None:
    """The step-1 adapter below an adapter's folder, or the folder itself if it holds one; None if there is none."""
    path = folder / "adapter.json"
    if (folder / "init").is_dir():
        return folder / "init"
    if path.is_file():
        return folder if check_fields(read_json(path), path, {"method": Field(str)})["method"] == "full" else None
    if (folder / "adapter_config.json").is_file():  # the authors' step-1 adapters are named so
        return folder if folder.resolve().name.endswith("-no") else None
    raise error(folder, "no adapter is there: neither adapter.json nor adapter_config.json")


def open_conversation(
    model: str | Path = TINY,
    adapter: str | Path | None = None,
    method: Method | str | None = None,
    init: str | Path | None = None,
    n: int | None = None,
    sink: bool | None = None,
    template: str | None = None,
    system: str = "",
    device="cpu",
    dtype: torch.dtype = torch.float32,
    compile: bool = False,
) -> Conversation:
    """A conversation with a base model: a folder, a GGUF file or "smollm2"; by default the model that ships.

    adapter: a folder, by default find_adapter's for the method. method: by default the adapter's, or ccm-concat. With
    method full or none, only the step-1 part of an adapter matters. init: a step-1 adapter that is merged into the
    base. n, sink: of the adapter, where its folder does not tell. template: by default what the model's files say.
    compile: answer with compiled code and CUDA graphs, see fast/conversations.py. Raises ValueError, in one line, if
    these do not fit together.
    """
    name = method.name if isinstance(method, Method) else method
    if isinstance(method, str):
        get_method(method)  # an unknown name is reported before weights are read
    template = choose_template(model, template)
    base, tokenizer = open_base(model, init, device, dtype)
    template.encode_exchange(tokenizer, "")  # an unsuitable template is reported now
    folder = None if adapter is None else Path(adapter)
    if name in ("full", "none"):
        method, n = get_method(name), 0
        if folder is None and init is None:
            with contextlib.suppress(ValueError):  # without an adapter, this is the base model itself
                folder = find_adapter(model, base, "ccm-concat")
        if step1 := folder and find_step1(folder):
            load_adapter(base, step1)
        folder = None
    else:
        folder = folder or find_adapter(model, base, name or "ccm-concat")
        method, n = load_adapter(base, folder, method, n, sink)
    on_cpu = base.embed_tokens.weight.device.type == "cpu"
    kind = FastListening if compile else CPUListening if on_cpu else ListeningSession
    session = kind(base, method, n)
    parts = [part for part in (getattr(base, "step1", None), folder) if part is not None]
    return Conversation(session, tokenizer, template, system, "+".join(map(adapter_fingerprint, parts)))
