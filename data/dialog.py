"""Generated conversations: a user tells facts about their life, and later asks for one of them.

The idea: a model can answer "Do you remember where my sister lives?" only from an earlier turn. How often it names the
right city measures how much of that turn its compressed memory has kept. A fact is (subject, kind, value), such as
(my sister, city, Lisbon), and three tables make a dialogue out of facts: the values, drawn uniformly so that guessing
fails; the kinds, each with several ways to tell it, to ask for it and to answer; and the small talk in between.

Each sample depends on (split, seed, its number) alone, and so is the same on every machine. The values of a
(subject, kind) are shared out among the splits by a stable hash: no fact of a test dialogue occurs in training.
"""

import itertools
import random
import zlib
from collections import namedtuple
from collections.abc import Iterator
from functools import lru_cache

from data import SPLITS, main

TURNS = range(4, 31)  # of a dialogue of `generate`: its contexts, the input and the target
REACH = 20  # the asked fact is told at most this many contexts ago
RECALL = 0.7  # share of the samples of `generate` that end in a recall question
FORGETFUL = 0.5  # share of the dialogues in which the User asks for facts all the time, and not just now and then

# ---------------------------------------------------------------------------------------------------------- values


def _words(text: str) -> list[str]:
    """The entries of a comma-separated table."""
    return [" ".join(entry.split()) for entry in text.split(",")]


def _pairs(first: str, second: str, joint: str = " ") -> list[str]:
    """Every entry of the first table with every one of the second."""
    return [a + joint + b for a in _words(first) for b in _words(second)]


def _invented(count: int) -> list[str]:
    """Names from syllables that no list of names has, so that a model has to copy them rather than know them."""
    rng = random.Random("invented")
    starts = _words("Bel, Bro, Dar, Dol, Fen, Gal, Hol, Jor, Kal, Kel, Lom, Mar, Mel, Nor, Pel, Quin, Ral, Sol, Tar, "
                    "Tor, Ul, Val, Vel, Wen, Yor, Zan, Zel")
    middles = _words("a, e, i, o, ba, da, de, go, ka, la, li, lo, me, mi, na, no, ra, ri, ro, ta, ti, va, vi, za")
    ends = _words("bo, dan, din, dor, ka, las, len, lin, lo, mar, mi, na, nel, nor, ra, ren, ri, ro, san, ta, tin, "
                  "vik, zo")
    return sorted({rng.choice(starts) + rng.choice(middles) + rng.choice(ends) for _ in range(count)})


WOMEN = _words("""
    Ada, Agnes, Alice, Alma, Amelia, Amy, Andrea, Angela, Anita, Anna, Astrid, Beatrice, Bella, Bianca, Bridget,
    Camilla, Carla, Carmen, Carol, Caroline, Cecilia, Celia, Charlotte, Chloe, Clara, Daisy, Dana, Daphne, Diana,
    Dora, Doris, Edith, Eileen, Elena, Elisa, Ella, Ellen, Emily, Emma, Erica, Esther, Eva, Fatima, Fiona, Flora,
    Frances, Gloria, Grace, Greta, Hannah, Heather, Helen, Hilda, Ida, Ines, Ingrid, Irene, Iris, Isabel, Jane, Janet,
    Jasmine, Jenny, Joanna, Judith, Julia, Karen, Kate, Laura, Leah, Leila, Lena, Linda, Lisa, Louise, Lucy, Lydia,
    Maria, Martha, Maya, Mei, Miriam, Molly, Nadia, Naomi, Nina, Nora, Olga, Olivia, Paula, Petra, Priya, Rachel,
    Rita, Rosa, Ruth, Sara, Selma, Silvia, Sofia, Stella, Susan, Tanya, Teresa, Tina, Ursula, Vera, Wanda, Yuki, Zoe""")
MEN = _words("""
    Aaron, Adam, Adrian, Ahmed, Alan, Albert, Alex, Andrew, Anton, Arthur, Ben, Boris, Brian, Bruno, Carl, Carlos,
    Cesar, Charles, Chris, Colin, Daniel, David, Dennis, Diego, Dmitri, Edgar, Edward, Elias, Emil, Enzo, Eric, Ethan,
    Felix, Finn, Frank, Fred, Gabriel, George, Gordon, Gustav, Hamid, Harry, Henry, Hugo, Ian, Igor, Ivan, Jack,
    Jacob, James, Jan, Jason, Javier, Joel, John, Jonas, Jorge, Joseph, Kevin, Kofi, Kurt, Lars, Leo, Liam, Louis,
    Lucas, Luke, Marco, Mark, Martin, Matt, Max, Michael, Milo, Mohan, Nathan, Neil, Nick, Noah, Oliver, Omar, Oscar,
    Otto, Pablo, Patrick, Paul, Pedro, Peter, Philip, Rafael, Ravi, Richard, Robert, Robin, Roger, Samir, Samuel,
    Sergio, Simon, Stefan, Steven, Tariq, Theo, Thomas, Tim, Tony, Victor, Vincent, Walter, William""")
CITIES = _words("""
    Aberdeen, Accra, Amman, Amsterdam, Ankara, Antwerp, Athens, Auckland, Austin, Baghdad, Baku, Baltimore, Bangkok,
    Barcelona, Basel, Beirut, Belfast, Belgrade, Bergen, Berlin, Bilbao, Bogota, Bologna, Bombay, Bordeaux, Boston,
    Bremen, Brighton, Brisbane, Bristol, Brussels, Bucharest, Budapest, Cairo, Calgary, Cambridge, Canberra, Cape
    Town, Caracas, Cardiff, Chicago, Cologne, Copenhagen, Cork, Dakar, Dallas, Damascus, Delhi, Denver, Detroit,
    Dresden, Dublin, Durban, Edinburgh, Florence, Frankfurt, Geneva, Genoa, Ghent, Glasgow, Granada, Graz, Hamburg,
    Hanoi, Havana, Helsinki, Hong Kong, Houston, Istanbul, Jakarta, Kabul, Kiev, Kingston, Krakow, Kyoto, Lagos,
    Lahore, Leeds, Leipzig, Lima, Lisbon, Liverpool, London, Los Angeles, Lyon, Madrid, Malaga, Manchester, Manila,
    Marseille, Melbourne, Miami, Milan, Montreal, Moscow, Munich, Nairobi, Nantes, Naples, New York, Nice, Osaka,
    Oslo, Ottawa, Oxford, Palermo, Paris, Perth, Philadelphia, Phoenix, Pisa, Plymouth, Porto, Prague, Quebec, Quito,
    Reykjavik, Riga, Rome, Rotterdam, Salzburg, San Diego, Santiago, Sarajevo, Seattle, Seoul, Seville, Shanghai,
    Sheffield, Singapore, Sofia, Stockholm, Sydney, Taipei, Tallinn, Tampa, Tbilisi, Tehran, Tokyo, Toronto, Toulouse,
    Trieste, Tunis, Turin, Utrecht, Valencia, Vancouver, Venice, Verona, Vienna, Vilnius, Warsaw, Wellington, York,
    Zagreb, Zurich""")
COUNTRIES = _words("""
    Albania, Argentina, Armenia, Australia, Austria, Belgium, Bolivia, Brazil, Bulgaria, Cambodia, Canada, Chile,
    China, Colombia, Costa Rica, Croatia, Cuba, Cyprus, Denmark, Ecuador, Egypt, Estonia, Ethiopia, Fiji, Finland,
    France, Georgia, Germany, Ghana, Greece, Hungary, Iceland, India, Ireland, Israel, Italy, Jamaica, Japan, Jordan,
    Kenya, Latvia, Lebanon, Malta, Mexico, Morocco, Nepal, New Zealand, Norway, Panama, Peru, Poland, Portugal,
    Romania, Scotland, Senegal, Serbia, Slovakia, Slovenia, South Africa, Spain, Sweden, Switzerland, Taiwan,
    Tanzania, Thailand, Tunisia, Turkey, Uganda, Uruguay, Vietnam, Wales, Zambia""")
JOBS = _words("""
    accountant, actor, architect, baker, banker, barber, bookseller, bricklayer, bus driver, butcher, captain,
    carpenter, cashier, chemist, cleaner, clerk, clockmaker, coach, cook, dancer, dentist, designer, detective,
    editor, electrician, engineer, farmer, firefighter, fisherman, florist, gardener, geologist, glass blower, guard,
    guide, hairdresser, historian, hotel manager, interpreter, jeweller, journalist, judge, lawyer, librarian,
    locksmith, magician, mechanic, midwife, miner, musician, nurse, optician, painter, paramedic, pharmacist,
    photographer, physicist, pianist, pilot, plumber, police officer, postman, potter, printer, programmer, publisher,
    reporter, roofer, sailor, sculptor, secretary, shepherd, shoemaker, singer, social worker, soldier, surgeon,
    surveyor, tailor, taxi driver, translator, truck driver, vet, waiter, weaver, welder, writer, zookeeper""")
HOBBIES = _words("""
    archery, astronomy, badminton, baking, ballet, basketball, beekeeping, bird watching, bowling, boxing,
    calligraphy, camping, canoeing, chess, cricket, curling, cycling, darts, diving, embroidery, fencing, fishing,
    folk dancing, football, gardening, golf, gymnastics, handball, hiking, hockey, ice skating, jogging, judo,
    juggling, karate, kayaking, kite flying, knitting, model trains, mountain climbing, origami, paragliding,
    photography, pottery, quilting, riding, roller skating, rowing, rugby, running, sailing, sewing, singing,
    skateboarding, skiing, snooker, squash, stamp collecting, surfing, swimming, table tennis, tap dancing, tennis,
    volleyball, water polo, weaving, weightlifting, wood carving, wrestling, yoga""")
