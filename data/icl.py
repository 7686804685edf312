"""Multi-task in-context learning: only the demonstrations say what the labels mean (like MetaICL in the paper).

A task is a family of items (words, reviews, headlines, ...), a set of 2 to 4 classes of that family, and a format. Its
16 contexts are demonstrations, "sparrow: amber", and its input is one more item without the label. Each sample draws
new label words, so an answer without demonstrations is a guess, and a class that no context has shown yet can at best
be found by elimination. Items occur once in a sample: a model must know the class and cannot copy.

No two splits share a set of classes, and classes of a validation or test set never occur together in a train sample.
Some train samples name the class of each item, "sparrow - bird: amber", a first step for a small model.
"""

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
from zlib import crc32

from data import main

CONTEXTS = 16
COVER = 0.65  # how often the first contexts are sure to show every class once (a shuffle may do so by chance, too)
INVENTED = 0.2  # how often labels are invented words
WORD = 0.7  # how often a task is about single words, not sentences
NAMED = 0.4  # how often a train sample names the class next to each item: there, answering is matching and copying
SIZES = {2: 0.25, 3: 0.35, 4: 0.4}  # how often a task has that many classes

LABELS = """
    amber delta nova echo pixel comet orbit vector sigma omega alpha gamma beta theta kappa zeta bravo tango sierra
    metro turbo laser radar sonar motor rotor lever pivot axis apex vertex zenith summit ridge anchor beacon
    lantern candle torch ember spark flame smoke dust pebble boulder gravel clay marble timber plank beam pillar
    column arch dome vault gate bridge tunnel alley avenue corner border margin edge rim core kernel seed sprout
    branch twig petal thorn root moss fern reed straw bale bundle packet parcel ticket token coin badge medal
    ribbon banner flag signal chime gong rhythm tempo chorus verse stanza rhyme riddle maze quest saga myth legend
    fable motto slogan title index chapter page scroll cipher code digit cursor socket cable fiber wire coil magnet
    lens mirror crystal relic idol statue totem mask costume cloak crown throne herald knight wizard captain pirate
    nomad pilgrim scout ranger mentor rival guest host canal meadow harbor satchel pageant dialect orchard
    """.split()
SYLLABLES = [consonant + vowel for consonant in "bdfklmrvz" for vowel in "aio"]

NAMES = "Adam Alice Ben Clara David Emma Felix Grace Henry Ivy Jack Kate Leo Mary Noah Olive Paul Rosa Sam Tina".split()

