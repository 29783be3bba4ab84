"""Embeddings and parameters without a layer, whose columns go where `layers` names them."""

from collections.abc import Mapping, Sequence

from torch import nn

from prunus.check import meant
from prunus.coupling.types import layer_of
from prunus.weights import Weight

__all__ = ["beside", "tables_asked"]

TABLES = (nn.Embedding, nn.EmbeddingBag)


def tables_asked(
    model: nn.Module,
    weights: Mapping[str, Weight],
    layers: Sequence[str],
    exclude: Sequence[str],
) -> tuple[str, ...]:
    """Embeddings, and parameters that belong to no layer we know, that are asked for."""
    found = [n for n, module in model.named_modules() if isinstance(module, TABLES)]
    known = {weight.path for weight in weights.values()}
    raw = [n for n, p in model.named_parameters() if p.ndim > 1 and n not in known]
    found += [layer for n in raw if (layer := layer_of(n)) not in found]
    return tuple(n for n in found if meant(n, layers) and not meant(n, exclude))


def beside(layers: Sequence[str] | None, tables: Sequence[str]) -> Sequence[str] | None:
    """The layers that are asked for beside those by their names."""
    return [glob for glob in layers or () if glob not in tables] or layers
