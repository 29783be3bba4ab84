"""Joint methods: they choose and compensate in one sweep, and stand in the selection's place."""

from prunus.joint.protocol import Joint

__all__ = ["JOINTS", "Joint"]

JOINTS: dict[str, type] = {}
