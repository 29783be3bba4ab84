"""The joint methods as the engine calls them."""

import math

import pytest
import torch

from prunus.compensation import output_error
from prunus.granularity import NM, Edge, EdgePerRow, Node
from prunus.joint import JOINTS, OBC, OBS, SparseGPT, obs_masks
from prunus.layer import Layer


def a_layer(groups=1, rows=8, n=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (groups, n, 400) if groups > 1 else (n, 400)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    x = x + x.roll(1, -2) + 0.5  # neighbours are correlated
    gram = x @ x.transpose(-1, -2) / 400
    weight = torch.randn(rows, n, generator=g)
    return Layer(name="fc", weight=weight, gram=gram, groups=groups, samples=400)


CASES = [
    (OBS(), EdgePerRow()),
    (OBS(), Edge()),
    (SparseGPT(), EdgePerRow()),
    (SparseGPT(block=5), Edge()),
    (SparseGPT(), NM(2, 4)),
    (OBC(), NM(2, 4)),
    (OBC(), EdgePerRow()),
    (OBC(size=4), EdgePerRow()),
]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("method", "granularity"), CASES, ids=str)
def test_laws(method, granularity, groups):
    layer = a_layer(groups)
    before = layer.weight.clone()
    pools = granularity.pool("fc", layer.weight)
    if isinstance(granularity, NM):
        kept = torch.full((len(pools),), 2)
    elif isinstance(granularity, Edge):
        kept = torch.tensor([77])
    else:
        kept = torch.full((len(pools),), 12)
    answer = method(layer, granularity, kept)
    assert torch.equal(granularity.pool("fc", answer.mask).sum(1), kept)
    assert (answer.weight[~answer.mask] == 0).all()
    assert answer.weight.dtype == layer.weight.dtype
    assert torch.equal(layer.weight, before)
    assert answer.ridge == method.ridge  # no Gram needs more
    again = method(layer, granularity, kept)
    assert torch.equal(again.mask, answer.mask)
    # the new weights make up for some of what the mask alone would lose
    plain = layer.weight.masked_fill(~answer.mask, 0.0)
    ours, theirs = (output_error(layer, w, None) for w in (answer.weight, plain))
    assert ours is not None
    assert theirs is not None
    assert ours < theirs


def test_obs_keeps_different_counts_per_row():
    layer = a_layer()
    kept = torch.tensor([0, 3, 5, 7, 11, 20, 23, 24])
    answer = OBS()(layer, EdgePerRow(), kept)
    assert torch.equal(answer.mask.sum(1), kept)
    assert torch.equal(answer.mask[3], obs_masks(layer.weight, layer.gram, [7])[0][0][3])


def test_obs_over_the_layer_costs_no_more_than_equal_rows():
    layer = a_layer()
    shared = OBS()(layer, Edge(), torch.tensor([64]))
    equal = OBS()(layer, EdgePerRow(), torch.full((8,), 8))
    assert int(shared.mask.sum()) == int(equal.mask.sum())
    assert output_error(layer, shared.weight, None) < output_error(layer, equal.weight, None)


def test_obs_leaves_less_error_than_sparsegpt():
    layer = a_layer(seed=3)
    kept = torch.full((8,), 8)
    errors = [
        output_error(layer, method(layer, EdgePerRow(), kept).weight, None)
        for method in (OBS(), SparseGPT())
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("method", "granularity", "counts"),
    [
        (OBS(), EdgePerRow(), (15, 14, 9)),
        (OBS(), Edge(), (120, 119, 60)),
        (OBC(), EdgePerRow(), (15, 14, 9)),
        (OBC(), NM(3, 4), (3, 2, 1)),
        (SparseGPT(block=8), EdgePerRow(), (15, 14, 9)),
        (SparseGPT(block=8), Edge(), (120, 119, 60)),
        (SparseGPT(), NM(3, 4), (3, 2, 1)),
    ],
    ids=str,
)
def test_weights_gone_before_go_first(method, granularity, counts):
    """With several steps, what an earlier step zeroed is never chosen again."""
    for seed in range(5):
        layer = a_layer(seed=seed)
        pools = len(granularity.pool("fc", layer.weight))
        before = torch.ones(8, 24, dtype=torch.bool)
        weight = layer.weight
        for count in counts:
            part = Layer(name="fc", weight=weight, gram=layer.gram)
            answer = method(part, granularity, torch.full((pools,), count))
            assert not (answer.mask & ~before).any()
            assert int(answer.mask.sum()) == pools * count
            before, weight = answer.mask, answer.weight
    # more than is left: the counts still hold
    answer = method(part, granularity, torch.full((pools,), counts[0]))
    assert int(answer.mask.sum()) == pools * counts[0]


