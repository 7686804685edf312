"""Small scenes for data/everyday.py: what somebody did, what a thing is like, and what somebody said.

A scene is one to three sentences of the user, and the questions they answer. It is put together from a lexicon by a few
rules, so verbs, nouns, numbers, places and times meet in many combinations: a model cannot learn the answers by heart.

    scene(rng, people) -> (["My aunt broke seven plates in the garden."],
                           [("Who broke the plates?", "Your aunt broke seven plates.", "Your aunt"), ...])
"""

import random
import re

Question = tuple[str, str, str]  # what the user asks, the reply, and the part of the reply that counts

# ----------------------------------------------------------------------------------------------------------- lexicon


def _list(text: str) -> list[str]:
    return [" ".join(entry.split()) for entry in text.split(",")]


VERBS = [  # base form, past, and nouns; "~": without an article
    (*line.partition(":")[0].split(), _list(line.partition(":")[2]))
    for line in """
break broke: plate, window, vase, chair, mug, lamp, mirror, glass, toy, record, umbrella, cup, teapot
burn burned: cake, letter, shirt, pancake, pie, pan, candle, log, pizza, sausage
lose lost: wallet, glove, ring, key, phone, bet, race, scarf, tooth, suitcase, notebook, match
find found: coin, kitten, wallet, mushroom, shell, letter, button, ring, feather, map, bone, ticket
buy bought: camera, sofa, carpet, tent, cake, lamp, guitar, jumper, boat, mirror, drill, fan, plant, cushion, van
sell sold: car, piano, bike, house, painting, sofa, stamp, pram, canoe, tractor, record, pony
paint painted: fence, door, kitchen, portrait, boat, wall, chair, bench, ceiling, ship, mural, shed
bake baked: cake, loaf, pie, tart, biscuit, bun, pretzel, pizza, scone, muffin
cook cooked: soup, stew, curry, egg, trout, lobster, goose, meal, dumpling
eat ate: sandwich, apple, pear, cucumber, banana, pancake, sausage, salad, burger, peach, carrot, doughnut, fig
drink drank: coffee, cocoa, lemonade, beer, milkshake, smoothie, espresso
plant planted: tree, rose, tulip, bush, cherry tree, sunflower, hedge, bulb, fig tree, pumpkin
pick picked: apple, flower, pear, berry, lemon, plum, mushroom, daisy
read read: novel, poem, letter, map, newspaper, comic, contract, chapter, diary, thriller
write wrote: poem, letter, song, story, report, postcard, speech, play, list, essay, recipe, review
sing sang: song, lullaby, hymn, carol, duet
draw drew: dragon, horse, map, castle, cat, tree, plan, robot, cartoon, owl
build built: shed, wall, boat, tower, nest, bookcase, bridge, kennel, raft, tree house, oven, snowman, sandcastle
repair repaired: bike, radio, roof, tap, clock, fence, engine, pump, zip, chair, doorbell, printer
clean cleaned: kitchen, window, oven, car, boot, cage, carpet, grill, pond, bath, fish tank
wash washed: car, dog, curtain, jumper, dish, blanket, towel, potato
carry carried: box, ladder, suitcase, table, bag, crate, piano, bucket, tray, rucksack
move moved: wardrobe, sofa, table, piano, bed, bookcase, desk
hide hid: present, key, letter, cake, coin, diary, bottle, egg, bone
steal stole: bike, sausage, wallet, car, painting, sandwich, shoe, sock, bell
borrow borrowed: ladder, drill, car, tent, book, suit, trailer, pan, projector, wheelbarrow
return returned: book, drill, parcel, dress, key, ladder, jacket
send sent: parcel, card, letter, photo, bill, invitation, recipe, present, bunch of flowers
receive received: parcel, letter, prize, medal, card, bill, bunch of flowers, invitation
open opened: window, parcel, bottle, letter, shop, tin, cafe, account, drawer
throw threw: ball, stone, snowball, tomato, shoe, stick, party
catch caught: fish, mouse, ball, thief, crab, moth, frog, butterfly, eel
feed fed: duck, goat, cat, horse, pig, parrot, swan, calf, squirrel
see saw: fox, film, heron, ghost, whale, play, eagle, deer, rainbow, hedgehog, owl, comet, seal, musical
hear heard: owl, song, noise, bell, rumour, concert, cuckoo, siren, joke
meet met: singer, actor, nurse, farmer, clown, judge, pilot, neighbour, poet, goalkeeper, mayor
visit visited: museum, castle, farm, zoo, friend, cave, market, temple, factory, island, lighthouse, vineyard
watch watched: film, match, series, play, parade, quiz show, sunset
play played: tune, game, match, trick, waltz, sonata
win won: prize, medal, race, quiz, game, cup, bottle of wine, hamper, voucher, match
teach taught: song, trick, dance, game, card trick
wear wore: hat, scarf, suit, dress, tie, jumper, wig, helmet, costume, kimono, cape
knit knitted: scarf, jumper, hat, blanket, sock, shawl, mitten
sew sewed: dress, cushion, curtain, costume, apron, flag, bag
order ordered: pizza, salad, coffee, taxi, curry, pancake, sofa, lamp, book, soup
pack packed: suitcase, jumper, sandwich, tent, towel, apple, raincoat, thermos
forget forgot: umbrella, password, birthday, ticket, name, towel, appointment, charger, passport
remember remembered: name, song, dream, password, birthday, poem
count counted: sheep, star, bird, coin, step, car, vote
drop dropped: plate, phone, egg, tray, ball, cup, ice cream, tin
kick kicked: ball, door, stone, bucket, can
bite bit: postman, apple, finger, cushion, shoe, cable
chase chased: squirrel, cat, ball, thief, pigeon, bus, goose, kite
lick licked: plate, spoon, ice cream, stamp, window, lollipop
scratch scratched: sofa, car, door, table, nose
knock knocked: door, vase, glass, bottle
climb climbed: tree, mountain, ladder, hill, wall, tower
cross crossed: river, bridge, desert, road, border
miss missed: train, bus, flight, party, meeting, goal, lesson, ferry
book booked: table, flight, room, hotel, taxi, cottage, cruise, court
cancel cancelled: meeting, trip, party, concert, lesson, order
rent rented: car, boat, cottage, flat, garage, bike, van, hall
drive drove: van, bus, tractor, taxi, lorry, sports car
ride rode: horse, camel, bike, pony, scooter, donkey
fly flew: kite, plane, drone, helicopter, balloon
sail sailed: boat, yacht, raft, dinghy
photograph photographed: heron, bridge, wedding, storm, church, beetle, waterfall
film filmed: wedding, storm, concert, lion, race
record recorded: song, album, podcast, concert, message
lift lifted: table, stone, car, trophy, sack
pull pulled: sledge, rope, cart, tooth, lever
push pushed: pram, car, trolley, button, wheelbarrow
cut cut: cake, hedge, rope, hair ribbon, loaf, melon
wrap wrapped: present, sandwich, vase, parcel
hang hung: picture, lamp, coat, curtain, mirror, swing
fill filled: bucket, bath, bottle, jar, form, pool
empty emptied: bin, bucket, cupboard, drawer, fridge, cellar
lend lent: drill, coat, car, book, tent, ladder, helmet
keep kept: bee, hen, goat, snake, diary, secret, rabbit, pigeon, parrot
collect collected: stamp, coin, shell, clock, teapot, postcard, record, beetle
choose chose: ring, colour, carpet, name, wine, song, hat
taste tasted: cheese, soup, olive, wine, mango, oyster
smell smelled: rose, gas leak, cake, candle
mend mended: sock, fence, net, sail, puncture, chair
invent invented: game, recipe, machine, language, story
design designed: poster, garden, bridge, stage set, logo, house
deliver delivered: parcel, pizza, newspaper, baby, fridge, speech
rescue rescued: cat, hedgehog, dog, sailor, lamb, owl
adopt adopted: dog, cat, donkey, rabbit, greyhound
invite invited: neighbour, cousin, guest, classmate, colleague
interview interviewed: singer, baker, minister, beekeeper, astronaut
scare scared: cat, burglar, horse, pigeon, neighbour
teach taught: class, dance, swimming lesson, yoga class, course
translate translated: poem, letter, novel, contract, menu
solve solved: riddle, puzzle, crossword, problem, case
finish finished: novel, race, puzzle, painting, jumper, report, jigsaw
miss missed: penalty, lesson, bus, tram
save saved: penalty, coin, file, seat, slice
score scored: goal, point, penalty
press pressed: button, shirt, apple, flower
roast roasted: chicken, chestnut, duck, pepper
grow grew: tomato, pumpkin, rose, beard, chilli, sunflower
sharpen sharpened: knife, pencil, axe, saw
pay paid: bill, fine, deposit, fee
spill spilled: coffee, paint, milkshake, soup
tell told: joke, secret, story, lie, riddle
dig dug: hole, pond, grave, tunnel
frame framed: photo, poster, map, painting, letter
iron ironed: shirt, dress, tablecloth, blouse
hunt hunted: mouse, rabbit, moth, spider
""".strip().splitlines()
]
SUBJECTS = _list("""
    the postman, the mayor, the vet, a nurse, the chimney sweep, the baker, our cat, the dog, the plumber, a man in a
    yellow coat, the woman next door, the bus driver, a little girl, the caretaker, my boss, the electrician, an old
    sailor, my great-aunt, my godfather, the twins, the students, our neighbours, my parents, the new teacher, my
    hairdresser, the farmer, the librarian, the waiter, a tourist, the gardener, my classmate, the referee, my son,
    my daughter, the goat, our parrot, the choir, the landlord, a policeman, the kids next door, my grandparents,
    the boy from number nine, the receptionist, the bride, a monk, the carpenter, my lodger, our goalkeeper""")
