"""chat.py: it tells the truth about memory; a saved conversation continues the same; no input does harm."""

import contextlib
import gc
import io
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chat
from experiments import abilities
from minccm.extra import conversation
from minccm.extra.conversation import Conversation, clean, open_conversation
from minccm.extra.inside import ListeningSession
from minccm.fast.conversations import FastSession
from minccm.io import gguf
from minccm.io.adapters import save_adapter
from minccm.io.memory_file import NAMES as FIELDS
from minccm.io.options import TINY, has_bf16, load_method
from minccm.io.templates import PIECE, TEMPLATES, pieces
from minccm.io.weights import load_model
from minccm.methods import PAD, get_method
from minccm.sequence import encode_sample
from tests.conftest import ROOT

SAID = ["My name is Ada.", "The sun is shining today.", "What is my name?"]
IN_ROOT = dict(capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
quick = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*lines, options): what chat.py prints for these lines on its standard input, line by line."""

    def main(*lines, options=(), text=b""):
        monkeypatch.setattr("sys.argv", ["chat.py", "--device", "cpu", *map(str, options)])
        given = text or "".join(line + "\n" for line in lines).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
        chat.main()
        return capsys.readouterr().out.splitlines()

    return main


def tell(talk, *lines, **sampling):
    return ["".join(talk.reply(line, **sampling)) for line in lines]


def same(a, b):
    """Do two conversations hold the same memory, number for number?"""
    a, b = a.session.memory, b.session.memory
    counts = (a.step, a.text, a.tokens) == (b.step, b.text, b.tokens)
    infos = zip(vars(a.info).values(), vars(b.info).values())
    return counts and torch.equal(a.keys, b.keys) and all(torch.equal(x, y) for x, y in infos)


@pytest.fixture(scope="module")
def opened():
    return {name: open_conversation(method=name) for name in ("ccm-concat", "ccm-merge", "full", "none")}


@pytest.fixture
def fresh(opened):
    """fresh(method, template, system): a new conversation with the model that ships."""

    def begin(method="ccm-concat", template="dialogue", system=""):
        made = opened[method].replay([])
        return Conversation(made.session, made.tokenizer, TEMPLATES[template], system, made.made_for["adapter"])

    return begin


# ----------------------------------------------------------------------------------------------------- replies


@pytest.mark.parametrize("method", ["full", "ccm-concat"])
def test_it_remembers(run, method):
    """Told a city, then talked to of other things, the shipped model still knows it: from the text, or from memory."""
    replies = run(
        "My sister lives in Lisbon.",
        "",  # an empty line is no turn
        "The weather is lovely today.",
        "Do you remember where my sister lives?",
        options=["--method", method],
    )
    assert len(replies) == 3 and "Lisbon" in replies[-1], replies


def test_pieces_make_the_reply(fresh):
    """What streams is the reply, whatever characters it is made of; nothing is printed before it is complete."""
    talk = fresh()
    ids = talk.tokenizer.encode("caf\u00e9 \U0001f980 ok")
    talk.session.generate = lambda prompt, **sampling: iter(ids)
    pieces = list(talk.reply("Hello."))
    assert "".join(pieces) == "caf\u00e9 \U0001f980 ok" and not any("\ufffd" in piece for piece in pieces)


def test_dialogue_is_written_as_in_training(fresh):
    """Contexts and input of a dialogue are, token for token, those of a training sample."""
    talk = fresh()
    sample = {
        "contexts": ["User: Hi there!", "Bot: Hello! How are you?"],
        "input": "User: Fine.\nBot:",
        "target": "Oh.",
    }
    contexts, [(prompt, _)], _ = encode_sample(talk.tokenizer, sample)
    turn = {"user": "Hi there!", "bot": "Hello! How are you?"}
    assert talk.encode(turn) == contexts
    talk._read_turn(turn)
    assert talk.encode({"user": "Fine."}) == [prompt]


@pytest.mark.parametrize("template", ["llama-2", "mistral"])
def test_templates(fresh, template):
    """LLaMA-2-chat's and Mistral-instruct's own templates, as their makers write them; an exchange is one time step."""
    talk = fresh(template=template, system="Be kind.")
    tell(talk, "Hi.", max_tokens=3)
    said, encode, prompt = talk.turns[0]["bot"], talk.tokenizer.encode, talk.encode({"user": "Why?"})
    if template == "llama-2":  # <s>[INST] <<SYS>> ... <</SYS>> user [/INST] reply </s><s>[INST] user [/INST]
        first = [1, *encode(f"[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi. [/INST] {said} "), 2]
        second = [1, *encode("[INST] Why? [/INST]")]
    else:  # <s>[INST] user [/INST] reply</s>[INST] user [/INST]
        first = [1, *encode(f"[INST] Be kind.\n\nHi. [/INST] {said}"), 2]
        second = encode("[INST] Why? [/INST]")
    assert talk.encode(talk.turns[0], first=True) == [first] and len(talk.kept()) == 1
    assert prompt == [second]


@pytest.mark.parametrize("template", ["dialogue", "llama-2", "mistral"])
def test_a_system_prompt_comes_first(fresh, template):
    """It is read once, before anything else. Without context, each prompt has it."""
    talk = fresh(template=template, system="Be kind.")
    tell(talk, "Hi.", "Why?", max_tokens=2)
    assert [turn.get("system") for turn in talk.turns] == ["Be kind.", None]
    texts = [row["text"] for row in talk.kept()]
    assert "Be kind." in texts[0] and not any("Be kind." in text for text in texts[1:])
    talk = fresh(template=template, system="Be kind.")
    talk.observe("It rains.")
    tell(talk, "Hi.", max_tokens=2)
    texts = [row["text"] for row in talk.kept()]
    assert texts[:2] == ["Be kind.", "It rains."] and not any("Be kind." in text for text in texts[1:])
    talk = fresh("none", template, "Be kind.")
    prompts = []
    talk.answer = lambda prompt, **_: (prompts.append(talk.tokenizer.decode(prompt)), iter(["Oh."]))[1]
    tell(talk, "Hi.", "Why?")
    assert all(("Be kind." in prompt) == (template != "dialogue") for prompt in prompts) and len(prompts) == 2


def test_long_paste(fresh):
    """A long text is read in pieces, each compressed to n slots, and no word of it is lost."""
    talk, words = fresh(), [f"word{i}" for i in range(400)]
    tell(talk, " ".join(words), max_tokens=2)
    steps = [row["text"].removeprefix("User: ").split() for row in talk.kept()]
    assert sum(steps[:-1], []) == words and len(steps) > 6
    assert all(row["slots"] == talk.session.n for row in talk.kept())
    assert all(len(text) <= PIECE for text in pieces("x" * 5000))


# ---------------------------------------------------------------------------------------------------- memory


def test_status(fresh):
    """The status counts text read, pairs held, and the pairs of full context."""
    talk, full = fresh(), fresh("full")
    tell(talk, SAID[0])
    full._read_turn(talk.turns[0])
    status, n = talk.status(), talk.session.n
    assert (status["step"], status["slots"]) == (2, 2 * n) and status["bytes"] == talk.session.memory.nbytes
    assert status["full_slots"] == len(full.session.memory) and status["full_bytes"] == full.session.memory.nbytes
    assert f"{2 * n} slots" in chat.status_line(**status).plain


@pytest.mark.parametrize("method", ["ccm-concat", "ccm-merge"])
def test_memory_does_not_grow(fresh, method):
    """Concat keeps exactly n slots a turn, merge n in all; no other tensor stays."""

    def tensor_bytes():
        gc.collect()
        total = 0
        for thing in gc.get_objects():
            if type(thing) is torch.Tensor:
                with contextlib.suppress(RuntimeError):  # what other tests' vmap has left has no size
                    total += thing.nbytes
        return total

    talk, held = fresh(method), []
    n = talk.session.n
    for turns in range(2, 22, 2):
        tell(talk, SAID[turns % 3], max_tokens=3)
        memory = talk.session.memory
        assert len(memory) == (n if method == "ccm-merge" else n * turns) and not memory.keys.requires_grad
        info = sum(field.nbytes for field in vars(memory.info).values())
        held.append(tensor_bytes() - memory.nbytes - info - talk.session.heard.nbytes)
    assert held[-1] <= held[1]


def test_what_is_attended_to(fresh):
    """/memory shows, for each time step and COMP token, words of that very step."""
    talk = fresh("ccm-merge")
    tell(talk, *SAID[:2])
    rows = talk.kept()
    assert [row["slots"] for row in rows] == [0, 0, 0, talk.session.n]
    for row in rows:
        assert len(row["words"]) == talk.session.n
        assert all(word in row["text"] and word not in ("User:", "Bot:") for best in row["words"] for word in best)


def test_early_stop_is_a_turn(fresh):
    """A reply that is stopped is a turn up to there: memory and transcript agree."""
    talk, other = fresh(), fresh()
    reply = talk.reply(SAID[0])
    said = next(reply) + next(reply)
    reply.close()
    assert said and talk.turns[0]["bot"] == said
    other._read_turn({"user": SAID[0], "bot": said})
    assert same(talk, other)


@pytest.mark.parametrize("fails", [1, 2])
def test_turn_is_kept_whole_or_not_at_all(fresh, fails):
    """Where reading a turn fails midway, neither memory nor transcript has it."""
    talk, before = fresh(), fresh()
    tell(talk, SAID[0])
    tell(before, SAID[0])
    read, calls = talk.session.read, []

    def failing(ids):
        calls.append(ids)
        if len(calls) == fails:
            raise KeyboardInterrupt
        return read(ids)

    talk.session.read = failing
    with pytest.raises(KeyboardInterrupt):
        tell(talk, SAID[1])
    assert same(talk, before) and talk.turns == before.turns and talk.text_tokens == before.text_tokens


def test_replay_with_another_method(fresh):
    """/method and /undo compress the conversation again: the memory is as if it had been so from the beginning."""
    talk, other = fresh(), fresh("ccm-merge")
    tell(talk, *SAID)
    for turn in talk.turns:
        other._read_turn(turn)
    assert same(talk.replay(talk.turns, fresh("ccm-merge").session), other)
    shorter = fresh()
    tell(shorter, *SAID[:2])
    assert same(talk.replay(talk.turns[:-1]), shorter)


def test_compiled(fresh, run):
    """--compile says and keeps the same, here by its buffers alone, and after /forget; without a GPU it is refused."""
    compiled = open_conversation(compile=True)
    for talk in (compiled, compiled.replay([])):
        plain = fresh()
        plain.session = ListeningSession(plain.session.model, plain.session.method, plain.session.n)
        assert isinstance(talk.session, FastSession)
        assert tell(talk, *SAID) == tell(plain, *SAID) and same(talk, plain)
    with pytest.raises(ValueError, match="leave it out"):
        run(SAID[0], options=["--compile"])


def test_comparing_changes_nothing(fresh):
    """/compare answers from memory, full and no context, as these would; the conversation does not change."""
    talk, full, none = fresh(), fresh("full"), fresh("none")
    tell(talk, SAID[0])
    before = talk.replay(talk.turns)
    answers = talk.compare(SAID[2])
    assert same(talk, before) and len(talk.turns) == 1
    full._read_turn(talk.turns[0])
    expected = {"ccm-concat": before, "full": full, "none": none}
    sizes = {name: len(other.session.memory) for name, other in expected.items()}
    assert answers == {name: (tell(other, SAID[2])[0], sizes[name]) for name, other in expected.items()}


# -------------------------------------------------------------------------------------------- other models and adapters


def random_adapter(folder, model, name, n):
    """Adds an adapter of random numbers to a model, and saves it."""
    model.add_adapter(n, r=2)
    for tensor in model.adapter_state().values():
        torch.nn.init.normal_(tensor, std=0.05)
    save_adapter(folder, model, get_method(name), n)


@pytest.fixture
def with_step1(tmp_path, tiny, monkeypatch):
    """A model's folder without adapters; data/smollm2 has one for it, on top of a step-1 adapter."""
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).symlink_to(tiny / name)
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(conversation, "SMOLLM2", shipped)
    model = load_model(tmp_path / "model")
    random_adapter(shipped / "ccm-concat" / "init", model, "full", 0)
    for projection in model.projections():
        projection.merge_lora()
    random_adapter(shipped / "ccm-concat", model, "ccm-concat", 2)
    shutil.copytree(shipped / "ccm-concat", shipped / "ccm-merge")
    info = json.loads((shipped / "ccm-merge" / "adapter.json").read_text())
    (shipped / "ccm-merge" / "adapter.json").write_text(json.dumps(info | {"method": "ccm-merge"}))
    return tmp_path / "model", model


