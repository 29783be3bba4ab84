"""Gaussian averages, generalisation error and learning curves against published-form references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.theory.teacher_student import (
    ACTIVATIONS,
    OrderParameters,
    generalisation_error,
    joint,
    order_at,
    order_parameters,
    plateaus,
    random_weights,
    sample_weights,
    smooth_activation,
    solve,
)
from prunus.theory.teacher_student.ode import learning_rhs
from prunus.theory.teacher_student.order import as_arrays
from prunus.theory.teacher_student.points import normal_points
from prunus.theory.teacher_student.relu import orthant_four, relu_four_point
from reference import teacher_student as slow

FOUR = np.array(
    [[1, 0.5, 0.2, 0.1], [0.5, 2, 0.3, -0.4], [0.2, 0.3, 0.5, 0.25], [0.1, -0.4, 0.25, 1.5]]
)
SMALL = OrderParameters(
    [[1, 0.3], [0.3, 0.8]], [[0.2, 0.1], [-0.1, 0.4]], [[1, 0.1], [0.1, 1.2]], (1, -0.5), (2, 1)
)


def near(actual, wanted, atol=1e-10, rtol=0.0):
    actual = torch.as_tensor(actual, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(actual, wanted, atol=atol, rtol=rtol)


# Gaussian averages


def test_erf_averages():
    unit = ACTIVATIONS["erf"]
    pair, slopes = unit.pair(FOUR), unit.slopes(FOUR, 4)
    near([pair[0, 1], pair[1, 3], pair[0, 0]], [0.1308692462, -0.0933180948, 1 / 3])
    near([slopes[0, 1], slopes[0, 0]], [0.2654887976, 0.3675525969])
    # Γ C holds ⟨g′(x_1) x_b Σ a_c g(x_c)⟩; unit vectors a pick single averages out of it.
    three = {(0, 1, 2): 0.0925069316, (0, 0, 1): 0.0663721994, (0, 1, 0): 0.0918881492}
    for (a, b, c), wanted in three.items():
        near((unit.stein(FOUR, np.eye(4)[c], 4) @ FOUR)[a, b], wanted)
    # D2 is quadratic in a: polarise it for a single four-point average.
    four = {
        (0, 1, 2, 3): 0.0249460026,
        (0, 0, 1, 2): 0.0267809293,
        (0, 1, 0, 0): 0.0556833361,
        (0, 1, 0, 1): 0.0094091288,
    }
    for index, wanted in four.items():
        near(polarised(unit, FOUR, index), wanted)
        near(slow.i4(FOUR, *index), wanted)


def polarised(unit, covariance, index):
    i, k, c, d = index
    eye = np.eye(len(covariance))
    plus = unit.gated_square(covariance, eye[c] + eye[d], len(covariance))[i, k]
    minus = unit.gated_square(covariance, eye[c] - eye[d], len(covariance))[i, k]
    return (plus - minus) / 4


def test_relu_averages():
    unit = ACTIVATIONS["relu"]
    pair = unit.pair(FOUR)
    near([pair[0, 1], pair[1, 3]], [0.3642988817, 0.1830487066])
    near(unit.slopes(FOUR, 4)[0, 1], 0.3075133640)
    near((unit.stein(FOUR, np.eye(4)[2], 4) @ FOUR)[0, 1], 0.1426636839)
    near(orthant_four(FOUR[None])[0], 0.1077670997, atol=1e-9)
    near(relu_four_point(FOUR, np.array([[0, 1, 2, 3]]))[0], 0.0821585703, atol=1e-9)


@pytest.mark.parametrize("name", ["erf", "relu", "linear"])
def test_four_point_averages_with_repeated_indices_meet_monte_carlo(name):
    """All index patterns of ⟨g′ g′ g g⟩ on 2e6 samples; 5 standard errors, false alarm 1e-5."""
    unit = ACTIVATIONS[name]
    g, slope = slow.UNITS[name]
    patterns = [
        (i, k, c, d) for i in range(2) for k in range(2) for c in range(4) for d in range(c, 4)
    ]
    rng = np.random.default_rng(5)
    values, vectors = np.linalg.eigh(FOUR)
    x = rng.standard_normal((2_000_000, 4)) @ (vectors * np.sqrt(values)).T
    output, gate = g(x), slope(x)
    worst = 0.0
    for i, k, c, d in patterns:
        product = gate[:, i] * gate[:, k] * output[:, c] * output[:, d]
        error = product.mean() - polarised(unit, FOUR, (i, k, c, d))
        worst = max(worst, abs(error) / (product.std() / math.sqrt(len(x))))
    assert worst < 5
    # Negative control: shifting one average by 1 % is seen.
    product = gate[:, 0] * gate[:, 1] * output[:, 0] * output[:, 1]
    shifted = 1.05 * polarised(unit, FOUR, (0, 1, 0, 1))
    assert abs(product.mean() - shifted) > 3 * product.std() / math.sqrt(len(x))


def test_repeated_unit_is_recognised_by_index_not_by_correlation():
    """A second, identical unit gives the repeated unit's value, by the generic branch."""
    twin = np.array([0, 1, 2, 3, 0])
    covariance = FOUR[np.ix_(twin, twin)]
    for pattern, same in [((0, 4, 1, 2), (0, 0, 1, 2)), ((0, 1, 4, 2), (0, 1, 0, 2))]:
        values = relu_four_point(covariance, np.array([pattern, same]))
        near(values[0], values[1], atol=1e-6)  # Plackett's integrand is singular at ρ = 1


