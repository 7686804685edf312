"""Hand-written episodes of everyday life: a user tells something in a few messages, and asks for it later.

data/stories/*.txt hold them. An episode looks like this, with an empty line after it:

    + I run a small {shop: bakery|flower shop} with my {kin: sister|cousin} {F} in {city}.
    - That must keep you busy. How long have you had it?
    ? Who runs the {shop} with me? > Your {kin} [{F}].
    ? Which town is our shop in? > It's in [{city}].
    + We get up at {hour: four|five}, even on Sundays.
    - That is early!
    ? When do we have to get out of bed? > You get up at [{hour}].

    +  a message of the user          -  the assistant's reply to it
    ?  a question > its answer, with the part that counts in [brackets]; asked at any time after the messages above it
    ?! a question that is only right until the user's next message of the episode, because that one changes something

A field {name: a|b|c} draws one of the alternatives and {name} repeats it; {: a|b} draws one that is not repeated.
{n: 3-20} draws a number, some of them in words. A name of KINDS, as {F} or {city2}, draws from that list. {^name}
begins with a capital letter. An alternative may have a field of its own. "a" becomes "an" where it must.

A chat puts some episodes together that cannot be mixed up, with the small talk of data/everyday.py in between and after
them. A third of the chats has episodes of short messages only: people who write little do so all the time. Episodes
with changes are told more often than others. A sample has the fields of data/everyday.py, and depends on (split, seed,
its number) alone.
"""

import random
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data import everyday as lists
from data import main
from data.scenes import takes_an

FOLDER = Path(__file__).parent / "stories"
KINDS: dict[str, list[str]] = {
    "F": lists.WOMEN,
    "M": lists.MEN,
    "city": lists.CITIES,
    "country": lists.lists.COUNTRIES,
    "job": lists.JOBS,
    "food": lists.FOODS,
    "hobby": lists.HOBBIES,
    "colour": [one for one in lists.COLOURS if one != "tabby"],
    "day": lists._words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "month": lists.MONTHS,
    "fruit": lists.FAVOURITES["fruit"],
    "instrument": lists.lists.INSTRUMENTS,
    "pet": lists.lists.PETNAMES,
}
MADE: dict[str, Callable[[random.Random], str]] = {
    "S": lambda rng: lists.TYPES["surname"](rng),
    "time": lambda rng: lists.clock(rng),
}
HELD = ("F", "M", "city", "food", "pet")  # kinds whose values are shared out among the splits
NAMES, UNUSUAL = ("F", "M", "city", "pet"), 0.16  # kinds of names, and how many of them no list has
SHORT, SHORT_CHATS = 11, 0.35  # words of a message on average at most; the share of chats with only such episodes
CHANGES = 0.25  # the share of episodes that are drawn from those with changes only
FIELD = re.compile(r"\{(\^?)([A-Za-z_]*\d*)(?::\s*((?:[^{}]|\{[^{}]*\})*))?\}")
BETWEEN = re.compile(r"\|(?![^{}]*\})")  # a bar between alternatives, not one of a field in an alternative
ARTICLE = re.compile(r"(\ba|(?:(?<![^\s\"(])(?<!\w )A))n? (?=(\w+))")  # "A" where a sentence begins, not in "plan A"
ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


class Line(NamedTuple):
    """A message of the user, or a question."""

    mark: str  # +, ? or ?!
    text: str
    reply: str


@lru_cache
def episodes(split: str) -> list[tuple[Line, ...]]:
    """All episodes of a split. One of ten belongs to the test split, one to the validation split."""
    found = []
    for path in sorted(FOLDER.glob("*.txt")):
        for number, text in enumerate(path.read_text("utf-8").strip().split("\n\n")):
            if lists.split_of(f"{path.stem} {number}") == split:
                found.append(parse(text, f"{path.name}, episode {number + 1}"))
    return found


def is_short(episode: tuple[Line, ...]) -> bool:
    """Are its messages short?"""
    lengths = [len(FIELD.sub("x", line.text).split()) for line in episode if line.mark == "+"]
    return sum(lengths) <= SHORT * len(lengths)


