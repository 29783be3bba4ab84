"""Forward selection of classes for least squares on the consumers: a block pivoted elimination."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.check import finite, positive
from prunus.imitation.trace import Taken, Trace, completed
from prunus.later import Later
from prunus.nodes import ClassView
from prunus.threads import single_threaded

__all__ = ["Consumer", "ForwardTrace", "consumers_of", "forward_trace"]

linalg = Later("scipy.linalg")

NOTHING = 1e-13  # of what all classes give: gains below are rounding
PANEL = 128  # eliminated columns between two compactions
FEWEST = 8  # classes between two, where each has many columns


@dataclass(frozen=True, eq=False, kw_only=True)
class Consumer:
    """What one layer reads of the classes, or one group of a grouped convolution.

    Attributes:
        gram: G = E[x xᵀ] (in, in), float64.
        aim: E[y xᵀ] (out, in), y the outputs aimed at: W G, or W E[x_dense xᵀ].
        place: Int[classes, columns], where each class lies.
        power: E‖y‖².
    """

    gram: np.ndarray
    aim: np.ndarray
    place: np.ndarray
    power: float


@dataclass(frozen=True, eq=False, kw_only=True)
class ForwardTrace:
    """The order in which classes come in, and by how much each lowers the least-squares error.

    Attributes:
        trace: the sets of all counts.
        gain: what each class of the order gains, squared output units; 0 for those behind.
    """

    trace: Trace
    gain: Float[Tensor, " candidates"]


def consumers_of(view: ClassView) -> list[Consumer]:
    """The consumers of a group, aimed at the dense network's outputs where `cross` was collected.

    Raises:
        ValueError: a consumer has no Gram matrix, or one with NaN; the layer is named.
    """
    found = []
    for layer, place in view.consumers.values():
        for part in layer.blocks():
            gram = finite(f"{layer.name}.gram", part.statistic("gram")).to("cpu", torch.float64)
            weight = part.weight.detach().to("cpu", torch.float64)
            seen, dense = gram, gram
            if part.cross is not None and part.dense_gram is not None:
                seen, dense = (x.to("cpu", torch.float64) for x in (part.cross, part.dense_gram))
            found.append(
                Consumer(
                    gram=gram.numpy(),
                    aim=(weight @ seen).numpy(),
                    place=place.numpy(),
                    power=float(((weight @ dense) * weight).sum()),
                )
            )
    return found


@single_threaded
def forward_trace(
    consumers: Sequence[Consumer],
    *,
    candidates: Bool[Tensor, " classes"] | None = None,
    pools: int = 1,
    ridge: float = 1e-8,
) -> ForwardTrace:
    """The class comes next with which least squares on all consumers leaves the least error.

    With S the Schur complement of G on the columns that are in and B that of E[y xᵀ], class i
    lowers Σ_c E‖y_c − V_c x_c‖² by Σ_c tr(B_i (S_ii)⁻¹ B_iᵀ); then S −= S_:i (S_ii)⁻¹ S_i: and
    B −= B_i (S_ii)⁻¹ S_i:. Columns of other groups are in from the start. About in³/3
    multiply-adds a consumer for all counts, and memory for two copies of G.

    Args:
        consumers: of the classes.
        candidates: classes that may come in; all where None.
        pools: runs of classes that grow alike.
        ridge: λ relative to the mean of G's diagonal.

    Raises:
        ValueError: a Gram matrix that is no second moment.

    References:
        derived in docs/node_selection.md; for single columns it is orthogonal least squares: Chen,
        Billings, Luo (1989).
    """
    positive("ridge", ridge)
    n = len(consumers[0].place) if consumers else 0 if candidates is None else len(candidates)
    some = np.ones(n, dtype=bool) if candidates is None else candidates.cpu().numpy()
    power = np.zeros(n)
    for one in consumers:
        power += one.gram.diagonal()[one.place].sum(1)
    live = some & (power > 0)
    parts = [_Elimination(one, ridge) for one in consumers]
    whole = sum(one.power for one in consumers)
    taken, gains = Taken(live, pools), []
    while taken.left.any():
        allowed = np.flatnonzero(taken.open)
        gain = np.zeros(len(allowed))
        for part in parts:
            gain += part.gains(allowed)
        best = int(gain.argmax())
        if gain[best] <= NOTHING * whole:
            break
        taken.add(int(allowed[best]))
        gains.append(float(gain[best]))
        for part in parts:
            part.take(taken.order[-1], np.flatnonzero(taken.left))
    order = completed(taken, power)
    behind = completed(Taken(some & ~live, pools), power)
    order = torch.cat([order, behind])
    gained = torch.zeros(len(order), dtype=torch.float64)
    gained[: len(gains)] = torch.tensor(gains, dtype=torch.float64)
    return ForwardTrace(trace=Trace(order=order, size=n, pools=pools), gain=gained)


class _Elimination:
    """One consumer while classes come in.

    Left-looking between compactions: columns of S are formed when their class comes in, from G and
    the panel before; a compaction then drops what is in and brings G up to date.
    """

    def __init__(self, given: Consumer, ridge: float) -> None:
        self._place = given.place
        scale = float(given.gram.diagonal().mean()) if len(given.gram) else 0.0
        if scale < 0 or (scale == 0 and given.gram.any()):
            raise ValueError(f"`gram` must be a second moment, got mean diagonal {scale:.3g}.")
        self._gram = given.gram.copy()
        self._gram.flat[:: len(self._gram) + 1] += ridge * (scale or 1.0)
        self._aim = _narrowed(given.aim)
        self._panel = np.empty((0, len(self._gram)))
        self._most = max(PANEL, FEWEST * given.place.shape[1])
        rows, columns = given.place[:, :, None], given.place[:, None, :]
        self._inner = self._gram[rows, columns]
        others = np.ones(len(self._gram), dtype=bool)
        others[given.place.ravel()] = False
        if others.any():
            self._eliminate(np.flatnonzero(others), np.arange(len(given.place)))

    def gains(self, classes: np.ndarray) -> np.ndarray:
        """By how much each of some classes would lower the error."""
        if not (self._inner[classes].diagonal(axis1=1, axis2=2) > 0).all():
            raise _indefinite()
        given = self._aim[:, self._place[classes]].transpose(1, 2, 0)  # (classes, columns, out)
        if given.shape[1] == 1:
            single: np.ndarray = (given[:, 0] ** 2).sum(1) / self._inner[classes, 0, 0]
            return single
        energy = given @ given.transpose(0, 2, 1)
        solved = np.linalg.solve(self._inner[classes], energy)
        gains: np.ndarray = solved.trace(axis1=1, axis2=2)
        return gains

    def take(self, item: int, left: np.ndarray) -> None:
        """A class comes in; `left` are those that may still come."""
        self._eliminate(self._place[item], left)
        if len(self._panel) >= self._most and len(left):
            self._compact(left)

    def _eliminate(self, columns: np.ndarray, left: np.ndarray) -> None:
        block = self._gram[columns] - self._panel[:, columns].T @ self._panel
        try:
            lower = np.linalg.cholesky(block[:, columns])
        except np.linalg.LinAlgError:
            raise _indefinite() from None
        rows = linalg.solve_triangular(lower, block, lower=True)
        aims = linalg.solve_triangular(lower, self._aim[:, columns].T, lower=True).T
        self._aim -= aims @ rows
        own = rows[:, self._place[left]].transpose(1, 2, 0)  # (left, columns, eliminated)
        self._inner[left] -= own @ own.transpose(0, 2, 1)
        self._panel = np.concatenate([self._panel, rows])

    def _compact(self, left: np.ndarray) -> None:
        """Only the columns of classes that may still come."""
        stay = self._place[left].ravel()
        panel = self._panel[:, stay]
        self._gram = self._gram[np.ix_(stay, stay)]
        self._gram -= panel.T @ panel
        self._aim = self._aim[:, stay]
        place = np.full(self._place.shape, -1)
        place[left] = np.arange(len(stay)).reshape(len(left), -1)
        self._place, self._panel = place, np.empty((0, len(stay)))


def _indefinite() -> ValueError:
    return ValueError(
        "`gram` is not positive definite with its ridge. Collect it in float64, or pass a larger "
        "ridge."
    )


def _narrowed(aim: np.ndarray) -> np.ndarray:
    """As many rows as columns at most, with the same products between columns."""
    if len(aim) <= aim.shape[1]:
        return aim.copy()
    return np.asarray(np.linalg.qr(aim, mode="r"))
