"""Certificates against what really happens: tight networks, trained and pruned ones, rounding."""

import math

import pytest
import scipy.stats as stats
import torch

import prunus
from prunus.reproduce.gap_digits import digits_networks
from prunus.theory.gap import LinearPair, Pointwise, activation, certify, custom_activation
from prunus.theory.gap.convolution import Geometry, conv_norm
from prunus.theory.gap.given_weights import drawn_conv_norm, drawn_sup
from prunus.theory.gap.per_sample import _injections, pairwise_unchanged, pointwise_bound
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.rounding import rounding_error
from prunus.theory.gap.search import largest_gap
from prunus.theory.gap.sensitivity import (
    UnreachedWarning,
    curvatures,
    predicted_diagonal,
    predicted_kronecker,
    predicted_rescaled,
    sensitivities,
)
from prunus.theory.gap.stages import layer_norms, run
from reference.gap import conv_matrix

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


def tight_network(kind, generator):
    """Two layers whose largest gap is the product bound, and the input where it is reached.

    The first layer stays; of the second the top direction goes. Float32 weights.
    """

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    n = int(torch.randint(2, 9, (1,), generator=generator))
    if kind == "linear":  # permuted diagonals: singular vectors are coordinates
        first, second = 0.2 + uniform(n), 0.2 + uniform(n)
        top = int(first.argmax())
        second[top] = float(second.max()) + 0.1
        kept = second.clone()
        kept[top] = 0
        order = torch.randperm(n, generator=generator)
        w = [torch.diag(first)[order], torch.diag(second)[:, order]]
        v = torch.diag(kept)[:, order]
        x = torch.zeros(n, dtype=torch.float64)
        x[top] = 1
    else:
        a, b, d = (0.05 + uniform(n) for _ in range(3))
        if kind == "rank one":  # signs at will, aligned through the hidden vector
            a, b, d = (t * torch.where(uniform(n) < 0.5, -1.0, 1.0) for t in (a, b, d))
        w = [torch.outer(b, a), torch.outer(d, b)]
        v = torch.zeros(n, n, dtype=torch.float64)
        x = a / a.norm()
    return [t.float() for t in (*w, v)], x


def check_tight(kind, draws, seed):
    """Never below the gap reached in float32; and never above 1 + 1e-4 times it."""
    generator = torch.Generator().manual_seed(seed)
    relu = kind == "positive ReLU"
    worst = math.inf
    for _ in range(draws):
        (first, second, kept), x = tight_network(kind, generator)
        stages = [LinearPair(name="a", weight=first, pruned_weight=first)]
        if relu:
            stages.append(Pointwise(name="r", activation=activation("relu")))
        stages.append(LinearPair(name="b", weight=second, pruned_weight=kept))
        stages = [
            s if isinstance(s, Pointwise)
            else LinearPair(name=s.name, weight=s.weight.double(),
                            pruned_weight=s.pruned_weight.double())
            for s in stages
        ]  # fmt: skip
        origin = torch.zeros(1, len(x), dtype=torch.float64)
        start = Reach(dense=1.0, pruned=1.0, gap=0.0, centre=origin, pruned_centre=origin)
        exact = product_bound(stages, start, layer_norms).gap
        bound = exact + rounding_error(stages, 1.0, origin, 2.0**-24)
        h = first @ x.float()
        h = h.relu() if relu else h
        reached = float((second @ h - kept @ h).double().norm()) / float(x.float().double().norm())
        assert reached <= bound
        worst = min(worst, reached / exact)
    assert worst > 1 - 1e-4  # the nets are tight: a bound 0.01 % lower would have been caught


KINDS = ["linear", "rank one", "positive ReLU"]