def test_full_context_stands_on_step1(with_step1, tmp_path):
    """The adapter is found for its base; with full and no context, too, the base model has the step-1 adapter in it."""
    folder, expected = with_step1
    weight = expected.layers[0].self_attn.q_proj.weight
    talks = [open_conversation(folder, method=name) for name in (None, "full", "none")]
    for talk in talks:
        assert torch.equal(talk.session.model.layers[0].self_attn.q_proj.weight, weight)
    talk, full, none = talks
    answers = {name: answer for name, (answer, _) in talk.compare(SAID[2], max_tokens=8).items()}
    assert answers["full"] == tell(full, SAID[2], max_tokens=8)[0]
    assert answers["none"] == tell(none, SAID[2], max_tokens=8)[0]
    full.save(tmp_path / "a.memory")
    with pytest.raises(ValueError, match="another adapter"):  # the base has the same norms, but no step 1
        open_conversation(method="full").load(tmp_path / "a.memory")
    with pytest.raises(ValueError, match="no adapter is there"):
        open_conversation(folder, method="gist")


def test_methods_of_a_model_with_step1(with_step1, run):
    """/method goes from one adapter to the other, and to full context, with the folder given or found."""
    folder, _ = with_step1
    for options in ([], ["--adapter", folder.parent / "shipped" / "ccm-concat"]):
        lines = SAID[0], "/method merge", "/method full", "/method concat"
        rows = [
            json.loads(row) for row in run(*lines, options=["--model", folder, "--json", "--max-tokens", 4, *options])
        ]
        assert [row["method"] for row in rows[1:]] == ["ccm-merge", "full", "ccm-concat"]
        assert [row["slots"] for row in rows] == [4, 2, rows[0]["full_slots"], 4]


