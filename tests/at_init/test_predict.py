"""The closed form against reference values, its definition by sampling, and the exact engine."""

import dataclasses
import math
import warnings

import pytest
import torch

from prunus.theory.at_init import (
    Setting,
    best_density,
    critical_init_scale,
    draw_problem,
    generalisation_bound,
    initialisation_regime,
    one_step_growth,
    predict,
    simulate,
    template_snr,
)
from prunus.theory.at_init.dynamics import Primal

A = Setting()
A8 = Setting(signal=8.0)
B = Setting(init_scale=1e-2)
DENSITIES = [1, 0.6, 0.35, 0.25, 0.12, 0.05, 0.01, 6e-4]


@pytest.mark.parametrize(
    ("setting", "values", "tolerance"),
    [
        (A, [0.8393, 0.9254, 0.9618, 0.9683, 0.9580, 0.8956, 0.6019, 0.2520], 0.004),
        (A8, [0.9849, 0.9981, 0.9994, 0.9992, 0.9947, 0.9520, 0.6296, 0.2514], 0.004),
        # lazy: the initial margins are a fixed sample of 2000, which differs between generators
        (B, [0.3000, 0.3152, 0.3367, 0.3544, 0.4353, 0.6428, 0.6064, 0.2556], 0.01),
    ],
    ids=["small", "strong", "lazy"],
)
def test_accuracy_values(setting, values, tolerance):
    found = [predict(setting, p).accuracy for p in DENSITIES]
    assert found == pytest.approx(values, abs=tolerance)


@pytest.mark.parametrize(
    ("counts", "value"), [((5, 5, 5, 5), 0.986), ((0, 5, 5, 5), 0.827), ((0, 0, 0, 0), 0.253)]
)
def test_accuracy_of_given_counts(counts, value):
    assert predict(A, 0.1, counts=counts).accuracy == pytest.approx(value, abs=0.006)


def test_counts_average_to_the_binomial_mean():
    """Averaging the prediction for sampled counts gives the prediction without them."""
    setting = dataclasses.replace(A, classes=2, neurons=6)
    generator = torch.Generator().manual_seed(2)
    p, draws = 0.3, 400
    counts = (torch.rand(draws, 2, 6, generator=generator) < p).sum(2)
    values = torch.tensor(
        [predict(setting, p, counts=row).accuracy for row in counts.tolist()], dtype=torch.float64
    )
    error = float(values.std()) / math.sqrt(draws)
    assert abs(float(values.mean()) - predict(setting, p).accuracy) < 5 * error


def test_generalisation_bound_values():
    found = [generalisation_bound(A8, p) for p in DENSITIES[:6]]
    assert found == pytest.approx([0.0951, 0.0100, 0.0034, 0.0047, 0.0249, 0.1047], rel=0.05)
    # U-shaped, with its lowest point where the prediction is best
    assert min(found) == found[2]


def test_template_snr_and_critical_scale_values():
    found = [template_snr(A, p) for p in (1, 0.6, 0.25, 0.1)]
    assert found == pytest.approx([1.592, 2.147, 2.913, 3.185], abs=0.002)
    assert critical_init_scale(A, 1.0) == pytest.approx(2.3e-4, rel=0.02)
    assert initialisation_regime(A, 1.0) == "small"
    assert initialisation_regime(B, 1.0) == "lazy"
    assert initialisation_regime(dataclasses.replace(A, init_scale=3e-4), 1.0) == "intermediate"


def test_regimes_end_at_half_and_at_thrice_the_critical_scale():
    critical = critical_init_scale(A, 0.3)

    def regime(scale):
        return initialisation_regime(dataclasses.replace(A, init_scale=scale), 0.3)

    assert regime(critical / 2) == "small"
    assert regime(math.nextafter(critical / 2, 1)) == "intermediate"
    assert regime(math.nextafter(3 * critical, 0)) == "intermediate"
    assert regime(3 * critical) == "lazy"


@pytest.mark.parametrize(
    ("neurons", "value"), [(9, 0.483), (25, 0.301), (50, 0.220), (100, 0.161), (400, 0.095)]
)
def test_best_density_values(neurons, value):
    assert best_density(dataclasses.replace(A, neurons=neurons)) == pytest.approx(value, abs=0.03)


