"""Getting back what pruning cost: training with zeros held, and adapters merged into zeros."""

import os
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.compensation.least_squares import least_squares
from prunus.folder.account import ACCOUNT, read_account
from prunus.surgery.masked import Hold, hold
from prunus.weights import weight_at

__all__ = ["folder_masks", "hold_folder", "merge_adapter"]


def folder_masks(
    model: nn.Module, folder: str | os.PathLike[str]
) -> dict[str, Bool[Tensor, "..."]]:
    """{parameter: True where it is not zero} of the layers that `prune_folder` pruned.

    Args:
        model: loaded from the folder, by `from_pretrained`.
        folder: the pruned folder.

    Raises:
        FileNotFoundError: the folder has no `prunus.json`.
        ValueError: it is another's, or the model is not the folder's: a layer has other counts.
    """
    path = Path(folder) / ACCOUNT
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Give a folder that prune_folder wrote.")
    known = read_account(Path(folder))
    if known is None:
        raise ValueError(f"{path} is no account of a pruned folder.")
    masks: dict[str, Tensor] = {}
    if known[0].gone:  # what is left is dense
        return masks
    for name, account in known[0].layers.items():
        weight = weight_at(model, name)
        mask = weight.matrix() != 0
        if mask.numel() == account.total and int(mask.sum()) > account.kept:
            raise ValueError(
                f"Layer {name!r} has {int(mask.sum())} weights that are not zero, {folder} kept "
                f"{account.kept}. Load the model from that folder, and hold before training."
            )
        weight.put_mask(masks, mask)
    return masks


def hold_folder(
    model: nn.Module, folder: str | os.PathLike[str], optimizer: Optimizer | None = None
) -> Hold:
    """Hold the zeros of a pruned folder's model against an optimizer, while it is trained on.

    Args:
        model: loaded from the folder, by `from_pretrained`.
        folder: the pruned folder.
        optimizer: that trains it; every optimizer of the process where None.

    Returns:
        a context, or an object with `.remove()`.
    """
    return hold(model, folder_masks(model, folder), optimizer)


def merge_adapter(
    weight: Float[Tensor, "out in"],
    change: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"] | None = None,
    *,
    ridge: float = 1e-8,
) -> Float[Tensor, "out in"]:
    """Merge an adapter's change BA of a pruned weight W so that its zeros stay zeros.

    Adding BA fills them. Without statistics what falls on zeros is dropped: W + M ∘ (BA), M the
    places that are not zero. With the Gram matrix G of the layer's inputs the kept weights make up
    for that: the answer is the V with V = M ∘ V of least E‖(W + BA − V) x‖².

    Args:
        weight: W, with its zeros.
        change: B A, scaled as the adapter scales it.
        gram: E[x xᵀ] of the inputs, as `calibrate` gives it.
        ridge: relative damping of the least squares.

    Returns:
        in the dtype of `weight`.
    """
    mask = weight != 0
    if weight.shape != change.shape:
        raise ValueError(
            f"`change` must have the weight's shape {tuple(weight.shape)}, got "
            f"{tuple(change.shape)}. Pass the product B A of the adapter's two matrices."
        )
    whole = weight.to(torch.float64) + change.to(torch.float64)
    if gram is None:
        return (whole * mask).to(weight.dtype)
    return least_squares(whole, gram, mask, ridge=ridge).weight.to(weight.dtype)
