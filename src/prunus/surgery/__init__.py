"""Changes to whole models: physically smaller ones."""

from prunus.surgery.compact import CompactionError, compact

__all__ = ["CompactionError", "compact"]
