"""Which channels go together, found by running the model once with labels behind its tensors."""

from torch import nn

from prunus.ambient import plainly
from prunus.coupling.groups import groups_of
from prunus.coupling.run import NotTraceable, traced
from prunus.coupling.trace import LabelTrace
from prunus.coupling.training import unused, with_training
from prunus.coupling.types import Coupling, Group, Heads, Member, Slot
from prunus.coupling.uses import used_elsewhere
from prunus.coupling.weights import layer_names
from prunus.hints import Batch
from prunus.modes import private

__all__ = [
    "Coupling",
    "Group",
    "Heads",
    "Member",
    "NotTraceable",
    "Slot",
    "couple",
    "coupling_of",
    "used_elsewhere",
]


@plainly
def coupling_of(
    model: nn.Module, example: Batch, heads: Heads = "kv", trace: LabelTrace | None = None
) -> Coupling:
    """As `couple`, but raises NotTraceable where the model does not run on the example.

    `trace` is one that has run already, of this very model.
    """
    with private(model) as own:
        names = layer_names(own)
        found = groups_of(trace or traced(own, example, heads), names)
        if not unused(found):
            return found
        try:
            training = traced(own, example, heads, training=True)
        except NotTraceable:  # as where training asks for labels
            return found
        return with_training(found, groups_of(training, names))


def couple(model: nn.Module, example: Batch, heads: Heads = "kv") -> Coupling:
    """The channel classes of a model that can be removed, and why the others cannot.

    The model's own forward runs once, in eval mode, on two samples, with an integer label behind
    each number: a linear or convolution layer makes one label per output channel, views and data
    movement move the labels along, element-wise operations unite labels. Each class then knows
    every row and column that has to go with it. An operation without a rule refuses the classes
    that reach it; it never guesses.

    Args:
        model: the network; it is left as it is.
        example: one batch: a tensor, a tuple whose first element is the input, or a mapping of
            keyword inputs.
        heads: what of attention is a unit: "kv", a key and value head with all query heads that
            it serves, or "query", a query head of each kv head, where a kv head serves several.

    Returns:
        The groups of removable classes, and a reason for each other linear or convolution layer.

    Raises:
        TypeError: `example` is no batch.
    """
    try:
        return coupling_of(model, example, heads)
    except NotTraceable as reason:
        return Coupling((), dict.fromkeys(layer_names(model), str(reason)))
