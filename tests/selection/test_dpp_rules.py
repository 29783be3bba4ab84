"""The determinantal selections: their law in each row, their counts, and how large layers go."""

import numpy as np
import pytest
import torch

import prunus
from prunus import dpp
from prunus.layer import Layer
from prunus.selection import KDPP, DPPMap, DPPPoisson
from prunus.selection.dpp_sets import EXACT_ITEMS, Pool, each_pool, how_to_draw
from reference import chi_square
from reference import dpp as slow

RULES = {
    "k-dpp": KDPP(bandwidth=0.5),
    "k-dpp linear": KDPP(shape="linear", jitter=0.1),
    "k-dpp median": KDPP(),
    "map": DPPMap(KDPP(bandwidth=0.5)),
    "poisson": DPPPoisson(KDPP(bandwidth=0.5)),
}


def a_layer(rows=3, n=12, seed=0, groups=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, n, 200))
    gram = torch.tensor(x @ x.transpose(0, 2, 1) / 200)
    weight = torch.tensor(rng.normal(size=(rows * groups, n)))
    return Layer(
        name="fc", weight=weight, gram=gram[0] if groups == 1 else gram, groups=groups, samples=200
    )


def choose(rule, layer, kept, seed=0, scores=None):
    g = torch.Generator().manual_seed(seed)
    scores = torch.zeros(layer.weight.shape) if scores is None else scores
    return rule(scores, torch.as_tensor(kept), layer=layer, generator=g)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", RULES)
def test_counts_are_exact_and_notes_are_plain(name, groups):
    layer = a_layer(groups=groups)
    kept = torch.arange(3 * groups) * 2 + 1
    choice = choose(RULES[name], layer, kept)
    assert torch.equal(choice.mask.sum(1), kept)
    assert choice.notes["offdiag_max"] > 0
    again = choose(RULES[name], layer, kept)
    assert torch.equal(choice.mask, again.mask)
    assert choose(RULES[name], layer, [0] * (3 * groups)).mask.sum() == 0
    assert choose(RULES[name], layer, [12] * (3 * groups)).mask.all()


def test_each_row_follows_its_own_k_dpp():
    layer, rule = a_layer(rows=1, n=8), KDPP(bandwidth=0.5)
    items = (layer.weight[0] ** 2 * layer.gram.diagonal()).numpy()
    both = (layer.gram * torch.outer(layer.weight[0], layer.weight[0])).numpy()
    kernel = np.exp(-0.5 * (items[:, None] + items - 2 * both)) + 0.01 * np.eye(8)
    g = torch.Generator().manual_seed(1)
    scores, kept = torch.zeros(1, 8), torch.tensor([3])

    def draw():
        mask = rule(scores, kept, layer=layer, generator=g).mask[0]
        return tuple(mask.nonzero().flatten().tolist())

    p = chi_square.p_value(draw, slow.sets(8, 3), slow.k_dpp(kernel, 3), 2_500)
    assert p > 1e-6, f"p = {p:.2g}; a right sampler fails once in 10⁶ seeds"


def test_units_removed_before_stay_out():
    layer = a_layer()
    scores = torch.zeros(3, 12)
    scores[:, ::2] = -torch.inf
    for rule in RULES.values():
        mask = choose(rule, layer, [4, 5, 6], scores=scores).mask
        assert not mask[:, ::2].any()
        assert mask.sum(1).tolist() == [4, 5, 6]


def test_map_is_the_greedy_mode_and_fills_up():
    layer = a_layer(rows=1)
    kernel = dpp.edge_kernel(layer.gram, layer.weight[0], bandwidth=0.5)
    expected = dpp.greedy_map(kernel, 5)
    assert set(
        choose(DPPMap(KDPP(bandwidth=0.5)), layer, [5]).mask[0].nonzero().flatten().tolist()
    ) == set(expected.tolist())
    flat = Layer(name="fc", weight=torch.zeros(1, 6), gram=torch.eye(6, dtype=torch.float64))
    choice = choose(DPPMap(KDPP(jitter=0.0)), flat, [3])
    assert choice.mask[0].tolist() == [True, True, True, False, False, False]
    assert choice.notes["filled"] == "rank below k: lowest index"


