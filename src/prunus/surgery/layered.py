"""Widths of single layers in a configuration that has a field for them, `per_layer_config`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["per_layer"]


def per_layer(small: nn.Module, before: Mapping[str, torch.Size]) -> bool:
    """Write the widths in which layers differ into `per_layer_config`; say whether that went.

    transformers has the field on every configuration since version 5.24; few classes read it yet:
    whoever calls this builds the model from the configuration to see.

    Args:
        small: the smaller network, whose configuration is changed.
        before: the tensors' shapes in the network that it was made from.
    """
    config: Any = small.config
    fields = {key: value for key, value in vars(config).items() if type(value) is int}
    found: dict[int, dict[str, int]] = {}
    for name, tensor in small.state_dict().items():
        block = next((int(part) for part in name.split(".") if part.isdigit()), None)
        for old, new in zip(before.get(name, tensor.shape), tensor.shape, strict=True):
            if old == new:
                continue
            keys = [key for key, value in fields.items() if value == old]
            if block is None or len(keys) != 1:
                return False
            found.setdefault(block, {})[keys[0]] = new
    if not found:
        return False
    try:
        config.per_layer_config = found
    except Exception:  # whatever the library says to fields that cannot differ
        return False
    return True
