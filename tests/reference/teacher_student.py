"""Slow references for the teacher–student theory, written from the definitions."""

import itertools
import math

import numpy as np
from scipy.special import erf


def i2(c, a, b):
    """⟨g(x_a) g(x_b)⟩ for g(u) = erf(u/√2), Saad & Solla's form."""
    return (
        2
        / math.pi
        * math.asin(max(-1.0, min(1.0, c[a, b] / math.sqrt((1 + c[a, a]) * (1 + c[b, b])))))
    )


def j2(c, a, b):
    return 2 / math.pi / math.sqrt((1 + c[a, a]) * (1 + c[b, b]) - c[a, b] ** 2)


def i3(c, a, b, d):
    """⟨g′(x_a) x_b g(x_d)⟩."""
    l3 = (1 + c[a, a]) * (1 + c[d, d]) - c[a, d] ** 2
    top = c[b, d] * (1 + c[a, a]) - c[a, b] * c[a, d]
    return 2 / math.pi * top / (math.sqrt(l3) * (1 + c[a, a]))


def i4(c, a, b, d, e):
    """⟨g′(x_a) g′(x_b) g(x_d) g(x_e)⟩ with Saad & Solla's L0, L1, L2, L4."""
    l4 = (1 + c[a, a]) * (1 + c[b, b]) - c[a, b] ** 2
    l0 = (
        l4 * c[d, e]
        - c[b, d] * c[b, e] * (1 + c[a, a])
        - c[a, d] * c[a, e] * (1 + c[b, b])
        + c[a, b] * c[a, d] * c[b, e]
        + c[a, b] * c[a, e] * c[b, d]
    )
    l1, l2 = (
        l4 * (1 + c[x, x])
        - c[b, x] ** 2 * (1 + c[a, a])
        - c[a, x] ** 2 * (1 + c[b, b])
        + 2 * c[a, b] * c[a, x] * c[b, x]
        for x in (d, e)
    )
    angle = max(-1.0, min(1.0, l0 / math.sqrt(l1 * l2)))
    return 4 / math.pi**2 / math.sqrt(l4) * math.asin(angle)


def learning_rhs(c, a, students, rate, readout_rate, noise):
    """The learning equations for erf as literal sums over all three- and four-point averages."""
    fields = range(len(a))
    teachers = len(a) - students
    v = a[:students]
    dq, dr = np.zeros((students, students)), np.zeros((students, teachers))
    for i in range(students):
        for n in range(teachers):
            dr[i, n] = -rate * v[i] * sum(a[d] * i3(c, i, students + n, d) for d in fields)
        for k in range(students):
            first = sum(a[d] * i3(c, i, k, d) for d in fields)
            second = sum(a[d] * i3(c, k, i, d) for d in fields)
            dq[i, k] = -rate * (v[i] * first + v[k] * second)
            four = sum(a[d] * a[e] * i4(c, i, k, d, e) for d in fields for e in fields)
            dq[i, k] += rate**2 * v[i] * v[k] * (four + noise**2 * j2(c, i, k))
    dv = [-readout_rate * sum(a[d] * i2(c, i, d) for d in fields) for i in range(students)]
    return dq, dr, np.array(dv)


def monte_carlo(c, functions, samples, seed):
    """Mean of Π f_s(x_s) and its standard error; `functions` maps an index to functions."""
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(np.asarray(c))
    x = rng.standard_normal((samples, len(c))) @ (vectors * np.sqrt(values)).T
    product = np.ones(samples)
    for index, function in functions:
        product *= function(x[:, index])
    return product.mean(), product.std() / math.sqrt(samples)


UNITS = {
    "erf": (lambda u: erf(u / math.sqrt(2)), lambda u: math.sqrt(2 / math.pi) * np.exp(-u * u / 2)),
    "relu": (lambda u: np.maximum(u, 0), lambda u: (u > 0) * 1.0),
    "linear": (lambda u: u, np.ones_like),
}


def sgd(w, w_star, v, v_star, inputs_and_noise, rate, readout_rate, activation="erf", mask=None):
    """Online gradient descent, one fresh sample per step, exactly as the model is defined."""
    g, slope = UNITS[activation]
    w, v, n = w.copy(), v.copy(), w.shape[1]
    mask = np.ones_like(w) if mask is None else mask
    for x, noise in inputs_and_noise:
        fields = w @ x / math.sqrt(n)
        error = v @ g(fields) - v_star @ g(w_star @ x / math.sqrt(n)) - noise
        step = rate / math.sqrt(n) * (v * slope(fields) * error)[:, None] * x * mask
        v = v - readout_rate / n * g(fields) * error
        w = w - step
    return w, v


def k_dpp(kernel, k):
    """P(S) of a k-DPP by enumeration: {S: probability}."""
    sets = list(itertools.combinations(range(len(kernel)), k))
    weight = np.array([np.linalg.det(kernel[np.ix_(s, s)]) for s in sets])
    return dict(zip(sets, weight / weight.sum(), strict=True))