PLURAL = {"the twins", "the students", "our neighbours", "my parents", "the kids next door", "my grandparents", "we"}
ADJECTIVES = _list("""
    red, blue, green, yellow, black, white, purple, orange, silver, pink, brown, grey, golden, striped, old, tiny,
    huge, wooden, broken, cheap, expensive, heavy, round, plastic, antique, ugly, rusty, velvet, second-hand, shiny,
    leather, paper, metal, blue and white, dark green""")
COLOURS = set(_list("red, blue, green, yellow, black, white, purple, orange, silver, pink, brown, grey, golden"))
PLACES = _list("""
    in the kitchen, in the garden, at the market, on the beach, at the station, in the attic, behind the church, in
    the park, on the train, at the office, in the cellar, by the lake, on the roof, near the bridge, at school, in
    the garage, under the old oak, at the harbour, in the library, on the balcony, in Lisbon, in Cardiff, in Oslo,
    in Naples, in Krakow, at the airport, in the lift, on the bus, in a forest, at the swimming pool, on the ferry,
    in the hospital, at a wedding, in the barn, at the petrol station, next to the post office, in the waiting room,
    in the tent, at my aunt's house, in the theatre, on a farm, in the village hall, behind the sofa, on the stairs,
    at the bus stop, in the bathroom, at the zoo, in Kyoto, in Quebec, in Bergen""")
