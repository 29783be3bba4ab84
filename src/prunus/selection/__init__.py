"""Selection: which units of a pool are kept, given how many."""

from collections.abc import Callable

from prunus.selection.choice import Choice, Selection, is_selection
from prunus.selection.dpp_map import DPPMap
from prunus.selection.dpp_poisson import DPPPoisson
from prunus.selection.forward_nodes import ForwardNodes
from prunus.selection.imitation import Imitation
from prunus.selection.k_dpp import KDPP
from prunus.selection.proportional import Proportional
from prunus.selection.random_k import RandomK
from prunus.selection.top_k import TopK, top_k_mask

__all__ = [
    "KDPP",
    "SELECTIONS",
    "Choice",
    "DPPMap",
    "DPPPoisson",
    "ForwardNodes",
    "Imitation",
    "Proportional",
    "RandomK",
    "Selection",
    "TopK",
    "is_selection",
    "top_k_mask",
]

SELECTIONS: dict[str, Callable[..., Selection]] = {
    "TopK": TopK,
    "RandomK": RandomK,
    "KDPP": KDPP,
    "DPPMap": DPPMap,
    "DPPPoisson": DPPPoisson,
    "Proportional": Proportional,
    "Imitation": Imitation,
    "ForwardNodes": ForwardNodes,
}
