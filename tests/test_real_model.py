"""The experiment on a real model: its training sequences, its stages at toy size, and its table."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from data.encode import encoder
from experiments import domains, real_model, scale, smollm2
from experiments.real_model import Source, Steps, build_turns, sizes_of
from minccm.fast.step import Packing, parse_fast
from minccm.io.adapters import load_adapter
from minccm.io.options import open_base
from minccm.io.templates import DIALOGUE, TEMPLATES, choose_template
from minccm.io.tokenizer import Tokenizer
from minccm.methods import get_method
from minccm.parallel import forward_parallel
from minccm.sequence import build_sequence, pad_batch
from tests.conftest import random_model
from tests.test_real_data import daily_folder

ALL_N = [("ccm-concat", 2), ("ccm-concat, n = 1", 1)]
METHODS = ["ccm-concat", "ccm-merge", "compressive", "ccm-merge-plain"]


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_one_sequence_has_all_time_steps(name):
    """Each question's logits are those of the sequence that ends there, within 1e-9 in float64."""
    model, method = random_model(2), get_method(name)
    draw = torch.Generator().manual_seed(0)
    ids = lambda count: torch.randint(3, 40, (count,), generator=draw).tolist()
    contexts, questions = [ids(5), ids(2), ids(4)], [(ids(2), ids(3)), (ids(4), ids(2)), (ids(1), ids(3))]
    together = pad_batch([build_turns(method, 2, 40, contexts, questions)])
    got = forward_parallel(model, method, together).split([len(output) for _, output in questions])
    for t, question in enumerate(questions):
        alone = pad_batch([build_sequence(method, 2, 40, contexts[: t + 1], [question])])
        torch.testing.assert_close(got[t], forward_parallel(model, method, alone), atol=1e-9, rtol=1e-9)


def test_a_row_has_one_shape(tiny):
    """Rows of demonstrations have the sizes that are fixed, whatever the samples."""
    for name in ("ccm-merge", "compressive"):
        method, encode = get_method(name), encoder(Tokenizer(tiny), TEMPLATES[DIALOGUE])
        config = random_model(2).config
        source = Source("icl", method, 2, encode, config)
        packing = Packing(method, parse_fast("pack,no-prune", torch.device("cpu"), 1.0), None, 128)
        steps = Steps(source, packing, 2048, 100)
        shapes = {(batch.tokens.shape, batch.sizes) for step in range(3) for batch in steps[step]}
        assert len(shapes) == 1
        row = [sizes_of(method, one) for one in steps.sequences(0)]
        assert all(sum(one[i] for one in row) <= steps.limits[i] for i in range(3))


def test_stages(call, tmp_path, tiny):
    """Step 1, two methods, two seeds, and the table with the paper's numbers. A second call trains nothing."""
    raw = tmp_path / "data"
    daily_folder(raw / "dailydialog")
    sizes = ["--steps", 2, "--step1-steps", 2, "--tokens", 512, "--r", 4, "--step1-r", 2, "--samples", 3]
    wanted = ["--model", tiny, "--data-dir", raw, "--out", tmp_path / "out", "--device", "cpu", *sizes]
    wanted += ["--methods", "ccm-concat,ccm-merge", "--seeds", "0,1", "--merge-after-concat"]
    status, printed = call(real_model, *wanted, "--budget", 0.01)
    assert status == 0 and "ccm-concat-n2-seed0: the budget is too small" in printed
    status, printed = call(real_model, *wanted)
    assert status == 0, printed
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["method"] for row in rows} == {"none", "full", "ccm-concat", "ccm-merge"}
    assert {row.get("seeds") for row in rows if row["method"].startswith("ccm")} == {2}
    assert "8.93, 9.06, 9.33, 9.85, 9.67" in printed and (tmp_path / "out" / "results.png").stat().st_size > 1000
    status, again = call(real_model, *wanted)
    assert status == 0 and "step 1:" not in again and "seed0:" not in again
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == rows
    status, printed = call(real_model, *wanted, "--samples", 4)
    assert status == 2 and "was made with other settings" in printed


def test_several_n(call, tmp_path, tiny):
    """Demonstrations with n = 1 and 2: another n than 2 is in the method's name; accuracies stand in percent."""
    sizes = ["--steps", 1, "--step1-steps", 1, "--tokens", 512, "--r", 4, "--samples", 3, "--time-steps", 1, 2]
    wanted = ["--model", tiny, "--data", "icl", "--out", tmp_path, "--methods", "ccm-concat", "--seeds", "0"]
    status, printed = call(real_model, *wanted, *sizes, "--n", 1, 2, "--device", "cpu")
    assert status == 0, printed
    assert "| ccm-concat, n = 1 |" in printed and "| ccm-concat |" in printed and "LLaMA-7B on MetaICL" in printed