def test_a_method_from_a_file(tmp_path, tiny, run):
    """An adapter of a method from a file needs --method FILE.py; /method goes away from it and back."""
    model, method = load_model(tiny), load_method(str(ROOT / "examples" / "carousel.py"))
    model.add_adapter(2, r=2)
    save_adapter(tmp_path / "carousel", model, method, 2)
    options = ["--adapter", tmp_path / "carousel", "--json", "--max-tokens", 2]
    with pytest.raises(ValueError, match="give it with --method FILE.py"):
        run(SAID[0], options=options)
    options += ["--method", ROOT / "examples" / "carousel.py"]
    rows = [json.loads(row) for row in run(SAID[0], "/method full", "/method carousel", options=options)]
    assert [row["slots"] for row in rows] == [4, rows[0]["full_slots"], 4]
    with pytest.raises(ValueError, match="no method|unknown method"):
        run(f"/method {ROOT / 'examples' / 'carousel.py'}", options=options)


def test_smollm2(run):
    """A real model, if its packages are installed: with its own chat template, an exchange is one step."""
    for package in ("gguf", "tiktoken"):
        pytest.importorskip(package)
    try:
        gguf.find_model("smollm2")
    except ValueError as problem:
        pytest.skip(str(problem))
    options = "--model", "smollm2", "--method", "full", "--json", "--max-tokens", 8
    reply, memory, compared = map(json.loads, run("Hi!", "/memory", "/compare Who are you?", options=options))
    assert reply["bot"] and reply["step"] == 1 and reply["slots"] == reply["full_slots"]
    numbers = 2 * 30 * 3 * 64  # of keys and values, in 30 layers of 3 heads
    assert reply["bytes"] == reply["slots"] * numbers * (2 if has_bf16() else 4)
    assert memory["memory"][0]["text"].startswith("system\nYou are a helpful AI assistant named SmolLM")
    assert memory["memory"][0]["text"].endswith(f"user\nHi!\nassistant\n{reply['bot']}")
    assert list(compared["answers"]) == ["full", "none"]


