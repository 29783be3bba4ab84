"""Linear connectivity: whether two trained networks lie in one basin of the loss."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import Batches, call, to_device
from prunus.calibration.place import device_of
from prunus.check import fraction
from prunus.means import as_loss

__all__ = ["Connection", "connection"]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What lies on the straight line between two networks.

    Attributes:
        errors: {α: what `evaluate` says of α · one + (1 − α) · other}, both ends included.
        barrier: the largest error in between minus the mean of the ends, in units of the errors;
            infinite where an error in between is NaN.
    """

    errors: dict[float, float]
    barrier: float


def connection(
    one: nn.Module,
    other: nn.Module,
    evaluate: Callable[[nn.Module], float],
    *,
    data: Any = None,
    points: Sequence[float] = (0.25, 0.5, 0.75),
) -> Connection:
    """The errors of networks on the line between two, such as two trainings of one ticket.

    Below about 2 points of test error in height the two count as linearly connected, and their
    start as stable against the order of the data.

    Args:
        one: a network.
        other: the same architecture.
        evaluate: the error of a network.
        data: batches on which batch norm's statistics are collected anew in between; without them
            the barriers of networks with batch norm are false, so they are asked for there.
        points: shares α of `one`, at least one.

    Raises:
        ValueError: other parameters, no point, or batch norm without `data`.

    References:
        Frankle et al. (2020), Linear mode connectivity and the lottery ticket hypothesis.
    """
    ends = [model.state_dict() for model in (one, other)]
    if {k: v.shape for k, v in ends[0].items()} != {k: v.shape for k, v in ends[1].items()}:
        raise ValueError(
            "The two networks have other parameters, so there is no line between them. Pass two "
            "trainings of one architecture."
        )
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in one.modules())
    if norms and data is None:
        raise ValueError(
            "Between two networks the statistics of batch norm fit neither of them. Pass data=, "
            "batches of training samples."
        )
    points = [fraction("points", share) for share in points]
    if not points:
        raise ValueError("`points` must hold a share in (0, 1), got none. Pass (0.5,) or more.")
    errors = {1.0: float(evaluate(one)), 0.0: float(evaluate(other))}
    middle = copy.deepcopy(one)
    batches = None if data is None or not norms else Batches(data)
    for share in points:
        middle.load_state_dict({k: _between(v, ends[1][k], share) for k, v in ends[0].items()})
        if batches is not None:
            _settle(middle, batches)
        errors[share] = float(evaluate(middle))
    between = max(as_loss(errors[share], higher=False) for share in points)
    return Connection(
        errors=dict(sorted(errors.items())), barrier=between - (errors[0.0] + errors[1.0]) / 2
    )


def _between(one: Tensor, other: Tensor, share: float) -> Tensor:
    if not one.is_floating_point():
        return one
    return share * one + (1 - share) * other.to(one.device)


def _settle(model: nn.Module, batches: Batches) -> None:
    """Collect batch norm's statistics anew: their plain means over the batches."""
    flags = [(module, module.training) for module in model.modules()]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    with torch.no_grad():
        for i, batch in enumerate(batches):
            call(model, to_device(batch, device_of(model)), i)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, flag in flags:
        module.training = flag
