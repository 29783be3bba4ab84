"""Certificates of concrete networks: sound under ascent, exact where they can be."""

import itertools
import json
import math
import warnings

import pytest
import torch

from prunus.theory.gap import (
    Branches,
    InSampleWarning,
    LinearPair,
    Lipschitz,
    Pointwise,
    VacuousWarning,
    activation,
    certify,
    leaky_relu,
    local_bound,
)
from prunus.theory.gap.chain import chain_bound, chain_norm
from prunus.theory.gap.convolution import Geometry
from prunus.theory.gap.per_sample import first_order_gaps, pointwise_bound, sample_bound
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.search import largest_gap
from prunus.theory.gap.stages import run

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


def matrix(n, m, shift):
    return torch.sin(shift + torch.arange(n * m, dtype=torch.float64)).reshape(n, m) / math.sqrt(m)


def network(widths, *, phi="relu", prune=0.3, biases=True, seed=0, magnitude=True):
    generator = torch.Generator().manual_seed(seed)
    stages = []
    for i, (m, n) in enumerate(itertools.pairwise(widths)):
        w = torch.randn(n, m, dtype=torch.float64, generator=generator) * math.sqrt(2 / m)
        drop = w.abs() if magnitude else torch.rand(n, m, generator=generator).double()
        v = torch.where(drop <= drop.flatten().quantile(prune), 0.0, w)
        b = 0.1 * torch.randn(n, dtype=torch.float64, generator=generator) if biases else None
        c = None if b is None else b + 0.01
        stages.append(LinearPair(name=f"fc{i}", weight=w, pruned_weight=v, bias=b, pruned_bias=c))
        if i + 2 < len(widths):
            stages.append(Pointwise(name=f"act{i}", activation=activation(phi)))
    return stages


def start(stages, radius, centre=None):
    origin = torch.zeros(1, stages[0].weight.shape[1], dtype=torch.float64)
    origin = origin if centre is None else centre
    return Reach(dense=radius, pruned=radius, gap=0.0, centre=origin, pruned_centre=origin)


def test_reference_chain_norms():
    three = [matrix(6, 5, 1), matrix(7, 6, 2), matrix(4, 7, 3)]
    assert chain_norm(three, [activation("relu")] * 2) == pytest.approx(1.49557090, rel=1e-8)
    assert chain_norm(three, [activation("gelu")] * 2) == pytest.approx(2.03715017, rel=1e-6)
    product = math.prod(float(torch.linalg.svdvals(m)[0]) for m in three)
    assert product == pytest.approx(2.55558899, rel=1e-8)
    assert chain_norm(three, [activation("identity")] * 2) == pytest.approx(
        float(torch.linalg.svdvals(three[2] @ three[1] @ three[0])[0]), rel=1e-10
    )


PHIS = ["relu", "tanh", "sigmoid", "gelu", "silu", "softplus", "elu", "hardtanh"]


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("seed", range(7))
def test_ascent_never_exceeds_the_certificate(phi, seed):
    """56 nets over activations, depths 1 to 4, magnitude and random masks, random centres."""
    depth = 1 + seed % 4
    stages = network(
        [6, *([8] * depth), 3][: depth + 1], phi=phi, seed=seed, magnitude=seed % 2 == 0
    )
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(6, dtype=torch.float64, generator=generator)
    found = certify(stages, radius=1.3, centre=centre, search_steps=40)
    best = largest_gap(stages, 1.3, centre[None], starts=8, steps=80, generator=generator)
    assert best <= found.value
    assert found.statements[0].measured <= found.value
    assert 1 <= found.statements[0].tightness < 60


def test_ascent_reaches_the_norm_of_one_layer_and_would_catch_a_low_bound():
    """Negative control: the search finds 99.99 % of the true sup, so 0.99 of it would fail."""
    stages = network([9, 5], biases=False)
    true = float(torch.linalg.svdvals(stages[0].weight - stages[0].pruned_weight)[0])
    best = largest_gap(
        stages, 1.0, torch.zeros(1, 9).double(), generator=torch.Generator().manual_seed(0)
    )
    assert best == pytest.approx(true, rel=1e-4)
    found = certify(stages, radius=1.0, dtype=torch.float64)
    assert found.value == pytest.approx(true, rel=1e-9)  # one layer: ‖D‖ B


@pytest.mark.parametrize("seed", range(10))
def test_chain_is_below_the_product_and_above_the_truth(seed):
    stages = network([10, 12, 12, 4], seed=seed, biases=False)
    product = product_bound(stages, start(stages, 2.0)).gap
    chain = chain_bound(stages, 2.0, torch.zeros(1, 10).double())
    found = largest_gap(
        stages, 2.0, torch.zeros(1, 10).double(), generator=torch.Generator().manual_seed(seed)
    )
    assert found <= chain <= product