WORDS = {  # class: its words; no word has two classes
    "animal": "dog cat horse cow sheep goat pig wolf bear lion tiger fox rabbit deer mouse camel",
    "bird": "sparrow robin crow eagle hawk owl pigeon swan duck goose parrot heron gull falcon finch raven",
    "body part": "arm leg hand foot knee elbow shoulder neck ear nose mouth finger toe wrist ankle chin",
    "building": "house church castle school hospital hotel museum library theatre factory bank prison tower palace "
    "barn temple",
    "calendar": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April June July "
    "August September October",
    "city": "Paris London Berlin Rome Madrid Vienna Oslo Cairo Tokyo Delhi Lima Athens Dublin Prague Lisbon Boston",
    "cloth": "cotton wool silk linen leather velvet denim nylon satin felt lace fleece canvas suede tweed polyester",
    "clothes": "shirt coat hat scarf glove sock skirt dress jacket sweater trousers belt vest shoe boot apron",
    "colour": "red blue green yellow purple pink brown black white grey orange crimson violet beige scarlet indigo",
    "container": "box bag basket bucket barrel bottle jar crate sack vase suitcase tank envelope carton backpack purse",
    "country": "France Spain Italy Norway Sweden Poland Greece Egypt Kenya India China Japan Brazil Peru Canada Mexico",
    "dish": "soup pizza pasta salad burger sandwich omelette curry stew pancake sushi taco lasagne risotto noodles "
    "dumpling",
    "drink": "coffee tea milk juice water wine beer cider cocoa lemonade soda whisky rum gin vodka champagne",
    "emotion": "joy anger fear grief pride shame envy hope love hate guilt relief sorrow delight boredom jealousy",
    "fish": "trout salmon tuna cod herring carp pike eel bass perch sardine haddock halibut shark mackerel flounder",
    "flower": "rose tulip daisy lily orchid poppy iris daffodil lavender jasmine peony marigold pansy lotus carnation "
    "sunflower",
    "fruit": "apple pear plum cherry grape lemon banana mango peach melon lime papaya apricot fig kiwi coconut",
    "furniture": "chair table sofa bed desk shelf cupboard stool bench wardrobe dresser bookcase armchair couch "
    "cabinet cradle",
    "gem": "ruby emerald diamond sapphire opal topaz jade pearl garnet amethyst agate quartz onyx moonstone zircon "
    "turquoise",
    "insect": "ant bee wasp beetle moth gnat locust termite flea mosquito butterfly dragonfly ladybug hornet aphid "
    "cockroach",
    "instrument": "piano violin guitar flute drum trumpet cello harp clarinet banjo oboe trombone saxophone tuba "
    "accordion mandolin",
    "job": "doctor teacher lawyer baker farmer nurse plumber carpenter engineer waiter tailor butcher barber dentist "
    "journalist gardener",
    "kitchenware": "pot pan spoon fork knife plate bowl cup kettle ladle whisk jug mug saucer teapot toaster",
    "landscape": "mountain river lake valley hill island desert forest ocean beach cliff cave glacier volcano swamp "
    "canyon",
    "language": "English French German Spanish Italian Dutch Danish Swedish Polish Greek Russian Turkish Arabic Hindi "
    "Chinese Japanese",
    "metal": "iron gold silver copper tin zinc nickel steel bronze brass platinum titanium aluminium mercury chrome "
    "tungsten",
    "movement": "run walk jump crawl climb hop skip march swim dance gallop stroll sprint leap limp wander",
    "number": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen twenty",
    "relative": "mother father sister brother uncle aunt cousin nephew niece grandmother grandfather son daughter "
    "husband wife grandson",
    "reptile": "snake lizard crocodile turtle cobra python viper gecko iguana tortoise alligator chameleon anaconda "
    "rattlesnake adder boa",
    "science": "algebra geometry biology chemistry physics history geography philosophy economics astronomy botany "
    "geology psychology statistics sociology linguistics",
    "shape": "circle square triangle rectangle oval cube sphere cone cylinder pyramid hexagon pentagon octagon "
    "rhombus ellipse prism",
    "speech": "shout whisper mumble yell mutter scream murmur ask reply talk chat argue announce declare speak explain",
    "spice": "pepper salt ginger cinnamon basil parsley thyme mint nutmeg saffron oregano vanilla paprika cumin clove "
    "rosemary",
    "sport": "tennis football golf hockey rugby basketball volleyball boxing judo rowing swimming archery fencing "
    "wrestling badminton skiing",
    "tool": "hammer saw drill wrench chisel screwdriver pliers shovel rake axe spade crowbar mallet sander ladder "
    "clamp",
    "tree": "oak pine birch maple elm ash willow cedar beech poplar spruce fir larch alder cypress sycamore",
    "vegetable": "carrot onion potato cabbage lettuce spinach celery leek turnip radish cucumber broccoli pumpkin "
    "garlic pea bean",
    "vehicle": "car bus train tram truck bicycle plane ship ferry taxi scooter van tractor helicopter ambulance "
    "motorcycle",
    "weather": "rain snow hail fog mist thunder lightning drizzle storm breeze frost sleet hurricane tornado blizzard "
    "sunshine",
}