def test_smooth_activation_approaches_the_closed_forms():
    g, slope = slow.UNITS["erf"]
    points = smooth_activation("erf by points", g, slope, lambda u: -u * slope(u), points=2**15)
    covariance, _, _ = as_arrays(SMALL)
    exact = rhs(ACTIVATIONS["erf"])
    found = rhs(points)
    near(found.Q, exact.Q, atol=2e-3)
    near(found.R, exact.R, atol=2e-3)
    near(found.v, exact.v, atol=1e-3)
    near(points.pair(covariance), ACTIVATIONS["erf"].pair(covariance), atol=1e-3)


def rhs(unit, order=SMALL, rate=0.5, readout_rate=0.25, noise=0.3, **more):
    covariance, readout, students = as_arrays(order)
    return learning_rhs(
        covariance, readout, students, rate=rate, readout_rate=readout_rate, noise=noise,
        activation=unit, **more,
    )  # fmt: skip


def test_quasi_random_points_are_fixed_mirrored_and_white():
    points = normal_points(1024, 5)
    assert points is normal_points(1024, 5)
    near(points.T @ points / len(points), np.eye(5), atol=1e-12)
    near(points.sum(0), np.zeros(5), atol=1e-9)


# Error and right-hand side


def test_generalisation_error():
    near(generalisation_error(SMALL), 0.936761958)
    near(generalisation_error(SMALL, activation="relu"), 1.5154615189)
    near(generalisation_error(SMALL, activation="linear"), 2.85)
    near(generalisation_error(SMALL, counted_noise=0.3), 0.936761958 + 0.045)


RHS = {
    "erf": (
        [[0.1013186995, 0.0030424129], [0.0030424129, 0.0155459163]],
        [[0.297766884, 0.2338550066], [-0.1558952791, -0.1193848262]],
        [-0.0312234337, 0.0268056765],
    ),
    "linear": (
        [[1.0975, -0.48625], [-0.48625, 0.211875]],
        [[0.925, 0.75], [-0.4625, -0.375]],
        [-0.0875, 0.075],
    ),
    "relu": (
        [[0.6382719783, -0.0373329218], [-0.0373329218, -0.1300478107]],
        [[0.292918568, 0.2200053563], [-0.0934367646, -0.160472305]],
        [0.0593722004, 0.1200433163],
    ),
}


@pytest.mark.parametrize("name", RHS)
def test_right_hand_side(name):
    change = rhs(ACTIVATIONS[name])
    for found, wanted in zip((change.Q, change.R, change.v), RHS[name], strict=True):
        near(found, wanted, atol=1e-7 if name == "relu" else 1e-10)