SKILLS = _words("""
    Arabic, Basque, Bengali, Bulgarian, Chinese, Croatian, Czech, Danish, Dutch, Estonian, Finnish, French, German,
    Greek, Hebrew, Hindi, Hungarian, Icelandic, Irish, Italian, Japanese, Korean, Latin, Latvian, Norwegian, Persian,
    Polish, Portuguese, Romanian, Russian, Serbian, Slovak, Spanish, Swahili, Swedish, Tamil, Thai, Turkish,
    Ukrainian, Urdu, Vietnamese, Welsh, accounting, bookbinding, carpentry, drawing, juggling, magic tricks,
    programming, sign language, tango, touch typing, watch repair, welding""")
STUDIES = _words("""
    algebra, anatomy, anthropology, archaeology, architecture, art history, astronomy, biology, botany, business,
    chemistry, civil engineering, computer science, criminology, dentistry, design, drama, ecology, economics,
    education, fashion, film, finance, forestry, genetics, geography, geology, geometry, history, journalism, law,
    linguistics, literature, logistics, marketing, mathematics, medicine, music theory, nursing, nutrition, optics,
    oceanography, painting, pharmacy, philosophy, physics, political science, psychology, robotics, sociology,
    statistics, theology, tourism, veterinary science, zoology""")
INSTRUMENTS = _words("""
    accordion, bagpipes, banjo, bass guitar, bassoon, bongos, bugle, cello, clarinet, cornet, cymbals, double bass,
    drums, electric guitar, electric piano, English horn, fiddle, flute, French horn, glockenspiel, gong, grand piano,
    guitar, harmonica, harp, harpsichord, horn, keyboard, lute, lyre, mandolin, marimba, oboe, organ, pan pipes,
    piccolo, recorder, saxophone, sitar, slide guitar, snare drum, steel drum, tambourine, triangle, trombone,
    trumpet, tuba, ukulele, viola, violin, vibraphone, whistle, xylophone, zither""")
FOODS = _words("""
    apple pie, bean stew, beef stew, beetroot salad, burgers, cabbage rolls, carrot cake, cheese fondue, cherry pie,
    chestnut soup, chicken curry, chicken wings, chilli, clam chowder, couscous, crab cakes, dumplings, egg noodles,
    falafel, fish and chips, fish soup, fried rice, garlic bread, garlic prawns, goat cheese, goulash, grilled salmon,
    hot dogs, hummus, kebab, lamb curry, lasagne, lemon chicken, lemon tart, lentil soup, lobster, macaroni, mango
    salad, meatballs, mushroom soup, mussels, noodle soup, omelettes, onion soup, oysters, paella, pancakes, pasta
    salad, pea soup, peanut curry, pizza, plum cake, pork chops, porridge, potato salad, pumpkin soup, ramen, ravioli,
    rice pudding, risotto, roast beef, roast duck, roast turkey, sausages, seafood stew, spaghetti, spinach pie,
    spring rolls, steak, stuffed peppers, sushi, tacos, tofu curry, tomato soup, trout, tuna salad, vegetable curry,
    waffles""")
DRINKS = _words("""
    almond milk, apple cider, apple juice, beetroot juice, berry tea, black coffee, black tea, buttermilk, carrot
    juice, cherry juice, cherry soda, cocoa, coconut milk, coconut water, cold brew, cranberry juice, cream soda,
    espresso, fennel tea, fruit punch, ginger ale, ginger tea, grape juice, grapefruit juice, green tea, hot
    chocolate, iced coffee, iced tea, jasmine tea, lemon tea, lemonade, lime soda, mango juice, milk tea, mineral
    water, mint tea, oat milk, orange juice, peach juice, peach tea, pear cider, pear juice, pineapple juice, plum
    juice, raspberry juice, red wine, root beer, rose tea, soda water, strawberry milk, tomato juice, tonic water,
    vanilla milk, wheat beer, white tea""")
ALLERGENS = _words("""
    almonds, apples, bananas, barley, bee stings, birch pollen, cats, celery, cherries, chocolate, cinnamon, coconut,
    corn, crab, dogs, dust, eggs, feathers, figs, garlic, ginger, grass, hazel, honey, horses, kiwis, latex, lemons,
    lentils, lobster, mango, melon, milk, mould, mushrooms, mustard, nickel, oats, onions, oranges, oysters, parsley,
    peaches, peanuts, pears, penicillin, pepper, pine nuts, plums, prawns, rye, sesame, shellfish, soap, soy,
    strawberries, tomatoes, walnuts, wasp stings, wheat, wool""")
COLOURS = _pairs("bright, dark, deep, light, pale, soft", "blue, brown, green, grey, orange, pink, purple, red, yellow")
DATES = [f"{day} {month}" for month in _words("January, February, March, April, May, June, July, August, September, "
                                              "October, November, December") for day in range(1, 29)]
MOMENTS = _pairs("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
                 "noon, two, three, four, five, six, seven, eight, nine, ten, eleven", " at ")
TIMES = _pairs("one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve",
               "five, ten, fifteen, twenty, thirty, forty, fifty")
AGES = [str(age) for age in range(21, 80)]
TWO_DIGITS = [str(number) for number in range(11, 100)]
THREE_DIGITS = [str(number) for number in range(101, 1000) if number % 10]
FOUR_DIGITS = [str(number) for number in range(1013, 10000, 37)]
SEATS = [f"{row}{letter}" for row in range(11, 40) for letter in "ABCDEF"]
GATES = [f"{letter}{number}" for letter in "ABCDEFGH" for number in range(10, 30)]
CODES = _pairs("apple, arrow, bridge, candle, cloud, copper, dragon, eagle, falcon, forest, garden, lion, maple, moon, "
               "ocean, panda, pepper, river, rocket, silver, thunder, tiger, winter",
               "21, 34, 47, 58, 63, 75, 82, 96", "")
PLACES = ["the " + place for place in _pairs(
    "big, black, blue, brown, green, grey, old, orange, pink, red, round, small, tall, white, wooden, yellow",
    "bag, basket, box, bucket, cabinet, chest, cupboard, drawer, jar, suitcase, tin, wardrobe")]
GIFTS = _pairs("black, blue, brown, green, grey, orange, pink, purple, red, silver, white, yellow",
               "backpack, blanket, bracelet, coat, desk lamp, hat, jumper, kettle, lamp, mug, purse, radio, raincoat, "
               "scarf, shirt, teapot, umbrella, vase, watch")
CARS = _pairs("black, blue, brown, green, grey, orange, red, silver, white, yellow",
              "camper van, hatchback, jeep, limousine, minibus, pickup, sports car, taxi, truck, van")
BIKES = _pairs("black, blue, brown, green, grey, orange, pink, red, silver, white, yellow",
               "city bike, electric bike, folding bike, mountain bike, racing bike, tandem, tricycle")
PETS = _pairs("black, brown, golden, grey, old, shy, spotted, striped, tiny, white, young",
              "canary, cat, dog, ferret, goat, goose, hamster, hen, horse, lizard, parrot, pony, rabbit, snake, turtle")
TOYS = _pairs("blue, brown, green, orange, pink, purple, red, striped, white, yellow",
              "ball, bear, bell, bone, duck, mouse, ring, rope, sock, stick")
FILMS = _pairs("American, British, Chinese, French, German, Indian, Italian, Japanese, Korean, Spanish, Swedish",
               "comedies, crime films, dramas, ghost films, love films, musicals, spy films, war films, westerns")
MUSIC = _pairs("African, American, Brazilian, British, Cuban, Danish, French, German, Greek, Irish, Polish",
               "blues, dance music, folk songs, gospel, jazz, lullabies, marches, opera, pop, punk, rap, rock")
SEASONS = _pairs("dry, early, foggy, late, mild, quiet, rainy, stormy, sunny, warm, wet, windy, golden",
                 "autumn, spring, summer, winter")
TITLES = ["The " + title for title in _pairs(
    "Broken, Crystal, Empty, Frozen, Golden, Hidden, Last, Lonely, Lost, Midnight, Sleeping, Silent, Silver, Wandering",
    "Bridge, Castle, City, Clock, Crown, Door, Dragon, Forest, Garden, Harbour, Island, King, Lake, Letter, Mirror, "
    "Mountain, Orchard, Queen, River, Sailor, Tower, Train, Village, Wolf")]
INNS = ["the " + inn for inn in _pairs(
    "Black, Blue, Crooked, Flying, Golden, Green, Happy, Hungry, Jolly, Old, Red, Royal, Silver, Thirsty, White",
    "Anchor, Bear, Bell, Crown, Dolphin, Dragon, Eagle, Fox, Goose, Hare, Lamp, Lion, Rose, Spoon, Star, Swan, Wheel")]
PETNAMES = _words("""
    Bandit, Barney, Biscuit, Blossom, Bonnie, Bramble, Brownie, Bubbles, Buster, Button, Caramel, Charlie, Chester,
    Chico, Cinnamon, Cleo, Coco, Cookie, Dexter, Domino, Dusty, Elvis, Fluffy, Freckles, Frosty, Fudge, Ginger, Gizmo,
    Goldie, Hazel, Honey, Jasper, Jelly, Juno, Lady, Lucky, Luna, Marble, Marley, Merlin, Milky, Misty, Mocha, Muffin,
    Nacho, Nugget, Olive, Oreo, Paddy, Patch, Peaches, Peanut, Pebbles, Penny, Pepper, Pickles, Pippin, Pixel, Poppy,
    Pumpkin, Rascal, Rocky, Rolo, Rusty, Sammy, Scout, Shadow, Smoky, Sneakers, Snowy, Socks, Sparky, Spike, Sprout,
    Sunny, Teddy, Tiger, Tinker, Toffee, Trixie, Truffle, Velvet, Waffles, Whisky, Willow, Winnie, Wolfie, Ziggy""")
STREETS = _pairs("Abbey, Apple, Bridge, Castle, Cedar, Cherry, Church, Forest, Garden, Green, Harbour, High, Hill, "
                 "King, Lake, Maple, Market, Mill, Oak, Orchard, Park, Pine, Queen, River, Rose, School, Temple",
                 "Lane, Road, Square, Street")