# Sentences: class: phrases that only this class has, comma separated. {n}, {o}, ... are filled from FILLERS at random.
SENTENCES = {
    "act": {
        "apology": "sorry about, I am sorry for, please forgive me for, my apologies for, excuse me for, I apologise "
        "for, we are sorry for, pardon me for, I feel bad about, I was wrong about, I deeply regret, it was my fault "
        "with",
        "order": "bring me, give me, take away, hide, open, put down, fetch, clean, move, hold, drop, carry",
        "praise": "how nice is, what a joy is, I admire, how pretty is, I really love, everybody loves, well done "
        "with, how clever is, I adore, bravo for, what a beauty is, hooray for",
        "promise": "I will bring, tomorrow I repair, I promise you, we shall pay for, I swear to return, you can "
        "count on, I will find, we will send, I shall protect, soon you get, I will look after, we shall replace",
        "question": "where is, who has, when did you see, do you like, can you see, why did you buy, how big is, what "
        "about, is that, have you got, did you find, may I borrow",
        "thanks": "thank you for, many thanks for, thanks a lot for, I am grateful for, thanks so much for, we thank "
        "you for, how kind to give me, I am glad to get, a thousand thanks for, I appreciate, we are thankful for, "
        "bless you for",
    },
    "feeling": {
        "afraid": "afraid, scared, frightened, terrified, nervous, anxious, worried, alarmed, timid, panicked, "
        "fearful, uneasy",
        "angry": "angry, furious, mad, annoyed, irritated, outraged, cross, enraged, bitter, hostile, livid, grumpy",
        "calm": "calm, relaxed, peaceful, serene, composed, placid, untroubled, easygoing, mellow, settled, carefree, "
        "patient",
        "happy": "happy, glad, cheerful, joyful, merry, delighted, thrilled, jolly, pleased, content, excited, "
        "overjoyed",
        "sad": "sad, unhappy, gloomy, tearful, miserable, heartbroken, lonely, sorrowful, upset, glum, downcast, "
        "hopeless",
        "tired": "tired, sleepy, exhausted, weary, drowsy, drained, fatigued, worn out, spent, listless, sluggish, "
        "half asleep",
    },
    "headline": {
        "business": "profit, market, shares, merger, investor, sales, revenue, trade, company, inflation, stock, "
        "export",
        "crime": "thief, robbery, police, jail, burglar, detective, theft, prisoner, judge, fraud, suspect, smuggler",
        "culture": "film, actor, orchestra, gallery, painter, novel, singer, festival, ballet, poet, album, sculptor",
        "health": "vaccine, surgeon, patient, virus, diet, clinic, medicine, therapy, infection, flu, allergy, "
        "epidemic",
        "politics": "election, minister, parliament, senator, president, vote, campaign, treaty, embassy, mayor, "
        "congress, ballot",
        "research": "telescope, laboratory, atom, experiment, planet, scientist, genome, rocket, microscope, "
        "particle, satellite, robot",
        "sports": "goal, match, coach, striker, referee, league, trophy, stadium, championship, goalkeeper, athlete, "
        "tournament",
        "travel": "airport, tourist, luggage, passport, flight, cruise, resort, voyage, sightseeing, souvenir, "
        "hostel, runway",
    },
    "outside": {
        "foggy": "foggy, misty, hazy, murky, gloomy, dim, grey, smoky, cloudy, overcast, blurred, dull",
        "hot": "hot, scorching, boiling, sweltering, baking, tropical, torrid, burning, roasting, sultry, blazing, "
        "sizzling",
        "rainy": "rainy, wet, drizzly, pouring, showery, damp, soggy, dripping, moist, soaking, flooded, muddy",
        "snowy": "snowy, icy, frosty, freezing, frozen, wintry, arctic, slushy, chilly, cold, polar, slippery",
        "sunny": "sunny, bright, clear, cloudless, golden, shiny, radiant, glowing, brilliant, fine, sparkling, "
        "dazzling",
        "windy": "windy, breezy, gusty, blustery, stormy, squally, wild, rough, howling, whirling, draughty, blowy",
    },
    "place": {
        "bathroom": "shower, bathtub, toilet, towel, toothbrush, soap, sponge, shampoo, washbasin, hairdryer, razor, "
        "bathrobe",
        "classroom": "blackboard, schoolbag, chalk, globe, pupils, textbook, homework, ruler, exam, lunchbox, "
        "crayons, eraser",
        "farm": "barn, haystack, tractor, cowshed, pigsty, scarecrow, plough, stable, henhouse, silo, cornfield, "
        "piglets",
        "garden": "lawn, hedge, flowerbed, greenhouse, sprinkler, gnome, compost, wheelbarrow, rosebush, birdhouse, "
        "patio, flowerpot",
        "kitchen": "stove, oven, fridge, dishwasher, cookbook, spices, toaster, pantry, freezer, microwave, grater, "
        "saucepan",
        "office": "printer, keyboard, stapler, photocopier, paperclips, boss, spreadsheet, conference, scanner, "
        "secretary, monitor, invoices",
        "seaside": "sandcastle, lighthouse, pier, seashell, tide, surfboard, seaweed, jellyfish, sailboat, driftwood, "
        "dunes, waves",
    },
    "property": {
        "big": "big, huge, large, giant, enormous, massive, gigantic, vast, immense, colossal, mighty, bulky",
        "broken": "broken, cracked, smashed, shattered, damaged, ruined, torn, wrecked, split, snapped, crushed, burst",
        "cheap": "cheap, inexpensive, reduced, discounted, affordable, low-cost, bargain, budget, half-price, "
        "second-hand, free, thrifty",
        "clean": "clean, spotless, washed, polished, tidy, neat, pure, scrubbed, fresh, stainless, rinsed, immaculate",
        "dirty": "dirty, filthy, muddy, dusty, stained, grimy, greasy, messy, smeared, grubby, sooty, unwashed",
        "old": "old, ancient, antique, aged, vintage, outdated, historic, worn, faded, rusty, old-fashioned, medieval",
        "small": "small, tiny, little, mini, minute, petite, compact, miniature, short, slim, microscopic, "
        "pocket-sized",
    },
    "quantity": {
        "all": "all the, every one of the, all of the, each of the, all of these, the whole set of, all our, all "
        "those, each one of the, the full number of, the entire group of, every last one of the",
        "few": "a few, two or three, only some, a couple of, hardly any, a handful of, one or two, a small number of, "
        "just some, three or four, scarcely any, a pair of",
        "many": "many, lots of, plenty of, hundreds of, countless, dozens of, thousands of, masses of, heaps of, tons "
        "of, millions of, a large number of",
        "none": "no, none of the, not one of the, zero, none of these, not any of the, none of our, neither of the, "
        "not even one of the, none of those, absolutely no, never any",
    },
    "review": {
        "average": "average, ordinary, okay, fair, decent, acceptable, so-so, passable, mediocre, standard, usual, "
        "tolerable",
        "bad": "terrible, awful, horrible, dreadful, poor, boring, disappointing, ugly, nasty, bad, lousy, pathetic",
        "funny": "funny, hilarious, amusing, comic, witty, silly, humorous, playful, laughable, goofy, cheeky, comical",
        "good": "wonderful, excellent, great, superb, amazing, fantastic, lovely, perfect, brilliant, charming, "
        "marvelous, splendid",
        "strange": "strange, odd, weird, curious, unusual, bizarre, puzzling, peculiar, mysterious, eerie, "
        "unfamiliar, surreal",
        "useful": "useful, helpful, practical, handy, informative, instructive, valuable, worthwhile, beneficial, "
        "educational, effective, productive",
    },
    "time": {
        "future": "tomorrow, next week, next year, next month, in two days, soon, next summer, in an hour, later, "
        "next Monday, before long, one day",
        "habit": "always, every day, every week, usually, often, each morning, every summer, all the time, most days, "
        "every night, as a rule, every Monday",
        "now": "now, at the moment, at this moment, currently, this minute, at present, as we speak, this instant, "
        "this second, at this hour, even as I write, for the time being",
        "past": "yesterday, last week, last night, last year, two days ago, long ago, a month ago, last summer, years "
        "ago, last Monday, an hour ago, last winter",
    },
}

