"""Generated everyday chats: a user tells facts in many wordings, makes small talk, and asks for the facts later.

    {"messages": [{"role": "user", "content": "I'm Oliver and I just moved to Berlin."}, ...],
     "questions": [["Who am I?", "You are Oliver."], ...], "answer": "Berlin"}

data/dialog.py measures recall with few wordings; here the wordings are the point. A fact is a frame with slots, such as
"{q} gave me {v} for {w}": each slot can be asked for, in many ways. Facts are told one or several in a message, in main
and subordinate clauses, and some are corrected later. Small talk stands between: hand-written exchanges
(data/stories/small_talk.tsv), and some whose replies SmolLM2 wrote (data/smollm2/small_talk.jsonl.gz). The last
exchange asks for something told before, and "questions" are further ones that could be asked in its place. "answer" is
the part of the last reply that counts as recalled.

Each sample depends on (split, seed, its number) alone. Names and the like are shared out among the splits.
"""

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from data import SPLITS, main
from data import dialog as lists
from data.scenes import scene, with_article

SMALL_TALK = Path(__file__).parent / "smollm2" / "small_talk.jsonl.gz"
WRITTEN_TALK = Path(__file__).parent / "stories" / "small_talk.tsv"
OWN_TALK = 0.1  # the share of small talk whose replies SmolLM2 wrote
SUMS = 0.06  # the share of small talk that asks for a sum
SUM_FORMS = ("What is {}?", "What's {}?", "How much is {}?", "{}?", "Can you tell me what {} is?", "{} = ?")
SPOKEN = {"+": " plus ", "-": " minus ", "*": " times "}
TEST_SUMS = {(2, "+", 3), (7, "+", 5), (6, "*", 7)}  # asked by experiments/abilities.py
EXCHANGES = (1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 18, 20, 22, 24, 26)
QUESTIONS = 12  # after the same conversation, at most
SCENES = 0.4  # the share of scenes (data/scenes.py) among new facts
HELD_OUT = 10  # one name, city, ... in 10 belongs to the test split, one to the validation split

# ---------------------------------------------------------------------------------------------------------- values


def _words(text: str) -> list[str]:
    return [" ".join(entry.split()) for entry in text.split(",")]


WOMEN = lists.WOMEN + _words("""
    Aaliyah, Abena, Adele, Aiko, Aisha, Akua, Aleksandra, Alina, Amara, Amina, Ana, Anastasia, Aneta, Annika, Antonia,
    Aoife, Aroha, Asha, Aurora, Ayla, Ayse, Barbara, Basma, Bettina, Birgit, Bronwyn, Camille, Catarina, Chiara, Chika,
    Claudia, Dalia, Deborah, Deepa, Dilara, Dominika, Dorota, Ebba, Edna, Eleni, Elif, Eloise, Elsa, Emine, Esme,
    Esperanza, Eszter, Farida, Federica, Freya, Gabriela, Galina, Georgia, Gulsen, Gwen, Hana, Harriet, Hiba, Hyejin,
    Imogen, Indira, Ioana, Isla, Ivana, Jacinta, Jana, Jelena, Jiwon, Josefina, Kamala, Karima, Katarzyna, Keiko,
    Kerstin,
    Kirsten, Lakshmi, Larisa, Latifa, Liesl, Ling, Lotte, Luciana, Ludmila, Magdalena, Mairead, Malika, Mara, Margot,
    Marisol, Matilda, Meera, Mercedes, Milena, Min, Mirjam, Nadine, Naoko, Nasrin, Ngozi, Niamh, Nkechi, Noor, Odette,
    Oksana, Orla, Paloma, Parvati, Pauline, Penelope, Phoebe, Pilar, Radka, Rania, Reiko, Renata, Roisin, Rosalind,
    Roxana, Sabine, Saoirse, Shirin, Sigrid, Sinead, Siobhan, Snezana, Solveig, Soraya, Sunita, Svetlana, Tamara,
    Tatiana,
    Thandiwe, Tova, Valentina, Valeria, Victoria, Violet, Xiomara, Yasmin, Yolanda, Zainab, Zeynep, Zofia, Zuzana""")
MEN = lists.MEN + _words("""
    Abdul, Adebayo, Ajay, Akira, Aksel, Alejandro, Alessandro, Alfred, Alistair, Amir, Anders, Andrzej, Angus, Anil,
    Antonio, Arjun, Armando, Arne, Arvid, Ashok, Aziz, Baptiste, Barnaby, Bart, Bashir, Benedikt, Benjamin, Bilal,
    Bjorn,
    Bogdan, Callum, Cheng, Chidi, Christoph, Cian, Clement, Clive, Conor, Damian, Dario, Declan, Denis, Derek, Didier,
    Dieter, Dominic, Duncan, Eamon, Eduardo, Eirik, Emeka, Emmanuel, Ernesto, Esteban, Eugene, Ezra, Fabian, Farid,
    Fergus,
    Fernando, Florian, Francesco, Geoffrey, Gianni, Gilbert, Giorgos, Goran, Graham, Gregor, Guillermo, Gunnar, Hakan,
    Hans, Haruto, Hassan, Hector, Heinrich, Hiroshi, Ibrahim, Ignacio, Ismail, Jakub, Jamal, Jasper, Jens, Jiri, Joao,
    Johan, Julian, Jun, Kareem, Karl, Kazuo, Keith, Kenji, Khalid, Klaus, Kwame, Laszlo, Leon, Lorenzo, Luca, Ludwig,
    Lukas, Malcolm, Manuel, Marcel, Marek, Mateo, Matthias, Maxim, Mehmet, Miguel, Mikhail, Milan, Mohammed, Mustafa,
    Nabil, Nasser, Nico, Nigel, Nikos, Nils, Olaf, Oleg, Olu, Orlando, Owen, Paolo, Pascal, Pavel, Percy, Pierre, Piotr,
    Quentin, Rajesh, Ramon, Rashid, Rene, Ricardo, Roberto, Roland, Rory, Rufus, Ruslan, Sami, Sanjay, Sean, Sebastian,
    Sergei, Silas, Stavros, Sven, Takeshi, Tariku, Tobias, Tomas, Trevor, Umar, Vasily, Vikram, Vinh, Vladimir, Wei,
    Wilhelm, Xavier, Yannick, Yusuf, Zachary, Zoltan""")
CITIES = lists.CITIES + _words("""
    Aachen, Adelaide, Algiers, Almaty, Arles, Atlanta, Avignon, Bath, Bern, Birmingham, Boise, Bonn, Bratislava, Brno,
    Bruges, Buffalo, Busan, Cadiz, Cardiff, Casablanca, Charleston, Chennai, Coventry, Dar es Salaam, Derby, Dijon,
    Dortmund, Dundee, Dusseldorf, El Paso, Essen, Exeter, Faro, Fez, Galway, Gdansk, Gothenburg, Grenoble, Groningen,
    Guadalajara, Halifax, Hanover, Hobart, Honolulu, Hull, Innsbruck, Inverness, Izmir, Jaipur, Kampala, Kiel, Kobe,
    Kolkata, La Paz, Lausanne, Leicester, Lille, Limerick, Linz, Ljubljana, Lodz, Lucerne, Luxembourg, Maastricht,
    Malmo,
    Maputo, Marrakesh, Medellin, Memphis, Minsk, Monterrey, Montevideo, Mumbai, Nagoya, Nashville, New Orleans,
    Newcastle,
    Norwich, Nottingham, Nuremberg, Odense, Odessa, Orlando, Panama City, Parma, Pittsburgh, Portland, Portsmouth, Pune,
    Ravenna, Reading, Rennes, Rio de Janeiro, Sacramento, Saigon, San Francisco, San Jose, Sao Paulo, Sapporo, Siena,
    Split, St Petersburg, Stavanger, Strasbourg, Stuttgart, Swansea, Tangier, Tirana, Tromso, Tucson, Uppsala, Wroclaw,
    Yerevan""")
JOBS = lists.JOBS + _words("""
    air traffic controller, animator, archaeologist, auctioneer, beekeeper, biologist, blacksmith, bookkeeper, botanist,
    bouncer, brewer, bus conductor, cameraman, caretaker, chef, chimney sweep, civil engineer, comedian, composer,
    crane operator, curator, data scientist, delivery driver, diplomat, economist, estate agent, event planner,
    flight attendant, forester, game designer, goldsmith, graphic designer, hospital porter, illustrator,
    insurance broker,
    kindergarten teacher, lab technician, landscape gardener, lifeguard, lighthouse keeper, lorry driver, maths teacher,
    meteorologist, music teacher, night watchman, notary, novelist, occupational therapist, park ranger,
    personal trainer,
    philosopher, physiotherapist, piano tuner, playwright, primary school teacher, project manager, psychologist,
    radiologist, radio host, receptionist, sales manager, shop assistant, sound engineer, speech therapist,
    swimming instructor, tattoo artist, tour guide, train driver, travel agent, tree surgeon, undertaker, veterinarian,
    watchmaker, web developer, window cleaner, yoga teacher""")
FOODS = lists.FOODS + _words("""
    apple crumble, aubergine curry, baked beans, baked potatoes, banana bread, bibimbap, biryani, blueberry muffins,
    borscht, bread pudding, burritos, butter chicken, cauliflower cheese, ceviche, cheesecake, chicken soup,
    chocolate cake,
    cinnamon rolls, coleslaw, crepes, croissants, dal, empanadas, enchiladas, feta salad, fish pie, fishcakes,
    French toast, gazpacho, gnocchi, gumbo, jambalaya, jollof rice, kimchi, laksa, leek soup, lobster rolls,
    mac and cheese,
    moussaka, mushroom risotto, nachos, pad thai, pea risotto, pierogi, pho, pickled herring, poke bowls, quiche,
    ratatouille, rhubarb pie, roast chicken, samosas, sauerkraut, schnitzel, shakshuka, shepherd's pie,
    stir-fried noodles,
    strudel, tagine, tempura, tiramisu, veggie burgers""")
HOBBIES = lists.HOBBIES + _words("""
    aikido, baking bread, ballroom dancing, bouldering, brewing beer, candle making, caving, choir singing, collecting
    coins, collecting vinyl records, crochet, crosswords, drone flying, falconry, fossil hunting, geocaching,
    ice hockey,
    improv theatre, kickboxing, lacrosse, leatherwork, life drawing, metal detecting, mushroom picking, open-water
    swimming, orienteering, pilates, pole vaulting, puppet making, rock climbing, salsa dancing, scuba diving,
    soap making,
    snowboarding, street photography, sudoku, taekwondo, trail running, unicycling, video games, watercolour painting,
    wild camping, woodturning""")
ANIMALS = _words("""
    a cat, a dog, a rabbit, a hamster, a parrot, a goldfish, a turtle, a horse, a pony, a goat, a snake, a lizard,
    a ferret, a guinea pig, a canary, a hedgehog, a duck, a chicken, a donkey, a mouse, a kitten, a puppy, a spaniel,
    a poodle, a labrador, a beagle, a terrier, a collie, a greyhound, a dachshund, a Siamese cat, a tortoise, a budgie,
    a gecko, a chinchilla, a cockatoo, an alpaca, a llama, a pug, a husky, a Persian cat, a border collie""")
COLOURS = _words("""
    red, blue, green, yellow, black, white, grey, brown, orange, pink, purple, turquoise, silver, golden, beige,
    dark blue,
    light green, bright red, navy blue, dark green, pale yellow, ginger, cream, maroon, violet, teal, crimson, lilac,
    olive,
    bronze, copper, ivory, charcoal, mint green, sky blue, salmon pink, rusty brown, jet black, snow white, tabby""")
THINGS = _words("""
    bicycle, backpack, umbrella, scarf, coat, watch, phone, laptop, wallet, camera, suitcase, guitar, sofa, teapot, mug,
    jacket, hat, notebook, tent, kettle, lamp, rug, bookshelf, desk, front door, kitchen, bedroom, scooter, helmet,
    sleeping bag, raincoat, dress, handbag, blanket, toothbrush, skateboard, kayak, car, van, motorbike, garage, fence,
    bathroom, armchair, piano, violin, pencil case, lunchbox, water bottle, jumper""")
OBJECTS = _words("""
    keys, passport, glasses, umbrella, wallet, charger, headphones, gloves, notebook, camera, diary, spare key,
    sunglasses,
    torch, ticket, sewing kit, scissors, screwdriver, tape measure, hammer, first-aid kit, medicine, birth certificate,
    library card, laptop, tablet, bike lock, swimming goggles, wedding ring, earrings, necklace, contract, receipt, map,
    compass, batteries, stapler, cheque book, driving licence, tennis racket, hiking boots, winter coat, violin bow,
    old letters, photo album, Christmas lights, picnic blanket, thermos, recipe book, passport photos""")
SPOTS = _words("""
    in the top drawer, under the bed, on the kitchen table, behind the sofa, in the glove box, on the windowsill,
    in the blue bag, in the garage, on the top shelf, in the wardrobe, next to the fridge, in the hall cupboard,
    under the doormat, in my coat pocket, on the piano, in the shed, behind the mirror, in the biscuit tin,
    in the attic,
    on the bookshelf, in the laundry basket, in the bathroom cabinet, in the red box, under the stairs, in the cellar,
    on the balcony, in my backpack, in the desk drawer, by the front door, inside the teapot, on the fridge, in the car,
    at the office, in locker twelve, in the bread bin, behind the clock, under the flower pot, in the green suitcase,
    on the bedside table, in the freezer, in the shoe box, in the drawer with the socks, at my parents' place,
    in the side pocket of the suitcase, on the hook in the hall, in the oven, in the guest room, under my pillow""")
GIFTS = _words("""
    a book, a scarf, a watch, a plant, a board game, a necklace, a teapot, a cookbook, a puzzle, a pair of gloves,
    a bottle of wine, a fountain pen, a telescope, a record player, a vase, a bracelet, a wooden box,
    a pair of earrings,
    a hat, a lamp, a box of chocolates, a camera, a ukulele, a kite, a globe, a poster, a jumper, a picnic basket,
    a pocket knife, a chess set, a bird feeder, a painting, a mug, a candle, a music box, a hammock, a concert ticket,
    a bicycle bell, a cactus, a rocking chair, a silver ring, a tea set, a jigsaw, a dictionary, a yoga mat,
    a woollen blanket, a coffee grinder, an umbrella, an atlas, an apron, an alarm clock, an old radio""")
OCCASIONS = _words("""
    my birthday, Christmas, my graduation, our anniversary, my wedding, Easter, New Year, my name day, Valentine's Day,
    my retirement, the housewarming, my promotion, Hanukkah, Eid, Diwali, my thirtieth birthday, Mother's Day,
    Father's Day, my farewell party, the baby shower""")
EVENTS = _words("""
    dentist appointment, job interview, driving test, piano lesson, doctor's appointment, haircut, exam, team meeting,
    parents' evening, yoga class, eye test, football match, choir rehearsal, book club, flight, dinner, presentation,
    concert, wedding, birthday party, thesis defence, chess tournament, swimming lesson, job fair, house viewing,
    vaccination, blood test, business trip, school reunion, theatre evening, wine tasting, pottery course, first date,
    marathon, barbecue, housewarming party, graduation ceremony, court hearing, physiotherapy session, video call,
    meeting with the bank, open day, auction, city tour, cooking class, language exchange, band practice,
    citizenship test,
    staff party, training session, music exam, garden party, baptism, funeral, checkup, workshop""")
DAYS = _words("""
    Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, tomorrow, next Monday, next Tuesday, next Wednesday,
    next Thursday, next Friday, next Saturday, next Sunday, Monday morning, Tuesday afternoon, Wednesday evening,
    Thursday night, Friday afternoon, Saturday morning, Sunday evening""")
MONTHS = _words("January, February, March, April, May, June, July, August, September, October, November, December")
REASONS = _words("""
    for work, to study, for love, to be closer to my family, because the rent was too high, because of the weather,
    to learn the language, because I got a new job, to be near the sea, because my partner lives there,
    to start a company, for a change, because I wanted more sun, to look after my mother, because the air is clean,
    for the music scene, because I missed the mountains, for my PhD""")
AILMENTS = _words("""
    a broken arm, a sprained ankle, a headache, a sore throat, a bad cold, the flu, a toothache, a twisted knee,
    back pain,
    a fever, an ear infection, hay fever, a broken toe, a stiff neck, a cough, a broken wrist, a burnt finger,
    migraines,
    asthma, a bruised rib, high blood pressure, a black eye, a pulled muscle, tennis elbow, a stomach ache, insomnia""")
