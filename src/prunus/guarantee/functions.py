"""What is known of functions and methods: the modules that compute the same, or reshapings."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunus.guarantee.rules import AVAILABLE, Unsupported, identity, module_stage
from prunus.theory.gap.stages import Lipschitz, Stage

__all__ = ["BATCH", "arguments", "changes_in_place", "function_stage"]

BATCH = "the number of samples"  # stands for x.size(0) and x.shape[0] among the arguments

MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
Rule = tuple[Callable[..., nn.Module], tuple[str, ...]]

# Functions, what module computes the same, and their parameters after the input: functions and
# modules order theirs differently (`ceil_mode` of max pooling), and write defaults differently.
AS_MODULES: dict[Any, Rule] = {
    **dict.fromkeys((torch.relu, F.relu, "relu", torch.relu_, "relu_", F.relu_),
                    (nn.ReLU, ("inplace",))),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh", torch.tanh_, "tanh_"), (nn.Tanh, ())),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid", torch.sigmoid_, "sigmoid_"),
                    (nn.Sigmoid, ())),
    F.silu: (nn.SiLU, ("inplace",)),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    F.leaky_relu_: (nn.LeakyReLU, ("negative_slope",)),
    F.elu: (nn.ELU, ("alpha", "inplace")),
    F.elu_: (nn.ELU, ("alpha",)),
    F.hardtanh: (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    F.hardtanh_: (nn.Hardtanh, ("min_val", "max_val")),
    F.softplus: (nn.Softplus, ("beta", "threshold")),
    F.gelu: (nn.GELU, ("approximate",)),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), (nn.MaxPool1d, MAX)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), (nn.MaxPool2d, MAX)),
    F.avg_pool1d: (nn.AvgPool1d, AVERAGE),
    F.avg_pool2d: (nn.AvgPool2d, (*AVERAGE, "divisor_override")),
    F.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, ("output_size",)),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
}  # fmt: skip
FLATTEN = (torch.flatten, "flatten")
RESHAPE = ("view", "reshape", torch.reshape)
MEAN = ("mean", torch.mean)
SUMS = ("add_", "__iadd__")


def arguments(node: fx.Node, sizes: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What a call is given besides its input, sizes of tensors replaced by `BATCH`.

    Raises:
        Unsupported: another value of the network stands among them.
    """

    def known(value: Any) -> Any:
        if isinstance(value, fx.Node):
            if sizes.get(value.name) == BATCH:
                return BATCH
            raise Unsupported(f"{node.format_node()} has no rule for a bound. {AVAILABLE}")
        if isinstance(value, tuple | list):
            return type(value)(known(v) for v in value)
        return value

    return [known(a) for a in node.args[1:]], {k: known(v) for k, v in node.kwargs.items()}


def changes_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a call writes into its input."""
    if module is not None:
        return bool(getattr(module, "inplace", False)) and not isinstance(
            module, nn.modules.dropout._DropoutNd
        )
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in ("iadd", "__iadd__") or (name.endswith("_") and not name.endswith("__")):
        return True
    if name in ("dropout", "dropout1d", "dropout2d"):
        return False
    if node.kwargs.get("inplace", False):
        return True
    names = AS_MODULES[node.target][1] if node.target in AS_MODULES else ()
    given = dict(zip(names, node.args[1:], strict=False))
    return bool(given.get("inplace", False))


def function_stage(node: fx.Node, at: Tensor, sizes: Mapping[str, Any]) -> Stage:
    """The stage of a function or method call; `at` is one input of it.

    Raises:
        Unsupported: no rule for the operation.
    """
    rest, named = arguments(node, sizes)
    if node.target in AS_MODULES:
        kind, names = AS_MODULES[node.target]
        given = {**dict(zip(names, rest, strict=False)), **named}
        if len(rest) <= len(names) and set(given) <= set(names):
            given.pop("inplace", None)
            if not given.get("stride", True):  # None or (): the kernel's size
                given.pop("stride")
            return module_stage(node.name, kind(**given).eval(), at)
    if node.target in FLATTEN and _flattens(rest, named):
        return identity(lambda x: x.flatten(1))
    if node.target in RESHAPE and not named and _one_row_per_sample(rest, at):
        return identity(lambda x: x.flatten(1))
    if node.target in MEAN and at.ndim >= 3 and _whole_images(rest, named, at):
        entries = math.prod(at.shape[2:])
        return Lipschitz(
            name=node.name,
            gain=1 / math.sqrt(entries),
            function=lambda x: x.flatten(2).mean(dim=2),
            terms=entries,
        )
    if node.target is F.dropout:
        training = rest[1] if len(rest) > 1 else named.get("training", True)
        if training is False:
            return identity()
        raise Unsupported(
            f"{node.name!r} (dropout) is in training mode: call .eval() on both models. {AVAILABLE}"
        )
    raise Unsupported(f"{node.name!r} ({node.target}) has no rule for a bound. {AVAILABLE}")


def _flattens(rest: list[Any], named: dict[str, Any]) -> bool:
    given = {**dict(zip(("start_dim", "end_dim"), rest, strict=False)), **named}
    return given in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1})


def _one_row_per_sample(rest: list[Any], at: Tensor) -> bool:
    """Whether a view gives (samples, all entries of a sample), whatever the number of samples."""
    shape = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    entries = at[0].numel()
    return shape in ([BATCH, -1], [BATCH, entries], [-1, entries])


def _whole_images(rest: list[Any], named: dict[str, Any], at: Tensor) -> bool:
    """Whether a mean goes over all axes behind the channels and drops them."""
    given = {**dict(zip(("dim", "keepdim"), rest, strict=False)), **named}
    axes = given.get("dim")
    over = [axes] if isinstance(axes, int) else list(axes or ())
    plain = set(given) <= {"dim", "keepdim"} and not given.get("keepdim", False)
    return plain and sorted(a % at.ndim for a in over) == list(range(2, at.ndim))
