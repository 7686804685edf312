"""MetaICL: in-context learning of real tasks, a demonstration a context (the paper's tables 15, 23).

    python -m data.metaicl PATH      # MetaICL's folder `data`, with TASK/TASK_16384_100_train.jsonl and so on

Trains on the 60 high-resource tasks and tests on the 26 low-resource ones of MetaICL's split "hr_to_lr". A
demonstration is "Input: ... Output: ..."; one of more than 256 tokens is left out. A train sample has 16 random
demonstrations of its task (half of the samples: any number up to 16). A test sample has the first t that MetaICL drew
with seed 100 (and then 13). A sample ends before the demonstration that would bring it beyond 1,024 tokens. The chosen
option has the highest mean log-likelihood of its tokens; accuracy is averaged within a task, then over the tasks.
"""

import random as random_module
from itertools import islice
from pathlib import Path

from data.prepared import Lines, Preparation, json_lines, lacks, main
from minccm.io.untrusted import error, printable

MAX_EXAMPLE, MAX_SAMPLE = 256, 1024  # tokens
MOST = 16  # demonstrations
TRAIN_TASKS = """
     piqa hate_speech_offensive google_wellformed_query social_i_qa circa quoref glue-sst2 scitail emo cosmos_qa
    freebase_qa ag_news art paws kilt_ay2 glue-qnli quail ade_corpus_v2-classification sciq hatexplain emotion
    glue-qqp kilt_nq dbpedia_14 kilt_zsre hellaswag squad-with_context hotpot_qa glue-mnli ropes
    squad-no_context kilt_hotpotqa discovery superglue-record race-middle race-high lama-trex swag gigaword
    amazon_polarity biomrc tab_fact tweet_eval-emoji tweet_eval-offensive tweet_eval-sentiment tweet_qa imdb
    lama-conceptnet liar anli wiki_qa kilt_trex wikisql wino_grande wiqa search_qa xsum yahoo_answers_topics
    yelp_polarity yelp_review_full
    """.split()
TEST_TASKS = """
     quarel financial_phrasebank openbookqa codah qasc dream sick commonsense_qa medical_questions_pairs
    quartz-with_knowledge poem_sentiment quartz-no_knowledge glue-mrpc glue-wnli inst:climate_fever
    ethos-national_origin ethos-race ethos-religion ai2_arc hate_speech18 glue-rte superglue-cb superglue-copa
    tweet_eval-hate tweet_eval-stance_atheism tweet_eval-stance_feminist
    """.split()


def examples(path: Path, task: str, out: Preparation, options: bool = False):
    """The examples of a file, stripped, with their length in tokens; options: each must have the choices."""
    prefixes = out.count("Input:") + out.count("Output:")
    for where, raw in json_lines(path, out, input=str, output=str, options=list):
        record = {"task": task, "input": raw["input"].strip(), "output": raw["output"].strip()}
        if raw.get("task", task) != task:
            out.bad(error(where, f"this is of the task {printable(raw['task'])!r}, not {task!r}"))
            continue
        choices = list(dict.fromkeys(option.strip() for option in raw["options"]))
        if not record["output"] or (options and record["output"] not in choices):
            what = "'output' is empty" if not record["output"] else "'output' is not among 'options'"
            out.bad(error(where, what))
            continue
        record["tokens"] = prefixes + out.count(record["input"]) + out.count(record["output"])
        if record["tokens"] > MAX_EXAMPLE:
            out.leave_out(f"examples of more than {MAX_EXAMPLE} tokens")
        else:
            yield record | ({"options": choices} if choices else {})