def test_abilities(monkeypatch, capsys, tmp_path):
    """Every question has an answer of the base, of full context with step 1 if there is one, and of each adapter."""
    answers = tmp_path / "answers.json"
    options = ["--model", str(TINY), "--max-tokens", "3", "--device", "cpu", "--json", str(answers)]
    monkeypatch.setattr("sys.argv", ["abilities", *options])
    abilities.main()
    rows = json.loads(answers.read_text())
    assert [row["question"] for row in rows] == abilities.QUESTIONS and len(rows) == 20
    assert list(rows[0]) == ["question", "base", "ccm-concat", "ccm-merge"] and all(map(all, map(dict.values, rows)))
    assert capsys.readouterr().out.count("\n| ") == 21


# --------------------------------------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("method, sampling", [("ccm-concat", {}), ("ccm-merge", {"temperature": 0.9, "seed": 3})])
def test_a_saved_conversation_continues_the_same(fresh, tmp_path, method, sampling):
    """Saved, and loaded by a new process: the next reply is the same, token for token, also where tokens are drawn."""
    talk = fresh(method)
    tell(talk, *SAID[:2], **sampling)
    talk.save(tmp_path / "ada.memory")
    (reply,) = tell(talk, SAID[2], **sampling)
    options = [f"--{name}={value}" for name, value in ({"method": method} | sampling).items()]
    lines = f"/load {tmp_path / 'ada.memory'}\n{SAID[2]}\n"
    done = subprocess.run([sys.executable, "chat.py", "--device", "cpu", *options], input=lines, **IN_ROOT)
    assert done.stdout.splitlines()[-1] == reply, done.stderr


