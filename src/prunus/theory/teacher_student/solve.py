"""Learning curves: integrate the learning equations and keep what was found."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.integrate import solve_ivp
from torch import Tensor

from prunus.check import as_float64, positive, unknown, whole
from prunus.theory.teacher_student.activation import Activation, activation_of
from prunus.theory.teacher_student.ode import learning_rhs, pack, unpack
from prunus.theory.teacher_student.order import OrderParameters

__all__ = ["Plateau", "Rate", "Trajectory", "order_at", "plateaus", "solve"]

Rate = float | Callable[[float], float]  # a learning rate, or a schedule over α

METHODS = ("LSODA", "RK45", "BDF", "Radau", "DOP853", "RK23")
IMPLICIT_LIMIT = 200  # state entries up to which a difference Jacobian pays
GRID = 400  # default number of output times


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory:
    """A learning curve.

    Attributes:
        times: α = steps/N of the stored states, increasing, from 0.
        Q: student overlaps at those times, times × K × K.
        R: student–teacher overlaps, times × K × M.
        v: readouts, times × K.
        start: the initial order parameters (T and v* never change).
        errors: ε_g at the stored times (half the mean squared error, noiseless labels).
        activation: the units' nonlinearity.
        noise: σ of the labels trained on.
        method: the integrator used.
        evaluations: how often the right-hand side was computed.
    """

    times: Float[Tensor, " times"]
    Q: Float[Tensor, "times K K"]
    R: Float[Tensor, "times K M"]
    v: Float[Tensor, "times K"]
    start: OrderParameters
    errors: Float[Tensor, " times"]
    activation: Activation
    noise: float
    method: str
    evaluations: int
    _between: Callable[[float], ndarray] = field(repr=False)

    @property
    def end(self) -> OrderParameters:
        """The order parameters at the last time."""
        return OrderParameters(self.Q[-1], self.R[-1], self.start.T, self.v[-1], self.start.v_star)


def solve(
    start: OrderParameters,
    *,
    until: float = 1600.0,
    rate: Rate = 0.5,
    readout_rate: Rate = 0.5,
    noise: float = 0.0,
    activation: str | Activation = "erf",
    times: Any = None,
    batch: int = 1,
    decay: float = 0.0,
    method: str | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> Trajectory:
    """Integrate the learning equations from `start`; see `ode.learning_rhs` for them.

    Start from the order parameters of actual weights: their overlaps of size N^(−1/2) decide
    which student follows which teacher, and with R = 0 the symmetric plateau lasts for ever.

    Args:
        start: initial order parameters.
        until: last α = steps/N.
        rate: η_w of the first layer, or a function of α.
        readout_rate: η_v of the readout, or a function of α; 0 for a soft committee machine.
        noise: σ of the training labels.
        activation: "erf", "relu", "linear", or an `Activation`.
        times: increasing α in [0, until] to store; default 400, half even, half logarithmic.
        batch: B fresh samples per step.
        decay: weight decay κ of the first layer.
        method: LSODA, RK45, BDF, Radau, DOP853 or RK23; by default LSODA for states of up to 200
            entries and RK45 above, where a difference Jacobian costs too much.
        rtol, atol: tolerances; atol must lie far below the smallest overlap that matters.

    Raises:
        ValueError: a bad argument.
        RuntimeError: the integrator gave up (the student diverges at too high a rate).

    References:
        Saad & Solla (1995); Goldt et al. (2019).
    """
    unit = activation_of(activation)
    horizon = positive("until", until)
    sigma = positive("noise", noise, zero=True)
    kappa = positive("decay", decay, zero=True)
    whole("batch", batch, low=1)
    first, second = schedule("rate", rate), schedule("readout_rate", readout_rate)
    learns_readout = callable(readout_rate) or readout_rate > 0
    stored = output_times(times, horizon)
    students, teachers = len(start.v), len(start.v_star)
    fixed = start.v.numpy()
    covariance = np.empty((students + teachers, students + teachers))
    covariance[students:, students:] = start.T.numpy()
    readout = np.concatenate([fixed, -start.v_star.numpy()])

    def slope(alpha: float, state: ndarray) -> ndarray:
        q, r, v = unpack(state, students, teachers)
        covariance[:students, :students] = q
        covariance[:students, students:] = r
        covariance[students:, :students] = r.T
        if learns_readout:
            readout[:students] = v
        change = learning_rhs(
            covariance,
            readout,
            students,
            rate=first(alpha),
            readout_rate=second(alpha),
            noise=sigma,
            activation=unit,
            batch=batch,
            decay=kappa,
        )
        return pack(change.Q, change.R, change.v if learns_readout else change.v[:0])

    begin = pack(start.Q.numpy(), start.R.numpy(), fixed if learns_readout else fixed[:0])
    chosen = choose_method(method, len(begin))
    solution = integrate(slope, begin, horizon, chosen, rtol, atol)
    return trajectory_of(
        solution.sol, stored, start, unit, sigma, method=chosen, evaluations=int(solution.nfev)
    )


def trajectory_of(
    between: Callable[[float], ndarray],
    stored: Float[ndarray, " times"],
    start: OrderParameters,
    activation: Activation,
    noise: float,
    *,
    method: str,
    evaluations: int,
) -> Trajectory:
    """The learning curve behind a function from α to packed order parameters (see `ode.pack`)."""
    students, teachers = start.R.shape
    states = [unpack(between(alpha), students, teachers) for alpha in stored]
    q, r = (np.stack([state[part] for state in states]) for part in (0, 1))
    fixed = start.v.numpy()
    v = np.stack([state[2] if len(state[2]) else fixed for state in states])
    errors = [error_of(*state, start, activation) for state in zip(q, r, v, strict=True)]
    return Trajectory(
        times=torch.from_numpy(stored),
        Q=torch.from_numpy(q),
        R=torch.from_numpy(r),
        v=torch.from_numpy(v),
        start=start,
        errors=torch.tensor(errors, dtype=torch.float64),
        activation=activation,
        noise=noise,
        method=method,
        evaluations=evaluations,
        _between=between,
    )


def order_at(trajectory: Trajectory, alpha: float) -> OrderParameters:
    """The order parameters at any α of the run, by the integrator's own interpolation."""
    last = float(trajectory.times[-1])
    if not 0 <= alpha <= last:
        raise ValueError(f"`alpha` must lie in [0, {last:g}], the solved interval, got {alpha!r}.")
    start = trajectory.start
    q, r, v = unpack(trajectory._between(float(alpha)), len(start.v), len(start.v_star))
    readout = torch.from_numpy(v) if len(v) else start.v
    return OrderParameters(
        torch.from_numpy(q), torch.from_numpy(r.copy()), start.T, readout, start.v_star
    )


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """A stretch of training in which the error hardly falls.

    Attributes:
        begin: α at which the fall slows below the threshold.
        end: α at which it speeds up again, or None where the run ends before.
        error: ε_g at the geometric middle of the stretch.
        escape: α at which ε_g has fallen to half of `error`, or None where it never does.
    """

    begin: float
    end: float | None
    error: float
    escape: float | None


