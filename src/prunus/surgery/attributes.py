"""Widths that modules keep beside their weights, a row per class; users add rows of their own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = [
    "Cuts",
    "bare_norms",
    "bare_widths",
    "has_row",
    "register_attributes",
    "update_attributes",
]

# What was cut: {(parameter's name in the module, axis): (length before, length after)}.
Cuts = Mapping[tuple[str, int], tuple[int, int]]
Update = Callable[[Any, Cuts], None]


def _linear(module: Any, cuts: Cuts) -> None:
    module.out_features, module.in_features = module.weight.shape


def _bilinear(module: Any, cuts: Cuts) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


def _convolution(module: Any, cuts: Cuts) -> None:
    weight = module.weight
    if 1 < module.groups == module.in_channels:  # depthwise
        multiplier = module.out_channels // module.in_channels
        module.groups = len(weight) // multiplier
    module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups


def _transposed_convolution(module: Any, cuts: Cuts) -> None:
    weight = module.weight
    if 1 < module.groups == module.in_channels:
        module.groups = len(weight)
    module.in_channels, module.out_channels = len(weight), weight.shape[1] * module.groups


def _channel_norm(module: Any, cuts: Cuts) -> None:
    width = next((v for v in (module.weight, module.running_mean) if v is not None), None)
    if width is not None:
        module.num_features = len(width)


def _group_norm(module: Any, cuts: Cuts) -> None:
    if module.weight is None:
        return
    if module.num_groups == module.num_channels:
        module.num_groups = len(module.weight)
    module.num_channels = len(module.weight)


def _layer_norm(module: Any, cuts: Cuts) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _prelu(module: Any, cuts: Cuts) -> None:
    module.num_parameters = len(module.weight)


def _embedding(module: Any, cuts: Cuts) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _recurrent(module: Any, cuts: Cuts) -> None:
    module.input_size = module.weight_ih_l0.shape[1]
    module.hidden_size = module.weight_hh_l0.shape[1]
    if module.proj_size:
        module.proj_size, module.hidden_size = module.weight_hr_l0.shape
    module._init_flat_weights()  # the kernels read a list of their own, one piece on GPUs


def _cell(module: Any, cuts: Cuts) -> None:
    module.input_size = module.weight_ih.shape[1]
    module.hidden_size = module.weight_hh.shape[1]


ROWS: dict[type, Update] = {
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_convolution
    ),
    nn.modules.batchnorm._NormBase: _channel_norm,  # instance norms among them
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
}


def _hf_conv1d(module: Any, cuts: Cuts) -> None:
    module.nx, module.nf = module.weight.shape


# Classes that are known without importing their library.
NAMED: dict[str, Update] = {"Conv1D": _hf_conv1d}


def register_attributes(module_type: type, update: Update) -> Callable[[], None]:
    """Teach surgery what a module type keeps beside its weights; returns how to take it back.

    Args:
        module_type: a class of modules; subclasses follow the nearest class with a row.
        update: called as `update(module, cuts)` after parameters (or those of modules inside it)
            were cut, with {(parameter's name, axis): (length before, length after)}; it sets
            what the module's forward reads.
    """
    before = ROWS.get(module_type)
    ROWS[module_type] = update

    def undo() -> None:
        if before is None:
            ROWS.pop(module_type, None)
        else:
            ROWS[module_type] = before

    return undo


def has_row(module: nn.Module) -> bool:
    """Whether the table knows what a module keeps beside its weights."""
    return _row(module) is not None


def _row(module: nn.Module) -> Update | None:
    for kind in type(module).__mro__:
        if kind in ROWS:
            return ROWS[kind]
    return NAMED.get(type(module).__name__)


def update_attributes(model: nn.Module, cuts: Cuts) -> None:
    """Let every module that lost something set its widths, and the modules around it theirs.

    Args:
        model: the network, its tensors already cut.
        cuts: with the parameters' names in the whole network.
    """
    touched: dict[str, dict[tuple[str, int], tuple[int, int]]] = {}
    for (parameter, axis), lengths in cuts.items():
        parts = parameter.split(".")
        for depth in range(len(parts)):
            owner, inner = ".".join(parts[:depth]), ".".join(parts[depth:])
            touched.setdefault(owner, {})[inner, axis] = lengths
    modules = dict(model.named_modules(remove_duplicate=False))
    for owner in sorted(touched, key=lambda name: -name.count(".") if name else 1):
        module = modules[owner]
        update = _row(module)
        if update is not None:
            update(module, touched[owner])


BARE = ("num_features", "num_groups", "num_channels", "normalized_shape")


def bare_widths(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The widths of norms that hold no tensor, by module name: no stored tensor tells them."""
    bare = bare_norms(model)
    return {
        name: {key: getattr(module, key) for key in BARE if hasattr(module, key)}
        for name, module in model.named_modules()
        if module in bare
    }


def bare_norms(model: nn.Module) -> dict[nn.Module, Callable[[Any, torch.Tensor], None]]:
    """Norms that hold no tensor, each with what reads its width off its input as it runs."""

    def channels(module: Any, x: torch.Tensor) -> None:
        module.num_features = x.shape[x.ndim - module._get_no_batch_dim()]

    def grouped(module: Any, x: torch.Tensor) -> None:
        alone = module.num_groups == module.num_channels
        module.num_channels = x.shape[1]
        module.num_groups = x.shape[1] if alone else module.num_groups

    def layer(module: Any, x: torch.Tensor) -> None:
        module.normalized_shape = tuple(x.shape[-len(module.normalized_shape) :])

    found: dict[nn.Module, Callable[[Any, torch.Tensor], None]] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.instancenorm._InstanceNorm):
            if not (module.affine or module.track_running_stats):
                found[module] = channels
        elif isinstance(module, nn.GroupNorm) and module.weight is None:
            found[module] = grouped
        elif type(module) in (nn.LayerNorm, nn.RMSNorm) and module.weight is None:
            found[module] = layer
    return found
