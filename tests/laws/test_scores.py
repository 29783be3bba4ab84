"""The laws of scores, over the whole table, and each against its definition."""

import functools
import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from laws.families import conv_layer, instances, linear_layer
from models import build
from prunus.calibration import STATISTICS, calibrate
from prunus.layer import layer_of
from prunus.nodes import class_view
from prunus.parts import EDGES, NODES
from prunus.scores import (
    FPGM,
    REDUCTIONS,
    SCORES,
    APoZ,
    BNScale,
    Magnitude,
    MeanActivation,
    OutputVariance,
    RemovalError,
    class_scores,
    classes,
    removal_error,
)
from prunus.scores.obd import second_order
from prunus.scores.sensitivity import sensitivity_scores

EVERY = {  # those that read the steps of a training: tests/training
    name: rule for name, rule in instances(SCORES).items() if not rule.gathers
}
RULES = {name: rule for name, rule in EVERY.items() if EDGES in rule.serves}
CLASSES = {name: rule for name, rule in EVERY.items() if NODES in rule.serves}
each = pytest.mark.parametrize("name", RULES)
LAYERS = {
    "linear": linear_layer,
    "conv": conv_layer,
    "grouped": functools.partial(conv_layer, groups=2),
    "depthwise": functools.partial(conv_layer, groups=4),
}


@each
@pytest.mark.parametrize("kind", LAYERS)
def test_shape_purity_and_repeatability(name, kind):
    layer = LAYERS[kind]()
    before = layer.weight.clone(), layer.gram.clone(), layer.grad.clone()
    scores = RULES[name](layer)
    assert scores.shape == layer.weight.shape
    assert torch.isfinite(scores).all()
    assert torch.equal(scores, RULES[name](layer))
    for old, new in zip(before, (layer.weight, layer.gram, layer.grad), strict=True):
        assert torch.equal(old, new)


@each
def test_permuting_inputs_permutes_the_scores(name):
    layer = linear_layer()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    own = {}
    for key, value in layer.statistics.items():  # 12 inputs, 6 outputs
        moved_rows = value[order] if value.shape == (12, 12) else value
        own[key] = moved_rows[..., order] if value.shape[-1] == 12 else value
    moved = replace(layer, weight=layer.weight[:, order], statistics=own)
    torch.testing.assert_close(RULES[name](moved), RULES[name](layer)[:, order])


@each
def test_what_a_score_declares_is_enough_and_what_it_lacks_is_named(name):
    layer, rule = linear_layer(), RULES[name]
    bare = replace(layer, statistics={})
    if not rule.statistics:
        rule(bare)
        return
    model, x = build("mlp-relu")
    own = calibrate(model, (x, torch.arange(4)), rule.statistics)["layers.0"]
    assert rule(own).shape == own.weight.shape
    with pytest.raises(ValueError, match=r"^Layer '0' has no statistic.* Pass data, or calibrate"):
        rule(bare)