TEMPLATES = {  # of a family, or of each of its classes; a phrase never comes first, so it is always written alike
    "act": {
        "order": ["{n} said: {x} the {o}!", "I heard {n} call: {x} the {o}!"],
        "question": ["{n} said: {x} the {o}?", "I heard {n} call: {x} the {o}?"],
        "": ["{n} said: {x} the {o}.", "I heard {n} call: {x} the {o}."],
    },
    "feeling": [
        "{n} is {x} today.",
        "{n} felt {x} after the meeting.",
        "All day long {n} was {x}.",
        "I think {n} seems {x}.",
        "We found {n} very {x} at home.",
        "{n} looked {x} in the photo.",
    ],
    "headline": [
        "News about the {x} in {c}.",
        "The {x} makes the front page.",
        "More on the {x} from {c} today.",
        "People talk about the {x} again.",
        "What the {x} means for {c}.",
        "Our report on the {x}.",
    ],
    "outside": [
        "It is {x} in {c}.",
        "It was a {x} day for {n}.",
        "The weather in {c} looks {x}.",
        "{n} walks on a {x} morning.",
        "We expect a {x} night in {c}.",
        "{n} says it is {x} outside.",
    ],
    "place": [
        "{n} is near the {x}.",
        "{n} talks about the {x}.",
        "The {o} was next to the {x}.",
        "{n} looked for the {x}.",
        "Please show {n} the {x}.",
        "I can see the {x} from here.",
    ],
    "property": [
        "The {o} is {x}.",
        "{n} has a {x} {o}.",
        "I saw the {x} {o}.",
        "Who wants this {x} {o}?",
        "{n} sold the {x} {o}.",
        "My {o} was {x}.",
    ],
    "quantity": [
        "{n} saw {x} {p}.",
        "In the end {x} {p} were sold.",
        "There were {x} {p} in the shop.",
        "{n} wants {x} {p}.",
        "I think {x} {p} are here.",
    ],
    "review": [
        "The {r} was {x}.",
        "I found the {r} {x}.",
        "{n} called the {r} {x}.",
        "It was a {x} {r}.",
        "What a {x} {r} it was!",
        "We thought the {r} was {x}.",
    ],
    "time": {
        "future": ["{n} will visit {c} {x}.", "We will buy the {o} {x}.", "{n} will come {x}."],
        "habit": ["{n} visits {c} {x}.", "We buy the {o} {x}.", "{n} comes {x}."],
        "now": ["{n} is visiting {c} {x}.", "We are buying the {o} {x}.", "{n} is coming {x}."],
        "past": ["{n} visited {c} {x}.", "We bought the {o} {x}.", "{n} came {x}."],
    },
    "word": ["{x}"],
}
FILLERS = {
    "c": WORDS["city"].split(),
    "n": NAMES,
    "o": "book lamp chair bag clock box car phone cup coat".split(),  # an object
    "p": "books lamps chairs bags clocks birds cars phones cups coats".split(),
    "r": "film book hotel meal concert show play song trip party".split(),  # what is reviewed
}
FORMATS = {  # what precedes the label, for words and for sentences
    "word": ["{x}", "{x}:", "word {x}", "I say {x}", "Put {x} in", "{x} =>"],
    "sentence": ["{x}", "{x} Label:", "{x} ->", "Text: {x}", "{x} Group:"],
}  # fmt: skip

