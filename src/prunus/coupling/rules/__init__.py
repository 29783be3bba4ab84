"""What each operation does to labels; an operation without a rule refuses the classes in it."""

from functools import lru_cache

import torch
from torch import nn
from torch._ops import OpOverload

from prunus.coupling.calls import Call, Refused, Rule, Trace
from prunus.coupling.labels import FIRST
from prunus.coupling.rules import attention, elementwise, layers, movement, norms, reductions
from prunus.coupling.rules.recurrent import MODULES, ModuleRule
from prunus.coupling.shadow import carries

__all__ = ["RULES", "module_rule", "rule_for"]

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
    for name in (_overload(call.operation), call.name):
        if name in RULES:
            return RULES[name]
    tags = call.operation.tags
    if torch.Tag.pointwise in tags:
        return elementwise.elementwise
    if not inputs or torch.Tag.nondeterministic_seeded in tags:
        return elementwise.constant
    raise Refused(f"operation {call.name} has no rule")


@lru_cache(maxsize=4096)
def _overload(operation: OpOverload) -> str:
    """The name of an overload, which torch puts together anew each time."""
    return str(operation).removesuffix("_")


def module_rule(module: nn.Module) -> ModuleRule | None:
    """The rule of a module that is followed as a whole; none where a subclass runs its own code."""
    kind = next((known for known in type(module).__mro__ if known in MODULES), None)
    same = kind is not None and type(module).forward is kind.forward  # type: ignore[attr-defined]
    return MODULES[kind] if kind is not None and same else None
