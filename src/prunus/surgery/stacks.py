"""Blocks taken out of a list, with the numbers that the others and the configuration hold."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

__all__ = ["renumber"]

PLACES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "block_id")
COUNTS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_encoder_layers",
    "num_decoder_layers", "encoder_layers", "decoder_layers", "depth",
)  # fmt: skip
INDICES = ("mlp_only_layers",)  # lists of numbers of blocks


def renumber(model: nn.Module, chain: str, gone: Collection[str]) -> None:
    """Leave members out of an `nn.ModuleList` or `nn.Sequential`, in place.

    What stays gets its new number (`layer_idx` of attention, by which caches know it), and
    configurations around the list the new length, with every list that holds an entry per block.

    Args:
        model: the network.
        chain: name of the list.
        gone: the members' names in it.
    """
    home: Any = model.get_submodule(chain)
    names = [name for name, _ in home.named_children()]
    kept = [i for i, name in enumerate(names) if name not in gone]
    blocks = [getattr(home, names[i]) for i in kept]
    for new, (old, block) in enumerate(zip(kept, blocks, strict=True)):
        for module in block.modules():
            for place in PLACES:
                if vars(module).get(place) == old:
                    setattr(module, place, new)
    numbered = isinstance(home, nn.ModuleList) or names == [str(i) for i in range(len(names))]
    for name in names:
        delattr(home, name)
    for new, (old, block) in enumerate(zip(kept, blocks, strict=True)):
        home.add_module(str(new) if numbered else names[old], block)
    for config, inside in _configs(model, chain).items():
        _shorten(config, chain, inside, len(names), kept)


class _Same:
    """A configuration by identity."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __hash__(self) -> int:
        return id(self.config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.config is self.config


def _configs(model: nn.Module, chain: str) -> dict[_Same, bool]:
    """The configurations of the modules around a list; True where it is of that stack alone."""
    parts = chain.split(".")
    found: dict[_Same, bool] = {}
    for depth in range(len(parts) + 1):
        config = getattr(model.get_submodule(".".join(parts[:depth])), "config", None)
        if hasattr(config, "to_dict"):
            both = depth == 0 and bool(getattr(config, "is_encoder_decoder", False))
            found.setdefault(_Same(config), not both)
    return found


def _shorten(same: _Same, chain: str, alone: bool, before: int, kept: Sequence[int]) -> None:
    config = same.config
    decoder = "decoder" in chain.split(".")
    fields: Mapping[str, Any] = dict(vars(config))
    named = [n for n in COUNTS if fields.get(n) == before and type(fields[n]) is int]
    if not alone:  # an encoder and a decoder, each with a field of its own
        own = [n for n in named if ("decoder" in n) == decoder]
        named = own if own or not decoder else named
    else:
        side = "encoder" if decoder else "decoder"
        named = [n for n in named if side not in n]
    for name in named:
        setattr(config, name, len(kept))
    for name, value in fields.items():
        if name in INDICES and isinstance(value, list | tuple):
            setattr(config, name, [kept.index(i) for i in value if i in kept])
        elif "layer" in name and isinstance(value, list | tuple) and len(value) == before:
            setattr(config, name, type(value)(value[i] for i in kept))
        elif name == "per_layer_config" and isinstance(value, dict):
            new = {k: kept.index(int(k)) for k in value if int(k) in kept}
            setattr(config, name, {type(k)(new[k]): value[k] for k in new})
