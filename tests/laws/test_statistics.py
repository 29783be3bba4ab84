"""The laws of statistics, over the whole table, on networks whose raw inputs are kept."""

import functools
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

import prunus
from prunus.calibration import STATISTICS, Calibration, Reads, Statistic, calibrate
from prunus.calibration.statistics import Gram, combined, resolved
from prunus.nodes import class_view
from prunus.scopes import Replay, Replayed, scope_layers
from prunus.weights import weight_at
from reference.statistics import OF_CLASSES, OF_LAYERS, OF_PAIRS, Raw, groups_of

TABLE = {name: made() for name, made in STATISTICS.items()}
PAIRS = [name for name, s in TABLE.items() if s.reads.source == "pair"]
SINGLE = [name for name in TABLE if name not in PAIRS]
CLASSES = [name for name, s in TABLE.items() if s.reads.source == "classes"]
LAYERS = [name for name in SINGLE if name not in CLASSES]
each = pytest.mark.parametrize("name", SINGLE)


class Chain(nn.Module):
    """Three linear layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.three(self.two(self.one(x).relu()).relu())


class Branches(nn.Module):
    """Convolutions, grouped and depthwise, two consumers of one stream, and a flatten."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 2, groups=2)
        self.side = nn.Conv2d(4, 4, 2)
        self.depth = nn.Conv2d(4, 4, 2, groups=4)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (self.grouped(x) + self.side(x)).relu()
        return self.head(self.depth(x).relu().flatten(1))


@functools.cache
def raw_of(kind, samples=11):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = {"chain": Chain, "branches": Branches}[kind]().double().eval()
        shape = {"chain": (5,), "branches": (2, 4, 4)}[kind]
        x = torch.randn(samples, *shape, dtype=torch.float64).clamp(min=-0.5)
        x[x.abs() < 0.1] = 0.0
    return Raw(model, x, torch.arange(samples) % 3)


@functools.cache
def whole(kind):
    raw = raw_of(kind)
    return calibrate(raw.model, (raw.x, raw.y), SINGLE)


def values_of(calibration, name):
    """{layer or group: value} of one statistic."""
    if name in CLASSES:
        return {g: values[name] for g, values in calibration.class_statistics.items()}
    return {n: layer.statistic(name) for n, layer in calibration.items()}


def alike(ours, theirs, name, rtol=1e-9, atol=1e-13):
    ours, theirs = values_of(ours, name), values_of(theirs, name)
    assert list(ours) == list(theirs)
    assert ours
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=rtol, atol=atol, msg=f"{name} {key}")


def test_every_statistic_has_its_definition_and_its_promises():
    assert set(TABLE) == {*OF_LAYERS, *OF_CLASSES, *OF_PAIRS}
    for name, s in TABLE.items():
        assert isinstance(s, Statistic)
        assert s.name == name
        assert s == STATISTICS[name]()
        assert hash(s) == hash(STATISTICS[name]())
        assert name.isidentifier()


@pytest.mark.parametrize("kind", ["chain", "branches"])
@each
def test_it_is_its_definition(kind, name):
    raw = raw_of(kind)
    found = values_of(whole(kind), name)
    near = dict(rtol=1e-4, atol=1e-9) if name == "hessian_grad" else dict(rtol=1e-9, atol=1e-13)
    if name in CLASSES:
        groups = groups_of(raw)
        assert list(found) == list(groups)
        for key, value in found.items():
            torch.testing.assert_close(value, OF_CLASSES[name](raw, groups[key]), **near)
        return
    for key, value in found.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, OF_LAYERS[name](raw, key), **near, msg=f"{name} {key}")