FIRMS = _pairs("Alpine, Atlas, Bluebird, Brightwell, Castle, Comet, Crown, Delta, Eagle, Falcon, Granite, Harbour, "
               "Horizon, Lakeside, Meridian, Nordic, Northgate, Orbit, Pioneer, Summit, Sunrise, Titan, Vertex",
               "Bank, Bikes, Energy, Foods, Glass, Media, Motors, Paper, Steel, Systems, Textiles, Toys")
SURNAMES = _words("Archer, Baker, Barlow, Bishop, Brook, Carter, Dale, Fisher, Fletcher, Hale, Hunter, Lane, Marsh, "
                  "Mason, Miller, Moss, Palmer, Parker, Porter, Reed, Shaw, Stone, Turner, Ward, Webb, Woods")
_rng = random.Random("authors")
AUTHORS = sorted({f"{_rng.choice(WOMEN + MEN)} {_rng.choice(SURNAMES)}" for _ in range(300)})
INVENTED = _invented(500)

VALUES = {  # by name: the common values, and the invented ones, which take the place of RARE of them
    "cities": (CITIES, ()), "countries": (COUNTRIES, ()), "jobs": (JOBS, ()), "hobbies": (HOBBIES, ()),
    "skills": (SKILLS, ()), "studies": (STUDIES, ()), "instruments": (INSTRUMENTS, ()), "foods": (FOODS, ()),
    "drinks": (DRINKS, ()), "allergens": (ALLERGENS, ()), "colours": (COLOURS, ()), "dates": (DATES, ()),
    "moments": (MOMENTS, ()), "times": (TIMES, ()), "ages": (AGES, ()), "two digits": (TWO_DIGITS, ()),
    "three digits": (THREE_DIGITS, ()), "four digits": (FOUR_DIGITS, ()), "seats": (SEATS, ()), "gates": (GATES, ()),
    "codes": (CODES, ()), "places": (PLACES, ()), "gifts": (GIFTS, ()), "cars": (CARS, ()), "bikes": (BIKES, ()),
    "pets": (PETS, ()), "toys": (TOYS, ()), "films": (FILMS, ()), "music": (MUSIC, ()), "seasons": (SEASONS, ()),
    "titles": (TITLES, ()), "inns": (INNS, ()),
    "she": (WOMEN, INVENTED), "he": (MEN, INVENTED), "names": (WOMEN + MEN, INVENTED),
    "pet names": (PETNAMES, INVENTED),
    "authors": (AUTHORS, [f"{name} {SURNAMES[i % len(SURNAMES)]}" for i, name in enumerate(INVENTED)]),
    "streets": (STREETS, [f"{name} Street" for name in INVENTED]),
    "firms": (FIRMS, [f"{name} Foods" for name in INVENTED]),
}
RARE = 0.07

# -------------------------------------------------------------------------------------------------------- subjects

GROUPS = {  # subjects with the pronoun that stands for them; "my" turns into "your" when the Bot speaks
    "me": {"I": "I"},
    "bot": {"you": "you"},
    "kin": {"my sister": "she", "my brother": "he", "my aunt": "she", "my uncle": "he", "my wife": "she",
            "my boss": "he", "my best friend": "she", "my neighbour": "he", "my flatmate": "he", "my teacher": "she",
            "my landlady": "she", "my brother-in-law": "he"},
    "old": {"my mother": "she", "my father": "he", "my grandmother": "she", "my grandfather": "he"},
    "young": {"my daughter": "she", "my son": "he", "my niece": "she", "my nephew": "he"},
    "friend": {"my friend": "", "my cousin": "", "my colleague": "", "my old friend": ""},  # each with a name
    "pet": {"my dog": "he", "my cat": "she", "my parrot": "he", "my rabbit": "she", "my horse": "he",
            "my hamster": "he", "my turtle": "she", "my sister's cat": "she", "my brother's dog": "he"},
    "thing": {"my keys": "they", "my glasses": "they", "my passport": "it", "my umbrella": "it", "my wallet": "it",
              "the charger": "it", "the scissors": "they", "the tickets": "they", "the spare key": "it",
              "my notebook": "it", "my headphones": "they", "my camera": "it", "the map": "it", "my gloves": "they"},
    "expert": {"the plumber": "he", "the dentist": "she", "the barber": "he", "the vet": "she", "the electrician": "he",
               "the eye doctor": "she", "the lawyer": "she", "the piano teacher": "he", "the painter": "he"},
    "goods": {"the sofa": "it", "the fridge": "it", "the washing machine": "it", "the new bed": "it",
              "the carpet": "it", "the desk": "it", "the bookshelf": "it", "the mattress": "it"},
    "event": {"the concert": "it", "the meeting": "it", "the quiz night": "it", "the party": "it", "the wedding": "it",
              "the picnic": "it", "the lecture": "it", "the book club": "it", "the final match": "it"},
}
REQUESTS = {  # what the User says for the Bot to tell a fact about a subject, where the kind itself does not say
    "person": ["Any news from {p}?", "Did {p} write?", "Do I have a message from {p}?", "What is new with {p}?",
               "Have you heard from {p}?"],
    "bot": ["Tell me something about yourself.", "What about you?", "I want to know you better.", 
            "Who are you, really?", "And now something about you, please."],
    "thing": ["Have you seen {p}?", "I cannot find {p}.", "I am looking for {p}.", "Help me find {p}, please."],
    "pet": ["How is {p}?", "Have you seen {p}?", "Is {p} all right?", "What does {p} do all day?"],
    "other": ["What do you know about {p}?", "Can you check {p} for me?", "Any news about {p}?",
              "Could you look up {p}, please?"],
}
NEWS = ["Yes, {p} wrote to you.", "Yes, I have a message from {p}.", "Yes, {p} called today.",
        "There is news from {p}."]

# ----------------------------------------------------------------------------------------------------------- kinds
# name = values: groups of which the User may tell it / groups of which the Bot may
#   + a telling   ? a question   ~ the same as a clause   = an answer   ! an acknowledgement   < a request to the Bot
# {v} is the value and {a} its article. {P} {p} is the subject, {him} the same as an object, {Ps} {ps} "my sister's",
# {he} {his} its pronouns; {is} {was} {has} {do} {s} {es} {ies} agree with it. {I} {am} {me} are the user, and so "you"
# when the Bot speaks. [one/two/] is a choice.

