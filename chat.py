"""Talk to a model whose memory is compressed: each turn is read once, kept as a few slots, and forgotten.

python chat.py                                    # the model that ships, with ccm-concat; /help lists what can be typed
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

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conversation import BOT, FORMATS, USER, Conversation, clean, open_conversation
from minccm import cli
from minccm.files import write_text
from minccm.methods import METHODS


class Terminal:
    """What a line that is typed does: talk, or one of the commands do_NAME, whose docstring /help shows."""

    def __init__(self, talk: Conversation, opened: dict, sampling: dict, console: Console, as_json: bool, live: bool):
        self.talk, self.opened, self.sampling, self.console = talk, opened, sampling, console
        self.as_json, self.live = as_json, live  # live: with status lines, as in a terminal
        self.replying = self.stopped = False

    def line(self, text: str) -> None:
        """Does what one line says. Raises ValueError or OSError, in one line, where it cannot be done."""
        if not text.startswith("/"):
            return self.say(text)
        name, _, argument = text[1:].partition(" ")
        command = getattr(self, f"do_{name}", None)
        if command is None:
            raise ValueError(f"there is no command /{name}: /help lists them")
        return command(argument.strip())

    def say(self, text: str) -> None:
        """Prints the reply as it is made; one that is stopped counts as far as it was said."""
        self.replying, self.stopped = True, False
        pieces, start = self.talk.reply(text, **self.sampling), time.perf_counter()
        for piece in pieces:
            if not self.as_json:
                self.console.out(piece, end="", highlight=False)
            if self.stopped:
                pieces.close()
        if self.as_json:
            said, seconds = self.talk.turns[-1]["bot"], round(time.perf_counter() - start, 4)
            self.tell("", user=text, bot=said, **self.talk.status(), seconds=seconds)
        else:
            self.console.out("")
        if self.live:
            self.console.print(status_line(**self.talk.status()), soft_wrap=True)

    def interrupt(self, *_) -> None:
        """Ctrl-C: stops a reply, or what else is being done, but not the session."""
        if not self.replying:
            raise KeyboardInterrupt
        self.stopped = True

    def typed(self) -> Iterator[str]:
        """Lines from the terminal, with editing and history where Python has them. Ctrl-D ends them."""
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

    def tell(self, shown, **data) -> None:
        """Prints what a command has to say: for people, or as JSON."""
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
        self.tell(table, help=dict(commands))

    def do_memory(self, _):
        """what is kept: slots by time step, bytes, and the words each COMP token listened to most (last 16 steps)"""
        rows, status, method = self.talk.kept(), self.talk.status(), self.talk.session.method
        table = self.table("step", "slots", "each COMP token listened to", "the text, now gone")
        for row in rows[-16:]:
            words = dict.fromkeys(" ".join(best[: 6 // len(row["words"]) or 1]) for best in row["words"])  # each once
            table.add_row(
                str(row["step"]), str(row["slots"] or ""), " | ".join(words), textwrap.shorten(row["text"], 60)
            )
        self.tell(table, memory=rows, **status)
        if not self.as_json:
            merged = f", the mean of steps 1 to {status['step']}" if method.rate and method.comp else ""
            self.tell(f"{method.name}: {status['slots']} slots{merged}, {status['bytes']:,} bytes")

    def do_compare(self, text):
        """TEXT: the same question answered from memory, full context and no context; the conversation stays as it is"""
        table = self.table("from", "slots", "answer")
        answers = self.talk.compare(need(text, "a question"), **self.sampling)
        for name, (answer, pairs) in answers.items():
            table.add_row(name, str(pairs), answer)
        self.tell(table, compare=text, answers={k: {"answer": a, "slots": pairs} for k, (a, pairs) in answers.items()})

    def do_method(self, name):
        """NAME: concat, merge, full or any other: the conversation so far is compressed anew"""
        name = name if need(name, "a name") in METHODS else f"ccm-{name}"
        adapter = self.opened["adapter"]
        if adapter and name != self.opened["method"]:
            adapter = Path(adapter).parent / name  # adapters of one model lie side by side
        other = open_conversation(**self.opened | {"method": name, "adapter": adapter})
        self.talk = self.talk.retold(self.talk.turns, other.session, other.made_for["adapter"])
        self.tell(f"{name}, everything read anew: {len(other.session.memory)} slots", method=name, **self.talk.status())

    def do_save(self, path):
        """FILE: the conversation's memory, to go on from another day"""
        self.talk.save(need(path, "a file"))
        self.tell(f"{len(self.talk.session.memory)} slots are in {path}", save=path)

    def do_load(self, path):
        """FILE: goes on from a saved memory"""
        self.talk.load(need(path, "a file"))
        self.tell(f"{len(self.talk.session.memory)} slots of {len(self.talk.turns)} turns", load=path)

    def do_forget(self, _):
        """begins a new conversation"""
        self.talk = self.talk.retold([])
        self.tell("nothing is kept", forget=True)

    def do_undo(self, _):
        """takes the last turn back"""
        if not self.talk.turns:
            raise ValueError("there is no turn to take back")
        self.talk = self.talk.retold(self.talk.turns[:-1])
        self.tell(f"{len(self.talk.turns)} turns are left", undo=True, **self.talk.status())

    def do_export(self, path):
        """FILE: the transcript"""
        said = [turn.get("context") or f"{USER} {turn['user']}\n{BOT} {turn['bot']}" for turn in self.talk.turns]
        write_text(Path(need(path, "a file")), "".join(text + "\n" for text in said))
        self.tell(f"{len(said)} turns are in {path}", export=path)


