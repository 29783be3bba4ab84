"""Certificates of random networks under attack: nothing ever exceeds a rigorous value."""

import math

import pytest
import torch

import prunus
from prunus.guarantee.extract import extract
from prunus.theory.gap import local_bound
from prunus.theory.gap.per_sample import pairwise_unchanged, pointwise_bound
from prunus.theory.gap.rounding import rounding_at
from prunus.theory.gap.search import largest_gap
from prunus.theory.gap.stages import linear_stages, run
from reference.random_networks import RandomNetwork, changed

pytestmark = pytest.mark.filterwarnings(
    "ignore::prunus.theory.gap.VacuousWarning", "ignore:Using padding='same' with even kernel"
)


def attack(seed, steps):
    """Certify one network, ascend on the gap, hold every rigorous value against the networks."""
    dtype, scale = (torch.float32, torch.float64)[seed % 2], (0.1, 1.0, 10.0)[seed % 3]
    model = RandomNetwork(seed).to(dtype)
    other = changed(model, seed)
    generator = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(24, *model.shape, generator=generator)).to(dtype)
    before = x.clone()
    found = extract(model, other, x)
    certificate = prunus.certify(model, other, data=x)
    assert torch.equal(x, before)
    assert certificate.value < math.inf
    with torch.no_grad():
        dense, thin = (network(x.clone()).double().flatten(1) for network in (model, other))
    gaps = (dense - thin).norm(dim=1)
    assert certificate.gaps == pytest.approx(gaps.tolist(), rel=1e-9, abs=1e-12)

    centre = x.double().mean(dim=0, keepdim=True)
    reached = largest_gap(found.stages, certificate.radius, centre, starts=6, steps=steps,
                          generator=generator, samples=x.double())  # fmt: skip
    assert reached <= certificate.value
    bound = pointwise_bound(found.stages, x.double())
    unit = torch.finfo(dtype).eps / 2
    rounding = sum(rounding_at(found.stages, x.double(), unit, pruned=p) for p in (False, True))
    assert bool((gaps <= bound * (1 + 1e-12) + rounding).all())
    unchanged = pairwise_unchanged(found.stages, x.double(), rounding=rounding)
    assert torch.equal(dense.argmax(1)[unchanged], thin.argmax(1)[unchanged])
    square = certificate.of("mean_square")[0]
    assert float(gaps.square().mean().sqrt()) <= square.value

    ways = torch.randn(64, *model.shape, generator=generator, dtype=torch.float64)
    lengths = ways.flatten(1).norm(dim=1).reshape(-1, *[1] * len(model.shape))
    near = x[:1].double() + 0.3 * scale * ways / lengths
    around = (run(found.stages, near) - run(found.stages, near, pruned=True)).flatten(1)
    assert float(around.norm(dim=1).max()) <= local_bound(found.stages, x[0].double(), 0.3 * scale)
    return len(linear_stages(found.stages))


@pytest.mark.parametrize("seed", range(10))
def test_random_networks(seed):
    assert attack(seed, 25) >= 1


@pytest.mark.slow
def test_many_random_networks():
    """240 networks in about a minute and a half: ten of them are attacked in every run."""
    for seed in range(1000, 1240):
        attack(seed, 60)
