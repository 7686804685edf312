"""Chat templates: the ids of each family, written out, and the template that a model's files name."""

import json
import random
import textwrap

import pytest

from minccm.io import templates
from minccm.io.templates import PIECE, TEMPLATES, Segment, choose_template, get_template, pieces, recognize
from minccm.io.tokenizer import Tokenizer

CONTROL = {"<|im_start|>": 1001, "<|im_end|>": 1002, "<|endoftext|>": 1003}
CONTROL |= {"<|start_header_id|>": 1004, "<|end_header_id|>": 1005, "<|eot_id|>": 1006, "[INST]": 1007, "[/INST]": 1008}


class Letters:
    """A tokenizer whose ids can be read: the code of each letter; control tokens from 1001 on."""

    bos_id, eos_id, newline = 1000, 999, [10]

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def spaced(self, text: str) -> list[int]:
        return self.encode(" " + text)

    def control(self, text: str) -> int | None:
        return CONTROL.get(text)

    def mark(self, text: str) -> list[int]:
        return [CONTROL[text]]


def shown(segments: list[Segment]) -> list[str]:
    """Segments as text; | is where the reply begins, <s> and </s> are BOS and EOS."""
    names = {id: name for name, id in CONTROL.items()} | {1000: "<s>", 999: "</s>"}
    text = lambda ids: "".join(names.get(id) or chr(id) for id in ids)
    return [
        text(ids[: len(ids) - answer]) + "|" * bool(answer) + text(ids[len(ids) - answer :]) for ids, answer in segments
    ]


def write(name: str, *args, **more) -> list[str]:
    return shown(TEMPLATES[name].encode_exchange(Letters(), *args, **more))


def test_ids_by_hand():
    """The ids of one exchange in ChatML, all written out."""
    (segment,) = TEMPLATES["chatml"].encode_exchange(Letters(), "Hi", "Ho", first=False)
    user = [10, 1001, 117, 115, 101, 114, 10, 72, 105, 1002]  # newline <|im_start|> user newline Hi <|im_end|>
    reply = [10, 1001, 97, 115, 115, 105, 115, 116, 97, 110, 116, 10, 72, 111, 1002]
    assert segment == (user + reply, 3)


def test_chatml():
    start = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert write("chatml", "Hi") == [start]
    assert write("chatml", "Hi", "Ho") == [start + "|Ho<|im_end|>"]
    assert write("chatml", "Hi", system="Be kind.") == ["<|im_start|>system\nBe kind.<|im_end|>\n" + start]
    assert write("chatml", "Hi", "Ho", "Be kind.", first=False) == ["\n" + start + "|Ho<|im_end|>"]
    assert write("chatml", None, "Ho") == ["<|im_start|>assistant\n|Ho<|im_end|>"]


def test_llama3():
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    start = head.format("user") + "Hi<|eot_id|>" + head.format("assistant")
    assert write("llama-3", "Hi") == ["<s>" + start]
    assert write("llama-3", "Hi", "Ho", first=False) == [start + "|Ho<|eot_id|>"]
    assert write("llama-3", "Hi", system="Be kind.") == ["<s>" + head.format("system") + "Be kind.<|eot_id|>" + start]


def test_llama2_and_mistral():
    assert write("llama-2", "Hi", "Ho", "Be.") == ["<s>[INST]<<SYS>>\nBe.\n<</SYS>>\n\nHi[/INST]|Ho </s>"]
    assert write("llama-2", "Hi", first=False) == ["<s>[INST]Hi[/INST]"]
    assert write("mistral", "Hi", "Ho", "Be.") == ["<s>[INST]Be.\n\nHi[/INST]|Ho</s>"]
    assert write("mistral", "Hi", first=False) == ["[INST]Hi[/INST]"]