FAVOURITES = {
    "colour": COLOURS[:30],
    "food": FOODS,
    "drink": lists.DRINKS,
    "season": _words("spring, summer, autumn, winter"),
    "fruit": _words(
        "mango, pineapple, papaya, pear, apple, banana, cherry, peach, plum, fig, grape, kiwi, lemon, orange, "
        "melon, raspberry, strawberry, blueberry, apricot, pomegranate, lychee, passion fruit, coconut"
    ),
    "animal": _words(
        "otter, fox, owl, penguin, elephant, tiger, dolphin, hedgehog, giraffe, panda, wolf, octopus, squirrel, "
        "koala, sloth, whale, eagle, lynx, seal, badger, hummingbird, flamingo, zebra, platypus, red panda"
    ),
    "sport": _words(
        "football, tennis, rugby, basketball, cricket, badminton, ice hockey, swimming, volleyball, golf, "
        "cycling, rowing, table tennis, skiing, gymnastics, boxing, snooker, handball, fencing, surfing"
    ),
    "subject": lists.STUDIES,
    "dessert": _words(
        "apple pie, tiramisu, cheesecake, lemon tart, brownies, rice pudding, "
        "chocolate mousse, ice cream, panna cotta, baklava, trifle, creme brulee, plum cake, carrot cake, pavlova"
    ),
    "flower": _words(
        "rose, tulip, sunflower, daisy, lily, orchid, poppy, peony, iris, lavender, violet, daffodil, dahlia, "
        "snowdrop, magnolia, jasmine, lilac, carnation, hyacinth, marigold"
    ),
    "number": [str(i) for i in range(3, 100)],
    "ice cream": _words(
        "vanilla, chocolate, pistachio, lemon, strawberry, mango, "
        "hazelnut, coconut, coffee, mint, caramel, raspberry, cherry, banana, walnut, yoghurt, salted caramel"
    ),
    "music": lists.MUSIC
    + _words(
        "jazz, classical music, hip hop, reggae, heavy metal, folk, techno, blues, country, "
        "opera, flamenco, soul, ska, bossa nova, disco, swing, gospel, fado, tango, samba"
    ),
    "holiday": _words(
        "Christmas, Easter, Halloween, New Year, Diwali, Eid, Hanukkah, Midsummer, Thanksgiving, Carnival"
    ),
    "pizza": _words(
        "margherita, quattro formaggi, Hawaiian, mushroom, salami, tuna, spinach, vegetarian, anchovy, truffle"
    ),
    "instrument": lists.INSTRUMENTS,
    "vegetable": _words(
        "broccoli, carrots, spinach, peas, cauliflower, aubergine, leek, "
        "asparagus, cucumber, beetroot, pumpkin, courgette, artichoke, kale, sweet potato, fennel, radish, celery"
    ),
    "day of the week": _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "city": CITIES,
    "game": _words(
        "chess, Monopoly, Scrabble, poker, backgammon, dominoes, Cluedo, Tetris, Catan, draughts, mahjong, Risk, "
        "solitaire, Uno, bridge, Go, charades, Pictionary, Snakes and Ladders, Minecraft"
    ),
    "tree": _words(
        "oak, beech, birch, willow, maple, pine, chestnut, cherry tree, olive tree, cypress, cedar, elm, ash"
    ),
    "spice": _words("cinnamon, saffron, cumin, turmeric, paprika, nutmeg, ginger, cardamom, chilli, coriander, cloves"),
    "film": lists.TITLES,
    "book": lists.TITLES,
    "tea": _words(
        "peppermint, Earl Grey, chamomile, jasmine, rooibos, green "
        "tea, oolong, ginger tea, Darjeeling, chai, lemon verbena, fennel"
    ),
}
GROCERIES = _words("""
    milk, eggs, bread, butter, cheese, rice, pasta, tomatoes, onions, garlic, apples, bananas, flour, sugar, salt,
    coffee,
    tea, yoghurt, carrots, potatoes, honey, olive oil, lemons, mushrooms, spinach, chicken, fish, oats, soap, shampoo,
    toothpaste, batteries, candles, napkins, cat food, light bulbs, stamps, tape, sponges, jam, nuts, beans, lentils,
    cream, vinegar, mustard, ginger, basil, parsley, cucumbers, peppers, ice, crisps, juice, wine, matches,
    toilet paper""")
KINDS_OF_THINGS = _words("""
    cousins, plants, books, bicycles, chickens, guitars, pairs of shoes, brothers, sisters, cats, children,
    grandchildren,
    cameras, coats, pillows, apple trees, students, colleagues, clocks, hats, umbrellas, candles, cups, chairs, nephews,
    stamps, records, board games, teapots, paintings, rabbits, cushions, suitcases, tattoos, aunts, uncles, pen pals,
    cookbooks, neighbours, bee hives, fish, pigeons, keys, telescopes, notebooks, scarves""")
SHOPS = _words("""
    the market, the flea market, a charity shop, the bookshop on the corner, the department store, an online auction,
    the supermarket, a little shop in the old town, the hardware store, the antique shop, the petrol station,
    the airport,
    a garage sale, the outlet, the second-hand shop, the garden centre, the music shop, the bakery, the toy shop""")
CAUSES = _words("""
    falling off a ladder, slipping on the ice, playing football, skiing, falling down the stairs, moving a wardrobe,
    tripping over the cat, running for the bus, jumping into a lake, falling off my bike, gardening,
    dancing at a wedding,
    lifting a box, playing basketball, climbing a tree, riding a horse, roller skating""")
PLACES_TO_MEET = _words("""
    the station, the old library, the town hall, the park, the museum, the cinema, the harbour, the blue cafe,
    the bakery,
    the fountain, the swimming pool, the market square, the bus stop, the pub, the university, the cathedral, the zoo,
    the airport, the climbing hall, the theatre, the pizzeria, the beach, the bridge, the tea house,
    the botanical garden,
    the ice rink, the gym, the stadium, the hotel bar, the roof terrace, the bookshop, the lighthouse""")
ACTIVITIES = _words("""
    watch a film, go hiking, play tennis, bake a cake, visit the museum, go sailing, see a play, go to the sauna,
    play chess,
    go bowling, have a picnic, paint the kitchen, go climbing, clean the garage, plant tomatoes, go to a concert,
    cook curry, go ice skating, repair the bike, build a bookshelf, go fishing, visit my grandmother, play board games,
    go to the beach, try the new sushi place, practise for the exam, ride our bikes to the lake, go dancing,
    pick apples,
    study together, walk the dog, sort old photos, go shopping, sing karaoke, make dumplings, go for a run,
    fly a kite""")
TOPICS = _words("""
    the rent, the holiday, the broken heater, the party, the contract, the exam, the car, the invoice, the wedding,
    a job,
    the insurance, the school trip, the leak in the roof, the new project, the birthday present, my visa, the concert
    tickets, the garden fence, the tax return, a loan, the neighbours' noise, the moving van, the guest list""")
PLANS = _words("""
    learn to sail, write a novel, run a marathon, learn to play the drums, open a cafe, buy a boat, get a dog,
    learn to fly,
    build a tree house, move to the countryside, climb a volcano, visit Antarctica, learn sign language, start a blog,
    keep bees, travel by train across Siberia, open a bookshop, learn to juggle, sleep under the stars, record an album,
    restore an old car, grow my own vegetables, become a vegetarian, give up sugar, swim with dolphins, learn to surf,
    walk the Camino, build a guitar, knit a jumper, see the northern lights, plant a hundred trees, adopt a cat""")
FEARS = _words("""
    spiders, heights, flying, thunder, the dark, clowns, snakes, deep water, dogs, needles, lifts, mice, ghosts, bees,
    moths,
    crowds, dentists, small spaces, sharks, bats, wasps, balloons, escalators, public speaking, horses, fireworks""")
BAD_NEWS = "ailment lost fear allergy".split()
KIN = {
    "my sister": "she",
    "my brother": "he",
    "my mother": "she",
    "my father": "he",
    "my mum": "she",
    "my dad": "he",
    "my wife": "she",
    "my husband": "he",
    "my girlfriend": "she",
    "my boyfriend": "he",
    "my daughter": "she",
    "my son": "he",
    "my aunt": "she",
    "my uncle": "he",
    "my grandmother": "she",
    "my grandfather": "he",
    "my grandma": "she",
    "my grandpa": "he",
    "my niece": "she",
    "my nephew": "he",
    "my boss": "she",
    "my neighbour": "he",
    "my flatmate": "she",
    "my roommate": "he",
    "my best friend": "she",
    "my landlord": "he",
    "my landlady": "she",
    "my teacher": "he",
    "my colleague": "she",
    "my cousin": "he",
    "my partner": "they",
    "my mother-in-law": "she",
    "my father-in-law": "he",
    "my sister-in-law": "she",
    "my brother-in-law": "he",
    "my little brother": "he",
    "my older sister": "she",
    "my younger sister": "she",
    "my big brother": "he",
    "my twin sister": "she",
    "my twin brother": "he",
    "my stepfather": "he",
    "my godmother": "she",
    "my ex": "she",
    "my coach": "he",
    "my doctor": "she",
    "my dentist": "he",
    "my professor": "she",
    "my hairdresser": "she",
    "my piano teacher": "she",
    "my oldest friend": "he",
    "my tutor": "he",
    "my manager": "he",
    "my oldest son": "he",
    "my youngest daughter": "she",
    "my supervisor": "she",
    "my fiancee": "she",
    "my pen pal": "she",
    "my carpool buddy": "he",
    "the new guy at work": "he",
    "our babysitter": "she",
    "the neighbour upstairs": "she",
    "our gardener": "he",
    "my gym partner": "he",
    "my grandson": "he",
    "my granddaughter": "she",
}
EXPERTS = {
    "my doctor": "she",
    "my dentist": "he",
    "my teacher": "he",
    "my boss": "she",
    "our plumber": "he",
    "my lawyer": "she",
    "our vet": "she",
    "my landlord": "he",
    "my professor": "she",
    "my hairdresser": "she",
    "my accountant": "he",
    "our mechanic": "he",
    "my therapist": "she",
    "my new manager": "she",
    "my coach": "he",
    "my driving instructor": "he",
    "our midwife": "she",
    "the caretaker": "he",
    "my piano teacher": "she",
    "my supervisor": "she",
    "our family doctor": "he",
    "the head of the school": "she",
    "my editor": "he",
}
GENDER = dict.fromkeys(WOMEN, "she") | dict.fromkeys(MEN, "he") | KIN | EXPERTS
SYLLABLES = [
    lists._words(
        "bel,bro,dar,dol,fen,gal,hol,jor,kal,kel,lom,mar,mel,nor,pel,quin,ral,sol,tar,tor,ul,val,vel,wen,"
        "yor,zan,zel,bri,cor,del,fy,glo,hu,kri,lu,mo,ny,plo,ru,ska,stro,thi,tra,vo,wy,xan"
    ),
    lists._words("a,e,i,o,ba,da,de,go,ka,la,li,lo,me,mi,na,no,ra,ri,ro,ta,ti,va,vi,za,sha,nu,ffe,bbi,ll,ndo"),
    lists._words(
        "bo,dan,din,dor,ka,las,len,lin,lo,mar,mi,na,nel,nor,ra,ren,ri,ro,san,ta,tin,vik,zo,ck,x,ster,"
        "wood,ville,ton,by,stein,ska,ez,ini,sson"
    ),
]
NUMBER_WORDS = _words("two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fifteen, twenty")


def invented(rng: random.Random) -> str:
    """A word from no list: a model must copy it."""
    parts = [rng.choice(part) for part in SYLLABLES]
    return "".join(parts if rng.random() < 0.7 else [parts[0], parts[2]]).capitalize()


def clock(rng: random.Random) -> str:
    hour, minute = rng.randint(1, 12), rng.choice([0, 0, 0, 5, 10, 15, 20, 25, 30, 30, 35, 40, 45, 50, 55])
    style = rng.randrange(5)
    if style == 0:
        return f"{rng.randint(7, 21)}:{minute:02d}"
    if style == 1:
        return f"{hour}:{minute:02d} {rng.choice(['am', 'pm'])}"
    if style == 2:
        return f"{hour} {rng.choice(['am', 'pm', 'o' + chr(39) + 'clock'])}"
    if style == 3:
        return rng.choice(
            [
                "noon",
                "half past " + rng.choice(NUMBER_WORDS[:11]),
                "quarter to " + rng.choice(NUMBER_WORDS[:11]),
                "quarter past " + rng.choice(NUMBER_WORDS[:11]),
            ]
        )
    return rng.choice(NUMBER_WORDS[:11])


def code(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 5)))
    return rng.choice([digits, letters + digits, f"{letters}-{digits}", rng.choice(lists.CODES), digits[:2] + letters])


def price(rng: random.Random) -> str:
    return rng.choice(["{} euros", "{} dollars", "{} pounds", "${}", "{} euros"]).format(
        rng.choice([rng.randint(2, 30), rng.randint(20, 200), 10 * rng.randint(10, 90), 100 * rng.randint(5, 40)])
    )


def shopping(rng: random.Random) -> str:
    first = rng.sample(GROCERIES, rng.choice([2, 2, 3, 3, 3, 4]))
    return ", ".join(first[:-1]) + " and " + first[-1]


def duration(rng: random.Random) -> str:
    number = rng.choice(NUMBER_WORDS + [str(rng.randint(2, 40))])
    return f"{number} {rng.choice(['years', 'years', 'months', 'weeks', 'days'])}"


def date(rng: random.Random) -> str:
    day, month = rng.randint(1, 28), rng.choice(MONTHS)
    suffix = "th" if 10 <= day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return rng.choice([f"{day} {month}", f"{month} {day}", f"the {day}{suffix} of {month}", f"{month} {day}{suffix}"])


def phone(rng: random.Random) -> str:
    return rng.choice(["0", "555-", "+44 ", ""]) + "".join(
        rng.choice("0123456789") for _ in range(rng.choice([4, 5, 6]))
    )


def pick(*pools: list[str], odd: float = 0.0) -> Callable:
    """Values of word lists of equal weight; with probability `odd` an invented word."""
    return lambda rng: invented(rng) if rng.random() < odd else rng.choice(pools[rng.randrange(len(pools))])


def number(low: int, high: int) -> Callable:
    return lambda rng: str(rng.randint(low, high))


def numeral(rng: random.Random) -> str:
    return rng.choice([rng.choice(NUMBER_WORDS), str(rng.randint(2, 60))])


