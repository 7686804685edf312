"""Small talk and plain questions, answered by a model itself: what keeps its own way of talking in training.

    python -m experiments.smalltalk --model smollm2 --out data/smollm2/small_talk.jsonl.gz

The base model, without an adapter, replies to each line of the user in a fresh conversation. The reply is cut after
its last complete sentence. data/everyday.py puts these exchanges between facts and questions.
"""

import gzip
import json
import re
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.abilities import QUESTIONS
from minccm.fast.conversations import Conversations
from minccm.io import options as cli
from minccm.io.files import write_whole
from minccm.io.options import real, whole
from minccm.io.templates import choose_template
from minccm.methods import get_method

TEST_QUESTIONS = {*QUESTIONS, "How do I make tea?", "Explain a volcano in one sentence."}
ENDS = re.compile(r"[.!?][\"')\]]?(?=\s|$)")  # the end of a sentence
ACTED = re.compile(r"^[(*\[]|\bDear\b|[Mm]y name is")  # a role that the model plays, or a letter
END = chr(10)


def words(text: str) -> list[str]:
    """The entries of a list with bars between them."""
    return [entry.strip() for entry in " ".join(text.split()).split("|")]


FEELINGS = words("""a bit tired|really happy|quite bored|so excited|a little nervous|pretty relaxed|rather grumpy|in a
    great mood|half asleep|full of energy|slightly confused|very calm|somewhat lazy|hungry again|curious""")
TIMES = words("today|this morning|right now|tonight|this afternoon|lately")
THINGS = words("""rain|snow|Mondays|long walks|old films|board games|crowded trains|loud music|early mornings|the sea|
    mountains|puzzles|cooking|museums|camping|thunderstorms|spicy food|chocolate|poetry|dancing|robots|space|dinosaurs|
    libraries|markets|bicycles|trains|photographs|jazz|silence|spiders|lightning|sunsets|soup|ghost stories""")
TOPICS = words("""gravity|photosynthesis|a black hole|the water cycle|democracy|inflation|a volcano|an earthquake|the
    moon|electricity|a rainbow|the internet|an atom|a metaphor|evolution|a haiku|the heart|vitamins|a symphony|solar
    power|a fossil|tides|the printing press|a prime number|friendship|sleep|a computer|a glacier|recycling|a novel""")
COUNTRIES = words("""France|Germany|Spain|Italy|Japan|China|Brazil|Egypt|Canada|Australia|Portugal|Greece|Norway|Sweden|
    Poland|Austria|Ireland|Turkey|Kenya|Peru|Chile|Argentina|India|Thailand|Vietnam|South Korea|Russia|Hungary|Denmark|
    Finland|Belgium|the Netherlands|Cuba|Mexico|Iceland|Morocco|Switzerland|Ukraine|Nigeria|England""")
SUBJECTS = words("""the sea|autumn|a sleepy cat|friendship|the moon|a rainy day|my old bicycle|spring|coffee|a lonely
    robot|the night sky|home|a river|winter|bread|the wind|a garden|music|time|a little bird""")
WORDS = words("""happy|cold|big|fast|early|light|rich|strong|easy|open|hard|young|full|dark|wet|loud|brave|clean|deep|
    empty|sweet|near|sharp|thick|old""")
ANIMALS = words("""octopuses|elephants|penguins|bees|dolphins|owls|whales|ants|camels|bats|giraffes|tigers|frogs|cats|
    dogs|wolves|snails|horses|kangaroos|sharks""")
