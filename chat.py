"""Talk to a model whose memory is compressed: each turn is read once, kept as a few slots, and forgotten.

python chat.py                                    # the model that ships, with ccm-concat
python chat.py --model DIR --adapter DIR          # any other
echo "My name is Ada." | python chat.py           # lines in, replies out
"""

import sys
from pathlib import Path

import torch
from rich.console import Console

from minccm import cli
from minccm.checkpoint import load_adapter
from minccm.methods import get_method
from minccm.online import Session
from minccm.tokenizer import Tokenizer

USER, BOT = "User:", "Bot:"  # how the shipped data marks who speaks


class Conversation:
    """A dialogue held in memory alone: what was said is text only until it is compressed."""

    def __init__(self, session: Session, tokenizer: Tokenizer):
        self.session, self.tokenizer = session, tokenizer
        self.text_tokens = 0  # what full context would hold by now

    def ids(self, text: str) -> list[int]:
        """A segment as in training: BOS before the first of the conversation, a newline before the others."""
        begin = self.tokenizer.newline if self.text_tokens else [self.tokenizer.bos_id]
        return begin + self.tokenizer.encode(text)

    def observe(self, text: str) -> None:
        """Reads and compresses one turn."""
        ids = self.ids(text)
        self.session.read(ids)
        self.text_tokens += len(ids)

    def reply(self, text: str, **sampling):
        """Yields the reply to a turn of the user piece by piece; afterwards both turns are compressed."""
        prompt = self.ids(f"{USER} {text}\n{BOT}")
        ids, said = [], ""
        for token in self.session.generate(prompt, **sampling):
            ids.append(token)
            now = self.tokenizer.decode(ids)
            if not now.endswith("\ufffd"):  # else a character of several tokens is not complete
                yield now[len(said) :]
                said = now
        self.observe(f"{USER} {text}")
        self.observe(f"{BOT} {said}")

    def status(self) -> str:
        """How much was compressed to how little."""
        memory = self.session.memory
        per_pair = memory.nbytes / max(len(memory), 1)
        return (
            f"{self.text_tokens} tokens in {memory.step} turns -> {len(memory)} memory slots, "
            f"{memory.nbytes / 1024:.0f} KiB (full context: {self.text_tokens} KV pairs, "
            f"{self.text_tokens * per_pair / 1024:.0f} KiB)"
        )


def open_conversation(options) -> Conversation:
    """The model, tokenizer and adapter that the options name; raises ValueError where they do not fit together."""
    model, tokenizer = cli.open_base(options)
    if options.method in ("full", "none"):
        return Conversation(Session(model, get_method(options.method), 0, adapted=False), tokenizer)
    folder = Path(options.adapter or Path(options.model) / (options.method or "ccm-concat"))
    if options.method:
        get_method(options.method)  # a wrong name is said as such
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there: train an adapter with train.py and give it with --adapter")
    method, n = load_adapter(model, folder, options.method, options.n, options.sink)
    return Conversation(Session(model, method, n, adapted=method.name != "full"), tokenizer)


def main():
    parser = cli.parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--adapter", default=None, help="adapter folder; by default ccm-concat in the model's folder")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    add("--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this probability in all")
    add("--max-tokens", type=int, default=64, help="longest reply")
    options = parser.parse_args()
    conversation = open_conversation(options)
    generator = torch.Generator(conversation.session.device).manual_seed(options.seed)
    sampling = dict(
        temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens, generator=generator
    )
    talking = sys.stdin.isatty()
    console = Console(highlight=False)
    if talking:
        import readline  # noqa: F401  line editing and history, in input()

        session = conversation.session
        console.print(f"[dim]{options.model}, {session.method.name}, n = {session.n}. Ctrl-D leaves.[/dim]")
    while True:
        try:
            text = input("> " if talking else "").strip()
        except EOFError:
            break
        if not text:
            continue
        try:
            for piece in conversation.reply(text, **sampling):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass  # the reply stops, the session goes on
        print()
        if talking:
            console.print(f"[dim]{conversation.status()}[/dim]")
    if talking:
        print()


if __name__ == "__main__":
    cli.run(main)
