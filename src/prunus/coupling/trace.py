"""One forward pass with a shadow of labels behind all tensors, and one rule per operation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.coupling.calls import Call, Refused
from prunus.coupling.computed import Computed
from prunus.coupling.labels import CONSTANT, DATA, DRAWN, FIRST, Labels, distinct, narrowed
from prunus.coupling.numbers import Numbers
from prunus.coupling.parts import Parts
from prunus.coupling.rules import module_rule, rule_for
from prunus.coupling.shadow import Shadows, carries
from prunus.coupling.types import Heads, Role, layer_of
from prunus.coupling.watching import Watching
from prunus.coupling.weights import Book, Weight
from prunus.dispatch import Ran, Schema, tensors_in
from prunus.weights import weights_of

__all__ = ["RAW_USES", "LabelTrace"]


LARGE = 2**12  # labels of one tensor that are worth looking at
TABLES = (nn.Embedding, nn.EmbeddingBag)
USES: dict[Role, str] = {"in": "consumer", "out": "producer"}
RAW_USES: dict[Role, str] = {"in": "reader", "out": "maker"}  # parameters without a layer


class LabelTrace:
    """Follows every operation of a run; see `prunus.dispatch`.

    Attributes:
        labels: the union-find with what the rules have learned.
        book: the model's parameters.
        members: slices of parameters and the labels they belong to.
        layers: (kind, layer, labels) in order of execution; see `USES` and `RAW_USES`.
        refused: reasons by layer, from operations that were given its weight.
        parts: what views take apart into equal parts.
        pinned: parameters of which nothing can go, each with the reason.
        opaque: while positive, operations run without being followed.
        heads: what of attention is a unit.
        attended: labels of heads: (those of queries, those of the keys or values they read).
        numbers: what channels meet numbers of the code.
    """

    def __init__(self, model: nn.Module, heads: Heads = "kv") -> None:
        self.heads = heads
        self.attended: list[tuple[Tensor, Tensor]] = []
        self.labels = Labels()
        self.book = Book(model)
        self.shadows = Shadows(2 * self.book.total)
        self.members: list[tuple[str, int, str, Tensor, Tensor]] = []
        self.layers: list[tuple[str, str, Tensor]] = []
        self.refused: dict[str, str] = {}
        self.pinned: dict[str, str] = {}
        self.parts = Parts(self.read)
        self.opaque = 0
        self._rows: dict[tuple[str, int], Tensor] = {}
        self._computed = Computed(self.book.total)
        self.numbers = Numbers(self.shadows.read, lambda t: self.book.of(t) is not None)
        self._watching: Watching | None = None

    # What the rules ask and tell (see `calls.Trace`).

    def read(self, tensor: Tensor) -> Tensor:
        labels = self.read_statistics(tensor)
        if not self.labels.has_statistics:
            return labels
        told = self.labels.is_statistic(labels)
        if not bool(told.any()):
            return labels
        self.labels.refuse(
            self.labels.sources(labels[told]),
            "a mean or a norm over it goes where its channels would be missed",
        )
        return torch.where(told, torch.full_like(labels, DATA), labels)

    def read_statistics(self, tensor: Tensor) -> Tensor:
        ones = (1,) * tensor.ndim
        if tensor.layout != torch.strided or tensor.is_quantized:
            return torch.full(ones, DATA, device="cpu")
        entry = self.book.of(tensor)
        if entry is not None and not self.shadows.known(tensor):
            if tensor.numel() <= 1:
                return torch.full(ones, CONSTANT, device="cpu")
            if entry.name in self.book.twins or not carries(tensor):
                return torch.full(ones, DATA if carries(tensor) else CONSTANT, device="cpu")
            return self.book.labels(tensor)
        labels = self.shadows.read(tensor)
        if labels is None:
            reason = "its storage is read as numbers of another type"
            self.labels.refuse(self.shadows.everything(tensor), reason)
            return torch.full(ones, DATA, device="cpu")
        return labels

    def atoms(self, tensor: Tensor) -> Tensor | None:
        if tensor.layout != torch.strided:
            return None
        if self.book.of(tensor) is not None and not self.shadows.known(tensor):
            return self.book.labels(tensor)
        labels = self.read(tensor)
        return labels if bool((labels < 0).any()) else None

    def weight(self, tensor: Tensor) -> Weight | None:
        if tensor.layout != torch.strided:
            return None
        if not self.shadows.known(tensor):
            found = self.book.weight(tensor)
        else:
            labels = self.shadows.read(tensor)
            found = None if labels is None else self.book.copy(tuple(tensor.shape), labels)
        if found is not None and found.name in self.book.twins:
            raise Refused(f"`{found.name}` is shared with `{self.book.twins[found.name]}`")
        return found

    def fixed(self, tensor: Tensor) -> bool:
        return tensor.layout != torch.strided or not self.shadows.known(tensor)

    def tied(self, weight: Weight) -> str | None:
        return self.book.reader(weight.name)

    def table(self, weight: Weight) -> Tensor:
        """Classes of a table's columns, which are its rows' channels."""
        made = self.made(weight, len(weight.axes) - 1)
        along = weight.axes[-1]
        assert along is not None  # `made` has refused anything else
        self.member(weight.name, along.axis, "out", along.index, made)
        if isinstance(self.book.modules[weight.name.rpartition(".")[0]], TABLES):
            self.layer("embedding", weight.name.rpartition(".")[0], made)
        return made

    def computed(self, one: Tensor, other: Tensor | None = None) -> Tensor:
        return self._computed.of(one, other)

    def name_of(self, weight: Weight) -> str:
        if self.book.owner(weight.name) is None and weight.name not in self.book.learned:
            raise Refused(f"`{weight.name}` is a buffer that the code multiplies by")
        return layer_of(weight.name)

    def used(self, role: Role, weight: Weight, labels: Tensor) -> None:
        owner = self.book.owner(weight.name)
        if owner is None and weight.name not in self.book.learned:
            return  # a buffer makes nothing of its own
        kinds = USES if owner is not None else RAW_USES
        self.layer(kinds[role], layer_of(weight.name), labels)

    def member(self, parameter: str, axis: int, role: str, index: Tensor, labels: Tensor) -> None:
        self.members.append((parameter, axis, role, index, labels))

    def made(self, weight: Weight, axis: int) -> Tensor:
        along = weight.axes[axis]
        if along is None:
            raise Refused(f"one slice of `{weight.name}` stands for several channels")
        key = (weight.name, along.axis)
        if key not in self._rows:
            self._rows[key] = self.labels.new(self.book.sizes[weight.name][along.axis])
        rows = self._rows[key]
        return rows if weight.whole else rows[along.index]

    def attends(self, queries: Tensor, shared: Tensor) -> None:
        self.attended.append((queries, shared))

    def layer(self, kind: str, module: str, labels: Tensor) -> None:
        self.layers.append((kind, module, labels))

    def norm(self, tensor: Tensor, labels: Tensor) -> None:
        entry = self.book.of(tensor)
        if entry is not None:
            module = entry.name.rpartition(".")[0]
            told = self.layers[-1] if self.layers else ("", "", None)
            if told[:2] != ("norm", module) or told[2] is not labels:  # else by its last parameter
                self.layer("norm", module, labels)

    def pin(self, tensor: Tensor, reason: str) -> None:
        atoms = self.atoms(tensor)
        if atoms is not None:
            numbers = -1 - atoms[atoms < 0]
            _, numbers = self._computed.expanded(numbers, numbers)
            for number in distinct(self.book.at(numbers)).tolist():
                self.pinned.setdefault(self.book.entries[number].name, reason)

    def met(self) -> list[tuple[Tensor, Tensor]]:
        """Entries of parameters by number, ascending, and the classes that they act on."""
        return self._computed.met(self.labels.met)

    # What drives them.

    def start(self, inputs: Iterable[Tensor]) -> None:
        """Say that these are the inputs of the network: values that no channel makes."""
        for tensor in inputs:
            if tensor.layout == torch.strided:
                self.shadows.write(tensor, torch.full((1,) * tensor.ndim, DATA, device="cpu"))

    def refuse(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Say that what these tensors hold has to stay, with the layers whose weights they are."""
        for tensor in tensors:
            labels = self.read(tensor)
            self.labels.refuse(labels, reason)
            entry = self.book.of(tensor) if tensor.layout == torch.strided else None
            if entry is not None:
                self.pinned.setdefault(entry.name, reason)
                self.refused.setdefault(entry.name.rpartition(".")[0], reason)

    def leave(self, tensors: list[Tensor], reason: str) -> None:
        """Say that these tensors go where nobody sees."""
        with torch._C.DisableTorchFunction():
            if not self.opaque and tensors[0].layout == torch.strided:
                self.refuse(tensors, reason)

    def watched(self, watching: Watching) -> Watching:
        """Say what sees the calls of functions; operations outside of these go unseen."""
        self._watching = watching
        return watching

    def call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Look at a call that may hold numbers of channels."""
        if self.opaque:
            return
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            try:
                self.numbers.note(name, args, kwargs, result)
            except Exception:  # as in `_follow`: what is not known may be anything
                self.numbers.anywhere = True

    def follow_module(self, module: nn.Module, args: Any, keywords: Any, output: Any) -> None:
        """Put labels behind what a module gave, by the rule for its call as a whole."""
        named = f"a recurrent layer ({type(module).__name__})"
        try:
            rule = module_rule(module)
            if rule is None:
                raise Refused(f"{named} has no rule")
            for tensor, labels in (
                [] if output is None else rule(self, module, args, keywords, output)
            ):
                self._put(tensor, labels)
        except Exception as error:  # as in `_follow`
            known = isinstance(error, Refused)
            reason = str(error) if known else f"{named} cannot be followed ({error!r})"
            self.refuse([*tensors_in((args, keywords)), *module.parameters()], reason)
            for name, weight in weights_of(self.book.model).items():
                if weight.module is module:
                    self.refused.setdefault(name, reason)
            for tensor in tensors_in(output):
                self._put(tensor, torch.full((1,) * tensor.ndim, DATA, device="cpu"))

    def ran(self, call: Ran) -> None:
        """Put labels behind what an operation gave, by its rule."""
        if self.opaque:
            return
        if self._watching is not None and not self._watching.inside:  # as a scripted module's
            self.numbers.anywhere = True
        # Rules compute with tensors too, which are nobody's business.
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            self._follow(call)

    def _follow(self, ran: Ran) -> None:
        schema, inputs = ran.schema, ran.inputs
        outputs = given = tensors_in(ran.result)
        named = schema.named(ran.args, ran.kwargs)
        if schema.mutable:
            written = schema.written
            outputs = [tensor for name in written for tensor in tensors_in(named.get(name))]
            if not schema.in_place:  # out=: what stood there before is no input
                inputs = tensors_in([value for name, value in named.items() if name not in written])
                named = {name: value for name, value in named.items() if name not in written}
        else:
            places = {_place(tensor) for tensor in inputs}
            outputs = [tensor for tensor in given if _place(tensor) not in places]
            if given and not outputs:
                self._look(schema, inputs, given)
                return  # views, whose shadow is the one of what they look at
        call = Call(schema.operation, schema.short, named, tuple(outputs))
        try:
            if not outputs and not any(bool((self.read(t) >= FIRST).any()) for t in inputs):
                return
            labels = rule_for(self, call)(self, call)
            found = labels if isinstance(labels, tuple) else (labels,)
            if len(found) < len(outputs):
                found += (torch.full((1,), DATA, device="cpu"),) * (len(outputs) - len(found))
            for tensor, own in zip(outputs, found, strict=False):
                if ran.drew and tensor.numel() > 1:  # as dropout does, which hands its input on
                    noise = torch.full((1,) * tensor.ndim, DRAWN, device="cpu")
                    own = self.labels.meet(own, noise, call.name, (None, tensor.shape))
                self._put(tensor, own)
        except Exception as error:  # a fault in a rule costs its classes, never the trace
            reason = str(error)
            if not isinstance(error, Refused):
                reason = f"operation {call.name} cannot be followed ({reason or repr(error)})"
            self.refuse(inputs, reason)
            for tensor in outputs:
                fixed = DATA if carries(tensor) else CONSTANT
                self._put(tensor, torch.full((1,) * tensor.ndim, fixed, device="cpu"))

    def _look(self, schema: Schema, inputs: list[Tensor], views: list[Tensor]) -> None:
        """Note where a view takes channels apart into equal parts."""
        try:
            if self.book.of(inputs[0]) is None:
                self.parts.look(schema.name, inputs[0], views)
        except Exception as error:  # as in `_follow`
            reason = f"operation {schema.operation} cannot be followed ({error!r})"
            self.refuse(inputs[:1], reason)

    def _put(self, tensor: Tensor, labels: Tensor) -> None:
        if tensor.layout == torch.strided and not tensor.is_quantized:
            if labels.ndim > tensor.ndim:
                labels = labels.reshape(tensor.shape)
            if labels.numel() > LARGE:  # classes that have met since are one along further axes
                labels = narrowed(self.labels.find(labels))
            self.shadows.write(tensor, labels)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else -id(tensor)
