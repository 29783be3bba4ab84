"""The three engines against brute force, and the record of a simulation."""

import dataclasses
import math
import warnings

import pytest
import torch

from prunus.theory import at_init
from prunus.theory.at_init import Setting, draw_problem, simulate
from prunus.theory.at_init.dynamics import nested_grams
from prunus.theory.at_init.evaluate import accuracy_with_ties, performance, preactivation_law
from reference import at_init as reference

SMALL = Setting(
    classes=3, samples=24, dimension=300, neurons=6, signal=5.0, init_scale=0.01, support=1
)
MEDIUM = Setting(classes=4, samples=40, dimension=1024, neurons=20, signal=5.5, init_scale=1e-4)


@pytest.fixture(scope="module")
def two_engines():
    options = {"seeds": 2, "steps": 50, "keep_weights": True, "checkpoints": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 50 steps memorise little at 0.02
        return [
            simulate(SMALL, [1, 0.5, 0.1, 0.02], engine=name, **options)
            for name in ("dual", "primal")
        ]


def test_dual_equals_primal(two_engines):
    dual, primal = two_engines
    worst = max(
        float((dual.weights[key] - primal.weights[key]).abs().max()) for key in dual.weights
    )
    print(f"largest |dW| between dual and primal: {worst:.2g}")
    assert len(dual.weights) == 8
    assert worst <= 1e-12
    # the same records, up to sums in another order
    torch.testing.assert_close(dual.loss_curve, primal.loss_curve, rtol=1e-10, atol=1e-12)
    for name, values in dual.trajectory.items():
        torch.testing.assert_close(
            values, primal.trajectory[name], rtol=1e-8, atol=1e-9, equal_nan=True, msg=name
        )


def test_primal_equals_autograd(two_engines):
    _, primal = two_engines
    for j, seed in enumerate(primal.seeds):
        problem = draw_problem(SMALL, seed)
        for i, density in enumerate(primal.densities):
            eta = 2.0 * SMALL.samples / reference.top_curvature(problem, density)
            assert float(primal.step_size[i, j]) == pytest.approx(eta, rel=1e-10)
            expected = reference.masked_descent(problem, density, 50, eta)
            torch.testing.assert_close(primal.weights[i, j], expected, rtol=1e-9, atol=1e-12)


def test_masked_weights_stay_zero_and_masks_are_nested(two_engines):
    dual, _ = two_engines
    for j, seed in enumerate(dual.seeds):
        problem = draw_problem(SMALL, seed)
        for i, density in enumerate(dual.densities):
            assert bool((dual.weights[i, j][~problem.mask(density)] == 0).all())
        assert bool((problem.mask(0.02) <= problem.mask(0.1)).all())


@pytest.mark.parametrize("support", [1, 3])
def test_grams_of_nested_masks(support):
    problem = draw_problem(dataclasses.replace(SMALL, support=support), 4)
    densities = [0.004, 0.3, 0.31, 1.0]
    for density, grams in zip(densities, nested_grams(problem, densities), strict=True):
        mask = problem.mask(density).double()
        expected = torch.einsum("id,rd,jd->rij", problem.inputs, mask, problem.inputs)
        torch.testing.assert_close(grams, expected, rtol=1e-12, atol=1e-9)


def test_float32_follows_float64():
    runs = [
        simulate(MEDIUM, [1, 0.3, 0.05], seeds=2, dtype=dtype, checkpoints=0)
        for dtype in (torch.float64, torch.float32)
    ]
    # gates flip after many steps, so accuracies agree to a few test points of 4000
    torch.testing.assert_close(runs[0].test_accuracy, runs[1].test_accuracy, rtol=0, atol=0.003)


@pytest.mark.parametrize("noise_on_signal", [True, False])
def test_sampler_against_fresh_points(noise_on_signal):
    setting = dataclasses.replace(
        SMALL, noise_on_signal=noise_on_signal, neurons=12, support=2, signal=3.0
    )
    run = simulate(
        setting, [1, 0.3, 0.1], seeds=[5], keep_weights=True, checkpoints=0, test_draws=20000
    )
    generator = torch.Generator().manual_seed(0)
    points, labels = reference.fresh_points(setting, 7000, generator)
    for i in range(3):
        output = reference.forward(run.weights[i, 0], points, setting.classes)
        score = reference.tie_aware_score(output, labels)
        gap = abs(float(run.test_accuracy[i, 0]) - float(score.mean()))
        # shared draws make the K classes of one draw dependent: count 20000 draws, not 60000
        spread = float(score.std()) * math.sqrt(1 / len(score) + 1 / 20000)
        assert gap < 5 * spread, f"density {run.densities[i]}: {gap:.4f}, spread {spread:.4f}"
        loss = float(torch.nn.functional.cross_entropy(output, labels))
        assert float(run.test_loss[i, 0]) == pytest.approx(loss, abs=0.03)


def test_dead_network_scores_exactly_chance():
    law = preactivation_law(SMALL, torch.zeros(SMALL.rows, SMALL.dimension, dtype=torch.float64))
    normals = torch.randn(SMALL.rows, 50, dtype=torch.float64)
    assert performance(SMALL, law, normals) == (
        pytest.approx(1 / 3, abs=1e-15),
        pytest.approx(math.log(3), abs=1e-15),
    )


def test_ties_share_the_win():
    outputs = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 3.0]])  # classes × points
    label = torch.tensor([0, 1, 0])
    torch.testing.assert_close(accuracy_with_ties(outputs, label), torch.tensor([0.5, 0.5, 0.0]))