@pytest.mark.parametrize("density", [0.25, 1.0])
def test_one_step_growth(density):
    """From small weights, on the points active at the start, over 4 seeds."""
    gained = {"signal_own": [], "signal_other": [], "noise_own": [], "noise_other": []}
    k, m = A.classes, A.neurons
    own = torch.arange(k).repeat_interleave(m)
    for seed in range(4):
        problem = draw_problem(A, seed)
        network = Primal(problem, density)
        before, active = network.weight.clone(), network.preactivations > 0
        outputs = network.preactivations.reshape(k, m, -1).clamp_min(0).sum(1)
        target = torch.nn.functional.one_hot(problem.labels, k).T
        residual = (target - outputs.softmax(0))[own] / A.samples
        network.advance(residual * active)
        change = network.weight - before
        same = own[:, None] == torch.arange(k)
        signal = A.signal * change[:, :k]
        gained["signal_own"].append(signal[network.mask[:, :k] & same])
        gained["signal_other"].append(signal[network.mask[:, :k] & ~same])
        noise = change @ problem.inputs.T - signal[:, problem.labels]
        match = own[:, None] == problem.labels
        gained["noise_own"].append(noise[active & match])
        gained["noise_other"].append(noise[active & ~match])
    theory = dataclasses.asdict(one_step_growth(A, density))
    for name, values in gained.items():
        measured = float(torch.cat(values).mean())
        assert measured == pytest.approx(theory[name], rel=0.05), name


def test_coefficients_agree_with_training():
    run = simulate(A, [1, 0.25], seeds=4, checkpoints=0, dtype=torch.float32)
    for i, density in enumerate(run.densities):
        theory = predict(A, density, train_loss=float(run.train_loss[i].mean()))
        for name in ("signal", "noise_signal_neurons", "noise_only_neurons"):
            measured = run.trajectory["signal_own" if name == "signal" else name][i, :, -1].mean()
            if name == "noise_only_neurons" and density == 1:
                assert math.isnan(float(measured))
                assert math.isnan(theory.noise_only_neurons)
            else:
                assert float(measured) == pytest.approx(getattr(theory, name), rel=0.06), name


def test_given_counts_against_training_on_random_settings():
    """20 settings drawn afresh, p m ≥ 3, prediction for the mask that was drawn: RMSE ≤ 0.05."""
    generator = torch.Generator().manual_seed(77)

    def uniform(low, high):
        return low + (high - low) * float(torch.rand((), generator=generator))

    errors = []
    for seed in range(20):
        k, m = round(uniform(2, 6)), round(uniform(10, 40))
        n, d = k * round(uniform(6, 16)), round(uniform(600, 3000))
        target = uniform(1.2, 4)
        signal = math.sqrt(target * math.sqrt(d) / math.sqrt(n / k))
        setting = Setting(
            classes=k,
            samples=n,
            dimension=d,
            neurons=m,
            signal=signal,
            init_scale=10 ** uniform(-5, -2),
        )
        density = math.exp(uniform(math.log(3 / m), 0))
        run = simulate(setting, [density], seeds=[seed], checkpoints=0, test_draws=2000)
        theory = predict(
            setting,
            density,
            train_loss=float(run.train_loss[0, 0]),
            counts=run.signal_neurons[0, 0].tolist(),
        )
        assert theory.valid
        errors.append(theory.accuracy - float(run.test_accuracy[0, 0]))
    found = torch.tensor(errors)
    rmse, bias = float(found.square().mean().sqrt()), float(found.mean())
    print(f"closed form given counts, 20 settings: RMSE {rmse:.4f}, bias {bias:+.4f}")
    assert rmse <= 0.05


def test_validity_flag():
    assert not predict(A, 0.01).valid  # p d = 41 < 180 and p m = 0.5 < 3
    assert predict(A, 0.05).valid
    few = dataclasses.replace(A, samples=20)  # 5 points a class: signal neurons may sleep
    assert not predict(few, 0.1).valid
    assert predict(few, 0.2).valid  # 10 signal neurons a class


def test_no_initial_weights():
    cold = dataclasses.replace(A, init_scale=0.0)
    assert predict(cold, 0.25).accuracy == pytest.approx(predict(A, 0.25).accuracy, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict(A, 0.0), "Nothing would be kept"),
        (lambda: predict(A, 0.5, train_loss=2.0), r"`train_loss` must lie in \(0, log classes\)"),
        (lambda: predict(A, 0.5, train_loss=math.nan), "`train_loss` must lie in"),
        (lambda: predict(A, 0.5, counts=[1, 2, 3]), r"one number per class \(4\), got 3"),
        (lambda: predict(A, 0.5, counts=[1, 2, 3, 51]), r"`counts` must be .* in \[0, 50\]"),
        (lambda: predict(A, 0.5, counts=[1, 2, 3, -1]), r"`counts` must be .* in \[0, 50\]"),
        (lambda: predict(Setting(support=2), 0.5), "covers `support` = 1, got 2"),
        (lambda: generalisation_bound(A, 1.2), r"in \(0, 1\], got 1.2"),
    ],
)
def test_bad_arguments(call, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        call()
