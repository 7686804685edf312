"""Talk to a model with a compressed memory: each turn is read once, kept as a few KV pairs, and forgotten as text.

python chat.py                                    # the model that ships, with ccm-concat; /help lists the commands
python chat.py --model smollm2                    # a real model of 135 million parameters
python chat.py --model DIR --adapter DIR          # any other
echo "My name is Ada." | python chat.py           # lines in, replies out; also --script FILE, and --json
python chat.py --script FILE --record docs/chat.svg
"""

import contextlib
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minccm.extra.conversation import Conversation, clean, open_conversation
from minccm.io import options
from minccm.io.files import write_text
from minccm.io.templates import BOT, DIALOGUE, USER
from minccm.io.untrusted import printable, read_bytes
from minccm.methods import METHODS, Method

MAX_SCRIPT = 2**24  # bytes of a --script
MAX_REPLY = 64, 256  # tokens, in a dialogue and with a chat template


class Terminal:
    """Executes typed lines: a user's turn, or a command, which is a method do_NAME. /help shows its docstring."""

    def __init__(self, talk: Conversation, opened: dict, sampling: dict, console: Console, as_json: bool, live: bool):
        self.talk, self.opened, self.sampling, self.console = talk, opened, sampling, console
        self.as_json, self.live = as_json, live  # live: with status lines, as in a terminal
        self.replying = self.stopped = False

    def line(self, text: str) -> None:
        """Executes one line. Raises ValueError or OSError if that is not possible."""
        if not text.startswith("/"):
            return self.say(text)
        name, _, argument = text[1:].partition(" ")
        command = getattr(self, f"do_{name}", None)
        if command is None:
            raise ValueError(f"there is no command /{name}: /help lists them")
        return command(argument.strip())

    def say(self, text: str) -> None:
        """Prints the reply while it is generated; one that is stopped is a turn up to there."""
        self.replying, self.stopped = True, False
        turns, pieces, start = len(self.talk.turns), self.talk.reply(text, **self.sampling), time.perf_counter()
        streams = not (self.as_json or self.console.record)
        for piece in pieces:
            if streams:
                self.console.out(piece, end="", highlight=False)
            if self.stopped:
                pieces.close()
        if len(self.talk.turns) == turns:
            raise ValueError("stopped before the reply: this turn is not in the memory")
        if self.as_json:
            reply, seconds = self.talk.turns[-1]["bot"], round(time.perf_counter() - start, 4)
            self.print("", user=text, bot=reply, **self.talk.status(), seconds=seconds)
        else:
            self.console.print("" if streams else self.talk.turns[-1]["bot"])  # a picture has whole lines
        if self.live:
            self.console.print(status_line(**self.talk.status()), soft_wrap=True)

    def interrupt(self, *_) -> None:
        """Ctrl-C: stops a reply or a command, but not the program."""
        if not self.replying:
            raise KeyboardInterrupt
        self.stopped = True

    def typed(self) -> Iterator[str]:
        """Lines from the terminal, with editing and history if Python has them. Ctrl-D ends them."""
        with contextlib.suppress(ImportError):
            import readline  # input() edits lines with it

            readline.parse_and_bind("set enable-bracketed-paste on")  # a paste of many lines is one turn
        while True:
            try:
                self.replying = False
                yield input("> ")
            except KeyboardInterrupt:
                print()
            except EOFError:
                return print()

    def print(self, shown, **data) -> None:
        """Prints the result of a command: for people, or as JSON."""
        if self.as_json:
            self.console.out(json.dumps(data), highlight=False)
        else:
            self.console.print(shown, soft_wrap=isinstance(shown, str), style="dim" if isinstance(shown, str) else None)

    def table(self, *columns: str) -> Table:
        return Table(*columns, box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))

    def do_help(self, _):
        """this list"""
        commands = [(name[3:], getattr(self, name).__doc__) for name in dir(self) if name.startswith("do_")]
        table = self.table("type", "and get")
        for name, about in commands:
            table.add_row(f"/{name}", about)
        self.print(table, help=dict(commands))

    def do_memory(self, _):
        """the memory: slots by time step, bytes, and the words each COMP token attended to most (last 16 steps)"""
        rows, status, method = self.talk.kept(), self.talk.status(), self.talk.session.method
        table = self.table("step", "slots", "each COMP token attended to", "the text, now gone")
        for row in rows[-16:]:
            words = dict.fromkeys(" ".join(best[: 6 // len(row["words"]) or 1]) for best in row["words"])  # each once
            said = textwrap.shorten(row["text"].partition("user\n")[2] or row["text"], 50)  # without a system prompt
            table.add_row(str(row["step"]), str(row["slots"] or ""), " | ".join(words), said)
        self.print(table, memory=rows, **status)
        if not self.as_json:
            merged = f", the mean of steps 1 to {status['step']}" if method.merge_rate and method.comp_after else ""
            self.print(f"{method.name}: {status['slots']} slots{merged}, {status['bytes']:,} bytes")

    def do_compare(self, text):
        """TEXT: the same question answered from memory, full context and no context; it is not remembered"""
        table = self.table("from", "slots", "answer")
        answers = self.talk.compare(need(text, "a question"), **self.sampling)
        for name, (answer, pairs) in answers.items():
            table.add_row(name, str(pairs), answer)
        self.print(table, compare=text, answers={k: {"answer": a, "slots": pairs} for k, (a, pairs) in answers.items()})

    def do_method(self, name):
        """NAME: concat, merge, full or any other method: the conversation so far is compressed again"""
        method, adapter = self.opened["method"], self.opened["adapter"]
        if not (isinstance(method, Method) and method.name == need(name, "a name")):  # a method from a file has no name
            method = name = name if name in METHODS else f"ccm-{name}"
        if adapter and name not in (self.talk.session.method.name, "full", "none"):
            adapter = Path(adapter).parent / name  # adapters of one model are in one folder
        other = open_conversation(**self.opened | {"method": method, "adapter": adapter})
        self.talk = self.talk.replay(self.talk.turns, other.session, other.made_for["adapter"])
        slots = len(other.session.memory)
        self.print(f"{name}, all turns compressed again: {slots} slots", method=name, **self.talk.status())

    def do_save(self, path):
        """FILE: saves the conversation's memory, to continue another day"""
        self.talk.save(need(path, "a file"))
        self.print(f"{len(self.talk.session.memory)} slots are in {path}", save=path)

    def do_load(self, path):
        """FILE: continues from a saved memory"""
        self.talk.load(need(path, "a file"))
        self.print(f"{len(self.talk.session.memory)} slots of {len(self.talk.turns)} turns", load=path)

    def do_forget(self, _):
        """starts a new conversation"""
        self.talk = self.talk.replay([])
        self.print("the memory is empty", forget=True)

    def do_undo(self, _):
        """removes the last turn"""
        if not self.talk.turns:
            raise ValueError("there is no turn to remove")
        self.talk = self.talk.replay(self.talk.turns[:-1])
        self.print(f"{len(self.talk.turns)} turns are left", undo=True, **self.talk.status())

    def do_export(self, path):
        """FILE: writes the transcript"""
        texts = [turn["context"] if "context" in turn else exchange(**turn) for turn in self.talk.turns]
        write_text(Path(need(path, "a file")), "".join(text + "\n" for text in texts))
        self.print(f"{len(texts)} turns are in {path}", export=path)


def need(argument: str, what: str) -> str:
    """The argument of a command. Raises ValueError if there is none."""
    if not argument:
        raise ValueError(f"this command needs {what}: see /help")
    return argument


def exchange(user: str, bot: str, **_) -> str:
    """A turn in a transcript."""
    return f"{USER} {user}\n{BOT} {bot}"


def status_line(step, slots, bytes, full_slots, full_bytes, tokens_per_second) -> Text:
    """The time step, the size of the memory, and its share of full context, as a number and as a bar."""
    filled = min(12, max(slots > 0, round(12 * slots / max(full_slots, 1))))
    size = lambda count: f"{count / 1024:.0f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"
    numbers = f" {slots} slots {size(bytes)} | full context {full_slots}, {size(full_bytes)}"
    bar = ("\u2588" * filled, "cyan"), ("\u2591" * (12 - filled), "dim")
    return Text.assemble((f"step {step} ", "dim"), *bar, (f"{numbers} | {tokens_per_second:.0f} tokens/s", "dim"))


def parse():
    parser = options.parser(__doc__.split("\n")[0])
    add, whole, real, name = parser.add_argument, options.whole, options.real, options.name
    add("--adapter", type=name, help="adapter folder; by default ccm-concat in the model's folder or in data/smollm2")
    add("--system", default="", help="what the model is told before the first turn")
    add("--temperature", type=real(0, 100), default=0.0, help="0 takes the most likely token; otherwise at least 0.01")
    add("--top-p", type=real(1e-6, 1), default=1.0, help="draw from the most likely tokens with this total probability")
    add("--max-tokens", type=whole(1, 2**16), help="longest reply; by default 64, or 256 with a chat template")
    add("--compile", action="store_true", help="on a GPU: faster answers, after the first has waited for the compiler")
    add("--script", type=name, metavar="FILE", help="execute the lines of a file (up to 16 MiB), then exit")
    add("--json", action="store_true", help="print one JSON object per line")
    add("--record", type=name, metavar="FILE", help="with --script: save a picture (.svg) or text of the session")
    return parser.parse_args()


def open_with(given) -> tuple[Conversation, dict]:
    """The conversation that the command line asks for, and the arguments that have opened it."""
    opened = {name: getattr(given, name) for name in ("model", "adapter", "init", "n", "sink", "template", "compile")}
    opened["device"], opened["dtype"] = options.device_and_dtype(given)
    on_cpu, tiny = opened["device"].type == "cpu", Path(given.model).resolve() == options.TINY.resolve()
    if given.dtype == "auto" and on_cpu and not tiny and options.has_bf16():
        opened["dtype"] = torch.bfloat16  # twice as fast, because a token's time is that of reading all weights
    if given.compile and opened["device"].type != "cuda":
        raise ValueError("--compile needs a GPU: leave it out here")
    from_file = given.method is not None and given.method.endswith(".py")
    opened["method"] = options.load_method(given.method) if from_file else given.method
    opened["system"] = clean(given.system)
    return open_conversation(**opened), opened


def main():
    given = parse()
    if 0 < given.temperature < 0.01:
        raise ValueError(f"--temperature must be 0 or at least 0.01, not {given.temperature}")
    if given.record and not given.script:
        raise ValueError("--record needs --script")
    if given.record and not Path(given.record).resolve().parent.is_dir():
        raise ValueError(f"--record {printable(given.record)}: there is no such folder")
    lines = read_bytes(given.script, MAX_SCRIPT).decode("utf-8", "replace").split("\n") if given.script else None
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):  # for invalid bytes, and for characters that a terminal cannot show
            stream.reconfigure(encoding="utf-8" if stream is sys.stdin else None, errors="replace")
    interactive = lines is None and sys.stdin is not None and sys.stdin.isatty()
    look = dict(width=100, force_terminal=True, color_system="truecolor") if given.record else {}
    if os.environ.get("NO_COLOR"):
        look["color_system"] = None
    console = Console(markup=False, emoji=False, highlight=False, record=bool(given.record), **look)
    talk, opened = open_with(given)
    sampling = {name: getattr(given, name) for name in ("temperature", "top_p", "max_tokens", "seed")}
    sampling["max_tokens"] = given.max_tokens or MAX_REPLY[talk.template.name != DIALOGUE]
    live = (interactive or bool(given.record)) and not given.json
    terminal = Terminal(talk, opened, sampling, console, given.json, live)
    if live:
        made = f"{printable(Path(given.model).name)}, {talk.session.method.name}, n = {talk.session.n}"
        terminal.print(f"{made}. Text is kept as memory slots only. /help lists commands, Ctrl-D exits.")
    if interactive:
        signal.signal(signal.SIGINT, terminal.interrupt)
    if lines is None:
        lines = terminal.typed() if interactive else sys.stdin or ()
    for line in lines:
        line = clean(line).strip()
        if not line:
            continue
        if given.record:
            console.print(f"\n> {line}", style="bold")
        try:
            terminal.line(line)
        except (ValueError, OSError, KeyboardInterrupt) as error:
            if not interactive:
                raise
            shown = f"error: {printable(str(error), 400)}" if str(error) else "stopped"
            console.print(shown, style="red", soft_wrap=True)
    if given.record:
        picture = given.record.endswith(".svg")
        write_text(Path(given.record), console.export_svg(title="python chat.py") if picture else console.export_text())


if __name__ == "__main__":
    options.run(main)