def test_right_hand_side_without_the_quadratic_term():
    """A huge batch removes the η² term and nothing else."""
    change = rhs(ACTIVATIONS["erf"], batch=10**12)
    wanted = [[-0.0791163148, 0.0868289441], [0.0868289441, -0.0331716078]]
    near(change.Q, wanted)


def test_relu_noise_matrix():
    covariance, readout, students = as_arrays(SMALL)
    wanted = [[1.55813271, 1.01044336], [1.01044336, 1.71562115]]
    near(ACTIVATIONS["relu"].gated_square(covariance, readout, students), wanted, atol=1e-8)


def test_relu_noise_matrix_by_points_above_eight_students(monkeypatch):
    from prunus.theory.teacher_student import relu

    covariance, readout, students = as_arrays(SMALL)
    monkeypatch.setattr(relu, "EXACT_LIMIT", 1)
    found = relu.relu_gated_square(covariance, readout, students)
    near(found, [[1.55813271, 1.01044336], [1.01044336, 1.71562115]], atol=2e-2)


def test_right_hand_side_meets_literal_quadruple_sums():
    order = order_parameters(random_weights(4, 3, 12, generator=torch.Generator().manual_seed(3)))
    covariance, readout, students = as_arrays(order)
    change = rhs(ACTIVATIONS["erf"], order, rate=0.7, readout_rate=0.2, noise=0.4)
    wanted = slow.learning_rhs(covariance, readout, students, 0.7, 0.2, 0.4)
    for found, value in zip((change.Q, change.R, change.v), wanted, strict=True):
        near(found, value, atol=1e-12, rtol=1e-12)


# Learning curves

TIMES = [0, 1, 10, 50, 200, 1000]


def committee(overlap=0.02):
    return OrderParameters(
        [[0.25, 0], [0, 0.2]], [[overlap, 0], [0, overlap / 2]], np.eye(2), [1, 1], [1, 1]
    )


def test_soft_committee_machine():
    curve = solve(
        committee(), until=1000, rate=1, readout_rate=0, times=TIMES, rtol=1e-8, atol=1e-14
    )
    wanted = [0.438565649, 0.1797098171, 0.0211057696, 0.0189610151, 2.744e-7]
    near(curve.errors[:4], wanted[:4], atol=0, rtol=1e-5)
    near(curve.errors[4], wanted[4], atol=0, rtol=1e-3)  # four digits are published
    assert float(curve.errors[5].abs()) < 1e-12
    near(curve.v, np.ones((6, 2)), atol=0)


@pytest.mark.parametrize("method", [None, "DOP853"])
def test_both_layers(method):
    curve = solve(
        SMALL, until=1000, rate=0.5, readout_rate=0.25, noise=0.3, times=TIMES, rtol=1e-8,
        atol=1e-10, method=method,
    )  # fmt: skip
    wanted = [0.936761958, 0.675054722, 0.0698850156, 0.0467604425, 0.0236513737, 0.0204072297]
    near(curve.errors, wanted, atol=0, rtol=1e-5)


def test_over_parametrised_student():
    order = OrderParameters(
        np.diag([1, 0.9, 1.1]), [[0.05, -0.02], [-0.03, 0.04], [0.01, 0.06]], np.eye(2),
        [0.8, -0.6, 0.3], [2, 2],
    )  # fmt: skip
    curve = solve(order, until=1000, noise=0.25, times=TIMES, rtol=1e-8, atol=1e-10)
    wanted = [1.4879312932, 1.1221120892, 0.1018039779, 0.0858417308, 0.0208716709, 0.0203623612]
    near(curve.errors, wanted, atol=0, rtol=1e-5)
    near(curve.end.v, [0.9015874679, -1.5170570522, 0.8886076848], atol=0, rtol=1e-5)
    middle = order_at(curve, 10)
    near(generalisation_error(middle), wanted[2], atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("overlap", "exit_time"), [(0.1, 45), (0.01, 86), (0.001, 126), (1e-4, 165)]
)
def test_escape_from_the_symmetric_plateau(overlap, exit_time):
    curve = solve(committee(overlap), until=400, rate=1, readout_rate=0, atol=1e-14)
    (found, *rest) = plateaus(curve)
    assert not rest
    assert found.escape == pytest.approx(exit_time, abs=2)
    assert found.begin < 10 < found.end < found.escape
    assert found.error == pytest.approx(0.0208, rel=0.05)