class Residual(nn.Module):
    """A stream with a norm that is added to, read with stride and padding, and flattened."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 3, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = (x + self.body(x)).relu()
        return self.head(self.down(x).relu().flatten(1))


@pytest.mark.parametrize("name", CLASSES)
def test_gates_behind_sums_strides_and_padding_are_their_definition(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Residual().double().eval()
        model.norm.running_mean.normal_()
        model.norm.weight.data.uniform_(0.5, 2.0)
        raw = Raw(model, torch.randn(7, 2, 4, 4, dtype=torch.float64), torch.arange(7) % 3)
    groups = groups_of(raw)
    assert sorted(group.size for group in groups.values()) == [3, 4]
    found = values_of(calibrate(model, (raw.x, raw.y), name), name)
    for key, value in found.items():
        definition = OF_CLASSES[name](raw, groups[key])
        torch.testing.assert_close(value, definition, rtol=1e-9, atol=1e-13)
        assert float(value.abs().max()) > 0


@pytest.mark.parametrize("kind", ["chain", "branches"])
@each
def test_merging_halves_equals_the_whole(kind, name):
    raw = raw_of(kind)
    halves = [calibrate(raw.model, (raw.x[s], raw.y[s]), name) for s in (slice(4), slice(4, None))]
    if not TABLE[name].reads.merges:
        with pytest.raises(ValueError, match=f"^The statistic '{name}' is no sum over the data"):
            halves[0] + halves[1]
        return
    alike(halves[0] + halves[1], whole(kind), name)
    assert (halves[0] + halves[1]).samples == 11


@pytest.mark.parametrize("size", [1, 3])
@each
def test_batches_of_any_size_and_order_give_the_same(size, name):
    raw = raw_of("branches")
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    batches = list(zip(raw.x[order].split(size), raw.y[order].split(size), strict=True))
    alike(calibrate(raw.model, batches, name), whole("branches"), name)


@each
def test_save_and_load_keep_it_to_the_bit(name, tmp_path):
    raw = raw_of("branches")
    saved = calibrate(raw.model, (raw.x, raw.y), name)
    loaded = Calibration.load(saved.save(tmp_path))
    alike(loaded, saved, name, rtol=0, atol=0)
    assert loaded.statistics == saved.statistics == (name,)
    for key, layer in saved.items():
        assert loaded[key].axes == layer.axes
        assert list(loaded[key].classes) == list(layer.classes)
    if TABLE[name].reads.merges:
        alike(loaded + saved, saved + saved, name, rtol=0, atol=0)


@each
def test_it_says_how_much_memory_its_sums_take(name, monkeypatch):
    """The guard refuses what does not fit before any data are read, and nothing else."""
    for kind in ("chain", "branches"):
        raw = raw_of(kind)
        found = calibrate(raw.model, (raw.x, raw.y), name)
        sums = {**found._group_sums} if name in CLASSES else {**found._sums}
        taken = max(own.totals[name].numel() for own in sums.values())
        monkeypatch.setattr("prunus.calibration.collect.GRAM_BYTES", 8 * taken)
        calibrate(raw.model, (raw.x, raw.y), name)
        monkeypatch.setattr("prunus.calibration.collect.GRAM_BYTES", 8 * taken - 1)
        with pytest.raises(MemoryError, match=f"^The statistic '{name}' of (layer|group) '"):
            calibrate(raw.model, iter(()) if name not in CLASSES else (raw.x, raw.y), name)
        monkeypatch.undo()


@each
def test_a_float32_model_gives_float64_sums_near_those_of_its_float64_copy(name):
    raw = raw_of("branches")
    single = Branches()
    single.load_state_dict({k: v.float() for k, v in raw.model.state_dict().items()})
    found = values_of(calibrate(single.eval(), (raw.x.float(), raw.y), name), name)
    for key, value in values_of(whole("branches"), name).items():
        assert found[key].dtype == torch.float64
        scale = float(value.abs().max())
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4 * scale)


class Halves(nn.Module):
    """A convolution of two groups as two convolutions side by side."""

    def __init__(self, grouped):
        super().__init__()
        self.parts = nn.ModuleList()
        rows, wide = grouped.weight.shape[0] // 2, grouped.weight.shape[1]
        for g in range(2):
            part = nn.Conv2d(wide, rows, grouped.kernel_size).double()
            own = slice(g * rows, (g + 1) * rows)
            with torch.no_grad():
                part.weight.copy_(grouped.weight[own])
                part.bias.copy_(grouped.bias[own])
            self.parts.append(part)

    def forward(self, x):
        return torch.cat([p(h) for p, h in zip(self.parts, x.chunk(2, 1), strict=True)], 1)


class Tail(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.last = body, nn.Linear(6 * 4, 3).double()

    def forward(self, x):
        return self.last(self.body(x).relu().flatten(1))


def blocks_agree(statistic):
    """Whether the blocks of a grouped convolution are what its halves give by themselves."""
    torch.manual_seed(0)
    grouped = Tail(nn.Conv2d(4, 6, 2, groups=2).double()).eval()
    apart = Tail(Halves(grouped.body)).eval()
    apart.last.load_state_dict(grouped.last.state_dict())
    x = torch.randn(7, 4, 3, 3, dtype=torch.float64).clamp(min=-0.5)
    data = (x, torch.arange(7) % 3)
    name = statistic.name
    own = calibrate(grouped, data, statistic, layers="body")["body"].blocks()
    other = calibrate(apart, data, statistic, layers=["body.parts.*"])
    for block, alone in zip(own, other.values(), strict=True):
        ours, theirs = block.statistic(name), alone.statistic(name)
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-9, atol=1e-13):
            return False
    return True


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "hessian_grad"])  # of all layers' g
def test_the_blocks_of_a_grouped_convolution_have_their_own(name):
    assert blocks_agree(TABLE[name])


def test_a_statistic_with_the_wrong_axis_breaks_that_law():
    @dataclass(frozen=True)
    class Wrong(Gram):
        name: ClassVar[str] = "wrong"
        reads: ClassVar[Reads] = replace(Gram.reads, axis="out", covers=())

    assert not blocks_agree(Wrong())


class Tokens(nn.Module):
    """Positions beside samples, with an `attention_mask`."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x, attention_mask):
        return self.two(self.one(x).relu())