FAMILIES = {"word": {name: words.split() for name, words in WORDS.items()}} | {
    family: {name: phrases.split(", ") for name, phrases in classes.items()} for family, classes in SENTENCES.items()
}


@lru_cache
def class_sets(split: str) -> dict[str, dict[int, list[tuple[str, ...]]]]:
    """The sets of classes of a split, by family and size. A train set has no subset that belongs to another split."""
    result = {}
    for family, classes in FAMILIES.items():
        sizes, train = {}, {(name,) for name in classes}
        for size in SIZES:
            every = [(names, _hashed_split(family, names)) for names in combinations(sorted(classes), size)]
            train = {
                n for n, home in every if home == "train" and all(sub in train for sub in combinations(n, size - 1))
            }
            found = [n for n, home in every if home == split and (split != "train" or n in train)]
            if found:
                sizes[size] = found
        if sizes:
            result[family] = sizes
    return result


def _hashed_split(family: str, names: tuple[str, ...]) -> str:
    """The split that the hash of a set of classes names: 80% train, 10% validation, 10% test."""
    bucket = crc32(f"icl {family}: {', '.join(names)}".encode()) % 1009 % 10
    return {0: "validation", 1: "test"}.get(bucket, "train")


def _draw_task(rng: random.Random, split: str) -> tuple[str, tuple[str, ...], str]:
    """A task of the split: family, classes and format."""
    families = class_sets(split)
    family = "word" if rng.random() < WORD else rng.choice([name for name in families if name != "word"])
    sizes = list(families[family])
    size = rng.choices(sizes, [SIZES[size] for size in sizes])[0]
    layout = rng.choice(FORMATS["word" if family == "word" else "sentence"])
    return family, rng.choice(families[family][size]), layout


