"""One generator per (seed, name), so that adding a layer leaves the other layers' draws alone."""

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from prunus.check import whole

__all__ = ["Draws", "as_generator", "drawn", "generator_for"]

Draws = Generator | int | None  # where random numbers come from


def generator_for(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator that depends on `seed` and `names` alone.

    The state comes from a hash, so neighbouring seeds and similar names give unrelated streams.

    Example:
        >>> import torch
        >>> float(torch.rand((), generator=generator_for(0, "fc1"))) == float(
        ...     torch.rand((), generator=generator_for(0, "fc1")))
        True
    """
    whole("seed", seed, low=0)
    key = "\x1f".join([str(seed), *map(str, names)]).encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def as_generator(generator: Draws) -> Generator:
    """A generator on the CPU: the one given, one made of a seed, or torch's own.

    Args:
        generator: a `torch.Generator`; a whole number >= 0, its seed; or None for the generator
            that `torch.manual_seed` seeds.

    Raises:
        TypeError: anything else.
        ValueError: a seed below 0, or a generator that is not on the CPU.
    """
    if generator is None:
        return torch.default_generator
    if isinstance(generator, Generator):
        if generator.device.type != "cpu":
            raise ValueError(
                f"`generator` must be on the CPU, got one on {generator.device}. Draws are the "
                f"same on every device."
            )
        return generator
    if isinstance(generator, bool) or not isinstance(generator, int):
        raise TypeError(
            f"`generator` must be a torch.Generator, a seed or None, got "
            f"{type(generator).__name__}."
        )
    return Generator().manual_seed(whole("generator", generator, low=0))


def drawn(
    draw: Callable[[Generator], Int[Tensor, " k"]], k: int, generator: Draws, size: int | None
) -> Int[Tensor, "*size k"]:
    """One draw of k items, or `size` of them, one after another from one generator, stacked."""
    source = as_generator(generator)
    if size is None:
        return draw(source)
    found = [draw(source) for _ in range(whole("size", size, low=0))]
    return torch.stack(found) if found else torch.empty((0, k), dtype=torch.int64)