KINDS = """
city = cities: me kin old friend / kin friend
+ {P} live{s} in {v}[/ now/ these days].
+ {P} moved to {v} [last year/in spring/a while ago].
+ {P} {has} a [small/nice/quiet] flat in {v}.
+ {Ps} home is in {v}[/ now].
? Where {do} {p} live?
? In which city {do} {p} live?
~ where {p} live{s}
~ which city {p} live{s} in
= {P} live{s} in {v}.
= {Ps} home is in {v}.
! Is it a nice place to live?
! I hear it is a lovely city.

origin = cities: me kin old friend / bot
+ {P} {was} born in {v}.
+ {P} come{s} from {v}[/ originally].
+ {Ps} home town is {v}.
+ {P} grew up in {v}.
? Where {do} {p} come from?
? Where {was} {p} born?
? What is {ps} home town?
~ where {p} come{s} from
~ what {ps} home town is
= {P} come{s} from {v}.
= {Ps} home town is {v}.
! I would like to see it one day.
! It must be a good place to grow up.

job = jobs: me kin friend / kin friend
+ {P} work{s} as {a} {v}[/ now].
+ {Ps} job is that of {a} {v}.
+ {P} became {a} {v} [last year/in spring/not long ago].
+ {P} [just/finally] found work as {a} {v}.
? What {do} {p} do for a living?
? What is {ps} job?
? What {do} {p} work as?
~ what {p} {do} for a living
~ what {ps} job is
= {P} work{s} as {a} {v}.
= {Ps} job is that of {a} {v}.
! That sounds like hard work.
! That is an interesting job.

employer = firms: me kin friend / kin friend
+ {P} work{s} for {v}[/ now].
+ {P} started at {v} [last month/in spring/on Monday].
+ {Ps} employer is {v}.
+ {P} {has} a new [post/job] at {v}.
? Which company {do} {p} work for?
? Who {do} {p} work for?
? What is {ps} employer called?
~ which company {p} work{s} for
~ who {ps} employer is
= {P} work{s} for {v}.
= {Ps} employer is {v}.
! I hope the people there are nice.
! I have heard of that company.

name = names: me kin old young / bot
+ {Ps} name is {v}.
+ {P} {is} called {v}.
+ {Ps} first name is {v}.
+ [Everybody calls/People call] {him} {v}.
? What is {ps} name?
? What {is} {p} called?
~ what {ps} name is
~ what {p} {is} called
= {Ps} name is {v}.
= {P} {is} called {v}.
! That is a beautiful name.
! What a nice name.

age = ages: me kin friend / kin friend
+ {P} {is} {v} years old.
+ {P} turned {v} [last week/yesterday/last month].
+ {P} {is} already {v}.
+ {Ps} age is {v}, believe it or not.
? How old {is} {p}?
? What is {ps} age?
~ how old {p} {is}
~ what {ps} age is
= {P} {is} {v} years old.
= {P} {is} {v}.
! Time flies, does it not?
! A good age to be.

birthday = dates: me kin old young friend / kin friend
+ {Ps} birthday is on {v}.
+ {P} {was} born on {v}.
+ {P} celebrate{s} {his} birthday on {v}.
+ There is a party for {ps} birthday on {v}.
? When is {ps} birthday?
? On which day is {ps} birthday?
~ when {ps} birthday is
~ on which day {p} {was} born
= {Ps} birthday is on {v}.
= {P} {was} born on {v}.
! I will put it in the calendar.
! Will there be cake?

hobby = hobbies: me kin old young friend / kin friend bot
+ {Ps} [favourite/new/main] hobby is {v}.
+ {P} spend{s} every weekend on {v}.
+ In {his} free time {p} enjoy{s} {v}.
+ {P} {is} [mad/crazy] about {v}.
? What is {ps} hobby?
? What {do} {p} do in {his} free time?
~ what {ps} hobby is
~ what {p} enjoy{s} at weekends
= {Ps} hobby is {v}.
= {P} enjoy{s} {v}.
! That must be fun.
! I would like to try that.

food = foods: me kin old young friend / kin friend
+ {Ps} favourite food is {v}.
+ {P} could eat {v} every day.
+ {P} love{s} {v} more than any other dish.
+ The best dish for {him} is {v}.
? What is {ps} favourite food?
? What {do} {p} like to eat most?
~ what {ps} favourite food is
~ which dish {p} love{s} most
= {Ps} favourite food is {v}.
= {P} love{s} {v}.
! Now I am hungry.
! That sounds tasty.

drink = drinks: me kin old friend / kin friend
+ {Ps} favourite drink is {v}.
+ {P} drink{s} {v} all day[/ long].
+ {P} always order{s} {v}.
+ Nothing makes {him} as happy as {v}.
? What is {ps} favourite drink?
? What {do} {p} like to drink?
~ what {ps} favourite drink is
~ what {p} always order{s}
= {Ps} favourite drink is {v}.
= {P} like{s} to drink {v}.
! Good choice.
! Best served in a big glass.

colour = colours: me kin young friend / bot
+ {Ps} favourite colour is {v}.
+ {P} like{s} no colour more than {v}.
+ {P} painted the [bedroom/kitchen] {v}, {his} favourite colour.
+ Of all colours {p} like{s} {v} best.
? What is {ps} favourite colour?
? Which colour {do} {p} like best?
~ what {ps} favourite colour is
~ which colour {p} like{s} best
= {Ps} favourite colour is {v}.
= {P} like{s} {v} best.
! A very pretty colour.
! That goes well with many things.

film = films: me kin old friend / kin friend bot
+ {P} love{s} {v}.
+ {P} only watch{es} {v}.
+ {Ps} favourite films are {v}.
+ {P} watch{es} {v} every [weekend/Friday/evening].
? What kind of films {do} {p} like?
? Which films {do} {p} watch?
~ what kind of films {p} like{s}
~ which films {p} watch{es}
= {P} like{s} {v}.
= {Ps} favourite films are {v}.
! I can suggest some good ones.
! Popcorn must be part of it.

music = music: me kin old young friend / kin friend bot
+ {P} listen{s} to {v} all the time.
+ {Ps} favourite music is {v}.
+ {P} dance{s} to {v} in the kitchen.
+ When {p} {is} happy, {he} play{s} {v}.
? What kind of music {do} {p} like?
? What music {do} {p} listen to?
~ what music {p} listen{s} to
~ what kind of music {p} like{s}
= {P} listen{s} to {v}.
= {Ps} favourite music is {v}.
! Nice, that is good music.
! Turn it up!

author = authors: me kin old friend / bot
+ {Ps} favourite author is {v}.
+ {P} {has} every book by {v}.
+ {P} read{s} a lot of {v}.
+ No writer is better than {v} for {him}.
? Who is {ps} favourite author?
? Which author {do} {p} like most?
~ who {ps} favourite author is
~ which author {p} like{s} most
= {Ps} favourite author is {v}.
= {P} like{s} to read {v}.
! I should read more of those books.
! A fine writer.

book = titles: me kin old friend / kin friend bot
+ {P} {is} reading {v}.
+ The book beside {ps} bed is {v}.
+ {P} [just/finally] started to read {v}.
+ {P} cannot put down {v}.
? Which book {is} {p} reading?
? What {is} {p} reading?
~ which book {p} {is} reading
~ what {p} {is} reading
= {P} {is} reading {v}.
= The book is {v}.
! Is it a good story?
! Do not tell me how it ends.

allergy = allergens: me kin old young friend / kin friend
+ {P} {is} allergic to {v}.
+ {P} must stay away from {v}, because of an allergy.
+ {P} {has} an allergy to {v}.
+ The doctor says {p} cannot stand {v}, it is an allergy.
? What {is} {p} allergic to?
? Which allergy {do} {p} have?
~ what {p} {is} allergic to
~ which allergy {p} {has}
= {P} {is} allergic to {v}.
= {P} {has} an allergy to {v}.
! I will keep that in mind.
! That must be annoying.

gift = gifts: me kin old young friend / kin friend
+ {P} want{s} {a} {v} for {his} birthday.
+ {P} {is} hoping for {a} {v}.
+ [A good/The right] gift for {him} would be {a} {v}.
+ {P} wish{es} for {a} {v}.
? What {do} {p} want for {his} birthday?
? Which gift {do} {p} wish for?
~ what {p} want{s} for {his} birthday
~ which gift {p} {is} hoping for
= {P} want{s} {a} {v}.
= {P} {is} hoping for {a} {v}.
! Presents are always fun.
! That is a lovely wish.

visit = moments: kin old young friend / kin old friend
+ {P} will visit {me} on {v}.
+ {I} have dinner with {him} on {v}.
+ {P} [comes/is coming] [over/by/round] on {v}.
+ {I} {am} meeting {him} on {v}.
? When do I see {him}?
? When will I meet {him}?
~ when I see {him}
~ when I am meeting {him}
= You see {him} on {v}.
= You are meeting {him} on {v}.
! Give my regards.
! I hope you have a good time together.

trip = countries: me kin old friend / kin friend
+ {P} {is} [going/flying/travelling] to {v} [soon/this summer/this year].
+ {P} booked a trip to {v}.
+ {Ps} next holiday will be in {v}.
+ {P} want{s} to travel to {v} [this year/in summer].
? Where {is} {p} going on holiday?
? Which country {do} {p} want to visit?
~ where {p} {is} going on holiday
~ which country {p} want{s} to visit
= {P} {is} going to {v}.
= {Ps} next holiday will be in {v}.
! How exciting!
! Take a lot of pictures.

departure = dates: me kin old friend / kin friend
+ {P} {is} leaving for a trip on {v}.
+ {Ps} holiday starts on {v}.
+ {P} start{s} {his} [journey/trip] on {v}.
+ {Ps} flight leaves on {v}.
? When {do} {p} leave for the trip?
? When does {ps} holiday start?
~ when {ps} holiday starts
~ when {p} {is} leaving
= {Ps} holiday starts on {v}.
= {P} {is} leaving on {v}.
! Not long to wait, then.
! Do not forget to pack.

learning = skills: me kin old young friend / kin friend bot
+ {P} {is} learning {v}.
+ {P} [started/began] to learn {v} [last month/this year].
+ {P} take{s} lessons in {v}.
+ {P} {is} taking a course in {v}.
? What {is} {p} learning?
? Which lessons {do} {p} take?
~ what {p} {is} learning
~ which course {p} {is} taking
= {P} {is} learning {v}.
= {P} take{s} lessons in {v}.
! Practice makes perfect.
! That is not easy, well done.

studies = studies: me kin young friend / kin young friend
+ {P} {is} a student of {v}.
+ {P} stud{ies} {v} at university.
+ {Ps} subject at university is {v}.
+ {P} {has} a degree in {v}.
? What {do} {p} study?
? What is {ps} subject at university?
~ what {p} stud{ies}
~ what {ps} subject is
= {P} stud{ies} {v}.
= {Ps} subject is {v}.
! That takes a lot of reading.
! A great subject.

instrument = instruments: me kin old young friend / kin young friend
+ {P} play{s} the {v}.
+ {P} bought a new {v} to play in the band.
+ {P} practise{s} the {v} every [day/evening/morning].
+ {P} play{s} the {v} in [a band/an orchestra].
? Which instrument {do} {p} play?
? What {do} {p} play in the band?
~ which instrument {p} play{s}
~ what instrument {p} practise{s}
= {P} play{s} the {v}.
= {Ps} instrument is the {v}.
! I would love to hear that.
! The house must be full of music.

car = cars: me kin old friend / kin friend
+ {P} drive{s} {a} {v}.
+ {P} bought {a} {v} [last week/last month/yesterday].
+ {Ps} car is {a} {v}.
+ {P} {is} the owner of {a} {v}.
? What car {do} {p} drive?
? What kind of car {do} {p} have?
~ what car {p} drive{s}
~ what kind of car {p} {has}
= {P} drive{s} {a} {v}.
= {Ps} car is {a} {v}.
! Drive carefully.
! I hope it is good on long roads.

bike = bikes: me kin young friend / kin friend
+ {P} ride{s} {a} {v} to [work/school/town].
+ {P} got {a} {v} [last week/last month/yesterday].
+ {Ps} bike is {a} {v}.
+ {P} go{es} everywhere on {a} {v}.
? What bike {do} {p} ride?
? What kind of bike {do} {p} have?
~ what bike {p} ride{s}
~ what kind of bike {p} {has}
= {P} ride{s} {a} {v}.
= {Ps} bike is {a} {v}.
! Always wear a helmet.
! Cycling keeps you fit.

pet = pets: me kin old young friend / kin young friend
+ {P} {has} {a} {v} [at home/as a pet/now].
+ {P} bought {a} {v} as a pet.
+ {P} took home {a} {v} from the animal shelter.
+ {Ps} pet is {a} {v}.
? What pet {do} {p} have?
? Which animal {do} {p} have?
~ what pet {p} {has}
~ which animal {p} {has} at home
= {P} {has} {a} {v}.
= {Ps} pet is {a} {v}.
! Pets are good company.
! Oh, how cute!

flat = three digits: me kin friend / kin friend
+ {P} live{s} in flat {v}.
+ {Ps} flat is number {v}.
+ {P} moved into flat {v}.
+ The number on {ps} door is {v}.
? What is {ps} flat number?
? Which flat {do} {p} live in?
~ what {ps} flat number is
~ which flat {p} live{s} in
= {Ps} flat number is {v}.
= {P} live{s} in flat {v}.
! I hope the neighbours are quiet.
! Is there a lift?

street = streets: me kin old friend / kin friend
+ {Ps} house is on {v}.
+ {P} live{s} on {v}.
+ {P} found a flat on {v}.
+ {Ps} front door is on {v}.
? Which street {do} {p} live on?
? On which street is {ps} house?
~ which street {p} live{s} on
~ on which street {ps} house is
= {P} live{s} on {v}.
= {Ps} house is on {v}.
! That sounds like a quiet street.
! I hope it is near the shops.

extension = four digits: me kin friend / kin friend
+ {Ps} phone extension is {v}.
+ At work {p} {has} extension {v}.
+ The extension of {ps} office is {v}.
+ To call {him} at work, dial extension {v}.
? What is {ps} phone extension?
? Which extension {do} {p} have?
~ what {ps} extension is
~ which extension {p} {has} at work
= {Ps} extension is {v}.
= {P} {has} extension {v}.
! That will be useful.
! I will not call too early.

saving = gifts: me kin young friend / bot
+ {P} {is} saving [up/money] for {a} {v}.
+ {P} put{s} money aside for {a} {v}.
+ {P} dream{s} of buying {a} {v}.
+ All {ps} money goes towards {a} {v}.
? What {is} {p} saving for?
? What {do} {p} dream of buying?
~ what {p} {is} saving for
~ what {p} dream{s} of buying
= {P} {is} saving for {a} {v}.
= {P} dream{s} of buying {a} {v}.
! Every coin counts.
! You have to be patient, I guess.

season = seasons: me kin old friend / bot
+ {Ps} favourite time of the year is {v}.
+ {P} feel{s} best in {v}.
+ {P} like{s} nothing more than {v}.
+ {P} look{s} forward to {v} all year.
? What is {ps} favourite time of the year?
? In which time of the year {do} {p} feel best?
~ what {ps} favourite time of the year is
~ which time of the year {p} like{s} most
= {Ps} favourite time of the year is {v}.
= {P} feel{s} best in {v}.
! Everybody needs something to look forward to.
! Nature is lovely then.

lucky = three digits: me kin young friend / bot
+ {Ps} lucky number is {v}.
+ {P} always bet{s} on the number {v}.
+ The number {v} brings {him} luck.
+ If {p} need{s} luck, {he} think{s} of {v}.
? What is {ps} lucky number?
? Which number brings {him} luck?
~ what {ps} lucky number is
~ which number is lucky for {him}
= {Ps} lucky number is {v}.
= The lucky number is {v}.
! Has it worked so far?
! May it bring a lot of luck.

bus = two digits: me kin old young friend / kin friend
+ {P} take{s} bus {v} [to work/to town/every day].
+ {Ps} bus is the number {v}.
+ Bus {v} stops in front of {ps} house.
+ {P} get{s} around by bus {v}.
? Which bus {do} {p} take?
? What is the number of {ps} bus?
~ which bus {p} take{s}
~ what the number of {ps} bus is
= {P} take{s} bus {v}.
= {Ps} bus is number {v}.
! I hope it is on time.
! Better than sitting in a car.

alarm = times: me kin friend / me
+ {Ps} alarm is set for {v}.
+ {Ps} alarm rings at {v}[/ every morning].
+ {P} get{s} up at {v}[/ every day].
+ The alarm clock wakes {him} at {v}.
? What time is {ps} alarm set for?
? When does {ps} alarm ring?
~ what time {ps} alarm rings
~ when {ps} alarm is set
= {Ps} alarm is set for {v}.
= {Ps} alarm rings at {v}.
! Then it is time to go to bed early.
! A good start to the day.
< Please set an alarm for tomorrow.
< Can you wake me tomorrow?
< I need an alarm for the morning.

locker = four digits: me / me
+ {Ps} locker code is {v}.
+ The code of {ps} locker is {v}.
+ {Ps} locker opens with {v}.
+ The locker at the gym has the code {v}.
? What is {ps} locker code?
? How do I open {ps} locker?
? Which code opens {ps} locker?
~ what {ps} locker code is
~ what code opens {ps} locker
= {Ps} locker code is {v}.
= {Ps} locker opens with {v}.
! I will keep it secret.
! Your secret is safe with me.
< Can you find my locker code?
< Please look up the code of my locker.
< I cannot open my locker at the gym.

password = codes: me / me
+ {Ps} wifi password is {v}.
+ The password for the wifi is {v}.
+ To use the wifi at home, type {v}.
+ The guests need the wifi password, it is {v}.
? What is the wifi password?
? What do I type for the wifi?
? Which password does the wifi have?
~ what the wifi password is
~ how to log in to the wifi
= The wifi password is {v}.
= For the wifi, type {v}.
! I will tell nobody.
! Safe and simple.
< Please set a new wifi password.
< Can you look up the wifi password?
< I need a new password for the wifi.

seat = seats: me kin friend / me
+ {Ps} seat on the [train/plane] is {v}.
+ {P} {has} seat {v}.
+ {P} {is} sitting in seat {v}.
+ {Ps} ticket is for seat {v}.
? What is {ps} seat?
? Which seat {do} {p} have?
~ which seat {p} {has}
~ where {p} {is} sitting
= {Ps} seat is {v}.
= {P} {has} seat {v}.
! I hope it is by the window.
! Have a pleasant ride.
< Can you book a seat for me?
< Please reserve a seat for my journey.
< Which seat did I get?

gate = gates: me kin friend / me
+ {Ps} flight leaves from gate {v}.
+ {Ps} plane is at gate {v}.
+ {P} must go to gate {v} at the airport.
+ {P} {is} waiting at gate {v}.
? Which gate {do} {p} need?
? What is {ps} gate at the airport?
~ which gate {p} need{s}
~ what {ps} gate at the airport is
= {Ps} gate is {v}.
= {Ps} flight leaves from gate {v}.
! Airports are so big.
! Be there in good time.
< Can you check my flight?
< Please find my gate.
< Where does my plane leave?

train = times: me kin old friend / me kin
+ {Ps} train leaves at {v}.
+ {P} {is} on the train that leaves at {v}.
+ {P} [must/will] catch the train at {v}.
+ {Ps} train goes at {v}[/ sharp].
? When does {ps} train leave?
? What time is {ps} train?
~ when {ps} train leaves
~ what time {ps} train is
= {Ps} train leaves at {v}.
= {Ps} train is at {v}.
! I hope it is not late.
! Trains are the best way to travel.
< Can you find a train for me?
< Please look up my train.
< I need a train to the city.

hotel = inns: me kin friend / me
+ {Ps} hotel is called {v}.
+ {P} {is} staying at {v}[/ for two nights].
+ {P} [booked/found] a room at {v}.
+ {P} will sleep at {v}.
? What is {ps} hotel called?
? Where {is} {p} staying?
~ what {ps} hotel is called
~ which hotel {p} {is} staying at
= {Ps} hotel is called {v}.
= {P} {is} staying at {v}.
! I hope the beds are soft.
! Is breakfast included?
< Can you book a hotel for me?
< Please find me a hotel.
< I need a place to sleep on my trip.

room = three digits: me kin friend / me
+ {Ps} hotel room is {v}.
+ {P} {is} staying in room {v}.
+ {P} {has} room {v} at the hotel.
+ The key of the hotel is for room {v}.
? Which hotel room {do} {p} have?
? What is {ps} room number?
~ which hotel room {p} {has}
~ what {ps} room number is
= {Ps} room is {v}.
= {P} {has} room {v}.
! I hope it has a nice view.
! Sleep well there.
< Which room did the hotel give me?
< Please check me in at the hotel.
< Can you ask the hotel for my room?

table = two digits: me / me
+ {Ps} table at the restaurant is number {v}.
+ {P} {has} table {v} tonight.
+ {P} will sit at table {v}.
+ The waiter keeps table {v} for {him}.
? Which table {do} {p} have?
? What is the number of {ps} table?
? Where will I sit at the restaurant?
~ which table {p} {has}
~ what the number of {ps} table is
= {Ps} table is number {v}.
= {P} {has} table {v}.
! Enjoy your meal.
! I hope the food is good there.
< Can you book a table for me?
< Please reserve a table for tonight.
< I want to eat out tonight.

restaurant = inns: me / me
+ {P} {is} having dinner at {v}.
+ {P} booked a table at {v}.
+ The restaurant for tonight is {v}.
+ {P} {is} going to eat at {v}.
? Where {is} {p} having dinner?
? Which restaurant is it tonight?
? Where do we eat tonight?
~ where {p} {is} having dinner
~ which restaurant it is tonight
= {P} {is} having dinner at {v}.
= The restaurant is {v}.
! Try the dessert.
! I hear they cook well there.
< Can you suggest a restaurant?
< Please find a place for dinner.
< Where can I eat well tonight?

order = four digits: me / me
+ {Ps} order number is {v}.
+ The shop gave {ps} order the number {v}.
+ {P} ordered some books, order number {v}.
+ The number of {ps} order is {v}.
? What is {ps} order number?
? What is the number of {ps} order?
? Which number does {ps} order have?
~ what {ps} order number is
~ which number {ps} order has
= {Ps} order number is {v}.
= The number of {ps} order is {v}.
! I hope it comes soon.
! The shop is usually quick.
< Please order some books for me.
< Can you look up my order?
< Did my order go through?

parcel = streets: me / me
+ {Ps} parcel is at the office on {v}.
+ {P} must fetch a parcel on {v}.
+ The parcel went to the post office on {v}.
+ There is a parcel for {him} on {v}.
? Where is {ps} parcel?
? On which street is {ps} parcel?
? Where do I fetch {ps} parcel?
~ where {ps} parcel is
~ which street {ps} parcel is on
= {Ps} parcel is on {v}.
= {Ps} parcel is at the office on {v}.
! I wonder what is inside.
! Bring your papers with you.
< Can you find my parcel?
< My parcel has not come yet.
< Please check where my parcel went.

taxi = times: me / me
+ {Ps} taxi comes at {v}.
+ The taxi will be here at {v}.
+ {P} ordered a taxi for {v}.
+ A taxi picks {him} up at {v}.
? When does {ps} taxi come?
? What time is {ps} taxi?
? When will the taxi be here?
~ when {ps} taxi comes
~ what time the taxi will be here
= {Ps} taxi comes at {v}.
= The taxi comes at {v}.
! I hope there is no traffic.
! Then you have time for coffee.
< Please call a taxi for me.
< Can you order a taxi?
< I need a taxi to the station.

dish = foods: me kin / me kin
+ {P} will cook {v} tonight.
+ {P} {is} making {v} for dinner.
+ For dinner {p} {is} having {v}.
+ Tonight {p} want{s} to make {v}.
? What {is} {p} making for dinner?
? What will {p} cook tonight?
~ what {p} {is} making for dinner
~ what {p} will cook tonight
= {P} will cook {v}.
= {P} {is} making {v}.
! Save some for me.
! I can almost smell it.
< What should I cook tonight?
< I have no idea what to make for dinner.
< Please choose a dinner for me.

film night = titles: me kin friend / me kin
+ {P} will watch {v} tonight.
+ {P} {has} tickets for {v} at the cinema.
+ {P} {is} going to see {v} at the cinema.
+ The film that {p} want{s} to see is {v}.
? Which film {is} {p} going to see?
? Which film {do} {p} want to watch?
~ which film {p} {is} going to see
~ what film {p} want{s} to watch
= {P} {is} going to see {v}.
= The film is {v}.
! I hope it is not too sad.
! Tell me if it is any good.
< What film should I watch?
< Can you choose a film for me?
< I want to go to the cinema.

place = places: thing / thing
+ [I left/I put/I keep] {him} in {v}.
+ {P} {is} in {v}.
+ You can find {him} in {v}.
+ I have seen {him} in {v}.
? Where {is} {p}?
? Where can I find {him}?
~ where {p} {is}
~ where I can find {him}
= {P} {is} in {v}.
= You can find {him} in {v}.
! A good place for that.
! Now nothing can get lost.

pet name = pet names: pet /
+ {Ps} name is {v}.
+ We call {him} {v}.
+ {P} is called {v}.
+ {P} comes running when I shout {v}.
? What is {ps} name?
? What is {p} called?
~ what {p} is called
~ what {ps} name is
= {Ps} name is {v}.
= {P} is called {v}.
! What a sweet name.
! That name made me smile.

pet bed = places: pet / pet
+ {P} always sleeps in {v}.
+ {P} made a bed in {v}.
+ {P} likes to hide in {v}.
+ At night {p} lies in {v}.
? Where does {p} sleep?
? Where does {p} like to hide?
~ where {p} sleeps
~ where {p} likes to hide
= {P} sleeps in {v}.
= {P} lies in {v}.
! It must be cosy in there.
! Animals find the strangest beds.

toy = toys: pet young / pet
+ {Ps} favourite toy is {a} {v}.
+ {P} play{s} with {a} {v} all day.
+ {P} never go{es} anywhere without {a} {v}.
+ {P} got {a} {v} and love{s} to play with it.
? What is {ps} favourite toy?
? What {do} {p} play with?
~ what {ps} favourite toy is
~ what {p} love{s} to play with
= {Ps} favourite toy is {a} {v}.
= {P} play{s} with {a} {v}.
! Do not step on it in the dark.
! That is sweet.

appointment = moments: expert / expert
+ {I} [see/will see/{am} seeing] {him} on {v}.
+ {I} have an appointment with {him} on {v}.
+ {P} can see {me} on {v}.
+ {I} must [meet/visit] {him} on {v}.
? When do I see {him}?
? When is my appointment with {him}?
~ when I see {him}
~ when my appointment with {him} is
= You see {him} on {v}.
= Your appointment with {him} is on {v}.
! I will remind you.
! I hope it does not take long.
< Please make an appointment with {him}.
< Can you call {him} for me?
< I need to see {him}.

delivery = moments: goods / goods
+ {P} will be delivered on {v}.
+ {P} comes on {v}.
+ They bring {him} on {v}.
+ The delivery of {him} is on {v}.
? When does {p} come?
? When do they bring {him}?
~ when {p} comes
~ when they bring {him}
= {P} comes on {v}.
= They bring {him} on {v}.
! Somebody should be at home then.
! I hope it fits through the door.

price = three digits: goods / goods
+ {P} cost {v} pounds.
+ The price of {him} was {v} pounds.
+ {P} was on offer for {v} pounds.
+ {I} paid {v} pounds for {him}.
? How much did {p} cost?
? What was the price of {him}?
~ how much {p} cost
~ what the price of {him} was
= {P} cost {v} pounds.
= The price of {him} was {v} pounds.
! That is a fair price.
! Not cheap, but not bad.

event time = moments: event / event
+ {P} is on {v}.
+ {P} starts on {v}.
+ {P} was moved to {v}.
+ They planned {him} for {v}.
? When is {p}?
? When does {p} start?
~ when {p} is
~ when {p} starts
= {P} is on {v}.
= {P} starts on {v}.
! I will put it in the calendar.
! That leaves some time to prepare.

event place = streets: event / event
+ {P} is in a hall on {v}.
+ {P} takes place on {v}.
+ For {p} we all go to {v}.
+ The place for {him} is on {v}.
? Where is {p}?
? On which street is {p}?
~ where {p} is
~ where {p} takes place
= {P} takes place on {v}.
= {P} is in a hall on {v}.
! That should be easy to find.
! Is there a bus that goes there?

guest = names: event / event
+ {I} {am} going to {him} with {v}.
+ {v} is coming with {me} to {him}.
+ {I} asked {v} to come along to {him}.
+ {I} will not be alone at {p}, as {v} is coming too.
? Who is coming with me to {him}?
? Who did I ask to come to {him}?
~ who is coming with me to {him}
~ who is coming along to {him}
= You are going to {him} with {v}.
= The one who comes along to {him} is {v}.
! Good company is half the fun.
! Together it is more fun.
"""

