"""Bases: the same network, written otherwise before it is scored."""

from collections.abc import Callable

from prunus.bases.as_given import AsGiven
from prunus.bases.protocol import Basis
from prunus.bases.rotate import Rotate

__all__ = ["BASES", "AsGiven", "Basis", "Rotate"]


BASES: dict[str, Callable[..., Basis]] = {"AsGiven": AsGiven, "Rotate": Rotate}