def test_other_models_memory_is_refused(fresh, tmp_path):
    """A file of another method, adapter, base or template is refused with the reason, and nothing changes."""
    talk, file = fresh(), tmp_path / "ada.memory"
    tell(talk, SAID[0])
    talk.save(file)
    with pytest.raises(ValueError, match="another method: ccm-concat, not ccm-merge"):
        fresh("ccm-merge").load(file)
    with pytest.raises(ValueError, match="another template: dialogue, not mistral"):
        fresh(template="mistral").load(file)
    for name in ("base", "adapter"):
        other = fresh()
        other.made_for[name] = "0123456789abcdef"
        with pytest.raises(ValueError, match=f"another {name}"):
            other.load(file)
        assert not other.turns and not len(other.session.memory)
    with pytest.raises(ValueError, match="missing"):
        talk.load(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")  # to open one would wait for a writer
    with pytest.raises(ValueError, match="not a regular file"):
        talk.load(tmp_path / "pipe")


def test_failing_to_save_destroys_nothing(fresh, tmp_path):
    """On a full disk, the old file does not change, and nothing else is left."""
    talk, file = fresh(), tmp_path / "ada.memory"
    tell(talk, SAID[0])
    talk.save(file)
    whole, limit = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    tell(talk, SAID[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limit[1]))  # what a disk does that has no more room
    try:
        with pytest.raises(OSError):
            talk.save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == whole and os.listdir(tmp_path) == ["ada.memory"]


@pytest.fixture(scope="module")
def saved(opened, tmp_path_factory):
    """A conversation's memory, its file, and that file's tensors and description."""
    talk, file = opened["ccm-merge"].replay([]), tmp_path_factory.mktemp("saved") / "ada.memory"
    tell(talk, *SAID[:2])
    talk.save(file)
    whole = file.read_bytes()
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    return talk, file, whole, safetensors.torch.load(whole), json.loads(header["__metadata__"]["about"])


def survives(saved, data):
    """A file is refused in one line, or talked on from; nothing third."""
    talk, file, *_ = saved
    talk = talk.replay([])
    file.with_name("crafted").write_bytes(data)
    try:
        talk.load(file.with_name("crafted"))
    except ValueError as error:
        assert "\n" not in str(error) and not talk.turns and not len(talk.session.memory)
        return False
    tell(talk, "Hello.", max_tokens=2)
    talk.kept(), talk.status()
    return True


def test_the_file_itself_is_loaded(saved):
    """What the tests below spoil is good before."""
    assert survives(saved, saved[2])


@settings(quick, max_examples=150)
@given(st.data())
def test_damaged_file(saved, data):
    """Bytes changed, cut off or put in anywhere, above all in the header."""
    whole = bytearray(saved[2])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 3000) | st.integers(0, len(whole) - 1))
        whole[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    survives(saved, bytes(whole[: data.draw(st.none() | st.integers(0, len(whole)))]))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(quick, max_examples=150)
@given(st.data())
def test_crafted_description(saved, data):
    """Any value in the place of the description of the memory, of a count, or of a turn."""
    *_, tensors, about = saved
    about = json.loads(json.dumps(about))
    place = data.draw(st.sampled_from([*about, "turn", "part", "all"]))
    value = data.draw(anything)
    if place == "turn":
        about["turns"][0] = value
    elif place == "part":
        about["turns"][0][data.draw(st.sampled_from(["user", "bot", "system", "words", "context"]))] = value
    elif place == "all":
        about = value
    else:
        about[place] = value
    survives(saved, safetensors.torch.save(tensors, {"about": json.dumps(about)}))


@settings(quick, max_examples=150)
@given(st.data())
def test_crafted_tensors(saved, data):
    """Tensors missing, of another shape or dtype, or with impossible numbers."""
    *_, tensors, about = saved
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = data.draw(st.sampled_from(sorted(tensors)))
    what = data.draw(st.sampled_from(["missing", "shape", "dtype", "number", "row"]))
    if what == "missing":
        del tensors[name]
    elif what == "shape":
        tensors[name] = torch.zeros(data.draw(st.lists(st.integers(0, 9), max_size=5)), dtype=tensors[name].dtype)
    elif what == "dtype":
        kinds = [torch.bool, torch.uint8, torch.int32, torch.float16, torch.float64, torch.complex64, torch.float8_e5m2]
        tensors[name] = tensors[name].to(data.draw(st.sampled_from(kinds)))
    elif what == "row":
        tensors[name] = tensors[name][: data.draw(st.integers(0, 7))].contiguous()
    else:
        flat, numbers = tensors[name].view(-1), st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 9)
        number = data.draw(numbers if name == "info" else st.sampled_from([float("nan"), float("inf"), -3.0e38]))
        flat[data.draw(st.integers(0, len(flat) - 1))] = number
    survives(saved, safetensors.torch.save(tensors, {"about": json.dumps(about)}))