TIMES = _list("""
    on Monday, on Tuesday, on Wednesday, on Thursday, on Friday, on Saturday, on Sunday, yesterday, this morning,
    last night, last week, last summer, in March, in October, in December, two days ago, three weeks ago, at
    midnight, at six o'clock, at half past nine, at noon, on Easter Sunday, at Christmas, on my birthday, in 1998,
    in 2011, before breakfast, after lunch, during the break, ten years ago, this afternoon, at a quarter to four""")
LATER = _list("""
    on Monday, on Tuesday, on Wednesday, on Thursday, on Friday, on Saturday, on Sunday, tomorrow, tonight, next
    week, next month, in April, in November, at seven o'clock, at half past two, after work, at the weekend, in the
    spring, before Christmas, at noon, next Tuesday, this evening, in two weeks""")
REASONS = _list("""
    it was raining, the shop was closed, it was cheaper, there was no time, the old one was broken, it was a
    present, the doctor said so, it was too cold, the bus was late, nobody was at home, it was on sale, we had
    guests, the lights went out, it was a dare, the music was too loud, the key was missing, there was a storm""")
COMPANY = _list("""
    my uncle, a friend from school, my sister, our neighbour, two colleagues, my cousin, my grandfather, the choir,
    my flatmate, a stranger, my brother-in-law, the whole class, my aunt, an old friend, my team""")
NUMBERS = """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty""".split()
COINS = _list("pounds, euros, dollars, pence, crowns, francs")
OWNED = _list("""
    radio, dog, car, lawnmower, phone, drum kit, printer, boat, suitcase, hat, bicycle, kettle, washing machine,
    cat, computer, watch, alarm clock, parrot, front door, laptop, tent, roof, garden, flat, jacket, guitar, oven,
    bed, letter, novel, cake, soup, puzzle, piano, armchair, car park, hotel, caravan, cottage, fridge, clock, sofa,
    bag""")