def prepare(path: Path, out: Preparation) -> None:
    ranges: dict[str, dict] = {"train": {}, "validation": {}}  # of each task, the numbers of its records
    missing = []
    for task in TRAIN_TASKS:
        file = path / task / f"{task}_16384_100_train.jsonl"
        if not file.is_file():
            missing.append(task)
            continue
        begin = {split: out.found[split] for split in ranges}
        for record in examples(file, task, out):
            out.add("train", record)
        for split in ranges:
            ranges[split][task] = [begin[split], out.found[split]]
    demonstrations = {}
    for task in TEST_TASKS:
        files = [path / task / f"{task}_16_{name}.jsonl" for name in ("100_test", "100_train", "13_train")]
        if not all(file.is_file() for file in files):
            missing.append(task)
            continue
        for record in examples(files[0], task, out, options=True):
            out.add("test", record)
        drawn = (record for file in files[1:] for record in examples(file, task, out))
        demonstrations[task] = list(islice(drawn, 2 * MOST))
    if not ranges["train"] or not demonstrations:
        kind, file = ("test", files[0]) if ranges["train"] else ("train", path / "piqa/piqa_16384_100_train.jsonl")
        raise ValueError(f"{path} holds no {kind} task of MetaICL: it should have {file}")
    out.about = {"tasks": ranges, "demonstrations": demonstrations}
    out.about["notes"] = [f"{len(ranges['train'])} train tasks, {len(demonstrations)} test tasks"]
    if missing:
        out.about["notes"].append(f"{len(missing)} tasks are missing: {', '.join(missing)}")


def problem(record: object) -> str:
    """What is wrong with a record of a prepared folder; empty if nothing is."""
    what = lacks(record, {"task": str, "input": str, "output": str, "tokens": int})
    if not what and "options" in record:
        what = lacks(record, {"options": list})
    return what


def make_sample(record: dict, demonstrations: list[dict]) -> dict:
    """A sample: the demonstrations that fit, then the record as input and target."""
    contexts, room = [], MAX_SAMPLE - record["tokens"]
    for one in demonstrations:
        room -= one["tokens"]
        if room < 0:
            break
        contexts.append(f"Input: {one['input']} Output: {one['output']}")
    sample = {"contexts": contexts, "input": f"Input: {record['input']} Output:", "target": record["output"]}
    sample |= {"separator": "", "task": record["task"]}
    return sample | ({"options": record["options"]} if record.get("options") else {})


def draw(lines: Lines, index: int, random) -> dict:
    record = lines[index]
    begin, end = numbers_of(lines, record["task"])
    most = random.randint(1, MOST) if random.random() < 0.5 else MOST
    others = [
        begin + i + (begin + i >= index) for i in random.sample(range(end - begin - 1), min(most, end - begin - 1))
    ]
    return make_sample(record, [lines[i] for i in others])


def first(lines: Lines, index: int, time_step: int) -> dict | None:
    record = lines[index]
    if lines.split == "test":
        return make_sample(record, demonstrations_of(lines, record["task"])[:time_step])
    return draw(lines, index, random_module.Random(index))


def numbers_of(lines: Lines, task: str) -> tuple[int, int]:
    """The records [begin, end) of a task, from dataset.json. Raises ValueError if it does not have them."""
    found = lines.about
    for key in ("tasks", lines.split, task):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list) or len(found) != 2 or not all(type(i) is int for i in found):
        raise error(lines.path, f"dataset.json has no records of the task {printable(task)!r}: prepare it again")
    begin, end = found
    if not 0 <= begin < end <= len(lines):
        raise error(lines.path, f"the task {printable(task)!r} has other records in dataset.json: prepare it again")
    return begin, end


def demonstrations_of(lines: Lines, task: str) -> list[dict]:
    """The demonstrations of a test task, from dataset.json. Raises ValueError if it does not have them."""
    found = lines.about.get("demonstrations")
    found = found.get(task) if isinstance(found, dict) else None
    if not isinstance(found, list) or any(map(problem, found)):
        raise error(lines.path, f"dataset.json has no demonstrations of {printable(task)!r}: prepare it again")
    return found


if __name__ == "__main__":
    main(prepare, __doc__, "metaicl")