@pytest.mark.parametrize("kind", KINDS)
def test_tight_networks_are_never_above_the_bound(kind):
    check_tight(kind, 100, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_tight_networks_are_never_above_the_bound_in_ten_thousand_draws(kind):
    check_tight(kind, 10_000, 1)


def test_rounding_is_needed():
    """In float32 tight networks exceed the bound of real arithmetic: the term is no ornament."""
    generator = torch.Generator().manual_seed(0)
    above = 0
    for _ in range(200):
        (first, second, kept), x = tight_network("positive ReLU", generator)
        h = (first @ x.float()).relu()
        reached = float((second @ h - kept @ h).double().norm()) / float(x.float().double().norm())
        true = math.prod(float(torch.linalg.matrix_norm(t.double(), 2)) for t in (first, second))
        above += reached > true
    assert above > 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ascent_never_exceeds_certificates_of_trained_and_pruned_networks():
    """Digits MLP and CNN × recipes × densities, 60 pruned nets: ascent and data stay below."""
    from prunus.bench.data.tasks import task
    from prunus.bench.zoo import digits_cnn, digits_mlp
    from prunus.guarantee.extract import extract

    data = task("digits-mlp").data(data_dir=None)
    fit, fresh = data.x_train[:300], data.x_test[:200]
    count = 0
    for make in (digits_mlp, digits_cnn):
        model = make().eval()
        for recipe in ("magnitude", "magnitude+ls", "wanda", "random-edge", "importance-node",
                       "magnitude-global"):  # fmt: skip
            for density in (0.95, 0.8, 0.6, 0.4, 0.2):
                pruned = prunus.prune(model, recipe, density, data=fit)
                found = prunus.certify(model, pruned, data=fresh)
                stages = extract(model, pruned.model, fresh).stages
                centre = fresh.double().mean(dim=0, keepdim=True)
                sup = largest_gap(
                    stages, found.radius, centre, starts=4, steps=15, samples=fresh.double(),
                    generator=torch.Generator().manual_seed(count),
                )  # fmt: skip
                with torch.no_grad():
                    gaps = (model(fresh) - pruned.model(fresh)).norm(dim=1)
                assert max(sup, float(gaps.max())) <= found.value, (recipe, density)
                mean = found.of("mean_square")[0]
                assert mean.measured <= mean.value
                count += 1
    assert count == 60


def test_silent_units_carry_no_gap():
    """Coordinate bounds of ReLU units: below the plain bound, above the truth at each input."""
    generator = torch.Generator().manual_seed(0)
    stages = []
    for i, (m, n) in enumerate([(8, 60), (60, 60), (60, 4)]):
        w = torch.randn(n, m, dtype=torch.float64, generator=generator) / math.sqrt(m)
        b = torch.randn(n, dtype=torch.float64, generator=generator) - 2.0 * (i < 2)
        v = torch.where(w.abs() < 0.02, 0.0, w)
        stages.append(LinearPair(name=f"fc{i}", weight=w, pruned_weight=v, bias=b, pruned_bias=b))
        stages.append(Pointwise(name=f"r{i}", activation=activation("relu")))
    stages = stages[:-1]
    x = torch.randn(200, 8, dtype=torch.float64, generator=generator)
    gaps = (run(stages, x) - run(stages, x, pruned=True)).norm(dim=1)
    bound = pointwise_bound(stages, x)
    rounding = 1 + 1e-9  # F − f loses digits where only the last matrix errs, an equality
    assert bool((gaps <= bound * rounding).all())
    # the same function under another name, of which only the slopes are known
    unknown = custom_activation("unknown", torch.relu, 0.0, 1.0)
    plain = [
        Pointwise(name="other", activation=unknown) if isinstance(s, Pointwise) else s
        for s in stages
    ]
    start = torch.zeros(len(x), dtype=torch.float64)
    loose = _injections(plain, x, layer_norms, start)[1]
    tight = _injections(stages, x, layer_norms, start)[1]
    assert bool((gaps <= tight * rounding).all())
    assert bool((tight <= loose * (1 + 1e-12)).all())
    assert float(tight.mean()) < 0.8 * float(loose.mean())
    safe = pairwise_unchanged(stages, x)
    same = run(stages, x).argmax(1) == run(stages, x, pruned=True).argmax(1)
    assert bool(same[safe].all())
    assert safe.double().mean() > 0.5


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (2, 2, 1), (1, 1, 2)])
def test_convolutions_before_the_mask_is_drawn(rescaled, groups, stride, dilation):
    """300 masks at δ = 0.1 (false alarm 1e-6), and 0.9 × the 80 % quantile is caught."""
    generator = torch.Generator().manual_seed(stride + dilation)
    kernel = torch.randn(4, 4 // groups, 3, 3, dtype=torch.float64, generator=generator)
    shape = Geometry(
        size=(6, 6), stride=(stride, stride), padding=((1, 1), (1, 1)),
        dilation=(dilation, dilation), groups=groups,
    )  # fmt: skip
    bound = drawn_conv_norm(kernel, 0.8, 0.1, shape, rescaled=rescaled).value
    wide = kernel.new_zeros(4, 4 // groups, 2 * dilation + 1, 2 * dilation + 1)
    norms = []
    for _ in range(300):
        mask = torch.rand(kernel.shape, dtype=torch.float64, generator=generator) < 0.8
        gone = kernel * (1 - mask / 0.8) if rescaled else kernel * ~mask
        wide[:, :, ::dilation, ::dilation] = gone
        norms.append(float(torch.linalg.matrix_norm(conv_matrix(wide, 6, stride, 1, groups), 2)))
    seen = torch.tensor(norms, dtype=torch.float64)
    assert int((seen > bound).sum()) <= stats.binom.isf(1e-6, 300, 0.1)
    assert int((seen > 0.9 * seen.quantile(0.8)).sum()) > stats.binom.isf(1e-3, 300, 0.1)
    assert bound < 8 * float(seen.quantile(0.9))
    exact = drawn_conv_norm(
        kernel, 0.8, 0.1, shape, rescaled=rescaled, kept=round(0.8 * kernel.numel())
    )
    assert exact.value > bound
    nothing = drawn_conv_norm(kernel, 1.0, 0.1, shape, rescaled=rescaled)
    assert nothing.value == 0
    assert conv_norm(kernel, shape).value > 0


def test_a_chain_of_convolutions_before_the_mask_is_drawn():
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(3, 1, 3, 3, dtype=torch.float64, generator=generator) / 3
    shape = Geometry(size=(5, 5), padding=((1, 1), (1, 1)))
    stages = [LinearPair(name="conv", weight=kernel, pruned_weight=kernel, geometry=shape)]
    found = drawn_sup(stages, {"conv": 0.9}, radius=2.0, centre=torch.zeros(1, 5, 5), delta=0.1)
    alone = drawn_conv_norm(kernel, 0.9, 0.1, shape).value
    assert found.value == pytest.approx(2 * alone, rel=1e-12)
    with pytest.raises(ValueError, match="shape of an input is unknown"):
        drawn_sup(stages, {"conv": 0.9}, radius=2.0)


def test_kronecker_and_diagonal_predictions():
    """On a trained digits network, magnitude masks: within 15 % at density 0.9 (first order)."""
    (net,) = digits_networks(["relu2"], seed=0, progress=False)
    masked = []
    for s in net.stages:
        if isinstance(s, LinearPair):
            cut = s.weight.abs().flatten().quantile(0.1)
            v = torch.where(s.weight.abs() < cut, 0.0, s.weight)
            s = LinearPair(
                name=s.name, weight=s.weight, pruned_weight=v, bias=s.bias, pruned_bias=s.bias
            )
        masked.append(s)
    gap = run(masked, net.fit) - run(masked, net.fit, pruned=True)
    rms = float(gap.square().sum(dim=1).mean().sqrt())
    kronecker = math.sqrt(sum(predicted_kronecker(masked, curvatures(masked, net.fit)).values()))
    assert kronecker == pytest.approx(rms, rel=0.15)
    reaction = sensitivities(masked, net.fit)
    with pytest.warns(UnreachedWarning, match="no effect on these samples"):  # pixels always 0
        diagonal = predicted_diagonal(masked, reaction)
    assert diagonal == pytest.approx(rms, rel=0.3)


@pytest.mark.filterwarnings("ignore::prunus.theory.gap.sensitivity.UnreachedWarning")
def test_random_masks_of_a_digits_network_are_predicted():
    """Rescaled random masks, densities 0.99, 0.9 and 0.7, 60 draws: within 12 %."""
    (net,) = digits_networks(["relu2"], seed=0, progress=False)
    pairs = [s for s in net.stages if isinstance(s, LinearPair)]
    weights = {p.name: p.weight for p in pairs}
    reaction = sensitivities(net.stages, net.fit)
    generator = torch.Generator().manual_seed(0)
    for p in (0.99, 0.9, 0.7):
        squares = []
        for _ in range(60):
            masked = [
                LinearPair(
                    name=s.name, weight=s.weight, bias=s.bias, pruned_bias=s.bias,
                    pruned_weight=s.weight * (torch.rand(s.weight.shape, generator=generator) < p)
                    / p,
                )
                if isinstance(s, LinearPair) else s for s in net.stages
            ]  # fmt: skip
            gap = run(masked, net.fresh) - run(masked, net.fresh, pruned=True)
            squares.append(float(gap.square().sum(dim=1).mean()))
        rms = math.sqrt(sum(squares) / 60)
        assert predicted_rescaled(weights, reaction, dict.fromkeys(weights, p)) == pytest.approx(
            rms, rel=0.12
        )


def test_permuting_units_changes_nothing():
    generator = torch.Generator().manual_seed(3)
    w = [torch.randn(9, 6, dtype=torch.float64, generator=generator),
         torch.randn(4, 9, dtype=torch.float64, generator=generator)]  # fmt: skip
    v = [torch.where(t.abs() < 0.3, 0.0, t) for t in w]
    order = torch.randperm(9, generator=generator)

    def value(first, first_kept, second, second_kept):
        stages = [
            LinearPair(name="a", weight=first, pruned_weight=first_kept),
            Pointwise(name="r", activation=activation("relu")),
            LinearPair(name="b", weight=second, pruned_weight=second_kept),
        ]
        return certify(stages, radius=1.0, search_steps=0).value

    plain = value(w[0], v[0], w[1], v[1])
    moved = value(w[0][order], v[0][order], w[1][:, order], v[1][:, order])
    assert moved == pytest.approx(plain, rel=1e-9)
    turned = value(w[0], v[0], w[1], w[1])
    assert turned < plain
