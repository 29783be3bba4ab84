"""The probabilistic approach to pruning: bounds, predictions and certificates of the gap.

`concentration` bounds norms of random matrices, `apriori` the gap before training, `given_weights`
before the mask is drawn, `certificate` of a concrete pruned network, `plan` turns a limit into
counts per layer. RIG marks theorems, RIG/MC theorems with simulated confidence, PRED predictions.
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