@pytest.mark.parametrize("kind", LAYERS)
def test_removal_error_is_the_error_of_removing_one_weight(kind):
    layer = LAYERS[kind]()
    scores = RemovalError()(layer)
    rows = layer.weight.shape[0] // layer.groups
    grams = layer.gram if layer.groups > 1 else layer.gram[None]
    for i in range(layer.weight.shape[0]):
        for j in range(layer.weight.shape[1]):
            gap = torch.zeros_like(layer.weight[i])
            gap[j] = layer.weight[i, j]
            expected = gap @ grams[i // rows] @ gap
            torch.testing.assert_close(scores[i, j], expected, rtol=1e-12, atol=1e-15)


def test_removal_error_refuses_what_is_no_mean_square():
    message = (
        "`power` must be a mean square, >= 0, got -1 at entry 1. Collect it from finite inputs."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        removal_error(torch.ones(2, 3), torch.tensor([[1.0, -1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"got nan at entry 2\."):
        removal_error(torch.ones(1, 3), torch.tensor([[0.0, 1.0, torch.nan]]))
    assert not removal_error(torch.ones(1, 2), torch.zeros(1, 2)).any()


@pytest.mark.parametrize("side", ["consumer", "producer", "both"])
@pytest.mark.parametrize("reduction", ["sum", "l2"])
def test_node_scores_reduce_over_every_member(side, reduction):
    model, x = build("cnn-relu")
    calibration = calibrate(model, x)
    for group in calibration.groups:
        view = class_view(group, calibration)
        found = class_scores(view, Magnitude(side=side, reduction=reduction))
        for unit, members in enumerate(group.classes):
            values = [
                model.get_parameter(m.parameter).detach().select(m.axis, m.index).abs().flatten()
                for m in members
                if m.parameter.rpartition(".")[0] in (*group.producers, *group.consumers)
                and m.parameter.endswith("weight")
                and (side == "both" or (side == "consumer") == (m.role == "in"))
            ]
            joined = torch.cat(values)
            expected = joined.norm() if reduction == "l2" else joined.sum()
            torch.testing.assert_close(found[unit], expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_lines_that_are_added_up_a_few_at_a_time_give_the_same(monkeypatch, reduction):
    calibration = calibrate(*build("cnn-relu"))
    score = Magnitude(side="both", reduction=reduction)
    views = [class_view(group, calibration) for group in calibration.groups]
    whole = [class_scores(view, score) for view in views]
    monkeypatch.setattr(classes, "PIECE", 20)
    assert all(torch.equal(class_scores(v, score), w) for v, w in zip(views, whole, strict=True))


def test_a_plain_function_scores_the_consumers():
    model, x = build("mlp-relu")
    calibration = calibrate(model, x)
    view = class_view(calibration.groups[0], calibration)
    plain = class_scores(view, lambda layer: layer.weight.abs())
    torch.testing.assert_close(plain, class_scores(view, Magnitude()))


def test_an_unknown_side_or_reduction_is_refused():
    with pytest.raises(ValueError, match=r"^Unknown side of a score 'producers'\. Did you mean pr"):
        Magnitude(side="producers")
    with pytest.raises(
        ValueError, match=r"^Unknown reduction of a score 'l1'\. Did you mean l2\?$"
    ):
        RemovalError(reduction="l1")


@functools.cache
def views_of(network):
    """The groups of a network with every statistic, in float64."""
    model, x = build(network, samples=24)
    with torch.no_grad():
        labels = torch.arange(len(x)) % model(x).shape[-1]
    wanted = [name for name, made in STATISTICS.items() if made().reads.source != "pair"]
    calibration = calibrate(model, (x, labels), wanted)
    parameters = dict(model.named_parameters())
    return [class_view(g, calibration, parameters) for g in calibration.groups]


@pytest.mark.parametrize("network", ["mlp-relu", "cnn-relu", "mixed", "mlp-norm"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_its_number_and_keeps_it_under_another_order(name, network):
    for view in views_of(network):
        before = {n: layer.weight.clone() for n, (layer, _) in view.producers.items()}
        try:
            found = class_scores(view, CLASSES[name])
        except ValueError as error:  # a group that this score cannot rank, which it names
            refused = str(error)
        else:
            refused = ""
        if refused:
            assert network != "cnn-relu" or view.name == "fc1"
            assert repr(view.name) in refused
            continue
        assert found.shape == (view.group.size,)
        assert found.dtype == torch.float64
        assert torch.isfinite(found).all()
        assert torch.equal(found, class_scores(view, CLASSES[name]))
        for n, weight in before.items():
            assert torch.equal(view.producers[n][0].weight, weight)
        order = torch.randperm(view.group.size, generator=torch.Generator().manual_seed(1))
        moved = replace(
            view,
            producers={n: (layer, place[order]) for n, (layer, place) in view.producers.items()},
            consumers={n: (layer, place[order]) for n, (layer, place) in view.consumers.items()},
            statistics={
                key: (value[order] if key == "taylor_gram" else value)[..., order]
                for key, value in view.statistics.items()
            },
            scales={norm: scale[order] for norm, scale in view.scales.items()},
        )
        torch.testing.assert_close(class_scores(moved, CLASSES[name]), found[order])


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_class_score_declares_is_enough_and_what_it_lacks_is_named(name):
    rule = CLASSES[name]
    model, x = build("cnn-relu")
    data = (x, torch.arange(len(x)) % 4)
    own = calibrate(model, data, rule.statistics or ("mean",))
    parameters = dict(model.named_parameters())
    for group in own.groups:
        if group.name != "fc1":  # which no norm acts on
            view = class_view(group, own, parameters)
            assert class_scores(view, rule).shape == (group.size,)
    bare = {n: layer_of(n, model.get_submodule(n)) for n in own}
    if not rule.statistics:
        class_scores(class_view(own.groups[0], bare, parameters), rule)
        return
    with pytest.raises(ValueError, match=r"has no statistic.* Pass data, or calibrate with"):
        class_scores(class_view(own.groups[0], bare), rule)


@dataclass(frozen=True)
class Signed:
    """The weights themselves: numbers of both signs."""

    side: str
    reduction: str

    def __call__(self, layer):
        return layer.weight


@pytest.mark.parametrize("side", ["consumer", "producer", "both"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("network", ["cnn-relu", "mixed"])
def test_every_reduction_is_its_definition(reduction, side, network):
    rule = Signed(side, reduction)
    for view in views_of(network):
        found = class_scores(view, rule)
        for unit in range(view.group.size):
            lines = []  # of one output's (or input's) weights that belong to the class
            if side in ("consumer", "both"):
                for layer, place in view.consumers.values():
                    lines += [row[place[unit]] for row in layer.weight]
            if side in ("producer", "both"):
                for layer, place in view.producers.values():
                    lines += [column[place[unit]] for column in layer.weight.T]
            every = torch.cat(lines)
            expected = {
                "sum": every.sum(),
                "l2": every.norm(),
                "mean": every.mean(),
                "max": max(line.sum() for line in lines),
                "abs_sum": every.sum().abs(),
            }[reduction]
            torch.testing.assert_close(found[unit], expected.double())


def unfolded(module, x):
    """Inputs of a layer by channel and tap, (group, vectors, columns of a weight)."""
    if isinstance(module, nn.Linear):
        return x[None]
    own = nn.functional.unfold(x, module.kernel_size, padding=module.padding, stride=module.stride)
    return own.movedim(1, 2).flatten(0, 1).unflatten(1, (module.groups, -1)).movedim(1, 0)


def exchanged(model, x):
    """What every module reads and gives, by its name."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda m, a, y, n=name: seen.update({n: (a[0], y)}))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("network", ["mlp-norm", "cnn-relu", "mixed", "resnet20-conv"])
def test_scores_of_classes_are_what_they_say_over_all_their_layers(network):
    """From parameters and from what layers read and give, at every member of a class."""
    model, x = build(network, samples=3)
    seen = exchanged(model, x)
    wanted = ("absolute", "zeros", "output_variance")
    calibration = calibrate(model, x, wanted)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    for group in calibration.groups[:4]:
        view = class_view(group, calibration, parameters)
        scales, filters, varied = [], [], []
        for members in group.classes:
            made = [m for m in members if m.role == "out"]
            norms = [m for m in made if m.parameter.removesuffix(".weight") in group.norms]
            scales.append(sum(abs(float(parameters[m.parameter][m.index])) for m in norms))
            rows = [m for m in made if m.parameter.removesuffix(".weight") in group.producers]
            filters.append(torch.cat([parameters[m.parameter][m.index].flatten() for m in rows]))
            given = [seen[m.parameter.removesuffix(".weight")][1][:, m.index] for m in rows]
            varied.append(float(sum(y.flatten().var(correction=0) for y in given)))
        if group.norms:
            assert BNScale().classes(view).tolist() == pytest.approx(scales)
        apart = torch.stack(filters)[:, None] - torch.stack(filters)
        torch.testing.assert_close(FPGM().classes(view), apart.norm(dim=2).sum(1))
        assert OutputVariance().classes(view).tolist() == pytest.approx(varied)
        read = [[] for _ in group.classes]  # every input that a consumer has of the class
        for name in group.consumers:
            values = unfolded(model.get_submodule(name), seen[name][0])
            for own, columns in zip(read, view.consumers[name][1], strict=True):
                own.append(values[:, :, columns].movedim(1, 0).flatten(1))
        means = [torch.cat([p.abs().mean(0) for p in part]).mean().item() for part in read]
        assert MeanActivation().classes(view).tolist() == pytest.approx(means)
        live = [torch.cat([(p != 0).double().mean(0) for p in part]).mean().item() for part in read]
        if len(set(live)) > 1:
            assert APoZ().classes(view).tolist() == pytest.approx(live)


@pytest.mark.parametrize("network", ["mlp-relu", "cnn-relu", "mixed"])
def test_kernels_of_classes_are_the_moments_of_what_is_given_and_read(network):
    """E z_c z_c′ over samples and positions, over all members and layers; z with or without b."""
    model, x = build(network, samples=24)
    seen = exchanged(model, x)
    for view in views_of(network):
        given, bare, apart = 0.0, 0.0, False
        for name, (layer, place) in view.producers.items():
            y = seen[name][1].movedim(1, -1).flatten(0, -2)
            if layer.groups == len(layer.weight):  # depthwise: nothing between its channels
                continue
            apart |= len((place[:, 0] * layer.groups // len(layer.weight)).unique()) > 1
            z = y if layer.bias is None else y - layer.bias
            for rows in place.T:
                given = given + y[:, rows].T @ y[:, rows] / len(y)
                bare = bare + z[:, rows].T @ z[:, rows] / len(z)
        if apart:
            with pytest.raises(ValueError, match=f"^The classes of '{view.name}' lie in several"):
                view.gram()
        else:
            torch.testing.assert_close(view.gram(), given)
            torch.testing.assert_close(view.gram(include_bias=False), bare)
        read = 0.0
        for name, (_, place) in view.consumers.items():
            for values in unfolded(model.get_submodule(name), seen[name][0]):
                for columns in place.T:
                    read = read + values[:, columns].T @ values[:, columns] / len(values)
        torch.testing.assert_close(view.gram("activation"), read)


def test_a_kernel_of_pre_activations_needs_the_mean_where_there_is_a_bias():
    model, x = build("mlp-relu")
    calibration = calibrate(model, x, ("gram",))
    view = class_view(calibration.groups[0], calibration)
    with pytest.raises(ValueError, match=r"^Layer 'layers\.0' has no statistic 'mean'"):
        view.gram()
    assert view.gram(include_bias=False).shape == (view.group.size,) * 2


def test_floors_of_what_samples_do_not_feel():
    """10⁻³ of the mean beside each entry, by hand."""
    weight, felt = torch.tensor([[2.0, -3.0]]).double(), torch.tensor([[4.0, 0.0]]).double()
    expected = torch.tensor([[2 * 4.002**0.5, 3 * 0.002**0.5]]).double()
    torch.testing.assert_close(sensitivity_scores(weight, felt), expected)
    rises = torch.tensor([[4 * 4.002 / 2, 9 * 0.002 / 2]]).double()
    torch.testing.assert_close(second_order(weight, felt), rises)
