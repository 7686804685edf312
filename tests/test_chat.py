"""chat.py, scripted: lines in, replies out; what it says of memory is so; a model told a fact answers with it."""

import subprocess
import sys

import pytest

import chat
from minccm import cli
from tests.conftest import ROOT


def talk(*lines, options=()):
    text = "".join(line + "\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "chat.py", "--device", "cpu", *options], input=text, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("method", ["full", "ccm-concat"])
def test_it_remembers(method):
    """Told a city, then talked to of other things, the shipped model still knows it: from the text, or from memory."""
    replies = talk(
        "My sister lives in Lisbon.",
        "",  # an empty line is no turn
        "The weather is lovely today.",
        "Do you remember where my sister lives?",
        options=["--method", method],
    )
    assert len(replies) == 3 and "Lisbon" in replies[-1], replies


def open_shipped(*arguments):
    parser = cli.parser("")
    parser.add_argument("--adapter", default=None)
    return chat.open_conversation(parser.parse_args(["--device", "cpu", *arguments]))


def test_status_line():
    """The line after each turn counts what was read and what is kept."""
    conversation = open_shipped()
    said = "".join(conversation.reply("My name is Ada."))
    turns = [conversation.tokenizer.encode(text) for text in ("User: My name is Ada.", f"Bot: {said}")]
    tokens = len(turns[0]) + len(turns[1]) + 2  # BOS and a newline
    n = conversation.session.n
    assert conversation.status().startswith(f"{tokens} tokens in 2 turns -> {2 * n} memory slots")
    assert f"(full context: {tokens} KV pairs" in conversation.status()


def test_pieces_make_the_reply():
    """What streams is the reply, whatever characters it is made of; nothing is printed before it is complete."""
    conversation = open_shipped()
    ids = conversation.tokenizer.encode("caf\u00e9 \U0001f980 ok")
    conversation.session.generate = lambda prompt, **sampling: iter(ids)
    pieces = list(conversation.reply("Hello."))
    assert "".join(pieces) == "caf\u00e9 \U0001f980 ok" and not any("\ufffd" in piece for piece in pieces)
