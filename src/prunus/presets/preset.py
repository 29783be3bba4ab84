"""What a named recipe is, and what is known of it."""

from dataclasses import dataclass

from prunus.recipe import Recipe

__all__ = ["Measured", "Preset"]


@dataclass(frozen=True)
class Measured:
    """What a recipe left of the first layer of a 784-500-500-10 network on MNIST.

    Single weights at 157 of 784 into each output, nodes at 255 of 500; the mean of 5 draws where
    the recipe draws. Source: docs/which_selector.md, benchmarks/results/which_selector.json.

    Attributes:
        error: test error in % (dense: 1.69).
        error_ls: the same with `+ls`.
        layer_ls: E‖(W − W′)x‖² / E‖Wx‖² with `+ls`; None where it was not measured.
    """

    error: float
    error_ls: float
    layer_ls: float | None = None

    def __str__(self) -> str:
        layer = "" if self.layer_ls is None else f"; layer {self.layer_ls:.1e}"
        return f"{self.error:.2f} → {self.error_ls:.2f} %{layer}"


@dataclass(frozen=True)
class Preset:
    """A named recipe and where it comes from.

    Attributes:
        recipe: the composition.
        paper: the publication that proposes it.
        says: what it does, in one line.
        measured: what it left of one layer, or None.
        least_squares: False where `+ls` would say nothing: new values do not last.
    """

    recipe: Recipe
    paper: str
    says: str
    measured: Measured | None = None
    least_squares: bool = True