CHAT = words("""Hi!|Hello there!|Hey!|Good morning!|Good evening.|Hi, how is it going?|Hello, nice to talk to you.|
    How are things?|How have you been?|What's up?|How was your day?|Are you busy?|Can we chat for a bit?|
    I just wanted to say hello.|It's raining again.|What lovely weather.|It is freezing outside.|It's so hot today.|
    The sun is out at last.|There is so much fog this morning.|I could not sleep last night.|I slept really well.|
    I need a coffee.|I should drink more water.|Time flies, doesn't it?|What a long day.|I can't wait for the weekend.|
    The week went by so quickly.|I have so much to do.|I have nothing to do.|I am waiting for the bus.|
    The train is late again.|Traffic was terrible.|I'm stuck in a queue.|My phone battery is almost empty.|
    I forgot why I came in here.|I keep losing my pens.|My back hurts a little.|My feet are cold.|I am so hungry.|
    I ate too much.|Lunch was delicious.|Dinner is in the oven.|The kettle is boiling.|I burnt my toast.|
    My neighbours are noisy.|The dog next door won't stop barking.|A bird is singing outside my window.|
    There is a spider in the bath.|I heard a strange noise.|The lights went out for a second.|The lift is broken.|
    I watched a good film yesterday.|I can't decide what to watch.|That song is stuck in my head.|
    I like this song.|I read for hours yesterday.|I'm thinking about nothing in particular.|I love quiet evenings.|
    I'm just tidying up.|I hate ironing.|The laundry is done.|My plants need water.|The garden looks nice.|
    I want to go outside.|I went for a walk.|I should exercise more.|I'm too lazy to cook.|I feel like dancing.|
    Life is strange sometimes.|People are funny.|I wonder what tomorrow brings.|I'm in no hurry.|Let's talk.|
    I enjoy talking to you.|You are very kind.|You are funny.|Thanks for listening.|Thank you!|Thanks a lot.|
    That's nice of you.|Great.|Okay.|All right then.|I see.|Interesting.|Really?|Wow.|Haha.|Cool.|Hmm.|Well.|
    Maybe.|Good point.|You're right.|I don't think so.|Never mind.|Anyway.|So, what now?|Where were we?|
    Let me think.|Give me a second.|I'm back.|Sorry, I was away for a moment.|One moment, the phone is ringing.|
    Somebody is at the door.|I have to go soon.|I'll be right back.|See you later.|Good night!|
    Tell me a joke.|Tell me another joke.|Tell me something funny.|Tell me a fun fact.|Tell me something interesting.|
    Tell me a short story.|Say something nice.|Cheer me up.|Give me a compliment.|Surprise me.|Make me laugh.|
    Give me some advice.|Give me a riddle.|What should I do today?|What should I cook tonight?|What should I read?|
    What can I do when I'm bored?|How can I sleep better?|How do I stay focused?|How can I relax?|
    How do I make new friends?|How do I wake up earlier?|What makes a good friend?|What is happiness?|
    What is the meaning of life?|Do you have feelings?|Do you dream?|Do you sleep?|Are you a robot?|
    Are you human?|What are you?|What can you do?|Who made you?|Can you help me?|Do you like music?|
    Do you like jokes?|Do you have hobbies?|What is your favourite colour?|What is your favourite season?|
    Do you get tired?|Can you think?|Can you sing?|Do you know everything?|What would you do with a free day?|
    If you could travel, where would you go?|What do you think about the future?|Is it going to rain?|
    What should I wear when it is cold?|Is it healthy to nap?|Why do we yawn?|Why do we dream?|Why do cats purr?|
    Why is the sky blue?|Why is the sea salty?|Why do leaves fall?|Why do we laugh?|How do birds find their way?|
    How far away is the sun?|How many days are in a year?|How many planets are there?|How many legs does a spider have?|
    What colour do you get from blue and yellow?|What is the largest ocean?|What is the tallest mountain?|
    What is the longest river?|What is the fastest animal?|Which planet is closest to the sun?|Who wrote Hamlet?|
    Who painted the Mona Lisa?|How does a plane fly?|What do bees make?|What is water made of?|What is ice?|
    What do plants need to grow?|How many minutes are in an hour?|What comes after Tuesday?|What comes after spring?|
    How many letters are in the alphabet?|Name three fruits.|Name three colours.|Name five animals.|
    Name a famous painter.|Name two oceans.|Name a good book for children.|Count to ten.|Spell the word banana.|
    List the seasons.|List the days of the week.|Wish me luck!|I'm proud of myself.|I made a silly mistake.|
    I feel a bit lonely.|I miss the summer.|I love the smell of rain.|I'm cold.|I'm bored.|Nothing new here.|
    Just the usual.|Not much going on.|Can't complain.|It was just a normal day.|Everything is fine.|
    I'm listening to the radio.|The news is depressing.|I don't like meetings.|Work was boring.|Work was fun today.|
    My head is spinning.|I need a break.|I need a nap.|I'm making soup.|Do you want to hear something?|
    Do you believe in luck?|Have you ever seen snow?|What is your favourite word?|Is chess hard?|
    Do you think aliens exist?|How do I start a diary?|How do I get rid of hiccups?|Is coffee bad for me?|
    What is a good breakfast?|What's a nice present?|How do I say sorry?|Should I take an umbrella?|
    I want to learn something new.|Teach me a word.|Give me a quote.|Give me a tip for today.|Motivate me.""")


