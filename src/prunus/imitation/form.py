"""The mean squared change of outputs, as a quadratic form in factors on a group's classes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.check import finite
from prunus.layer import Layer
from prunus.nodes import ClassView

__all__ = ["Form", "joint_costs", "local_form", "output_form"]

PANEL = 8192  # columns of a consumer whose product WᵀW is formed at once
NEGATIVE = 1e-8  # of the trace: eigenvalues below −this are no rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Form:
    """D(a) = aᵀ M a − 2 aᵀ b + c: the error when class i is scaled by a_i, in squared output units.

    With dense inputs b = M 1 and c = 1ᵀ M 1, so that D(a) = (a − 1)ᵀ M (a − 1).

    Attributes:
        matrix: M, symmetric positive semi-definite, float64.
        target: b.
        constant: c, the error with no class at all.
    """

    matrix: Float[Tensor, "classes classes"]
    target: Float[Tensor, " classes"]
    constant: float

    def error(self, scale: Float[Tensor, " classes"]) -> float:
        """D(a), which rounding may leave a little below 0."""
        a = scale.to(self.matrix)
        return float(a @ self.matrix @ a - 2 * (a @ self.target)) + self.constant

    @staticmethod
    def plain(matrix: Float[Tensor, "classes classes"]) -> "Form":
        """The form that aims at a = 1."""
        target = matrix.sum(1)
        return Form(matrix=matrix, target=target, constant=float(target.sum()))


def local_form(view: ClassView, *, normalised: bool = True) -> Form:
    """D at the inputs of the consumers: Σ_c E‖W_c x_c − Σ_i a_i y_{c,i}‖², y what class i gives.

    M_ij = Σ_c Σ_{p∈P_c(i), q∈P_c(j)} (W_cᵀW_c)_pq (G_c)_pq with P_c(i) the columns of class i in
    consumer c: no forward passes. Where the inputs come from a network that is being pruned, so
    that `cross` was collected, G is that of its inputs and the target W_c x_c the dense network's:
    b_i = Σ_{p∈P(i)} Σ_q (WᵀW)_pq E[x_p x_q^dense]. Columns of other groups stay as they are.

    Args:
        view: the group.
        normalised: weigh each of several consumers by 1 / E‖W_c x_c‖².

    Raises:
        ValueError: a consumer has no Gram matrix, or one that is no second moment.
    """
    n = view.group.size
    matrix = torch.zeros(n, n, dtype=torch.float64)
    target, constant = torch.zeros(n, dtype=torch.float64), 0.0
    for layer, place in view.consumers.values():
        parts = layer.blocks()
        factor = 1.0
        if normalised and len(view.consumers) > 1:
            power = sum(map(_power, parts))
            factor = 1 / power if power > 0 else 0.0
        for part in parts:
            own = _form(part, place)
            matrix += factor * own.matrix
            target += factor * own.target
            constant += factor * own.constant
    _checked(view, matrix)
    return Form(matrix=matrix, target=target, constant=constant)


def output_form(view: ClassView) -> Form:
    """D at the network's outputs to first order: the statistic `taylor_gram`.

    Raises:
        ValueError: it was not collected, or is no second moment.
    """
    matrix = view.statistic("taylor_gram").to("cpu", torch.float64)
    _checked(view, matrix)
    return Form.plain(matrix)


def joint_costs(view: ClassView) -> Float[Tensor, "classes classes"]:
    """M with E‖Σ_{c∈T} (what class c gives to the consumers)‖² = Σ_{c,c′∈T} M[c, c′], float64.

    M[c, c′] = Σ_{j∈C_c, k∈C_c′} (WᵀW)_jk G_jk over all outputs, positions and samples; several
    consumers, and the groups of a grouped convolution, add up.

    Raises:
        ValueError: a consumer has no Gram matrix.
    """
    total = torch.zeros(view.group.size, view.group.size, dtype=torch.float64)
    for layer, place in view.consumers.values():
        for part in layer.blocks():
            weight = part.weight.detach().to("cpu", torch.float64)
            total += _products(weight, part.statistic("gram").cpu(), place)
    return total


def _products(
    weight: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    place: Int[Tensor, "classes columns"],
) -> Float[Tensor, "classes classes"]:
    """Σ over the columns of two classes of (WᵀW) ∘ G, in panels where W is wide."""
    n, each = place.shape
    columns = place.flatten()
    own = weight[:, columns]
    if len(columns) <= PANEL:
        inner = gram[columns][:, columns]
        return ((own.T @ own) * inner).view(n, each, n, each).sum((1, 3))
    rows = []
    for classes in torch.split(place, max(1, PANEL // 8 // each)):
        some = classes.flatten()
        panel = (weight[:, some].T @ own) * gram[some][:, columns]
        rows.append(panel.view(len(classes), each, n, each).sum((1, 3)))
    return torch.cat(rows)


def _form(part: Layer, place: Int[Tensor, "classes columns"]) -> Form:
    """The form of one consumer, or of one group of a grouped convolution."""
    weight = part.weight.detach().to("cpu", torch.float64)
    gram = part.statistic("gram").cpu()
    matrix = _products(weight, gram, place)
    if part.cross is None or part.dense_gram is None:
        return Form.plain(matrix)
    aimed = weight @ part.cross.cpu()  # E[(W x_dense) xᵀ]
    constant = _power(part)
    if place.numel() < weight.shape[1]:  # others' columns give what they give
        others = weight.clone()
        others[:, place.flatten()] = 0.0
        given = others @ gram
        constant += float(((given - 2 * aimed) * others).sum())
        aimed = aimed - given
    target = (aimed * weight).sum(0)[place].sum(1)
    return Form(matrix=matrix, target=target, constant=constant)


def _power(part: Layer) -> float:
    """E‖W x‖² of the dense network's inputs."""
    weight = part.weight.detach().to("cpu", torch.float64)
    gram = part.statistic("gram" if part.dense_gram is None else "dense_gram").cpu()
    return float(((weight @ gram) * weight).sum())


def _checked(view: ClassView, matrix: Tensor) -> None:
    """Raise a ValueError where M is no second moment; the group is named."""
    finite(f"The form of group {view.name!r}", matrix, "Collect its statistics from finite inputs.")
    scale = float(matrix.diagonal().sum())
    if scale == 0 and not bool(matrix.any()):
        return
    lifted = matrix.clone()
    lifted.diagonal().add_(NEGATIVE * abs(scale))
    fault = int(torch.linalg.cholesky_ex(lifted).info)
    if scale < 0 or fault:
        names = ", ".join(view.consumers)
        raise ValueError(
            f"The statistics of group {view.name!r}, which {names} read, are no second moments: "
            f"they have an eigenvalue below −{NEGATIVE:.0e} of the trace. Calibrate again, in "
            f"float64."
        )
