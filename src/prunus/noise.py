"""Networks that draw random numbers in their forward passes: the same ones for the same pass.

Some draw in evaluation mode too: the reparameterisation of a variational autoencoder, dropout that
stays on, a generator that makes its own input, Gumbel noise. Each pass draws from a state that
follows from the seed of the public call and from the number of the batch, and the process's own
state comes back. So the same seed gives the same result whatever was drawn before, a dense and a
pruned network meet the same noise on the same batch, and different batches meet different noise.

A network whose first pass draws nothing runs as it is from then on: no state is touched, and
threads run side by side. One that draws takes turns with other threads, since the generators are
the process's.
"""

import weakref
from collections.abc import Callable
from functools import partial, wraps
from typing import TypeVar

import torch
from torch import nn

from prunus.ambient import drawing, generators, noise_seed, states
from prunus.rng import generator_for

__all__ = ["draws", "passed", "repeated"]

T = TypeVar("T")
_KNOWN: dict[int, tuple[weakref.ref[nn.Module], bool]] = {}  # whether a network draws


def passed(model: nn.Module, run: Callable[[], T], number: int = 0, *, whole: bool = True) -> T:
    """What a forward pass gives, drawing from (seed, number); see the module.

    Args:
        model: what runs.
        run: the pass.
        number: of the batch, among those of its data.
        whole: False where parts of the network may be left out, so that a pass without draws says
            nothing of the next one.
    """
    drew = draws(model)
    if drew is False:
        return run()
    looked = run if drew else partial(_looked, model, run, whole)
    return drawing(generators(), looked, seed=_state("noise", number))


def draws(model: nn.Module) -> bool | None:
    """Whether a network has drawn random numbers in a pass of ours; None where none has shown."""
    reference, drew = _KNOWN.get(id(model), (None, None))
    return drew if reference is not None and reference() is model else None


def repeated(function: Callable[[nn.Module], T]) -> Callable[[nn.Module], T]:
    """The caller's function of a network that draws, starting from the same state at every call."""

    @wraps(function)
    def run(model: nn.Module) -> T:
        return drawing(generators(), partial(function, model), seed=_state("evaluation"))

    return run


def _state(*names: str | int) -> int:
    return generator_for(max(0, noise_seed()), *names).initial_seed()


def _looked(model: nn.Module, run: Callable[[], T], whole: bool) -> T:
    """Run, and remember whether that has moved a generator."""
    before = states()
    found = run()
    drew = not all(map(torch.equal, before, states()))
    if drew or whole:
        key = id(model)
        _KNOWN[key] = (weakref.ref(model, lambda _: _KNOWN.pop(key, None)), drew)
    return found
