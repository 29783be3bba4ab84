"""
An LSTM that reads images row by row
====================================

Every row of a handwritten digit is a time step. Half of the hidden units go: a unit is its rows of
all four gates, its column of the recurrent matrix, and whatever reads its state, so that the LSTM
that comes out has a smaller ``hidden_size`` and is a plain ``nn.LSTM``.
"""

import torch
from _shipping import SMALL, fit, ship
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.bench import load_data
from prunus.granularity import Node

digits = load_data("digits" if SMALL else "mnist")
count = 600 if SMALL else 8000
x, y = digits.x_train[:count].squeeze(1), digits.y_train[:count]
x_test, y_test = digits.x_test[:2000].squeeze(1), digits.y_test[:2000]


class RowReader(nn.Module):
    """The class of an image from the last state after its rows."""

    def __init__(self, wide: int, hidden: int = 96) -> None:
        super().__init__()
        self.rnn = nn.LSTM(wide, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(rows)[0][:, -1])


# %%
# Train it, and say how often it errs on images that it has not seen.

torch.manual_seed(0)
model = RowReader(x.shape[2])


def loss(network: nn.Module, index: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(network(x[index]), y[index])


@torch.no_grad()
def error(network: nn.Module) -> float:
    return float((network(x_test).argmax(1) != y_test).float().mean())


fit(model, loss, len(x), epochs=3 if SMALL else 6)

# %%
# Recurrent weights are pruned where ``layers`` asks for them; the recipe is that of any network.
# What it gains is measured where it runs, in torch and in onnxruntime, dense and small in turn.

pruned = ship(
    model,
    prunus.Recipe(granularity=Node(multiple_of=8)),
    0.5,
    data=x[:256],
    layers="*",
    example=x[:16],
    error=error,
    retrain=lambda network: fit(network, loss, len(x), epochs=1 if SMALL else 2, rate=1e-3),
    what="test error",
)
print(f"hidden_size {model.rnn.hidden_size} -> {pruned.compact(x[:4]).rnn.hidden_size}")

# %%
# What each weight keeps, and what it costs.

pruned
