"""What a pruning answers, how it is kept in a folder and read again."""

from prunus.result.store import load, weights_digest
from prunus.result.value import LayerResult, Pruned

__all__ = ["LayerResult", "Pruned", "load", "weights_digest"]