@lru_cache
def select(split: str, short: bool, changing: bool) -> list[int]:
    """The numbers of a split's episodes: of those with short messages, with changes, or of all."""
    return [
        number
        for number, episode in enumerate(episodes(split))
        if (is_short(episode) or not short) and (any(line.mark == "?!" for line in episode) or not changing)
    ]


def parse(text: str, where: str = "an episode") -> tuple[Line, ...]:
    """The lines of an episode. Raises ValueError where it is not written as the top of this file says."""
    lines: list[Line] = []
    for line in text.strip().split("\n"):
        mark, _, rest = line.strip().partition(" ")
        if mark == "-" and lines and lines[-1].mark == "+" and not lines[-1].reply:
            lines[-1] = lines[-1]._replace(reply=rest.strip())
        elif mark in ("?", "?!") and rest.count(" > ") == 1 and lines:
            lines.append(Line(mark, *(part.strip() for part in rest.split(" > "))))
            if not re.search(r"\[[^\[\]]+\]", lines[-1].reply):
                raise ValueError(f"{where}: no [part] of the answer is marked: {line}")
        elif mark == "+":
            lines.append(Line("+", rest.strip(), ""))
        else:
            raise ValueError(f"{where}: this line cannot be read: {line}")
    if not lines or lines[0].mark != "+" or all(line.mark == "+" for line in lines):
        raise ValueError(f"{where}: it needs a message and a question")
    known: set[str] = set()
    for line in lines:
        fields = FIELD.findall(f"{line.text} {line.reply}")
        for _, name, choices in fields + [inner for field in fields for inner in FIELD.findall(field[2])]:
            if choices:
                known.add(name)
            elif name not in known and not kind_of(name):
                raise ValueError(f"{where}: {{{name}}} is not known: {line.text}")
        if re.search(r"[{}]", FIELD.sub("", line.text + line.reply)):
            raise ValueError(f"{where}: braces that are no field: {line.text} {line.reply}")
    return tuple(lines)


def kind_of(name: str) -> str:
    """The kind that a field's name stands for, as city for city2; empty if there is none."""
    kind = name.rstrip("0123456789")
    return kind if kind in KINDS or kind in MADE else ""


