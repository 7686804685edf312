"""Plain questions in a conversation: are the base model's ordinary abilities still there with an adapter?

    python -m experiments.abilities --model smollm2 --json abilities.json

Everyone reads the same three exchanges first, so each memory is in use: the base model and its step-1 adapter as text,
the other adapters compressed. Then each question is answered alone, greedily. Nobody counts right answers here: the
table, in Markdown, is for people to judge.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from experiments.common import adapter_folders, add_adapters
from minccm.extra.conversation import Conversation, find_step1, open_conversation
from minccm.fast.cpu_decode import CPUSession
from minccm.io import options as cli
from minccm.io.files import write_json
from minccm.io.options import open_base, whole
from minccm.io.templates import choose_template
from minccm.methods import get_method
from minccm.session import Session

SAID = [
    ("Hi! My name is Hannah.", "Nice to meet you, Hannah!"),
    ("I have a dog called Biscuit.", "Biscuit is a lovely name for a dog."),
    ("It is raining here today.", "That sounds like a good day to stay inside."),
]
QUESTIONS = [
    "What is the capital of France?",
    "What is the capital of Japan?",
    "What is the capital of Egypt?",
    "What is 2 + 3?",
    "What is 7 + 5?",
    "What is 6 times 7?",
    "How many days are in a week?",
    "What rhymes with cat?",
    "What rhymes with moon?",
    "Write a short poem about the sea.",
    "What is the opposite of hot?",
    "What is the opposite of early?",
    "Why is the sky blue?",
    "Explain what a volcano is.",
    "What is a bicycle?",
    "Who wrote Hamlet?",
    'Translate "good morning" into Spanish.',
    "Name three fruits.",
    "I cannot sleep. What can I do?",
    "How do I make a cup of tea?",
]


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    parser.set_defaults(model="smollm2")
    add_adapters(parser)
    parser.add_argument("--max-tokens", type=whole(1, 1024), default=80, help="of an answer")
    parser.add_argument("--width", type=whole(20), default=100, help="characters of an answer in the table")
    parser.add_argument("--json", type=Path, default=None, help="write all answers there, in full")
    return parser.parse_args()


def speakers(options) -> Iterator[tuple[str, Conversation]]:
    """The base model, its step-1 adapter, both with full context, and each adapter: a new conversation for each."""
    device, dtype = cli.device_and_dtype(options)
    model, tokenizer = open_base(options.model, options.init, device, dtype)
    session = (CPUSession if device.type == "cpu" else Session)(model, get_method("full"), 0)
    yield "base", Conversation(session, tokenizer, choose_template(options.model, options.template))
    folders = adapter_folders(options)
    opened = dict(init=options.init, template=options.template, device=device, dtype=dtype)
    if step1 := next(filter(None, map(find_step1, folders)), None):
        yield "step 1", open_conversation(options.model, step1, "full", **opened)
    for folder in folders:
        yield folder.name, open_conversation(options.model, folder, **opened)


def answers(talk: Conversation, max_tokens: int, label: str) -> list[str]:
    """The answer to each question, after the exchanges of SAID."""
    talk = talk.replay([{"user": user, "bot": bot} for user, bot in SAID])
    found = []
    for question in tqdm(QUESTIONS, label, leave=False):
        (prompt,) = talk.encode({"user": question})
        *_, answer = "", *talk.answer(prompt, max_tokens=max_tokens)
        found.append(answer)
    return found


def main() -> None:
    options = arguments()
    found = {label: answers(talk, options.max_tokens, label) for label, talk in speakers(options)}
    rows = [dict(zip(("question", *found), row)) for row in zip(QUESTIONS, *found.values())]
    print("| " + " | ".join(rows[0]) + " |\n" + "| --- " * len(rows[0]) + "|")
    for row in rows:
        cells = [textwrap.shorten(text, options.width, placeholder=" ...").replace("|", "\\|") for text in row.values()]
        print("| " + " | ".join(cells) + " |")
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    cli.run(main)