STATES = _list("""
    is too bright, is broken, is full of sand, leaks, smells of fish, is covered in mud, has a flat tyre, is brand
    new, makes a strange noise, is stuck, is very slow, is missing, is on fire, needs new batteries, is far too
    small, has a hole in it, is heavier than mine, is out of order, squeaks, is upside down, is completely empty""")
SMELLS = _list("pine, mint, paint, smoke, lavender, onions, petrol, old books, coffee, wet wool, roses, cheese, ginger")
MATERIALS = _list(
    "oak, pine, steel, plastic, glass, leather, silk, wool, bamboo, stone, cardboard, marble, clay, rubber"
)
SHAPES = _list("""
    a castle, a lion, stars, a dragon, a ship, mountains, a heron, two swans, the moon, a clown, a bridge, a tiger,
    the sea, a map of Wales, sunflowers, an old train, a lighthouse""")
MATTERS = _list("""
    the gas bill, a lost dog, the war, two brothers, a murder in Venice, bees, the new school, the rent, parking,
    a wizard, a shipwreck, the roof, the garden fence, a talking bear, the sea, my grandfather, an inheritance""")
PARTS = _list("""
    a plum tree, a red roof, two windows, a balcony, a dome, a secret drawer, three wheels, a broken handle, a
    huge fireplace, a blue door, no brakes, a squeaky bell, a zip, seven buttons, a view of the sea, a pond""")
NAMES = _list("""
    Skylark, Nelson, Pickle, Lucky, Thunder, Daisy, Rocket, Gustav, Matilda, Comet, Ginger, Florian, Marigold,
    Bruno, Olga, Sirius, Juno, Biscuit, Wanda, Otto, Horizon, Kestrel, Mistral, Clementine, Banjo""")
OWNERS = _list("""
    my grandfather, a famous actor, my great-aunt, an old sailor, the previous tenant, my cousin, a monk, our
    neighbour, my teacher, a circus, my mother, a lighthouse keeper, the village school, my ex-husband""")
ORDERS = _list("""
    hang it up, call the doctor, sell the car, wait until Monday, eat more fruit, write it down, see a dentist, paint
    it green, leave early, buy a bigger one, bring an umbrella, keep the receipt, try again, take the tram, add more
    salt, plant it in the shade, ask the landlord, turn left at the church, drink more water, learn Italian, take a
    day off, change the lock, stop worrying, use a hammer, read the small print, go to bed earlier, bake it for
    longer""")
NEWS = _list("""
    the cat had slept in the bath, the bridge was closed, the soup was too salty, the bus never came, the band
    had split up, the roof would hold, it would snow, the shop was moving, the keys were under the mat, the film was
    boring, the exam had been easy, the ice was too thin, the baker had retired, there were wolves in the forest,
    the train would be late, the lift was broken, the test was positive, the museum was free on Sundays""")
SKILLS = _list("""
    chess, the waltz, Morse code, poker, sign language, first aid, the tango, Welsh, Korean, knitting, ju-jitsu, the
    trumpet, origami, welding, calligraphy, juggling, bread making, the harp, backgammon, tap dancing""")