def plateaus(
    trajectory: Trajectory, *, threshold: float = 0.3, shortest: float = 5.0
) -> list[Plateau]:
    """Find the plateaus of a learning curve.

    The fall is measured as s = −d ln ε_g / d ln α, on 2000 points even in ln α from α = 0.1 on. A
    plateau is a stretch with s < `threshold` that lasts at least `shortest` in α and by a factor
    1.5. The last one may be the student's final level: it has no end and no escape.
    """
    start, last = trajectory.start, float(trajectory.times[-1])
    alpha = np.geomspace(min(0.1, last / 2), last, 2000)
    fixed = start.v.numpy()
    errors = np.empty(len(alpha))
    for n, time in enumerate(alpha):
        q, r, v = unpack(trajectory._between(time), len(fixed), len(start.v_star))
        errors[n] = error_of(q, r, v if len(v) else fixed, start, trajectory.activation)
    errors = np.maximum(errors, 1e-300)
    slope = -np.gradient(np.log(errors), np.log(alpha))
    slow = np.concatenate([[False], slope < threshold, [False]])
    turns = np.flatnonzero(slow[1:] != slow[:-1])
    found = []
    for first, after in zip(turns[::2], turns[1::2], strict=True):
        final = after == len(alpha)
        begin, end = alpha[first], alpha[after - 1]
        if end - begin < shortest or end < 1.5 * begin:
            continue
        level = float(np.exp(np.interp(0.5 * np.log(begin * end), np.log(alpha), np.log(errors))))
        half = np.flatnonzero(errors[first:] <= 0.5 * level)
        escape = float(alpha[first + half[0]]) if len(half) else None
        found.append(
            Plateau(
                begin=float(begin), end=None if final else float(end), error=level, escape=escape
            )
        )
    return found


