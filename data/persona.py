"""Personalization: sixteen lines of a user's profile, then a question that only the user's habits answer (like LaMP).

A persona has 3 or 4 domains (how they get to work, what they drink, how they sign mails, ...), each under 2 conditions
(rainy or sunny, morning or evening, ...), and for every such pair a habit: one of the domain's four choices, drawn
independently of all others. An entry describes one event: nine times in ten the habit, else another choice. The
question names a domain and a condition; the answer is the most frequent choice in the profile. A guess without the
profile is right in one case of four.

No two splits share a persona (a set of habits).
"""

import random
from collections import Counter
from collections.abc import Iterator
from zlib import crc32

from data import main

CONTEXTS = 16
NOISE = 0.1  # how often an entry describes another choice than the habit

CONDITIONS = {  # kind of condition: condition: how it is put
    "company": {
        "alone": ["alone", "all alone", "without company", "without anyone"],
        "friends": ["with friends", "with a friend", "with old friends", "with good friends"],
        "family": ["with the family", "with the parents", "with relatives", "with the children"],
    },
    "daytime": {
        "morning": ["in the morning", "at dawn", "after sunrise", "early in the day"],
        "noon": ["at noon", "at midday", "around twelve", "in the middle of the day"],
        "evening": ["in the evening", "at dusk", "after sunset", "late in the day"],
    },
    "length": {
        "short": ["short", "very short", "brief", "quick"],
        "long": ["long", "very long", "lengthy", "never-ending"],
    },
    "mood": {
        "happy": ["when happy", "when cheerful", "in a good mood", "when glad"],
        "sad": ["when sad", "when gloomy", "in a bad mood", "when upset"],
        "tired": ["when tired", "when sleepy", "after a hard day", "when exhausted"],
    },
    "place": {
        "abroad": ["abroad", "overseas", "in a foreign country", "far from home"],
        "near": ["near home", "close to home", "in the home country", "not far away"],
    },
    "price": {
        "cheap": ["cheap", "very cheap", "low-priced", "bargain"],
        "costly": ["costly", "very costly", "pricey", "luxury"],
    },
    "receiver": {
        "friend": ["a friend", "a neighbour", "a cousin", "a classmate"],
        "boss": ["the boss", "the manager", "the director", "the chief"],
        "stranger": ["a stranger", "a customer", "a client", "a visitor"],
    },
    "season": {
        "spring": ["in spring", "in March", "in April", "in May"],
        "summer": ["in summer", "in June", "in July", "in August"],
        "winter": ["in winter", "in December", "in January", "in February"],
    },
    "weather": {
        "rainy": ["on a rainy {day}", "on a wet {day}", "in the rain", "in a shower"],
        "snowy": ["on a snowy {day}", "on a frosty {day}", "in the snow", "in deep snow"],
        "sunny": ["on a sunny {day}", "on a bright {day}", "in the sun", "under a clear sky"],
    },
    "week": {
        "weekday": ["on Monday", "on Tuesday", "on Thursday", "on a working day"],
        "weekend": ["on Saturday", "on Sunday", "at the weekend", "on a day off"],
    },
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

DOMAINS = {  # domain: kind of condition, the four choices, entries, questions; {c} is the condition, {x} the choice
    "breakfast": (
        "week",
        "eggs toast oats fruit",
        [
            "{c} {n} had {x} for breakfast.", "{n} had {x} for breakfast {c}.", "Breakfast {c}: {n} ate {x}.",
            "{c} {n} started the day with {x}.", "For breakfast {c}, {n} made some {x}.",
        ],
        ["what does {n} eat for breakfast {c}", "{c} the breakfast of {n} is"],
    ),
    "diary": (
        "place",
        "pencil ink crayon marker",
        [
            "{c} {n} wrote the diary in {x}.", "{n} wrote the diary in {x} {c}.", "{n} used {x} for the diary {c}.",
            "The diary page that {n} wrote {c} is in {x}.", "{c} {n} kept the diary in {x}.",
        ],
        ["what does {n} write the diary with {c}", "{c} {n} writes the diary in"],
    ),
    "dinner": (
        "company",
        "soup pizza salad curry",
        [
            "{c} {n} ordered {x}.", "{n} ordered {x} {c}.", "{n} went out {c} and had the {x}.",
            "At the restaurant {n} ate {x} {c}.", "Eating out {c}, {n} asked for {x}.",
        ],
        ["what does {n} order at the restaurant {c}", "{c} {n} likes to order"],
    ),
    "drink": (
        "daytime",
        "tea coffee juice milk",
        [
            "{c} {n} drank {x}.", "{n} had a cup of {x} {c}.", "{n} poured some {x} {c}.",
            "{c} {n} asked for a glass of {x}.", "{n} was thirsty {c} and drank {x}.",
        ],
        ["what does {n} drink {c}", "{c} {n} likes to drink"],
    ),
    "gift": (
        "receiver",
        "flowers candles honey chocolate",
        [
            "{n} gave {x} to {c}.", "{n} bought {x} for {c}.", "As a gift for {c}, {n} chose {x}.",
            "{n} sent {c} some {x} as a gift.", "The gift from {n} for {c} was {x}.",
        ],
        ["what does {n} give to {c} as a gift", "As a gift for {c}, {n} takes"],
    ),
    "holiday": (
        "season",
        "beach lake forest desert",
        [
            "{c} {n} spent the holiday at the {x}.", "{n} went to the {x} on holiday {c}.",
            "The holiday of {n} {c} was at the {x}.", "{n} had a holiday {c} and saw the {x}.",
            "{c} {n} took a holiday by the {x}.",
        ],
        ["where does {n} go on holiday {c}", "{c} {n} goes on holiday to the"],
    ),
    "lodging": (
        "place",
        "hotel hostel tent cabin",
        [
            "{c} {n} slept in a {x}.", "{n} slept in a {x} {c}.", "{n} booked a {x} {c}.",
            "For the night {c}, {n} chose a {x}.", "{n} stayed {c} in a small {x}.",
        ],
        ["where does {n} sleep {c}", "{c} {n} sleeps in a"],
    ),
    "mail": (
        "receiver",
        "cheers regards thanks greetings",
        [
            "{n} signed the mail to {c} with {x}.", "The mail from {n} to {c} ended with {x}.",
            "{n} wrote to {c} and ended with {x}.", "To {c} {n} sent a mail signed with {x}.",
            "In a mail to {c}, {n} closed with {x}.",
        ],
        ["how does {n} sign a mail to {c}", "A mail to {c} {n} always ends with"],
    ),
    "music": (
        "mood",
        "jazz rock opera folk",
        [
            "{c} {n} listened to {x}.", "{n} listened to {x} {c}.", "{n} played some {x} music {c}.",
            "{c} {n} turned on the {x} music.", "{n} heard {x} on the radio {c}.",
        ],
        ["what music does {n} listen to {c}", "{c} {n} listens to"],
    ),
    "news": (
        "length",
        "politics sports science culture",
        [
            "{n} filed a {c} report under {x}.", "{n} put a {c} article into {x}.",
            "A {c} news text went under {x} for {n}.", "{n} read a {c} report and filed it under {x}.",
            "The tag of {n} for a {c} article was {x}.",
        ],
        ["under what does {n} file a {c} report", "A {c} article {n} files under"],
    ),
    "pastime": (
        "company",
        "reading painting knitting dancing",
        [
            "{c} {n} spent the evening {x}.", "{n} spent the evening {x} {c}.", "{n} was {x} all evening {c}.",
            "Last evening {n} enjoyed {x} {c}.", "At home {c}, {n} passed the evening {x}.",
        ],
        ["how does {n} spend the evening {c}", "{c} {n} spends the evening"],
    ),
    "payment": (
        "price",
        "cash card cheque voucher",
        [
            "{n} paid for a {c} lamp by {x}.", "{n} bought a {c} bag and paid by {x}.",
            "{n} got a {c} watch and used a {x}.", "For a {c} chair {n} paid by {x}.",
            "The way {n} paid for a {c} book was {x}.",
        ],
        ["how does {n} pay for a {c} thing", "For a {c} thing {n} pays by"],
    ),
    "reading": (
        "mood",
        "novels poems comics essays",
        [
            "{c} {n} read {x}.", "{n} read some {x} {c}.", "{n} went to the library {c} to get {x}.",
            "{c} {n} looked for {x} to read.", "{n} took {x} from the shelf {c}.",
        ],
        ["what does {n} read {c}", "{c} {n} likes to read"],
    ),
    "room": (
        "daytime",
        "kitchen attic garden cellar",
        [
            "{c} {n} worked in the {x}.", "{n} worked in the {x} {c}.", "{n} sat in the {x} to work {c}.",
            "{c} {n} moved the desk to the {x}.", "Working {c}, {n} stayed in the {x}.",
        ],
        ["where does {n} work {c}", "{c} {n} works in the"],
    ),
    "scarf": (
        "season",
        "red green grey brown",
        [
            "{c} {n} wore a {x} scarf.", "{n} wore a {x} scarf {c}.", "{n} had on a {x} scarf {c}.",
            "The scarf of {n} {c} was {x}.", "{c} {n} went out in a {x} scarf.",
        ],
        ["what colour is the scarf of {n} {c}", "{c} the scarf of {n} is"],
    ),
    "seat": (
        "length",
        "window aisle front back",
        [
            "{n} took the {x} seat on a {c} trip.", "On a {c} trip {n} sat in a {x} seat.",
            "{n} booked a {x} seat for a {c} trip.", "For a {c} trip {n} got a {x} seat.",
            "{n} had a {c} trip in a {x} seat.",
        ],
        ["which seat does {n} take on a {c} trip", "On a {c} trip the seat of {n} is"],
    ),
    "shop": (
        "week",
        "market mall kiosk bakery",
        [
            "{c} {n} went shopping at the {x}.", "{n} went shopping at the {x} {c}.",
            "{n} bought bread at the {x} {c}.", "{c} {n} got the food from the {x}.",
            "Shopping {c}, {n} visited the {x}.",
        ],
        ["where does {n} go shopping {c}", "{c} {n} goes shopping at the"],
    ),
    "sport": (
        "season",
        "tennis golf rugby hockey",
        [
            "{c} {n} played {x}.", "{n} played {x} {c}.", "{n} joined a {x} team {c}.",
            "{c} {n} trained for {x}.", "The game that {n} played {c} was {x}.",
        ],
        ["what game does {n} play {c}", "{c} {n} plays"],
    ),
    "stars": (
        "price",
        "two three four five",
        [
            "{n} gave a {c} lamp {x} stars.", "{n} bought a {c} watch and gave {x} stars.",
            "A {c} bag got {x} stars from {n}.", "{n} rated a {c} chair with {x} stars.",
            "The rating of {n} for a {c} book was {x} stars.",
        ],
        ["how many stars does {n} give a {c} thing", "The stars that {n} gives a {c} thing are"],
    ),
    "travel": (
        "weather",
        "tram bike taxi ferry",
        [
            "{c} {n} took the {x} to work.", "{n} took the {x} to work {c}.", "{c} {n} went to the office by {x}.",
            "{n} got to work by {x} {c}.", "To get to work {c}, {n} chose the {x}.",
        ],
        ["how does {n} get to work {c}", "{c} {n} goes to work by"],
    ),
    "wear": (
        "weather",
        "coat cape vest hoodie",
        [
            "{c} {n} put on the {x}.", "{n} put on the {x} {c}.", "{n} walked the dog in a {x} {c}.",
            "{c} {n} went out in a {x}.", "Going out {c}, {n} wore the {x}.",
        ],
        ["what does {n} put on {c}", "{c} {n} puts on the"],
    ),
}  # fmt: skip
CHOICES = {domain: choices.split() for domain, (_, choices, _, _) in DOMAINS.items()}

NAMES = """
    Adam Agnes Alan Albert Alex Alice Amy Andrew Anita Anna Anton Arthur Ava Barbara Ben Bella Boris Brian Carl Carla
    Carmen Cecil Chloe Claire Clara Colin Daisy Dan Daniel David Dennis Diana Dora Doris Edgar Edith Edward Elena Eli
    Ella Ellen Elsa Emil Emily Emma Eric Erica Esther Eva Evan Felix Fiona Frances Frank Fred Gabriel George Gina
    Gloria Grace Greta Gus Hannah Harry Hazel Heidi Helen Henry Hugo Ida Igor Ines Ingrid Irene Isaac Ivan Ivy Jack
    Jacob James Jane Janet Jason Jean Joan Joel John Jonas Judy Julia Karen Karl Kate Kevin Kim Klara Laura Lea Lena
    Leo Leon Lewis Lily Linda Lisa Louis Lucy Luke Lydia Mara Maria Mark Marta Martin Mary Max Maya Mia Mike Milo Mona
    Nadia Nancy Nina Noah Nora Olga Oliver Olivia Omar Oscar Otto Paul Paula Peter Petra Philip Rachel Rita Robert
    Rosa Ruth Sam Sara Simon Sofia Stella Susan Tara Theo Thomas Tina Tom Vera Victor Walter Wendy
    """.split()

Habit = tuple[str, str, str]  # domain, condition, choice


def _split_of(habits: tuple[Habit, ...]) -> str:
    """The split that the hash of a persona's habits names: 80% train, 10% validation, 10% test."""
    key = "; ".join(" ".join(habit) for habit in sorted(habits))
    return {0: "validation", 1: "test"}.get(crc32(key.encode()) % 1009 % 10, "train")


def _draw_persona(rng: random.Random, split: str) -> tuple[Habit, ...]:
    """The habits of a persona of the split."""
    while True:
        habits = []
        for domain in rng.sample(sorted(DOMAINS), rng.choice((3, 4))):
            for condition in rng.sample(list(CONDITIONS[DOMAINS[domain][0]]), 2):
                habits.append((domain, condition, rng.choice(CHOICES[domain])))
        if _split_of(tuple(habits)) == split:
            return tuple(habits)


def _rng(split: str, seed: int, index: int) -> random.Random:
    """The source of all that is random in one sample."""
    return random.Random(f"persona {split} {seed} {index}")


def persona_of(split: str, index: int, seed: int = 0) -> tuple[Habit, ...]:
    """The persona of sample `index`: its habits."""
    return _draw_persona(_rng(split, seed, index), split)


def _draw_events(rng: random.Random, habits: tuple[Habit, ...]) -> tuple[list[Habit], Habit, list[Habit]]:
    """What the profile tells, the habit to ask for, and what else could be asked.

    The choice of such a habit was made at least twice, and more than any other.
    """
    while True:
        told = list(habits) * (12 // len(habits))  # each of six habits at least twice, each of eight at least once
        told += rng.choices(habits, k=CONTEXTS - len(told))
        rng.shuffle(told)
        events = [
            (domain, condition, _another(rng, domain, choice) if rng.random() < NOISE else choice)
            for domain, condition, choice in told
        ]
        counts = Counter(events)
        clear = [
            habit
            for habit in habits
            if counts[habit] >= 2
            and all(counts[habit[:2] + (other,)] < counts[habit] for other in CHOICES[habit[0]] if other != habit[2])
        ]
        if clear:
            asked = rng.choice(clear)
            return events, asked, [habit for habit in clear if habit is not asked]


def _another(rng: random.Random, domain: str, choice: str) -> str:
    """One of the other choices of a domain."""
    return rng.choice([other for other in CHOICES[domain] if other != choice])


def _sentence(rng: random.Random, template: str, name: str, domain: str, condition: str, choice: str = "") -> str:
    """A template of the domain, filled."""
    phrase = rng.choice(CONDITIONS[DOMAINS[domain][0]][condition]).format(day=rng.choice(DAYS))
    text = template.format(n=name, c=phrase, x=choice)
    return text[0].upper() + text[1:]


def sample(split: str, index: int, seed: int = 0) -> dict:
    """Sample `index` of a split."""
    rng = _rng(split, seed, index)
    habits = _draw_persona(rng, split)
    events, asked, others = _draw_events(rng, habits)
    name = rng.choice(NAMES)
    contexts = [_sentence(rng, rng.choice(DOMAINS[event[0]][2]), name, *event) for event in events]

    def ask(domain: str, condition: str, choice: str) -> tuple[str, str, list[str]]:
        """Input, target and options."""
        question, opening = DOMAINS[domain][3]
        template = rng.choice((f"Question: {question}? Answer:", opening))
        options = rng.sample(CHOICES[domain], len(CHOICES[domain]))
        return _sentence(rng, template, name, domain, condition), choice, options

    text, target, options = ask(*asked)
    questions = [list(ask(*habit)[:2]) for habit in rng.sample(others, len(others))]
    return {"contexts": contexts, "input": text, "target": target, "options": options, "questions": questions}


def generate(split: str, count: int, seed: int = 0) -> Iterator[dict]:
    """Yields the first `count` samples of "train", "validation" or "test"; each depends on its number and seed only."""
    for index in range(count):
        yield sample(split, index, seed)


if __name__ == "__main__":
    main(generate)