def lines() -> dict[str, float]:
    """What the user says, with the temperature that its reply is drawn with: 0 for questions that have an answer.

    Sums, rhymes, recipes and lives are left out: SmolLM2 gets most of them wrong.
    """
    talk = CHAT + [f"I'm {feeling} {time}." for i, feeling in enumerate(FEELINGS) for time in TIMES[i % 2 :: 2]]
    for thing in THINGS:
        talk += [f"Do you like {thing}?", f"I love {thing}.", f"I don't like {thing} much."]
        talk += [f"What do you think of {thing}?"]
    talk += [f"Tell me something about {animal}." for animal in ANIMALS]
    facts = [f"What is the capital of {country}?" for country in COUNTRIES]
    facts += [f"What is {topic}?" for topic in TOPICS] + [f"Explain {topic} in one sentence." for topic in TOPICS]
    facts += [f"Write a short poem about {subject}." for subject in SUBJECTS]
    facts += [f"What is the opposite of {word}?" for word in WORDS]
    found = dict.fromkeys(facts, 0.0) | dict.fromkeys(talk, 0.7)
    return {line: temperature for line, temperature in found.items() if line not in TEST_QUESTIONS}


def cut(reply: str, characters: int = 200) -> str:
    """A reply of at most `characters`, cut after a sentence (a poem: after a line); "" if it has no end.

    Also "" if the model plays a role.
    """
    reply = reply.strip()
    if ACTED.search(reply):
        return ""
    if len(reply) <= characters and ENDS.search(reply[-2:]):
        return reply
    ends = [found.end() for found in ENDS.finditer(reply[:characters])]
    ends = [end for end in ends if not re.search(r"(^|\s)\d+\.$", reply[:end])]  # "1." begins an entry of a list
    if reply.count("\n") >= 2:
        ends += [found.start() for found in re.finditer("\n", reply[:characters])][3:4]
    return reply[: max(ends)].strip() if ends else ""


def arguments():
    parser = cli.parser(__doc__.split("\n")[0])
    parser.set_defaults(model="smollm2")
    parser.add_argument("--out", type=Path, default=Path("small_talk.jsonl.gz"), help="where to write the exchanges")
    parser.add_argument("--samples", type=whole(1, 100), default=1, help="replies to each line")
    parser.add_argument("--batch", type=whole(1, 4096), default=64, help="conversations at once")
    parser.add_argument("--max-tokens", type=whole(1, 1024), default=48, help="of a reply")
    parser.add_argument("--top-p", type=real(0, 1, above=True), default=0.9, help="tokens drawn from, by probability")
    parser.add_argument("--count", type=whole(1, 10**6), default=None, help="lines, at most")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    options = arguments()
    device, dtype = cli.device_and_dtype(options)
    model, tokenizer = cli.open_base(options.model, None, device, dtype)
    template = choose_template(options.model, options.template)
    generator = torch.Generator(device).manual_seed(options.seed)
    stop_ids = template.stop_ids(tokenizer)
    prompts = []  # (temperature, line, ids)
    for line, temperature in lines().items():
        ids = sum((segment.ids for segment in template.encode_exchange(tokenizer, line)), [])
        prompts += [(temperature, line, ids)] * (options.samples if temperature else 1)
    prompts.sort(key=lambda prompt: (prompt[0], len(prompt[2])))
    prompts = prompts[: options.count]
    turn = max(len(ids) for *_, ids in prompts)
    talks = Conversations(model, get_method("none"), 0, options.batch, 16, turn, options.max_tokens, graphs=False)
    exchanges = {}
    for temperature in (0.0, 0.7):
        group = [prompt for prompt in prompts if prompt[0] == temperature]
        for start in tqdm(range(0, len(group), options.batch), desc=f"temperature {temperature}"):
            part = group[start : start + options.batch]
            texts = [ids for *_, ids in part] + [part[-1][2]] * (options.batch - len(part))
            outputs = talks.generate(texts, None, temperature, options.top_p, generator, stop_ids)
            for (_, line, _), output in zip(part, outputs):
                reply = cut(tokenizer.decode(output))
                if len(reply) >= 2:
                    exchanges[line, reply] = None
    rows = [json.dumps({"user": line, "bot": reply}, ensure_ascii=False) for line, reply in exchanges]
    text = "".join(row + END for row in rows).encode()
    write_whole(options.out, lambda path: path.write_bytes(gzip.compress(text, mtime=0)))
    print(f"{len(rows)} exchanges: {options.out}")


if __name__ == "__main__":
    cli.run(main)
