"""Scopes: what is calibrated and pruned together, with its inputs kept."""

from prunus.scopes.collect import scope_layers
from prunus.scopes.keep import Files, Keep, Memory
from prunus.scopes.replay import Replay, Seen
from prunus.scopes.source import Pass, Replayed, Source

__all__ = [
    "Files",
    "Keep",
    "Memory",
    "Pass",
    "Replay",
    "Replayed",
    "Seen",
    "Source",
    "scope_layers",
]