def test_dialogue():
    assert write("dialogue", "Hi") == ["<s>User: Hi\nBot:"]
    assert write("dialogue", "Hi", "Ho", "Be.") == ["<s>Be.", "\nUser: Hi", "\nBot:| Ho"]
    assert write("dialogue", "Hi", "", first=False) == ["\nUser: Hi", "\nBot:"]
    assert write("dialogue", None, "Ho") == ["<s>Bot:| Ho"]


def test_as_their_makers_write_them(tiny):
    """LLaMA 2's and Mistral's formats with a sentencepiece tokenizer, where [INST] is plain text."""
    tokenizer = Tokenizer(tiny)
    encode = tokenizer.encode
    first = [1, *encode("[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi. [/INST] Ho. "), 2]
    (segment,) = TEMPLATES["llama-2"].encode_exchange(tokenizer, "Hi.", "Ho.", "Be kind.")
    assert segment.ids == first
    (segment,) = TEMPLATES["mistral"].encode_exchange(tokenizer, "Hi.", "Ho.", "Be kind.")
    assert segment.ids == [1, *encode("[INST] Be kind.\n\nHi. [/INST] Ho."), 2]
    (segment,) = TEMPLATES["llama-2"].encode_exchange(tokenizer, "Why?", first=False)
    assert segment.ids == [1, *encode("[INST] Why? [/INST]")]
    (segment,) = TEMPLATES["mistral"].encode_exchange(tokenizer, "Why?", first=False)
    assert segment.ids == encode("[INST] Why? [/INST]")


@pytest.mark.parametrize("name", TEMPLATES)
def test_reply_continues_the_input(name):
    """Without its reply an exchange is the begin of the whole one: generated and read replies are the same."""
    template, tokenizer = TEMPLATES[name], Letters()
    for first in (True, False):
        *contexts, input = template.encode_exchange(tokenizer, "word " * 300, first=first)
        whole = template.encode_exchange(tokenizer, "word " * 300, "Yes.", first=first)
        assert [ids for ids, _ in contexts] == [ids for ids, _ in whole[: len(contexts)]] and len(contexts) == 3
        reply = template.encode_reply(tokenizer, "Yes.")
        if name == "dialogue":  # each turn is a context, with a line break between
            assert input.ids + reply == whole[3].ids + whole[4].ids + [tokenizer.eos_id]
        else:
            assert input.ids + reply == whole[3].ids and whole[3].answer == len(reply)


@pytest.mark.parametrize("name", TEMPLATES)
def test_long_texts(name):
    """A long text takes several contexts, no word is lost, and all tokens of a long reply are the reply's."""
    user, reply = (" ".join(f"{word}{i}" for i in range(300)) for word in ("ask", "tell"))
    segments = TEMPLATES[name].encode_exchange(Letters(), user, reply, system="say " * 150)
    text = " ".join(shown(segments)).replace("\n", " ").replace("[INST]", "").replace("[/INST]", "")
    words = [word for word in text.replace("|", " ").replace("<", " ").split() if word.startswith(("ask", "tell"))]
    assert words == f"{user} {reply}".split() and text.count("say") == 150
    assert len(segments) >= 12 and all(len(ids) < 2 * PIECE + 60 for ids, _ in segments)
    begin = 4 if name == "dialogue" else 0  # each context of a dialogue's reply begins with "Bot:"
    *_, first, second, third, last = segments
    assert first.answer > 0 and all(answer + begin + bool(begin) == len(ids) for ids, answer in (second, third, last))


@pytest.mark.parametrize("name", TEMPLATES)
def test_context(name):
    """A text without a reply is read as a system message where there is such a role, and as text elsewhere."""
    template = TEMPLATES[name]
    (first,) = shown([Segment(ids) for ids in template.encode_context(Letters(), "The sky is blue.")])
    (later,) = shown([Segment(ids) for ids in template.encode_context(Letters(), "The sky is blue.", first=False)])
    assert "The sky is blue." in first and "user" not in first
    assert first.startswith("<s>") == (name != "chatml") and "<s>" not in later
    assert later.startswith("\n") == (name in ("chatml", "dialogue"))
    assert len(template.encode_context(Letters(), "word " * 200)) == 3


