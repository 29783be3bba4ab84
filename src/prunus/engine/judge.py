"""The caller's `evaluate`, as the engine calls it."""

import torch
from torch import nn

from prunus.ambient import theirs
from prunus.calibration import Calibration
from prunus.calibration.batches import Batches, call, first_of, to_device
from prunus.calibration.place import device_of
from prunus.hints import Batch, Evaluate
from prunus.modes import evaluating, private
from prunus.noise import draws, repeated

__all__ = ["example_of", "judge_of"]


def example_of(data: Calibration | Batches | None) -> Batch:
    """Two samples of the data; None where there are none."""
    return first_of(data.peek(), 2) if isinstance(data, Batches) else data and data.example


def judge_of(evaluate: Evaluate, model: nn.Module, example: Batch) -> Evaluate:
    """`evaluate` in the caller's modes; of a network that draws, from one random state each time.

    The dense network and all that come of it then meet the same noise, and the process's own state
    stays. Whether a network draws is seen in a pass over the example; without one nobody knows, and
    `evaluate` runs as it is.

    Args:
        evaluate: the caller's function of a network.
        model: the dense network.
        example: one batch, or None.
    """
    own = theirs(evaluate)
    if example is None:
        return own
    with private(model) as twin, evaluating(twin), torch.no_grad():
        call(twin, to_device(example, device_of(twin)))
        return repeated(own) if draws(twin) else own
