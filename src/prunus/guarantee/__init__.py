"""How far may a model be pruned, and what is guaranteed of one that was."""

from prunus.guarantee.certify import certify
from prunus.guarantee.plan import plan

__all__ = ["certify", "plan"]