def schedule(name: str, rate: Rate) -> Callable[[float], float]:
    """A learning rate as a function of α."""
    if callable(rate):
        return rate
    constant = positive(name, rate, zero=True)
    return lambda alpha: constant


def output_times(times: Any, until: float) -> Float[ndarray, " times"]:
    """The times to store: those asked for, checked, or the default grid."""
    if times is None:
        early = np.geomspace(min(0.01, until / 2), until, GRID // 2)
        even = np.linspace(0.0, until, GRID - len(early) + 1)
        return np.unique(np.concatenate([early, even]))
    given: ndarray = as_float64("times", times, dims=1).numpy()
    if len(given) == 0 or (np.diff(given) <= 0).any() or given[0] < 0 or given[-1] > until:
        raise ValueError(
            f"`times` must increase strictly within [0, {until:g}], the interval solved, got "
            f"{given.tolist()[:5]}…. Sort them, or raise `until`."
        )
    return given


def choose_method(method: str | None, entries: int) -> str:
    """The integrator asked for, or the one that suits the size of the state."""
    if method is None:
        return "LSODA" if entries < IMPLICIT_LIMIT else "RK45"
    if method not in METHODS:
        raise unknown("integrator", method, METHODS)
    return method


def integrate(
    slope: Callable[[float, ndarray], ndarray],
    begin: ndarray,
    until: float,
    method: str,
    rtol: float,
    atol: float,
) -> Any:
    """Run `solve_ivp`, with one clear error where the student diverges."""

    def size(alpha: float, state: ndarray) -> float:
        return float(1e9 - np.abs(state).max())

    size.terminal = True  # type: ignore[attr-defined]
    with np.errstate(over="ignore", invalid="ignore"):
        solution = solve_ivp(
            slope,
            (0.0, until),
            begin,
            method=method,
            rtol=positive("rtol", rtol),
            atol=positive("atol", atol),
            dense_output=True,
            events=size,
        )
    reached = float(solution.t[-1])
    if solution.status != 0 or not math.isfinite(float(np.abs(solution.y[:, -1]).max())):
        raise RuntimeError(
            f"The learning equations could not be solved beyond alpha = {reached:.4g} of "
            f"{until:g} ({method}): the student diverges or the tolerances are too tight. Lower "
            f"the learning rate, or choose another `method`."
        )
    return solution


def error_of(
    q: ndarray, r: ndarray, v: ndarray, start: OrderParameters, activation: Activation
) -> float:
    """ε_g from the moving order parameters of a run that started at `start`.

    At least 0: what is below the integrator's tolerance may come out as a small negative number.
    """
    covariance = np.block([[q, r], [r.T, start.T.numpy()]])
    readout = np.concatenate([v, -start.v_star.numpy()])
    return max(0.0, 0.5 * float(readout @ activation.pair(covariance) @ readout))
