"""Which channels go together, found by running integer labels through the exported graph."""

from typing import Any

from torch import nn

from prunus.coupling.groups import coupling_of_trace, layer_names
from prunus.coupling.types import Coupling, Group, Member, Slot
from prunus.coupling.walk import NotTraceable

__all__ = ["Coupling", "Group", "Member", "Slot", "couple"]


def couple(model: nn.Module, example: Any) -> Coupling:
    """The channel classes of a model that can be removed, and why the others cannot.

    The model is exported (`torch.export`, in eval mode, on two samples) and walked with an
    integer label in place of each activation: a linear or convolution layer makes one label per
    output channel, data movement runs on the labels themselves, element-wise operations unite
    labels. Each class then knows every row and column that has to go with it. An operation
    without a rule refuses the classes that reach it; it never guesses.

    Args:
        model: the network; it is left as it is.
        example: one batch: a tensor, a tuple whose first element is the input, or a mapping of
            keyword inputs.

    Returns:
        The groups of removable classes, and a reason for each other linear or convolution layer.

    Raises:
        TypeError: `example` is no batch.
    """
    try:
        return coupling_of_trace(model, example)
    except NotTraceable as reason:
        return Coupling((), dict.fromkeys(layer_names(model), str(reason)))
