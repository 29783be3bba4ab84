"""One hidden layer of a chain of linear layers: what the rules keep of it, and what that costs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from prunus.bench.data.sets import Dataset
from prunus.calibration import calibrate
from prunus.compensation import least_squares
from prunus.imitation import (
    Form,
    consumers_of,
    equal_scales,
    forward_trace,
    line_scales,
    line_steps,
    local_form,
    output_form,
    refit_scales,
    refit_steps,
    uniform_steps,
)
from prunus.layer import Layer
from prunus.nodes import ClassView, class_view
from prunus.scores import OBSNode

__all__ = ["RULES", "Hidden", "hidden_layers", "published_search", "sets_of"]

Kept = Bool[Tensor, " classes"]
Scale = Float[Tensor, " classes"]
BATCH, CANDIDATES = 128, 50  # of the authors' code
RULES = (
    "L1 norm", "random", "published search", "uniform set", "line", "refit", "global refit",
    "forward", "backward",
)  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Hidden:
    """A hidden layer with everything behind it.

    Attributes:
        name: of the layer that makes it.
        view: its classes.
        local: D at the next layer's outputs.
        output: D at the network's outputs, to first order.
        before: activations of the calibration samples (samples, classes), float64.
        labels: of these samples.
        test: activations of the test samples.
        test_labels: of the test samples.
        consumer: the next layer, with its Gram matrix.
        tail: what follows the next layer.
    """

    name: str
    view: ClassView
    local: Form
    output: Form
    before: Float[Tensor, "samples classes"]
    labels: Int[Tensor, " samples"]
    test: Float[Tensor, "tests classes"]
    test_labels: Int[Tensor, " tests"]
    consumer: Layer
    tail: Callable[[Tensor], Tensor]

    def outputs(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """The network's outputs from activations (…, classes), with other weights if given."""
        w = self.consumer.weight.double() if weight is None else weight
        bias = torch.zeros(()) if self.consumer.bias is None else self.consumer.bias.double()
        return self.tail(values @ w.T + bias)

    def judged(self, kept: Kept, scale: Scale | None, *, ls: bool) -> dict[str, float]:
        """Test error in %, and relative squared errors at the outputs and at the next layer."""
        weight = self.consumer.weight.double()
        dense = weight
        if ls:
            mask = kept.expand(weight.shape)
            assert self.consumer.gram is not None  # collected
            weight = least_squares(weight, self.consumer.gram, mask).weight
        else:
            factors = kept.double() if scale is None else kept * scale
            weight = weight * factors
        wanted, found = self.outputs(self.before), self.outputs(self.before, weight)
        gap = (self.before @ (weight - dense).T).square().sum(1).mean()
        wrong = self.outputs(self.test, weight).argmax(1) != self.test_labels
        return {
            "test error": 100 * float(wrong.double().mean()),
            "output error": float((found - wanted).square().sum() / wanted.square().sum()),
            "layer error": float(gap) / self.local.constant,
        }


def hidden_layers(model: nn.Sequential, data: Dataset, samples: int) -> Iterator[Hidden]:
    """The hidden layers of flatten, fc1, act1, fc2, …, of the first training samples."""
    parts = dict(model.double().named_children())
    x = data.x_train[:samples].double()
    calibration = calibrate(model, x, ("gram", "taylor_gram"), progress=False)
    names = list(parts)
    for group in calibration.groups:
        (consumer,) = group.consumers
        at = names.index(consumer)
        head = nn.Sequential(*(parts[n] for n in names[:at]))
        tail = nn.Sequential(*(parts[n] for n in names[at + 1 :]))
        view = class_view(group, calibration)
        with torch.no_grad():
            before, test = head(x), head(data.x_test.double())
        yield Hidden(
            name=group.name,
            view=view,
            local=local_form(view),
            output=output_form(view),
            before=before,
            labels=data.y_train[:samples],
            test=test,
            test_labels=data.y_test,
            consumer=calibration[consumer],
            tail=torch.no_grad()(tail.forward),
        )


def published_search(hidden: Hidden, most: int, *, generator: Generator) -> list[int]:
    """The authors' search, without its training between layers: `most` classes in order.

    From no class at all; at step n a batch of 128 samples and at most 50 classes that are not in
    yet, drawn at random, are tried with factors N/n on all that are in, and the one with the least
    cross-entropy comes in. Their public code, read for its constants; written anew.
    """
    size = hidden.before.shape[1]
    chosen: list[int] = []
    for n in range(1, most + 1):
        rows = torch.randint(len(hidden.before), (BATCH,), generator=generator)
        left = torch.tensor([i for i in range(size) if i not in set(chosen)])
        left = left[torch.randperm(len(left), generator=generator)[:CANDIDATES]]
        factors = torch.zeros(len(left), size, dtype=torch.float64)
        factors[:, chosen] = size / n
        factors[torch.arange(len(left)), left] = size / n
        values = hidden.outputs(hidden.before[rows] * factors[:, None])  # (tried, batch, out)
        wanted = hidden.labels[rows].expand(len(left), BATCH)
        loss = nn.functional.cross_entropy(values.flatten(0, 1), wanted.flatten(), reduction="none")
        chosen.append(int(left[loss.view(len(left), BATCH).mean(1).argmin()]))
    return chosen


def sets_of(
    hidden: Hidden, counts: list[int], *, seed: Generator
) -> Iterator[tuple[str, int, Kept, Scale | None]]:
    """(rule, count, classes kept, factors) of all rules."""
    size = hidden.before.shape[1]
    norms = hidden.consumer.weight.double().abs().sum(0)
    drawn = torch.randperm(size, generator=seed).tolist()
    searched = published_search(hidden, max(counts), generator=seed)
    backward = OBSNode(ridge=1e-8).classes(hidden.view).argsort(descending=True).tolist()
    orders: dict[str, tuple[list[int], Any]] = {
        "L1 norm": (norms.argsort(descending=True, stable=True).tolist(), None),
        "random": (drawn, None),
        "published search": (searched, "equal"),
        "uniform set": (uniform_steps(hidden.local).trace.order.tolist(), equal_scales),
        "line": (line_steps(hidden.local).trace.order.tolist(), line_scales),
        "refit": (refit_steps(hidden.local).trace.order.tolist(), refit_scales),
        "global refit": (refit_steps(hidden.output).trace.order.tolist(), refit_scales),
        "forward": (forward_trace(consumers_of(hidden.view)).trace.order.tolist(), None),
        "backward": (backward, None),
    }
    for rule in RULES:
        order, scales = orders[rule]
        form = hidden.output if rule == "global refit" else hidden.local
        for k in counts:
            kept = torch.zeros(size, dtype=torch.bool)
            kept[order[:k]] = True
            scale = None
            if scales == "equal":
                scale = torch.full((size,), size / k, dtype=torch.float64)
            elif scales is not None:
                scale = scales(form, kept)
            yield rule, k, kept, scale