MEASURES = [  # claim, question and reply
    ("is {v} metres high", "How high is {it}?", "{It} is {v} metres high."),
    ("is {v} metres long", "How long is {it}?", "{It} is {v} metres long."),
    ("weighs {v} kilos", "How much does {it} weigh?", "{It} weighs {v} kilos."),
    ("is {v} years old", "How old is {it}?", "{It} is {v} years old."),
    ("costs {v} {coins}", "How much does {it} cost?", "{It} costs {v} {coins}."),
    ("cost {v} {coins}", "What did {it} cost?", "{It} cost {v} {coins}."),
    ("cost me {v} {coins}", "How much did I pay for {it}?", "You paid {v} {coins} for {it}."),
    ("has room for {v} people", "How many people fit into {it}?", "{v} people fit into {it}."),
    ("has {v} rooms", "How many rooms does {it} have?", "{It} has {v} rooms."),
    ("is on floor {v}", "Which floor is {it} on?", "{It} is on floor {v}."),
    ("opens at {v}", "When does {it} open?", "{It} opens at {v}."),
    ("has had {v} owners", "How many owners has {it} had?", "{It} has had {v} owners."),
]  # fmt: skip
QUALITIES = [  # claim, questions, reply and values
    ("smells of {v}", ["What does {it} smell of?", "What smell does {it} have?"], "{It} smells of {v}.", SMELLS),
    ("is made of {v}", ["What is {it} made of?", "Which material is {it}?"], "{It} is made of {v}.", MATERIALS),
    ("shows {v}", ["What does {it} show?", "What can you see on {it}?"], "{It} shows {v}.", SHAPES),
    ("is about {v}", ["What is {it} about?", "What's {it} about?"], "{It} is about {v}.", MATTERS),
    ("has {v}", ["What does {it} have?", "What's special about {it}?"], "{It} has {v}.", PARTS),
    ("is called {v}", ["What is {it} called?", "What's the name of {it}?"], "{It} is called {v}.", NAMES),
    ("belonged to {v}", ["Who did {it} belong to?", "Whose was {it} before?", "Who had {it} before me?"],
     "{It} belonged to {v}.", OWNERS),
    ("used to belong to {v}", ["Who owned {it} before?", "Who was the old owner of {it}?"],
     "{It} belonged to {v}.", OWNERS),
    ("is {v}", ["What colour is {it}?", "Which colour does {it} have?"], "{It} is {v}.", sorted(COLOURS)),
]  # fmt: skip
IRREGULAR = dict(
    pair.split(":")
    for pair in """sheep:sheep fish:fish deer:deer series:series mouse:mice goose:geese tooth:teeth loaf:loaves
    calf:calves knife:knives thief:thieves scarf:scarves man:men milkman:milkmen postman:postmen""".split()
)

# ------------------------------------------------------------------------------------------------------------- words


def plural(noun: str) -> str:
    """plates, boxes, berries, bunches of flowers."""
    head, of, rest = noun.partition(" of ")
    first, _, last = head.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif re.search(r"(s|x|z|ch|sh)$", last) or last in ("potato", "tomato", "volcano", "mango"):
        last += "es"
    else:
        last = last[:-1] + "ies" if re.search(r"[^aeiou]y$", last) else last + "s"
    return f"{first} {last}".strip() + of + rest


def takes_an(word: str) -> bool:
    """Does "an" stand before this word?"""
    if re.match(r"(?i)(uni[^n]|use|usu|euro?p?|one|once|ukul|utr)", word) or re.match("U[A-Z]", word):
        return False
    return word[0].lower() in "aeiou" or re.match(r"(?i)(hour|honest|heir|honou?r|8|11\b|18\b|eight)", word) is not None


def with_article(words: str) -> str:
    """With "a" or "an"."""
    return f"a{'n' * takes_an(words)} {words}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def bare(text: str) -> str:
    """Without an article."""
    return re.sub(r"^(an?|the) ", "", text)


def third(base: str) -> str:
    """he breaks, he carries, he watches."""
    if re.search(r"[^aeiou]y$", base):
        return base[:-1] + "ies"
    return base + ("es" if re.search(r"(s|x|z|ch|sh|o)$", base) else "s")


class Agent:
    """Who does something: in the user's words and in the assistant's."""

    def __init__(self, text: str):
        self.user = text
        self.bot = "you" if text in ("I", "we") else re.sub(r"\b(my|our)\b", "your", text)
        self.many = text in ("I", "we") or text in PLURAL

    def form(self, singular: str, many: str, bot: bool = False) -> str:
        """The verb that fits: "has" or "have", "is" or "are" (or "am")."""
        if many == "are" and self.user == "I" and not bot:
            return "am"
        if many == "were" and self.user == "I" and not bot:
            return "was"
        return many if self.many else singular


def to_bot(text: str) -> str:
    """The user's words as the assistant says them."""
    voice = {"my": "your", "our": "your", "me": "you", "I": "you", "we": "you", "mine": "yours"}
    return re.sub(r"\b(my|our|me|I|we|mine)\b", lambda found: voice[found[0]], text)


# ------------------------------------------------------------------------------------------------------------ scenes


