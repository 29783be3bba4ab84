"""Sums of outer products, of which only one triangle is computed."""

from jaxtyping import Float
from torch import Tensor

__all__ = ["add_second_moment", "mirror"]

PANEL = 128  # columns below which splitting a product gains nothing


def add_second_moment(
    total: Float[Tensor, "groups in in"], vectors: Float[Tensor, "positions groups in"]
) -> None:
    """Add Σ x xᵀ over positions to the upper triangle of `total`, in place.

    Panels on and right of the diagonal are 5/8 of the work of the whole product. What stands
    below the diagonal has no meaning until `mirror` fills it.
    """
    groups, width = total.shape[:2]
    if groups > 1:  # many small products: all in one call
        by_group = vectors.transpose(0, 1)
        total.baddbmm_(by_group.transpose(1, 2), by_group)
        return
    step = max(PANEL, -(-width // 4))
    for start in range(0, width, step):
        panel, rest = vectors[:, 0, start : start + step], vectors[:, 0, start:]
        total[0, start : start + step, start:].addmm_(panel.T, rest)


def mirror(total: Float[Tensor, "groups in in"]) -> Float[Tensor, "groups in in"]:
    """Symmetric matrices, in new memory, of upper triangles that `add_second_moment` has summed."""
    whole, width = total.clone(), total.shape[1]
    for start in range(0, width, PANEL):  # no more than a panel is held beside it
        stop = min(start + PANEL, width)
        corner = whole[:, start:stop, start:stop].triu()
        whole[:, start:stop, start:stop] = corner + corner.triu(1).transpose(1, 2)
        whole[:, stop:, start:stop] = whole[:, start:stop, stop:].transpose(1, 2)
    return whole