def number(rng: random.Random, choices: str, digits: bool) -> str | None:
    """A number of a range "3-20", in words or digits; None if it is no range."""
    found = re.fullmatch(r"(\d+)-(\d+)", choices.strip())
    if not found:
        return None
    value = rng.randint(int(found[1]), int(found[2]))
    if digits:  # a part of a longer number, such as 20{y: 09-14}
        return str(value).zfill(len(found[1]))
    if value >= 100 or rng.random() < 0.4:
        return f"{value:,}" if value >= 10000 else str(value)
    if value < 20:
        return ONES[value]
    tens, ones = divmod(value, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def ordinal(found: re.Match) -> str:
    """22nd for 22th."""
    value = int(found[1])
    return found[1] + ("th" if 10 < value % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th"))


class Values(dict):
    """The values of the fields of one telling of an episode."""

    def __init__(self, rng: random.Random, split: str, used: set[str]):
        super().__init__()
        self.rng, self.split, self.used = rng, split, used

    def fill(self, text: str) -> str:
        """The text with its fields filled in, and every "a" or "an" as the next word wants it."""
        text = re.sub(r"\b(\d+)th\b", ordinal, FIELD.sub(self._field, text))
        return ARTICLE.sub(lambda found: found[1] + ("n " if takes_an(found[2]) else " "), text)

    def _field(self, found: re.Match) -> str:
        upper, name, choices = found.groups()
        if choices is not None:
            before, after = found.string[: found.start()][-1:], found.string[found.end() :][:1]
            digits = before.isalnum() or before == "}" or after.isalnum() or after == "{"
            value = number(self.rng, choices, digits) or self.fill(self.rng.choice(BETWEEN.split(choices)).strip())
            if name:
                self[name] = value
        else:
            value = self[name] if name in self else self._draw(name)
        return value[:1].upper() + value[1:] if upper else value

    def _draw(self, name: str) -> str:
        kind = kind_of(name)
        for _ in range(20):
            value = self.rng.choice(KINDS[kind]) if kind in KINDS else MADE[kind](self.rng)
            if self.split == "train" and kind in NAMES and self.rng.random() < UNUSUAL:
                value = unusual(self.rng, value)
            shared = self.split != "train" or kind not in HELD or lists.split_of(value) == "train"
            if shared and value not in self.used:
                break
        self.used.add(value)
        self[name] = value
        return value


def unusual(rng: random.Random, name: str) -> str:
    """A name from no list, invented or with another letter than this one: a model must copy it letter by letter."""
    i = rng.randrange(1, len(name))
    if rng.random() < 0.5 or not name[i].isalpha():
        return lists.invented(rng)
    others = ("aeiouy" if name[i] in "aeiouy" else "bdfgklmnprstvz").replace(name[i], "")
    return name[:i] + rng.choice(others) + name[i + 1 :]


# ------------------------------------------------------------------------------------------------------------- chats

COMMON = set(
    """a about again ago all am an and any are as at be because been before but by call called can come could did do
    does else ever exactly first for from get go going got had has have he her him his how i if in is it its
    last live lives long make many me mine more most much my name named new now of off old on one or other our
    out over please remember remind say said she should so some tell than that the their them then there these
    they thing this to up us use want was we went were what when where which who whom whose why will with would
    year years you your""".split()
)


def words(text: str) -> set[str]:
    """The content words of a text, without endings."""
    plain = re.sub(r"'s?\b", " ", re.sub(r"\{[^{}]*\}", " ", text).lower())
    found = re.findall(r"[a-z]+", plain)
    return {re.sub(r"(ing|ed|es|s)$", "", word) for word in found if word not in COMMON}


class Theme(NamedTuple):
    """What an episode is about."""

    told: set[str]  # words of its messages and questions
    asked: list[set[str]]  # of each question


@lru_cache
def themes(split: str) -> list[Theme]:
    """The themes of a split's episodes."""
    found = []
    for number, episode in enumerate(episodes(split)):
        asked, told = [], set()
        for line in episode:
            fields = FIELD.findall(line.text)
            told |= words(line.text).union(*(words(choices) for _, _, choices in fields))
            if line.mark != "+":  # a name in a question is in no other episode
                asked.append(words(line.text) | {f"{number} {name}" for _, name, _ in fields})
        found.append(Theme(told, asked))
    return found


def mixed_up(a: Theme, b: Theme) -> bool:
    """Could a question of one of two episodes be about the other one?"""
    if set() in a.asked and set() in b.asked:  # "What's my name?"
        return True
    return any(asked and asked <= other.told for one, other in ((a, b), (b, a)) for asked in one.asked)


class Chat:
    """Makes one chat."""

    def __init__(self, split: str, rng: random.Random):
        self.split, self.rng, self.episodes, self.themes = split, rng, episodes(split), themes(split)
        self.messages: list[dict] = []
        self.open: list[tuple[str, str]] = []  # what can be asked: question, reply with [the value]
        self.chatty = rng.choice([0.0, 0.1, 0.2, 0.35, 0.5])  # how often small talk stands in between
        self.curious = rng.choice([0.0, 0.0, 0.1, 0.25])  # how often the user asks in between
        short = rng.random() < SHORT_CHATS
        self.numbers, self.changing = select(split, short, False), select(split, short, True)

    def say(self, user: str, bot: str) -> None:
        self.messages += [{"role": "user", "content": user}, {"role": "assistant", "content": bot}]

    def talk(self) -> None:
        self.say(*lists.small_talk(self.split, self.rng))

    def ask(self, found: tuple[str, str]) -> tuple[str, str, str]:
        """A question as the user asks it, the reply, and the value in it."""
        text, reply = found
        rng, roll = self.rng, self.rng.random()
        if roll < 0.08 and text.endswith("?"):
            text = text[:-1] + rng.choice(lists.TAILS)
        elif roll < 0.16 and not re.match(r"I\b|[A-Z][a-z]+ [A-Z]|(Remind|Tell|Do you remember)", text):
            text = rng.choice(lists.LEADS) + text[0].lower() + text[1:]
        elif roll < 0.2:
            text = text.rstrip("?").lower() + rng.choice(["", "?"])
        value = re.findall(r"\[([^\[\]]+)\]", reply)[-1]
        return text, re.sub(r"[\[\]]", "", reply), value

    def told(self, episode: tuple[Line, ...], values: Values) -> Iterator[tuple[str, str, list, list]]:
        """Of each message: what the user says, the reply, and questions until the next message, and for ever."""
        said: list = []
        for line in episode:
            text, reply = values.fill(line.text), values.fill(line.reply)
            if line.mark == "+":
                said.append((text, reply or self.rng.choice(lists.ACKS), [], []))
            else:
                said[-1][2 if line.mark == "?!" else 3].append((text, reply))
        return iter(said)

    def tell(self, chosen: list[tuple[Line, ...]], limit: int) -> None:
        """Tells episodes one after the other, or two at a time, in at most `limit` exchanges."""
        rng, used = self.rng, set()
        waiting = [self.told(episode, Values(rng, self.split, used)) for episode in chosen]
        width = rng.choice([1, 1, 1, 2])
        running, passing = waiting[:width], {}
        waiting = waiting[width:]
        while running and len(self.messages) < 2 * limit:
            if self.messages and rng.random() < self.chatty:
                self.talk()
                continue
            known = self.open + [one for found in passing.values() for one in found]
            if known and rng.random() < self.curious:
                self.say(*self.ask(rng.choice(known))[:2])
                continue
            story = rng.choice(running)
            if (line := next(story, None)) is None:
                running.remove(story)
                running += waiting[:1]
                waiting = waiting[1:]
                continue
            text, reply, now, later = line
            if not now and rng.random() < 0.08 and (more := next(story, None)):
                text, reply, now, later = f"{text} {more[0]}", *more[1:3], later + more[3]
            passing[id(story)] = now
            self.open += later
            self.say(text, reply)
        self.open += [one for found in passing.values() for one in found]

    def sample(self, exchanges: int) -> dict:
        """The sample of a chat with so many exchanges before the last question."""
        rng, about = self.rng, self.themes
        after = min(exchanges - 1, rng.choice([0, 0, 0, 1, 2, 3, 4, 6, 8]))  # small talk in the end
        chosen: list[int] = []
        messages = 0
        for _ in range(60):
            one = rng.choice(self.changing if rng.random() < CHANGES else self.numbers)
            if messages >= exchanges - after:
                break
            if one not in chosen and not any(mixed_up(about[one], about[other]) for other in chosen):
                chosen.append(one)
                messages += sum(line.mark == "+" for line in self.episodes[one])
        self.tell([self.episodes[one] for one in chosen], exchanges - after)
        while len(self.messages) < 2 * exchanges:
            self.talk()
        asked = [self.ask(one) for one in rng.sample(self.open, min(len(self.open), lists.QUESTIONS))]
        (text, reply, value), *others = asked
        self.say(text, reply)
        return {"messages": self.messages, "questions": [list(pair[:2]) for pair in others], "answer": value}


def sample(split: str, index: int, seed: int = 0) -> dict:
    """The index-th chat of a split."""
    rng = random.Random(f"episodes {split} {seed} {index}")
    return lists.made(Chat, split, rng, lambda: rng.choice(lists.EXCHANGES))


def sample_at(split: str, index: int, time_step: int, seed: int = 0) -> dict:
    """A chat with `time_step` exchanges before the last question."""
    rng = random.Random(f"episodes {split} {seed} {index} at {time_step}")
    return lists.made(Chat, split, rng, lambda: time_step)


def generate(split: str, count: int, seed: int = 0):
    """`count` samples of a split."""
    return (sample(split, index, seed) for index in range(count))


if __name__ == "__main__":
    main(generate)
