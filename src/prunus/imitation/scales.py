"""Factors on the classes of a set, so that together they give what the whole group gives."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.imitation.form import Form
from prunus.imitation.steps import LEAST, Line, dead_classes
from prunus.threads import single_threaded

__all__ = ["equal_scales", "line_scales", "refit_scales", "repeated_scales"]

RIDGE = 1e-8  # of the mean of M's diagonal
MOVES = 400
Kept = Bool[Tensor, " classes"]
Scale = Float[Tensor, " classes"]


def equal_scales(form: Form, kept: Kept) -> Scale:
    """N / k on each of the k live classes kept of N, 1 elsewhere."""
    scale = torch.ones(len(kept), dtype=torch.float64)
    live = ~dead_classes(form)
    some = kept & live
    scale[some] = int(live.sum()) / max(int(some.sum()), 1)
    return scale


@single_threaded
def repeated_scales(form: Form, kept: Kept) -> Scale:
    """N · count / n on the classes kept: each once, and then again where D is least.

    At most 20 steps a class; the step with the least D counts.
    """
    live = ~dead_classes(form)
    some = (kept & live).numpy()
    k, n = int(some.sum()), int(live.sum())
    scale = torch.ones(len(kept), dtype=torch.float64)
    if not k:
        return scale
    matrix, target = form.matrix.numpy(), form.target.numpy()
    power, places = matrix.diagonal(), np.flatnonzero(some)
    counts = some.astype(np.float64)
    product = matrix @ counts  # M · counts
    best, least = counts * (n / k), np.inf
    for t in range(k, 21 * k):
        a = n / t
        error = a**2 * float(counts @ product) - 2 * a * float(counts @ target)
        if error < least:
            best, least = counts * a, error
        jump = n / (t + 1)
        value = jump * (2 * product + power) - 2 * target  # over `jump`, up to what all share
        item = int(places[value[places].argmin()])
        counts[item] += 1
        product = product + matrix[item]
    scale[torch.from_numpy(some)] = torch.from_numpy(best[some])
    return scale


@single_threaded
def line_scales(form: Form, kept: Kept) -> Scale:
    """N α with α in the simplex over the classes kept, from N / k by line steps among them.

    Until a step lowers D by less than 1e-12 of c, or 400 steps. A class may end with factor 0.
    """
    live = ~dead_classes(form)
    some = kept & live
    scale = torch.ones(len(kept), dtype=torch.float64)
    if not bool(some.any()):
        return scale
    places = some.numpy()
    line = Line(
        form.matrix.numpy(),
        form.target.numpy(),
        form.constant,
        int(live.sum()),
        places / places.sum(),
    )
    for _ in range(MOVES):
        _, gain = line.step(places)
        if gain <= LEAST * form.constant:
            break
    scale[some] = torch.from_numpy(int(live.sum()) * line.share[places])
    return scale


def refit_scales(form: Form, kept: Kept) -> Scale:
    """The least of D over all factors on the classes kept: a_S = 1 + (M_SS + λI)⁻¹ (b − M 1_S)_S.

    λ is 1e-8 of the mean of M's diagonal; a dead class has factor 1.

    Raises:
        ValueError: M_SS + λI is not positive definite, so that M is no second moment.
    """
    some = kept & ~dead_classes(form)
    scale = torch.ones(len(kept), dtype=torch.float64)
    if not bool(some.any()):
        return scale
    inner = form.matrix[some][:, some]
    missing = form.target[some] - inner.sum(1)
    inner.diagonal().add_(RIDGE * form.matrix.diagonal().mean())
    factor, fault = torch.linalg.cholesky_ex(inner)
    if int(fault):
        raise ValueError(
            f"The form of {int(some.sum())} classes is not positive definite with ridge "
            f"{RIDGE:.0e}. Collect its statistics in float64."
        )
    scale[some] += torch.cholesky_solve(missing[:, None], factor)[:, 0]
    return scale
