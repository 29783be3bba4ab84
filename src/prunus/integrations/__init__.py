"""prunus inside other frameworks; each is imported only when its name is used."""

from prunus.integrations.adapters import Merged, MergedLayer, merge_adapters

__all__ = ["Merged", "MergedLayer", "merge_adapters"]
