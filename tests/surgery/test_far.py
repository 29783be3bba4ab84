"""The compact network equals the masked one far from the example it was verified on.

Compaction reads constants, widths and equality off one batch. Here both networks meet other batch
sizes, image sizes and sequence lengths, huge, tiny and negative inputs, after masks of every kind:
units that emit nothing, units that emit a constant, norms that cut a unit off, and dead columns.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cut_models
import models
from prunus.coupling import Group, Slot, couple
from prunus.surgery import CompactionError, compact
from prunus.surgery.compact import compact_groups
from prunus.surgery.cut import why_whole
from prunus.surgery.norms import fold_rms, is_rms, kind_of, scale_epsilon
from prunus.surgery.pinned import PinnedChannels
from prunus.surgery.probe import cuttable

ZOO = {
    **{name: models.build for name in models.ZOO if not name.startswith("resnet20")},
    **dict.fromkeys(cut_models.NETS, cut_models.build),
}
WRITTEN = ("chunk", "split", "slice", "cross-stage", "written", "sampling")


def far(x):
    """Inputs unlike the example."""
    generator = torch.Generator().manual_seed(5)

    def fresh(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    yield fresh(1, *x.shape[1:])
    yield 1e3 * fresh(7, *x.shape[1:])
    yield -fresh(3, *x.shape[1:]).abs()
    yield 1e-3 * fresh(3, *x.shape[1:])
    yield torch.zeros_like(x)
    yield fresh(5, *x.shape[1:]) + 100
    if x.ndim > 3:
        yield fresh(2, x.shape[1], *[n + 5 for n in x.shape[2:]])
        yield 50 * fresh(2, x.shape[1], *[2 * n + 1 for n in x.shape[2:]])
    elif x.ndim == 3:
        yield fresh(2, x.shape[1], x.shape[2] + 9)
        yield fresh(2, x.shape[1] + 9, x.shape[2])


def equal_far_away(model, small, x, rtol=1e-9):
    """Both run (or refuse) alike on every input; how many they took."""
    taken = 0
    for other in far(x):
        with torch.no_grad():
            try:
                expected = model(other)
            except RuntimeError:
                with pytest.raises(RuntimeError):
                    small(other)
                continue
            got = small(other)
        scale = expected.abs().max().clamp_min(1e-30)
        assert (got - expected).abs().max() <= rtol * scale
        taken += 1
    return taken


def half(group, seed=0):
    order = torch.randperm(group.size, generator=torch.Generator().manual_seed(seed + group.size))
    gone = torch.zeros(group.size, dtype=torch.bool)
    gone[order[: group.size // 2]] = True
    return gone


def wipe(model, group, gone, keep=()):
    """Zero the members of classes in parameters, but those whose name ends in `keep`."""
    learned = dict(model.named_parameters())
    with torch.no_grad():
        for slot in group.slots:
            if slot.parameter in learned and not slot.parameter.endswith(tuple(keep)):
                index = slot.index[gone[slot.unit]]
                learned[slot.parameter].index_fill_(slot.axis, index, 0)


@pytest.mark.parametrize("name", [n for n in ZOO if n not in WRITTEN])
def test_units_that_emit_nothing(name):
    model, x = ZOO[name](name)
    groups = [g for g in couple(model, x).groups if why_whole(model, g, inexact=False) is None]
    if not groups:
        pytest.skip("nothing of it can be cut exactly")
    shapes = {n: list(p.shape) for n, p in model.named_parameters()}
    for group in groups:
        wipe(model, group, half(group))
        for slot in group.slots:
            if slot.parameter in shapes:
                shapes[slot.parameter][slot.axis] -= int(half(group)[slot.unit].sum())
    small = compact(model, x)
    assert {n: list(p.shape) for n, p in small.named_parameters()} == shapes
    assert equal_far_away(model, small, x) >= 6


@pytest.mark.parametrize("name", [n for n in ZOO if n.startswith(("mlp", "cnn", "pools", "conv"))])
def test_units_that_emit_a_constant(name):
    """Rows are zero; biases and norms go on: what cannot be folded must stay."""
    model, x = ZOO[name](name)
    for group in couple(model, x).groups:
        gone = half(group, seed=1)
        with torch.no_grad():
            for slot in group.slots:
                layer, _, leaf = slot.parameter.rpartition(".")
                if slot.role == "out" and leaf == "weight" and layer in group.producers:
                    index = slot.index[gone[slot.unit]]
                    model.get_parameter(slot.parameter).index_fill_(slot.axis, index, 0)
    small = compact(model, x)
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in model.parameters())
    assert equal_far_away(model, small, x) >= 6


@pytest.mark.parametrize("name", [n for n in ZOO if n.startswith(("mlp-n", "cnn", "pools", "mix"))])
def test_norms_that_cut_a_unit_off(name):
    model, x = ZOO[name](name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight[::2] = 0
                module.bias[::4] = -module.bias[::4].abs()
    small = compact(model, x)
    assert equal_far_away(model, small, x) >= 6


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constants_at_borders(mode, groups, value):
    """Only where nothing pads with zeros does a constant other than 0 fold, and then exactly."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(2, 8, 3)
            self.b = nn.Conv2d(8, 4, 3, padding=1, padding_mode=mode, groups=groups)
            self.c = nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    gone = [i for i in range(8) if i % (8 // groups) == 0]  # the first of each conv group
    with torch.no_grad():
        model.a.weight[gone] = 0
        model.a.bias[gone] = value * torch.arange(1, len(gone) + 1).double()  # each its own
    small = compact(model, x)
    stays = mode == "zeros" and value > 0
    assert small.a.out_channels == (8 if stays else 8 - groups)
    equal_far_away(model, small, x)


def test_a_constant_of_the_small_example_alone():
    """Each window of this example meets the border: larger images have windows that do not."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 1)

        def forward(self, x):
            return self.b(F.avg_pool2d(torch.sigmoid(self.a(x)), 3, 1, padding=1)).mean((2, 3))

    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(2, 2, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        model.a.weight[:2] = 0
    small = compact(model, x)
    equal_far_away(model, small, x)


def test_a_constant_that_a_mask_hides():
    """All ones in the example's mask; padding in the next batch."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x, keep):
            y = torch.sigmoid(self.a(x))
            return self.b(y.masked_fill(keep[..., None] == 0, 0.0))

    torch.manual_seed(0)
    model = Net().double().eval()
    with torch.no_grad():
        model.a.weight[:2] = 0
    x, keep = torch.randn(2, 5, 4, dtype=torch.float64), torch.ones(2, 5, dtype=torch.long)
    small = compact(model, {"x": x, "keep": keep})
    keep[:, 3:] = 0
    torch.testing.assert_close(small(x, keep), model(x, keep))


@pytest.mark.parametrize("opens", [100.0, 2000.0])
def test_a_path_that_opens_far_from_the_example(opens):
    """The norm cuts the unit off, but the path around it lives for large values."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x):
            y = self.a(x)
            return self.b(F.relu(y.abs() - opens) + self.norm(y))

    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(6, 4, dtype=torch.float64)
    with torch.no_grad():
        model.norm.weight[:2] = 0
    small = compact(model, x)
    assert small.a.out_features == 5
    equal_far_away(model, small, x)


def test_several_producers_of_which_one_is_silent():
    """A sum of two layers is silent only where both are."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.c(F.relu(self.a(x) - 5) + F.relu(self.b(x)))

    torch.manual_seed(0)
    model, x = Net().double().eval(), 0.1 * torch.randn(6, 4, dtype=torch.float64)
    with torch.no_grad():
        model.b.weight[:3] = 0  # a is off on the example, and on far from it
        model.a.weight[0] = 0
    small = compact(model, x)
    assert small.a.out_features == 5  # the first alone
    equal_far_away(model, small, x)


@pytest.mark.parametrize("name", [n for n in WRITTEN if n != "sampling"])
def test_written_widths_are_never_wrong(name):
    """Whatever compact answers is right, and it says which channels the code holds to."""
    model, x = ZOO[name](name)
    for group in couple(model, x).groups:
        wipe(model, group, half(group))
    if name in ("split", "slice", "written"):
        with pytest.warns(PinnedChannels, match=r"fails (in|after) layer `"):
            small = compact(model, x)
    else:
        small = compact(model, x)
    equal_far_away(model, small, x)


def test_sampling_models_are_verified_with_equal_draws():
    model, x = ZOO["sampling"]("sampling")
    encode = next(g for g in couple(model, x).groups if g.name == "encode")
    wipe(model, encode, half(encode))
    before = torch.random.get_rng_state()
    small = compact(model, x)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's draws go on
    assert small.encode.out_features == 6
    for other in far(x):
        torch.manual_seed(1)
        expected = model(other)
        torch.manual_seed(1)
        torch.testing.assert_close(small(other), expected)


def through(norm, first, last, size):
    """The group of the channels from one layer through a norm over them to the next."""
    every = torch.arange(size)
    places = [(f"{first}.weight", 0, "out"), (f"{first}.bias", 0, "out")]
    places += [(f"{norm}.weight", 0, "out"), (f"{last}.weight", 1, "in")]
    slots = tuple(Slot(name, axis, role, every, every) for name, axis, role in places)
    return Group(first, size, slots, (first,), (last,), (norm,), exact=False)


EPSILONS = [1e-2, 1e-6, None]


@pytest.mark.parametrize("eps", EPSILONS)
def test_rms_norms_are_corrected(eps):
    """γ √(d/d′) and ε d/d′, to rounding, also where ε matters."""
    torch.manual_seed(0)
    model = cut_models.NormMLP(nn.RMSNorm, eps=eps).double().eval()
    nn.init.normal_(model.norm.weight, 1.0, 0.3)
    x = torch.randn(8, 6, dtype=torch.float64)
    group = through("norm", "fc1", "fc2", 16)
    assert kind_of(model, group) == "foldable"
    wipe(model, group, half(group))
    weight = model.norm.weight.clone()
    small = compact_groups(model, (group,), x).model
    assert small.norm.weight.numel() == small.norm.normalized_shape[0] == 8
    torch.testing.assert_close(small.norm.weight, weight[~half(group)] * 2**0.5)
    assert small.norm.eps == (torch.finfo(torch.float64).eps if eps is None else eps) * 2
    assert equal_far_away(model, small, x, rtol=1e-11) >= 6
    with torch.no_grad():  # where ε is most of the sum
        model.fc1.bias.zero_(), small.fc1.bias.zero_()
    tiny = 1e-3 * x
    torch.testing.assert_close(small(tiny), model(tiny), rtol=1e-11, atol=1e-13)
    small.norm.eps /= 2
    if eps == 1e-2:  # the test sees ε
        assert (small(tiny) - model(tiny)).abs().max() > 1e-4


def test_rms_norms_of_other_libraries():
    """Known by the name of their class; Gemma's multiply by 1 + γ."""

    def named(kind):
        def forward(self, x):
            scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return x * scale * (self.weight + (1.0 if kind.startswith("Gemma") else 0.0))

        def init(self, width, variance_epsilon):
            nn.Module.__init__(self)
            self.weight = nn.Parameter(torch.randn(width))
            self.variance_epsilon = variance_epsilon

        return type(kind, (nn.Module,), {"forward": forward, "__init__": init})

    for kind in ("LlamaRMSNorm", "GemmaRMSNorm"):
        torch.manual_seed(0)
        norm = named(kind)(12, variance_epsilon=1e-2).double()
        assert is_rms(norm)
        x = torch.randn(5, 12, dtype=torch.float64)
        x[:, 8:] = 0
        expected = norm(x)[:, :8]
        norm.weight = nn.Parameter(norm.weight[:8].detach().clone())
        fold_rms(norm, 12)
        scale_epsilon(norm, 12)
        torch.testing.assert_close(norm(x[:, :8]), expected)


def test_an_rms_norm_after_something_that_lifts_zeros_stays_whole():
    """σ(0) = ½: the removed inputs of the norm are not zero, and nothing is folded."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.norm(torch.sigmoid(self.a(x))))

    torch.manual_seed(0)
    group = through("norm", "a", "b", 8)
    tried = cuttable(Net(), [group], torch.randn(8, 4))
    assert tried.groups == tried.alike == ()
    assert "it cannot be made narrower: the smaller network is not equal" in tried.refused["a"]
    model = Net()
    wipe(model, group, half(group))
    with pytest.raises(CompactionError, match="is not equal to the masked one"):
        compact_groups(model, (group,), torch.randn(8, 4))


def test_a_norm_that_cuts_off_one_of_two_sources():
    """The other source is off on the example, and on far from it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)
            self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.c(self.norm(self.a(x)) + F.relu(self.b(x) - 50))

    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(6, 4, dtype=torch.float64)
    with torch.no_grad():
        model.norm.weight[:2] = 0
    small = compact(model, x)
    assert small.a.out_features == 5
    equal_far_away(model, small, x)