def test_symmetric_plateau_lasts_for_ever_without_overlap():
    order = OrderParameters(0.2 * np.eye(2), 0 * np.eye(2), np.eye(2), [1, 1], [1, 1])
    (found,) = plateaus(solve(order, until=400, rate=1, readout_rate=0))
    assert found.end is None
    assert found.escape is None


def test_final_level_is_a_plateau_without_end():
    found = plateaus(solve(SMALL, until=1000, readout_rate=0.25, noise=0.3))
    assert found[-1].end is None


def test_schedule_and_decay():
    constant = solve(SMALL, until=5, rate=0.5, readout_rate=0.25)
    scheduled = solve(SMALL, until=5, rate=lambda alpha: 0.5, readout_rate=lambda alpha: 0.25)
    near(constant.errors, scheduled.errors, atol=1e-9)
    # Weight decay alone (no gradient noise, no teacher signal left in the readout).
    order = OrderParameters(SMALL.Q, SMALL.R, SMALL.T, [0, 0], SMALL.v_star)
    curve = solve(order, until=3, readout_rate=0, decay=0.4, rtol=1e-9, atol=1e-12)
    near(curve.end.R, SMALL.R * math.exp(-0.5 * 0.4 * 3), atol=1e-8)
    near(curve.end.Q, SMALL.Q * math.exp(-2 * 0.5 * 0.4 * 3), atol=1e-8)


def test_large_states_go_to_an_explicit_method():
    order = order_parameters(random_weights(20, 4, 50, generator=torch.Generator().manual_seed(0)))
    assert solve(order, until=0.1).method == "RK45"
    assert solve(order, until=0.1, method="LSODA").method == "LSODA"
    assert solve(SMALL, until=0.1).method == "LSODA"


# Invariances


def moved(order, index, sign, activation):
    index, sign = torch.tensor(index), torch.tensor(sign, dtype=torch.float64)
    if activation != "erf" and activation != "linear":
        sign = sign.abs()
    return OrderParameters(
        (order.Q * torch.outer(sign, sign))[index][:, index],
        (order.R * sign[:, None])[index],
        order.T,
        (order.v * sign)[index],
        order.v_star,
    )


@st.composite
def orders(draw, most=4):
    students, teachers = draw(st.integers(1, most)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**31))
    return order_parameters(
        random_weights(students, teachers, 12, generator=torch.Generator().manual_seed(seed))
    )


@given(orders(), st.randoms(use_true_random=False), st.sampled_from(["erf", "relu", "linear"]))
def test_permutation_and_sign_invariance(order, random, activation):
    index = list(range(len(order.v)))
    random.shuffle(index)
    sign = [random.choice([-1, 1]) for _ in index]
    other = moved(order, index, sign, activation)
    near(
        generalisation_error(other, activation=activation),
        generalisation_error(order, activation=activation),
        atol=1e-10,
        rtol=1e-10,
    )
    unit = ACTIVATIONS[activation]
    first, second = rhs(unit, order), rhs(unit, other)
    if activation == "relu":
        sign = [1] * len(sign)
    sign = np.array(sign, dtype=float)
    # The right-hand side moves with the student.
    near((first.R * sign[:, None])[index], second.R, atol=1e-8, rtol=1e-8)
    near((first.Q * np.outer(sign, sign))[np.ix_(index, index)], second.Q, atol=1e-8, rtol=1e-8)
    near((first.v * sign)[index], second.v, atol=1e-8, rtol=1e-8)


@given(orders(), st.floats(0.2, 5), st.sampled_from(["relu", "linear"]))
def test_scale_invariance(order, factor, activation):
    scale = torch.ones(len(order.v), dtype=torch.float64)
    scale[0] = factor
    other = OrderParameters(
        order.Q * torch.outer(scale, scale), order.R * scale[:, None], order.T, order.v / scale,
        order.v_star,
    )  # fmt: skip
    near(
        generalisation_error(other, activation=activation),
        generalisation_error(order, activation=activation),
        rtol=1e-9,
    )


