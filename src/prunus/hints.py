"""Types that many rooms state: what callers hand in.

`Any` stands here where a type cannot be said; elsewhere these names stand for it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsFloat

from torch import Tensor, nn

__all__ = ["Arguments", "Batch", "Data", "Evaluate", "Keywords", "Loss", "Metrics"]

# A tensor, an array, or a tuple, mapping or data class of them; `prunus.inputs` finds the samples.
# Others go into the model as they are, so that any object is one.
Batch = object

# What a module is called with, as its hooks see it.
Arguments = tuple[object, ...]
Keywords = dict[str, object]

# One batch, any iterable of batches, or a `Calibration`: all of them can be iterated over.
Data = Iterable[Batch]

# What `evaluate` says of a model: a number, or numbers by name.
Metrics = SupportsFloat | Mapping[str, SupportsFloat]
Evaluate = Callable[[nn.Module], Metrics]

# (output, batch) -> scalar. The caller knows what their network gives and what their batches hold:
# a function of `object` would refuse theirs.
Loss = Callable[[Any, Any], Tensor]