def event(rng: random.Random, agent: Agent) -> tuple[str, list[Question]]:
    """Somebody did, does, or will do something: who, what, how many, what colour, where, when, who with, why."""
    base, past, nouns = rng.choice(VERBS)
    noun = rng.choice(nouns)
    number = rng.choice(NUMBERS[: rng.choice((4, 8, 23))]) if rng.random() < 0.3 else ""
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.3 else ""
    described = f"{adjective} {noun}".strip()
    thing = f"{number} {plural(described)}" if number else with_article(described)
    the_thing = f"the {plural(noun) if number else noun}"
    tense = rng.choices(["past", "will", "wants", "habit"], [6, 1.5, 1.5, 1])[0]
    details = {}
    for key, values, chance in (
        ("where", PLACES, 0.4),
        ("when", LATER if tense in ("will", "wants") else TIMES, 0.4),
        ("with", COMPANY, 0.15),
        ("why", REASONS, 0.12),
    ):
        if rng.random() < chance and not (tense == "habit" and key in ("when", "why")):
            details[key] = rng.choice(values)
    if tense in ("will", "wants"):
        details.pop("why", None)
    if details.get("with") == agent.user or details.get("with", "") in agent.user:
        details.pop("with", None)
    extra = "".join(
        f" with {value}" if key == "with" else f" because {value}" if key == "why" else f" {value}"
        for key, value in details.items()
    )
    is_are = "am" if agent.user == "I" else "are" if agent.many else "is"
    said = {
        "past": [past],
        "will": [f"will {base}", f"{is_are} going to {base}", f"{agent.form('plans', 'plan')} to {base}"],
        "wants": [f"{agent.form('wants', 'want')} to {base}", f"would like to {base}"],
        "habit": [f"always {agent.form(third(base), base)}", f"often {agent.form(third(base), base)}"],
    }[tense]
    told = f"{agent.user} {rng.choice(said)} {thing}{extra}"
    if "when" in details and rng.random() < 0.25:
        told = f"{agent.user} {rng.choice(said)} {thing}" + extra.replace(f" {details['when']}", "")
        told = f"{details['when']}, {told}"
    will = {
        "past": past,
        "will": f"will {base}",
        "wants": f"{agent.form('wants', 'want')} to {base}",
        "habit": agent.form(third(base), base),
    }[tense]
    do = {
        "past": "did",
        "will": "will",
        "wants": agent.form("does", "do"),
        "habit": agent.form("does", "do"),
    }[tense]
    verb = {"past": base, "will": base, "wants": f"want to {base}", "habit": base}[tense]
    who = {"past": past, "will": f"will {base}", "wants": f"wants to {base}", "habit": third(base)}[tense]
    you = capital(agent.bot)
    core = f"{you} {will} {thing}"
    short = rng.random() < 0.25
    asked: list[Question] = []

    def ask(texts: list[str], reply: str, value: str, brief: str = "") -> None:
        reply = brief if short and brief else reply
        asked.append((rng.choice(texts), capital(to_bot(reply)) + ".", value))

    if agent.user not in ("I", "we"):
        value = bare(agent.bot)
        ask(
            [f"Who {who} {the_thing}?", f"Who {who} {thing}?", f"Who was it that {who} {the_thing}?"]
            + [f"Who {who} {the_thing} {details[key]}?" for key in ("where", "when") if key in details],
            f"{agent.user} {will} {thing}",
            value,
            agent.user,
        )
    place = "".join(f" {details[key]}" for key in ("where", "when") if key in details and rng.random() < 0.5)
    if not number:
        ask(
            [f"What {do} {agent.user} {verb}{place}?", f"What was it that {agent.user} {will}?"][
                : 1 + (rng.random() < 0.1)
            ],
            core,
            described,
            thing,
        )
    else:
        ask(
            [
                f"How many {plural(noun)} {do} {agent.user} {verb}?",
                f"How many {plural(noun)} {do} {agent.user} {verb}{place}?",
            ],
            core,
            number,
            number,
        )
        ask([f"What {do} {agent.user} {verb}{place}?"], core, plural(noun), thing)
    if adjective in COLOURS:
        ask(
            [f"What colour {'are' if number else 'is'} {the_thing} that {agent.user} {will}?"]
            + [f"Which colour {'are' if number else 'is'} {the_thing}?"],
            f"{the_thing} {'are' if number else 'is'} {adjective}",
            adjective,
            adjective,
        )
    elif adjective:
        ask([f"What kind of {noun} {do} {agent.user} {verb}?"], core, adjective, thing)
    for key, asks in (
        ("where", [f"Where {do} {agent.user} {verb} {the_thing}?", f"Where {do} {agent.user} {verb} {thing}?"]),
        (
            "when",
            [f"When {do} {agent.user} {verb} {the_thing}?", f"When was it that {agent.user} {will} {the_thing}?"][
                : 1 + (tense == "past")
            ],
        ),
        (
            "with",
            [f"Who {do} {agent.user} {verb} {the_thing} with?", f"With whom {do} {agent.user} {verb} {the_thing}?"],
        ),
        ("why", [f"Why {do} {agent.user} {verb} {the_thing}?"]),
    ):
        if key in details:
            link = {"with": "with ", "why": "because "}.get(key, "")
            value = details[key]
            part = re.sub(r"^(in|on|at|by|near|under|behind|next to|during|before|after) ", "", value)
            ask(asks, f"{core} {link}{value}", bare(to_bot(part)), f"{link}{value}")
    return told, asked


