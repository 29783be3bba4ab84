"""The probabilistic approach to pruning: bounds, predictions and certificates of the gap.

`concentration` bounds norms of random matrices, `layer_norms` those of a layer, `apriori` the gap
before training, `inverse` turns a limit on that into counts and widths, `given_weights` bounds it
before the mask is drawn (`drawn_layers` each layer's part), `certificate` for a concrete pruned
network, `plan` turns a limit into counts per layer. RIG marks theorems, RIG/MC theorems with
simulated confidence, PRED predictions.
"""

from prunus.theory.gap.activations import (
    ACTIVATIONS,
    Activation,
    activation,
    custom_activation,
    leaky_relu,
)
from prunus.theory.gap.certificate import certify, local_bound
from prunus.theory.gap.stages import Branches, LinearPair, Lipschitz, Pointwise
from prunus.theory.gap.statement import (
    Certificate,
    InSampleWarning,
    Statement,
    UnsoundError,
    VacuousWarning,
)

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Branches",
    "Certificate",
    "InSampleWarning",
    "LinearPair",
    "Lipschitz",
    "Pointwise",
    "Statement",
    "UnsoundError",
    "VacuousWarning",
    "activation",
    "certify",
    "custom_activation",
    "leaky_relu",
    "local_bound",
]