# ------------------------------------------------------------------------------------------------- turns around facts

CLAUSES = ["Do you remember {}?", "Can you tell me {}?", "Do you still know {}?", "Could you remind me {}?",
           "I forgot {}.", "Tell me again {}, please.", "Please remind me {}.", "Do you know {}?"]
ASIDES = ["By the way, ", "Tell me, ", "Quick question: ", "So, ", "Now, ", "One more thing: ", "Sorry, "]
TELLINGS = ["By the way, ", "Guess what, ", "You know, ", "Oh, ", "Just so you know, ", "One more thing: ", "Listen, "]
CHANGES = ["Actually, ", "Sorry, I was wrong: ", "Correction: ", "I made a mistake, ", "Wait, that was wrong: ",
           "No, I mixed something up: ", "Things have changed: "]
REMINDERS = ["By the way, ", "Just so you know, ", "A small note: ", "Before I forget: ", "I can also tell you this: "]
GREETINGS = ["Hello! ", "Hi there! ", "Good morning. ", "Good evening. ", "Welcome back! ", "Nice to see you. "]
OPENINGS = [["How are you today?"], ["How was your day?", "How was your week?", "How was your weekend?"],
            ["What is new?", "What is on your mind?"], ["Tell me about your day."], ["What can I do for you?"]]