def test_fully_masked_network_is_reported():
    tiny = Setting(classes=2, samples=4, dimension=20, neurons=1, signal=3.0)
    with pytest.warns(RuntimeWarning) as caught:
        run = simulate(tiny, [1e-9, 0.9], seeds=[0])
    assert any("kept no weight" in str(w.message) for w in caught)
    assert float(run.test_accuracy[0, 0]) == 0.5
    assert float(run.test_loss[0, 0]) == pytest.approx(math.log(2))
    assert int(run.visible[0, 0]) == 0


def test_densities_come_back_in_the_callers_order():
    forward = simulate(SMALL, [0.2, 1.0, 0.5], seeds=2, checkpoints=0)
    backward = simulate(SMALL, [0.5, 1.0, 0.2], seeds=2, checkpoints=0)
    assert forward.densities == [0.2, 1.0, 0.5]
    torch.testing.assert_close(forward.test_accuracy, backward.test_accuracy.flip(0))


def test_seeds_by_count_by_name_and_by_generator():
    by_count = simulate(SMALL, [0.5], seeds=2, checkpoints=0)
    by_name = simulate(SMALL, [0.5], seeds=[0, 1], checkpoints=0)
    torch.testing.assert_close(by_count.test_loss, by_name.test_loss)
    drawn = [
        simulate(
            SMALL, 0.5, seeds=2, checkpoints=0, generator=torch.Generator().manual_seed(9)
        ).seeds
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1] != [0, 1]


def test_fixed_step_size():
    run = simulate(SMALL, [1.0, 0.5], seeds=1, step_size=0.01, checkpoints=0)
    assert bool((run.step_size == 0.01).all())


def test_checkpoints_are_log_spaced_and_end_at_the_end():
    run = simulate(SMALL, [0.5], seeds=1, steps=100, checkpoints=6)
    assert run.checkpoints == [1, 3, 6, 16, 40, 100]
    assert run.loss_curve.shape == (1, 1, 101)
    assert float(run.trajectory["signal_own"][0, 0, -1]) > float(
        run.trajectory["signal_own"][0, 0, 0]
    )