def test_impossible_numbers(saved):
    """Each of these is refused, not only survived: slots of a wrong step, infinite values, pickles, counts below 0."""
    *_, tensors, about = saved
    save = lambda tensors, about: safetensors.torch.save(tensors, {"about": json.dumps(about)})
    assert survives(saved, save(tensors, about))
    for name, number in {"kind": PAD, "step": 99, "slot": 99, "order": 2**40, "question": 1}.items():
        info = tensors["info"].clone()
        info[0, FIELDS.index(name)] = number
        assert not survives(saved, save(tensors | {"info": info}, about)), name
    assert not survives(saved, save(tensors | {"keys": tensors["keys"] * float("inf")}, about))
    assert not survives(saved, save(tensors, about | {"text": -1}))
    assert not survives(saved, save(tensors, about | {"step": True}))
    assert not survives(saved, safetensors.torch.save(tensors, {"about": "[" * 100_000}))
    assert not survives(saved, b"\x80\x04cos\nsystem\n(S'true'\ntR.")


# ------------------------------------------------------------------------------------------------------ the terminal


def test_commands(run, tmp_path):
    """Each command as JSON lines; replies carry the status."""
    transcript = tmp_path / "said.txt"
    lines = [
        SAID[0],
        "/memory",
        "/compare Who am I?",
        "/method merge",
        "/help",
        f"/export {transcript}",
        "/undo",
        SAID[1],
    ]
    rows = [json.loads(row) for row in run(*lines, "/forget", "/method full", options=["--json"])]
    reply, memory, compared, method, help, export, undo, other, forget, full = rows
    assert reply["user"] == SAID[0] and reply["step"] == 2 and reply["slots"] == 4
    assert [row["slots"] for row in memory["memory"]] == [2, 2]
    assert list(compared["answers"]) == ["ccm-concat", "full", "none"]
    assert method["method"] == "ccm-merge" and (method["step"], method["slots"]) == (2, 32)
    assert "memory" in help["help"] and undo["slots"] == 0 and other["step"] == 2
    assert transcript.read_text() == f"User: {SAID[0]}\nBot: {reply['bot']}\n"
    assert full["step"] == full["slots"] == 0