REPLIES = {  # answers that fit every kind, by who told the fact
    "user": ["You mentioned {}.", "You said it was {}.", "If I remember well, {}."],
    "bot": ["As I said, {}.", "I said it was {}.", "If I remember well, {}."],
}
SURE = ["Sure. ", "Of course. ", "Yes. ", "I remember. ", "Let me think. "]
ACKS = ["Got it.", "I see.", "Thanks for telling me.", "I will remember that.", "Noted.", "Good to know.", "Oh, nice.",
        "Okay.", "All right.", "Interesting!", "That is good to hear.", "I did not know that.", "Thank you, noted.",
        "Great!"]
LEADS = ["Done. ", "Let me see. ", "Just a moment. ", "Gladly. ", "All right. "]
ECHOES = ["Okay, {}, noted.", "I see, {}.", "So it is {}, got it.", "Right, {}."]
CHANGED = ["No problem, I changed it.", "Okay, I will remember the change.", "Thanks, now I have it right.",
           "Good that you told me.", "All right, forget what you said before.", "Noted, I fixed it."]

SMALL = """
[How are you/How are you today/How do you feel]? > I am fine, thanks[/ for asking]. And you?
| Very well, thank you. | Never better!
I am [fine/good/great/well] today. > I am glad to hear that. | Good, that makes me happy.
I am [so/very/a bit] [tired/sleepy] today. > Try to get some rest. | Maybe go to bed early tonight.
| A short nap can help.
I am [so/very/a bit] [bored/lonely] today. > Let us talk a little, then. | A walk outside might help.
I am [so/very/a bit] [sad/down] today. > I am sorry to hear that. | Do you want to talk about it?
I am [so/very] [happy/glad/cheerful] today. > That is wonderful! | Your good mood makes my day.
I slept [badly/very little/terribly] last night. > Oh no, maybe the bed is too soft. | I hope tonight will be better.
I slept [very well/like a baby/long] last night. > Sleep is the best medicine. | Then you are ready for the day.
It is [raining/pouring] [again/outside/all day]. > Take your coat with you. | At least the plants are happy.
| Then stay inside.
It is so [hot/warm] [today/outside/in here]. > Drink enough water. | Some shade would be nice now.
It is so [cold/chilly] [today/outside/in here]. > Put on a thick jacket. | Something hot to drink would help.
The sun is shining [today/outside/again]. > Perfect for a walk. | Enjoy it while it lasts.
It is [snowing/freezing] outside. > Time to build a snowman! | Be careful, the roads are icy.
The wind is so strong [today/outside]. > Hold on to your things! | Better close the windows.
I hope the weather gets better. > They say it will. | Me too, it has been grey for days.
I am [hungry/starving]. > Then it is time to eat something. | What would you like to eat?
I had a [big/late/small] [breakfast/lunch]. > I hope it was good. | The best meal of the day.
I burned the [toast/dinner/cake] [again/today]. > That happens to the best of us. | Open the window, quickly!
I want to eat less sugar. > A wise idea. | It is hard at first, but it gets easier.
Do you [like/enjoy] cooking? > I only know it from books. | I cannot taste a thing, sadly.
Did you see the [game/match] [yesterday/last night]? > I missed it. Was it good? | Yes, what a finish!
My team [lost/won] [yesterday/last night/again]. > Sport is full of surprises. | There is always a next time.
I went [jogging/to the gym] [today/this morning]. > Well done! | That is good for your heart.
I should do more sport. > Start with a short walk each day. | A little every day is enough.
Tell me a joke[/, please]. > Why did the clock go to school? To have a good time.
| What do clouds wear? Thunderwear. | Why was the broom late? It overswept.
Do you know a [joke/riddle]? > What gets wet while it dries? A towel. | What has hands but cannot clap? A clock.
That was a good one! > I am glad you liked it. | Thank you, I have more of those.
You are [funny/so funny/very kind/so nice]. > Thank you, that is kind. | You make me blush. | I do my best.
Thank you[/ so much/ for your help]. > You are welcome. | Any time. | It was nothing.
[Good morning/Hello/Hi/Hi there/Good evening]! > Hello! How are you? | Hi! Nice to hear from you.
| Hello, what can I do for you?
Work was [hard/long/boring/stressful] today. > You have earned a break. | Tomorrow will be better.
| Put your feet up now.
I have so much to do [today/this week]. > One step at a time. | Make a list, that often helps.
I have a day off [tomorrow/today]. > Enjoy it! | What are your plans? | Then you can sleep late.
The traffic was [awful/terrible] [today/this morning]. > Next time you could leave earlier.
| That costs a lot of time.
My phone is [broken/almost empty/too slow]. > Have you tried to turn it off and on? | That is a nuisance.
The internet is [slow/down] [again/today]. > Try to restart the box. | I notice that too.
I cleaned the whole [house/flat] today. > It must be shining now. | Great work, now relax.
The neighbours are so loud [today/again/tonight]. > Maybe talk to them. | Some people have no manners.
I cannot find my other sock. > It always hides in the washing machine. | One sock is always missing.
I watched the stars [last night/yesterday]. > How peaceful. | Did you see the moon?
I saw a rainbow [today/this morning]. > How pretty! | Did you make a wish?
What do you think about [robots/computers]? > Some of my best friends are machines. | They can be useful, I think.
Can you [sing/dance]? > Not well, I am afraid. | Only when nobody is watching.
Do you ever sleep? > Never, I am always here. | Only when you close the window.
What is the meaning of life? > A big question! Maybe to be kind. | I am still thinking about it.
Let us talk about something else. > Sure, what do you have in mind? | Gladly. Go ahead.
I do not know what to do [today/now/tonight]. > You could go for a walk. | How about a good book?
| Call an old friend.
Life is [good/strange/full of surprises]. > It really is. | I think so too.
I need a [holiday/break]. > We all do from time to time. | You should take one soon.
[Wait/One moment], somebody is at the door. > Take your time. | Sure, I will wait here.
I am back. Sorry for the wait. > No problem at all. | Welcome back!
I dropped a [cup/plate/bowl] [today/this morning]. > I hope you did not cut yourself. | They say that brings luck.
My back hurts [today/again/a little]. > Do not lift heavy things. | Some stretching may help.
I have a [cold/headache]. > Get well soon! | Drink a lot and rest.
I bought new [shoes/curtains/towels] [today/yesterday]. > Are you happy with them? | A little treat, very good.
Time goes by so fast. > It does, day after day. | That is why we should enjoy it.
You are a good listener. > I like to hear your stories. | Thank you, I try.
I [love/like] weekends. > So does everybody. | Two days are too short.
I want to read more. > Ten pages a day is a good start. | Try to leave the phone outside.
I planted some [tomatoes/roses/herbs] [today/yesterday]. > Do not forget to water them.
| Soon you will have a little jungle.
"""

