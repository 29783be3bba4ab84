"""A prunable weight seen as a matrix W (out × in), and the modules that can be seen so."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.check import finite

__all__ = ["Layer", "View", "checked_scores", "layer_of", "register_view", "view_of"]

Statistic = Tensor | None
PANEL = 128  # columns below which splitting a product gains nothing
# Statistics with one entry per convolution group.
PER_GROUP = ("gram", "mean", "diag", "cross", "dense_gram", "dense_mean", "max", "zeros")


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One prunable weight as a matrix, with what calibration knows of its inputs.

    For a convolution `in` is channels × taps and the inputs are its patches; a grouped one has
    one set of statistics per convolution group, stacked along a first axis.

    Attributes:
        name: module name, as in `model.named_modules()`.
        weight: W (out, in).
        bias: (out,) or None.
        groups: number of convolution groups; 1 for everything else.
        taps: kernel entries per input channel; 1 for a linear layer.
        gram: E[x xᵀ] over samples and positions, float64, (in, in) or (groups, in, in).
        mean: E[x], float64, (in,) or (groups, in).
        diag: E[x²], float64, (in,) or (groups, in).
        cross: E[x_dense xᵀ], shaped as `gram`, where the inputs come from a pruned model.
        dense_gram: E[x_dense x_denseᵀ], shaped as `gram`, beside `cross`.
        dense_mean: E[x_dense], shaped as `mean`, beside `cross`.
        max: max |x|, (in,) or (groups, in).
        zeros: share of inputs that are exactly 0, (in,) or (groups, in).
        grad: E[∂L/∂W] over samples, (out, in), sign kept.
        sensitivity: E Σ_o (∂F_o/∂W)² over samples, summed over the outputs o, (out, in).
        hessian_grad: H g, Hessian times gradient of the mean loss, logits over 200, (out, in).
        flow: ∂R/∂|W| of the flow R along all paths, (out, in).
        samples: number of input vectors averaged (samples × positions).
        producer: the layer whose outputs feed this one, where exactly one does.
    """

    name: str
    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None = None
    groups: int = 1
    taps: int = 1
    gram: Statistic = None
    mean: Statistic = None
    diag: Statistic = None
    cross: Statistic = None
    dense_gram: Statistic = None
    dense_mean: Statistic = None
    max: Statistic = None
    zeros: Statistic = None
    grad: Statistic = None
    sensitivity: Statistic = None
    hessian_grad: Statistic = None
    flow: Statistic = None
    samples: int = 0
    producer: "Layer | None" = None

    def blocks(self) -> list["Layer"]:
        """One layer per convolution group, with its own rows and statistics; views, no copies."""
        if self.groups == 1:
            return [self]
        rows = self.weight.shape[0] // self.groups

        def block(g: int) -> Layer:
            own = slice(g * rows, (g + 1) * rows)
            changes: dict[str, Any] = {"weight": self.weight[own], "groups": 1}
            for name in ("bias", "grad", "sensitivity", "hessian_grad", "flow"):
                values = getattr(self, name)
                changes[name] = None if values is None else values[own]
            for name in PER_GROUP:
                values = getattr(self, name)
                changes[name] = None if values is None else values[g]
            return replace(self, **changes)

        return [block(g) for g in range(self.groups)]

    def power(self) -> Float[Tensor, "#out in"]:
        """E[x²] of every weight's input, float64: (1, in), or (out, in) for a grouped convolution.

        Raises:
            ValueError: neither the Gram matrix nor its diagonal was collected.
        """
        diag = self.diag
        if diag is None and self.gram is not None:
            diag = self.gram.diagonal(dim1=-2, dim2=-1)
        if diag is None:
            raise ValueError(
                f"Layer {self.name!r} has no statistics `diag` or `gram`, which this method needs. "
                f"Pass data, or calibrate with statistics=('diag',)."
            )
        if self.groups == 1:
            return diag[None]
        return diag.repeat_interleave(self.weight.shape[0] // self.groups, dim=0)

    def require(self, *statistics: str) -> None:
        """Raise a ValueError that names this layer and the first statistic it lacks."""
        for name in statistics:
            if getattr(self, name) is None:
                raise ValueError(
                    f"Layer {self.name!r} has no statistic {name!r}, which this method needs. "
                    f"Pass data, or calibrate with statistics=({name!r},)."
                )


class View(Protocol):
    """How a module's weight is a matrix, and what its input vectors are."""

    def matrix(self, module: Any, values: Tensor) -> Float[Tensor, "out in"]:
        """The weight (or its gradient, or its mask) as (out, in); may share memory with it."""
        ...

    def parameter(self, module: Any, matrix: Float[Tensor, "out in"]) -> Tensor:
        """A matrix in the shape and order of the module's weight."""
        ...

    def vectors(self, module: Any, inputs: Tensor) -> Float[Tensor, "positions groups in"]:
        """The input vectors that W multiplies, one row per sample and position."""
        ...

    def responses(self, module: Any, outputs: Tensor) -> Float[Tensor, "positions groups out"]:
        """The outputs (or their gradients), a row for each row of `vectors`."""
        ...

    def channels(self, module: Any, inputs: Tensor) -> Tensor:
        """The inputs with positions before channels, as `attention_mask` counts them."""
        ...


@dataclass(frozen=True)
class LinearView:
    """`nn.Linear`, or a module that stores the transposed weight, as Hugging Face's `Conv1D`."""

    transposed: bool = False

    def matrix(self, module: Any, values: Tensor) -> Tensor:
        return values.T if self.transposed else values

    def parameter(self, module: Any, matrix: Tensor) -> Tensor:
        return matrix.T if self.transposed else matrix

    def vectors(self, module: Any, inputs: Tensor) -> Tensor:
        return inputs.reshape(-1, 1, inputs.shape[-1])

    def responses(self, module: Any, outputs: Tensor) -> Tensor:
        return outputs.reshape(-1, 1, outputs.shape[-1])

    def channels(self, module: Any, inputs: Tensor) -> Tensor:
        return inputs


@dataclass(frozen=True)
class ConvView:
    """Convolutions of one, two or three spatial axes with stride, padding, dilation and groups."""

    def matrix(self, module: Any, values: Tensor) -> Tensor:
        return values.flatten(1)

    def parameter(self, module: Any, matrix: Tensor) -> Tensor:
        return matrix.reshape(module.weight.shape)

    def vectors(self, module: Any, inputs: Tensor) -> Tensor:
        axes = len(module.kernel_size)
        padded = _padded(module, batched(module, inputs))
        for axis, (size, step, gap) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True)
        ):
            padded = padded.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
        batch, channels = padded.shape[:2]
        # (batch, channels, *positions, *taps) -> (batch · positions, groups, channels · taps)
        order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
        positions = batch * math.prod(padded.shape[2 : 2 + axes])
        width = channels // module.groups * math.prod(module.kernel_size)
        return padded.permute(order).reshape(positions, module.groups, width)

    def responses(self, module: Any, outputs: Tensor) -> Tensor:
        rows = batched(module, outputs).movedim(1, -1)
        return rows.reshape(-1, module.groups, rows.shape[-1] // module.groups)

    def channels(self, module: Any, inputs: Tensor) -> Tensor:
        raise ValueError(
            "An `attention_mask` does not say which patches of a convolution are padding. "
            "Leave the mask out of the batch, or exclude the convolutions."
        )


def batched(module: Any, inputs: Tensor) -> Tensor:
    """A convolution's input with its batch axis, which a single sample may lack."""
    return inputs[None] if inputs.ndim == len(module.kernel_size) + 1 else inputs


def _padded(module: Any, inputs: Tensor) -> Tensor:
    """The input as the convolution pads it itself; the modules keep the amounts for `F.pad`."""
    amounts = module._reversed_padding_repeated_twice
    if not any(amounts):
        return inputs
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return nn.functional.pad(inputs, amounts, mode=mode)


VIEWS: dict[type, View] = {
    nn.Linear: LinearView(),
    nn.Conv1d: ConvView(),
    nn.Conv2d: ConvView(),
    nn.Conv3d: ConvView(),
}


def register_view(module_type: type, view: View) -> Callable[[], None]:
    """Teach prunus a module type; the returned function takes it back.

    Args:
        module_type: a class whose instances hold one matrix-like `weight` and maybe a `bias`.
        view: how that weight is a matrix; see `View`.
    """
    before = VIEWS.get(module_type)
    VIEWS[module_type] = view

    def undo() -> None:
        if before is None:
            VIEWS.pop(module_type, None)
        else:
            VIEWS[module_type] = before

    return undo


def view_of(module: nn.Module) -> View | None:
    """The view of a module, or None where we do not know its type.

    Only the exact type counts: a subclass may compute something else. Hugging Face's `Conv1D` is
    known without importing it.
    """
    known = VIEWS.get(type(module))
    if known is None and _is_hf_conv1d(module):
        return LinearView(transposed=True)
    return known


def _is_hf_conv1d(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def layer_of(name: str, module: Any) -> Layer:
    """The layer of a module without statistics; weights are detached, never copied.

    Raises:
        ValueError: the weight has a NaN or an infinity; the layer is named.
    """
    view = view_of(module)
    if view is None:
        raise ValueError(f"Layer {name!r} is a {type(module).__name__}, which has no weight view.")
    weight = view.matrix(module, module.weight.detach())
    finite(f"{name}.weight", weight, "Retrain or reload the model.")
    bias = module.bias.detach() if module.bias is not None else None
    if bias is not None:
        finite(f"{name}.bias", bias, "Retrain or reload the model.")
    conv = isinstance(view, ConvView)
    return Layer(
        name=name,
        weight=weight,
        bias=bias,
        groups=module.groups if conv else 1,
        taps=math.prod(module.kernel_size) if conv else 1,
    )


def checked_scores(name: str, scores: Any, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """A score's answer, or an error that names the layer."""
    if not isinstance(scores, Tensor) or tuple(scores.shape) != tuple(shape):
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"The score of layer {name!r} must be a tensor of shape {tuple(shape)}, got {given}."
        )
    if bool(torch.isnan(scores).any()):
        raise ValueError(
            f"The score of layer {name!r} is NaN in {int(torch.isnan(scores).sum())} of "
            f"{scores.numel()} places. Check the score and the data."
        )
    return scores.detach()


def squeeze_groups(values: Tensor, groups: int) -> Tensor:
    """Statistics stacked per convolution group; a single group loses its axis."""
    return values[0] if groups == 1 else values


def add_second_moment(
    total: Float[Tensor, "groups in in"], vectors: Float[Tensor, "positions groups in"]
) -> None:
    """Add Σ x xᵀ over positions to the upper triangle of `total`, in place.

    Panels on and right of the diagonal are 5/8 of the work of the whole product. What stands
    below the diagonal has no meaning until `mirror` fills it.
    """
    groups, width = total.shape[:2]
    if groups > 1:  # many small products: all in one call
        by_group = vectors.transpose(0, 1)
        total.baddbmm_(by_group.transpose(1, 2), by_group)
        return
    step = max(PANEL, -(-width // 4))
    for start in range(0, width, step):
        panel, rest = vectors[:, 0, start : start + step], vectors[:, 0, start:]
        total[0, start : start + step, start:].addmm_(panel.T, rest)


def mirror(total: Float[Tensor, "groups in in"]) -> Float[Tensor, "groups in in"]:
    """The symmetric matrices whose upper triangles `add_second_moment` has summed."""
    upper = total.triu()
    return upper + upper.transpose(1, 2) - torch.diag_embed(upper.diagonal(dim1=1, dim2=2))