def masked_loss(output, batch):
    mask = batch["attention_mask"]
    return (output.logsumexp(-1) * mask).sum() / len(output)


@pytest.mark.parametrize("name", [n for n in SINGLE if n not in ("hessian_grad", "flow")])
def test_padding_leaves_no_trace(name):
    """Not those whose every number is of the user's own loss, or of no data."""
    torch.manual_seed(0)
    model = Tokens().double().eval()
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
    found = [
        calibrate(model, {"x": given, "attention_mask": mask}, name, loss=masked_loss)
        for given in (x, x + 9 * (1 - mask)[..., None])
    ]
    alike(*found, name, rtol=0, atol=0)
    # and they are those of the positions that are real
    if TABLE[name].reads.source in ("inputs", "outputs"):
        real = x[mask.bool()]
        plain = nn.Sequential(model.one, nn.ReLU(), model.two)
        alone = calibrate(plain, real, name)
        for ours, theirs in zip(found[0].values(), alone.values(), strict=True):
            torch.testing.assert_close(ours.statistic(name), theirs.statistic(name))


def sequential(statistics):
    """The last layers of the branches behind a stem that was pruned, and both calibrations."""
    raw = raw_of("branches")
    pruned = Branches().double().eval()
    pruned.load_state_dict(raw.model.state_dict())
    with torch.no_grad():
        pruned.stem.weight[1] = 0.0
        pruned.stem.bias += 0.2
    names = ("grouped", "depth", "head")
    parts, here = [(raw.x[:4], raw.y[:4]), (raw.x[4:], raw.y[4:])], torch.device("cpu")

    def passes(model):
        weights = {name: weight_at(model, name) for name in names}
        return Replay(model, parts, device=here, weights=weights, calls=dict.fromkeys(names, 1))

    with passes(raw.model) as one, passes(pruned) as two:
        found = scope_layers(
            Replayed(one, two, parts, here), names, base=whole("branches"), model=pruned,
            wanted=("gram", *statistics),
        )  # fmt: skip
    return raw, Raw(pruned, raw.x, raw.y), found


@pytest.mark.parametrize("name", LAYERS)
def test_sequential_statistics_are_of_the_pruned_models_inputs(name):
    _, after, found = sequential((name,))
    for key, layer in found.items():
        if TABLE[name].reads.sequential:
            expected = OF_LAYERS[name](after, key)
        else:  # of the whole network: the dense model's stay
            expected = whole("branches")[key].statistic(name)
        torch.testing.assert_close(layer.statistic(name), expected, rtol=1e-9, atol=1e-13)
        others = {*layer.statistics} - {name, *PAIRS, "gram", "mean"}
        assert not others, f"{others} are of other inputs"


@pytest.mark.parametrize("name", CLASSES)
def test_sequential_layers_keep_what_is_known_of_their_classes(name):
    _, _, found = sequential((name,))
    for key, layer in found.items():
        for group, values in whole("branches")[key].classes.items():
            assert torch.equal(layer.classes[group][name], values[name])


@pytest.mark.parametrize("name", PAIRS)
def test_statistics_of_pairs_are_their_definition(name):
    before, after, found = sequential(())
    for key, layer in found.items():
        value = torch.tensor(OF_PAIRS[name](before.inputs_of(key), after.inputs_of(key), name))
        expected = value if layer.groups > 1 else value[0]
        torch.testing.assert_close(layer.statistic(name), expected, rtol=1e-11, atol=1e-13)
    raw = raw_of("chain")
    with pytest.raises(ValueError, match=f"^The statistic '{name}' belongs to two models"):
        calibrate(raw.model, raw.x, name)


@dataclass(frozen=True)
class Reading:
    """A user's score that reads one statistic and says nothing else."""

    asked: object
    name: str

    @property
    def statistics(self):
        return (self.asked,)

    def __call__(self, layer):
        return layer.statistic(self.name).sum() * 0 + layer.weight.abs()


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_score_may_declare_it_with_dense_and_with_pruned_inputs(name, inputs):
    raw = raw_of("chain")
    recipe = prunus.Recipe(score=Reading(name, name), inputs=inputs)
    pruned = prunus.prune(raw.model, recipe, 0.5, data=(raw.x, raw.y))
    assert pruned.cost_after.density == 0.5


