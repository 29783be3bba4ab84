"""A model's forward passes, resumed where they stopped: what has run is not run again.

Asked for the inputs of one layer after another, in order of execution, with the layers before
changed in between, the passes of one batch together cost one forward pass of its layers.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import call, to_device
from prunus.hints import Batch
from prunus.modes import evaluating
from prunus.noise import passed
from prunus.scopes.caches import uncached
from prunus.scopes.keep import Keep, Memory
from prunus.scopes.tape import Done, Kept, Path, Tape
from prunus.scopes.trees import Snapshot, copied, plain
from prunus.weights import Weight

__all__ = ["Replay", "Seen"]


class _Enough(BaseException):
    """All that was asked for has been seen; the rest of the forward pass is not wanted."""


class _Anew(BaseException):
    """The pass takes another path than before, after outputs that are no longer kept."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What some layers saw in one pass: a tensor for each call, copied.

    Attributes:
        inputs: by layer; layers that were called with one tensor have one copy of it.
        outputs: by layer; empty where they were not asked for.
    """

    inputs: dict[str, list[Tensor]]
    outputs: dict[str, list[Tensor]]


class Replay(AbstractContextManager["Replay"]):
    """The forward passes of `model` over `parts`, as a context in which it is watched.

    Every finished call is kept with its output; when the model runs again on the same part, calls
    that finished before are answered from there, so that only what lies between runs: the
    statements of the forward functions around them. A call is answered only where that cannot be
    told from running it: it took tensors and constants, changed none of them, and gave tensors of
    their own memory. Other calls run again, with their own children answered.

    A pass that takes another path than before (its calls differ) runs anew from there on.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[Batch],
        *,
        device: torch.device,
        weights: Mapping[str, Weight],
        calls: Mapping[str, int],
        loose: Collection[str] = (),
        chain: Collection[str] = (),
        closed: Collection[str] = (),
        finish: bool = False,
        keep: Keep | None = None,
        remember: bool = True,
    ) -> None:
        """Nothing runs yet.

        Args:
            model: the model; its modules are watched inside the context, and left as they came.
            parts: batches of bounded size; each is one forward pass.
            device: where the model lives.
            weights: of its layers, by name.
            calls: how often each layer is called in a pass; a layer that is called once ends the
                pass that asks for it.
            loose: parameters that are read outside their own module's call too.
            chain: modules that run one after another, each of which alone reads the one before:
                only the last output among them is kept, and NaN in place of the others.
            closed: modules inside which nothing is kept, so that they run whole or not at all.
            finish: a pass that has shown all that was asked for ends with the closed module that
                it is in, and keeps its output; it ends at once where False.
            keep: where outputs are kept; in memory where None.
            remember: False runs every pass from its start.
        """
        self.model = model
        self._parts = parts
        self._device = device
        self._calls = dict(calls)
        self._loose = frozenset(loose)
        self._remember = remember
        self._weights = dict(weights)
        self._inside = {id(m): frozenset(id(c) for c in m.modules()) for m in model.modules()}
        chained = frozenset(id(model.get_submodule(name)) for name in chain)
        self._kept = Kept(Memory() if keep is None else keep, chained)
        self._closed = frozenset(id(model.get_submodule(name)) for name in closed)
        self._finish = finish
        self._enough = False  # all has been seen, and a closed module is finished yet
        self._pausing = frozenset(id(weight.module) for weight in weights.values())
        self._tapes: list[Tape] = [[] for _ in parts]
        self._stack = ExitStack()
        # of the pass that runs
        self._running = False
        self._tape: Tape = []
        self._at = 0
        self._open: Path = ()
        self._again = False  # inside a kept call that runs once more
        self._resuming: set[Path] = set()  # chains that may go on where they stand
        self._wanted: frozenset[int] = frozenset()
        self._found = Seen({}, {})
        self._last: dict[str, list[Tensor]] = {}  # of what was asked for, what comes last in a call
        # {a tensor as it was when a layer took it: (the tensor, so that its place stays, the copy)}
        self._taken: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._seen: dict[int, int] = {}

    def __enter__(self) -> "Replay":
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(uncached(self.model))
            for module in self.model.modules():
                self._watch(module, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        for tape in self._tapes:
            self._kept.forget(tape, 0)

    def __len__(self) -> int:
        return len(self._parts)

    def seen(self, part: int, names: Collection[str], *, outputs: bool = False) -> Seen:
        """The inputs (and outputs) of some layers in one pass.

        Raises:
            ValueError: the model cannot run, or calls a layer more often than it used to.
        """
        self._run(part, names, outputs)
        return self._found

    def output(self, part: int) -> Any:
        """The model's output in one pass."""
        return self._run(part, (), False)

    def changed(self, parameters: Collection[str]) -> None:
        """Say that these parameters have changed, and no others.

        Whatever ran before the first module that holds one of them is still kept.
        """
        holders = {name.rpartition(".")[0] for name in parameters}
        modules = {id(self.model.get_submodule(name)) for name in holders}
        clear = not self._loose.isdisjoint(parameters)
        for tape in self._tapes:
            first = next((i for i, done in enumerate(tape) if done.inside & modules), len(tape))
            self._kept.cut(tape, 0 if clear else first)

    # -- one pass -------------------------------------------------------------------------------

    def _run(self, part: int, names: Collection[str], outputs: bool) -> Any:
        self._tape, self._at, self._open = self._tapes[part], 0, ()
        self._again, self._resuming, self._enough = False, set(), False
        self._wanted = frozenset(id(self._weights[name].module) for name in names)
        self._found = Seen({n: [] for n in names}, {n: [] for n in names} if outputs else {})
        self._last = self._found.outputs if outputs else self._found.inputs
        self._seen, self._taken = {}, {}
        if not self._remember:
            self._kept.forget(self._tape, 0)
        else:
            inner = (i for i, done in enumerate(self._tape) if done.inside & self._wanted)
            self._kept.cut_for(self._tape, next(inner, len(self._tape)))
        self._running = True
        hooks = [
            self._weights[name].module.register_forward_pre_hook(
                partial(self._take, name), with_kwargs=True
            )
            for name in names
        ]
        if outputs:
            hooks += [
                self._weights[name].module.register_forward_hook(partial(self._answer, name))
                for name in names
            ]
        try:
            with torch.no_grad():
                first = self._tape[0] if self._tape else None
                if first is not None and self._bare(first):
                    on = partial(self._chain, first.module, None)
                    return passed(self.model, on, part, whole=False)
                batch = copied(to_device(self._parts[part], self._device))
                return call(self.model, batch, part, whole=False)
        except _Enough:
            return None
        except _Anew:
            self._kept.forget(self._tape, 0)
        finally:
            self._running, self._taken = False, {}
            for hook in hooks:
                hook.remove()
        return self._run(part, names, outputs)

    def _bare(self, done: Done) -> bool:
        """True where the pass can go on inside the model without calling it: it is a chain."""
        model: Any = self.model
        return (
            done.module is model
            and done.children is not None
            and not model._forward_pre_hooks
            and not model._forward_hooks
            and not self._wants(model, done.children)
        )

    def _take(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if not self._running:
            return
        inputs = self._weights[name].inputs(args, kwargs)
        found = self._found.inputs[name]
        if inputs is not None:  # else the module itself says what it needs
            found.append(inputs.detach())
        self._stop()
        if inputs is not None:  # what goes on may change it in place
            found[-1] = self._copy_of(inputs)

    def _copy_of(self, inputs: Tensor) -> Tensor:
        """A copy, one for all layers that take the tensor as it is now."""
        if inputs.is_inference():  # torch does not count what is written to it
            return inputs.detach().clone()
        place = (inputs.data_ptr(), inputs._version, inputs.shape, inputs.stride(), inputs.dtype)
        if place not in self._taken:
            self._taken[place] = inputs, inputs.detach().clone()
        return self._taken[place][1]

    def _answer(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._running and isinstance(output, Tensor):
            self._found.outputs[name].append(output.detach().clone())
            self._stop()

    def _stop(self) -> None:
        """End a pass that has shown all that was asked for."""
        if all(self._calls[name] == 1 and found for name, found in self._last.items()):
            if not (self._finish and self._closed.intersection(self._open)):
                raise _Enough
            self._enough = True

    def _watch(self, module: nn.Module, stack: ExitStack) -> None:
        """Let calls of the module pass through `_visit`; taken back when the stack closes."""
        if isinstance(module, torch.jit.ScriptModule):
            return  # runs as one, outside Python
        own: Any = module
        original = own._call_impl
        object.__setattr__(module, "_call_impl", partial(self._visit, module, original))
        stack.callback(object.__delattr__, module, "_call_impl")
        if type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__:
            object.__setattr__(module, "forward", partial(self._sequence, module, module.forward))
            stack.callback(object.__delattr__, module, "forward")

    def _visit(self, module: nn.Module, original: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a module: answered from what is kept, or run."""
        if not self._running:
            return original(*args, **kwargs)
        self._note(module)
        path, again = self._open, self._again
        done, start = self._next(module, path), self._at
        if done is not None and done.module is module and done.path == path:
            if done.key is None:
                self._at += 1
            elif done.children is None and not self._wants(module):
                self._at += 1
                return self._kept.get(done.key)
            elif done.children is None or self._wants(module, done.children):
                self._again = True  # what is wanted lies inside, so it runs once more
                self._kept.forget(self._tape, start, start + 1)
        before = Snapshot((args, kwargs))
        self._open = (*path, id(module))
        output = original(*args, **kwargs)
        self._open, self._again = path, again
        output = self._finished(start, module, path, before, output)
        if self._enough and not self._closed.intersection(path):
            raise _Enough
        return output

    def _finished(
        self, start: int, module: nn.Module, path: Path, before: Snapshot, output: Any
    ) -> Any:
        """Keep what a call gave, where it can be answered from that."""
        if path in self._resuming or self._closed.intersection(path):
            return output  # in a chain the place between two children is kept, not each of them
        if before.unchanged and plain(output) and before.apart(output):
            self._record(start, module, path, output, None)
        elif start == self._at or self._tape[start].module is not module:
            self._tape.insert(start, Done(module, path, None, None, frozenset()))
            self._at += 1
        return output

    def _sequence(self, module: nn.Module, original: Any, inputs: Any) -> Any:
        """`nn.Sequential.forward`, which can go on in its middle."""
        return self._chain(module, inputs) if self._running else original(inputs)

    def _chain(self, module: nn.Module, inputs: Any) -> Any:
        outer = self._open
        if not outer:  # the model itself, gone on with
            self._open = (id(module),)
        path = self._open[:-1]
        start, first, value = self._at, 0, inputs
        before = Snapshot(inputs)
        done = self._tape[start] if start < len(self._tape) and not self._again else None
        if done is not None and done.module is module and done.path == path and done.children:
            assert done.key is not None  # a chain that is under way has a value
            first, value = done.children, self._kept.get(done.key)
            self._at += 1
        children = _children(module)
        open_ = not self._closed.intersection(self._open)
        for i in range(first, len(children)):
            good = i > 0 and open_ and plain(value) and before.unchanged and before.apart(value)
            (self._resuming.add if good else self._resuming.discard)(self._open)
            # Where a child holds layers, a pass may stop inside it, and goes on from here.
            if good and i > first and self._pausing & self._inside[id(children[i])]:
                self._record(start, module, path, value, i)
            value = children[i](value)
        self._resuming.discard(self._open)
        self._open = outer
        return value

    # -- what is kept ---------------------------------------------------------------------------

    def _next(self, module: nn.Module, path: Path) -> Done | None:
        """The kept call that comes next; what was kept of another path is forgotten."""
        if self._again or self._at >= len(self._tape):
            return None
        done = self._tape[self._at]
        inner = (*path, id(module))
        if (done.module is module and done.path == path) or done.path[: len(inner)] == inner:
            return done
        if self._kept.thinned(self._tape[: self._at]):
            raise _Anew
        self._kept.forget(self._tape, self._at)
        return None

    def _record(
        self, start: int, module: nn.Module, path: Path, output: Any, children: int | None
    ) -> None:
        """Keep a finished call in place of the calls inside it."""
        if not self._remember:
            return
        inside = self._inside[id(module)]
        if children is not None:
            ran = _children(module)[:children]
            inside = frozenset().union(*(self._inside[id(m)] for m in ran))
        self._kept.put(self._tape, (start, self._at), module, path, output, children, inside)
        self._at = start + 1

    def _wants(self, module: nn.Module, children: int | None = None) -> bool:
        """True where a layer that is asked for, and has not been seen, lies inside."""
        inside = self._inside[id(module)]
        if children is not None:
            inside = frozenset().union(*(self._inside[id(m)] for m in _children(module)[:children]))
        return any(key in inside for key in self._wanted)

    def _note(self, module: nn.Module) -> None:
        """Count a layer's calls; one that comes too often has not been seen whole before."""
        key = id(module)
        if key not in self._pausing:
            return
        self._seen[key] = self._seen.get(key, 0) + 1
        for name, weight in self._weights.items():
            if weight.module is module and self._calls[name] == 1 and self._seen[key] > 1:
                raise ValueError(
                    f"Layer {name!r} is called more often with some inputs than with others, "
                    f"so its inputs cannot be kept. Use inputs='dense', or exclude it."
                )


def _children(module: nn.Module) -> list[nn.Module]:
    # `nn.Sequential` iterates over its children by position, one object twice where it is so.
    return [child for child in module._modules.values() if child is not None]