def need(argument: str, what: str) -> str:
    """The argument of a command. Raises ValueError if there is none."""
    if not argument:
        raise ValueError(f"this command wants {what} behind it: see /help")
    return argument


def status_line(step, slots, bytes, full_slots, full_bytes, tokens_per_second) -> Text:
    """The time step, what memory holds, and the share that this is of full context, as a number and as a bar."""
    filled = min(12, max(slots > 0, round(12 * slots / max(full_slots, 1))))
    size = lambda count: f"{count / 1024:.0f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"
    numbers = f" {slots} slots {size(bytes)} | full context {full_slots}, {size(full_bytes)}"
    bar = ("\u2588" * filled, "cyan"), ("\u2591" * (12 - filled), "dim")
    return Text.assemble((f"step {step} ", "dim"), *bar, (f"{numbers} | {tokens_per_second:.0f} tokens/s", "dim"))


def main():
    parser = cli.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--adapter", default=None, help="adapter folder; by default ccm-concat in the model's folder")
    add("--format", choices=FORMATS, default=None, help="how turns are spelled; by default as the model's files tell")
    add("--system", default="", help="what the model is told before the first turn")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    add("--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this probability in all")
    add("--max-tokens", type=int, default=64, help="longest reply")
    add("--compile", action="store_true", help="on a GPU: faster answers, once the first has waited for the compiler")
    add("--script", metavar="FILE", default=None, help="play the lines of a file, and leave")
    add("--json", action="store_true", help="print a JSON object a line")
    add("--record", metavar="FILE", default=None, help="with --script: keep a picture (.svg) or text of the session")
    options = parser.parse_args()
    sampling = {name: getattr(options, name) for name in ("temperature", "top_p", "max_tokens", "seed")}
    if not (options.temperature >= 0 and 0 < options.top_p <= 1 and options.max_tokens > 0):
        raise ValueError("--temperature is to be 0 or more, --top-p above 0 and at most 1, --max-tokens 1 or more")
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):  # whatever bytes come in, and whatever a terminal cannot show, do no harm
            stream.reconfigure(encoding="utf-8" if stream is sys.stdin else None, errors="replace")
    interactive = not options.script and sys.stdin is not None and sys.stdin.isatty()
    look = dict(width=100, force_terminal=True, color_system="truecolor") if options.record else {}
    if os.environ.get("NO_COLOR"):
        look["color_system"] = None
    console = Console(markup=False, emoji=False, highlight=False, record=bool(options.record), **look)
    names = "model", "adapter", "method", "init", "n", "sink", "format", "system", "compile"
    opened = {name: getattr(options, name) for name in names}
    opened["device"], opened["dtype"] = cli.device_and_dtype(options)
    if options.compile and opened["device"].type != "cuda":
        raise ValueError("--compile is for a GPU: leave it out here")
    talk = open_conversation(**opened)
    opened["method"] = talk.session.method.name
    live = (interactive or bool(options.record)) and not options.json
    terminal = Terminal(talk, opened, sampling, console, options.json, live)
    if live:
        made = f"{Path(options.model).name}, {talk.session.method.name}, n = {talk.session.n}"
        terminal.tell(f"{made}. What is read is kept as memory slots alone. /help lists commands, Ctrl-D leaves.")
    if interactive:
        signal.signal(signal.SIGINT, terminal.interrupt)
    if options.script:
        lines = Path(options.script).read_text("utf-8", errors="replace").split("\n")
    else:
        lines = terminal.typed() if interactive else sys.stdin or ()
    for line in lines:
        line = clean(line).strip()
        if not line:
            continue
        if options.record:
            console.out(f"\n> {line}", highlight=False, style="bold")
        try:
            terminal.line(line)
        except (ValueError, OSError, KeyboardInterrupt) as error:
            if not interactive:
                raise
            console.print(f"error: {error}" if str(error) else "stopped", style="red", soft_wrap=True)
    if options.record:
        picture = options.record.endswith(".svg")
        write_text(
            Path(options.record), console.export_svg(title="python chat.py") if picture else console.export_text()
        )


if __name__ == "__main__":
    cli.run(main)
