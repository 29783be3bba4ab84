"""`sparsify` in Lightning's Trainer."""

import functools
from typing import Any

from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.training import Sparsifier, sparsify

__all__ = ["callback_class"]


class _Following:
    """What the callback does, without the framework's own class."""

    sparsifier: Sparsifier | None = None
    pruned: Pruned | None = None

    def __init__(self, recipe: str | Recipe, density: Any = None, **options: Any) -> None:
        """Keep what `prunus.sparsify` is to be called with."""
        self._asked = (recipe, density, options)
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the sparsity in; go on from the checkpoint that was loaded.

        Raises:
            ValueError: several optimizers, or a training without an end.
        """
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"Sparsity follows the steps of one optimizer, got {len(trainer.optimizers)}. "
                f"Call prunus.sparsify for each in the module's own loop."
            )
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "A course needs the length of the training, and this one has no end. Give the "
                "Trainer max_steps or max_epochs."
            )
        recipe, density, options = self._asked
        self.pruned = None
        sparse = sparsify(
            pl_module, recipe, density, optimizer=trainer.optimizers[0], steps=int(steps), **options
        )
        # Lightning runs forward and backward inside the optimizer's step.
        self.sparsifier = sparse.by_hand()
        if self._loaded is not None:
            try:
                sparse.load_state_dict(self._loaded)
            except BaseException:
                self.release()
                raise
            self._loaded = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Take the gradients, before Lightning clips them."""
        if self.sparsifier is not None:
            self.sparsifier.before_step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Where a gradient scaler skipped the step, the zeros come back."""
        if self.sparsifier is not None:
            self.sparsifier.cancel()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the hooks away; the account is `pruned`."""
        if self.sparsifier is not None:
            sparse, self.sparsifier = self.sparsifier, None
            self.pruned = sparse.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take the hooks away."""
        self.release()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning keeps in its checkpoints."""
        return {} if self.sparsifier is None else self.sparsifier.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until the training starts."""
        self._loaded = state_dict or None

    def release(self) -> None:
        """Take the hooks of a training away that did not come to its end."""
        if self.sparsifier is not None:
            self.sparsifier.remove()
            self.sparsifier = None


@functools.cache
def callback_class() -> type:
    """The class, a Lightning `Callback`."""
    from lightning.pytorch import Callback

    text = """Masks that follow a recipe's course while Lightning trains.

    Trainer(..., callbacks=[LightningCallback("gradual", 0.1)]); afterwards `pruned` is the
    `Pruned`. Checkpoints hold the state, from which a resumed training goes on.

    Args:
        recipe: as in `prunus.sparsify`.
        density: as there.
        options: `layers`, `exclude`, `seed`, `example` as there.

    Attributes:
        sparsifier: while it trains.
        pruned: after it has trained.
    """
    names = {"__doc__": text, "__module__": "prunus.integrations"}
    return type("LightningCallback", (_Following, Callback), names)
