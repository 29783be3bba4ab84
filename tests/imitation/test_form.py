"""The quadratic form against scaled forward passes of the consumers."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus.imitation.form
from consumers import error_of, inputs_of, net, power_of
from prunus.calibration import calibrate
from prunus.imitation import Form, local_form, output_form
from prunus.nodes import class_view
from reference.sequential import sequential

NETWORKS = ["mlp-relu", "cnn-relu", "summed", "joined", "mixed", "conv1d"]


def random_factors(n, generator):
    """Some classes gone, the others scaled."""
    factors = 2 * torch.rand(n, generator=generator, dtype=torch.float64)
    return factors * (torch.rand(n, generator=generator) < 0.7)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_form_is_the_error_of_scaled_forward_passes(name):
    model, x = net(name)
    calibration = calibrate(model, x, ("gram",))
    generator = torch.Generator().manual_seed(0)
    several = 0
    for group in calibration.groups:
        view, seen = class_view(group, calibration), inputs_of(model, x, group.consumers)
        several += len(group.consumers) > 1
        powers = power_of(model, seen)
        for _ in range(3):
            a = random_factors(group.size, generator)
            errors = error_of(model, group, seen, seen, a)
            plain = local_form(view, normalised=False)
            assert plain.error(a) == pytest.approx(sum(errors.values()), rel=1e-10)
            weights = {n: 1 / powers[n] if len(errors) > 1 else 1.0 for n in errors}
            total = sum(weights[n] * e for n, e in errors.items())
            assert local_form(view).error(a) == pytest.approx(total, rel=1e-9)
        assert plain.error(torch.ones(group.size)) == pytest.approx(0, abs=1e-12 * plain.constant)
    assert several or name != "summed"


@pytest.mark.parametrize("name", ["cnn-relu", "summed", "joined"])
def test_with_pruned_inputs_the_form_aims_at_the_dense_outputs(name):
    dense, x = net(name)
    work, _ = net(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        first = next(m for m in work.modules() if isinstance(m, nn.Conv2d))
        first.weight.mul_(torch.rand(first.weight.shape, generator=generator) < 0.6)
    groups = calibrate(dense, x, ("gram",)).groups
    moved = 0
    for group in groups:
        names = list(dict.fromkeys((*group.producers, *group.consumers)))
        view = class_view(group, sequential(dense, work, names, [x]))
        before, now = (inputs_of(m, x, group.consumers) for m in (dense, work))
        form = local_form(view, normalised=False)
        for _ in range(3):
            a = random_factors(group.size, generator)
            want = sum(error_of(dense, group, before, now, a).values())
            assert form.error(a) == pytest.approx(want, rel=1e-9)
        moved += not torch.allclose(form.target, form.matrix.sum(1), rtol=1e-3)
    assert moved  # aims at something else than the inputs as they are


def test_panels_are_the_whole(monkeypatch):
    calibration = calibrate(*net("cnn-relu"), ("gram",))
    view = class_view(calibration.groups[0], calibration)
    whole = local_form(view)
    monkeypatch.setattr(prunus.imitation.form, "PANEL", 9)
    torch.testing.assert_close(local_form(view).matrix, whole.matrix)


def test_the_output_form_is_the_change_of_outputs_to_first_order():
    model, x = net("cnn-pool")
    calibration = calibrate(model, x, ("taylor_gram",))
    group = calibration.groups[0]
    form = output_form(class_view(group, calibration))
    step = torch.randn(group.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    consumer = model.get_submodule(group.consumers[0])
    slot = next(s for s in group.slots if s.layer == group.consumers[0] and s.role == "in")
    out = model(x).detach()
    ratios = []
    for eps in (1e-3, 1e-4):
        line = torch.ones(consumer.weight.shape[1], dtype=torch.float64)
        line[slot.index] += eps * step[slot.unit]
        handle = consumer.register_forward_pre_hook(
            lambda m, a, line=line: a[0] * line[:, None, None]
        )
        change = float((model(x).detach() - out).square().sum(1).mean())
        handle.remove()
        ratios.append(change / form.error(1 + eps * step))
    assert ratios[0] == pytest.approx(1, abs=2e-2)
    assert abs(ratios[1] - 1) < 0.2 * abs(ratios[0] - 1) + 1e-6


def test_what_is_no_second_moment_is_named():
    model, x = net("mlp-relu")
    calibration = calibrate(model, x, ("gram",))
    group = calibration.groups[0]
    layer = calibration[group.consumers[0]]
    message = f"The statistics of group {group.name!r}, which {group.consumers[0]} read, are no "
    for gram in (layer.gram - 0.1 * layer.gram.diagonal().mean() * torch.eye(16), -layer.gram):
        layers = {**calibration, layer.name: replace(layer, gram=gram)}
        with pytest.raises(ValueError, match=f"^{re.escape(message)}second moments"):
            local_form(class_view(group, layers))
    layers = {**calibration, layer.name: replace(layer, gram=layer.gram * torch.nan)}
    with pytest.raises(ValueError, match=r"must be finite, got nan"):
        local_form(class_view(group, layers))
    layers = {**calibration, layer.name: replace(layer, gram=None)}
    with pytest.raises(ValueError, match=r"has no statistic 'gram'"):
        local_form(class_view(group, layers))
    with pytest.raises(ValueError, match=r"has no statistic 'taylor_gram'"):
        output_form(class_view(group, calibration))


def test_errors_are_those_of_the_form():
    half = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    form = Form.plain(half @ half.T)
    a = torch.tensor([0.0, 2.0, 1.0, -0.5], dtype=torch.float64)
    assert form.error(a) == pytest.approx(float((a - 1) @ form.matrix @ (a - 1)))
