"""The simulator against the definition, the learning equations, and masked retraining."""

import math

import numpy as np
import pytest
import torch

from prunus.theory.teacher_student import (
    OrderParameters,
    Weights,
    apply_mask,
    draw_edge_mask,
    edge_moments,
    generalisation_error,
    keep_nodes,
    measured_patterns,
    one_seed,
    order_at,
    order_parameters,
    pattern_total,
    prune_edges,
    pruned_error,
    random_patterns,
    random_weights,
    refined_patterns,
    retrain,
    sample_weights,
    sampled_patterns,
    simulate,
    simulated_order,
    solve,
)
from reference import teacher_student as slow
from teacher_student.students import near


def generator(seed):
    return torch.Generator().manual_seed(seed)


# The simulator takes exactly the steps of the definition


@pytest.mark.parametrize("activation", ["erf", "relu", "linear"])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_take_the_same_steps_as_one_sample_at_a_time(activation, masked):
    start = random_weights(3, 2, 20, generator=generator(1), seeds=2)
    inputs = torch.randn(2, 200, 20, generator=generator(2), dtype=torch.float64)
    mask = torch.rand(3, 20, generator=generator(3)) < 0.6 if masked else None
    at = 0

    def draw(count):
        nonlocal at
        at += count
        return inputs[:, at - count : at]

    found = simulate(
        start, until=10, generator=generator(0), rate=0.2, readout_rate=0.1, times=[3.05, 10],
        activation=activation, mask=mask, draw=draw,
    )  # fmt: skip
    assert found.steps == 200
    for seed in range(2):
        kept = np.ones((3, 20)) if mask is None else mask.numpy()
        pairs = [(x, 0.0) for x in inputs[seed].numpy()]
        w, v = slow.sgd(
            start.student[seed].numpy() * kept, start.teacher[seed].numpy(), start.v[seed].numpy(),
            start.v_star.numpy(), pairs, 0.2, 0.1, activation, kept,
        )  # fmt: skip
        near(found.weights.student[seed], w, atol=1e-10, rtol=1e-10)
        near(found.weights.v[seed], v, atol=1e-10, rtol=1e-10)
        near(found.Q[1, seed], w @ w.T / 20, atol=1e-10, rtol=1e-10)
        near(
            generalisation_error(simulated_order(found, seed=seed), activation=activation),
            found.errors[-1, seed],
        )


def test_batches_and_decay_meet_the_definition():
    start = random_weights(2, 1, 10, generator=generator(1))
    inputs = torch.randn(1, 30, 10, generator=generator(2), dtype=torch.float64)
    at = 0

    def draw(count):
        nonlocal at
        at += count
        return inputs[:, at - count : at]

    found = simulate(
        start, until=1, generator=generator(0), batch=3, decay=0.5, draw=draw, rate=0.3,
        readout_rate=0.2,
    )  # fmt: skip
    g, slope = slow.UNITS["erf"]
    w, v = start.student.numpy().copy(), start.v.numpy().copy()
    for x in inputs[0].numpy().reshape(10, 3, 10):
        fields = w @ x.T / math.sqrt(10)
        error = v @ g(fields) - start.v_star.numpy() @ g(
            start.teacher.numpy() @ x.T / math.sqrt(10)
        )
        change = 0.3 / math.sqrt(10) * (v[:, None] * slope(fields) * error) @ x / 3
        v = v - 0.2 / 10 * (g(fields) @ error) / 3
        w = (1 - 0.3 * 0.5 / 10) * w - change
    near(found.weights.student, w, atol=1e-12)
    near(found.weights.v, v, atol=1e-12)


def test_label_noise_has_the_stated_variance():
    """A student without signal learns from noise alone: E Δ² through the growth of w."""
    start = Weights(torch.zeros(1, 4000), torch.ones(1, 4000), [1.0], [0.0])
    run = simulate(
        start, until=0.5, generator=generator(5), rate=1.0, readout_rate=0.0, noise=0.7,
        activation="linear",
    )  # fmt: skip
    order = OrderParameters([[0.0]], [[0.0]], [[1.0]], [1.0], [0.0])
    theory = solve(order, until=0.5, rate=1.0, readout_rate=0, noise=0.7, activation="linear")
    assert float(run.Q[-1]) == pytest.approx(float(theory.end.Q), rel=0.1)


def test_same_seed_same_run_and_inputs_untouched():
    start = random_weights(2, 1, 30, generator=generator(1))
    before = start.student.clone()
    first, second = (simulate(start, until=5, generator=generator(9), noise=0.1) for _ in range(2))
    near(first.weights.student, second.weights.student, atol=0)
    near(start.student, before, atol=0)
    other = simulate(start, until=5, generator=generator(10), noise=0.1)
    assert not torch.equal(first.weights.student, other.weights.student)


