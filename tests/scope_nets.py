"""Networks whose passes are hard to keep, and plain ones with blocks."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Chain(nn.Sequential):
    """Linear layers of one width."""

    def __init__(self, layers: int, width: int = 12) -> None:
        super().__init__(*(nn.Linear(width, width) for _ in range(layers)))


class Block(nn.Module):
    """Attention of one head and a gated MLP, each beside a shortcut, norms before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, scale: float = 1.0, cache: Any = None) -> tuple[Tensor, None]:
        y = self.norm1(x)
        if cache is not None:
            cache.states.append(y)
        x = x + self.out(
            F.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y), scale=scale)
        )
        y = self.norm2(x)
        return x + self.down(self.up(y) * F.silu(self.gate(y))), None


class Transformer(nn.Module):
    """Blocks in a list, between an embedding and a head."""

    def __init__(self, blocks: int = 3, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, scale=0.4)[0]
        return self.head(F.relu(self.hidden(self.norm(x).mean(1))))


class Skips(Transformer):
    """The first block's output is read again behind the last."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        outputs = []
        for block in self.blocks:
            x = block(x)[0]
            outputs.append(x)
        return self.head(F.relu(self.hidden(self.norm(outputs[0] + x).mean(1))))


class InPlace(nn.Module):
    """Activations in place, on what other branches read before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 6), nn.ReLU(inplace=True))
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) - 0.3
        a = self.left(h)
        h = self.act(h)  # left has read it before
        b = self.right(h)
        b += a
        a.relu_()
        return self.last(a + b + h) + x[..., :4]  # x was changed by the first ReLU


class Handed(nn.Module):
    """A module leaves a value behind that another one reads: no argument tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 5), Keeper(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)) + self.second.kept)


class Keeper(nn.Module):
    """Answers one thing and keeps another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self.kept = y.exp()
        return y.tanh()


class Elsewhere(nn.Module):
    """The last layer's weight is read before its own call too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(F.relu(self.first(x) @ self.last.weight))
        return self.last(F.relu(y))


class Ahead(nn.Module):
    """A weight is read before the call of a layer that runs ahead of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.own, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.inner(x @ self.own.weight))
        return self.last(F.relu(self.own(x)) + y)


class Aliased(nn.Module):
    """A module gives one tensor twice; what is written to one is read from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Pair(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x)
        a.relu_()
        return self.last(b)


class Pair(nn.Module):
    """A linear layer whose output comes twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.inner(x)
        return y, y


class Laid(nn.Module):
    """A module's output is read by a view that the strides it came with allow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Upright(), nn.Linear(15, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x).transpose(1, 2).view(-1, 15)))


class Upright(nn.Module):
    """A linear layer, its channels before the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).transpose(1, 2)


class Branches(nn.Module):
    """Two branches and a module that both of them call."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.shared = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 6)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.left(x)), torch.tanh(self.right(x))
        return self.last(torch.cat([self.shared(a), self.shared(b).relu()], -1))


class Remembering(Transformer):
    """A language model's habit: unless its configuration says no, blocks fill an object in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)

    def forward(self, x: Tensor) -> Tensor:
        x, cache = self.embed(x), Cache() if self.config.use_cache else None
        for block in self.blocks:
            x = block(x, scale=0.4, cache=cache)[0]
        return self.head(F.relu(self.hidden(self.norm(x).mean(1))))


class Cache:
    """What blocks leave for the next token."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