def thing(rng: random.Random, agent: Agent) -> tuple[str, list[Question]]:
    """A thing and its properties, in one or two sentences."""
    noun = rng.choice(OWNED)
    mine = {"I": "my", "we": "our"}.get(agent.user, f"{agent.user}'s")
    owned = f"{mine} {noun}"
    asked: list[Question] = []
    names = [owned, owned, f"the {noun}"]
    lines = []
    if agent.user in ("I", "we") and rng.random() < 0.5:
        got = rng.choice(["bought", "inherited", "got", "borrowed", "found", "looked at", "was given", "won", "made"])
        got = got.replace("was", "were") if agent.user == "we" else got
        lines.append(f"{agent.user} {got} {with_article(noun)}")
        owned, names = f"the {noun}", [f"the {noun}"]
    subjects = [owned if not lines else "it"]
    for _ in range(rng.choice([1, 1, 2, 2, 3])):
        it, kind = rng.choice(names), rng.random()
        subject = subjects[0] if not asked else rng.choice(["it", f"the {noun}"])
        bot_it = to_bot(it)
        if kind < 0.35:
            claim, question, reply = rng.choice(MEASURES)
            number = rng.choice(NUMBERS)
            number = number if rng.random() < 0.6 else str(rng.randint(2, 950))
            coins = rng.choice(COINS)
            values = {"v": number, "coins": coins}
            lines.append(f"{subject} {claim.format(**values)}")
            reply = capital(reply.format(it=bot_it, It=capital(bot_it), **values))
            asked.append((question.format(it=it, **values), reply, number))
        elif kind < 0.75:
            claim, questions, reply, values = rng.choice(QUALITIES)
            value = rng.choice(values)
            lines.append(f"{subject} {claim.format(v=value)}")
            reply = reply.format(v=to_bot(value), it=bot_it, It=capital(bot_it))
            asked.append((rng.choice(questions).format(it=it), reply, bare(to_bot(value))))
        else:
            state = rng.choice(STATES)
            lines.append(f"{subject} {state}")
            reply = f"{capital(bot_it)} {to_bot(state)}."
            asked.append(
                (rng.choice([f"What's wrong with {it}?", f"What did I say about {it}?"]), reply, to_bot(state))
            )
            if mine not in ("my", "our") and owned != f"the {noun}":
                whose = capital(to_bot(mine))
                brief = f"{whose} {noun} {to_bot(state)}." if rng.random() < 0.6 else f"{whose}."
                asked.append((f"Whose {noun} {state}?", brief, bare(to_bot(mine))))
    if lines[0].startswith("it "):
        lines[0] = lines[0].replace("it ", f"the {noun} ", 1)
    kept, seen = [], set()  # where one question has two values, both are left out
    for question in asked:
        if sum(other[0].split()[:3] == question[0].split()[:3] for other in asked) == 1 and question[0] not in seen:
            kept.append(question)
            seen.add(question[0])
    return ". ".join(lines if len(lines) == 1 else [lines[0], *map(capital, lines[1:])]), kept