def test_poisson_has_the_marginals_of_the_k_dpp():
    layer = a_layer(rows=1, n=40, seed=2)
    kernel = dpp.edge_kernel(layer.gram, layer.weight[0], bandwidth=0.5)
    exact = dpp.KDPP(kernel).inclusion(16).numpy()
    hits, rule = np.zeros(40), DPPPoisson(KDPP(bandwidth=0.5))
    g = torch.Generator().manual_seed(2)
    for _ in range(600):
        hits += rule(
            torch.zeros(1, 40), torch.tensor([16]), layer=layer, generator=g
        ).mask[0].numpy()  # fmt: skip
    # standard error of a mean of 600 coins is at most 0.021; 5 of them and the approximation's own
    assert abs(hits / 600 - exact).max() < 0.11


def test_degenerate_kernels_are_named():
    layer = a_layer()
    assert choose(KDPP(bandwidth=1e6), layer, [3] * 3).notes["kernel"] == "diagonal"
    assert choose(KDPP(bandwidth=1e-6), layer, [3] * 3).notes["kernel"] == "close to rank one"


def test_the_rule_for_large_layers():
    assert how_to_draw(784, 392, 4e9) == "exact"
    assert how_to_draw(4608, 2304, 4e9) == "exact"  # 512 channels of 3 × 3 taps
    assert how_to_draw(EXACT_ITEMS + 1, 400, 4e9) == "chain"
    assert how_to_draw(8192, 4096, 4e9) == "poisson"
    assert how_to_draw(16384, 1000, 4e9) == "chain"
    assert how_to_draw(16384, 8192, 8e9) == "poisson"
    assert how_to_draw(16384, 8192, 4e9) == "chain"
    with pytest.raises(ValueError, match=r"needs 3\.8 GB and may take 1\.0 GB\. Raise `memory`"):
        how_to_draw(16384, 8192, 1e9)


@pytest.mark.parametrize(("memory", "kept", "way"), [
    (4e9, 12, "exact"), (8 * 3 * 200**2, 12, "swap chain of 400 steps, approximate"),
    (8 * 3 * 200**2, 120, "Poisson approximation"),
])  # fmt: skip
def test_the_result_says_how_it_was_drawn(memory, kept, way):
    layer = a_layer(rows=1, n=200)
    choice = choose(KDPP(bandwidth=0.5, memory=memory), layer, [kept])
    assert choice.notes["draw"] == way
    assert int(choice.mask.sum()) == kept


@pytest.mark.parametrize(("memory", "kept", "way"), [
    (4e9, 12, None), (8 * 3 * 200**2, 12, "drawn by swap chain of 400 steps, approximate: 0"),
    (8 * 3 * 200**2, 120, "drawn by Poisson approximation: 0"),
])  # fmt: skip
def test_summary_and_report_say_how_it_was_drawn(memory, kept, way, tmp_path):
    g = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(200, 3)).double()
    x = torch.randn(100, 200, dtype=torch.float64, generator=g)
    rule = KDPP(bandwidth=0.5, memory=memory)
    recipe = prunus.Recipe(granularity=prunus.recipes["dpp-edge"].granularity, selection=rule)
    pruned = prunus.prune(model, recipe, kept / 200, data=x)
    assert pruned.layers["0"].mask.sum(1).tolist() == [kept] * 3
    page = pruned.report(tmp_path / "report.html").read_text()
    for text in (" ".join(pruned.summary().split()), page):
        assert ("drawn by" in text) == (way is not None)
        assert way is None or way in text


@pytest.mark.parametrize(("n", "k", "memory", "way"), [
    (4608, 2304, 4e9, "exact"), (4608, 460, 1e9, "chain"), (4608, 2304, 1e9, "poisson"),
    (4608, 2304, 4e8, "chain"), (16384, 1638, 4e9, "chain"), (16384, 1639, 7e9, "poisson"),
    (16384, 8192, 1e10, "poisson"),
])  # fmt: skip
def test_no_way_is_taken_that_needs_more_than_the_memory(n, k, memory, way):
    """The stated needs, counted here by hand: matrices of n x n or k x k of 8 bytes."""
    assert how_to_draw(n, k, memory) == way
    need = {"exact": 6 * n * n + k * n, "poisson": 3 * n * n, "chain": 7 * k * k + 8 * n}[way]
    assert 8 * need <= memory
    least = 8 * min(3 * n * n, 7 * k * k + 8 * n)
    with pytest.raises(ValueError, match="Raise `memory`, or choose another selection"):
        how_to_draw(n, k, least - 1)


