"""Greedy steps from a quadratic form: which class comes in next; O(classes) each."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.imitation.form import Form
from prunus.imitation.trace import Taken, Trace, completed
from prunus.threads import single_threaded

__all__ = ["Steps", "dead_classes", "line_steps", "refit_steps", "uniform_steps"]

DEAD = 1e-12  # of the mean diagonal of M: classes below give nothing
LEAST = 1e-12  # of c: a step that gains less is rounding
ROUNDS = 20  # steps for every class, after which the others come in by size


@dataclass(frozen=True, eq=False, kw_only=True)
class Steps:
    """What a sequence of greedy steps did.

    Attributes:
        picked: the class of each step; with repeats a class may come again.
        error: D(a) after each step, squared output units.
        trace: the classes by their first step.
    """

    picked: Int[Tensor, " steps"]
    error: Float[Tensor, " steps"]
    trace: Trace


def dead_classes(form: Form) -> Bool[Tensor, " classes"]:
    """True for classes that give nothing: M_ii ≤ 1e-12 of the mean of M's diagonal."""
    power = form.matrix.diagonal()
    return power <= DEAD * power.mean()


class _Run:
    """The live candidates of a form, and what has been picked so far."""

    def __init__(self, form: Form, candidates: Tensor | None, pools: int) -> None:
        n = len(form.matrix)
        self.matrix = form.matrix.numpy()
        self.target, self.constant = form.target.numpy(), form.constant
        self.power = self.matrix.diagonal().copy()
        some = np.ones(n, dtype=bool) if candidates is None else candidates.cpu().numpy()
        self.all = some
        self.live = some & ~dead_classes(form).numpy()
        self.count = int(self.live.sum())
        self.taken = Taken(self.live, pools)
        self.picked: list[int] = []
        self.error: list[float] = []
        self.pools = pools

    def note(self, item: int, error: float) -> None:
        if self.taken.left[item]:
            self.taken.add(item)
        self.picked.append(item)
        self.error.append(error)

    def found(self) -> Steps:
        """The rest of the live classes follow by what each gives, then the dead ones."""
        order = completed(self.taken, self.power)
        dead = Taken(self.all & ~self.live, self.pools)
        order = torch.cat([order, completed(dead, np.zeros(len(self.all)))])
        return Steps(
            picked=torch.tensor(self.picked, dtype=torch.int64),
            error=torch.tensor(self.error, dtype=torch.float64),
            trace=Trace(order=order, size=len(self.all), pools=self.pools),
        )


def _best(values: np.ndarray, allowed: np.ndarray) -> int:
    """The first of the allowed places with the highest value."""
    places = np.flatnonzero(allowed)
    return int(places[values[places].argmax()])


@single_threaded
def uniform_steps(
    form: Form,
    *,
    repeats: bool = False,
    steps: int | None = None,
    candidates: Bool[Tensor, " classes"] | None = None,
    pools: int = 1,
) -> Steps:
    """α ← (1 − 1/n) α + (1/n) e_i at step n, i with the least D; a = N α, N live classes.

    α = 1/N is the network itself. Classes that give nothing are none of the N: scaled by N, one of
    them would look like the best first step. Poor below N/15 classes, where a_i = N/k is far off.

    Args:
        form: D.
        repeats: a class may come again (the theorem's multiset); else each comes once (a set).
        steps: how many; every class once, or with `repeats` until all are in and at most 20 N.
        candidates: classes that may come in; all where None.
        pools: runs of classes that grow alike.

    References:
        Ye et al. (2020), Good subnetworks provably exist: pruning via greedy forward selection.
    """
    run = _Run(form, candidates, pools)
    n = run.count
    product = np.zeros(len(run.power))  # M a
    quadratic = linear = 0.0  # aᵀ M a and aᵀ b
    most = steps if steps is not None else ROUNDS * n if repeats else n
    for t in range(1, most + 1):
        allowed = run.live & (~run.taken.left | run.taken.open) if repeats else run.taken.open
        if not allowed.any() or (repeats and steps is None and not run.taken.left.any()):
            break
        keep, jump = (t - 1) / t, n / t
        # D of every candidate, up to what all have in common
        value = 2 * keep * jump * product + jump**2 * run.power - 2 * jump * run.target
        item = _best(-value, allowed)
        quadratic = (
            keep**2 * quadratic + 2 * keep * jump * product[item] + jump**2 * run.power[item]
        )
        linear = keep * linear + jump * run.target[item]
        product = keep * product + jump * run.matrix[item]
        run.note(item, quadratic - 2 * linear + run.constant)
    return run.found()


