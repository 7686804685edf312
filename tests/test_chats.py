"""Your own chats: what their lines must be, and the token ids, contexts and replies that training gets from them."""

import json
import random

import pytest
import torch

import data
from data import chats
from minccm.io.templates import PIECE, TEMPLATES
from minccm.io.tokenizer import Tokenizer
from minccm.methods import get_method
from minccm.sequence import build_sequence, encode_sample
from tests.test_templates import Letters, shown

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Why not?"},
]
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}


def exchanges(count: int) -> list[dict]:
    """A chat of short exchanges that can be told apart."""
    return [{"role": role, "content": f"{role} {i}"} for i in range(count) for role in ("user", "assistant")]


def text(ids: list[int]) -> str:
    return shown([(ids, 0)])[0]


def test_read(tmp_path):
    """Lines of messages; empty lines and other fields are passed over, and what follows the last reply is left out."""
    path = tmp_path / "chats.jsonl"
    lines = [{"messages": CHAT, "id": 7}, {"messages": [USER | {"name": "Ada"}, ASSISTANT, USER]}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert [chat["messages"] for chat in data.read_jsonl(path)] == [CHAT, [USER, ASSISTANT]]
    assert chats.is_chat(lines[0]) and not chats.is_chat({"contexts": [], "input": "", "target": "x"})


WRONG = {
    "not JSON": ("{", "line 2: not JSON"),
    "a list": ([], "line 2: this must be an object"),
    "no messages": ({}, "line 2: the entry 'messages' is missing"),
    "empty": ({"messages": []}, "line 2: the entry 'messages'"),
    "a string": ({"messages": ["Hi"]}, "line 2: the entry 'messages'"),
    "no content": ({"messages": [{"role": "user"}]}, "message 1: the entry 'content' is missing"),
    "content of parts": (
        {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]},
        "message 1: the entry 'content'",
    ),
    "other role": ({"messages": [USER, {"role": "tool", "content": "3"}]}, "message 2: the entry 'role'"),
    "user twice": ({"messages": [USER, USER]}, "message 2: user and assistant must take turns"),
    "late system": ({"messages": [USER, ASSISTANT, CHAT[0]]}, "message 3: user and assistant must take turns"),
    "empty content": (
        {"messages": [USER, ASSISTANT, USER, {"role": "assistant", "content": " "}]},
        "message 4: the content",
    ),
    "only control codes": (
        {"messages": [{"role": "user", "content": "\x04"}, ASSISTANT]},
        "message 1: the content is empty",
    ),
    "no reply": ({"messages": [USER]}, "the assistant says nothing"),
    "only a system prompt": ({"messages": [CHAT[0]]}, "the assistant says nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_lines(tmp_path, case):
    """A line that is no chat: the error has file, line, message and problem."""
    raw, says = WRONG[case]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + "\n" + (raw if isinstance(raw, str) else json.dumps(raw)))
    with pytest.raises(ValueError, match=f"chats.jsonl, line 2.*{says.removeprefix('line 2: ')}"):
        data.read_jsonl(path)


def test_empty_file(tmp_path):
    (tmp_path / "chats.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="the file is empty"):
        data.read_jsonl(tmp_path / "chats.jsonl")


def test_by_hand():
    """One context per exchange; the last one is input and output. The loss covers both replies and their ends."""
    sample = chats.encode_chat(Letters(), TEMPLATES["chatml"], CHAT)
    contexts, ((input, output),), answer_lengths = sample
    start = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert [text(ids) for ids in contexts] == [start + "Ho<|im_end|>"] and answer_lengths == [len("Ho") + 1]
    assert text(input) == "\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert text(output) == "Why not?<|im_end|>"
    sequence = build_sequence(get_method("ccm-concat"), 2, 2000, *sample)
    predicted = sequence.tokens.roll(-1)[sequence.loss_weights > 0]
    assert text(predicted.tolist()) == "Ho<|im_end|>Why not?<|im_end|>"
    assert (sequence.tokens[len(contexts[0]) :][:2] == torch.tensor([2000, 2001])).all()  # COMP after the exchange


def test_dialogue_by_hand():
    """In a dialogue each turn is a context, and the output ends with EOS."""
    contexts, ((input, output),), answer_lengths = chats.encode_chat(Letters(), TEMPLATES["dialogue"], CHAT)
    assert [text(ids) for ids in contexts] == ["<s>Be kind.", "\nUser: Hi", "\nBot: Ho", "\nUser: Why?"]
    assert answer_lengths == [0, 0, len(" Ho"), 0]
    assert text(input) == "\nBot:" and text(output) == " Why not?</s>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_long_turns(name):
    """Long turns are cut into several contexts, and each token of a long reply is predicted once."""
    template, reply = TEMPLATES[name], " ".join(f"word{i}" for i in range(400))
    messages = [{"role": "user", "content": "ask " * 300}, {"role": "assistant", "content": reply}] * 2
    contexts, ((input, output),), answer_lengths = chats.encode_chat(Letters(), template, messages)
    predicted = [text(ids[len(ids) - answer :]) for ids, answer in zip(contexts, answer_lengths) if answer]
    predicted = " ".join(predicted + [text(input)[-1:] + text(output)])
    assert sum(predicted.count(f"word{i} ") for i in range(399)) >= 2 * 399 - 2 and len(contexts) > 12
    assert all(len(ids) < 2 * PIECE + 60 for ids in contexts) and input and output


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("max_contexts", [0, 1, 2, 3, 7, 100])
def test_cut(name, max_contexts):
    """A chat with too many contexts is cut to exchanges in a row that begin as a chat begins."""
    template, tokenizer, ends = TEMPLATES[name], Letters(), set()
    for seed in range(20):
        messages = [CHAT[0]] + exchanges(10)
        sample = chats.encode_chat(tokenizer, template, messages, max_contexts, random.Random(seed))
        contexts, ((input, output),), answer_lengths = sample
        assert len(contexts) == len(answer_lengths) <= max_contexts
        begin = template.begin(tokenizer)
        assert (contexts + [input])[0][: len(begin)] == begin
        number = int(text(output).split("assistant ")[1][0])
        ends.add(number)
        replies = [text(ids[len(ids) - answer :]) for ids, answer in zip(contexts, answer_lengths) if answer]
        numbers = [int(reply.split("assistant ")[1][0]) for reply in replies]
        assert numbers == list(range(number - len(numbers), number))
        if max_contexts == 100:
            whole = chats.encode_chat(tokenizer, template, messages)
            assert sample == whole
    assert len(ends) > 2 or max_contexts == 100
    last = chats.encode_chat(tokenizer, template, messages, max_contexts)
    assert "assistant 9" in text(last.questions[0][1])


def test_one_long_exchange():
    """Of an exchange that is too long the last contexts stay, with its reply."""
    messages = [{"role": "user", "content": "ask " * 1000}, ASSISTANT]
    contexts, ((input, output),), _ = chats.encode_chat(Letters(), TEMPLATES["mistral"], messages, 2)
    assert len(contexts) == 2 and text(contexts[0]).startswith("<s>ask") and text(output) == "Ho</s>"


SAMPLE = {
    "contexts": ["Bot: Hello.", "User: I live in Oslo.", "Bot: Nice!", "User: Where do I live?", "Bot: In Oslo."],
    "answers": [4],
    "input": "User: Which city is mine?\nBot:",
    "target": "It is Oslo.",
    "questions": [["User: Do you know my city?\nBot:", "Oslo."], ["User: Where?\nBot:", "In Oslo."]],
}


def test_dialogue_as_a_chat(tiny):
    """A generated dialogue in ChatML: exchanges, the replies that answer, and several questions."""
    sample = chats.encode_dialogue(Letters(), TEMPLATES["chatml"], SAMPLE, max_questions=2)
    contexts, questions, answer_lengths = sample
    assert text(contexts[0]) == "<|im_start|>assistant\nHello.<|im_end|>"
    assert text(contexts[1]).endswith("I live in Oslo.<|im_end|>\n<|im_start|>assistant\nNice!<|im_end|>")
    assert answer_lengths == [0, 0, len("In Oslo.") + 1]
    inputs, outputs = zip(*questions)
    assert [text(ids) for ids in outputs] == ["It is Oslo.<|im_end|>", "Oslo.<|im_end|>"]
    assert text(inputs[1]) == "\n<|im_start|>user\nDo you know my city?<|im_end|>\n<|im_start|>assistant\n"
    contexts, ((input, _),), _ = chats.encode_dialogue(Letters(), TEMPLATES["chatml"], SAMPLE, reads_context=False)
    assert not contexts and text(input).startswith("<|im_start|>user\nWhich")
    ours = chats.encode_dialogue(Tokenizer(tiny), TEMPLATES["dialogue"], SAMPLE, max_questions=3)
    plain = encode_sample(Tokenizer(tiny), SAMPLE, max_questions=3)
    assert (ours.contexts, ours.questions) == (plain.contexts, plain.questions)


@pytest.mark.parametrize("contexts", [["Paris is a city."], ["User: Hi.", "User: Hi."], ["User: Hi."]])
def test_no_dialogue(contexts):
    """Contexts that are not turns cannot be written with a template."""
    with pytest.raises(ValueError, match="take turns|begin with User: or Bot:"):
        chats.encode_dialogue(Letters(), TEMPLATES["chatml"], SAMPLE | {"contexts": contexts, "answers": []})
