"""Training of shared values: a centroid's gradient is the sum over its weights."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.check import finite
from prunus.compression.books import Shared, stored_book

__all__ = ["tuned"]


class _Book(nn.Module):
    """A weight as a function of its book; the book is what an optimizer sees."""

    places: Tensor
    codes: Tensor

    def __init__(self, shared: Shared, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        places = shared.mask.reshape(-1).nonzero().reshape(-1)
        self.register_buffer("places", places.to(device), persistent=False)
        codes = torch.from_numpy(shared.codes.astype(np.int64))
        self.register_buffer("codes", codes.to(device), persistent=False)
        self.shape = shared.mask.shape
        self._first = shared.book.to(device=device, dtype=dtype)

    def forward(self, book: Tensor) -> Tensor:
        """The weight, zero where nothing is kept."""
        flat = torch.zeros(self.shape.numel(), dtype=book.dtype, device=book.device)
        return flat.index_copy(0, self.places, book[self.codes]).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The book that training begins with."""
        del weight
        return self._first.clone()


def tuned(
    model: nn.Module, shared: Mapping[str, Shared], fine_tune: Callable[[nn.Module], object]
) -> dict[str, Shared]:
    """The shared values after `fine_tune(model)`, which also trains all other parameters.

    Args:
        model: changed in place; its weights in `shared` are functions of their books meanwhile.
        shared: by parameter.
        fine_tune: trains the model that it is given; it makes its optimizer of
            `model.parameters()`, among which the books are.
    """
    books: dict[str, Tensor] = {}
    with _parametrized(model, shared, books):
        fine_tune(model)
    for name, book in books.items():
        finite(name, book, "The values that `fine_tune` trained diverged; lower its rate.")
    return {
        name: replace(own, book=stored_book(books[name], books[name].dtype))
        for name, own in shared.items()
    }


@contextlib.contextmanager
def _parametrized(
    model: nn.Module, shared: Mapping[str, Shared], books: dict[str, Tensor]
) -> Iterator[None]:
    made: list[tuple[str, nn.Module, str]] = []
    try:
        for name, own in shared.items():
            if len(own.book) == 0:
                books[name] = own.book
                continue
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            weight = getattr(module, leaf)
            part = _Book(own, weight.dtype, weight.device)
            parametrize.register_parametrization(module, leaf, part)
            made.append((name, module, leaf))
        yield
    finally:
        for name, module, leaf in made:
            held: Any = module.parametrizations
            books[name] = held[leaf].original.detach().clone()
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