def aligned(kind):
    """Networks where the sup of the gap is the product bound, so that any slip is seen."""
    if kind == "linear":  # a common singular basis of a product of diagonal maps
        w = [torch.diag(torch.tensor([3.0, 1.0, 0.5])), torch.diag(torch.tensor([2.0, 1.5, 0.1]))]
        v = [w[0], torch.diag(torch.tensor([0.0, 1.5, 0.1]))]
    elif kind == "rank_one":
        a, b = torch.tensor([[0.6], [0.8]]), torch.tensor([[0.8], [0.6]])
        w, v = [a @ b.T, b @ a.T], [a @ b.T, torch.zeros(2, 2)]
    else:  # positive weights and inputs: ReLU is the identity along the top direction
        w = [torch.full((4, 4), 0.5), torch.full((4, 4), 0.25)]
        v = [torch.full((4, 4), 0.5), torch.zeros(4, 4)]
    return w, v


@pytest.mark.parametrize("kind", ["linear", "rank_one", "positive_relu"])
def test_tight_networks_in_float32_are_never_above(kind):
    """10⁴ inputs per net in float32, the aligned one among them: never above; bound within 1e-3."""
    w, v = aligned(kind)
    relu = kind == "positive_relu"
    stages = []
    for i in range(2):
        stages.append(LinearPair(name=f"fc{i}", weight=w[i], pruned_weight=v[i]))
        if relu and i == 0:
            stages.append(Pointwise(name="act", activation=activation("relu")))
    found = certify(stages, radius=1.0)
    _, _, right = torch.linalg.svd(w[0])
    top = right[0].abs() if relu else right[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10_000, len(top), generator=generator)
    x[::2] = top + 1e-3 * x[::2]  # many near the worst direction
    x = torch.cat([x / x.norm(dim=1, keepdim=True) * (1 - 1e-7), top[None] * (1 - 1e-7)])

    def forward(weights):
        h = x @ weights[0].T
        return (h.relu() if relu else h) @ weights[1].T

    gaps = (forward(w) - forward(v)).norm(dim=1)
    assert float(gaps.max()) <= found.value
    assert float(gaps.max()) >= found.value * (1 - 1e-3)


def test_nothing_pruned_is_zero_and_all_pruned_is_trivial():
    stages = network([5, 6, 3], prune=0.0)
    same = [
        s if isinstance(s, Pointwise) else LinearPair(
            name=s.name, weight=s.weight, pruned_weight=s.weight, bias=s.bias, pruned_bias=s.bias
        )
        for s in stages
    ]  # fmt: skip
    assert certify(same, radius=1.0).value == 0
    gone = [
        LinearPair(name=s.name, weight=s.weight, pruned_weight=0 * s.weight)
        if isinstance(s, LinearPair)
        else s
        for s in stages
    ]
    reach = product_bound(gone, start(gone, 1.0))
    assert reach.gap <= reach.trivial


def test_scaling_and_an_identity_layer():
    stages = network([5, 6, 3], biases=False)
    base = product_bound(stages, start(stages, 1.0)).gap
    assert product_bound(stages, start(stages, 2.0)).gap == pytest.approx(2 * base, rel=1e-12)
    eye = LinearPair(name="eye", weight=torch.eye(3).double(), pruned_weight=torch.eye(3).double())
    assert product_bound([*stages, eye], start(stages, 1.0)).gap == pytest.approx(base, rel=1e-10)
    scaled = [
        LinearPair(name=s.name, weight=3 * s.weight, pruned_weight=3 * s.pruned_weight)
        if isinstance(s, LinearPair)
        else s
        for s in stages
    ]
    assert product_bound(scaled, start(stages, 1.0)).gap == pytest.approx(9 * base, rel=1e-12)


def conv_net(seed=0):
    g = torch.Generator().manual_seed(seed)

    def pair(name, *shape, geometry=None):
        w = torch.randn(*shape, dtype=torch.float64, generator=g) / math.sqrt(math.prod(shape[1:]))
        v = torch.where(w.abs() < w.abs().flatten().quantile(0.2), 0.0, w)
        b = 0.1 * torch.randn(shape[0], dtype=torch.float64, generator=g)
        return LinearPair(
            name=name, weight=w, pruned_weight=v, bias=b, pruned_bias=b, geometry=geometry
        )

    same = Geometry(size=(8, 8), padding=((1, 1), (1, 1)))
    relu = Pointwise(name="relu", activation=activation("relu"))
    branch = (pair("b1", 4, 4, 3, 3, geometry=same), relu, pair("b2", 4, 4, 3, 3, geometry=same))
    pool = Lipschitz(name="pool", gain=0.5, function=lambda x: torch.nn.functional.avg_pool2d(x, 2))
    flatten = Lipschitz(name="identity", gain=1, function=lambda x: x.flatten(1))
    return (
        pair("stem", 4, 1, 3, 3, geometry=same),
        relu,
        Branches(name="block", branch=branch),
        relu,
        pool,
        flatten,
        pair("head", 3, 64),
    )