def test_wrong_commands(run):
    """In a script, a command that cannot be done ends it with one clear line (which exits with status 2)."""
    for line, says in {
        "/magic": "/help lists them",
        "/save": "needs a file",
        "/undo": "no turn",
        "/method x": "ccm-x",
    }.items():
        with pytest.raises(ValueError, match=says):
            run(line)


def test_export_of_an_empty_context(fresh, tmp_path):
    """A transcript has all that was observed, an empty text and a system prompt included."""
    talk = fresh(system="Be kind.")
    talk.observe("")
    tell(talk, "Hi.", max_tokens=2)
    chat.Terminal(talk, {}, {}, chat.Console(quiet=True), False, False).line(f"/export {tmp_path / 'said'}")
    assert (tmp_path / "said").read_text() == f"Be kind.\n\nUser: Hi.\nBot: {talk.turns[-1]['bot']}\n"


WRONG_OPTIONS = [
    *[("--temperature", value) for value in ("-1", "1e-40", "101", "nan", "inf", "x", "")],
    *[("--top-p", value) for value in ("0", "-1", "1e-300", "1.1", "nan", "x", "")],
    *[("--max-tokens", value) for value in ("0", "-1", "1e3", "65537", "9" * 30, "x", "")],
    *[("--seed", value) for value in ("-1", "9" * 30, "1.5", "x", "")],
    *[("--n", value) for value in ("0", "-1", "100000000", "x", "")],
    *[(name, "") for name in ("--model", "--adapter", "--init", "--method", "--template", "--script", "--record")],
    *[("--device", value) for value in ("meta", "x", "")],
    *[("--dtype", value) for value in ("int8", "")],
    ("--template", "x"),
    ("--method", "x"),
    ("--method", "missing.py"),
    ("--model", "missing"),
    ("--adapter", "missing"),
    ("--script", "missing"),
    ("--script", "/dev/zero"),
    ("--record", "a.svg"),
    ("--record", "missing/a.svg"),
    ("--model", "bad\x1b[31m\nname"),
]


@pytest.mark.parametrize("name, value", WRONG_OPTIONS)
def test_wrong_options(monkeypatch, capsys, name, value):
    """Each wrong value gets one printable line on stderr, exit status 2, and no reply."""
    more = ["--script", os.devnull] if (name, value) == ("--record", "missing/a.svg") else []
    monkeypatch.setattr("sys.argv", ["chat.py", f"{name}={value}", *more])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello.\n"), "utf-8"))
    with pytest.raises(SystemExit) as stopped:
        chat.options.run(chat.main)
    out, error = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert error.startswith("error: ") and error[:-1].isprintable() and error.endswith("\n") and len(error) < 400


def test_half_surrogates(run, fresh):
    """Bytes that are no text, in --system or typed, are left out, and the rest is read."""
    replies = run(text=b"Hi \x80there.\n", options=["--system", "Be \udcffkind.\x1b[31m"])  # as Python decodes argv
    assert len(replies) == 1 and "\x1b" not in replies[0]
    talk = fresh(system="Be \ud83dkind.")
    tell(talk, "Hi \udc80there.")
    assert talk.turns[0]["system"] == "Be kind." and talk.turns[0]["user"] == "Hi there."
    talk.observe("\ud83d")
    talk.compare("\udc80?", max_tokens=2)