@pytest.mark.parametrize(("n", "k"), [(200, 50), (200, 150)])
def test_draws_are_exact_as_long_as_they_fit(n, k):
    least = 8 * (6 * n * n + 50 * n)  # min(k, n - k) columns beside six matrices
    assert how_to_draw(n, k, least) == "exact"
    assert how_to_draw(n, k, least - 1) == "poisson"
    assert how_to_draw(EXACT_ITEMS, k, 1e12) == "exact"
    assert how_to_draw(EXACT_ITEMS + 1, EXACT_ITEMS, 1e12) == "poisson"


@pytest.mark.parametrize("shape", ["gaussian", "linear"])
def test_kernels_that_are_never_formed_have_the_entries_of_those_that_are(shape):
    layer = a_layer(rows=1)
    pool = Pool(layer.gram, layer.weight[0], KDPP(shape=shape, bandwidth=0.5, jitter=0.3))
    every = np.arange(12)
    formed = pool.matrix()
    np.testing.assert_allclose(pool.entries()(every, every), formed.numpy(), rtol=1e-12)
    plain = Pool(layer.gram, layer.weight[0], KDPP(shape=shape, bandwidth=0.5, jitter=0.1))
    rise = (formed - plain.matrix()).diagonal()
    torch.testing.assert_close(rise / rise[0], torch.ones(12, dtype=torch.float64))
    assert float(rise[0]) > 0


@pytest.mark.parametrize("rule", [DPPMap, DPPPoisson])
def test_rules_with_one_way_say_what_memory_they_need(rule, monkeypatch):
    layer = a_layer(rows=1, n=200)
    assert int(choose(rule(KDPP(memory=2e6)), layer, [12]).mask.sum()) == 12
    monkeypatch.setattr(Pool, "matrix", None)  # refused before anything is formed
    with pytest.raises(ValueError, match=r"GB for 200 items and may take 0\.0009 GB\. Raise"):
        choose(rule(KDPP(memory=9e5)), layer, [12])


def test_the_chain_never_forms_the_kernel(monkeypatch):
    monkeypatch.setattr(Pool, "matrix", None)
    layer = a_layer(rows=1, n=200)
    for shape in ("gaussian", "linear"):
        rule = KDPP(shape=shape, memory=8 * 3 * 200**2, jitter=0.1)
        assert int(choose(rule, layer, [12]).mask.sum()) == 12


def test_nodes_by_both_kernels():
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)
    ).double()  # fmt: skip
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for rule in (KDPP(), KDPP(kernel="activation"), DPPMap(), DPPPoisson()):
        recipe = prunus.Recipe(granularity=prunus.recipes["dpp-node"].granularity, selection=rule)
        pruned = prunus.prune(model, recipe, 0.5, data=x)
        assert 0 < int(pruned.layers["0"].mask.any(1).sum()) < 12


def test_recipes():
    for name in ("dpp-edge", "dpp-node", "dpp-map", "dpp-poisson", "obs", "sparsegpt"):
        assert name in prunus.recipes
        plain, refit = prunus.recipes[name], prunus.recipes[f"{name}+ls"]
        assert eval_(repr(plain)) == plain
        assert repr(refit.compensation).startswith("LeastSquares")


def eval_(text):
    from prunus.recipe import parse

    return parse(text)


def test_refusals():
    layer = a_layer()
    with pytest.raises(
        ValueError, match=r"draws one set per output row of layer 'fc', but its pool"
    ):
        each_pool(torch.zeros(1, 36), torch.tensor([5]), layer, KDPP(), lambda pool, k: None)
    with pytest.raises(ValueError, match=r"draws one set per output row or per group of nodes"):
        prunus.Recipe(selection=DPPMap())
    with pytest.raises(ValueError, match="Layer 'fc' has no statistic 'gram'"):
        choose(KDPP(), Layer(name="fc", weight=layer.weight), [3] * 3)
    with pytest.raises(ValueError, match="`memory` must be a finite number > 0"):
        KDPP(memory=0)