@pytest.mark.parametrize("name", CLASSES)
def test_a_group_view_has_what_was_collected_of_its_classes(name):
    raw = raw_of("branches")
    calibration = calibrate(raw.model, (raw.x, raw.y), (name, "mean"))
    for group in calibration.groups:
        view = class_view(group, dict(calibration))
        assert torch.equal(view.statistic(name), calibration.class_statistics[group.name][name])
    bare = calibrate(raw.model, raw.x)
    view = class_view(bare.groups[0], bare)
    message = (
        f"Group {view.name!r} has no statistic {name!r}, which this method needs. Pass data, or "
        f"calibrate with statistics=({name!r},)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        view.statistic(name)
    # a group one of whose consumers is not watched has none: a part of the sum would be wrong
    part = calibrate(raw.model, (raw.x, raw.y), name, exclude="side")
    assert "stem" in {group.name for group in calibration.groups}
    assert "stem" not in part.class_statistics


@dataclass(frozen=True)
class Cubes:
    """E |x|³: a user's own, known to no table."""

    power: float = 3.0
    name: ClassVar[str] = "cubes"
    reads: ClassVar[Reads] = Reads(source="inputs", axis="group")

    def add(self, total, reading, layer):
        value = reading.values.abs().pow(self.power).sum(0)
        return value if total is None else total + value

    def merge(self, one, other):
        return one + other

    def finish(self, total, count):
        return total / count

    def numbers(self, out, wide, groups):
        return groups * wide


def test_a_users_own_statistic_needs_no_registration(tmp_path):
    raw = raw_of("branches")
    data = (raw.x, raw.y)
    found = calibrate(raw.model, data, ("gram", Cubes()))
    for name, layer in found.items():
        expected = torch.tensor(abs(raw.inputs_of(name)) ** 3).mean(0)
        expected = expected if layer.groups > 1 else expected[0]
        torch.testing.assert_close(layer.cubes, expected)
        assert layer.cubes is layer.statistic("cubes")
    halves = [calibrate(raw.model, (raw.x[s], raw.y[s]), Cubes()) for s in (slice(5), slice(5, 11))]
    alike(halves[0] + halves[1], found, "cubes")
    folder = found.save(tmp_path)
    with pytest.raises(ValueError, match=r"holds the statistic 'cubes', which is in no table\."):
        Calibration.load(folder)
    with pytest.raises(ValueError, match=r"with the options \{'power': 3\.0\}, not \{'power': 2"):
        Calibration.load(folder, statistics=[Cubes(2.0)])
    alike(Calibration.load(folder, statistics=[Cubes()]), found, "cubes", rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^Only like statistics can be merged, got Cubes"):
        halves[0] + calibrate(raw.model, data, Cubes(2.0))
    with pytest.raises(
        ValueError, match=r"^Layer 'one' has no statistic 'cubes', which this method needs\. Pass "
    ):
        whole("chain")["one"].cubes  # noqa: B018
    for inputs in ("dense", "pruned"):
        recipe = prunus.Recipe(score=Reading(Cubes(), "cubes"), inputs=inputs)
        assert prunus.prune(raw.model, recipe, 0.5, data=data).cost_after.density == 0.5
    own = prunus.Recipe(score=Reading(Cubes(), "cubes"))
    recipes = {"own": own, "magnitude": "magnitude"}
    compared = prunus.compare(
        raw.model,
        recipes,
        [0.5],
        data=data,
        evaluate=lambda m: float(m(raw.x).detach().sum()),
        seeds=1,
    )
    assert len(compared.records) == 2


def test_what_is_no_statistic_is_refused():
    raw = raw_of("chain")
    for wrong in (Cubes, 3, object()):
        with pytest.raises(TypeError, match=r"^A statistic is a name or an instance of"):
            calibrate(raw.model, raw.x, [wrong])
    with pytest.raises(ValueError, match=r"^Two statistics are named 'cubes'"):
        calibrate(raw.model, raw.x, (Cubes(), Cubes(2.0)))

    @dataclass(frozen=True)
    class Clash(Cubes):
        name: ClassVar[str] = "weight"

    with pytest.raises(ValueError, match=r"^A statistic cannot be named 'weight'"):
        calibrate(raw.model, raw.x, Clash())


def test_what_covers_another_stands_for_it():
    assert combined(["diag", "mean", "gram", "mean"]) == ("gram", "mean")
    assert combined([Cubes(), "diag"]) == (Cubes(), "diag")
    assert list(resolved(["gram", "diag"])) == ["gram"]
    raw = raw_of("branches")
    both = calibrate(raw.model, raw.x, ("gram", "diag"))
    alike(both, calibrate(raw.model, raw.x, "diag"), "diag")
