"""One sum for layers that take the same inputs, such as queries, keys and values of attention.

The first of them makes the sum, and the others follow as long as each of its calls has one of
theirs on the very same tensor. What a call adds is kept apart until it is known who has met it, so
that a layer which turns out to go its own way gets the sum of the calls that it has had.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from prunus.calibration.padding import Padding
from prunus.calibration.statistics import Statistic
from prunus.calibration.sums import Sums
from prunus.views import LinearView
from prunus.weights import Weight

__all__ = ["Leading"]


@dataclass(eq=False)
class _Lead:
    """A layer that others may follow.

    Attributes:
        weight: its.
        inputs: what it was called with last; held, so that no other tensor gets its memory, until
            another layer leads.
        version: how often that tensor had been changed by then.
        padding: of that batch.
        last: what the call added.
        followers: {layer: whether it has met this call}.
        calls: how many there were.
    """

    weight: Weight
    inputs: Tensor | None
    version: int
    padding: Padding | None
    last: Sums = field(default_factory=Sums)
    followers: dict[str, bool] = field(default_factory=dict)
    calls: int = 1

    def is_same(self, weight: Weight, inputs: Tensor, padding: Padding | None) -> bool:
        """Whether another layer reads the same vectors now."""
        own = self.inputs
        return (
            own is not None
            and inputs.data_ptr() == own.data_ptr()
            and inputs.shape == own.shape
            and inputs.stride() == own.stride()
            and inputs.dtype == own.dtype
            and inputs.device == own.device
            and inputs._version == self.version
            and padding is self.padding
            and type(weight.view) is type(self.weight.view)
            and (padding is None or _stream(padding, weight) == _stream(padding, self.weight))
        )


class Leading:
    """Who follows whom, while a model runs."""

    def __init__(self, sums: dict[str, Sums], statistics: Iterable[Statistic]) -> None:
        """`sums` of all layers, and the statistics that read their inputs."""
        self._sums = sums
        self._statistics: Mapping[str, Statistic] = {s.name: s for s in statistics}
        self._leads: dict[str, _Lead] = {}
        self._follows: dict[str, str] = {}
        self._alone: set[str] = set()
        self._latest: _Lead | None = None

    def met(self, weight: Weight, inputs: Tensor, padding: Padding | None) -> bool:
        """True where the call needs no sum: another layer has made it on the same tensor."""
        name = weight.name
        if name in self._follows:
            lead = self._leads[self._follows[name]]
            if not lead.followers[name] and lead.is_same(weight, inputs, padding):
                lead.followers[name] = True
                return True
            self._part(name)
            return False
        if name in self._leads or name in self._alone or not self._may_share(weight, inputs):
            return False
        first = self._latest
        if first is None or first.calls > 1 or not first.is_same(weight, inputs, padding):
            return False
        first.followers[name] = True
        self._follows[name] = first.weight.name
        return True

    def place(self, weight: Weight, inputs: Tensor, padding: Padding | None) -> Sums:
        """Where the sums of this call go."""
        name = weight.name
        own = self._sums[name]
        lead = self._leads.get(name)
        if lead is not None:
            self._settle(lead)
            if not lead.followers:  # nobody shares it
                del self._leads[name]
                self._alone.add(name)
                return own
        elif name in self._alone or not self._may_share(weight, inputs):
            self._alone.add(name)
            return own
        calls = 1 if lead is None else lead.calls + 1
        followers = {} if lead is None else dict.fromkeys(lead.followers, False)
        if self._latest is not None:
            self._latest.inputs = None
        lead = _Lead(weight, inputs, inputs._version, padding, followers=followers, calls=calls)
        self._leads[name] = self._latest = lead
        return lead.last

    def close(self) -> None:
        """Give every layer its sums; those that have followed to the end share their tensors."""
        for lead in self._leads.values():
            self._settle(lead)
            made = self._sums[lead.weight.name]
            for name in lead.followers:
                self._add(self._sums[name], made)
        self._leads, self._follows, self._latest = {}, {}, None

    def _settle(self, lead: _Lead) -> None:
        """Add the last call to the sums, and let those go which have not met it."""
        for name in [name for name, met in lead.followers.items() if not met]:
            self._part(name)
        self._add(self._sums[lead.weight.name], lead.last)
        lead.last = Sums()

    def _part(self, name: str) -> None:
        """From here on a layer has a sum of its own."""
        lead = self._leads[self._follows.pop(name)]
        met = lead.followers.pop(name)
        own = self._sums[name]
        for part in (self._sums[lead.weight.name], *((lead.last,) if met else ())):
            self._add(own, Sums(dict(part.counts), {k: v.clone() for k, v in part.totals.items()}))
        self._alone.add(name)

    def _add(self, sums: Sums, part: Sums) -> None:
        """Of the inputs alone: a layer may have others of its own."""
        if "inputs" in part.counts:
            sums.counts["inputs"] = sums.counts.get("inputs", 0) + part.counts["inputs"]
        for key, value in part.totals.items():
            if key in self._statistics:
                sums.put(self._statistics[key], value)

    def _may_share(self, weight: Weight, inputs: Tensor) -> bool:
        return (
            isinstance(weight.view, LinearView)
            and weight.source.groups == 1
            and not inputs.is_inference()
            and all(s.reads.inputs_only for s in self._statistics.values())
        )


def _stream(padding: Padding, weight: Weight) -> tuple[object, object]:
    layout = padding.layout
    return layout.streams.get(weight.name), layout.turned.get(weight.name)