def test_stop_ids():
    assert TEMPLATES["chatml"].stop_ids(Letters()) == (999, 1002, 1003)
    assert TEMPLATES["llama-3"].stop_ids(Letters()) == (999, 1006)
    assert [TEMPLATES[name].stop_ids(Letters()) for name in ("dialogue", "llama-2", "mistral")] == [(999,)] * 3


def test_wrong_tokenizer(tiny):
    """A template with control tokens that the model does not have is refused."""
    for name in ("chatml", "llama-3"):
        with pytest.raises(ValueError, match=f"has no <.*{name}"):
            TEMPLATES[name].encode_exchange(Tokenizer(tiny), "Hi")
    with pytest.raises(ValueError, match="alpaca.*chatml"):
        get_template("alpaca")


def test_recognized(tmp_path):
    """A template is recognized by its marks, or by the folder's name, or it is dialogue; --template has priority."""
    names = {"Llama-2-7b-chat-hf": "llama-2", "Mistral-7B-Instruct-v0.2": "mistral", "tiny": "dialogue"}
    for folder, name in names.items():
        assert recognize(tmp_path / folder).name == name
    assert choose_template(tmp_path / "tiny").name == "dialogue"
    assert choose_template(tmp_path / "tiny", "mistral") == TEMPLATES["mistral"]
    texts = {
        "{{ '[INST] ' + message.content }}": "mistral",
        "{{ '[INST] <<SYS>>' }}": "llama-2",
        "{{ '<|start_header_id|>' + message.role }}": "llama-3",
        "{{ '<|im_start|>' + message.role }}": "chatml",
        "{{ '<|user|>' }}": "dialogue",
    }
    for text, name in texts.items():
        for value in (text, [{"name": "tool", "template": ""}, {"name": "default", "template": text}]):
            (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
            assert recognize(tmp_path).name == name
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra": "<|im_start|>", "chat_template": 3}))
    assert recognize(tmp_path).name == "dialogue"
    (tmp_path / "chat_template.jinja").write_text("<|im_start|>")
    assert recognize(tmp_path).name == "chatml"


def test_default_system(tmp_path):
    """The system prompt that a ChatML template inserts by default is found, however its line breaks are written."""
    for line in ("\n", "\\n"):
        text = f"{{{{ '<|im_start|>system{line}You are Qwen. You help.<|im_end|>{line}' }}}}"
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": text}))
        assert recognize(tmp_path).default_system == "You are Qwen. You help."
    for text in ("<|im_start|>system\n' + message.content + '<|im_end|>", "<|im_start|>system\n{{ x }}<|im_end|>"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": text}))
        assert recognize(tmp_path).default_system == ""
    template = recognize(tmp_path)
    assert choose_template(tmp_path, "chatml") == template


def test_a_template_is_never_executed(tmp_path):
    """A template is text: no code in it is run."""
    text = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**9) %}[INST]{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": text}))
    assert recognize(tmp_path).name == "mistral"
    assert not hasattr(templates, "jinja2")


def test_pieces():
    """Texts are cut as textwrap does it, in linear time; only a word that is too long is cut itself."""
    choose = random.Random(0)
    for _ in range(300):
        words = [
            choose.choice(["a", "bb ", "c\n", " ", "dd", "\n\n", "e" * choose.randrange(1, 90)]) for _ in range(150)
        ]
        text = "".join(words)
        expected = textwrap.wrap(text, PIECE, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False)
        assert pieces(text) == (expected or [""])
    assert pieces("") == pieces(" \n") == [""]
    long = pieces("x" * 5000)
    assert "".join(long) == "x" * 5000 and all(len(part) <= PIECE for part in long)
    assert len(pieces("ab " * 1_000_000)) > 7000