@single_threaded
def line_steps(
    form: Form,
    *,
    steps: int | None = None,
    candidates: Bool[Tensor, " classes"] | None = None,
    pools: int = 1,
) -> Steps:
    """α ← (1 − γ) α + γ e_i with the best class i and the best γ in [−α_i / (1 − α_i), 1].

    With d_i = N e_i − a and r what is still missing, γ = ⟨r, d_i⟩ / ⟨d_i, d_i⟩, clipped, lowers D
    by 2γ⟨r, d_i⟩ − γ²⟨d_i, d_i⟩; a negative γ takes weight away from a class.

    Args:
        form: D.
        steps: how many; until all classes are in, D falls no more, or 20 N where None.
        candidates: classes that may come in; all where None.
        pools: runs of classes that grow alike.

    References:
        Ye, Wu, Liu (2020), Greedy optimization provably wins the lottery: logarithmic number of
        winning tickets is enough; the local imitation.
    """
    run = _Run(form, candidates, pools)
    line = Line(run.matrix, run.target, run.constant, run.count, np.zeros(len(run.power)))
    for _ in range(ROUNDS * run.count if steps is None else steps):
        allowed = run.live & (~run.taken.left | run.taken.open)
        if not allowed.any() or (steps is None and not run.taken.left.any()):
            break
        item, gain = line.step(allowed)
        if gain <= LEAST * run.constant:
            break
        run.note(item, line.error)
    return run.found()


class Line:
    """A point α of the simplex, moved along lines to its corners; a = N α."""

    def __init__(
        self,
        matrix: np.ndarray,
        target: np.ndarray,
        constant: float,
        count: int,
        share: np.ndarray,
    ) -> None:
        self._matrix, self._target, self._constant = matrix, target, constant
        self._power = matrix.diagonal()
        self._count = count
        self.share = share.copy()
        self._product = count * (matrix @ share)  # M a
        self._quadratic = float(count * (share @ self._product))
        self._linear = float(count * (share @ target))

    @property
    def error(self) -> float:
        """D(a)."""
        return self._quadratic - 2 * self._linear + self._constant

    def step(self, allowed: np.ndarray) -> tuple[int, float]:
        """Move towards, or away from, the best allowed corner; the corner, and the gain in D."""
        n, share = self._count, self.share
        left = self._target - self._product  # b − M a
        slope = n * left - (self._linear - self._quadratic)  # ⟨r, d_i⟩
        curve = n**2 * self._power - 2 * n * self._product + self._quadratic  # ⟨d_i, d_i⟩
        low = np.divide(-share, 1 - share, out=np.zeros_like(share), where=share < 1)
        if not share.any():  # the first step has nothing to keep
            gamma = np.ones_like(share)
        else:
            gamma = np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
            gamma = gamma.clip(low, 1.0)
        gains = 2 * gamma * slope - gamma**2 * curve
        item = _best(gains, allowed)
        g = float(gamma[item])
        gain = float(gains[item]) if share.any() else np.inf
        if gain <= 0:
            return item, gain
        row = self._matrix[item]
        self._quadratic = (
            (1 - g) ** 2 * self._quadratic
            + 2 * (1 - g) * g * n * float(self._product[item])
            + (g * n) ** 2 * float(self._power[item])
        )
        self._linear = (1 - g) * self._linear + g * n * float(self._target[item])
        self._product = (1 - g) * self._product + (g * n) * row
        self.share = (1 - g) * share
        self.share[item] += g
        self.share.clip(0.0, out=self.share)
        return item, gain


@single_threaded
def refit_steps(
    form: Form,
    *,
    candidates: Bool[Tensor, " classes"] | None = None,
    pools: int = 1,
) -> Steps:
    """The class comes next with which D falls most, the factors of all that are in being refitted.

    Orthogonal matching pursuit by one pivoted elimination of M: with S the Schur complement of M on
    those that are in and r that of b, class i lowers D by r_i² / S_ii.

    Args:
        form: D.
        candidates: classes that may come in; all where None.
        pools: runs of classes that grow alike.

    References:
        Pati, Rezaiifar, Krishnaprasad (1993), Orthogonal matching pursuit; the step of Ye, Wu, Liu
        (2020) without its simplex.
    """
    run = _Run(form, candidates, pools)
    floor = DEAD * float(run.power.mean()) if len(run.power) else 0.0
    spare, rest = run.power.copy(), run.target.copy()
    columns = np.empty((run.count, len(spare)))
    error = run.constant
    for t in range(run.count):
        fit = run.taken.open & (spare > floor)
        gain = np.divide(rest**2, spare, out=np.zeros_like(rest), where=fit)
        if not fit.any() or float(gain.max()) <= LEAST * run.constant:
            break
        item = _best(gain, fit)
        column = run.matrix[item] - columns[:t, item] @ columns[:t]
        columns[t] = column / np.sqrt(spare[item])
        rest = rest - columns[t] * (rest[item] / np.sqrt(spare[item]))
        spare = np.maximum(spare - columns[t] ** 2, 0.0)
        error -= float(gain[item])
        run.note(item, error)
    return run.found()
