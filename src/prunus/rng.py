"""One generator per (seed, name), so that adding a layer leaves the other layers' draws alone."""

import hashlib

import torch

from prunus.check import whole

__all__ = ["generator_for"]


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