def test_bad_input():
    start = random_weights(2, 1, 30, generator=generator(1))
    for options, message in (
        ({"until": 0}, "`until` must be a finite number > 0"),
        ({"mask": torch.ones(3, 30)}, r"`mask` must have shape \(2, 30\)"),
        ({"draw": lambda n: torch.ones(2, 2)}, "`draw` must give shape"),
        ({"batch": 0}, "`batch` must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate(start, **{"until": 1, "generator": generator(0), **options})
    with pytest.raises(RuntimeError, match="diverged before alpha"):
        simulate(start, until=100, rate=50, generator=generator(0), activation="linear")
    with pytest.raises(ValueError, match="must fit"):
        Weights(torch.ones(2, 3), torch.ones(1, 4), [1, 1], [1])


# Against the learning equations


def deviations(inputs, seeds, seed, **options):
    """RMS deviation over seeds of Q, R, v from the learning equations at α = 2."""
    order = OrderParameters(
        np.diag([1, 0.9, 1.1]), [[0.05, -0.02], [-0.03, 0.04], [0.01, 0.06]], np.eye(2),
        [0.8, -0.6, 0.3], [2, 2],
    )  # fmt: skip
    start = sample_weights(order, inputs, generator=generator(seed), seeds=seeds)
    run = simulate(start, until=2, generator=generator(seed + 1), noise=0.1, **options)
    theory = solve(order, until=2, noise=0.1, rtol=1e-9, atol=1e-11, **options)
    return [
        float((getattr(run, name)[-1] - getattr(theory, name)[-1]).square().mean().sqrt())
        for name in ("Q", "R", "v")
    ]


def test_simulation_follows_the_learning_equations():
    q, r, v = deviations(2000, 10, 0)
    assert q < 0.02
    assert r < 0.014
    assert v < 0.016


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_other_units_follow_the_learning_equations(activation):
    """Mean of Q over 24 seeds, 5 standard errors and 3/N of bias; false alarm 4e-6.

    Without the η² term (a huge batch) the same rule rejects.
    """
    start_order = OrderParameters(
        [[1, 0.3], [0.3, 0.8]], [[0.2, 0.1], [-0.1, 0.4]], np.eye(2), [0.8, -0.6], [2, 1]
    )
    start = sample_weights(start_order, 500, generator=generator(2), seeds=24)
    options = {"until": 2, "activation": activation, "noise": 0.1}
    q = simulate(start, generator=generator(3), **options).Q[-1]
    margin = 5 * q.std(0) / math.sqrt(24) + 3 / 500
    assert bool(((q.mean(0) - solve(start_order, **options).end.Q).abs() < margin).all())
    smooth = solve(start_order, batch=10**9, **options).end.Q
    assert bool(((q.mean(0) - smooth).abs() > margin).any())


def test_batches_divide_the_gradient_noise():
    """B = 4 agrees with the η²/B term, and not with the one of B = 1."""
    assert deviations(1000, 8, 4, batch=4, rate=1.0)[0] < 0.03
    order = OrderParameters([[0.5]], [[0.1]], [[1]], [1], [2])
    one, four = (float(solve(order, until=2, rate=1.0, batch=b).end.Q) for b in (1, 4))
    assert abs(one - four) > 0.2


def test_decay_follows_the_learning_equations():
    assert max(deviations(1000, 8, 6, decay=0.5)) < 0.03


@pytest.mark.slow
def test_deviation_falls_as_the_inverse_root_of_inputs():
    """Slope of log rms against log N over 125 … 8000 is −1/2; the sizes are printed."""
    sizes = [125, 500, 2000, 8000]
    found = np.array([deviations(n, 16, n) for n in sizes])
    for n, row in zip(sizes, found, strict=True):
        print(f"N={n}: dQ={row[0]:.4f} dR={row[1]:.4f} dv={row[2]:.4f}")
    for n, name in enumerate("QRv"):
        slope = np.polyfit(np.log(sizes), np.log(found[:, n]), 1)[0]
        print(f"slope of d{name}: {slope:.3f}")
        assert slope == pytest.approx(-0.5, abs=0.1)


# Retraining by mask patterns

SMALL = OrderParameters([[1.1, 0.9], [0.9, 1]], [[0.95], [0.9]], [[1]], (1.1, 0.9), (2,))


def test_retraining_reference():
    assert float(generalisation_error(SMALL)) == pytest.approx(0.090613, abs=1e-6)
    curve = retrain(
        random_patterns(SMALL, 0.5), noise=0.1, times=[0, 1, 5, 20, 100, 500], rtol=1e-8, atol=1e-10
    ).curve
    wanted = [0.303580, 0.273531, 0.227341, 0.214633, 0.211967, 0.212030]
    near(curve.errors, wanted, atol=1e-6)
    near(generalisation_error(order_at(curve, 20)), wanted[3], atol=1e-6)


def test_patterns_add_up():
    found = pattern_total(random_patterns(SMALL, 0.3))
    wanted = prune_edges(SMALL, edge_moments("random", 0.3))
    for name in ("Q", "R", "T"):
        near(getattr(found, name), getattr(wanted, name), atol=1e-12)
    sampled = sampled_patterns(SMALL, "dpp", 0.4, generator=generator(0), samples=200_000)
    near(
        generalisation_error(pattern_total(sampled)),
        pruned_error(SMALL, "dpp-edge", 0.4).error,
        atol=0.01,
    )
    weights = sample_weights(SMALL, 50, generator=generator(1))
    mask = draw_edge_mask(weights, "dpp", 0.4, generator=generator(2))
    measured = measured_patterns(weights, mask)
    wanted = order_parameters(apply_mask(weights, mask))
    for name in ("Q", "R", "T"):
        near(getattr(pattern_total(measured), name), getattr(wanted, name), atol=1e-12)
    near(measured.share.sum(), 1.0)
    assert len(measured.share) <= 4


def test_all_kept_is_ordinary_learning():
    weights = sample_weights(SMALL, 60, generator=generator(1))
    whole = retrain(measured_patterns(weights, torch.ones(2, 60)), until=20, noise=0.1).curve
    plain = solve(SMALL, until=20, noise=0.1)
    near(whole.errors, plain.errors, atol=1e-6)


def test_retraining_by_theory_meets_gradient_descent():
    """One run at N = 500: ε_g within 5 % from α = 20 on, before too within 10 %."""
    start = sample_weights(SMALL, 500, generator=generator(3))
    mask = draw_edge_mask(start, "random", 0.5, generator=generator(4))
    times = [0.0, 1, 5, 20, 50, 100]
    run = simulate(
        start, until=100, times=times, noise=0.1, mask=mask, generator=generator(5)
    ).errors[:, 0]
    measured, large = (
        retrain(patterns, until=100, times=times, noise=0.1).curve.errors
        for patterns in (measured_patterns(start, mask), random_patterns(SMALL, 0.5))
    )
    near(run[0], measured[0], atol=1e-10)
    assert float((run / measured - 1)[3:].abs().max()) < 0.05
    assert float((run / measured - 1).abs().max()) < 0.1
    assert float((measured / large - 1).abs().max()) < 0.1
    # Negative control: unmasked training leaves this curve at once.
    free = simulate(start, until=20, noise=0.1, generator=generator(5)).errors[-1, 0]
    assert abs(float(free / measured[3]) - 1) > 0.3


def test_pruning_twice_is_pruning_once_by_the_product():
    once = pattern_total(random_patterns(SMALL, 0.3))
    twice = pattern_total(refined_patterns(random_patterns(SMALL, 0.6), 0.5))
    for name in ("Q", "R", "T"):
        near(getattr(twice, name), getattr(once, name), atol=1e-12)


def test_iterated_pruning_meets_gradient_descent():
    """Prune to 0.7, learn, prune to 0.49, learn: one run at N = 1000, ε_g within 8 %."""
    g = generator(8)
    start = sample_weights(SMALL, 1000, generator=g)
    first = torch.rand(2, 1000, generator=g) < 0.7
    run = simulate(start, until=15, noise=0.1, mask=first, generator=g)
    second = first & (torch.rand(2, 1000, generator=g) < 0.7)
    again = simulate(run.weights, until=15, noise=0.1, mask=second, generator=g)
    theory = retrain(random_patterns(SMALL, 0.7), until=15, noise=0.1)
    refined = refined_patterns(theory.end, 0.7)
    near(generalisation_error(pattern_total(theory.end)), theory.curve.errors[-1], atol=1e-9)
    further = retrain(refined, until=15, noise=0.1).curve
    found = torch.stack([run.errors[-1, 0], again.errors[0, 0], again.errors[-1, 0]])
    wanted = torch.stack([theory.curve.errors[-1], further.errors[0], further.errors[-1]])
    assert float((found / wanted - 1).abs().max()) < 0.08
    # Negative control: pruning once to the same density and learning as long ends elsewhere.
    fresh = retrain(random_patterns(SMALL, 0.49), until=1, noise=0.1).curve.errors[-1]
    assert abs(float(fresh / wanted[1]) - 1) > 0.08


def test_retraining_nodes_is_learning_of_the_rest():
    order = order_parameters(random_weights(4, 2, 100, generator=generator(0)))
    trained = solve(order, until=100).end
    curve = solve(keep_nodes(trained, [0, 2]), until=50)
    near(curve.errors[0], generalisation_error(keep_nodes(trained, [0, 2])))
    assert float(curve.errors[-1]) < float(curve.errors[0])


def test_bad_patterns():
    order = order_parameters(random_weights(9, 2, 30, generator=generator(0)))
    with pytest.raises(ValueError, match=r"All 2\^K patterns are followed up to K = 8, got K = 9"):
        random_patterns(order, 0.5)
    with pytest.raises(ValueError, match=r"`density` must lie in \(0, 1\]"):
        random_patterns(SMALL, 1.5)
    with pytest.raises(ValueError, match=r"`mask` must have the shape \(K, N\)"):
        measured_patterns(sample_weights(SMALL, 10, generator=generator(0)), torch.ones(3, 10))
    seeds = random_weights(2, 1, 30, generator=generator(1), seeds=3)
    with pytest.raises(ValueError, match="must hold one seed"):
        order_parameters(seeds)
    assert one_seed(seeds, 2).student.shape == (2, 30)


# Closed forms against real masks on trained students


def configurations():
    rng = np.random.default_rng(2026)
    for n in range(24):
        teachers = int(rng.integers(1, 4))
        yield (
            n,
            int(rng.integers(teachers, 2 * teachers + 3)),
            teachers,
            float(rng.uniform(1, 4)),
            float(rng.choice([0.0, 0.25, 0.5, 1.0])),
            float(rng.uniform(0.1, 0.9)),
        )


@pytest.mark.slow
def test_closed_forms_meet_real_masks_on_trained_students():
    """24 random (K, M, v*, σ, p) at N = 2000: mean over 40 real masks against each level.

    Tolerances of the theory: random 1.5 %, empirical DPP 1.5 %, Gaussian DPP and magnitude 6 %,
    empirical magnitude exact; nodes exact. The worst deviation of each is printed.
    """
    inputs, draws = 2000, 40
    limits = {
        ("random-edge", "gaussian"): 0.015, ("dpp-edge", "empirical"): 0.015,
        ("magnitude-edge", "empirical"): 1e-9, ("dpp-edge", "gaussian"): 0.06,
        ("magnitude-edge", "gaussian"): 0.06,
    }  # fmt: skip
    worst = {}
    for n, students, teachers, target, noise, density in configurations():
        g = generator(1000 + n)
        start = random_weights(students, teachers, inputs, generator=g, teacher_readout=target)
        run = simulate(start, until=40, generator=g, noise=noise)
        weights = run.weights
        order = order_parameters(weights)
        for method, level in limits:
            rule = method.removesuffix("-edge")
            errors = []
            for _ in range(1 if rule == "magnitude" else draws):
                mask = draw_edge_mask(weights, rule, density, generator=g)
                errors.append(
                    float(generalisation_error(order_parameters(apply_mask(weights, mask))))
                )
            exact = int(density * inputs + 0.5) / inputs
            found = pruned_error(order, method, exact, level=level, weights=weights)
            deviation = abs(float(found) / np.mean(errors) - 1)
            key = (method, level)
            if deviation > worst.get(key, (-1,))[0]:
                worst[key] = (deviation, students, teachers, target, noise, density)
        if students > 1:
            kept = int(np.clip(round(density * students), 1, students - 1))
            for method in ("random-node", "dpp-node"):
                found = pruned_error(order, method, kept)
                sets = node_draws(order, method, kept, 400, g)
                errors = np.array([float(generalisation_error(keep_nodes(order, s))) for s in sets])
                spread = errors.std() / math.sqrt(len(errors)) + 1e-12
                deviation = abs(errors.mean() - float(found)) / spread
                key = (method, "standard errors")
                if deviation > worst.get(key, (-1,))[0]:
                    worst[key] = (deviation, students, teachers, target, noise, density)
    for key, value in worst.items():
        print(key, f"worst {value[0]:.4f} at K, M, v*, sigma, p = {value[1:]}")
    for key, limit in limits.items():
        assert worst[key][0] < limit, key
    # 24 × 2 averages of 400 sets; 5 standard errors, false alarm 3e-5.
    assert worst["random-node", "standard errors"][0] < 5
    assert worst["dpp-node", "standard errors"][0] < 5


def node_draws(order, method, kept, draws, g):
    from prunus.dpp import KDPP

    process = KDPP(order.Q)
    for _ in range(draws):
        if method == "dpp-node":
            yield process.sample(kept, generator=g)
        else:
            yield torch.randperm(len(order.v), generator=g)[:kept]
