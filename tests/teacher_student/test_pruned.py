"""Closed forms of the six pruning methods against references, enumeration and real masks."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.dpp import KDPP
from prunus.theory.teacher_student import (
    METHODS,
    OrderParameters,
    Weights,
    apply_mask,
    draw_edge_mask,
    edge_moments,
    generalisation_error,
    keep_nodes,
    matched_density,
    moments_of_rule,
    order_parameters,
    prune_edges,
    pruned_error,
    random_weights,
    sample_weights,
)
from prunus.theory.teacher_student.activation import ACTIVATIONS
from prunus.theory.teacher_student.ideal import (
    IDEAL_METHODS,
    IdealStudent,
    ideal_error,
    ideal_order,
    last_kept,
)
from prunus.theory.teacher_student.nodes import importance_set, node_kernel, node_system
from reference import teacher_student as slow
from teacher_student.students import FIXTURE, near

NODES = ("random-node", "importance-node", "dpp-node")
EDGES = ("random-edge", "magnitude-edge", "dpp-edge")

# Edge moments

SCALARS = [
    (1 / 6, 1.9154625952, 0.3885005077, 1.3829941271, 0.5907281085,
     (0.0790856620, 0.1761913815, 0.1839548590), (0.1899698808, 0.5175745396)),
    (0.166, 1.9212350468, 0.3872700785, 1.3851716082, 0.5894509857,
     (0.0786011697, 0.1751862193, 0.1829100301), (0.1892611410, 0.5163273489)),
    (0.5, 0.6120031810, 0.8127260532, 0.6744897502, 0.9286740823,
     (0.3318230138, 0.6604052068, 0.6840175487), (0.4322782106, 0.8743311522)),
    (5 / 6, 0.1492058625, 0.9814480088, 0.2104283942, 0.9975544871,
     (0.4816490367, 0.9350728259, 0.9645447110), (0.4975590507, 0.9655306299)),
]  # fmt: skip


@pytest.mark.parametrize(("p", "s", "m_dpp", "z", "m_top", "h_dpp", "h_top"), SCALARS)
def test_edge_moments(p, s, m_dpp, z, m_top, h_dpp, h_top):
    dpp, top = edge_moments("dpp", p), edge_moments("magnitude", p)
    near([dpp.scale, dpp.own, top.scale, top.own], [s, m_dpp, z, m_top])
    near(dpp.across(np.array([0.5, 0.97, 1.0])), h_dpp)
    near(top.across(np.array([0.5, 0.97])), h_top)
    near(top.across(np.array([1.0, -1.0])), [top.own, -top.own])


@given(st.floats(1e-3, 1), st.floats(-1, 1))
def test_edge_moments_are_ordered_and_odd(p, rho):
    top, dpp, random = (edge_moments(rule, p) for rule in ("magnitude", "dpp", "random"))
    assert top.own >= dpp.own - 1e-12
    assert dpp.own >= random.own - 1e-12
    for moments in (top, dpp, random):
        here, mirrored, most = moments.across(np.array([rho, -rho, 1.0]))
        near(here, -mirrored, atol=1e-10)
        assert abs(here) <= most + 1e-10
        assert most <= moments.own + 1e-10


@pytest.mark.parametrize("rule", ["random", "magnitude", "dpp"])
def test_kept_norm_grows_with_density(rule):
    kept = [edge_moments(rule, p).own for p in np.linspace(0.001, 1, 300)]
    assert (np.diff(kept) > 0).all()


@pytest.mark.parametrize("p", [0.0005, 0.014, 0.0150, 0.02, 0.5, 0.95])
def test_dpp_moments_meet_quadrature_of_the_rule(p):
    """The integral and the Hermite series against E[π(X) π(Y) X Y] on a dense grid."""
    dpp = edge_moments("dpp", p)
    x = np.linspace(-9, 9, 1801)
    weight = np.exp(-x * x / 2) * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    keep = x * x / (dpp.scale**2 + x * x)
    near([weight @ keep, weight @ (keep * x * x)], [p, dpp.own], atol=1e-10, rtol=1e-8)
    for rho in (0.3, 0.9):
        y = rho * x[:, None] + math.sqrt(1 - rho**2) * x
        inner = (y**3 / (dpp.scale**2 + y**2)) @ weight
        near(dpp.across(np.array([rho]))[0], (weight * keep * x) @ inner, atol=1e-10, rtol=1e-8)


def test_rule_of_the_user_is_the_dpp_rule_by_quadrature():
    dpp = edge_moments("dpp", 0.05)
    rule = moments_of_rule(lambda x: x**2 / (dpp.scale**2 + x**2), nodes=120)
    near([rule.density, rule.own], [0.05, dpp.own], atol=1e-8)
    rho = np.array([-0.4, 0.0, 0.7, 1.0])
    near(rule.across(rho), dpp.across(rho), atol=1e-7)
    result = pruned_error(FIXTURE, lambda x: x**2 / (dpp.scale**2 + x**2))
    near(result.error, pruned_error(FIXTURE, "dpp-edge", 0.05).error, atol=1e-4)
    with pytest.raises(ValueError, match=r"keep probability in \[0, 1\]"):
        moments_of_rule(lambda x: x)


@pytest.mark.parametrize("p", [1e-5, 0.999999])
def test_dpp_scale_spans_decades(p):
    """s runs from 1e-6 to 3e2: 1 − s Mi(s) = p is met to nine digits at both ends."""
    s = edge_moments("dpp", p).scale
    x = np.linspace(-12, 12, 4_000_001)
    weight = np.exp(-x * x / 2) * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    near(weight @ (x * x / (s * s + x * x)), p, atol=0, rtol=1e-5)


def test_k_dpp_reference():
    """Inclusion probabilities that every DPP-node error rests on."""
    kernel = [[2, 1, 0.5, 0], [1, 1.5, 0.2, 0.3], [0.5, 0.2, 1, -0.4], [0, 0.3, -0.4, 0.8]]
    process = KDPP(np.array(kernel))
    first, second = torch.triu_indices(4, 4, 1)
    near(process.inclusion(1), np.diag(kernel) / 5.3)
    near(process.inclusion(2), [0.625, 0.5338785047, 0.4497663551, 0.3913551402])
    near(
        process.pair_inclusion(2)[first, second],
        [0.2336448598, 0.2044392523, 0.1869158879, 0.1705607477, 0.1296728972, 0.0747663551],
    )
    near(process.inclusion(3), [0.8430983118, 0.7855014896, 0.7179741807, 0.6534260179])
    near(
        process.pair_inclusion(3)[first, second],
        [0.6285998014, 0.5610724926, 0.4965243297, 0.5034756703, 0.4389275074, 0.3714001986],
    )
    limit = KDPP(np.kron(np.eye(2), np.ones((3, 3))) + 1e-8 * np.eye(6)).pair_inclusion(4)
    near(limit.diagonal(), np.full(6, 2 / 3), atol=1e-6)
    near([limit[0, 1], limit[0, 3]], [7 / 18, 11 / 27], atol=1e-6)


# The six methods on a fixture

TABLE = {
    "random-edge": (3.5584371335, 2.2752995331, 1.2997494614),
    "magnitude-edge": (1.6223894453, 0.7780087298, 0.5684836162),
    "dpp-edge": (2.2300337959, 1.1237723568, 0.6641486387),
    "random-node": (3.5169727682, 2.1135622957, 1.1231019160),
    "dpp-node": (3.5119598754, 1.8823203027, 1.1217336335),
    "importance-node": (3.4221653925, 1.5023825665, 0.9710156781),
}


@pytest.mark.parametrize("method", METHODS)
def test_pruned_error(method):
    near(generalisation_error(FIXTURE), 0.5455916291)
    kept = (1, 2, 3) if method in NODES else (0.25, 0.5, 0.75)
    found = [pruned_error(FIXTURE, method, k) for k in kept]
    near([float(f) for f in found], TABLE[method])
    assert [f.density for f in found] == [0.25, 0.5, 0.75]
    assert all(f.standard_error is None and f.counted_noise == 0 for f in found)


def test_pruned_order_parameters():
    wanted = (.9752712639, .6739293417, .0660626327, 0, .8939986586, 0, .0660624452, .7314534479,
              .5380814134, .8127260532)  # fmt: skip
    order = pruned_error(FIXTURE, "dpp-edge", 0.5).order
    near(order.Q[tuple(torch.triu_indices(4, 4))], wanted)


REWEIGHTED = {
    "preact": (
        (3.0272541142, 1.5470408559, 0.6719630756),
        (3.0158167519, 1.1298398453, 0.6662441960),
        (3.0214192966, 1.1476387377, 0.6689064877),
    ),
    "act": (
        (3.0243421986, 1.5439130943, 0.6671371556),
        (3.0130009955, 1.1261719911, 0.6618873081),
        (3.0185600297, 1.1438905101, 0.6643355447),
    ),
    "teacher": (
        (3.0173351881, 1.5205865029, 0.6185435900),
        (3.0061163276, 1.1086773200, 0.6132925975),
        (3.0116111907, 1.1264394457, 0.6166172151),
    ),
}


@pytest.mark.parametrize("mode", REWEIGHTED)
def test_reweighted_nodes(mode):
    ways = (("random-node", "preact"), ("dpp-node", "preact"), ("dpp-node", "act"))
    for (method, kernel), wanted in zip(ways, REWEIGHTED[mode], strict=True):
        found = [
            float(pruned_error(FIXTURE, method, k, kernel=kernel, reweight=mode)) for k in (1, 2, 3)
        ]
        near(found, wanted, atol=2e-10)


@pytest.mark.parametrize("mode", ["preact", "act", "teacher", None])
@pytest.mark.parametrize("kernel", ["preact", "act", "output", "rbf"])
def test_dpp_nodes_meet_enumeration(mode, kernel):
    order = order_parameters(random_weights(6, 2, 14, generator=torch.Generator().manual_seed(2)))
    unit = ACTIVATIONS["erf"]
    matrix = node_kernel(order, kernel, unit).numpy()
    for k in (1, 3, 5):
        wanted = sum(p * brute_force(order, s, mode) for s, p in slow.k_dpp(matrix, k).items())
        found = pruned_error(order, "dpp-node", k, kernel=kernel, reweight=mode)
        near(found.error, wanted, atol=1e-9, rtol=1e-9)


def brute_force(order, kept, mode):
    """ε of the student that keeps `kept`, by building that student; least squares from scratch."""
    kept = list(kept)
    readout = order.v[kept]
    removed = [i for i in range(len(order.v)) if i not in kept]
    gram = torch.from_numpy(ACTIVATIONS["erf"].pair(order.Q.numpy()))
    if mode == "teacher":
        system = node_system(order, ACTIVATIONS["erf"])
        readout = torch.linalg.solve(gram[kept][:, kept], torch.from_numpy(system.cross)[kept])
    elif mode is not None:
        matrix = gram if mode == "act" else order.Q
        readout = readout + torch.linalg.solve(
            matrix[kept][:, kept], matrix[kept][:, removed] @ order.v[removed]
        )
    small = keep_nodes(order, kept)
    return float(
        generalisation_error(OrderParameters(small.Q, small.R, small.T, readout, small.v_star))
    )


@pytest.mark.parametrize("mode", ["preact", "act", "teacher", None])
def test_random_and_importance_nodes_meet_enumeration(mode):
    order = order_parameters(random_weights(5, 2, 14, generator=torch.Generator().manual_seed(4)))
    for k in (1, 2, 4):
        every = [brute_force(order, s, mode) for s in itertools.combinations(range(5), k)]
        near(pruned_error(order, "random-node", k, reweight=mode).error, np.mean(every), atol=1e-9)
        chosen = importance_set(order, k).tolist()
        near(
            pruned_error(order, "importance-node", k, reweight=mode).error,
            brute_force(order, chosen, mode),
            atol=1e-9,
        )


def test_averages_over_sampled_sets(monkeypatch):
    """Where sets are too many to enumerate: 5 standard errors, false alarm 6e-7 each."""
    from prunus.theory.teacher_student import nodes

    exact = {m: float(pruned_error(FIXTURE, m, 2, reweight="act")) for m in NODES[::2]}
    monkeypatch.setattr(nodes, "ENUMERATE", 5)
    for method, wanted in exact.items():
        with pytest.raises(ValueError, match="`generator` is needed"):
            pruned_error(FIXTURE, method, 2, reweight="act")
        generator = torch.Generator().manual_seed(11)
        found = pruned_error(FIXTURE, method, 2, reweight="act", generator=generator, draws=1000)
        assert 0 < found.standard_error < 0.1 * wanted
        assert abs(float(found) - wanted) < 5 * found.standard_error
    # Negative control: the two methods are told apart by the same rule.
    assert abs(float(found) - exact["random-node"]) > 5 * found.standard_error


def test_parallel_nodes_are_reweighted_without_harm():
    order = ideal_order(IdealStudent(teachers=2, copies=2))
    with pytest.warns(UserWarning, match="exceeds numerical rank 2"):
        found = pruned_error(order, "dpp-node", 3, reweight="act", floor=1e-8)
    near(found.error, 0, atol=1e-8)
    with pytest.raises(ValueError, match="k=3 exceeds numerical rank 2"):
        pruned_error(order, "dpp-node", 3)


def test_round_off_of_an_integrator_is_no_negative_eigenvalue():
    """Two students that differ by −1e-7 in an eigenvalue of Q are pruned as identical ones."""
    order = OrderParameters(
        [[1, 1, 0.2], [1, 1 - 2e-7, 0.2], [0.2, 0.2, 1]], np.zeros((3, 1)), [[1]], [1, 1, 1], [1]
    )
    assert float(torch.linalg.eigvalsh(order.Q)[0]) < 0
    equal = OrderParameters(
        [[1, 1, 0.2], [1, 1, 0.2], [0.2, 0.2, 1]], np.zeros((3, 1)), [[1]], [1, 1, 1], [1]
    )
    near(pruned_error(order, "dpp-node", 2).error, pruned_error(equal, "dpp-node", 2).error,
         atol=1e-6)  # fmt: skip


def test_importance_scores():
    order = OrderParameters(np.diag([1.0, 9, 1]), np.zeros((3, 1)), [[1]], [-2, 1, 1.5], [1])
    assert importance_set(order, 1).tolist() == [0]
    assert importance_set(order, 1, "signed-readout").tolist() == [2]
    assert importance_set(order, 1, "readout-norm").tolist() == [1]
    assert importance_set(order, 2, [0, 0, 0]).tolist() == [0, 1]


# Laws


@st.composite
def orders(draw):
    students, teachers = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**31))
    return order_parameters(
        random_weights(students, teachers, 16, generator=torch.Generator().manual_seed(seed))
    )


@given(orders(), st.sampled_from(METHODS), st.sampled_from(["erf", "relu", "linear"]))
def test_keeping_all_changes_nothing(order, method, activation):
    kept = len(order.v) if method in NODES else 1.0
    found = pruned_error(order, method, kept, activation=activation)
    near(found.error, generalisation_error(order, activation=activation), rtol=1e-10)


@given(orders(), st.sampled_from(METHODS), st.integers(0, 10**6))
def test_permutation_and_sign_invariance(order, method, seed):
    rng = np.random.default_rng(seed)
    index = rng.permutation(len(order.v))
    sign = torch.tensor(rng.choice([-1.0, 1.0], len(index)), dtype=torch.float64)
    other = OrderParameters(
        (order.Q * torch.outer(sign, sign))[index][:, index],
        (order.R * sign[:, None])[index],
        order.T,
        (order.v * sign)[index],
        order.v_star,
    )
    kept = 2 if method in NODES else 0.4
    near(pruned_error(order, method, kept).error, pruned_error(other, method, kept).error,
         atol=1e-8, rtol=1e-8)  # fmt: skip


@given(orders(), st.sampled_from(METHODS))
def test_teacher_readout_is_best(order, method):
    if method not in NODES:
        return
    plain, act, best = (
        float(pruned_error(order, method, 1, reweight=mode)) for mode in (None, "act", "teacher")
    )
    assert best <= act + 1e-10
    assert best <= plain + 1e-10


# The ideal student


def test_ideal_student_values():
    student = IdealStudent(teachers=2, copies=3)
    wanted = {
        "random-node": ((3.851852, 2.607407, 1.6, 0.829630, 0.296296), 1e-6),
        "dpp-node": ((104 / 27, 64 / 27, 40 / 27, 64 / 81, 8 / 27), 1e-10),
        "random-edge": ((3.7546, 2.5700, 1.6585, 0.9487, 0.4010), 1e-4),
        "dpp-edge": ((2.4050, 1.2039, 0.5555, 0.2050, 0.0424), 1e-4),
        "magnitude-edge": ((2.3320, 1.0620, 0.4170, 0.1181, 0.0144), 1e-4),
    }
    for method, (values, tolerance) in wanted.items():
        near([ideal_error(student, method, k) for k in range(1, 6)], values, atol=tolerance)


@pytest.mark.parametrize("method", [m for m in IDEAL_METHODS if m != "balanced-node"])
@pytest.mark.filterwarnings("ignore:k=. exceeds numerical rank")
def test_ideal_formulas_meet_the_general_ones(method):
    student = IdealStudent(teachers=2, copies=3)
    order = ideal_order(student)
    for k in range(1, 6):
        kept = k if "node" in method else k / 6
        found = pruned_error(order, method, kept, floor=1e-8)
        near(ideal_error(student, method, k), found.error, atol=1e-6)


K_STAR = {
    2: {2: 0, 3: 1, 4: 2, 6: 7, 10: 15, 20: 34, 50: 93},
    4: {2: 1, 3: 2, 4: 8, 6: 17, 10: 33, 20: 73, 50: 192},
    8: {2: 3, 3: 5, 4: 19, 6: 38, 10: 70, 20: 150, 50: 389},
    16: {2: 6, 3: 11, 4: 42, 6: 80, 10: 145, 20: 305, 50: 785},
}


@pytest.mark.parametrize("teachers", K_STAR)
def test_range_in_which_random_edge_beats_dpp_node(teachers):
    for copies, wanted in K_STAR[teachers].items():
        assert last_kept(IdealStudent(teachers=teachers, copies=copies)) == wanted


@given(st.integers(1, 6), st.integers(2, 12))
def test_dpp_node_never_loses_to_random_node_in_the_ideal_limit(teachers, copies):
    student = IdealStudent(teachers=teachers, copies=copies)
    for k in range(1, student.students):
        random, dpp = (ideal_error(student, f"{m}-node", k) for m in ("random", "dpp"))
        balanced = ideal_error(student, "balanced-node", k)
        assert balanced <= dpp + 1e-12 <= random + 2e-12
        if 1 < k < student.students - 1 and teachers > 1:
            assert dpp < random


# Levels, and real masks


def test_a_sign_teacher_needs_the_sampled_level():
    """Spec example: magnitude p = 1/2 on a ±1 teacher; Gaussian 0.188, real masks 1.136."""
    generator = torch.Generator().manual_seed(0)
    order = ideal_order(IdealStudent(teachers=2, copies=2))
    jitter = OrderParameters(order.Q + 0.05 * torch.eye(4), order.R, order.T, order.v, order.v_star)
    teacher = 2.0 * torch.randint(2, (2, 20000), generator=generator) - 1
    noise = math.sqrt(0.05) * torch.randn(4, 20000, generator=generator, dtype=torch.float64)
    weights = Weights(order.R @ teacher.double() + noise, teacher, order.v, order.v_star)
    mask = draw_edge_mask(weights, "magnitude", 0.5, generator=generator)
    real = float(generalisation_error(order_parameters(apply_mask(weights, mask))))
    found = {
        level: float(pruned_error(
            jitter, "magnitude-edge", 0.5, level=level, prior="sign", weights=weights,
            generator=generator,
        ))
        for level in ("gaussian", "sampled", "empirical")
    }  # fmt: skip
    assert found["sampled"] == pytest.approx(real, rel=0.05)
    assert found["empirical"] == pytest.approx(real, rel=1e-10)
    assert abs(found["gaussian"] - real) > 0.5 * real  # negative control


@pytest.mark.parametrize("method", EDGES)
def test_levels_agree_for_gaussian_weights(method):
    generator = torch.Generator().manual_seed(3)
    weights = sample_weights(FIXTURE, 100_000, generator=generator)
    for p in (0.2, 0.7):
        gaussian = float(pruned_error(FIXTURE, method, p))
        empirical = pruned_error(FIXTURE, method, p, level="empirical", weights=weights)
        sampled = pruned_error(FIXTURE, method, p, level="sampled", generator=generator)
        # Fourth moments fluctuate as √(24/N) = 1.5 %.
        assert float(empirical) == pytest.approx(gaussian, rel=0.02)
        assert float(sampled) == pytest.approx(gaussian, rel=0.02)


@pytest.mark.parametrize("method", EDGES)
def test_empirical_level_is_the_mean_over_real_masks(method):
    generator = torch.Generator().manual_seed(6)
    weights = sample_weights(FIXTURE, 500, generator=generator)
    rule = method.removesuffix("-edge")
    for k in (83, 250):
        errors = [
            float(generalisation_error(order_parameters(
                apply_mask(weights, draw_edge_mask(weights, rule, k / 500, generator=generator))
            )))
            for _ in range(200)
        ]  # fmt: skip
        found = pruned_error(FIXTURE, method, k / 500, level="empirical", weights=weights)
        assert float(found) == pytest.approx(np.mean(errors), rel=0.015)


@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("method", EDGES)
def test_other_units_meet_real_masks(method, activation):
    """Gaussian closed forms at N = 20 000, where fourth moments err by 3.5 %."""
    generator = torch.Generator().manual_seed(6)
    weights = sample_weights(FIXTURE, 20_000, generator=generator)
    mask = draw_edge_mask(weights, method.removesuffix("-edge"), 0.3, generator=generator)
    real = generalisation_error(order_parameters(apply_mask(weights, mask)), activation=activation)
    found = float(pruned_error(FIXTURE, method, 0.3, activation=activation))
    assert found == pytest.approx(float(real), rel=0.035)
    other = float(pruned_error(FIXTURE, method, 0.3))
    assert abs(other / float(real) - 1) > 0.1  # negative control: erf instead


def test_masks_have_exact_counts():
    generator = torch.Generator().manual_seed(0)
    weights = sample_weights(FIXTURE, 40, generator=generator)
    for rule in ("random", "magnitude", "dpp"):
        mask = draw_edge_mask(weights, rule, 0.2625, generator=generator)  # 10.5 rounds up
        assert mask.sum(1).tolist() == [11] * 4


@pytest.mark.parametrize("rule", ["random", "dpp"])
def test_masks_are_of_the_generator_alone(rule):
    weights = sample_weights(FIXTURE, 40, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        draw_edge_mask(weights, rule, 0.5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Options


def test_options():
    base = float(pruned_error(FIXTURE, "random-edge", 0.5))
    noisy = pruned_error(FIXTURE, "random-edge", 0.5, counted_noise=0.25)
    near(noisy.error, base + 0.25**2 / 2)
    assert noisy.counted_noise == 0.25
    scaled = pruned_error(FIXTURE, "random-node", 2, normalise=True)
    norm = FIXTURE.Q.diagonal().sqrt()
    other = OrderParameters(
        FIXTURE.Q / torch.outer(norm, norm), FIXTURE.R / norm[:, None], FIXTURE.T, FIXTURE.v,
        FIXTURE.v_star,
    )  # fmt: skip
    near(scaled.error, pruned_error(other, "random-node", 2).error)
    assert scaled.normalised
    shared = pruned_error(FIXTURE, "random-edge", 0.5, shared_mask=True).order
    near(shared.Q, 0.5 * FIXTURE.Q)
    gained = pruned_error(FIXTURE, "magnitude-edge", 0.5, gain="norm").order
    near(gained.Q.diagonal(), FIXTURE.Q.diagonal())
    dead = OrderParameters(np.diag([0.0, 1]), np.zeros((2, 1)), [[1]], [1, 1], [1])
    near(pruned_error(dead, "magnitude-edge", 0.5, gain="norm").order.Q, dead.Q)
    near(
        pruned_error(FIXTURE, "magnitude-edge", 0.5, gain=[2, 1, 1, 1]).order.R[0],
        2 * prune_edges(FIXTURE, edge_moments("magnitude", 0.5)).R[0],
    )
    (note,) = pruned_error(FIXTURE, "random-edge", 0.5, reweight="act").notes
    assert "least squares leaves edge-pruned weights as they are" in note


def test_matched_density():
    densities = [matched_density(k, 6, 500) * 500 for k in range(1, 6)]
    near(densities, [82.5, 166, 249.5, 333, 416.5], atol=1e-9)
    assert matched_density(2, 6) == 1 / 3
    assert matched_density(6, 6, 1) == 1


@pytest.mark.parametrize(
    ("method", "kept", "options", "message"),
    [
        ("dpp-nod", 1, {}, "Unknown method 'dpp-nod'. Did you mean dpp-node"),
        ("dpp-node", 5, {}, r"`kept` must be a whole number in \[1, 4\], got 5"),
        ("dpp-node", 0, {}, r"`kept` must be a whole number in \[1, 4\], got 0"),
        ("random-node", 0.5, {}, r"`kept` must be a whole number in \[1, 4\], got 0.5"),
        ("random-edge", 0, {}, r"`kept` must lie in \(0, 1\]"),
        ("random-edge", 2, {}, r"`kept` must lie in \(0, 1\]"),
        ("dpp-edge", math.nan, {}, r"`kept` must lie in \(0, 1\]"),
        ("dpp-edge", None, {}, "`kept`, the density of an edge method, is missing"),
        ("dpp-node", 2, {"kernel": "act2"}, "Unknown kernel 'act2'"),
        ("dpp-node", 2, {"kernel": np.eye(3)}, r"`kernel` must have shape \(4, 4\)"),
        ("dpp-node", 2, {"reweight": "ls"}, "Unknown reweighting 'ls'"),
        ("dpp-node", 2, {"level": "empirical"}, "belong to edge methods"),
        ("importance-node", 2, {"score": "w"}, "Unknown score 'w'"),
        ("importance-node", 2, {"score": [1.0]}, "`score` must have 4 entries, got 1"),
        ("dpp-edge", 0.5, {"level": "exact"}, "Unknown level 'exact'"),
        ("dpp-edge", 0.5, {"level": "empirical"}, "Level 'empirical' needs `weights`"),
        ("dpp-edge", 0.5, {"level": "sampled"}, "Level 'sampled' needs `generator`"),
        ("dpp-edge", 0.5, {"shared_mask": True}, "`shared_mask` fits the random rule only"),
        ("dpp-edge", 0.5, {"gain": "L2"}, "Unknown gain 'L2'"),
        ("dpp-edge", 0.5, {"counted_noise": -1}, "`counted_noise` must be a finite number >= 0"),
    ],
)
def test_bad_input_gets_one_clear_error(method, kept, options, message):
    with pytest.raises(ValueError, match=message):
        pruned_error(FIXTURE, method, kept, **options)


def test_bad_prior():
    generator = torch.Generator().manual_seed(0)
    for prior, message in (
        ("cauchy", "Unknown prior 'cauchy'"),
        (lambda n, g: torch.randn(3, n, generator=g), r"`prior` must give shape \(2, "),
        (lambda n, g: 2 * torch.randn(2, n, generator=g), "must draw coordinates of covariance"),
    ):
        with pytest.raises(ValueError, match=message):
            pruned_error(
                FIXTURE, "dpp-edge", 0.5, level="sampled", prior=prior, generator=generator
            )


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.95])
def test_magnitude_keeps_the_largest_of_each_node(density):
    from prunus.counting import count_of
    from prunus.theory.teacher_student.edges import keep_probabilities

    weights = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    weights[0, 4] = weights[0].abs().max()  # a tie goes to the lower index
    found = keep_probabilities(weights, "magnitude", density)
    kept = count_of(density, 10)
    for row, own in zip(found, weights.abs().tolist(), strict=True):
        largest = sorted(range(10), key=lambda i, own=own: (-own[i], i))[:kept]
        assert torch.nonzero(row).flatten().tolist() == sorted(largest)
        assert float(row.sum()) == kept


def test_kernels_of_nodes_from_their_definitions():
    from prunus.theory.teacher_student.nodes import node_kernel

    order = FIXTURE
    erf = ACTIVATIONS["erf"]
    act = node_kernel(order, "act", erf)
    output = node_kernel(order, "output", erf)
    expected = [[float(v * w * act[i, j]) for j, w in enumerate(order.v)]
                for i, v in enumerate(order.v)]  # fmt: skip
    torch.testing.assert_close(output, torch.tensor(expected, dtype=output.dtype))
    assert not torch.allclose(output, act)
