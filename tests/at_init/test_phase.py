"""Regimes and the phase diagram."""

import dataclasses
import math

import pytest
import torch

from prunus.theory.at_init import (
    Setting,
    classify_regime,
    p_keep,
    p_over,
    phase_diagram,
    predict,
    simulate,
)

A = Setting()


def test_regimes_of_the_reference_setting():
    names = [classify_regime(A, p).name for p in (5e-4, 0.01, 0.05, 0.1129, 0.25)]
    assert names == ["over_pruned", "signal_loss", "transitional", "mild", "mild"]
    mild = classify_regime(A, 0.25)
    assert mild.beneficial
    assert (mild.accuracy, mild.dense_accuracy) == (
        pytest.approx(0.9683, abs=0.004),
        pytest.approx(0.8393, abs=0.004),
    )
    assert not classify_regime(A, 0.01).beneficial
    assert not classify_regime(A, 0.01).valid
    assert mild.initialisation == "small"


def test_regimes_change_at_their_thresholds():
    over = p_over(A.classes, A.neurons, A.dimension)
    assert classify_regime(A, over).name == "over_pruned"
    assert classify_regime(A, over * 1.0001).name == "signal_loss"
    half = -math.expm1(math.log(0.5) / A.neurons)  # (1-p)^m = 1/2
    assert classify_regime(A, half * 0.9999).name == "signal_loss"
    assert classify_regime(A, half * 1.0001).name == "transitional"
    keep = p_keep(A.neurons, A.classes, 0.01)
    assert classify_regime(A, keep * 0.9999).name == "transitional"
    assert classify_regime(A, keep * 1.0001).name == "mild"


def test_spread_signals_have_no_closed_form():
    regime = classify_regime(Setting(support=4), 0.25)
    assert (regime.name, regime.accuracy, regime.beneficial) == ("mild", None, None)


def test_vacuous_probability_is_said():
    with pytest.warns(RuntimeWarning, match=r"log dimension = 5.3 <= classes = 8"):
        classify_regime(Setting(classes=8, samples=80, dimension=200), 0.25)


def test_predicted_diagram():
    noises, densities = [0.8, 1.0, 1.25], [0.01, 0.05, 0.22, 1.0]
    found = phase_diagram(A, "noise", noises, densities)
    for i, noise in enumerate(noises):
        for j, density in enumerate(densities):
            cell = predict(dataclasses.replace(A, noise=noise), density)
            assert float(found.accuracy[i, j]) == cell.accuracy
            assert bool(found.valid[i, j]) == cell.valid
    assert found.best.tolist() == [0.22] * 3
    assert not bool(found.valid[0, 0])
    at = dataclasses.replace(A, noise=found.unit_snr)
    assert at.signal_to_noise == pytest.approx(1.0)


def test_curves_follow_the_axis():
    found = phase_diagram(A, "neurons", [10, 100], [0.5])
    assert found.p_over.tolist() == [p_over(4, m, 4096) for m in (10, 100)]
    assert found.p_keep.tolist() == [p_keep(m, 4) for m in (10, 100)]
    assert found.unit_snr is None


def test_of_equally_good_densities_the_largest_is_best():
    """Without noise to speak of every density is right: nothing is gained by pruning."""
    easy = dataclasses.replace(A, dimension=400, neurons=20, signal=60.0)
    found = phase_diagram(easy, "samples", [24], [0.5, 1.0, 0.8], engine="dual", seeds=1)
    assert found.accuracy.tolist() == [[1.0, 1.0, 1.0]]
    assert found.best.tolist() == [1.0]


def test_measured_diagram_is_the_simulation():
    small = Setting(classes=3, samples=24, dimension=500, neurons=10, signal=5.0)
    densities = [1.0, 0.3]
    found = phase_diagram(small, "signal", [4.0, 6.0], densities, engine="dual", seeds=2)
    run = simulate(
        dataclasses.replace(small, signal=6.0),
        densities,
        seeds=2,
        checkpoints=0,
        dtype=torch.float32,
    )
    torch.testing.assert_close(found.accuracy[1], run.test_accuracy.mean(1))


def test_prediction_against_measurement_on_a_grid():
    """Two rows of the diagram at densities of 0.18 and above: RMSE within 0.03."""
    axis, values, densities = "noise", [0.8, 1.3], [0.18, 0.35, 1.0]
    predicted = phase_diagram(A, axis, values, densities)
    measured = phase_diagram(A, axis, values, densities, engine="dual", seeds=4)
    rmse = float((predicted.accuracy - measured.accuracy).square().mean().sqrt())
    print(f"closed form against training, 6 cells: RMSE {rmse:.4f}")
    assert rmse < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": "width"}, "Unknown axis 'width'"),
        ({"engine": "close"}, "Unknown engine 'close'. Did you mean closed"),
        ({"values": []}, "`values` must hold at least one value"),
        ({"densities": []}, "`densities` must hold at least one density"),
        ({"values": [-1.0]}, "`noise` must be a finite number > 0"),
        ({"delta": 0.0}, r"`delta` must lie in \(0, 1\)"),
    ],
)
def test_bad_arguments(change, message):
    call = {"axis": "noise", "values": [1.0], "densities": [0.5], **change}
    with pytest.raises(ValueError, match=message):
        phase_diagram(A, **call)