def saying(rng: random.Random, agent: Agent) -> tuple[str, list[Question]]:
    """What somebody said, advised or taught; or how old somebody is."""
    kind = rng.choice(["order", "news", "skill", "age", "not for", "first"])
    if agent.user in ("I", "we") and kind in ("order", "news", "skill"):
        agent = Agent(rng.choice(SUBJECTS))
    you, value = capital(agent.bot), bare(agent.bot)
    if kind in ("order", "news"):
        what = rng.choice(ORDERS if kind == "order" else NEWS)
        first, second = ("to ", "I should ") if kind == "order" else ("that ", "")
        told = rng.choice([f"{agent.user} told me {first}{what}", f"{agent.user} said {second}{what}"])
        who = rng.choice([f"Who told me {first}{what}?", f"Who said {second or first}{what}?"])
        ask = ["What did {} tell me to do?", "What should I do, as {} said?"]
        ask = ask if kind == "order" else ["What did {} tell me?", "What did {} say?"]
        return told, [
            (who, rng.choice([f"{you} told you {first}{what}.", f"{you} said that.", f"{you} did."]), value),
            (rng.choice(ask).format(agent.user), f"{you} told you {first}{to_bot(what)}.", to_bot(what)),
        ]
    if kind == "skill":
        skill = rng.choice(SKILLS)
        told = rng.choice([f"{agent.user} taught me {skill}", f"{agent.user} is teaching me {skill}"])
        done = "taught" if "taught" in told else "is teaching"
        asks = "did {} teach me" if done == "taught" else "is {} teaching me"
        return told, [
            (f"Who {done} me {skill}?", f"{you} {done} you {skill}.", value),
            (f"What {asks.format(agent.user)}?", f"{you} {done} you {skill}.", bare(skill)),
        ]
    if kind == "age":
        age = rng.choice(NUMBERS) if rng.random() < 0.5 else rng.choice(["", "", "twenty-", "forty-", "ninety-"])
        age = age + rng.choice(_list("one,four,six,seven,nine")) if age.endswith("-") or not age else age
        be, was = agent.form("is", "are"), agent.form("turns", "turn")
        told = rng.choice(
            [f"{agent.user} {be} {age} years old", f"{agent.user} {was} {age} next week", f"{agent.user} {be} {age}"]
        )
        future = was in told.split() and "next week" in told
        question = f"How old {'will' if future else be} {agent.user}{' be' if future else ''}?"
        reply = f"{you} will be {age}." if future else f"{you} {agent.form('is', 'are', True)} {age}."
        return told, [(question, reply, age)]
    if kind == "not for":
        number = rng.choice(NUMBERS)
        unit = rng.choice(_list("days, weeks, months, years, hours"))
        what = rng.choice(
            _list("""gambled, eaten meat, seen the sea, had coffee, spoken to Hugo, been to the dentist,
            worn a tie, played the piano, slept well, missed a lesson, watched television, cut the hedge""")
        )
        have = agent.form("has", "have")
        told = f"{agent.user} {have}n't {what} for {number} {unit}"
        asks = [f"For how many {unit} {have} {agent.user} not {what}?", f"How long {have} {agent.user} not {what}?"]
        return told, [
            (rng.choice(asks), f"{you} {have}n't {what} for {number} {unit}.", number),
            (f"What {have} {agent.user} not done for {number} {unit}?", f"{you} {have}n't {what}.", what),
        ]
    base, past, nouns = rng.choice([verb for verb in VERBS if len(verb[2]) > 3])
    one, two = rng.sample(nouns, 2)
    order = rng.choice([("first {one}, then {two}"), ("{one} first, and {two} after that")])
    told = f"{agent.user} {past} " + order.format(one=with_article(one), two=with_article(two))
    return told, [
        (f"What did {agent.user} {base} first?", f"First {agent.bot} {past} {with_article(one)}.", one),
        (f"What did {agent.user} {base} after the {one}?", f"After that {agent.bot} {past} {with_article(two)}.", two),
    ]


def scene(rng: random.Random, people: list[str]) -> tuple[list[str], list[Question]]:
    """One to three sentences of the user, and questions that they answer. people: who can be in it."""
    who = rng.choice(["I", "I", "we", rng.choice(SUBJECTS), rng.choice(SUBJECTS), *(people and [rng.choice(people)])])
    lines, asked = [], []
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.choices([event, thing, saying], [5, 2.5, 2])[0]
        told, questions = kind(rng, Agent(who))
        lines.append(capital(told) + ".")
        asked += questions
        who = rng.choice(["I", who, rng.choice(SUBJECTS)])
    return lines, asked
