"""The forward elimination against least squares on the consumers."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import prunus.imitation.forward
from consumers import net
from prunus.calibration import calibrate
from prunus.compensation import least_squares
from prunus.imitation import Consumer, consumers_of, forward_trace
from prunus.imitation.trace import Taken, completed
from prunus.nodes import class_view
from reference.sequential import sequential


def refitted(view, kept):
    """Σ over consumers of the least-squares error with these classes, by `least_squares`."""
    total = 0.0
    for layer, place in view.consumers.values():
        for part in layer.blocks():
            mask = torch.ones(part.weight.shape, dtype=torch.bool)
            mask[:, place[~kept].flatten()] = False
            fit = least_squares(
                part.weight, part.gram, mask, ridge=1e-11, cross=part.cross,
                dense_gram=part.dense_gram,
            )  # fmt: skip
            total += float(fit.after.sum())
    return total


def views(name, samples):
    model, x = net(name, samples=samples)
    calibration = calibrate(model, x, ("gram",))
    for group in calibration.groups:
        yield class_view(group, calibration)


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-pool", "joined", "summed"])
def test_gains_are_the_drops_of_the_least_squares_error_and_the_largest(name):
    for view in itertools.islice(views(name, 20), 2):
        n = view.group.size
        found = forward_trace(consumers_of(view), ridge=1e-11)
        order, gain = found.trace.order.tolist(), found.gain.tolist()
        kept = torch.zeros(n, dtype=torch.bool)
        scale = error = refitted(view, kept)
        for item, own in list(zip(order, gain, strict=True))[:3]:
            tried = {}
            for i in (~kept).nonzero().flatten().tolist():
                more = kept.clone()
                more[i] = True
                tried[i] = refitted(view, more)
            assert tried[item] == pytest.approx(min(tried.values()), abs=1e-6 * scale)
            assert own == pytest.approx(error - tried[item], abs=1e-6 * scale)
            kept[item], error = True, tried[item]


def test_towards_the_dense_outputs():
    dense, x = net("cnn-relu", samples=40)
    work, _ = net("cnn-relu", samples=40)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        work.conv1.weight.mul_(torch.rand(work.conv1.weight.shape, generator=generator) < 0.6)
    group = calibrate(dense, x, ("gram",)).groups[1]
    names = list(dict.fromkeys((*group.producers, *group.consumers)))
    view = class_view(group, sequential(dense, work, names, [x]))
    found = forward_trace(consumers_of(view), ridge=1e-11)
    kept = torch.zeros(group.size, dtype=torch.bool)
    scale = error = refitted(view, kept)
    for item, own in list(zip(found.trace.order.tolist(), found.gain.tolist(), strict=True))[:3]:
        kept[item] = True
        after = refitted(view, kept)
        assert own == pytest.approx(error - after, abs=1e-6 * scale)
        error = after


def test_against_all_sets():
    ratios = []
    for seed in range(2):
        model, x = net("summed", samples=8, seed=seed)
        calibration = calibrate(model, x, ("gram",))
        view = class_view(calibration.groups[0], calibration)
        found = forward_trace(consumers_of(view))
        for k in (1, 2):
            errors = {}
            for chosen in itertools.combinations(range(view.group.size), k):
                kept = torch.zeros(view.group.size, dtype=torch.bool)
                kept[list(chosen)] = True
                errors[chosen] = refitted(view, kept)
            own = errors[tuple(sorted(found.trace.order[:k].tolist()))]
            ratios.append(own / min(errors.values()))
            if k == 1:
                assert ratios[-1] == pytest.approx(1, abs=1e-6)
    assert max(ratios) < 1.1


def naive(consumers, n):
    """Refit from the definition for every candidate; order of a full run."""
    chosen: list[int] = []
    while len(chosen) < n:
        best = None
        for i in set(range(n)) - set(chosen):
            gain = 0.0
            for one in consumers:
                columns = one.place[[*chosen, i]].ravel()
                inner = one.gram[np.ix_(columns, columns)]
                aim = one.aim[:, columns]
                gain += np.trace(aim @ np.linalg.solve(inner, aim.T))
            if best is None or gain > best[0]:
                best = (gain, i)
        chosen.append(best[1])
    return chosen


@pytest.mark.parametrize("taps", [1, 3])
def test_compactions_change_nothing(taps, monkeypatch):
    rng = np.random.default_rng(0)
    n = 24
    x = rng.normal(size=(600, n * taps)) @ rng.normal(size=(n * taps, n * taps)) / 6
    gram = x.T @ x / len(x)
    consumers = [
        Consumer(
            gram=gram,
            aim=w @ gram,
            place=rng.permutation(n * taps).reshape(n, taps),
            power=float(np.trace(w @ gram @ w.T)),
        )
        for w in (rng.normal(size=(5, n * taps)), rng.normal(size=(90, n * taps)))
    ]
    monkeypatch.setattr(prunus.imitation.forward, "PANEL", 4)
    monkeypatch.setattr(prunus.imitation.forward, "FEWEST", 2)
    found = forward_trace(consumers, ridge=1e-13)
    assert found.trace.order.tolist() == naive(consumers, n)


def test_dead_and_repeated_inputs_come_last():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6))
    x[:, 1] = 0.0
    x[:, 5] = x[:, 2]
    gram, w = x.T @ x / 50, rng.normal(size=(4, 6))
    one = Consumer(
        gram=gram, aim=w @ gram, place=np.arange(6)[:, None], power=float(np.trace(w @ gram @ w.T))
    )
    found = forward_trace([one])
    order = found.trace.order.tolist()
    assert order[-1] == 1
    assert order[-2] in (2, 5)
    assert float(found.gain.sum()) == pytest.approx(one.power, rel=1e-6)
    assert float(found.gain[-2:].max()) < 1e-7 * one.power


def test_what_is_no_second_moment():
    view = next(views("mlp-relu", 20))
    layer, place = next(iter(view.consumers.values()))
    for gram, said in (
        (-layer.gram, r"must be a second moment, got mean diagonal -"),
        (layer.gram - 0.1 * layer.gram.diagonal().mean() * torch.eye(16), r"not positive definite"),
        (layer.gram * torch.nan, r"^`layers\.2\.gram` must be finite"),
        (None, r"has no statistic 'gram'"),
    ):
        wrong = replace(view, consumers={layer.name: (replace(layer, gram=gram), place)})
        with pytest.raises(ValueError, match=said):
            forward_trace(consumers_of(wrong))


def test_pools_grow_alike_while_they_last():
    """Six classes in three pools, the last of one candidate: by rank among the emptiest."""
    taken = Taken(np.array([True, True, True, True, False, True]), 3)
    assert taken.open.tolist() == taken.left.tolist() == [True, True, True, True, False, True]
    taken.add(1)
    assert taken.open.tolist() == [False, False, True, True, False, True]
    taken.add(5)
    taken.add(2)
    assert taken.open.tolist() == [True, False, False, True, False, False]  # the last is spent
    assert completed(taken, np.array([0.0, 9, 9, 1, 9, 9])).tolist() == [1, 5, 2, 3, 0]
    assert not taken.open.any()