def test_a_template_that_does_not_fit(run):
    """A model without the template's control tokens is refused in one line, before anything is read."""
    with pytest.raises(ValueError, match="tokenizer has no <|im_start|>".replace("|", "[|]")):
        run("Hi.", options=["--template", "chatml"])


def test_harmless(run):
    """Invalid UTF-8, control characters, emoji, empty lines: what holds text has a reply."""
    text = b"\xff\xfe hi \x80\n\n   \n\x1b[31mred\x07\x00\n\xf0\x9f\xa6\x80\xe2\x80\x8d\xf0\x9f\xa6\x80\n\x1b\x00\nbye"
    lines = run(text=text)
    assert len(lines) == 4 and not any("\x1b" in line for line in lines)
    assert clean("a\x1b\x9b\x00\ud800b\u200d\U0001f980\n") == "ab\u200d\U0001f980\n"


def test_closed_pipe():
    """Whoever reads the replies may leave: no traceback."""
    script = f"yes Hello. | {sys.executable} chat.py --device cpu | head -n 1"
    done = subprocess.run(["bash", "-c", script], **IN_ROOT)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.parametrize("no_color", ["", "1"])
def test_in_a_terminal(no_color):
    """Ctrl-C stops the reply and keeps the turn, Ctrl-D leaves; history; colour only where it is wanted."""
    child, terminal = pty.fork()
    if not child:
        os.chdir(ROOT)
        os.environ |= {"NO_COLOR": no_color, "TERM": "xterm", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        slow = "import chat, time; from minccm.fast.cpu_decode import CPUSession; generate = CPUSession.generate\n"
        slow += "def slowly(*a, **k): return (time.sleep(0.2) or t for t in generate(*a, **k | {'stop_ids': ()}))\n"
        slow += "CPUSession.generate = slowly\nchat.options.run(chat.main)"
        os.execv(sys.executable, [sys.executable, "-c", slow, "--device", "cpu", "--max-tokens", "600"])
    seen = b""

    def until(*parts):
        """Waits for the parts, one after the other."""
        nonlocal seen
        seen = b""
        while not re.search(b".*".join(parts), seen, re.S):
            assert select.select([terminal], [], [], 60)[0], seen
            seen += os.read(terminal, 1000)

    until(b"Ctrl-D exits", b"> ")
    coloured = b"\x1b[2m" in seen
    os.write(terminal, b"Hello.\r")
    until(b"Hello.\r\n")
    time.sleep(1)
    os.kill(child, signal.SIGINT)
    until(b"step 2", b"> ")  # the turn is kept: two time steps
    os.write(terminal, b"\x1b[200~One line.\nAnother.\x1b[201~\r")  # a paste of two lines is one turn
    until(b"Another.\r\n")
    time.sleep(1)
    os.kill(child, signal.SIGINT)
    until(b"step 4", b"> ")
    os.write(terminal, b"/nonsense\r")
    until(b"there is no command", b"> ")
    os.write(terminal, b"\x1b[A\x1b[A\x01/export \x0b\r")  # twice back, then the line is edited: history and editing
    until(b"needs a file", b"> ")
    time.sleep(0.5)  # the prompt stands a moment before Python waits for keys and notices signals
    os.write(terminal, b"\x03")  # at the prompt, Ctrl-C does nothing
    until(b"> ")
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert coloured == (not no_color)


def test_recording(run, tmp_path):
    """--record keeps a session as a picture or as text; long lines are wrapped, and nothing is cut off."""
    (tmp_path / "lines").write_text(f"{SAID[0]}\n/memory\n" + 20 * "I am happy. " + "Zebra!\n")
    for name in ("a.svg", "a.txt"):
        run(options=["--script", tmp_path / "lines", "--record", tmp_path / name])
    picture = (tmp_path / "a.svg").read_text()
    assert picture.startswith("<svg") and "Zebra!" in picture
    assert f"> {SAID[0]}" in (tmp_path / "a.txt").read_text() and "step 2" in (tmp_path / "a.txt").read_text()
