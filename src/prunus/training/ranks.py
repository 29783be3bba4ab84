"""Whether the processes of a data-parallel training hold the same masks."""

import hashlib
from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor

__all__ = ["check_agreement"]


def check_agreement(masks: Mapping[str, Tensor]) -> None:
    """Raise a RuntimeError where another process has chosen otherwise.

    Gradients and weights are the same everywhere, so that every process chooses alike by itself;
    they are not where gradients are read before they are reduced, or seeds differ.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    sha = hashlib.sha256()
    for name in sorted(masks):
        sha.update(name.encode())
        sha.update(masks[name].cpu().contiguous().numpy().tobytes())
    digests: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(digests, sha.hexdigest())
    other = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if other:
        raise RuntimeError(
            f"The processes of ranks 0 and {other[0]} keep different weights. Give all of them one "
            f"seed and the same weights at the start, and let gradients be reduced before the step."
        )
