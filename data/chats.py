"""Your own chats, in the format that everybody has: a file of JSON lines, each with the messages of one chat.

    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"},
                  {"role": "assistant", "content": "Hello."}]}

A system prompt may come first; then user and assistant take turns. Other fields are ignored. An exchange (a user's
message and the reply) becomes a context, or several if it is long: minccm/io/templates.py. The loss covers all replies
of the assistant: each is predicted from the memory before it, in one forward pass. The last reply is the output.
"""

import random
from collections.abc import Callable

from minccm.io.templates import BOT, USER, Segment, Template
from minccm.io.tokenizer import Tokenizer
from minccm.io.untrusted import Field, check_fields, clean_text, error, printable
from minccm.sequence import EncodedSample

MAX_MESSAGES = 10_000  # of one chat
CHAT = {"messages": Field(list, low=1, high=MAX_MESSAGES, items=Field(dict))}
MESSAGE = {"role": Field(("system", "user", "assistant")), "content": Field(str)}


def is_chat(raw: object) -> bool:
    """Is a line of a data file, parsed, a chat and not a sample of contexts, input and target?"""
    return isinstance(raw, dict) and "messages" in raw


def check_chat(raw: object, where: str) -> list[dict]:
    """The messages of a chat, with what follows the last reply left out. Raises ValueError if it is no chat."""
    messages = [
        check_fields(message, f"{where}, message {i}", MESSAGE)
        for i, message in enumerate(check_fields(raw, where, CHAT)["messages"], 1)
    ]
    before = int(messages[0]["role"] == "system")
    turns = messages[before:]
    order = ("user", "assistant") if turns and turns[0]["role"] == "user" else ("assistant", "user")
    for i, message in enumerate(turns):
        place = f"{where}, message {before + i + 1}"
        if message["role"] != order[i % 2]:
            raise error(place, f"user and assistant must take turns: this should be the {order[i % 2]}'s")
        message["content"] = clean_text(message["content"])
        if not message["content"].strip():
            raise error(place, "the content is empty")
    if turns and turns[-1]["role"] == "user":
        turns.pop()
    if not turns:
        raise error(where, "the assistant says nothing: there is no reply to learn")
    return messages[:before] + turns


def encode_chat(
    tokenizer: Tokenizer,
    template: Template,
    messages: list[dict],
    max_contexts: int | None = None,
    rng: random.Random | None = None,
) -> EncodedSample:
    """Token ids of a chat, as build_sequence takes them.

    answer_lengths: for each context, how many tokens at its end are the assistant's. max_contexts: a chat with more
    contexts is cut to some exchanges in a row, at random with `rng` and otherwise the last ones; if one exchange is too
    long, its first contexts are left out.
    """
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    exchanges = pair_turns(
        [(message["role"], message["content"]) for message in messages if message["role"] != "system"]
    )

    def encode(i: int, first: bool = True) -> list[Segment]:
        return template.encode_exchange(tokenizer, *exchanges[i], system, first)

    chosen = range(len(exchanges))
    if max_contexts is not None:
        start = rng.randrange(len(exchanges)) if rng else len(exchanges) - 1
        chosen = _window(lambda i: len(encode(i)), len(exchanges), start, max_contexts + 1)
    segments = [segment for i in chosen for segment in encode(i, first=i == chosen[0])]
    if max_contexts is not None and len(segments) > max_contexts + 1:
        segments = segments[-max_contexts - 1 :]
        segments[0] = Segment(template.begin(tokenizer) + segments[0].ids, segments[0].answer)
    *contexts, (ids, answer) = segments
    answer = min(answer, len(ids) - 1)  # the rest of a long reply: its first token has nothing before it
    end = [] if template.reply else [tokenizer.eos_id]  # a dialogue's replies have no end of their own
    question = (ids[: len(ids) - answer], ids[len(ids) - answer :] + end)
    return EncodedSample([ids for ids, _ in contexts], [question], [answer for _, answer in contexts])


def encode_dialogue(
    tokenizer: Tokenizer, template: Template, sample: dict, reads_context: bool = True, max_questions: int = 1
) -> EncodedSample:
    """Token ids of a sample (fields: data/__init__.py) whose contexts are turns "User: ..." and "Bot: ...", as a chat.

    As encode_sample does it, but written as `template` wants it: an exchange is a context, and so is a turn that stands
    alone. Raises ValueError if the contexts are not such turns.
    """
    turns = [_speaker(text) for text in sample["contexts"]] if reads_context else []
    start = int(turns[:1] == [] or turns[0][0] == "user")  # of the first turn that is a reply
    contexts, answer_lengths = [], []
    for i, (user, reply) in enumerate(pair_turns(turns)):
        answers = start + 2 * i in sample.get("answers", [])
        for ids, answer in template.encode_exchange(tokenizer, user, reply, first=i == 0):
            contexts.append(ids)
            answer_lengths.append(answer if answers else 0)
    questions = []
    for input, target in [(sample["input"], sample["target"]), *sample.get("questions", [])][:max_questions]:
        _, user = _speaker(input.removesuffix(BOT))
        prompt = template.encode_exchange(tokenizer, user, first=not contexts)
        questions.append((sum([ids for ids, _ in prompt], []), template.encode_reply(tokenizer, target)))
    return EncodedSample(contexts, questions, answer_lengths)


def pair_turns(turns: list[tuple[str, str]]) -> list[tuple[str | None, str]]:
    """Turns (role, text) as exchanges (the user's text, the reply); None where the assistant speaks first.

    Raises ValueError unless they alternate and end with a reply.
    """
    if turns and turns[0][0] != "user":
        turns = [("user", None), *turns]
    if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("user and assistant must take turns, and the last turn before a question must be a reply")
    texts = [text for _, text in turns]
    return list(zip(texts[::2], texts[1::2]))


def _speaker(text: str) -> tuple[str, str]:
    """The role and the text of a turn "User: Hi."."""
    for mark, role in ((USER, "user"), (BOT, "assistant")):
        if text.startswith(mark):
            return role, text.removeprefix(mark).strip()
    raise ValueError(f"a chat template needs contexts that begin with {USER} or {BOT}, unlike {printable(text)!r}")


def _window(size: Callable[[int], int], count: int, start: int, limit: int) -> range:
    """A range of exchanges around `start`, as long as it has at most `limit` contexts: first later ones, then earlier.

    size: of exchange i, how many contexts it has. `start` itself is in the range even if it has more than `limit`.
    """
    first, last, left = start, start + 1, limit - size(start)
    while last < count and size(last) <= left:
        left -= size(last)
        last += 1
    while first > 0 and size(first - 1) <= left:
        left -= size(first - 1)
        first -= 1
    return range(first, last)