def test_scale(call, tmp_path):
    """One line for each base, method and n, at the last time step that all runs have; smallest base first."""
    row = lambda parameters, method, n, t, **more: (
        {"data": "d", "method": method, "n": n, "time_step": t, "parameters": parameters, "kv_pairs": 4.0} | more
    )
    small = [row(4 * 10**6, "none", 0, t, perplexity=30.0 + t) for t in (1, 2)]
    small += [row(4 * 10**6, "ccm-concat", 2, t, perplexity=20.0, gap_closed=0.5) for t in (1, 2)]
    large = [row(10**8, "none", 0, t, perplexity=9.0) for t in (1, 2, 4)]
    large += [row(10**8, name, n, t, perplexity=8.0, gap_closed=0.9) for name, n in ALL_N for t in (1, 2)]
    for name, rows in (("small", small), ("large", large), ("other", [row(9 * 10**9, "none", 0, 7)])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(rows))
    runs = [tmp_path / name for name in ("large", "small", "other")]
    status, printed = call(scale, *runs[:2], "--json", tmp_path / "s.json", "--picture", tmp_path / "s.png")
    assert status == 0, printed
    rows = json.loads((tmp_path / "s.json").read_text())
    assert [(row["parameters"], row["n"], row["time_step"]) for row in rows] == [
        (4 * 10**6, 0, 2), (4 * 10**6, 2, 2), (10**8, 0, 2), (10**8, 1, 2), (10**8, 2, 2)
    ]  # fmt: skip
    assert "32.00" in printed and "4.0M" in printed and "0.90" in printed
    assert (tmp_path / "s.png").stat().st_size > 1000
    status, printed = call(scale, *runs)
    assert status == 2 and "no time step in common" in printed
    strange = [row(10**6, "x[red]\x1b]0;y\x07", 0, 1, perplexity=2.0)]
    (tmp_path / "other" / "results.json").write_text(json.dumps(strange))
    status, printed = call(scale, runs[2])
    assert status == 0 and "x[red]" in printed and "\x1b]0" not in printed
    (tmp_path / "other" / "results.json").write_text('[{"data": "d"}]')
    status, printed = call(scale, *runs)
    assert status == 2 and "the entry 'method' is missing" in printed


def test_adapters_for_chat(call, tmp_path, tiny):
    """Step 1, ccm-concat on top of it, ccm-merge from ccm-concat. In bf16 they ship, each with its step 1."""
    sizes = ["--tokens", 768, "--scale", 1e-4, "--samples", 0, "--device", "cpu", "--fast", "off"]
    status, printed = call(smollm2, "--model", tiny, "--out", tmp_path / "out", "--ship", tmp_path / "ship", *sizes)
    assert status == 0 and all(f"{stage.name}: 2 steps" in printed for stage in smollm2.STAGES), printed
    for name, tokens in (("ccm-concat", 4), ("ccm-merge", 16)):
        folder = tmp_path / "ship" / name
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
        assert files == ["adapter.safetensors", "init/adapter.safetensors"]
        assert {x.dtype for file in files for x in load_file(folder / file).values()} == {torch.bfloat16}
        model, _ = open_base(str(tiny), None, torch.device("cpu"), torch.float32)
        method, n = load_adapter(model, folder)
        assert (method.name, n) == (name, tokens)


def test_longer_chats(tiny):
    """With `longer`, chats have more exchanges, and no chat has fewer than without it."""
    _, tokenizer = open_base(str(tiny), None, torch.device("cpu"), torch.float32)
    template = choose_template(str(tiny), None)
    options = SimpleNamespace(shares=[1, 1, 0], seed=0)

    def exchanges(longer: float) -> list[int]:
        stage, encode = replace(smollm2.STAGES[1], longer=longer), encoder(tokenizer, template)
        of = SimpleNamespace(vocab_size=tokenizer.vocab_size)
        steps = smollm2.Steps(stage, get_method("ccm-concat"), encode, tokenizer, template, of, None, options)
        return [int(steps.sequence(index, 26).info.step.max()) for index in range(20)]

    usual, longer = exchanges(0.0), exchanges(1.0)
    assert all(a <= b for a, b in zip(usual, longer)) and sum(longer) > sum(usual) + 20


def test_domains(call, tmp_path, tiny, monkeypatch):
    """Five texts, both sets of adapters, and the sliding window, with the memory of each."""
    monkeypatch.setattr(domains, "ENOUGH", 5000)
    monkeypatch.setattr(domains, "LEFT_OUT", (*domains.LEFT_OUT, "asyncio", "distutils", "encodings", "email"))
    text = " ".join(f"In the year {year} the river rose above the old bridge." for year in range(1000, 1500))
    for name in ("train", "book"):
        (tmp_path / f"{name}.txt").write_text(text)
    sizes = ["--adapter-steps", 2, "--length", 80, "--row-tokens", 160, "--r", 4, "--window", 40, "--lengths", 60, 150]
    files = [tmp_path / "train.txt", tmp_path / "book.txt", "--base", tiny, "--out", tmp_path / "out"]
    status, printed = call(domains, *files, *sizes, "--device", "cpu")
    assert status == 0, printed
    rows = json.loads((tmp_path / "out" / "domains.json").read_text())
    assert len({row["domain"] for row in rows}) == 5 and len({row["cache"] for row in rows}) == 6
    assert len(rows) == 5 * 6 * 2 and all(row["kv_bytes"] > 0 for row in rows)
    assert (tmp_path / "out" / "domains.png").stat().st_size > 1000


def test_texts_of_domains_are_apart():
    """Training and test files differ, and every test text has enough for 50,000 tokens but the shortest."""
    train, test = ({name for name, _ in domains.sources(of)} for of in (False, True))
    assert train and test and not train & test
    assert len(domains.python_source(True)) > domains.ENOUGH and len(domains.documentation(True)) > 200_000
    assert "The answer is" in domains.word_problems(True)[:300]
