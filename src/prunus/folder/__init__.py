"""Language models in folders, pruned block by block in bounded memory."""

from prunus.folder.needs import Needs
from prunus.folder.prune import prune_folder
from prunus.folder.recovery import folder_masks, hold_folder, merge_adapter
from prunus.folder.result import BlockResult, FolderResult, LayerAccount

__all__ = [
    "BlockResult",
    "FolderResult",
    "LayerAccount",
    "Needs",
    "folder_masks",
    "hold_folder",
    "merge_adapter",
    "prune_folder",
]