@given(orders(), st.floats(0, 1), st.sampled_from(["erf", "relu", "linear"]))
def test_splitting_a_student_changes_nothing(order, share, activation):
    index = torch.tensor([0, *range(len(order.v))])
    readout = order.v[index].clone()
    readout[0], readout[1] = share * order.v[0], (1 - share) * order.v[0]
    other = OrderParameters(
        order.Q[index][:, index], order.R[index], order.T, readout, order.v_star
    )
    near(
        generalisation_error(other, activation=activation),
        generalisation_error(order, activation=activation),
        atol=1e-7,
        rtol=1e-7,
    )  # √(1 − ρ²) at ρ = 1 of identical units


def test_covariance_stays_positive_semidefinite():
    order = order_parameters(random_weights(4, 2, 100, generator=torch.Generator().manual_seed(1)))
    curve = solve(order, until=300, noise=0.1, times=np.linspace(0, 300, 50))
    for n in range(50):
        there = OrderParameters(curve.Q[n], curve.R[n], order.T, curve.v[n], order.v_star)
        assert float(torch.linalg.eigvalsh(joint(there))[0]) > -1e-6


# Weights and order parameters


@pytest.mark.parametrize("exact", [True, False])
def test_sampled_weights_have_the_order_parameters(exact):
    generator = torch.Generator().manual_seed(7)
    weights = sample_weights(SMALL, 4000, generator=generator, exact=exact)
    found = order_parameters(weights)
    for name in ("Q", "R", "T", "v", "v_star"):
        # Free draws err by √((C_ii C_jj + C_ij²)/N) ≤ 0.027; 5 of these.
        near(getattr(found, name), getattr(SMALL, name), atol=1e-12 if exact else 0.14)
    if not exact:
        assert float((found.Q - SMALL.Q).abs().max()) > 1e-4


# Bad input


def test_bad_order_parameters():
    good = {"Q": np.eye(2), "R": np.zeros((2, 1)), "T": [[1]], "v": [1, 1], "v_star": [1]}
    bad = {
        r"^The joint covariance .* must be positive semidefinite": {"R": [[2], [0]]},
        r"at least one node each, got K = 0": {
            "Q": np.zeros((0, 0)),
            "R": np.zeros((0, 1)),
            "v": [],
        },
        r"`Q` must be finite, got nan": {"Q": [[1, math.nan], [0, 1]]},
        r"`T` must be regular": {"T": [[1, 1], [1, 1]], "R": np.zeros((2, 2)), "v_star": [1, 1]},
        r"`R` must have shape \(2, 1\)": {"R": np.zeros((2, 2))},
        r"`Q` must have shape \(3, 3\)": {"v": [1, 1, 1]},
        r"`Q` must be symmetric": {"Q": [[1, 0.5], [0, 1]]},
        r"`v` must have 1 axes": {"v": [[1, 1]]},
    }
    for message, change in bad.items():
        with pytest.raises(ValueError, match=message):
            OrderParameters(**{**good, **change})
    with pytest.raises(TypeError, match="`Q` must be an array of numbers"):
        OrderParameters(**{**good, "Q": "no"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "erv"}, "Unknown activation 'erv'. Did you mean erf"),
        ({"until": 0}, "`until` must be a finite number > 0"),
        ({"noise": -1}, "`noise` must be a finite number >= 0"),
        ({"rate": math.nan}, "`rate` must be a finite number >= 0"),
        ({"batch": 0}, "`batch` must be a whole number >= 1"),
        ({"method": "rk4"}, "Unknown integrator 'rk4'"),
        ({"times": [1, 0]}, "`times` must increase strictly"),
        ({"times": [0, 2], "until": 1}, r"`times` must increase strictly within \[0, 1\]"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        solve(SMALL, **{"until": 1, **options})


def test_divergence_is_one_clear_error():
    with pytest.raises(RuntimeError, match="could not be solved beyond alpha"):
        solve(SMALL, rate=20, readout_rate=0, activation="linear", until=100)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\]"):
        order_at(solve(SMALL, until=1), 2)