@pytest.mark.parametrize("seed", range(2))
def test_convolutions_residuals_and_pooling_are_sound(seed):
    stages = conv_net(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, 1, 8, 8, generator=generator).double()
    found = certify(stages, radius=3.0, samples=x, generator=generator, search_steps=15)
    assert found.statements[0].tightness >= 1
    assert set(found.per_layer) == {"stem", "b1", "b2", "head"}
    mean = found.of("mean_square")[0]
    assert mean.measured <= mean.value


def test_statements_on_samples():
    stages = network([6, 20, 20, 4], phi="tanh", seed=3, prune=0.1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, dtype=torch.float64, generator=generator)
    gaps = (run(stages, x) - run(stages, x, pruned=True)).norm(dim=1)
    assert bool((pointwise_bound(stages, x) >= gaps).all())
    bound, _ = sample_bound(stages, x)
    rms = float(gaps.square().mean().sqrt())
    assert rms <= bound
    predicted = float(first_order_gaps(stages, x).square().mean().sqrt())
    assert predicted == pytest.approx(rms, rel=0.1)
    found = certify(stages, radius=float(x.norm(dim=1).max()), samples=x, covers_support=True)
    kinds = {s.kind for s in (*found.statements, *found.held_out)}
    assert kinds == {"sup", "mean_square", "predicted", "changed", "quantile", "exceeds", "mean"}
    assert all(s.status == "PRED" for s in found.of("predicted"))
    assert all(s.measured <= s.value for s in found.statements if s.kind != "predicted")
    stored = json.loads(found.to_json())
    assert stored["value"] == found.value
    assert len(stored["gaps"]) == 400
    assert "prediction" in found.summary()
    assert sum(share for _, share in found.statements[0].ledger) == found.statements[0].delta == 0
    with pytest.warns(InSampleWarning, match="in-sample and guarantee nothing"):
        inside = certify(stages, radius=1.0, samples=x, in_sample=True)
    assert all(s.in_sample and s.status != "RIG" for s in inside.held_out)


def test_local_bound_holds_around_a_point():
    stages = network([6, 10, 3], seed=1)
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(6, dtype=torch.float64, generator=generator)
    bound = local_bound(stages, point, 0.1)
    assert largest_gap(stages, 0.1, point[None], generator=generator) <= bound
    assert bound < certify(stages, radius=float(point.norm()) + 0.1).value


def test_vacuous_is_said():
    stages = network([6, 10, 10, 10, 3], seed=1, prune=0.8, biases=False)
    x = torch.eye(6, dtype=torch.float64)
    with pytest.warns(VacuousWarning, match=r"vacuous: it is no smaller than .* for any pruning"):
        certify(stages, radius=1.0, samples=x)
    stages = network([6, 10, 10, 10, 3], seed=1, prune=0.4, biases=False)
    with pytest.warns(VacuousWarning, match="vacuous: it is no smaller than the outputs"):
        found = certify(stages, radius=1.0, samples=x)
    assert found.statements[0].vacuous
    assert "VACUOUS" in found.summary()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not certify(network([6, 10, 3], prune=0.02), radius=1.0).statements[0].vacuous


def test_bad_input_names_the_layer():
    good = network([4, 5, 2])
    wrong = LinearPair(name="fc0", weight=torch.ones(5, 4), pruned_weight=torch.ones(5, 3))
    with pytest.raises(ValueError, match="layer 'fc0' has weights of shape"):
        certify([wrong, *good[1:]], radius=1.0)
    bad = LinearPair(
        name="fc0", weight=torch.full((5, 4), math.nan), pruned_weight=torch.ones(5, 4)
    )
    with pytest.raises(ValueError, match=r"`fc0.weight` must be finite"):
        certify([bad, *good[1:]], radius=1.0)
    with pytest.raises(ValueError, match="`radius` must be a finite number > 0"):
        certify(good, radius=0.0)
    with pytest.raises(ValueError, match="`delta` must lie"):
        certify(good, radius=1.0, delta=1.0)
    with pytest.raises(ValueError, match="shape of an input is unknown"):
        certify(conv_net(), radius=1.0)


def test_leaky_relu_slopes():
    stages = network([6, 8, 3], seed=2)
    leaky = [
        Pointwise(name="a", activation=leaky_relu(0.2)) if isinstance(s, Pointwise) else s
        for s in stages
    ]
    assert certify(leaky, radius=1.0, search_steps=60).statements[0].tightness >= 1