@pytest.mark.parametrize("method", [OBS(), SparseGPT(), OBC()], ids=str)
def test_one_input_dead_inputs_and_dead_layers(method):
    def run(weight, gram, counts):
        part = Layer(name="fc", weight=weight, gram=gram)
        return method(part, EdgePerRow(), torch.tensor(counts))

    narrow, square = torch.tensor([[2.0], [0.0], [-1.0]]), torch.tensor([[3.0]])
    for counts in ([0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1]):
        answer = run(narrow, square, counts)
        assert answer.mask[:, 0].tolist() == [bool(k) for k in counts]
        assert torch.equal(answer.weight, narrow * answer.mask)

    layer = a_layer()
    gram = layer.gram.clone()
    gram[2], gram[:, 2] = 0.0, 0.0
    assert not run(layer.weight, gram, [23] * 8).mask[:, 2].any()  # costs nothing: gone first
    assert (run(layer.weight, gram, [0] * 8).weight == 0).all()
    assert torch.equal(run(layer.weight, gram, [24] * 8).weight, layer.weight)
    answer = run(layer.weight, torch.zeros(24, 24), [12] * 8)
    assert answer.mask.sum(1).tolist() == [12] * 8
    assert torch.equal(answer.weight, layer.weight * answer.mask)
    answer = run(torch.zeros(8, 24), layer.gram, [12] * 8)
    assert answer.mask.sum(1).tolist() == [12] * 8
    assert (answer.weight == 0).all()

    for name, at in (("weight", layer.weight.clone()), ("gram", layer.gram.clone())):
        at[1, 2] = math.nan
        pair = (at, layer.gram) if name == "weight" else (layer.weight, at)
        with pytest.raises(ValueError, match=rf"`{name}` must be finite, got nan at index \[1, 2"):
            run(*pair, [12] * 8)


def test_refusals():
    layer = a_layer()
    for method in (OBS(), SparseGPT(), OBC()):
        with pytest.raises(ValueError, match=r"got Node\(multiple_of=1\)"):
            method(layer, Node(), torch.tensor([3]))
        with pytest.raises(ValueError, match="Layer 'fc' has no statistic 'gram'"):
            method(Layer(name="fc", weight=layer.weight), EdgePerRow(), torch.full((8,), 3))
    with pytest.raises(ValueError, match=r"OBS eliminates edges of rows, got NM\(n=2, m=4\)"):
        OBS()(layer, NM(2, 4), torch.full((48,), 2))
    with pytest.raises(ValueError, match="Counts must be multiples of the run length 5, got 12"):
        OBC(size=5)(layer, EdgePerRow(), torch.full((8,), 12))
    for kind in (OBS, SparseGPT, OBC):
        for ridge in (0.0, -1e-4, float("nan")):
            with pytest.raises(ValueError, match="`ridge` must be a finite number > 0"):
                kind(ridge=ridge)
    with pytest.raises(ValueError, match="`size` must be a whole number >= 1, got 0"):
        OBC(size=0)
    assert {"OBS", "SparseGPT", "OBC"} <= set(JOINTS)


@pytest.mark.parametrize("stored", ["rows", "columns"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_layer_is_left_as_it_was(case, stored):
    """Also where its numbers need no conversion, and lie as the method wants them."""
    method, granularity = case[:2]
    torch.manual_seed(0)
    weight, x = torch.randn(6, 8, dtype=torch.float64), torch.randn(40, 8, dtype=torch.float64)
    weight = weight.T.contiguous().T if stored == "columns" else weight
    layer = Layer(name="fc", weight=weight, gram=x.T @ x / 40, samples=40)
    before = weight.clone(), layer.gram.clone()
    pools = granularity.pool("fc", weight)
    method(layer, granularity, torch.full((len(pools),), pools.shape[1] // 2))
    assert torch.equal(layer.weight, before[0])
    assert torch.equal(layer.gram, before[1])