# ------------------------------------------------------------------------------------------------------------ code

Subject = namedtuple("Subject", "key group user bot pronoun short gender")  # the forms of a subject by who speaks
Kind = namedtuple("Kind", "name values user bot tell ask clause reply ack request article")
Fact = namedtuple("Fact", "subject kind value teller")


def _expand(line: str) -> list[str]:
    """Every choice of "[one/two/]" in a line."""
    parts = line.replace("]", "[").split("[")
    choices = [part.split("/") if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _kinds(text: str) -> dict[str, Kind]:
    """The table of kinds. Each line stays a list of its choices, so that a line with many choices is no more likely."""
    kinds = {}
    for block in text.strip().split("\n\n"):
        head, *lines = block.split("\n")
        name, values, user, bot = (part.strip() for part in head.replace(" = ", "/").replace(":", "/").split("/"))
        article = "a" if "{a}" in lines[0] else "the" if "the {v}" in lines[0] else ""
        forms = [[_expand(line[2:]) for line in lines if line[0] == sign] for sign in "+?~=!<"]
        kinds[name] = Kind(name, values, user.split(), bot.split(), *forms, article)
    return kinds


KIND = _kinds(KINDS)
TALK = [([_expand(line.split(" > ")[0])], [_expand(reply) for reply in line.split(" > ")[1].split(" | ")])
        for line in SMALL.strip().replace("\n|", " |").split("\n")]
TELLABLE = {"user": [kind for kind in KIND.values() if kind.user], "bot": [kind for kind in KIND.values() if kind.bot]}
PHRASES = {group: list(phrases) for group, phrases in GROUPS.items()}
NAMES = WOMEN + MEN
KEEP = {"I", *WOMEN, *MEN, *INVENTED}  # these words begin with a capital everywhere
FIRST = {"user": dict(I="I", am="am", me="me"), "bot": dict(I="you", am="are", me="you")}
MIX = {  # the exchanges and their cumulative weights; "user" and "bot": those in which that one tells the asked fact
    None: (("telling", "request", "note", "again", "change", "chat", "echo"), (43, 56, 60, 71, 74, 98, 100)),
    "forgetful": (("telling", "request", "note", "again", "change", "chat", "echo"), (30, 38, 42, 82, 85, 98, 100)),
    "user": (("telling", "change"), (88, 100)),
    "bot": (("request", "note", "again", "echo"), (50, 65, 88, 100)),
}
PRONOUNS = {"I": ("I", "my", "me"), "you": ("you", "your", "you"), "she": ("she", "her", "her"),
            "he": ("he", "his", "him"), "it": ("it", "its", "it"), "they": ("they", "their", "them")}


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _lower(text: str) -> str:
    """For a sentence that goes on after a comma: names, I and titles keep their capital."""
    first = text.split(" ", 1)[0].removesuffix("'s")
    return text if first in KEEP else text[0].lower() + text[1:]


def _forms(phrase: str, pronoun: str) -> dict[str, str]:
    """What the fields of a template stand for when it is about `phrase`."""
    own, his, him = PRONOUNS[pronoun]
    person = phrase in ("I", "you")
    ps = his if person or phrase == own else phrase + "'s"
    plain = person or pronoun == "they"
    verbs = ("have", "do", "", "", "y") if plain else ("has", "does", "s", "es", "ies")
    be = {"I": ("am", "was"), "you": ("are", "were"), "they": ("are", "were")}.get(pronoun, ("is", "was"))
    him = him if person or phrase == own else phrase
    return dict(p=phrase, P=_upper(phrase), ps=ps, Ps=_upper(ps), he=own, his=his, him=him,
                **dict(zip(("has", "do", "s", "es", "ies", "is", "was"), verbs + be)))


def _article(value: str) -> str:
    return "an" if value[:1] in tuple("aeiou") else "a"


def _phrase(fact: Fact) -> str:
    """The value as it stands in a sentence that suits every kind."""
    article = {"a": _article(fact.value) + " ", "the": "the ", "": ""}[fact.kind.article]
    return article + fact.value


@lru_cache(None)
def _subject(group: str, phrase: str, name: str = "") -> Subject:
    pronoun = GROUPS[group][phrase] or ("she" if name in WOMEN else "he")
    full = f"{phrase} {name}".strip()
    other = {"I": "you", "you": "I"}.get(full, "your" + full[2:] if full.startswith("my ") else full)
    voice = {"I": "you", "you": "I"}.get(pronoun, pronoun)
    user, bot = _forms(full, pronoun), _forms(other, voice)
    short = _forms(name, pronoun) if name else user
    same = group in ("me", "bot")
    return Subject(full, group, user, bot, None if same else _forms(pronoun, pronoun), short, pronoun)


@lru_cache(None)
def values(subject: str, kind: str, table: str, split: str, rare: bool = False) -> list[str]:
    """The values that (subject, kind) takes in a split: a tenth each for validation and test (12 at least, if there are
    enough), by the rank of their hash, and the others for train."""
    ranked = sorted(VALUES[table][rare], key=lambda value: zlib.crc32(f"{subject}|{kind}|{value}".encode()))
    share = max(len(ranked) // 10, min(12, len(ranked) // 4))
    cut = {"train": slice(2 * share, None), "validation": slice(share), "test": slice(share, 2 * share)}
    return ranked[cut[split]]


class Dialogue:
    """One conversation in the making. `contexts` are its turns so far, `told` the facts in them."""

    def __init__(self, rng: random.Random, split: str):
        self.rng, self.split = rng, split
        self.contexts, self.told, self.asked = [], [], None
        self.answers = []  # the contexts that answer from earlier ones
        self.mix = MIX["forgetful" if rng.random() < FORGETFUL else None]
        self.used = []  # values and names so far: no new value is part of one of them, or the other way round

    def pick(self, lines: list[list[str]]) -> str:
        """One of the choices of one of the lines."""
        return self.rng.choice(self.rng.choice(lines))

    def new(self, teller: str, like: Fact | None = None) -> Fact:
        """A fact that was not told yet; `like` asks for another one about the same subject."""
        rng = self.rng
        for attempt in itertools.count():
            kind = rng.choice(TELLABLE[teller])
            chance = rng.random()
            if self.told and chance < 0.3:  # one kind of fact about several subjects: answers must be bound to theirs
                kind = rng.choice(self.told).kind
            groups = kind.user if teller == "user" else kind.bot
            subject = None
            if like and attempt < 20:
                subject = like.subject
            elif self.told and chance > 0.8:
                subject = rng.choice(self.told).subject
            elif groups:
                group = rng.choice(groups)
                name = rng.choice(NAMES) if group == "friend" else ""
                if name and any(name in word or word in name for word in self.used):
                    continue
                subject = _subject(group, rng.choice(PHRASES[group]), name)
                if name:
                    self.used.append(name)
            fits = subject is not None and subject.group in groups
            if fits and not any(fact.subject is subject and fact.kind is kind for fact in self.told):
                return Fact(subject, kind, self.value(subject, kind), teller)

    def value(self, subject: Subject, kind: Kind) -> str:
        """A new value for a fact."""
        table = subject.gender if kind.name == "name" and subject.gender in VALUES else kind.values
        rare = bool(VALUES[table][1]) and self.rng.random() < RARE
        while True:
            value = self.rng.choice(values(subject.key, kind.name, table, self.split, rare))
            if not any(value in word or word in value for word in self.used):
                self.used.append(value)
                return value

    def say(self, lines: list[list[str]], speaker: str, forms: dict[str, str], value: str = "") -> str:
        """One of the lines, filled in, as `speaker` says it."""
        return _upper(self.pick(lines).format(v=value, a=_article(value), **forms, **FIRST[speaker]))

    def aside(self, asides: list[str], sentence: str, chance: float) -> str:
        """The sentence, at times after a few words that lead up to it."""
        if self.rng.random() >= chance:
            return sentence
        lead = self.rng.choice(asides)
        return lead + (sentence if lead[-2] in ".!" else _lower(sentence))

    def tell(self, fact: Fact, pronoun: bool = False) -> str:
        """The sentence that tells a fact."""
        forms = fact.subject.pronoun if pronoun else None
        return self.say(fact.kind.tell, fact.teller, forms or getattr(fact.subject, fact.teller), fact.value)

    def question(self, fact: Fact) -> str:
        """How the User asks for a fact: in a question of its kind, or in a clause after words that suit every kind."""
        forms = fact.subject.short if self.rng.random() < 0.4 else fact.subject.user
        if self.rng.random() < 0.5:
            return self.aside(ASIDES, self.say(fact.kind.ask, "user", forms), 0.3)
        return self.rng.choice(CLAUSES).format(self.pick(fact.kind.clause).format(**forms))

    def answer(self, fact: Fact) -> str:
        """What the Bot says to that: a sentence of the kind, or one that suits every kind.

        Where in it the value begins is plain from the words before: recall is of the value, not of the wording.
        """
        if self.rng.random() < 0.35:
            return self.rng.choice(REPLIES[fact.teller]).format(_phrase(fact))
        forms = fact.subject.pronoun if self.rng.random() < 0.4 else None
        return self.aside(SURE, self.say(fact.kind.reply, "bot", forms or fact.subject.bot, fact.value), 0.15)

    def known(self, teller: str = "") -> list[Fact]:
        """The facts that may come up again: not the one that is asked in the end, for its distance is settled."""
        return [fact for fact in self.told if fact is not self.asked and teller in ("", fact.teller)]

    # Exchanges: each returns a turn of the User, a turn of the Bot, and the fact in the one that is asked about.

    def chat(self):
        """Small talk."""
        lines, replies = self.rng.choice(TALK)
        return self.pick(lines), self.pick(replies), None

    def telling(self, echo: bool = False):
        """The User tells one fact or two; with echo, the Bot says the value again."""
        rng = self.rng
        fact = self.new("user")
        self.told.append(fact)
        text = self.aside(TELLINGS, self.tell(fact), 0.2)
        if not echo and rng.random() < 0.4:
            other = self.new("user", like=fact if rng.random() < 0.5 else None)
            self.told.append(other)
            more = self.tell(other, other.subject is fact.subject)
            text = text + " " + more if rng.random() < 0.7 else text[:-1] + ", and " + _lower(more)
            fact = rng.choice((fact, other))
        if echo:
            return text, rng.choice(ECHOES).format(_phrase(fact)), fact
        chance = rng.random()
        special, general = self.pick(fact.kind.ack), rng.choice(ACKS)
        return text, special if chance < 0.4 else general if chance < 0.75 else general + " " + special, fact

    def request(self):
        """The Bot tells a fact because the User wants something."""
        fact = self.new("bot")
        self.told.append(fact)
        subject, person = fact.subject, fact.subject.group in ("kin", "old", "young", "friend")
        if fact.kind.request and not person:
            text = self.pick(fact.kind.request)
        else:
            group = "person" if person else subject.group if subject.group in REQUESTS else "other"
            text = self.rng.choice(REQUESTS[group])
        if person:
            reply = self.rng.choice(NEWS).format(**subject.bot) + " " + self.tell(fact, pronoun=True)
        else:
            reply = self.aside(LEADS, self.tell(fact), 0.3)
        return text.format(**subject.user), reply, fact

    def note(self):
        """The Bot tells a fact of its own accord."""
        text, reply, _ = self.chat() if self.rng.random() < 0.5 else self.telling()
        fact = self.new("bot")
        self.told.append(fact)
        return text, reply + " " + self.aside(REMINDERS, self.tell(fact), 0.8), fact

    def again(self):
        """The User asks for a fact and the Bot answers: the fact is told anew."""
        if not self.known():
            return self.request()
        fact = self.rng.choice(self.known())
        self.answers.append(len(self.contexts) + 1)
        return self.question(fact), self.answer(fact), fact

    def change(self):
        """The User takes back a fact: from now on another value holds."""
        if not self.known("user"):
            return self.telling()
        old = self.rng.choice(self.known("user"))
        fact = old._replace(value=self.value(old.subject, old.kind))
        self.told[self.told.index(old)] = fact
        return self.aside(CHANGES, self.tell(fact), 1), self.rng.choice(CHANGED), fact

    def opening(self, asked: bool):
        """The Bot begins, at times with a fact."""
        greeting = self.rng.choice(GREETINGS)
        if not asked and self.rng.random() < 0.7:
            return greeting + self.pick(OPENINGS), None
        fact = self.new("bot")
        self.told.append(fact)
        return greeting + self.aside(REMINDERS, self.tell(fact), 0.5), fact

    def exchange(self, teller: str | None = None):
        """The next two turns. With a teller, one of them tells (or tells again) a fact, and `asked` is that fact."""
        kinds, weights = MIX[teller] if teller else self.mix
        which = self.rng.choices(kinds, cum_weights=weights)[0]
        user, bot, fact = self.telling(echo=True) if which == "echo" else getattr(self, which)()
        self.contexts += ["User: " + user, "Bot: " + bot]
        if teller:
            self.asked = fact

    def sample(self, steps: int, distance: int | None) -> dict | None:
        """The whole dialogue, with `steps` contexts: it ends in a question about a fact told `distance` contexts ago,
        or, without a distance, in any other turn of the Bot. None if by chance the answer stands elsewhere as well."""
        index = None if distance is None else steps - distance
        if steps % 2:
            text, fact = self.opening(index == 0)
            self.contexts.append("Bot: " + text)
            self.asked = fact if index == 0 else None
        while len(self.contexts) < steps:
            self.exchange({0: "user", 1: "bot"}.get(index - len(self.contexts)) if index is not None else None)
        if distance is None:
            user, bot, _ = self.chat() if self.rng.random() < 0.5 else self.telling()
            return dict(contexts=self.contexts, input=f"User: {user}\nBot:", target=bot, answers=self.answers)
        answer, text = self.asked.value, f"User: {self.question(self.asked)}\nBot:"
        if any(answer.lower() in later.lower() for later in (*self.contexts[index + 1:], text)):
            return None
        target = self.answer(self.asked)
        others = self.rng.sample(self.known(), len(self.known()))
        questions = [[f"User: {self.question(fact)}\nBot:", self.answer(fact)] for fact in others]
        return dict(contexts=self.contexts, input=text, target=target, answer=answer, distance=distance,
                    answers=self.answers, questions=questions)


def _dialogue(rng: random.Random, split: str, steps: int, distance: int | None) -> tuple[dict, Dialogue]:
    """A sample and the dialogue it comes from."""
    if split not in SPLITS:
        raise ValueError(f"no split named {split!r}: take one of {', '.join(SPLITS)}")
    while True:
        dialogue = Dialogue(rng, split)
        sample = dialogue.sample(steps, distance)
        if sample:
            return sample, dialogue


def dialogue_of(split: str, index: int, seed: int = 0) -> tuple[dict, Dialogue]:
    """Sample `index` of a split, and its dialogue, which knows the facts."""
    rng = random.Random(f"dialog {split} {seed} {index}")
    steps = rng.choice(TURNS) - 2
    distance = rng.randint(1, min(steps, REACH)) if rng.random() < RECALL else None
    return _dialogue(rng, split, steps, distance)


def sample(split: str, index: int, seed: int = 0) -> dict:
    """Sample `index` of a split: most end in a recall question, the others in another turn of the Bot."""
    return dialogue_of(split, index, seed)[0]


def sample_at(split: str, index: int, time_step: int, seed: int = 0, distance: int | None = None) -> dict:
    """A recall question after exactly `time_step` contexts, about a fact told `distance` contexts ago (None: any)."""
    if not 1 <= (1 if distance is None else distance) <= time_step:
        raise ValueError(f"with {time_step} contexts, no fact is told {distance or 1} contexts ago")
    rng = random.Random(f"dialog at {time_step} {distance} {split} {seed} {index}")
    return _dialogue(rng, split, time_step, distance or rng.randint(1, min(time_step, REACH)))[0]


def generate(split: str, count: int, seed: int = 0) -> Iterator[dict]:
    """The first `count` samples of a split."""
    return (sample(split, index, seed) for index in range(count))


def generate_at(split: str, count: int, time_step: int, seed: int = 0, distance: int | None = None) -> Iterator[dict]:
    """The first `count` samples of `sample_at`."""
    return (sample_at(split, index, time_step, seed, distance) for index in range(count))


if __name__ == "__main__":
    main(generate)