TYPES: dict[str, Callable] = {
    "name": pick(WOMEN, MEN, odd=0.12),
    "friend": pick(WOMEN, MEN, odd=0.06),
    "kin": pick(list(KIN)),
    "person": pick(list(KIN), WOMEN, MEN, odd=0.04),
    "expert": pick(list(EXPERTS)),
    "surname": lambda rng: rng.choice([rng.choice(lists.SURNAMES), invented(rng)]),
    "fullname": lambda rng: f"{rng.choice(WOMEN + MEN)} {rng.choice([rng.choice(lists.SURNAMES), invented(rng)])}",
    "doctor": lambda rng: (
        rng.choice(["Dr ", "Dr. ", "Mr ", "Mrs ", "Ms ", "Professor "]) + invented(rng)
        if rng.random() < 0.6
        else rng.choice(["Dr. ", "Mr ", "Mrs ", "Ms "]) + rng.choice(lists.SURNAMES)
    ),
    "petname": pick(lists.PETNAMES, odd=0.2),
    "animal": pick(ANIMALS),
    "city": pick(CITIES, odd=0.08),
    "country": pick(lists.COUNTRIES),
    "job": pick(JOBS),
    "food": pick(FOODS),
    "drink": pick(lists.DRINKS),
    "hobby": pick(HOBBIES),
    "colour": pick(COLOURS),
    "thing": pick(THINGS),
    "object": pick(OBJECTS),
    "spot": pick(SPOTS),
    "gift": pick(GIFTS, GIFTS, ["a " + gift for gift in lists.GIFTS if gift[0] not in "aeiou"]),
    "occasion": pick(OCCASIONS),
    "event": pick(EVENTS),
    "day": pick(DAYS),
    "date": date,
    "clock": clock,
    "code": code,
    "price": price,
    "shopping": shopping,
    "duration": duration,
    "age": number(2, 95),
    "adult": number(19, 85),
    "count": numeral,
    "things": pick(KINDS_OF_THINGS),
    "allergen": pick(lists.ALLERGENS),
    "reason": pick(REASONS),
    "firm": lambda rng: rng.choice(
        [
            rng.choice(lists.FIRMS),
            invented(rng),
            f"{invented(rng)} {rng.choice(lists._words('Labs,Foods,Bank,Books,Media,Motors'))}",
            "the city library",
            "the post office",
            "the fire brigade",
            "the university",
            "a bank",
            "a small bakery",
            "the children's hospital",
            "a law firm",
            "the zoo",
            "a start-up",
        ]
    ),
    "language": pick([skill for skill in lists.SKILLS if skill[0].isupper()]),
    "study": pick(lists.STUDIES),
    "instrument": pick(lists.INSTRUMENTS),
    "street": pick(lists.STREETS, odd=0.0),
    "title": pick(lists.TITLES),
    "author": lambda rng: f"{rng.choice(WOMEN + MEN)} {rng.choice([rng.choice(lists.SURNAMES), invented(rng)])}",
    "ailment": pick(AILMENTS),
    "cause": pick(CAUSES),
    "shop": pick(SHOPS),
    "meet": pick(PLACES_TO_MEET),
    "activity": pick(ACTIVITIES),
    "topic": pick(TOPICS),
    "plan": pick(PLANS),
    "fear": pick(FEARS),
    "phone": phone,
    "year": number(1950, 2024),
    "month": pick(MONTHS),
    "room": number(1, 990),
    "word": invented,
    "floor": pick(_words("first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, top, ground")),
    "seat": pick(lists.SEATS),
    "gate": pick(lists.GATES),
    "category": pick(list(FAVOURITES)),
    "height": number(150, 205),
    "weekday": pick(_words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")),
    "vehicle": lambda rng: (
        f"{rng.choice(['a', 'a', 'an old', 'a used', 'a second-hand'])} "
        + rng.choice(
            _words(
                "Toyota, Volvo, Fiat, Skoda, Renault, Ford, Honda, Beetle, camper van, motorbike, scooter, Tesla, "
                "Mini, pickup"
            )
        )
    ),
    "material": pick(_words("wood, glass, leather, wool, silver, paper, steel, clay, cotton, bamboo, marble, copper")),
    "diet": pick(
        _words("vegan, vegetarian, pescatarian, gluten-free, lactose-free, kosher, halal, sugar-free, low-salt")
    ),
    "line": lambda rng: rng.choice(
        [
            f"bus {rng.randint(2, 199)}",
            f"tram {rng.randint(1, 30)}",
            f"line {rng.randint(1, 12)}",
            f"the {rng.randint(2, 199)}",
            f"the {rng.randint(6, 22)}:{rng.randint(10, 58)} train",
        ]
    ),
    "team": lambda rng: rng.choice(
        [
            "the "
            + rng.choice(
                _words(
                    "Tigers, Hawks, Rockets, Bears, Sharks, Wolves, Dragons, "
                    "Eagles, Knights, Lions, Comets, Panthers, Falcons, Pirates, Giants, Foxes, Badgers"
                )
            ),
            invented(rng) + " United",
        ]
    ),
    "hotel": lambda rng: (
        rng.choice(["the Hotel ", "Hotel ", "the "]) + rng.choice([invented(rng), rng.choice(lists.INNS)[4:]])
    ),
    "distance": lambda rng: f"{rng.randint(2, 90)} {rng.choice(['kilometres', 'miles', 'minutes'])}",
    "drinkorfood": pick(FOODS, lists.DRINKS),
    "subjectmark": pick(lists.STUDIES),
    "mark": number(1, 100),
}

# ---------------------------------------------------------------------------------------------------------- frames
# name: slots with their types
#   + a telling (a clause of a sentence)
#   ? slot: a question   ~ slot: the same as a clause, after "Do you remember"   # slot: ... as a noun, after "What is"
#   = slot: an answer    ! an acknowledgement
# p is who or what a frame is about: {p} {ps} "my sister's", {he} {him} {his}, and {s} {es} {is} {was} {has} {do} agree
# with it. {the v} turns "a book" into "the book", {a v} adds an article. [one/two/] is a choice. All of it is in the
# user's words; an answer turns "my" into "your".

FRAMES = """
myname: v=name
+ I'm {v}
+ I am {v}
+ my name is {v}
+ my name's {v}
+ my friends call me {v}
+ everybody calls me {v}
+ you can call me {v}
+ please call me {v}
+ {v} is my name
+ this is {v} speaking
+ I go by {v}
+ I was named {v} after my [grandmother/grandfather/great-aunt/great-uncle]
? v: What is my name?
? v: What's my name?
? v: Who am I?
? v: What am I called?
? v: What do people call me?
? v: How should you call me?
? v: What name did I give you?
? v: Who are you talking to?
~ v: who I am
~ v: what I am called
~ v: what my name is
~ v: how I introduced myself
# v: my name
# v: my first name
= v: You are {v}.
= v: Your name is {v}.
= v: You're {v}.
= v: You are called {v}.
! Nice to meet you, {v}!
! Hello, {v}!
! Hi {v}, good to meet you.
! Pleased to meet you, {v}.
! Welcome, {v}!

nickname: p=kin v=name
+ {ps} nickname is {v}
+ we all call {p} {v}
+ everyone calls {p} {v}
+ {p}, nicknamed {v}, [came by/called/says hello]
? v: What is {ps} nickname?
? v: What do we call {p}?
? v: What nickname {do} {p} have?
~ v: what we call {p}
# v: {ps} nickname
= v: Everyone calls {him} {v}.
= v: {Ps} nickname is {v}.

surname: v=surname
+ my last name is {v}
+ my surname is {v}
+ my family name is {v}
+ my surname is spelled {v}
? v: What is my last name?
? v: What is my surname?
? v: What's my family name?
~ v: what my surname is
# v: my last name
# v: my surname
= v: Your last name is {v}.
= v: Your surname is {v}.

kinname: p=kin v=name
+ {ps} name is {v}
+ {p} is called {v}
+ {p} is named {v}
+ {p}, {v}, [is visiting/came over/lives nearby/just called]
+ I had [lunch/dinner/coffee/breakfast] with {p} {v}
+ {p} {v} sends [his regards/her love/regards/greetings]
+ {v} is {p}
+ {v} is {ps} name
? v: What is {ps} name?
? v: What is {p} called?
? v: What's {p} called?
? v: Who is {p}?
? v: What did I say {ps} name was?
? v: What's the name of {p}?
? v: How is {p} called?
? p: Who is {v}?
? p: How do I know {v}?
? p: Who's {v} again?
~ v: what {p} is called
~ v: {ps} name
~ p: who {v} is
# v: {ps} name
# v: the name of {p}
= v: {Ps} name is {v}.
= v: {P} is called {v}.
= p: {v} is {p}.
= p: That's {p}.
! Say hello to {v} from me.
! {v} is a nice name.

live: p=meperson v=city
+ {p} live{s} in {v}
+ {p} {is} living in {v} [now/these days/at the moment/for now]
+ {ps} [home/flat/house] is in {v}
+ {p} moved to {v}
+ {p} just moved to {v}
+ {p} settled in {v} [last year/a while ago/after school]
+ {p} [recently/finally] found a flat in {v}
+ {p} {has} [a flat/an apartment/a small house/a room] in {v}
+ {p} {is} based in {v}
+ {p}, who live{s} in {v}, [sends postcards/is fine/says hello]
+ it's nice to live in {v}, {p} say{s}
+ {v} has been {ps} home for years
? v: Where {do} {p} live?
? v: Which city {do} {p} live in?
? v: In which city {do} {p} live?
? v: What city {is} {p} in?
? v: Where did {p} move?
? v: Where did {p} move to?
? v: Where's {ps} home?
? v: Where {is} {p} based?
? v: Where {is} {p} living?
? p: Who lives in {v}?
? p: Who is it that lives in {v}?
~ v: where {p} live{s}
~ v: what city {p} live{s} in
~ v: where {p} moved
~ p: who lives in {v}
# v: {ps} city
# v: {ps} home town
= v: {P} live{s} in {v}.
= v: In {v}.
= p: {P} live{s} in {v}.
! {v} is a lovely city.
! How do you like {v}?
! I hear {v} is nice.

move: v=city w=city x=reason
+ I moved from {w} to {v} {x}
+ I left {w} and came to {v} {x}
+ {x}, I moved to {v}; before that I lived in {w}
+ I live in {v} now, but I used to live in {w}; I moved {x}
? v: Where do I live now?
? v: Where did I move to?
? v: Which city did I move to?
? w: Where did I live before?
? w: Where did I use to live?
? w: Where did I move from?
? w: Which city did I leave?
? w: What city did I come from?
? x: Why did I move?
? x: Why did I come to {v}?
? x: What made me move?
? x: Why did I leave {w}?
~ v: where I moved
~ w: where I lived before
~ x: why I moved
~ x: why I left {w}
# x: the reason I moved
= v: You moved to {v}.
= v: You live in {v} now.
= w: You used to live in {w}.
= w: You came from {w}.
= x: You moved {x}.
! I hope you feel at home in {v}.

origin: p=meperson v=city
+ {p} {was} born in {v}
+ {p} grew up in {v}
+ {p} come{s} from {v}
+ {p} {is} originally from {v}
+ {p} {is} a native of {v}
+ {p} spent {his} childhood in {v}
? v: Where {was} {p} born?
? v: Where {do} {p} come from?
? v: Where did {p} grow up?
? v: Where {is} {p} from?
? v: What is {ps} birthplace?
? p: Who comes from {v}?
? p: Who grew up in {v}?
~ v: where {p} come{s} from
~ v: where {p} {was} born
# v: {ps} birthplace
# v: {ps} hometown
= v: {P} come{s} from {v}.
= v: {P} {was} born in {v}.
= p: {P} come{s} from {v}.

country: p=meperson v=country
+ {p} come{s} from {v}
+ {ps} family is from {v}
+ {p} {has} roots in {v}
+ {p} spent a year in {v}
? v: Which country {is} {p} from?
? v: What country {do} {p} come from?
? v: What country did I mention with {p}?
~ v: which country I connected with {p}
= v: {v}, you said.
= v: That was {v}.

job: p=meperson v=job
+ {p} work{s} as {a v}
+ {p} {is} {a v}
+ {p} {is} {a v} by profession
+ {p} {has} a job as {a v}
+ {p} became {a v} [last year/not long ago/in the end/after university]
+ {p} [just/recently] started as {a v}
+ {p} earn{s} {his} living as {a v}
+ {p}, {a v}, [had a long day/is on holiday/works too much/is doing well]
+ working as {a v} suits {p}
+ {p} {is} training to be {a v}
+ {p} retired after years as {a v}
? v: What {do} {p} do?
? v: What {do} {p} do for a living?
? v: What is {ps} job?
? v: What's {ps} profession?
? v: What {do} {p} work as?
? v: What kind of work {do} {p} do?
? v: What's {ps} line of work?
? v: What sort of job {has} {p} got?
? p: Who is the {v}?
? p: Who works as {a v}?
? p: Who did I say is {a v}?
~ v: what {p} {do} for a living
~ v: what {ps} job is
~ v: what {p} {do} for work
~ p: who is {a v}
# v: {ps} job
# v: {ps} profession
# v: {ps} occupation
= v: {P} work{s} as {a v}.
= v: {P} {is} {a v}.
= p: {P} {is} {a v}.
! That sounds like an interesting job.
! That must be a lot of work.

employer: p=meperson v=firm
+ {p} work{s} for {v}
+ {p} work{s} at {v}
+ {p} got a job at {v}
+ {p} [just/recently] started at {v}
+ {ps} employer is {v}
+ {p} {has} been with {v} for years
+ {v} hired {him0}
? v: Where {do} {p} work?
? v: Who {do} {p} work for?
? v: Which company {do} {p} work for?
? v: Who's {ps} employer?
? v: What's the name of the place where {p} work{s}?
? p: Who works at {v}?
? p: Who works for {v}?
~ v: where {p} work{s}
~ v: who {p} work{s} for
# v: {ps} employer
# v: {ps} workplace
= v: {P} work{s} for {v}.
= v: {P} work{s} at {v}.
= p: {P} work{s} at {v}.
! I hope the people there are nice.

age: p=meperson v=age
+ {p} {is} {v} years old
+ {p} {is} {v}
+ {p} just turned {v}
+ {p} turned {v} [last week/yesterday/on Sunday/this month]
+ {p} will be {v} [next month/soon/on Friday]
? v: How old {is} {p}?
? v: What age {is} {p}?
? p: Who is {v}?
? p: Who turned {v}?
~ v: how old {p} {is}
# v: {ps} age
= v: {P} {is} {v}.
= v: {P} {is} {v} years old.
= p: {P} {is} {v}.
! Happy birthday, in case I missed it!

birthday: p=meperson v=date
+ {ps} birthday is {v}
+ {ps} birthday is on {v}
+ {p} {was} born on {v}
+ {p} celebrate{s} {his} birthday on {v}
+ {ps} big day is {v}
? v: When is {ps} birthday?
? v: When's {ps} birthday?
? v: On what day {was} {p} born?
? v: What date is {ps} birthday?
? v: When can we congratulate {p}?
~ v: when {ps} birthday is
# v: {ps} birthday
# v: the date of {ps} birthday
= v: {Ps} birthday is {v}.
= v: On {v}.

pet: p=meperson x=animal v=petname
+ {p} {has} {x} called {v}
+ {p} {has} {x} named {v}
+ {p} just got {x}, {v}
+ {p} adopted {x} and named it {v}
+ {ps} {the0 x} is called {v}
+ {v}, {ps} {the0 x}, [slept all day/is hungry/ran away again/has to go to the vet/is very playful]
+ {p} took {his} {the0 x} {v} [to the vet/for a walk/home/to the park]
+ {p} {has} {x}; its name is {v}
? v: What is {ps} {the0 x} called?
? v: What's {ps} {the0 x}'s name?
? v: What's the name of {ps} {the0 x}?
? v: What is the {the0 x} called?
? v: What did {p} name {his} {the0 x}?
? v: How is {ps} {the0 x} called?
? v: What's {ps} pet called?
? x: What kind of animal is {v}?
? x: What pet {do} {p} have?
? x: What animal {has} {p} got?
? x: Who is {v}?
? x: What is {v}?
~ v: what {ps} {the0 x} is called
~ v: the name of {ps} {the0 x}
~ x: what kind of animal {v} is
~ x: who {v} is
# v: {ps} {the0 x}'s name
# v: the name of {ps} pet
= v: {Ps} {the0 x} is called {v}.
= v: It's called {v}.
= x: {v} is {x}.
= x: {P} {has} {x}.
! {v} is a cute name.
! Give {v} a treat from me.

petcolour: p=pets v=colour
+ {p} is {v}
+ {p} has {v} fur
+ {ps} fur is {v}
? v: What colour is {p}?
? v: What colour does {p} have?
? v: What does {p} look like?
? v: Which colour is {p}?
~ v: what colour {p} is
# v: the colour of {p}
= v: {P} is {v}.
! I'd love to see a picture.

thingcolour: p=thing v=colour
+ my {p} is {v}
+ I painted my {p} {v}
+ I bought a new {p}, a {v} one
+ I have a {v} {p}
+ my new {p} is {v}
+ I got a {v} {p} [yesterday/last week/from the shop]
+ the {p} that I bought is {v}
? v: What colour is my {p}?
? v: Which colour is my {p}?
? v: What's the colour of my {p}?
? v: What colour did I choose for my {p}?
? p: What do I have that is {v}?
~ v: what colour my {p} is
# v: the colour of my {p}
= v: Your {p} is {v}.
= v: It's {v}.
= p: Your {p} is {v}.
! {v} suits a {p} well.

material: p=thing v=material
+ my {p} is made of {v}
+ I have a {p} made of {v}
? v: What is my {p} made of?
? v: Which material is my {p} made of?
~ v: what my {p} is made of
= v: Your {p} is made of {v}.

favourite: p=meperson x=category v=favourite
+ {ps} favourite {x} is {v}
+ when it comes to {x}, {p} like{s} {v} best
+ {v} is {ps} favourite {x}
? v: What is {ps} favourite {x}?
? v: What's {ps} favourite {x}?
? v: Which {x} {do} {p} like best?
? v: What {x} {do} {p} like most?
? v: What {x} {do} {p} love?
? p: Whose favourite {x} is {v}?
~ v: what {ps} favourite {x} is
~ v: which {x} {p} like{s} best
# v: {ps} favourite {x}
= v: {Ps} favourite {x} is {v}.
= v: {P} like{s} {v} best.
= p: {Ps} favourite {x} is {v}.
! Good choice!

likefood: p=meperson v=drinkorfood
+ {p} love{s} {v}
+ {p} could eat {v} every day
+ {p} {is} crazy about {v}
+ {p} can't live without {v}
+ nothing makes {p} happier than {v}
? v: What {do} {p} love to eat or drink?
? v: What {is} {p} crazy about?
? v: What could {p} have every day?
? v: What food makes {p} happy?
? p: Who loves {v}?
? p: Who is crazy about {v}?
~ v: what {p} love{s}
= v: {P} love{s} {v}.
= p: {P} love{s} {v}.

dislike: p=meperson v=drinkorfood
+ {p} can't stand {v}
+ {p} hate{s} {v}
+ {p} really dislike{s} {v}
+ {p} {do} not eat {v}
+ {p} would never touch {v}
? v: What {do} {p} hate?
? v: What can't {p} stand?
? v: Which food {do} {p} dislike?
? v: What should I not cook for {p}?
? p: Who hates {v}?
~ v: what {p} hate{s}
= v: {P} can't stand {v}.
= v: {P} hate{s} {v}.
= p: {P} hate{s} {v}.
! Fair enough, tastes differ.

ate: p=meperson v=food x=meal
+ {p} had {v} for {x}
+ for {x} {p} ate {v}
+ {p} made {v} for {x} [today/yesterday/last night]
+ {p} ordered {v} for {x}
+ {x} was {v} [today/yesterday], and {p} loved it
? v: What did {p} have for {x}?
? v: What did {p} eat for {x}?
? v: What was for {x}?
? v: What was it that {p} had for {x}?
~ v: what {p} had for {x}
= v: {P} had {v} for {x}.
= v: {P} had {v}.
! That sounds delicious.
! Yum!

allergy: p=meperson v=allergen
+ {p} {is} allergic to {v}
+ {p} {has} an allergy to {v}
+ {p} can't go near {v} because of an allergy
+ {p} react{s} badly to {v}
+ the doctor told {him0} to stay away from {v}
? v: What {is} {p} allergic to?
? v: Which allergy {do} {p} have?
? v: What can't {p} have?
? v: What must {p} avoid?
? p: Who is allergic to {v}?
? p: Who can't have {v}?
~ v: what {p} {is} allergic to
# v: {ps} allergy
= v: {P} {is} allergic to {v}.
= p: {P} {is} allergic to {v}.
! Sorry to hear that. I'll keep it in mind.
! That must be annoying.

diet: p=meperson v=diet
+ {p} {is} {v}
+ {p} eat{s} only {v} food
+ {p} went {v} [last year/in January/recently]
? v: What kind of diet {do} {p} follow?
? v: What sort of food must I cook for {p}?
? v: How {do} {p} eat?
~ v: what diet {p} follow{s}
= v: {P} {is} {v}.
= v: {P} eat{s} {v}.

hobby: p=meperson v=hobby
+ {ps} hobby is {v}
+ {p} {is} into {v}
+ {p} started {v} [last month/recently/a year ago]
+ {p} spend{s} every weekend on {v}
+ {p} {has} taken up {v}
+ {p} enjoy{s} {v} in {his} free time
+ {p} got hooked on {v}
? v: What is {ps} hobby?
? v: What {do} {p} do in {his} free time?
? v: What {do} {p} do for fun?
? v: How {do} {p} spend {his} weekends?
? v: What {has} {p} taken up?
? v: What {is} {p} into?
? p: Who is into {v}?
? p: Whose hobby is {v}?
~ v: what {ps} hobby is
~ v: what {p} {do} for fun
# v: {ps} hobby
= v: {Ps} hobby is {v}.
= v: {P} {is} into {v}.
= p: {P} {is} into {v}.
! That sounds like fun.

instrument: p=meperson v=instrument
+ {p} play{s} the {v}
+ {p} {is} learning the {v}
+ {p} practise{s} the {v} every evening
+ {p} take{s} {v} lessons
+ {p} bought a {v} and now plays it all day
? v: What instrument {do} {p} play?
? v: Which instrument {is} {p} learning?
? v: What {do} {p} play?
? p: Who plays the {v}?
~ v: what {p} play{s}
# v: {ps} instrument
= v: {P} play{s} the {v}.
= p: {P} play{s} the {v}.
! Music is wonderful.

language: p=meperson v=language
+ {p} {is} learning {v}
+ {p} speak{s} {v}
+ {p} take{s} a {v} course
+ {p} {has} been studying {v} [for months/since spring/for a year]
+ {ps} mother tongue is {v}
+ {p} {do} {v} homework every night
? v: What language {do} {p} speak?
? v: Which language {is} {p} learning?
? v: What language {is} {p} studying?
? p: Who speaks {v}?
? p: Who is learning {v}?
~ v: which language {p} speak{s}
= v: {P} speak{s} {v}.
= v: {v}.
= p: That's {p}, with {v}.
! A beautiful language.

study: p=meperson v=study
+ {p} stud{ies} {v}
+ {p} {is} a student of {v}
+ {p} {is} doing a degree in {v}
+ {p} enrolled in {v}
+ {p} {is} writing a thesis in {v}
+ {p} switched to {v} [last term/this year]
? v: What {do} {p} study?
? v: What subject {is} {p} studying?
? v: What is {ps} degree in?
? v: What's {ps} field?
? p: Who studies {v}?
~ v: what {p} stud{ies}
# v: {ps} subject
= v: {P} stud{ies} {v}.
= p: {P} stud{ies} {v}.

gift: q=person v=gift w=occasion
+ {q} gave me {v} for {w}
+ I got {v} from {q} for {w}
+ for {w}, {q} gave me {v}
+ {q} bought me {v} for {w}
+ {v} was what {q} gave me for {w}
+ I was given {v} for {w}, by {q}
+ the present that {q} brought for {w} was {v}
+ {q} surprised me with {v} for {w}
? q: Who gave me {the v}?
? q: Who is {the v} from?
? q: Who did I get {the v} from?
? q: From whom did I get {the v}?
? q: Where did {the v} come from?
? q: Who bought me {the v}?
? v: What did {q} give me?
? v: What did I get from {q}?
? v: What did I get for {w}?
? v: What was my present for {w}?
? v: What was {qs} present?
? w: When did {q} give me {the v}?
? w: For what occasion did I get {the v}?
? w: What was {the v} for?
~ q: who gave me {the v}
~ q: who {the v} is from
~ v: what {q} gave me
~ v: what I got for {w}
# v: {qs} present
# v: my present for {w}
= q: {q} gave you {the v}.
= q: You got it from {q}.
= q: {the v} is from {q}.
= v: {q} gave you {v}.
= v: You got {v}.
= w: You got it for {w}.
! How thoughtful!
! What a nice present.

giveaway: q=person v=gift
+ I bought {v} for {q}
+ I'm giving {q} {v}
+ I want to give {q} {v}
+ I wrapped {v} for {q}
+ {q} will get {v} from me
? v: What am I giving {q}?
? v: What did I buy for {q}?
? v: What do I have for {q}?
? v: What's my present for {q}?
? q: Who is {the v} for?
? q: Who gets {the v}?
~ v: what I bought for {q}
~ q: who {the v} is for
= v: You have {v} for {q}.
= q: {the v} is for {q}.
! I'm sure it will be a hit.

lent: q=person v=object
+ I lent my {v} to {q}
+ I lent {q} my {v}
+ {q} borrowed my {v}
+ {q} still has my {v}
+ my {v} is with {q}
? q: Who has my {v}?
? q: Who did I lend my {v} to?
? q: Who borrowed my {v}?
? q: Where's my {v}?
? v: What did {q} borrow?
? v: What did I lend {q}?
? v: What does {q} still have of mine?
~ q: who has my {v}
~ q: who borrowed my {v}
~ v: what {q} borrowed
= q: {q} has your {v}.
= q: You lent it to {q}.
= v: {q} has your {v}.
! I hope you get it back soon.

owe: q=person v=price
+ I owe {q} {v}
+ {q} lent me {v}
+ I borrowed {v} from {q}
? v: How much do I owe {q}?
? v: How much money did {q} lend me?
? q: Who do I owe {v}?
? q: Who did I borrow money from?
? q: Who lent me money?
~ v: how much I owe {q}
~ q: who I borrowed money from
= v: You owe {q} {v}.
= q: You owe {q} money.
= q: {q} lent you money.

spot: p=object v=spot
+ I put my {p} {v}
+ I left my {p} {v}
+ I keep my {p} {v}
+ my {p} is {v}
+ the {p} is {v}
+ I hid the {p} {v}
+ I've put the {p} {v}
+ you'll find the {p} {v}
+ {v} is where I keep the {p}
+ the {p} goes {v}
? v: Where is my {p}?
? v: Where did I put my {p}?
? v: Where did I leave the {p}?
? v: Where do I keep the {p}?
? v: Where can I find my {p}?
? v: I can't find my {p}. Where is it?
? v: Have you seen my {p}?
? v: Where should I look for the {p}?
? v: Where have I put the {p}?
? p: What did I put {v}?
? p: What is {v}?
~ v: where my {p} is
~ v: where I put the {p}
~ v: where I left my {p}
~ p: what is {v}
# v: the place where I keep my {p}
= v: Your {p} is {v}.
= v: It's {v}.
= v: You put it {v}.
= p: Your {p} is {v}.
! Good place for it.
! I'll remind you if you need it.

lost: v=object w=meet
+ I lost my {v} at {w}
+ I left my {v} at {w}
+ I think I forgot my {v} at {w}
+ somebody stole my {v} at {w}
? v: What did I lose?
? v: What did I forget at {w}?
? v: What went missing at {w}?
? w: Where did I lose my {v}?
? w: Where did I leave my {v}?
? w: Where could my {v} be?
~ v: what I lost
~ w: where I lost my {v}
= v: You lost your {v}.
= w: You lost it at {w}.
= w: At {w}.
! Oh no, I hope you find it.

appointment: p=event v=day w=clock
+ I have a {p} on {v} at {w}
+ my {p} is on {v} at {w}
+ the {p} is {v} at {w}
+ there's a {p} on {v} at {w}
+ on {v} at {w} I have a {p}
+ the {p} starts at {w} on {v}
? v: When is my {p}?
? v: What day is my {p}?
? v: On which day is the {p}?
? v: Which day is the {p}?
? w: What time is my {p}?
? w: At what time is the {p}?
? w: When does the {p} start?
? w: What time does the {p} start?
? p: What do I have on {v}?
? p: What's planned for {v}?
? p: What's happening on {v}?
? p: What am I doing on {v}?
~ v: what day my {p} is
~ w: what time the {p} starts
~ w: when the {p} starts
~ p: what I have on {v}
# v: the day of my {p}
# w: the time of my {p}
= v: Your {p} is on {v}.
= v: On {v}.
= w: It's at {w}.
= w: The {p} starts at {w}.
= p: You have a {p} on {v}.
! I hope it goes well.
! Good luck!

eventday: p=event v=day
+ my {p} is on {v}
+ I have a {p} on {v}
+ the {p} is on {v}
+ the {p} takes place on {v}
+ they moved the {p} to {v}
? v: When is my {p}?
? v: When do I have the {p}?
? v: What day is the {p}?
? p: What is happening on {v}?
? p: What's planned for {v}?
~ v: when my {p} is
~ v: when the {p} is
# v: the date of the {p}
= v: The {p} is on {v}.
= v: It's on {v}.
= p: Your {p} is on {v}.
! I'll keep my fingers crossed.

eventtime: p=event v=clock
+ the {p} starts at {v}
+ my {p} is at {v}
+ I have a {p} at {v}
+ the {p} begins at {v}
+ I have to be at the {p} at {v}
? v: What time is my {p}?
? v: When does the {p} start?
? v: At what time does the {p} begin?
? v: What time do I have to be there?
? p: What starts at {v}?
~ v: what time the {p} is
~ v: when my {p} begins
# v: the start of the {p}
= v: At {v}.
= v: It starts at {v}.
= p: The {p} starts at {v}.
! Don't be late!

eventplace: p=event v=meet
+ the {p} is at {v}
+ my {p} takes place at {v}
+ we have the {p} at {v}
+ the {p} is held at {v}
? v: Where is the {p}?
? v: Where does the {p} take place?
? v: Where do I have to go for the {p}?
? v: What's the venue of the {p}?
~ v: where the {p} is
# v: the place of the {p}
= v: The {p} is at {v}.
= v: At {v}.

meet: q=person v=day w=meet
+ I'm meeting {q} on {v} at {w}
+ {q} and I are meeting at {w} on {v}
+ on {v} I'll see {q} at {w}
+ I arranged to meet {q} at {w} on {v}
? q: Who am I meeting?
? q: Who am I meeting on {v}?
? q: With whom do I have a date at {w}?
? q: Who am I seeing at {w}?
? v: When am I meeting {q}?
? v: When will I see {q}?
? w: Where am I meeting {q}?
? w: Where do {q} and I meet?
? w: Where will I see {q}?
~ q: who I am meeting
~ v: when I'm meeting {q}
~ w: where I'm meeting {q}
= q: You are meeting {q}.
= v: You are meeting {q} on {v}.
= v: On {v}.
= w: You are meeting at {w}.
= w: At {w}.
! Have a good time!

met: q=name w=meet
+ I met {q} at {w}
+ I got to know {q} at {w}
+ I ran into {q} at {w} [today/yesterday/last night]
+ at {w} I met someone called {q}
? q: Who did I meet at {w}?
? q: Who did I run into?
? q: Who did I get to know at {w}?
? w: Where did I meet {q}?
? w: Where did {q} and I meet?
~ w: where I met {q}
~ q: who I met at {w}
= q: You met {q}.
= w: You met {q} at {w}.
= w: At {w}.

visitor: q=person v=day x=duration
+ {q} is visiting me on {v} for {x}
+ {q} comes on {v} and stays for {x}
+ on {v} {q} arrives and stays {x}
? q: Who is visiting me?
? q: Who is coming on {v}?
? q: Who's staying with me?
? v: When does {q} come?
? v: When does {q} arrive?
? x: How long is {q} staying?
? x: For how long does {q} stay?
~ q: who is visiting
~ v: when {q} comes
~ x: how long {q} stays
= q: {q} is visiting you.
= v: {q} comes on {v}.
= x: {q} stays for {x}.
! That'll be nice.

together: q=person v=activity w=day
+ {q} and I want to {v} on {w}
+ I'm going to {v} with {q} on {w}
+ on {w} we'll {v}, {q} and I
+ {q} asked me to {v} on {w}
+ I promised {q} to {v} on {w}
? v: What am I doing with {q}?
? v: What do {q} and I want to do?
? v: What are my plans for {w}?
? v: What did I promise {q}?
? q: Who will I {v} with?
? q: With whom do I want to {v}?
? w: When will I {v}?
? w: When do {q} and I want to {v}?
~ v: what I'm doing on {w}
~ q: who wants to {v}
= v: You want to {v} with {q}.
= q: With {q}.
= w: On {w}.
! Sounds like a nice plan.

plan: p=meperson v=plan
+ {p} want{s} to {v}
+ {p} dream{s} of it: {p} want{s} to {v}
+ {ps} plan is to {v}
+ {ps} dream is to {v}
+ one day {p} will {v}
+ {p} {is} planning to {v} next year
? v: What is {ps} dream?
? v: What {do} {p} want to do one day?
? v: What is {ps} plan?
? v: What {is} {p} planning?
? p: Who wants to {v}?
~ v: what {p} want{s} to do
# v: {ps} dream
# v: {ps} big plan
= v: {P} want{s} to {v}.
= v: {Ps} dream is to {v}.
= p: {P} want{s} to {v}.
! What a great dream.

fear: p=meperson v=fear
+ {p} {is} afraid of {v}
+ {p} {is} scared of {v}
+ {p} {is} terrified of {v}
+ there is nothing {p} fear{s} more than {v}
? v: What {is} {p} afraid of?
? v: What {is} {p} scared of?
? v: What scares {p}?
? v: What's {ps} biggest fear?
? p: Who is afraid of {v}?
~ v: what {p} {is} afraid of
# v: {ps} fear
= v: {P} {is} afraid of {v}.
= p: {P} {is} afraid of {v}.
! That's quite common.

shopping: v=shopping
+ I need to buy {v}
+ I have to get {v}
+ my shopping list is {v}
+ we're out of {v}
+ the shopping list says {v}
+ I need {v} from the shop
? v: What do I need to buy?
? v: What's on my shopping list?
? v: What do I have to get?
? v: What should I bring from the shop?
? v: What are we out of?
~ v: what I need to buy
# v: my shopping list
= v: You need {v}.
= v: You need to buy {v}.
! Don't forget a bag.

code: p=codes v=code
+ {p} is {v}
+ {p} is {v}, keep it safe
+ they gave me {v} as {p}
? v: What is {p}?
? v: What's {p}?
? v: Which number is {p}?
? v: What was {p} again?
~ v: {p}
# v: {p}
= v: {P} is {v}.
= v: It's {v}.
! I'll keep it safe.

phone: p=kin v=phone
+ {ps} phone number is {v}
+ {ps} new number is {v}
+ you can reach {p} under {v}
? v: What is {ps} phone number?
? v: What's {ps} number?
? v: How can I reach {p}?
? v: Which number should I call for {p}?
~ v: {ps} phone number
# v: {ps} phone number
# v: {ps} number
= v: {Ps} number is {v}.
= v: It's {v}.

address: p=meperson v=street x=mark
+ {p} live{s} at {x} {v}
+ {ps} address is {x} {v}
+ {p} moved to {x} {v}
+ {p} {has} a place on {v}, number {x}
? v: What street {do} {p} live on?
? v: What street is {ps} place on?
? v: Which street {do} {p} live in?
? x: What's {ps} house number?
? x: What number on {v} {is} {p} at?
~ v: what street {p} live{s} on
~ x: {ps} house number
# v: {ps} street
= v: {P} live{s} on {v}.
= x: The number is {x}.
= x: {P} live{s} at number {x}.

room: p=rooms v=room
+ {p} is in room {v}
+ for {p} we go to room {v}
+ {p} takes place in room {v}
+ room {v} is for {p}
? v: Which room is {p} in?
? v: What room is {p} in?
? v: What's the room number of {p}?
? v: Where do I go for {p}?
? p: What is in room {v}?
~ v: which room {p} is in
# v: the room of {p}
= v: Room {v}.
= v: It's in room {v}.
= p: {P} is in room {v}.

floor: p=floors v=floor
+ {p} is on the {v} floor
+ you find {p} on the {v} floor
+ they moved {p} to the {v} floor
? v: On which floor is {p}?
? v: Which floor is {p} on?
? v: What floor is {p} on?
~ v: which floor {p} is on
= v: On the {v} floor.
= v: {P} is on the {v} floor.

trip: p=meperson v=country x=month y=duration
+ {p} {is} going to {v} in {x} for {y}
+ in {x} {p} will spend {y} in {v}
+ {p} booked a trip to {v} in {x}, {y} in all
+ {p} travel{s} to {v} in {x} and stay{s} for {y}
? v: Where {is} {p} going?
? v: Where {is} {p} travelling?
? v: Which country will {p} visit?
? v: Where is {ps} trip to?
? v: Where {is} {p} going in {x}?
? x: When {is} {p} going to {v}?
? x: In which month is {ps} trip?
? y: How long will {p} stay in {v}?
? y: How long is the trip to {v}?
~ v: where {p} {is} going
~ x: when {p} {is} going to {v}
~ y: how long {p} {is} staying in {v}
# v: {ps} destination
= v: {P} {is} going to {v}.
= v: To {v}.
= x: In {x}.
= y: For {y}.
! Have a wonderful trip!
! That will be exciting.

holiday: p=meperson v=city q=person
+ {p} went to {v} with {q}
+ {p} spent the holidays in {v} with {q}
+ {q} and {p} spent a weekend in {v}
+ last summer {p} {was} in {v} with {q}
? v: Where did {p} spend the holidays?
? v: Where did {p} go with {q}?
? v: Where {was} {p} with {q}?
? q: Who went to {v} with {p}?
? q: With whom did {p} go to {v}?
? q: Who {was} {p} in {v} with?
~ v: where {p} went
~ q: who was in {v} with {p}
= v: {P} went to {v}.
= q: {P} went to {v} with {q}.
= q: With {q}.
! Sounds lovely.

flight: v=code w=clock x=gate
+ my flight is {v} and leaves at {w} from gate {x}
+ my plane, {v}, leaves gate {x} at {w}
+ I'm on flight {v} at {w}, gate {x}
? v: What is my flight number?
? v: Which flight am I on?
? w: When does my flight leave?
? w: What time is my flight?
? w: When does my plane take off?
? x: What gate does my flight leave from?
? x: Which gate do I have to go to?
~ v: my flight number
~ w: when my flight leaves
~ x: which gate my flight leaves from
# v: my flight number
# x: my gate
= v: Your flight is {v}.
= w: Your flight leaves at {w}.
= x: Gate {x}.
! Have a good flight!

train: v=clock w=city x=mark
+ my train to {w} leaves at {v} from platform {x}
+ at {v} I take the train to {w}, platform {x}
+ I'm taking a train to {w} at {v}; it goes from platform {x}
? v: When does my train leave?
? v: What time is my train?
? w: Where is my train going?
? w: Where am I going by train?
? x: Which platform does my train leave from?
? x: What's my platform?
~ v: when my train leaves
~ w: where my train goes
~ x: which platform my train leaves from
= v: Your train leaves at {v}.
= v: At {v}.
= w: To {w}.
= x: From platform {x}.

commute: v=line x=duration0
+ I take {v} to work, which takes {x} minutes
+ I go to work by {v}; it takes me {x} minutes
+ the ride to work on {v} takes {x} minutes
? v: What do I take to work?
? v: How do I get to work?
? x: How long does it take me to get to work?
? x: How long is my commute?
~ v: how I get to work
~ x: how long my commute is
= v: You take {v}.
= x: It takes you {x} minutes.

hotel: v=hotel w=city
+ I'm staying at {v} in {w}
+ I booked a room at {v} in {w}
+ our hotel in {w} is {v}
? v: Where am I staying?
? v: What's my hotel called?
? v: Which hotel did I book?
? v: What is the name of the hotel?
? w: In which city is my hotel?
~ v: what my hotel is called
~ v: where I'm staying
# v: the name of my hotel
= v: You are staying at {v}.
= w: It's in {w}.

seat: v=seat w=event
+ my seat for the {w} is {v}
+ I have seat {v} at the {w}
? v: What's my seat number?
? v: Where do I sit at the {w}?
? v: Which seat do I have?
~ v: which seat I have
# v: my seat
= v: Your seat is {v}.
= v: You have seat {v}.

book: p=meperson v=title w=author
+ {p} {is} reading {v} by {w}
+ {p} just finished {v}, a book by {w}
+ {p} bought {v} by {w}
+ {w} wrote {v}, the book that {p} {is} reading
? v: What {is} {p} reading?
? v: Which book {is} {p} reading?
? v: What's the title of {ps} book?
? v: What book did I mention?
? w: Who wrote {v}?
? w: Who is the author of {ps} book?
? w: Who is {v} by?
~ v: what {p} {is} reading
~ w: who wrote {v}
# v: the title of the book
# w: the author of {v}
= v: {P} {is} reading {v}.
= w: {v} is by {w}.
= w: It's by {w}.
! I've heard good things about it.

film: p=meperson v=title x=day0
+ {p} saw {v} {x}
+ {x} {p} watched {v}
+ {p} went to the cinema {x} and saw {v}
? v: What film did {p} see?
? v: Which film did {p} watch?
? v: What did {p} see at the cinema?
? v: What did {p} watch {x}?
~ v: which film {p} saw
= v: {P} saw {v}.
= v: It was {v}.
! Was it good?

bought: v=gift w=shop x=price
+ I bought {v} at {w} for {x}
+ I found {v} at {w}; it cost {x}
+ I paid {x} for {v} at {w}
+ at {w} I got {v} for {x}
? v: What did I buy?
? v: What did I get at {w}?
? v: What did I buy at {w}?
? w: Where did I buy {the v}?
? w: Where did I get {the v}?
? x: How much did I pay for {the v}?
? x: What did {the v} cost?
? x: How much was {the v}?
~ v: what I bought
~ w: where I bought {the v}
~ x: how much {the v} cost
# x: the price of {the v}
= v: You bought {v}.
= w: You bought it at {w}.
= w: At {w}.
= x: {the v} cost {x}.
= x: You paid {x}.
! That sounds like a bargain.

sold: v=thing q=person x=price
+ I sold my {v} to {q} for {x}
+ {q} bought my {v} for {x}
? v: What did I sell?
? v: What did {q} buy from me?
? q: Who bought my {v}?
? q: Who did I sell my {v} to?
? x: How much did I get for my {v}?
? x: How much did {q} pay?
~ q: who bought my {v}
~ x: how much I got for my {v}
= v: You sold your {v}.
= q: {q} bought your {v}.
= x: You got {x}.
= x: For {x}.

rent: v=price w=weekday
+ my rent is {v} a month
+ I pay {v} in rent
+ the flat costs {v} a month
+ rent is {v} now
? v: How much is my rent?
? v: What do I pay for my flat?
? v: How much do I pay in rent?
? v: How expensive is my flat?
~ v: how much my rent is
# v: my rent
= v: Your rent is {v}.
= v: You pay {v}.

salary: v=price
+ I earn {v} a week
+ they pay me {v}
+ my weekly pay is {v}
? v: How much do I earn?
? v: What's my pay?
? v: What do they pay me?
~ v: how much I earn
= v: You earn {v}.

count: p=meperson x=things v=count
+ {p} {has} {v} {x}
+ {p} own{s} {v} {x}
+ {p} count{s} {v} {x} now
+ {p} {has} got {v} {x}
+ there are {v} {x} at {ps} place
? v: How many {x} {do} {p} have?
? v: How many {x} {has} {p} got?
? v: What number of {x} {do} {p} have?
? x: What {do} {p} have {v} of?
~ v: how many {x} {p} {has}
# v: the number of {ps} {x}
= v: {P} {has} {v} {x}.
= x: {P} {has} {v} {x}.
! That's quite a few.

siblings: v=smallcount w=smallcount
+ I have {v} sisters and {w} brothers
+ I grew up with {v} sisters and {w} brothers
? v: How many sisters do I have?
? w: How many brothers do I have?
~ v: how many sisters I have
~ w: how many brothers I have
= v: You have {v} sisters.
= w: You have {w} brothers.

family: p=meperson v=name w=name
+ {p} {has} two children, {v} and {w}
+ {ps} kids are called {v} and {w}
+ {ps} twins are {v} and {w}
? vw: What are {ps} children called?
? vw: What are {ps} kids' names?
? vw: Who are {ps} children?
~ vw: what {ps} children are called
# vw: the names of {ps} kids
= vw: {Ps} children are called {v} and {w}.
= vw: They are {v} and {w}.
! Lovely names.

since: p=meperson v=year x=firm
+ {p} {has} been at {x} since {v}
+ {p} started at {x} in {v}
+ {p} joined {x} in {v}
? v: Since when {has} {p} been at {x}?
? v: When did {p} start at {x}?
? v: In which year did {p} join {x}?
? x: Where did {p} start in {v}?
~ v: when {p} joined {x}
= v: In {v}.
= v: {P} joined in {v}.
= x: {P} started at {x}.

howlong: p=meperson x=hobby v=duration
+ {p} {has} been doing {x} for {v}
+ {p} started {x} {v} ago
? v: How long {has} {p} been doing {x}?
? v: For how long {has} {p} done {x}?
? x: What {has} {p} been doing for {v}?
~ v: how long {p} {has} been doing {x}
= v: For {v}.
= v: {P} {has} been doing {x} for {v}.
= x: {P} {has} been doing {x} for {v}.

married: p=meperson v=duration q=name
+ {p} {has} been married to {q} for {v}
+ {q} and {p} have been together for {v}
+ {p} married {q} {v} ago
? q: Who {is} {p} married to?
? q: Who did {p} marry?
? q: What is the name of {ps} spouse?
? v: How long {has} {p} been married?
? v: How long {has} {p} been with {q}?
~ q: who {p} {is} married to
~ v: how long {p} {has} been with {q}
= q: {P} {is} married to {q}.
= v: For {v}.
! Congratulations!

ill: p=meperson v=ailment w=cause
+ {p} {has} {v} from {w}
+ {p} got {v} from {w}
? v: What's wrong with {p}?
? v: What did {p} get from {w}?
? w: How did {p} get {v}?
? w: How did it happen to {p}?
? p: Who has {v}?
~ v: what is wrong with {p}
~ w: how {p} got {v}
= v: {P} {has} {v}.
= w: From {w}.
= w: {P} got it from {w}.
= p: {P} {has} {v}.
! Ouch! Get well soon.
! I'm sorry to hear that.

ailment: p=meperson v=ailment
+ {p} {has} {v}
+ {p} {is} at home with {v}
+ {p} {is} suffering from {v}
+ {p} can't come because of {v}
? v: What's the matter with {p}?
? v: What {do} {p} suffer from?
? v: Why {is} {p} at home?
? v: What {do} {p} have?
? p: Who has {v}?
~ v: what is wrong with {p}
= v: {P} {has} {v}.
= p: {P} {has} {v}.
! Get well soon!
! I'm sorry to hear that.

medicine: v=count w=clock
+ I take {v} tablets at {w}
+ the doctor told me to take {v} pills at {w}
? v: How many tablets do I take?
? v: How many pills do I have to take?
? w: When do I take my tablets?
? w: What time do I take my pills?
~ v: how many tablets I take
~ w: when I take my pills
= v: You take {v}.
= w: You take them at {w}.

expert: p=expert v=doctor
+ {p} is called {v}
+ {ps} name is {v}
+ {p}, {v}, [was very friendly/called/is on holiday]
+ {v} is {p}
+ I have to see {v}, {p}
? v: What is {p} called?
? v: What's {ps} name?
? v: Who is {p}?
? v: What was the name of {p}?
? p: Who is {v}?
? p: Who was {v} again?
~ v: what {p} is called
~ v: who {p} is
~ p: who {v} is
# v: {ps} name
= v: {Ps} name is {v}.
= v: That's {v}.
= p: {v} is {p}.

call: q=person v=topic w=day
+ I have to call {q} about {v} on {w}
+ I must talk to {q} about {v} on {w}
+ remind me to call {q} on {w} about {v}
? q: Who do I have to call?
? q: Who did I want to call on {w}?
? v: What do I have to talk to {q} about?
? v: Why do I have to call {q}?
? v: What did I want to discuss with {q}?
? w: When do I have to call {q}?
~ q: who I have to call
~ v: why I have to call {q}
~ w: when I have to call {q}
= q: You have to call {q}.
= v: About {v}.
= v: You have to talk about {v}.
= w: On {w}.
! I'll remind you.

quarrel: q=person v=topic
+ I had a fight with {q} about {v}
+ {q} and I argued about {v}
+ {q} is angry with me because of {v}
? q: Who did I argue with?
? q: Who is angry with me?
? v: What did {q} and I argue about?
? v: Why is {q} angry?
~ q: who I argued with
~ v: what we argued about
= q: You argued with {q}.
= v: You argued about {v}.
= v: It was about {v}.
! I hope you can make up soon.

favour: q=person v=activity
+ {q} helped me to {v}
+ I asked {q} to {v} with me
? q: Who helped me to {v}?
? q: Who did I {v} with?
? v: What did {q} help me with?
~ q: who I asked to {v}
= q: That was {q}.
= v: To {v}.

team: p=meperson v=team
+ {p} support{s} {v}
+ {p} play{s} for {v}
+ {ps} team is {v}
+ {p} {is} a big fan of {v}
? v: Which team {do} {p} support?
? v: What's {ps} team?
? v: What team did I mention?
? p: Who supports {v}?
~ v: which team {p} support{s}
# v: {ps} team
= v: {Ps} team is {v}.
= p: That's {p}.

car: p=meperson v=vehicle x=colour
+ {p} drive{s} {v}
+ {p} bought {v}
+ {p} {has} {v}, painted {x}
+ {ps} car is {v} in {x}
? v: What {do} {p} drive?
? v: What car {do} {p} have?
? v: What kind of vehicle {has} {p} got?
? p: Who drives {v}?
~ v: what {p} drive{s}
# v: {ps} car
= v: {P} drive{s} {v}.
= p: {P} drive{s} {v}.

named: p=named v=word
+ {p} is called {v}
+ we named {p} {v}
+ the name of {p} is {v}
+ {p} is named {v}
? v: What is {p} called?
? v: What's the name of {p}?
? v: How is {p} called?
? v: What did we name {p}?
? p: What is {v}?
~ v: what {p} is called
~ v: what we named {p}
# v: the name of {p}
= v: {P} is called {v}.
= v: It's called {v}.
= p: {v} is {p}.

weekly: p=weekly v=weekday w=clock
+ {p} is every {v} at {w}
+ every {v} at {w} I have {p}
+ I go to {p} on {v}s at {w}
? v: On which day is {p}?
? v: When do I have {p}?
? v: What day of the week is {p}?
? w: What time is {p}?
? w: At what time is {p}?
? p: What do I do on {v}s?
~ v: which day {p} is
~ w: what time {p} is
= v: On {v}s.
= v: {P} is on {v}.
= w: At {w}.
= p: You have {p}.

getup: p=meperson v=clock
+ {p} get{s} up at {v}
+ {p} {has} to get up at {v} [every day/tomorrow/during the week]
+ {ps} alarm goes off at {v}
? v: When {do} {p} get up?
? v: What time {do} {p} get up?
? v: When does {ps} alarm go off?
~ v: when {p} get{s} up
= v: {P} get{s} up at {v}.
= v: At {v}.
! That's a good time to start the day.

shift: p=meperson v=clock w=clock
+ {p} work{s} from {v} until {w}
+ {ps} shift starts at {v} and ends at {w}
? v: When {do} {p} start work?
? v: When does {ps} shift start?
? w: When {do} {p} finish work?
? w: When does {ps} shift end?
? w: Until when {do} {p} work?
~ v: when {p} start{s} work
~ w: when {p} finish{es} work
= v: At {v}.
= v: {P} start{s} at {v}.
= w: At {w}.
= w: {P} finish{es} at {w}.

prefer: p=meperson v=drinkorfood w=drinkorfood
+ {p} prefer{s} {v} to {w}
+ {p} like{s} {v} more than {w}
+ {p} would rather have {v} than {w}
? v: Which {do} {p} prefer, {v} or {w}?
? v: Which {do} {p} prefer, {w} or {v}?
? v: What would {p} rather have, {w} or {v}?
~ v: whether {p} prefer{s} {w} or {v}
= v: {P} prefer{s} {v}.

recipe: v=count w=grocery x=food
+ the recipe for {x} needs {v} spoons of {w}
+ for my {x} I need {v} cups of {w}
? v: How much {w} do I need for the {x}?
? w: What do I need for the {x}?
? x: What am I cooking?
? x: What is the {w} for?
~ v: how much {w} the {x} needs
= v: You need {v}.
= w: You need {w}.
= x: {x}.

distance: p=places v=distance
+ it's {v} to {p}
+ {p} is {v} away
+ from my home to {p} it's {v}
? v: How far is it to {p}?
? v: How far away is {p}?
? v: What's the distance to {p}?
~ v: how far it is to {p}
= v: It's {v}.
= v: {P} is {v} away.

height: p=meperson v=height
+ {p} {is} {v} centimetres tall
+ {p} {is} {v} cm tall
? v: How tall {is} {p}?
? v: What's {ps} height?
? p: Who is {v} cm tall?
~ v: how tall {p} {is}
# v: {ps} height
= v: {P} {is} {v} cm tall.
= p: {P} {is} {v} cm tall.

mark: p=meperson v=mark x=study
+ {p} got {v} points in {x}
+ {p} scored {v} in the {x} exam
? v: How many points did {p} get?
? v: What did {p} score in {x}?
? x: Which exam did {p} take?
~ v: how many points {p} got in {x}
= v: {P} got {v} points.
= x: {x}.

wedding: p=person q=name v=date
+ {p} is marrying {q} on {v}
+ {p} and {q} are getting married on {v}
+ {ps} wedding with {q} is on {v}
? q: Who is {p} marrying?
? q: Who is {p} going to marry?
? v: When is {ps} wedding?
? v: When is {p} getting married?
~ q: who {p} is marrying
~ v: when the wedding is
# v: the date of the wedding
= q: {P} is marrying {q}.
= v: On {v}.
= v: The wedding is on {v}.
! How exciting!

baby: p=person v=name x=month
+ {p} had a baby in {x} called {v}
+ {ps} baby {v} was born in {x}
+ {p} is expecting a baby in {x}; the name will be {v}
? v: What is {ps} baby called?
? v: What's the name of {ps} baby?
? x: When was {ps} baby born?
? x: In which month is the baby due?
~ v: what {ps} baby is called
= v: The baby is called {v}.
= x: In {x}.
! How wonderful!

thirdlikes: p=friend q=friend v=hobby w=hobby
+ {p} likes {v}, and {q} prefers {w}
+ while {p} is into {v}, {q} does {w}
+ {p} does {v} but {q} loves {w}
? v: What does {p} do for fun?
? v: What is {p} into?
? w: What does {q} do for fun?
? w: What does {q} like?
? p: Who is into {v}?
? p: Which of my friends likes {v}?
? q: Who is into {w}?
? q: Which of my friends likes {w}?
~ v: what {p} likes
~ w: what {q} likes
= v: {p} is into {v}.
= w: {q} is into {w}.
= p: That's {p}.
= q: That's {q}.

twojobs: p=friend q=friend v=job w=job
+ {p} is {a v} and {q} is {a w}
+ {p} works as {a v}, {q} as {a w}
+ {q} is {a w}, but {p} became {a v}
? v: What does {p} do for a living?
? v: What's {p}'s job?
? w: What does {q} do for a living?
? w: What's {q}'s job?
? p: Who is {a v}?
? p: Which of the two is {a v}?
? q: Who is {a w}?
~ v: what {p} does
~ w: what {q} does
= v: {p} is {a v}.
= w: {q} is {a w}.
= p: {p} is {a v}.
= q: {q} is {a w}.

bring: q=person v=food w=event
+ {q} is bringing {v} to the {w}
+ for the {w}, {q} makes {v}
? q: Who is bringing {v}?
? q: Who makes {v}?
? v: What is {q} bringing?
? v: What does {q} make for the {w}?
~ q: who brings {v}
~ v: what {q} brings
= q: {q} brings {v}.
= v: {q} brings {v}.

collects: p=meperson v=things
+ {p} collect{s} {v}
+ {ps} collection of {v} is growing
? v: What {do} {p} collect?
? p: Who collects {v}?
~ v: what {p} collect{s}
= v: {P} collect{s} {v}.
= p: {P} collect{s} {v}.

broke: v=thing q=person
+ {q} broke my {v}
+ my {v} is broken because of {q}
+ {q} spilled coffee on my {v}
? v: What did {q} break?
? v: What is broken?
? q: Who broke my {v}?
? q: Who ruined my {v}?
~ q: who broke my {v}
= v: {q} broke your {v}.
= q: {q} broke it.
= q: {q} broke your {v}.
! Oh no!

message: q=person v=wants
+ {q} wrote to me and wants {v}
+ {q} asked me for {v}
+ {q} wants {v} from me
? v: What does {q} want?
? v: What did {q} ask me for?
? q: Who wants {v}?
? q: Who asked me for {v}?
~ v: what {q} wants
~ q: who wants {v}
= v: {q} wants {v}.
= q: {q} wants {v}.

favouriteplace: v=meet w=activity
+ I like to {w} at {v}
+ my favourite spot is {v}, where I can {w}
? v: Where do I like to {w}?
? v: What's my favourite spot?
? w: What do I like to do at {v}?
~ v: where I like to {w}
= v: At {v}.
= w: You like to {w}.

because: v=deed w=cause0
+ I {past v} because {w}
+ {w}, so I {past v}
+ I {past v}; the reason is that {w}
+ since {w}, I {past v}
? w: Why did I {v}?
? w: What made me {v}?
? w: For what reason did I {v}?
? w: How come I {past v}?
? v: What did I do because {w}?
~ w: why I {past v}
~ v: what I did because {w}
# w: the reason why I {past v}
= w: Because {w}.
= w: You {past v} because {w}.
= v: You {past v}.
! That makes sense.
! I understand.

did: p=meperson v=deed x=day0
+ {p} {past v} {x}
+ {x} {p} {past v}
+ {p} finally {past v} {x}
? v: What did {p} do {x}?
? v: What's new with {p}?
? x: When did {p} {v}?
? p: Who {past v}?
~ v: what {p} did {x}
~ x: when {p} {past v}
~ p: who {past v}
= v: {P} {past v}.
= x: {P} {past v} {x}.
= p: {P} {past v}.
! That took some courage.

attribute: p=meperson x=attribute v=attributevalue
+ {ps} {x} is {v}
+ {v} is {ps} {x}
+ {p} {has} the {x} {v}
? v: What is {ps} {x}?
? v: What's {ps} {x}?
? v: Which {x} {do} {p} have?
? p: Whose {x} is {v}?
~ v: what {ps} {x} is
# v: {ps} {x}
= v: {Ps} {x} is {v}.
= p: {Ps} {x} is {v}.

looks: p=meperson v=hair w=eyes
+ {p} {has} {v} hair and {w} eyes
+ {ps} hair is {v} and {his} eyes are {w}
? v: What colour is {ps} hair?
? v: What's {ps} hair like?
? w: What colour are {ps} eyes?
~ v: what colour {ps} hair is
~ w: what colour {ps} eyes are
= v: {Ps} hair is {v}.
= w: {Ps} eyes are {w}.

drink: p=meperson v=drinkstyle
+ {p} take{s} {his} coffee {v}
+ {p} drink{s} {his} tea {v}
+ {p} like{s} {his} coffee {v}
? v: How {do} {p} take {his} coffee?
? v: How {do} {p} drink it?
? v: How {do} {p} like {his} coffee?
~ v: how {p} take{s} {his} coffee
= v: {P} take{s} it {v}.
= v: {v}.

sits: p=person v=person
+ at dinner {p} sits next to {v}
+ {p} shares an office with {v}
+ {p} lives next door to {v}
? v: Who does {p} sit next to?
? v: Who is {p}'s neighbour?
? p: Who is next to {v}?
= v: {P} is next to {v}.
= p: {P} is next to {v}.

closing: p=places v=clock
+ {p} closes at {v}
+ {p} is open until {v}
? v: When does {p} close?
? v: Until when is {p} open?
? v: How long is {p} open?
~ v: when {p} closes
= v: {P} closes at {v}.
= v: At {v}.

dated: v=date x=dues
+ {x} is due on {v}
+ the deadline for {x} is {v}
+ I have to hand in {x} by {v}
+ {x} ends on {v}
? v: When is {x} due?
? v: What's the deadline for {x}?
? v: By when do I have to finish {x}?
? x: What is due on {v}?
~ v: when {x} is due
# v: the deadline for {x}
= v: {x} is due on {v}.
= v: On {v}.
= x: {x} is due on {v}.

secret: v=word
+ my username is {v}
+ my login is {v}
+ I signed up as {v}
? v: What's my username?
? v: What's my login?
? v: What name did I sign up with?
~ v: what my username is
# v: my username
= v: Your username is {v}.
= v: It's {v}.
"""
SUBJECTS = {
    "pets": {
        "my dog": "he",
        "my cat": "she",
        "my rabbit": "she",
        "my horse": "he",
        "my hamster": "he",
        "my parrot": "she",
        "my pony": "he",
        "my kitten": "she",
        "my puppy": "he",
        "our cat": "he",
        "our dog": "she",
        "my snake": "it",
    },
    "codes": "my locker code|the wifi password|the door code|my PIN|my booking number|my ticket number|the alarm code|"
    "my licence plate|the gate code|my membership number|the password|my order number|my customer number|"
    "the code of the safe|my student number|the combination of my bike lock|my badge number|my raffle ticket",
    "rooms": "the meeting|the lecture|my exam|the workshop|the interview|my class|the doctor|the seminar|my office|"
    "the library|the interpreter|the course|the training|the choir|the lab",
    "floors": "my flat|the office|the dentist|the library|the gym|our room|the cafeteria|the cinema|the laundry room|"
    "my aunt's flat|the restaurant|the meeting room|the clinic|the shoe department",
    "named": "my boat|my bike|our band|my car|the cafe|our quiz team|my book|my plant|my robot|our new street|"
              "the ferry|"
    "my blog|my company|the school|the village|the restaurant|the app|the hotel|my guitar|our house|the lake|"
    "my tortoise|the river|the ship|our club|the farm|my project|the museum|the festival|the lion at the zoo",
    "weekly": "yoga|choir|football practice|my piano lesson|the book club|karate|my language class|the pub quiz|band "
    "practice|therapy|swimming|chess club|dance class|the farmers' market|volunteering|spin class",
    "places": "the supermarket|the station|the beach|the hospital|the library|the swimming pool|the airport|the museum|"
    "the bakery|the school|the pharmacy|the gym|the post office|the lake|the next village|the office|the zoo",
    "dues": "my essay|the report|the tax return|the application|my thesis|the rent|the invoice|my visa|the project|"
    "the presentation|the contract|my insurance|the manuscript|my library book|the registration|the homework",
    "wants": "a lift to the airport|my recipe for pancakes|help with the move|the money back|a photo of the house|"
    "advice about the job|my old bike|a phone call|the keys|help with maths|a ride home|the address|an answer|"
    "a new lamp|my notes|a second chance|tickets for the match|a copy of the contract|a favour|the ladder",
    "grocery": "|".join(GROCERIES),
    "meal": "breakfast|lunch|dinner|supper|brunch",
    "smallcount": "two|three|four|five|six|seven",
    "duration0": "|".join(str(i) for i in range(5, 95)),
    "day0": "yesterday|last night|last week|on Sunday|on Friday|at the weekend|on Monday|on my day off",
}
SUBJECTS |= {
    "cause0": "the pay was bad|petrol got too expensive|it kept me awake|my doctor said so|I was bored|"
              "I needed the money|"
    "my back hurts|the neighbours complained|it was raining|I felt lonely|the old one was broken|I lost a bet|"
    "my knee hurts|the flat is too small|I couldn't sleep|I wanted to be healthier|my friends did it too|"
    "the commute was too long|I had a bad dream|it was on sale|I was late|I have too much stress|the wifi is slow|"
    "my cat is allergic to it|I can't afford it|I was homesick|the boss was rude|I wanted more free time|"
    "I missed the bus|the teacher was so nice|I needed a change|my son asked me to|the heating broke down",
    "drinkstyle": "black|with two sugars|with milk|with oat milk|with honey|without sugar|with lemon|with cream|"
              "very strong|"
    "iced|with soy milk|with three sugars|with cinnamon|lukewarm|with a splash of milk|with almond milk",
    "hair": "blond|dark|red|grey|brown|black|curly|short|long|white|green|pink|straight|ginger|auburn|purple|blue",
    "eyes": "blue eyes|green|brown|grey|hazel|amber|dark|light blue|dark brown|grey-green",
}
SUBJECTS["eyes"] = SUBJECTS["eyes"].replace("blue eyes", "blue")
PAST = dict(
    pair.split("/")
    for pair in """
    quit my job/quit my job|sell the car/sold the car|stop drinking coffee/stopped drinking coffee|
    dye my hair/dyed my hair|
    cancel the trip/cancelled the trip|buy a piano/bought a piano|leave the party/left the party|
    join a gym/joined a gym|
    change schools/changed schools|become a vegetarian/became a vegetarian|learn to swim/learned to swim|
    adopt a dog/adopted a dog|paint the kitchen/painted the kitchen|shave my beard/shaved my beard|
    delete the app/deleted the app|move the meeting/moved the meeting|write to the mayor/wrote to the mayor|
    call the police/called the police|take the stairs/took the stairs|sleep on the sofa/slept on the sofa|
    bake a cake/baked a cake|repair the roof/repaired the roof|run a marathon/ran a marathon|
    miss the train/missed the train|
    break a window/broke a window|find a wallet/found a wallet|win a prize/won a prize|fail the exam/failed the exam|
    pass the driving test/passed the driving test|plant a tree/planted a tree|lose the keys/lost the keys|
    see a ghost film/saw a ghost film|start a diary/started a diary|give up smoking/gave up smoking|
    turn down the offer/turned down the offer|sign the contract/signed the contract|
    swim across the lake/swam across the lake|
    rent a boat/rented a boat|go to bed early/went to bed early|throw out the old sofa/threw out the old sofa|
    return the shoes/returned the shoes|skip breakfast/skipped breakfast|meet a famous singer/met a famous singer|
    hurt a finger/hurt a finger|catch a big fish/caught a big fish|build a shed/built a shed|
    sing in a choir/sang in a choir|
    teach a class/taught a class|burn the rice/burned the rice|drop the phone/dropped the phone|
    cut the hedge/cut the hedge
    """.replace("\n", " ")
    .replace("| ", "|")
    .strip()
    .split("|")
)
PAST = {" ".join(base.split()): " ".join(past.split()) for base, past in PAST.items()}
SUBJECTS["deed"] = "|".join(PAST)
ATTRIBUTES = {
    "shoe size": [str(size) for size in range(34, 49)],
    "blood type": _words("A, B, AB, O, A positive, B negative, O negative"),
    "star sign": _words(
        "Aries, Taurus, Gemini, Cancer, Leo, Virgo, Libra, Scorpio, Sagittarius, Capricorn, Aquarius, Pisces"
    ),
    "middle name": WOMEN + MEN,
    "lucky number": [str(i) for i in range(2, 100)],
    "nationality": _words(
        "Dutch, Polish, Greek, Turkish, Irish, Swedish, Danish, Finnish, Peruvian, Kenyan, Indian, Korean, "
        "Canadian, Swiss"
    ),
    "dream job": JOBS,
    "desk number": [str(i) for i in range(2, 300)],
    "weak spot": FOODS,
    "lucky charm": lists.GIFTS,
    "school": [f"{name} School" for name in lists.SURNAMES],
    "hero": [f"{a} {b}" for a in WOMEN[::9] for b in lists.SURNAMES[::3]],
    "native language": [skill for skill in lists.SKILLS if skill[0].isupper()],
    "best subject": lists.STUDIES,
    "karaoke song": lists.TITLES,
    "guilty pleasure": FOODS,
    "home country": lists.COUNTRIES,
    "first name": WOMEN + MEN,
    "Sunday routine": HOBBIES,
    "locker number": [str(i) for i in range(2, 900)],
    "new role": JOBS,
    "hotel": lists.INNS,
}
SUBJECTS = {name: dict.fromkeys(x.split("|"), "it") if isinstance(x, str) else x for name, x in SUBJECTS.items()}
GENDER |= {one: pronoun for group in SUBJECTS.values() for one, pronoun in group.items()}
FORMS = {
    "he": ("him", "his"),
    "she": ("her", "her"),
    "they": ("them", "their"),
    "it": ("it", "its"),
    "I": ("me", "my"),
    "you": ("you", "your"),
}
ONCE = {"gift", "lent", "giveaway"}  # frames without a subject that may be there more than once in a chat
GROUPS = [
    {"live", "move"},
    {"appointment", "eventday", "eventtime", "eventplace"},
    {"ailment", "ill"},
    {"job", "twojobs"},
    {"hobby", "howlong", "thirdlikes"},
    {"giveaway", "bought"},
    {"employer", "since"},
    {"married", "wedding"},
    {"rent", "salary", "owe"},
    {"meet", "together"},
    {"likefood", "prefer"},
    {"secret", "myname"},
]  # mixed up easily

GREETINGS = _words(
    "Hi!, Hello!, Hey!, Hi there!, Good morning!, Good evening!, Hello there., Hey there!, Hi again., Hey you!"
)
OPENERS = (
    """
By the way, {a}|Oh, and {a}|So {a}|Well, {a}|You know, {a}|Guess what: {a}|Guess what, {a}|Just so you know, {a}
Did I tell you that {a}?|Did I mention that {a}?|I forgot to say that {a}|I should mention that {a}
I wanted to tell you that {a}
For your information, {a}|Remember that {a}|Please remember: {a}|Keep in mind that {a}|Believe it or not, {a}
As it happens, {a}
Fun fact: {a}|Also, {a}|Did you know that {a}?|It turns out that {a}|Good news: {a}|Today I can tell you that {a}
Anyway, {a}
Oh, I almost forgot: {a}|One more thing: {a}|Hey, {a}|I think you should know that {a}|To be honest, {a}
Before I forget, {a}
Let me tell you something: {a}|Note that {a}|Something else: {a}|What I wanted to say is that {a}|Listen, {a}
Speaking of which, {a}
""".strip()
    .replace("\n", "|")
    .split("|")
)
ASIDES = (
    """
, you know|, believe it or not|, by the way|, at last|, to be honest|, I think|, which is nice|, as you can imagine
, of course
, in case I haven't said so|, just so you know|, if you want to know|, strange as it sounds|, and that's that|, luckily
""".strip()
    .replace("\n", "|")
    .split("|")
)
CHATTER = (
    """
What a day!|I'm a bit tired today.|It's been a long week.|I'm so excited!|Life is full of surprises.|I'm in a good mood.
Let me tell you a bit about myself.|I hope you're well.|I have news.|Nothing special otherwise.
It's quiet here right now.
I'm having a coffee.|I've been thinking a lot lately.|There's a lot going on.|I'm on my way home.|I can't complain.
Time flies.
That's how it is.|It makes me happy.|I still can't believe it.|It wasn't easy.|Isn't that funny?|That was a surprise.
Crazy, right?
I'm looking forward to it.|We'll see how it goes.|More on that later.|I love telling people about it.
It took me a while.
You'd like it.|I'm glad about it.|I had to laugh.|Everybody asks me about that.|So it goes.
I hope that's all right.
""".strip()
    .replace("\n", "|")
    .split("|")
)
JOINS = [
    "{a} and {b}",
    "{a} and {b}",
    "{a}, and {b}",
    "{a}. {B}",
    "{a}. {B}",
    "{a}. {B}",
    "{a}. Also, {b}",
    "{a}. Oh, and {b}",
    "{a}; {b}",
    "{a}. And {b}",
    "{a}, but {b}",
    "{a}, while {b}",
    "{a}. Besides, {b}",
    "{a}. By the way, {b}",
    "{a}. Apart from that, {b}",
    "{a} - and {b}",
    "{a}, and on top of that {b}",
    "{a}. {B}",
    "{a}. Then, {b}",
]
CORRECTIONS = (
    """
Actually, {a}|Sorry, I got that wrong: {a}|Correction: {a}|I made a mistake earlier, {a}|Change of plans: {a}
Wait, no: {a}
Things have changed: {a}|Update: {a}|Scratch what I said before, {a}|I have to correct myself: {a}
Oh, I mixed something up. {A}
Forget what I told you, {a}|It's different now: {a}|Not {old} any more: {a}|It's not {old}, sorry; {a}
I said {old}, but {a}
No longer {old}. Now {a}|Hmm, {old} was wrong, {a}
""".strip()
    .replace("\n", "|")
    .split("|")
)
CLAUSES = (
    """
Do you remember {a}?|Can you tell me {a}?|Do you know {a}?|Do you still know {a}?|I forgot {a}.|Remind me {a}.
Tell me {a}.
Remind me {a}, please.|Could you remind me {a}?|I can't remember {a}.|Did I tell you {a}?|I'd like to know {a}.
Any idea {a}?
Please tell me {a} again.|Can you recall {a}?|Have I mentioned {a}?|Let me test you: {a}?|Do you happen to know {a}?
I wonder {a}.
Could you say {a}?|Help me, I don't remember {a}.|You surely remember {a}?|Could you tell me once more {a}?
Say {a}, please.
""".strip()
    .replace("\n", "|")
    .split("|")
)
NOUNS = (
    """
What is {a}?|What's {a}?|What was {a} again?|Tell me {a}.|Remind me of {a}.|{A}?|Do you remember {a}?|I need {a}.
Give me {a}, please.
What did I say {a} was?|Can you give me {a}?|I forgot {a}.|And {a}?|{A}, please.|How about {a}?|Do you have {a}?
What was {a}?
What was {a}, do you remember?|I'm looking for {a}.|Do you know {a}?|Could you repeat {a}?|Name {a}.|What about {a}?
What's {a} again?
""".strip()
    .replace("\n", "|")
    .split("|")
)
LEADS = (
    """
Hey, |By the way, |Sorry, |Quick question: |Okay, |Now, |Hmm, |Tell me, |So, |Wait, |Just checking: |One question: 
Oh, |Well, 
Let me see if you listened: |I'm curious: |Remind me: |Please tell me: |And |Now tell me: |Out of curiosity, 
Let me ask you this: 
""".strip("\n")
    .replace("\n", "|")
    .split("|")
)
TAILS = [
    " again?",
    ", do you remember?",
    ", if you remember?",
    "? I forgot.",
    "? I can't remember.",
    ", please?",
    "? Do you know?",
    " exactly?",
    ", again?",
    "? Help me out.",
]
ABOUT = [
    "What did I tell you about {p}?",
    "What do you know about {p}?",
    "What did I say about {p}?",
    "Tell me about {p}.",
    "What have I told you about {p}?",
    "Did I mention {p}?",
    "What was it about {p}?",
]
REPLIES = [""] * 28 + ["Of course! ", "Sure. ", "Yes. ", "Let me think. "]
ACKS = (
    """
Got it.|Nice!|Good to know.|Okay.|Thanks for telling me.|I see.|Great!|How nice!|Interesting.|That's good to hear.
Noted.|Wonderful.
I'll remember that.|All right.|Oh, really?|Thanks, I'll keep that in mind.|That sounds good.|Lovely.|Understood.
How interesting!|Cool!
Tell me more.|Sounds great.|Glad to hear it.|Thank you for sharing.|Okay, noted.|That's nice.|Sure, I'll remember.
Good for you!|Ah, I see.
""".strip()
    .replace("\n", "|")
    .split("|")
)
SORRY = ["I'm sorry to hear that.", "Oh no!", "That's a pity.", "Sorry about that.", "Oh dear.", "Take care."]
CHANGED = [
    "Okay, I've changed that.",
    "Got it, thanks for the correction.",
    "All right, noted.",
    "No problem, I'll remember.",
    "Thanks for the update.",
    "Understood.",
    "Ah, okay.",
    "Good to know, thanks.",
    "I see, that's changed then.",
    "Noted.",
]

# ---------------------------------------------------------------------------------------------------------- engine


class Frame:
    """A kind of fact, parsed from FRAMES."""

    def __init__(self, text: str):
        head, *lines = text.strip().split("\n")
        self.name, _, slots = head.partition(": ")
        self.slots = dict(slot.split("=") for slot in slots.split())
        self.tells = [line[2:].strip() for line in lines if line[0] == "+"]
        self.acks = [line[2:].strip() for line in lines if line[0] == "!"]
        self.direct, self.clauses, self.nouns, self.answers = ({} for _ in range(4))
        for mark, table in (("?", self.direct), ("~", self.clauses), ("#", self.nouns), ("=", self.answers)):
            for line in lines:
                if line[0] == mark:
                    slot, _, template = line[2:].partition(": ")
                    table.setdefault(slot, []).append(template.strip())
        self.subject = "p" in self.slots


FRAME = {frame.name: frame for frame in map(Frame, FRAMES.strip().split("\n\n"))}
GROUP = {name: group for group in GROUPS for name in group}
WEIGHTS = {
    "myname": 5,
    "kinname": 4,
    "live": 3,
    "job": 3,
    "pet": 4,
    "gift": 4,
    "spot": 3,
    "favourite": 3,
    "appointment": 3,
    "thingcolour": 3,
    "petcolour": 2,
    "move": 3,
    "code": 2,
    "age": 2,
    "allergy": 2,
    "meet": 2,
    "trip": 2,
    "bought": 2,
}
VOICE = {
    "I": "you",
    "me": "you",
    "my": "your",
    "mine": "yours",
    "our": "your",
    "we": "you",
    "us": "you",
    "am": "are",
    "I'm": "you're",
    "myself": "yourself",
    "My": "Your",
    "Our": "Your",
}
OBJECT_AFTER = set("with for to about suits scares of makes gave congratulate reach at from than call hired".split())
HELD = {"name", "friend", "city", "job", "food", "petname", "surname", "fullname"}


def to_bot(text: str) -> str:
    """The user's words as the assistant repeats them: "my aunt" is "your aunt"."""
    return re.sub(r"(?<![\d] )\b[A-Za-z']+", lambda word: VOICE.get(word[0], word[0]), text)


class Fact:
    """A frame with a value in each slot."""

    def __init__(self, frame: Frame, values: dict[str, str]):
        self.frame, self.values = frame, values
        self.superseded = False

    def render(self, template: str, rng: random.Random, bot: bool = False, pronoun: str = "") -> str:
        """A template with this fact's values. bot: the assistant says it. pronoun: he or she, "
        "in place of the subject."""
        template = re.sub(r"\[([^\[\]]*)\]", lambda found: rng.choice(found[1].split("/")), template)
        out, end = "", 0
        for found in re.finditer(r"\{([^{}]+)\}", template):
            out += template[end : found.start()]
            if pronoun and found[1] in ("p", "P", "ps", "Ps"):
                out += FORMS[pronoun][1] if "s" in found[1] else pronoun
            else:
                out += self._field(found[1], out, bot)
            end = found.end()
        out += template[end:]
        out = re.sub(r"\b(on|every|On) (tomorrow|next )", r"\2", out)
        owned = self.values.get({"spot": "p", "lent": "v", "lost": "v"}.get(self.frame.name, ""), "")
        if owned.endswith("s") and owned != "compass":  # the keys are there
            for one, many in (("is", "are"), ("It's", "They're"), ("it", "them"), ("goes", "go")):
                out = re.sub(rf"\b{one}\b", many, out)
            out = out.replace("Who are", "Who is")
        out = out.replace("for for ", "for ").replace("at in ", "in ").replace("at by ", "by ")
        return re.sub(r"  +", " ", out).strip()

    def _field(self, field: str, before: str, bot: bool) -> str:
        p = self.values.get("p", "")
        me = p == "I"
        person = "you" if bot and me else "I" if me else "he"
        say = to_bot if bot else str
        if field in ("p", "P", "him0"):
            if me:
                last = before.split()[-1].lower() if before.split() else ""
                object = field == "him0" or last in OBJECT_AFTER
                text = "you" if bot else "me" if object else "I"
            else:
                text = say(p)
            return text[0].upper() + text[1:] if field == "P" else text
        if field in ("ps", "Ps"):
            text = ("your" if bot else "my") if me else say(p) + "'s"
            return text[0].upper() + text[1:] if field == "Ps" else text
        agree = {"s": ("", "s"), "es": ("", "es"), "ies": ("y", "ies"), "has": ("have", "has"), "do": ("do", "does")}
        if field in agree:
            return agree[field][person == "he"]
        if field in ("is", "was"):
            forms = {"is": {"I": "am", "you": "are", "he": "is"}, "was": {"I": "was", "you": "were", "he": "was"}}
            return forms[field][person]
        if field in ("he", "him", "his"):
            pronoun = person if me else GENDER.get(p, "they")
            return pronoun if field == "he" else FORMS[pronoun][field == "his"]
        kind, _, slot = field.rpartition(" ")
        if slot[-1] == "s" and slot[:-1] in self.values and not kind:
            return say(self.values[slot[:-1]]) + "'s"
        value = say(self.values[slot])
        if kind == "past":
            return say(PAST[self.values[slot]])
        if kind == "a":
            return with_article(value)
        if kind in ("the", "the0"):
            return ("the " if kind == "the" else "") + re.sub(r"^(an?|the) ", "", value)
        return value


def sentence(text: str) -> str:
    """A clause as a sentence."""
    text = text.strip()
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


class Chat:
    """Makes one chat: facts, questions, and small talk in between."""

    def __init__(self, split: str, rng: random.Random):
        self.split, self.rng, self.facts, self.used, self.cast, self.messages = split, rng, [], set(), [], []
        self.last_asked = None
        self.scenes: list[tuple[str, str, str]] = []  # question, reply, the value in it

    def draw(self, kind: str, values: dict) -> str:
        """A value of a type that the chat does not have yet."""
        rng = self.rng
        if kind == "meperson":
            return rng.choices(["I", self.draw("kin", values), self.draw("friend", values)], [5, 4, 2])[0]
        if kind == "favourite":
            make = lambda rng: rng.choice(FAVOURITES[values["x"]])
        elif kind == "attribute":
            make = lambda rng: rng.choice(list(ATTRIBUTES))
        elif kind == "attributevalue":
            make = lambda rng: rng.choice(ATTRIBUTES[values["x"]])
        elif kind in SUBJECTS:
            make = lambda rng: rng.choice(list(SUBJECTS[kind]))
        else:
            make = TYPES[kind]
        gender = GENDER.get(values.get("p", "")) if kind == "name" else None
        if gender in ("he", "she") and rng.random() < 0.9:
            make = lambda rng: rng.choice(WOMEN if gender == "she" else MEN)
        for attempt in range(12):
            value = make(rng)
            held = zlib.crc32(value.encode()) % HELD_OUT if kind in HELD else 9
            wanted = held > 1 if self.split == "train" else held == (self.split == "validation") or kind not in HELD
            if value not in self.used and (wanted or (self.split != "train" and attempt > 8)):
                break
        return value

    def new_fact(self) -> Fact | None:
        """A fact that cannot be mixed up with those of the chat."""
        rng = self.rng
        for _ in range(20):
            frame = rng.choices(list(FRAME.values()), [WEIGHTS.get(name, 1) for name in FRAME])[0]
            group = GROUP.get(frame.name, {frame.name})
            values = {}
            for slot, kind in frame.slots.items():
                if slot == "p" and kind in ("meperson", "kin", "person") and self.cast and rng.random() < 0.35:
                    values[slot] = rng.choice([one for one in self.cast])
                    if kind == "kin" and values[slot] not in KIN or kind == "person" and values[slot] == "I":
                        values[slot] = self.draw(kind, values)
                else:
                    values[slot] = self.draw(kind, values)
            same = [fact for fact in self.facts if fact.frame.name in group]
            if not frame.subject and frame.name not in ONCE and same:
                continue
            if frame.subject and any(
                fact.values.get("p") == values["p"]
                and fact.values.get("x") == values.get("x")
                or not fact.frame.subject
                for fact in same
            ):
                continue
            if frame.subject and "x" not in frame.slots and any(fact.values.get("p") == values["p"] for fact in same):
                continue
            plain = [value for slot, value in values.items() if slot != "p"]
            if len(set(plain)) < len(plain) or values.get("p") in plain or self.used & set(plain):
                continue
            self.used |= set(plain) | ({values["p"]} if frame.subject and values["p"] != "I" else set())
            if frame.subject and frame.slots["p"] in ("meperson", "kin", "person") and values["p"] not in self.cast:
                self.cast.append(values["p"])
            return Fact(frame, values)
        return None

    def named(self, fact: Fact) -> Fact:
        """The same about "Anna" in place of "my sister", where the user has told that name."""
        p = fact.values.get("p")
        name = next(
            (
                one.values["v"]
                for one in self.facts
                if one.frame.name == "kinname" and one.values["p"] == p and not one.superseded and one is not fact
            ),
            None,
        )
        if name is None or fact.frame.name in ("kinname", "nickname", "attribute"):
            return fact
        GENDER.setdefault(name, GENDER.get(p, "they"))
        return Fact(fact.frame, fact.values | {"p": name})

    def same_subject(self, fact: Fact) -> Fact | None:
        """One more fact about the subject of this one."""
        for _ in range(4):
            frame = self.rng.choice([one for one in FRAME.values() if one.slots.get("p") == "meperson"])
            if any(
                one.frame.name in GROUP.get(frame.name, {frame.name}) and one.values.get("p") == fact.values["p"]
                for one in [*self.facts, fact]
            ):
                continue
            values = {"p": fact.values["p"]}
            for slot, kind in frame.slots.items():
                values.setdefault(slot, self.draw(kind, values))
            plain = [value for slot, value in values.items() if slot != "p"]
            if len(set(plain)) == len(plain) and not self.used & set(plain) and values["p"] not in plain:
                self.used |= set(plain)
                return Fact(frame, values)
        return None

    def telling(self, fact: Fact) -> str:
        if self.rng.random() < 0.4:
            fact = self.named(fact)
        tells = [tell for tell in fact.frame.tells if not (fact.values.get("p") == "I" and tell.startswith("{p},"))]
        return fact.render(self.rng.choice(tells), self.rng)

    def say(self, user: str, bot: str) -> None:
        self.messages += [{"role": "user", "content": user}, {"role": "assistant", "content": bot}]

    def tell_scene(self) -> None:
        """The user tells a scene of data/scenes.py."""
        rng = self.rng
        lines, asked = scene(rng, [person for person in self.cast if person != "I"])
        known = [text for text, *_ in self.scenes]
        asked = [one for one in asked if one[0] not in known]
        text = " ".join(lines)
        if rng.random() < 0.2:
            text = f"{rng.choice(CHATTER)} {text}"
        if rng.random() < 0.15:
            text += f" {rng.choice(CHATTER)}"
        if not self.messages and rng.random() < 0.6:
            text = f"{rng.choice(GREETINGS)} {text}"
        self.last_asked = None
        self.scenes += asked
        echo = asked and rng.random() < 0.2
        self.say(text, f"{rng.choice(ACKS)} {asked[0][1]}" if echo else rng.choice(ACKS))

    def tell(self) -> None:
        """The user tells one or several new facts."""
        if self.rng.random() < SCENES:
            return self.tell_scene()
        rng = self.rng
        facts = [self.new_fact() for _ in range(rng.choices([1, 2, 3], [60, 28, 12])[0])]
        facts = [fact for fact in facts if fact]
        if not facts:
            return self.chat()
        clauses = [self.telling(fact) for fact in facts]
        p = facts[-1].values.get("p", "")
        pronoun = "I" if p == "I" else GENDER.get(p)
        if p in self.cast and pronoun in ("he", "she", "I") and len(facts) < 3 and rng.random() < 0.5:
            more = self.same_subject(facts[-1])  # told with a pronoun
            if more:
                template = rng.choice([tell for tell in more.frame.tells if not tell.startswith("{p},")])
                clauses.append(more.render(template, rng, pronoun="" if pronoun == "I" else pronoun))
                facts.append(more)
        text = clauses[0]
        for clause in clauses[1:]:
            join = rng.choice(JOINS)
            if ";" in text + clause or ":" in text:
                join = "{a}. {B}"
            text = join.format(a=text, b=clause, B=clause[0].upper() + clause[1:])
        if rng.random() < 0.3:
            text = rng.choice(OPENERS).format(a=text)
        elif rng.random() < 0.08:
            text += rng.choice(ASIDES)
        text = sentence(text)
        if rng.random() < 0.18:
            text = f"{rng.choice(CHATTER)} {text}"
        if rng.random() < 0.18:
            text += f" {rng.choice(CHATTER)}"
        if not self.messages and rng.random() < 0.6 or rng.random() < 0.03:
            text = f"{rng.choice(GREETINGS)} {text}"
        self.facts += facts
        self.last_asked = None
        self.say(text, self.acknowledge(facts[-1]))

    def acknowledge(self, fact: Fact) -> str:
        rng, parts = self.rng, []
        roll = rng.random()
        if fact.frame.acks and roll < 0.45:
            parts.append(fact.render(rng.choice(fact.frame.acks), rng, bot=True))
        elif roll < 0.6:
            slot = rng.choice([slot for slot in fact.frame.answers if slot != "p"])
            parts += [rng.choice(["Got it.", "Okay.", "Noted.", "So", "Ah,", "I see.", "Nice."])]
            echo = fact.render(
                max(rng.sample(fact.frame.answers[slot], min(2, len(fact.frame.answers[slot]))), key=len), rng, True
            )
            if parts[0] in ("So", "Ah,") and echo.split()[0] in (
                "Your",
                "You",
                "The",
                "It's",
                "They",
                "On",
                "At",
                "In",
            ):
                echo = echo[0].lower() + echo[1:]
            parts.append(echo if parts[0] in ("So", "Ah,") else sentence(echo))
        elif fact.frame.name in BAD_NEWS:
            parts.append(rng.choice(SORRY))
        else:
            parts.append(rng.choice(ACKS))
        return " ".join(parts)

    def correct(self) -> None:
        """The user changes something told before; from now on only the new value counts."""
        rng = self.rng
        facts = [fact for fact in self.facts if not fact.superseded]
        if not facts:
            return self.tell()
        old = rng.choice(facts)
        slots = [slot for slot in old.frame.slots if slot != "p" and slot in old.frame.answers and slot != "x"]
        if not slots:
            return self.tell()
        slot = rng.choice(slots)
        value = self.draw(old.frame.slots[slot], old.values)
        if value in self.used:
            return self.tell()
        self.used.add(value)
        new = Fact(old.frame, old.values | {slot: value})
        old.superseded = True
        self.facts.append(new)
        clause = self.telling(new)
        text = rng.choice(CORRECTIONS).format(a=clause, A=clause[0].upper() + clause[1:], old=old.values[slot])
        self.last_asked = None
        self.say(sentence(text), rng.choice(CHANGED) if rng.random() < 0.7 else self.acknowledge(new))

    def chat(self) -> None:
        """Small talk."""
        self.say(*small_talk(self.split, self.rng))

    def ask(self) -> None:
        """The user asks for something, and the assistant knows it."""
        if pair := self.question():
            self.say(*pair[:2])
            self.last_asked = pair[3:] if pair[3] else None
        else:
            self.tell()

    def askable(self) -> list[tuple[Fact, str]]:
        return [
            (fact, slot)
            for fact in self.facts
            if not fact.superseded
            for slot in fact.frame.answers
            if not (slot == "p" and fact.values["p"] == "I")
        ]

    def question(self, fact: Fact | None = None, slot: str = "") -> tuple | None:
        """(question, reply, the value in it, fact, slot); None if nothing has been told."""
        rng = self.rng
        if fact is None:
            choices = self.askable()
            if self.scenes and (not choices or rng.random() < SCENES):
                return *self.about_scene(rng.choice(self.scenes)), None, ""
            if not choices:
                return None
            fact = rng.choice([fact for fact, _ in choices])
            slot = rng.choice([slot for one, slot in choices if one is fact])
        frame, p = fact.frame, fact.values.get("p")
        about = [one for one in self.facts if p and p in one.values.values()]
        last = self.last_asked
        if p and p != "I" and slot != "p" and len(about) == 1 and rng.random() < 0.05:
            text = rng.choice(ABOUT).format(p=p)
            reply = fact.render(max(frame.answers[slot], key=len), rng, bot=True)
        else:
            if (
                last
                and last[0] is not fact
                and last[0].frame is frame
                and last[1] == slot
                and p
                and slot != "p"
                and ("x" not in frame.slots or frame.name == "pet")
                and rng.random() < 0.6
            ):
                object = "me" if p == "I" else p
                text = rng.choice(["And {p}?", "What about {p}?", "How about {p}?", "And what about {p}?", "{P}?"])
                text = text.format(p=object, P=object[0].upper() + object[1:])
            else:
                if rng.random() < 0.5 and slot != "p":
                    fact = self.named(fact)
                text = self.wording(fact, slot)
            reply = fact.render(rng.choice(frame.answers[slot]), rng, bot=True)
        value = to_bot(fact.values[slot[0]])
        if rng.random() < 0.1 and len(slot) == 1:
            reply = value
            if value in JOBS:
                reply = with_article(value)
        reply = rng.choice(REPLIES) + sentence(reply)
        at = reply.lower().rfind(re.sub(r"^(an?|the) ", "", value).lower())
        if at < 0:
            return None
        value = reply[at : at + len(re.sub(r"^(an?|the) ", "", value))]
        return text, reply, value, fact, slot

    def about_scene(self, asked: tuple[str, str, str]) -> tuple[str, str, str]:
        """A question about a scene, some with a few more words before or after it."""
        rng, (text, reply, value) = self.rng, asked
        if rng.random() < 0.1:
            text = text[:-1] + rng.choice(TAILS)
        if rng.random() < 0.15:
            text = rng.choice(LEADS) + text[0].lower() + text[1:]
        if rng.random() < 0.06:
            text = text.rstrip("?").lower() + rng.choice(["", "?"])
        reply = rng.choice(REPLIES) + reply
        at = reply.lower().rfind(value.lower())
        return text, reply, reply[at : at + len(value)]

    def wording(self, fact: Fact, slot: str) -> str:
        """One of the many ways to ask for a slot of a fact."""
        rng, frame = self.rng, fact.frame
        ways = [("direct", 55)] + [("clause", 22)] * (slot in frame.clauses) + [("noun", 18)] * (slot in frame.nouns)
        way = rng.choices([way for way, _ in ways], [weight for _, weight in ways])[0]
        if way == "direct" and slot in frame.direct:
            text = fact.render(rng.choice(frame.direct[slot]), rng)
            if rng.random() < 0.15 and text.endswith("?") and text.count("?") == 1 and ". " not in text:
                text = text[:-1] + rng.choice(TAILS)
            if rng.random() < 0.2:
                lead = rng.choice(LEADS)
                first = (
                    text
                    if text[:2] in ("I ", "I'") or text.split()[0].strip("'s") in self.used
                    else text[0].lower() + text[1:]
                )
                text = lead + first
            return text if rng.random() < 0.95 else text.rstrip("?").lower() + rng.choice(["", "?"])
        table, wrappers = (frame.clauses, CLAUSES) if way == "clause" else (frame.nouns, NOUNS)
        clause = fact.render(rng.choice(table.get(slot) or ["that"]), rng)
        return rng.choice(wrappers).format(a=clause, A=clause[0].upper() + clause[1:])

    def sample(self, exchanges: int) -> dict:
        """The sample of a chat with so many exchanges before the last question."""
        rng = self.rng
        told, talked, asked = rng.choice([(5, 2, 2), (4, 4, 1), (6, 1, 1), (3, 3, 3), (3, 6, 1), (6, 2, 0)])
        while len(self.messages) < 2 * exchanges:
            first = not (self.facts or self.scenes) and len(self.messages) >= 2 * exchanges - 2
            kind = "tell" if first else rng.choices(["tell", "chat", "ask", "correct"], [told, talked, asked, 0.4])[0]
            getattr(self, kind)()
        questions, seen = [], set()
        choices = self.askable()
        found = [self.question(*one) for one in rng.sample(choices * 3, min(3 * len(choices), 3 * QUESTIONS))]
        found += [self.about_scene(one) for one in rng.sample(self.scenes, min(len(self.scenes), 2 * QUESTIONS))]
        rng.shuffle(found)
        for pair in found:
            if pair and pair[0] not in seen and len(questions) < QUESTIONS:
                seen.add(pair[0])
                questions.append(pair)
        (text, reply, value, *_), *others = questions
        self.say(text, reply)
        return {"messages": self.messages, "questions": [list(pair[:2]) for pair in others], "answer": value}


def small_talk(split: str, rng: random.Random) -> tuple[str, str]:
    """An exchange that tells nothing: what the user says, and the reply."""
    written, own = _small_talk(split)
    roll = rng.random()
    if roll < SUMS:
        return plain_sum(rng)
    return rng.choice(own if roll < SUMS + OWN_TALK else written)


def plain_sum(rng: random.Random) -> tuple[str, str]:
    """A sum, a difference or a product to work out: the question, and its answer."""
    sign = rng.choice("+++--**")
    most = {"+": rng.choice([10, 20, 60]), "-": rng.choice([10, 20, 60]), "*": 12}[sign]
    a, b = rng.randint(1, most), rng.randint(1, most)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    if (a, sign, b) in TEST_SUMS:
        return plain_sum(rng)
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    form = rng.choice(SUM_FORMS)
    between = f" {sign} " if "=" in form or (sign != "*" and rng.random() < 0.5) else SPOKEN[sign]
    asked = f"{a}{between}{b}"
    return form.format(asked), rng.choice([f"{asked} is {value}.", f"{a}{between}{b} = {value}.", f"{value}."])


@lru_cache
def _small_talk(split: str) -> tuple[list, list]:
    """Exchanges of small talk, hand-written and SmolLM2's; the test and validation splits have their own."""
    lines = WRITTEN_TALK.read_text("utf-8").splitlines()
    written = [line.replace("\\n", "\n").split("\t") for line in lines]  # a poem has several lines
    rows = gzip.decompress(SMALL_TALK.read_bytes()).decode().splitlines()
    own = [(row["user"], row["bot"]) for row in map(json.loads, rows)]
    kept = lambda pairs: [(user, bot) for user, bot in pairs if split_of(user) == split]
    return kept(written), kept(own)


def split_of(text: str) -> str:
    """The split that a text belongs to: one in HELD_OUT is in the test split, one in the validation split."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(text.encode()) % HELD_OUT, "train")


def sample(split: str, index: int, seed: int = 0) -> dict:
    """The index-th chat of a split."""
    rng = random.Random(f"everyday {split} {seed} {index}")
    return made(Chat, split, rng, lambda: rng.choice(EXCHANGES))


def sample_at(split: str, index: int, time_step: int, seed: int = 0) -> dict:
    """A chat with `time_step` exchanges before the last question."""
    return made(Chat, split, random.Random(f"everyday {split} {seed} {index} at {time_step}"), lambda: time_step)


def made(kind: type, split: str, rng: random.Random, exchanges: Callable[[], int]) -> dict:
    """A sample of a kind of Chat. Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    while True:  # once in a while no question comes out
        chat = kind(split, rng)
        try:
            return chat.sample(exchanges())
        except ValueError:
            continue


def generate(split: str, count: int, seed: int = 0):
    """`count` samples of a split."""
    return (sample(split, index, seed) for index in range(count))


if __name__ == "__main__":
    main(generate)
