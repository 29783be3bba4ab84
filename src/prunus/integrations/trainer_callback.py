"""`sparsify` in the Trainer of Hugging Face."""

import functools
from pathlib import Path
from typing import Any

from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.training import Sparsifier, sparsify
from prunus.training.checkpoint import read_state, write_state

__all__ = ["FILE", "callback_class"]

FILE = "sparsifier.safetensors"


class _Following:
    """What the callback does, without the framework's own class."""

    sparsifier: Sparsifier | None = None
    pruned: Pruned | None = None

    def __init__(self, recipe: str | Recipe, density: Any = None, **options: Any) -> None:
        """Keep what `prunus.sparsify` is to be called with."""
        self._asked = (recipe, density, options)

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Put the sparsity in; go on from the checkpoint that the Trainer resumes from."""
        recipe, density, options = self._asked
        self.release()
        self.pruned = None
        sparse = sparsify(
            model, recipe, density, optimizer=optimizer, steps=int(state.max_steps), **options
        )
        self.sparsifier = sparse
        if state.global_step > 0:
            file = _checkpoint(args, state) / FILE
            try:
                sparse.load_state_dict(read_state(file))
            except BaseException:
                self.release()
                raise

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the state beside the checkpoint."""
        if self.sparsifier is not None and state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_state(self.sparsifier.state_dict(), folder / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the hooks away; the account is `pruned`."""
        if self.sparsifier is not None:
            sparse, self.sparsifier = self.sparsifier, None
            self.pruned = sparse.finish()

    def release(self) -> None:
        """Take the hooks of a training away that did not come to its end."""
        if self.sparsifier is not None:
            self.sparsifier.remove()
            self.sparsifier = None


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder that a training goes on from."""
    given = getattr(args, "resume_from_checkpoint", None)
    if isinstance(given, str) and (Path(given) / FILE).exists():
        return Path(given)
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


@functools.cache
def callback_class() -> type:
    """The class, a `transformers.TrainerCallback`."""
    from transformers import TrainerCallback

    text = """Masks that follow a recipe's course while a Trainer trains.

    Trainer(..., callbacks=[TrainerCallback("gradual", 0.1)]); afterwards `pruned` is the `Pruned`.
    Checkpoints hold the state in `sparsifier.safetensors`, from which a resumed training goes on.

    Args:
        recipe: as in `prunus.sparsify`.
        density: as there.
        options: `layers`, `exclude`, `seed`, `example` as there.

    Attributes:
        sparsifier: while it trains.
        pruned: after it has trained.
    """
    names = {"__doc__": text, "__module__": "prunus.integrations"}
    return type("TrainerCallback", (_Following, TrainerCallback), names)