def test_information_bounds_hold_and_chance_is_exact():
    """320 random small runs near the loss of all signals: no violation, exact chance at a = 0."""
    generator = torch.Generator().manual_seed(11)
    invisible = 0
    for seed in range(80):
        classes = int(torch.randint(2, 5, (), generator=generator))
        setting = Setting(
            classes=classes,
            samples=6 * classes,
            dimension=400,
            neurons=int(torch.randint(3, 9, (), generator=generator)),
            signal=4.0 + 4 * float(torch.rand((), generator=generator)),
            init_scale=1e-3,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # over-pruned nets may not memorise
            run = simulate(setting, [0.4, 0.06, 0.02, 0.01], seeds=[seed], checkpoints=0, steps=80)
        # sampling slack of the finite test set
        assert bool((run.test_accuracy <= run.accuracy_bound + 0.01).all())
        assert bool((run.test_loss >= run.loss_bound - 0.01).all())
        assert bool((1 - run.test_accuracy <= run.certificate + 0.01).all())
        blind = run.visible == 0
        invisible += int(blind.sum())
        # shared draws: the sum over classes of the scores of one draw is 1
        torch.testing.assert_close(
            run.test_accuracy[blind], torch.full_like(run.test_accuracy[blind], 1 / classes)
        )
    print(f"{invisible} of 320 runs saw no class")
    assert invisible >= 20


@pytest.mark.parametrize("reduced_and_dual", [0.6, 0.2, 0.1])
def test_reduced_level_follows_the_dual(reduced_and_dual):
    setting = dataclasses.replace(MEDIUM, dimension=4096, signal=6.0)
    p = reduced_and_dual
    runs = [
        simulate(setting, [p], seeds=8, engine=engine, checkpoints=0, dtype=torch.float32)
        for engine in ("dual", "reduced")
    ]
    gap = float(runs[0].test_accuracy.mean() - runs[1].test_accuracy.mean())
    error = math.hypot(*(float(r.test_accuracy.std()) / math.sqrt(8) for r in runs))
    # the level is heuristic: 0.02 for the model beside 4 standard errors for the seeds
    assert abs(gap) < 0.02 + 4 * error


def test_one_step_growth():
    """One step of size 1 from small weights: the table of reference values, within 5 %."""
    setting = Setting()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one step memorises nothing
        run = simulate(setting, [0.25], seeds=4, steps=1, step_size=1.0, checkpoints=1)
    values = {name: float(v[0, :, -1].mean()) for name, v in run.trajectory.items()}
    assert values["signal_own"] == pytest.approx(3.375, rel=0.05)
    assert values["signal_other"] == pytest.approx(-1.125, rel=0.05)


def test_at_init_is_a_part_of_theory():
    assert at_init.simulate is simulate
    assert sorted(at_init.__all__) == at_init.__all__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "`classes` must be a whole number >= 2"),
        ({"samples": 3}, "`samples` must be a whole number >= 4"),
        ({"dimension": 4}, "`dimension` must exceed classes · support = 4"),
        ({"dimension": 12, "support": 3}, "no noise coordinates are left"),
        ({"neurons": 0}, "`neurons` must be a whole number >= 1"),
        ({"signal": -1.0}, "`signal` must be a finite number >= 0"),
        ({"signal": math.inf}, "`signal` must be a finite number >= 0"),
        ({"signal": math.nan}, "`signal` must be a finite number >= 0"),
        ({"noise": 0.0}, "`noise` must be a finite number > 0"),
        ({"noise": math.nan}, "`noise` must be a finite number > 0"),
        ({"init_scale": -1e-3}, "`init_scale` must be a finite number >= 0"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        Setting(**change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"densities": []}, "`densities` must hold at least one density"),
        ({"densities": [0.5, 0.0]}, "Nothing would be kept"),
        ({"densities": [1.01]}, r"in \(0, 1\], got 1.01"),
        ({"densities": [math.nan]}, r"in \(0, 1\], got nan"),
        ({"seeds": []}, "`seeds` must hold at least one seed"),
        ({"seeds": 0}, "`seeds` must be a whole number >= 1"),
        ({"engine": "duel"}, "Unknown engine 'duel'. Did you mean dual"),
        ({"learning_rate": 4.0}, r"`learning_rate` must lie in \(0, 4\)"),
        ({"steps": 0}, "`steps` must be a whole number >= 1"),
        ({"engine": "reduced", "keep_weights": True}, "`keep_weights` needs the engine"),
    ],
)
def test_bad_simulations(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(SMALL, **{"densities": [0.5], **options})


def test_too_much_memory_is_refused_with_a_way_out():
    large = Setting(classes=10, samples=2000, dimension=20000, neurons=200)
    with pytest.raises(ValueError, match="Use engine='primal'"):
        simulate(large, [0.5])


def test_warnings():
    with pytest.warns(RuntimeWarning, match=r"class sizes are \[9, 8, 8\]"):
        simulate(dataclasses.replace(SMALL, samples=25), [0.5], seeds=1, checkpoints=0)
    with pytest.warns(RuntimeWarning, match="reduced level is outside its range"):
        simulate(SMALL, [0.2], seeds=1, engine="reduced", checkpoints=0)
    at_most = dataclasses.replace(SMALL, samples=18)  # a third of density · dimension = 54
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        simulate(at_most, [0.18], seeds=1, engine="reduced", checkpoints=0)
    over = dataclasses.replace(SMALL, samples=21)
    with pytest.warns(RuntimeWarning, match=r"density / 3 = 18 at .* level is outside its range"):
        simulate(over, [0.18], seeds=1, engine="reduced", checkpoints=0)
    with pytest.warns(RuntimeWarning, match="At density 0.5 a run did not memorise"):
        simulate(SMALL, [0.5], seeds=1, steps=1, checkpoints=0)
