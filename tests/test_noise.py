"""Networks that draw random numbers in evaluation mode: results follow the seed alone."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

import prunus
from prunus.allocation import Global
from prunus.ambient import plainly
from prunus.calibration.batches import call
from prunus.coupling import couple
from prunus.noise import draws, passed
from prunus.schedules import AtInit
from prunus.scores import SynFlow
from prunus.surgery import compact
from prunus.surgery.pinned import PinnedChannels


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 14), nn.Linear(14, 5)

    def inside(self, h):
        return h

    def forward(self, x):
        h = self.inside(functional.relu(self.a(x)))
        return self.c(functional.relu(self.b(h)))


class Kept(Layers):
    """Dropout that stays on."""

    def inside(self, h):
        return functional.dropout(h, 0.5, training=True)


class Fused(Layers):
    """The same by the kernel that processors other than CPUs take."""

    def inside(self, h):
        return torch.native_dropout(h, 0.5, True)[0]


class Resampled(Layers):
    """The reparameterisation of a variational autoencoder."""

    def inside(self, h):
        return h + torch.randn_like(h) * torch.exp(0.5 * h)


class Gumbel(Layers):
    def inside(self, h):
        return functional.gumbel_softmax(h, hard=True)


class Made(Layers):
    """A generator that makes a part of its input."""

    def forward(self, x):
        return super().forward(torch.cat([torch.randn(len(x), 6), x[:, :6]], 1))


class Deep(Layers):
    """Whole samples leave a branch out."""

    def inside(self, h):
        return h * torch.bernoulli(torch.full((len(h), 1), 0.7))


class Late(Layers):
    def forward(self, x):
        y = super().forward(x)
        return y + 0.1 * torch.randn_like(y)


NETS = {kind.__name__: kind for kind in (Kept, Fused, Resampled, Gumbel, Made, Deep, Late)}
PATHS = prunus.Recipe(score=SynFlow(), allocation=Global(minimum=0), schedule=AtInit(rounds=2))
NOISY = pytest.mark.parametrize("name", NETS)


def made(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETS[name]().eval()


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(16, 12, generator=generator),
            torch.randint(5, (16,), generator=generator),
        )
        for _ in range(count)
    ]


def loss_on(model):
    with torch.no_grad():
        return float(sum(functional.cross_entropy(model(x), y) for x, y in batches()))


def pruned(model, recipe, density=0.5, seed=3, **options):
    found = prunus.prune(
        model, recipe, density, data=batches(), seed=seed, progress=False, **options
    )
    errors = [layer.error for layer in found.layers.values()]
    return [*found.model.state_dict().values(), str(errors), str(dict(found.metrics))]


def compacted(model):
    found = prunus.prune(model, "taylor", 0.5, data=batches(), progress=False)
    return [*found.compact().state_dict().values()]


def compared(model):
    found = prunus.compare(
        model, ["wanda"], [0.5], data=batches(), evaluate=loss_on, seeds=1, progress=False
    )
    return [str([{k: v for k, v in r.items() if "seconds" not in k} for r in found.records])]


def scanned(model):
    found = prunus.sensitivity(
        model, "wanda", [0.5], data=batches(), evaluate=loss_on, progress=False
    )
    return [str(found.records)]


CALLS = {
    "statistics": lambda m: pruned(m, "wanda"),
    "layer by layer": lambda m: pruned(m, "sparsegpt"),
    "gradients": lambda m: pruned(m, "snip"),
    "second derivatives": lambda m: pruned(m, "grasp"),
    "paths": lambda m: pruned(m, PATHS),
    "evaluate": lambda m: pruned(m, "wanda", evaluate=loss_on),
    "drop": lambda m: pruned(m, "wanda", prunus.Budget(drop=0.3), evaluate=loss_on),
    "compact": compacted,
    "calibrate": lambda m: [
        layer.gram for layer in prunus.calibrate(m, batches(), progress=False).values()
    ],
    "compare": compared,
    "sensitivity": scanned,
}


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


# Every kind of network meets the calls that most people make, one kind meets all of them.
@pytest.mark.parametrize(
    ("name", "what"),
    [*((name, "statistics") for name in NETS), *((n, "compact") for n in NETS)]
    + [("Resampled", what) for what in CALLS if what not in ("statistics", "compact")],
)
def test_the_same_seed_gives_the_same_whatever_was_drawn_before(name, what):
    found = []
    for start in (5, 6):
        torch.manual_seed(start)
        before = torch.get_rng_state()
        found.append(CALLS[what](made(name)))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*found)


@NOISY
def test_another_seed_gives_other_noise(name):
    """Else the seed would say nothing; `Late` draws after its last layer, which no layer sees."""
    grams = [
        prunus.calibrate(made(name), batches(), seed=seed, progress=False)["c"].gram
        for seed in (0, 1)
    ]
    assert torch.equal(*grams) == (name == "Late")


def test_batches_meet_different_noise_and_one_batch_the_same():
    model = made("Made")
    x = torch.zeros(8, 12)  # the noise is all that it reads
    one, other, again = (call(model, x, number) for number in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_statistics_are_means_over_differing_noise():
    """One batch 64 times: of noise that repeated, they would be those of one draw."""
    model, x = made("Made"), (torch.zeros(1, 12), torch.tensor([0]))
    seen = prunus.calibrate(model, [x] * 64, ("gram", "fisher"), progress=False)["a"]
    once = prunus.calibrate(model, x, ("gram", "fisher"), progress=False)["a"]
    # Σ of 6 squares of standard normals, a mean over 64: 6, with standard deviation 0.43.
    assert 3.8 < float(seen.gram[:6, :6].diagonal().sum()) < 8.2
    ranks = [int(torch.linalg.matrix_rank(layer.gram[:6, :6])) for layer in (seen, once)]
    assert ranks == [6, 1]
    assert not torch.allclose(seen.fisher, once.fisher, rtol=0.1)


def test_the_dense_and_the_pruned_network_meet_the_same_noise():
    """A network that lost nothing gives what the dense one gives: its layers have no error."""
    found = prunus.prune(made("Kept"), "wanda", 1.0, data=batches(), progress=False)
    assert [layer.error for layer in found.layers.values()] == [0.0, 0.0, 0.0]
    scores = prunus.prune(
        made("Kept"), "wanda", 1.0, data=batches(), evaluate=loss_on, progress=False
    ).metrics
    assert scores["before"] == scores["pruned"]


def test_networks_without_noise_are_left_to_themselves():
    """No generator is touched after the first pass, and threads run side by side."""
    model, x = Layers().eval(), torch.randn(4, 12)
    call(model, x)
    assert draws(model) is False
    inside = threading.Barrier(2, timeout=10)  # broken, were there a lock
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: passed(model, inside.wait), range(2)))


def test_a_pass_that_is_stopped_says_nothing_of_the_next():
    model, x = made("Late"), torch.randn(4, 12)
    passed(model, lambda: model.a(x), whole=False)
    assert draws(model) is None
    first = call(model, x)
    assert draws(model) is True
    assert torch.equal(first, call(model, x))


def test_threads_give_what_each_gives_alone():
    alone = CALLS["layer by layer"](made("Kept"))
    models, before = [made("Kept") for _ in range(3)], torch.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(CALLS["layer by layer"], models))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(same(alone, one) for one in found)


def test_another_process_gives_the_same():
    code = (
        "import torch; from test_noise import *; torch.manual_seed(99);"
        "print(float(sum(t.double().abs().sum() for t in CALLS['calibrate'](made('Kept')))))"
    )
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, *sys.path])
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    own = float(sum(t.double().abs().sum() for t in CALLS["calibrate"](made("Kept"))))
    assert float(said.stdout) == own


def test_a_seed_holds_for_its_call_alone():
    model, x = made("Kept"), torch.randn(4, 12)

    @plainly
    def outer(*, seed):
        return call(model, x), inner(), inner(seed=8), call(model, x)

    @plainly
    def inner(**given):
        return call(model, x)

    found = outer(seed=7)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(call(model, x), inner(seed=0))


# -- what cannot be narrower -----------------------------------------------------------------------

DRAWN = "the network draws random numbers for its channels"


@pytest.mark.parametrize(
    ("name", "whole"),
    [("Kept", "a"), ("Fused", "a"), ("Resampled", "a"), ("Made", ""), ("Deep", ""), ("Late", "")],
)
def test_channels_with_noise_of_their_own_stay_with_the_reason(name, whole):
    found = prunus.prune(made(name), "taylor", 0.5, data=batches(), progress=False)
    assert list(found.not_pruned) == list(whole)
    assert all(why.startswith(DRAWN) for why in found.not_pruned.values())
    small = found.compact()
    assert small.a.out_features == 16 if whole else small.a.out_features < 16
    for number in range(2):  # the same noise, and the same outputs
        x = batches()[0][0]
        torch.testing.assert_close(
            call(found.model, x, number), call(small, x, number), rtol=1e-4, atol=1e-5
        )


def test_dropout_that_is_off_draws_nothing_and_ties_nothing():
    class Off(Layers):
        def inside(self, h):
            return torch.native_dropout(h, 0.5, False)[0]

    with torch.random.fork_rng(devices=[]):
        group = next(g for g in couple(Off().eval(), batches()[0]).groups if g.name == "a")
    assert not group.drawn
    assert not group.written


class Aside(Layers):
    """Draws as many numbers as there are channels, for nothing, and then others that count."""

    def inside(self, h):
        torch.rand(3 * h.shape[1])
        return h + torch.randn(len(h), 1)


def test_other_draws_are_told_and_no_fault_of_the_code():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Aside().eval()
    with torch.no_grad():
        for tensor, axis in ((model.a.weight, 0), (model.a.bias, 0), (model.b.weight, 1)):
            tensor.index_fill_(axis, torch.arange(6), 0)
    said = r"cannot be compared with the masked one: where that draws .* \(48,\) by `rand`.*\(30,\)"
    with pytest.warns(PinnedChannels, match=said):
        small = compact(model, batches()[0])
    assert small.a.out_features == 16
    found = prunus.prune(model, "taylor", 0.5, data=batches(), progress=False)
    assert "draws random numbers of shape" in found.not_pruned["a"]
