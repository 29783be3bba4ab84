"""Scopes: what is calibrated and pruned together, with its inputs kept."""

from prunus.scopes.blocks import blocks_of, found_blocks, scopes_of
from prunus.scopes.collect import scope_layers, scope_sums
from prunus.scopes.keep import Files, Keep, Memory
from prunus.scopes.rehearsal import Habits, rehearsed
from prunus.scopes.replay import Replay, Seen
from prunus.scopes.source import Pass, Replayed, Source

__all__ = [
    "Files",
    "Habits",
    "Keep",
    "Memory",
    "Pass",
    "Replay",
    "Replayed",
    "Seen",
    "Source",
    "blocks_of",
    "found_blocks",
    "rehearsed",
    "scope_layers",
    "scope_sums",
    "scopes_of",
]
