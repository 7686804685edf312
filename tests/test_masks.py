"""Masks: each method's rule in words, checked pair by pair; and the block mask is the dense one."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from minccm.layout import collate, lay_out
from minccm.mask import Parallel, all_columns, block_mask, dense_mask, predict
from minccm.methods import COMP, METHODS, SLOT, TEXT, Columns, columns, get_method, in_turns, merge_weights, visible

# who sees whom across steps, in words: (query's step, key's kind, key's step, number of the last step) -> bool
RULES = {
    "none": lambda q, kind, k, last: False,
    "full": lambda q, kind, k, last: kind == TEXT,
    "gist": lambda q, kind, k, last: kind == COMP,
    "ccm-concat": lambda q, kind, k, last: kind == COMP,
    "ccm-concat-independent": lambda q, kind, k, last: kind == COMP and q == last,
    "ccm-merge": lambda q, kind, k, last: kind == SLOT and k == q - 1,
    "ccm-merge-ema": lambda q, kind, k, last: kind == SLOT and k == q - 1,
    "ccm-merge-independent": lambda q, kind, k, last: kind == SLOT and k == q - 1 and q == last,
    "compressive": lambda q, kind, k, last: kind == SLOT,
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("sink", [False, True])
def test_rules(name, sink):
    """Text sees its own step up to itself, the sink where there is one, and beyond that what the method's rule says."""
    method = get_method(name, sink)
    layout = lay_out(method, 2, 100, [[1, 7, 8], [9], [4, 5, 6]], [3, 3], [4, 2])
    queries, keys = Columns(layout.columns), Columns(torch.cat([layout.columns, layout.slots]))
    got = dense_mask(method, Columns(queries.data[None]), Columns(keys.data[None]))[0]
    last = int(queries.step.max())
    for q in range(len(layout.columns)):
        for k in range(len(keys.data)):
            kind, step = int(keys.kind[k]), int(keys.step[k])
            own = kind != SLOT and step == int(queries.step[q]) and k <= q
            earlier = step < int(queries.step[q])
            rule = earlier and RULES[name](int(queries.step[q]), kind, step, last)
            assert bool(got[q, k]) == (own or rule or (sink and k == 0)), (name, q, k)


def test_a_slot_is_of_no_own_step():
    """A step's own slot is none of what its tokens see for being theirs, wherever it stands."""
    token, slot = (Columns.of(columns(kind=kind, step=1, index=0, order=3)) for kind in (TEXT, SLOT))
    assert visible(get_method("none"), token, token) and not visible(get_method("none"), token, slot)


def in_blocks(mask: torch.Tensor) -> torch.Tensor:
    """A mask, bool (B, N, C), filled up to blocks of 128: (B, N / 128, 128, C / 128, 128)."""
    mask = F.pad(mask, (0, -mask.shape[2] % 128, 0, -mask.shape[1] % 128))
    return mask.unflatten(2, (-1, 128)).unflatten(1, (-1, 128))


sizes = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=6), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.builds(get_method, st.sampled_from(sorted(METHODS)), st.booleans()),
    st.integers(1, 4),
    sizes,
    st.booleans(),
    st.integers(0, 2),
)
def test_block_mask_is_the_dense_mask(method, n, lengths, packed, count):
    """Every pair gets the same answer from FlexAttention's mask as from the dense one."""
    texts = [([[5] * length for length in row[:-1]], [5] * row[-1], [6, 2]) for row in lengths]
    layouts = [lay_out(method, n, 100, *text, more=[text[1:]] * count) for text in texts]
    batch = collate([layouts] if packed else [[layout] for layout in layouts])
    keys = all_columns(method, batch)
    dense = dense_mask(method, batch.columns, keys)
    block = block_mask(method, batch.columns, keys)
    shape = (len(dense), None, *dense.shape[1:])
    assert torch.equal(create_mask(block.mask_mod, *shape, device="cpu")[:, 0], dense)
    assert torch.equal(block.to_dense()[:, 0].bool(), in_blocks(dense).any(4).any(2))


@pytest.mark.parametrize("name", METHODS)
def test_only_what_is_seen_is_looked_at(name):
    """Of a packed row that ends in padding, a kernel is sent to the blocks where some pair is seen, and no others."""
    draw = random.Random(0)
    texts = [([[5] * draw.randint(1, 9) for _ in range(draw.randint(1, 9))], [5] * 9, [6, 2]) for _ in range(40)]
    layouts = [lay_out(get_method(name), 4, 100, *text) for text in texts]
    batch = collate([layouts], 512, apart=True)
    assert int((batch.columns.sample < 0).sum()) > 1
    for part in filter(None, (batch, batch.first, batch.last)):
        keys = all_columns(get_method(name), part)
        seen = in_blocks(dense_mask(get_method(name), part.columns, keys))
        block = block_mask(get_method(name), part.columns, keys)
        assert torch.equal(block.to_dense()[:, 0].bool(), seen.any(4).any(2))
        assert int(block.full_kv_num_blocks.sum()) == int(seen.all(4).all(2).sum())


