"""Language models without their cache of keys and values, which one pass has no use for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["uncached"]


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Every `config.use_cache` of the model is False inside the block, and comes back after it.

    Hugging Face's models hand their cache from block to block as an object that each changes, so
    that no block could be answered from what is kept. What a pass computes is the same without it.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None) is True:
            configs[id(config)] = config
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
