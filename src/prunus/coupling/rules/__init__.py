"""What each operation does to labels; an operation without a rule refuses the classes in it."""

import torch

from prunus.coupling.calls import Call, Refused, Rule, Trace
from prunus.coupling.labels import FIRST
from prunus.coupling.rules import attention, elementwise, layers, movement, norms, reductions
from prunus.coupling.shadow import carries

__all__ = ["RULES", "rule_for"]

RULES: dict[str, Rule] = {
    **attention.RULES,
    **layers.RULES,
    **norms.RULES,
    **elementwise.RULES,
    **reductions.RULES,
    **movement.RULES,
}


def rule_for(trace: Trace, call: Call) -> Rule:
    """The rule of an operation, looked up by overload, then by name; or Refused with its name.

    Whole numbers and truth values that no class has a part in are constants, whatever made them.
    """
    inputs = call.tensors()
    if not any(carries(tensor) for tensor in call.outputs) and not any(
        bool((trace.read(tensor) >= FIRST).any()) for tensor in inputs
    ):
        return elementwise.fixed
    for name in (str(call.operation).removesuffix("_"), call.name):
        if name in RULES:
            return RULES[name]
    tags = call.operation.tags
    if torch.Tag.pointwise in tags:
        return elementwise.elementwise
    if not inputs or torch.Tag.nondeterministic_seeded in tags:
        return elementwise.constant
    raise Refused(f"operation {call.name} has no rule")