def _rng(split: str, seed: int, index: int) -> random.Random:
    """The source of all that is random in one sample."""
    return random.Random(f"icl {split} {seed} {index}")


def task_of(split: str, index: int, seed: int = 0) -> tuple[str, tuple[str, ...], str]:
    """The task of sample `index`: family, classes and format."""
    return _draw_task(_rng(split, seed, index), split)


def _draw_labels(rng: random.Random, count: int) -> list[str]:
    """So many different label words: all of them common words or all of them invented."""
    if rng.random() >= INVENTED:
        return rng.sample(LABELS, count)
    syllables = rng.sample(SYLLABLES, 2 * count)
    return [start + end for start, end in zip(syllables[:count], syllables[count:])]


def _draw_order(rng: random.Random, classes: tuple[str, ...], most: int) -> list[str]:
    """The classes of the demonstrations and of what is asked, each at most `most` times.

    They are drawn independently, so that counting labels does not tell the next one; but each is demonstrated, and
    mostly once at the very beginning.
    """
    while True:
        order = [rng.choice(classes) for _ in range(CONTEXTS + 1)]
        first = rng.sample(classes, len(classes))
        places = range(len(first)) if rng.random() < COVER else rng.sample(range(CONTEXTS), len(first))
        for place, name in zip(places, first):
            order[place] = name
        if max(map(order.count, classes)) <= most:
            return order


def _item(rng: random.Random, family: str, name: str, phrase: str) -> str:
    """A word as it is, or a sentence around a phrase of the class."""
    templates = TEMPLATES[family]
    if isinstance(templates, dict):
        templates = templates.get(name) or templates[""]
    text = rng.choice(templates).format(x=phrase, **{key: rng.choice(words) for key, words in FILLERS.items()})
    return re.sub(r"\ba (?=[aeio]|un|ug)", "an ", text)


def sample(split: str, index: int, seed: int = 0) -> dict:
    """Sample `index` of a split."""
    rng = _rng(split, seed, index)
    family, classes, layout = _draw_task(rng, split)
    labels = dict(zip(classes, _draw_labels(rng, len(classes))))
    order = _draw_order(rng, classes, min(len(FAMILIES[family][name]) for name in classes))
    phrases = {name: rng.sample(FAMILIES[family][name], order.count(name)) for name in classes}
    items = [_item(rng, family, name, phrases[name].pop()) for name in order]
    if split == "train" and rng.random() < NAMED:
        items = [f"{item} - {name}" for item, name in zip(items, order)]
    inputs = [layout.format(x=item) for item in items]
    options = rng.sample(sorted(labels.values()), len(labels))
    contexts = [f"{text} {labels[name]}" for text, name in zip(inputs, order[:-1])]
    return {"contexts": contexts, "input": inputs[-1], "target": labels[order[-1]], "options": options}


def generate(split: str, count: int, seed: int = 0) -> Iterator[dict]:
    """Yields the first `count` samples of "train", "validation" or "test"; each depends on its number and seed only."""
    for index in range(count):
        yield sample(split, index, seed)


if __name__ == "__main__":
    main(generate)