@pytest.mark.parametrize("name", ["full", "ccm-concat", "ccm-merge"])
def test_padding_is_hardly_attended(name):
    """A block of padding looks at itself alone, and no block at the padding of the slots: a long row costs its text."""
    layout = lay_out(get_method(name), 4, 100, [[5] * 9] * 8, [5] * 9, [6, 2])
    batch = collate([[layout]], 1024)
    keys = all_columns(get_method(name), batch)
    seen = block_mask(get_method(name), batch.columns, keys).to_dense()[0, 0].bool()  # (8, 8 or more) blocks
    assert seen.shape[0] == 8 and layout.tokens.numel() < 128
    assert torch.equal(seen[1:, :8], torch.eye(8, dtype=torch.bool)[1:]) and not seen[1:, 8:].any()
    shorter = lay_out(get_method(name), 4, 100, [[5] * 9] * 2, [5] * 9, [6, 2])  # which leaves slots of its own unused
    batch = collate([[layout, shorter]], 128)
    unused = ~batch.slots.slot
    assert unused.any() or name != "ccm-merge"
    assert not dense_mask(get_method(name), batch.columns, batch.slots)[
        unused[:, None].expand(-1, batch.tokens.shape[1], -1)
    ].any()


def test_weights_of_merging():
    """The running mean weighs t steps by 1/t each; the moving average by halves; a delay leaves the newest out."""
    mean = merge_weights(get_method("ccm-merge"), 5)[..., 0]
    torch.testing.assert_close(mean, torch.ones(5, 5).tril().double() / torch.arange(1, 6)[:, None])
    ema = merge_weights(get_method("ccm-merge-ema"), 4)[..., 0]
    torch.testing.assert_close(ema[3], torch.tensor([0.125, 0.125, 0.25, 0.5], dtype=torch.float64))


def test_weights_of_turns():
    """Places in turn: a slot is the mean of its own steps, as if its rate were 0 at the others."""
    places, n = 3, 6

    def rate(t):  # slots 0 and 1 are written at t = 1, 4, 7, slots 2 and 3 at t = 2, 5, 8
        return ((t - 1) % places == torch.tensor([0, 0, 1, 1, 2, 2])) / ((t - 1) // places + 1)

    turns = merge_weights(in_turns(get_method("ccm-merge"), n, places), 8)
    torch.testing.assert_close(turns, merge_weights(replace(get_method("ccm-merge"), rate=rate), 8), atol=1e-6, rtol=0)
    assert turns[7, :, 3].nonzero()[:, 0].tolist() == [1, 4, 7] and not turns[1, :, 4:].any()
    mean, alone = (merge_weights(of, 8) for of in (get_method("ccm-merge"), in_turns(get_method("ccm-merge"), n, 1)))
    torch.testing.assert_close(alone, mean.expand(-1, -1, n))  # one place: every step has its turn


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on a GPU only")
@pytest.mark.parametrize("name", METHODS)
def test_flex_attention_on_a_gpu(name):
    """On a GPU, a packed row under FlexAttention gives the logits and gradients of the dense mask, within 1e-3."""
    from minccm.config import LlamaConfig
    from minccm.model import Transformer

    torch.manual_seed(0)
    method, n = get_method(name), 2
    model = Transformer(LlamaConfig(100, dim=64, ffn_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16))
    model.add_adapter(n, r=4, dropout=0.0, learned=method.learned)
    model = model.cuda()
    layouts = [lay_out(method, n, 100, [[5 + i] * 9] * (i + 2), [7] * 5, [8, 9, 2]) for i in range(6)]
    batch, results = collate([layouts], 128, apart=True).to("cuda"), []
    for flex in (False, True):
        model.zero_grad()
        logits, rows = predict(model, method, batch, flex=flex)
        logits = logits[batch.weights.flatten()[rows] > 0]  # the others are padding
        logits.float().square().mean().backward()
        results.append([logits] + [p.grad for p in model.adapter_state().values() if p.grad is not None])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


def test_compressive_pools_parts_of_the_text():
    """Compressive memory averages a step's text in n consecutive parts, of which a short text fills fewer."""
    method = get_method("compressive")
    batch = collate([[lay_out(method, 2, 100, [[1, 7, 8, 9], [5]], [3], [2])]])
    unit = torch.eye(batch.tokens.shape[1], dtype=torch.float64)[None, None]  # where K is that, P K is P
    pooled = Parallel(method, batch, torch.float64).extend(0, unit, unit)[0][0, 0, len(unit[0, 0]) :]
    expected = [[1 / 2, 1 / 2, 0, 0, 0], [0, 0, 1 / 2, 1 / 2, 0], [0, 0, 0, 0, 1]]
    assert pooled[batch.slots.slot[0], :5].tolist() == expected
