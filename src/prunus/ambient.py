"""What threads and the process keep for everybody: torch's modes, random numbers, warnings.

A call of ours works in torch's plain modes and leaves all of this as it found it, whatever the
threads beside it do, and wherever an interrupt comes.
"""

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, ParamSpec, TypeVar, overload

import torch
from torch import nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.overrides import TorchFunctionMode

__all__ = [
    "ONE_AT_A_TIME",
    "block",
    "drawing",
    "mutable",
    "plainly",
    "quiet",
    "theirs",
    "uncompiled",
    "undisturbed",
    "unfused",
]

P = ParamSpec("P")
T = TypeVar("T")
TRIM = 64  # blocks that a thread may have noted down before those that are over are forgotten
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu")  # those that autocast knows
# Random numbers, the compiler's stance, leave to change what autograd has saved: one each for the
# whole process.
ONE_AT_A_TIME = threading.RLock()


class _Own(threading.local):
    """What this thread has open.

    Attributes:
        blocks: generators behind `block`s, some of them over.
        depth: calls of `plainly`.
        caller: modes in which the outermost of them was called.
    """

    def __init__(self) -> None:
        self.blocks: list[Any] = []
        self.depth = 0
        self.caller: tuple[torch.device, dict[str, torch.dtype]] | None = None


_OWN = _Own()


@overload
def plainly(function: Callable[P, T]) -> Callable[P, T]: ...
@overload
def plainly(*, autocast: bool) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def plainly(function: Any = None, *, autocast: bool = False) -> Any:
    """A public function that works in torch's plain modes, and leaves the caller's as they are.

    Inside, inference mode is off (there are gradients to be taken, and results outlive it),
    autocast is off (statistics in half precision would choose other masks in silence), and new
    tensors lie on the CPU unless they say otherwise. The modes of the thread come back even where
    an interrupt kept the code inside from putting one back.

    Args:
        function: to wrap.
        autocast: leave autocast on, where a call speaks of networks as the caller runs them.
    """
    if function is None:
        return functools.partial(plainly, autocast=autocast)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        before = _Before()
        try:
            before.enter(autocast)
            return function(*args, **kwargs)
        finally:
            stopped: KeyboardInterrupt | None = None
            while True:
                try:
                    before.leave()
                    break
                except KeyboardInterrupt as interrupt:  # on the way into it, or in it
                    stopped = interrupt
            if stopped is not None:
                raise stopped

    return run


class _Before:
    """The thread as a call found it."""

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.functions = torch._C._len_torch_function_stack()
        self.dispatches = torch._C._len_torch_dispatch_stack()
        self.saved = torch._C._autograd._top_saved_tensors_default_hooks(False)
        self.blocks, self.caller, self.depth = len(_OWN.blocks), _OWN.caller, _OWN.depth
        self.stack = ExitStack()

    def enter(self, autocast: bool) -> None:
        half = {
            device: torch.get_autocast_dtype(device)
            for device in DEVICES
            if torch.is_autocast_enabled(device)
        }
        device = torch.get_default_device()
        if self.depth == 0:
            _OWN.caller = (device, half) if half or device.type != "cpu" else None
        _OWN.depth = self.depth + 1
        if torch.is_inference_mode_enabled():
            self.stack.enter_context(torch.inference_mode(False))
        if not autocast:
            for kind in half:
                self.stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type != "cpu":
            self.stack.enter_context(torch.device("cpu"))

    def leave(self) -> None:
        """End what this call began; all but the first line finds nothing to do, unless an
        interrupt came just before the end of a block."""
        while len(_OWN.blocks) > self.blocks:
            _OWN.blocks[-1].close()
            _OWN.blocks.pop()
        self.stack.close()
        torch.set_grad_enabled(self.grad)
        while torch._C._len_torch_function_stack() > self.functions:
            torch._C._pop_torch_function_stack()
        while torch._C._len_torch_dispatch_stack() > self.dispatches:
            torch._C._pop_torch_dispatch_stack(None)
        while torch._C._autograd._top_saved_tensors_default_hooks(False) != self.saved:
            torch._C._autograd._pop_saved_tensors_default_hooks()
        _OWN.depth, _OWN.caller = self.depth, self.caller


def block(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """`contextmanager` for what must end with the public call that it stands in.

    Where an interrupt comes just before the end of a `with` block, the generator behind it would
    end when it is collected, any time later, and then take back what is another's.
    """
    make = contextmanager(function)

    @functools.wraps(function)
    def opened(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        manager: Any = make(*args, **kwargs)
        if _OWN.depth:
            if len(_OWN.blocks) % TRIM == 0:  # those at the end are over, but for a few
                while _OWN.blocks and _OWN.blocks[-1].gi_frame is None:
                    _OWN.blocks.pop()
            _OWN.blocks.append(manager.gen)
        found: AbstractContextManager[T] = manager
        return found

    return opened


@block
def mutable() -> Iterator[None]:
    """What autograd has saved may be changed in place; it is copied before. One thread at a time.

    torch keeps one flag for this for the whole process.
    """
    with ONE_AT_A_TIME, allow_mutation_on_saved_tensors():
        yield


def theirs(function: Callable[P, T]) -> Callable[P, T]:
    """The caller's function, as it would run outside: in their autocast and default device."""
    if _OWN.caller is None:
        return function
    device, half = _OWN.caller

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with ExitStack() as stack:
            for kind, dtype in half.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            stack.enter_context(device)
            return function(*args, **kwargs)

    return run


# -- warnings: one list of filters for all threads -------------------------------------------------


class _Silence:
    """The pattern of a filter that ignores the warnings of one thread.

    `warnings.catch_warnings` puts back the list it found, and with it, where two threads overlap,
    the other's filter for ever. This filter is added and taken away alone, and where it should
    stay, matches nothing.
    """

    def __init__(self, category: type[Warning]) -> None:
        self.thread: int | None = threading.get_ident()
        self.entry: Any = ("ignore", self, category, None, 0)

    def match(self, text: str) -> bool:
        del text
        return threading.get_ident() == self.thread

    def begin(self) -> None:
        warnings.filters.insert(0, self.entry)  # type: ignore[attr-defined]

    def end(self) -> None:
        self.thread = None
        with suppress(ValueError):
            warnings.filters.remove(self.entry)  # type: ignore[attr-defined]


@block
def quiet(category: type[Warning] = Warning) -> Iterator[None]:
    """Warnings of this thread are ignored inside the block, and those of no other."""
    silence = _Silence(category)
    try:
        silence.begin()
        yield
    finally:
        silence.end()


# -- what the process has one of -------------------------------------------------------------------


def undisturbed(model: nn.Module, run: Callable[[], T], *, seed: int | None = None) -> T:
    """What `run` gives, as compiled code's own Python has it, without a trace of its having run.

    The process's random state comes back, and warnings (torch's own deprecations; they concern no
    user of ours) are not shown. One thread at a time is in here, for as long as one forward pass
    takes. A function and no context manager: an interrupt can come between a block and the code
    that ends it, but not between a call and its `finally`.

    Args:
        model: what runs, for its devices.
        run: a forward pass.
        seed: from which it draws; None goes on from the process's state.
    """
    told = functools.partial(_quietly, functools.partial(uncompiled, run))
    return drawing(_generators(model), told, seed=seed)


def drawing(
    generators: list[torch.Generator], run: Callable[[], T], *, seed: int | None = None
) -> T:
    """What `run` gives, drawing from the process's own generators; their states come back."""
    with ONE_AT_A_TIME:
        states = [generator.get_state() for generator in generators]
        try:
            if seed is not None:
                for generator in generators:
                    generator.manual_seed(seed)
            return run()
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _quietly(run: Callable[[], T]) -> T:
    with quiet():
        return run()


def _generators(model: nn.Module) -> list[torch.Generator]:
    used = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    return [
        torch.default_generator,
        *(torch.cuda.default_generators[i] for i in sorted(i for i in used if i is not None)),
    ]


def uncompiled(run: Callable[[], T]) -> T:
    """What `run` gives while compiled modules run as their own Python says.

    Nothing can be compiled before torch's compiler is imported, which takes seconds: so where it
    is not, there is nothing to say to it.
    """
    if "torch._dynamo" not in sys.modules:
        return run()
    with ONE_AT_A_TIME:
        stance: Any = torch.compiler.set_stance("force_eager")  # from here on
        try:
            return run()
        finally:
            stopped: BaseException | None = None
            while stance is not None:
                try:
                    stance.__exit__(None, None, None)
                    stance = None
                except KeyboardInterrupt as interrupt:  # on the way into it
                    stopped = interrupt
            if stopped is not None:
                raise stopped


# -- the fused attention kernels -------------------------------------------------------------------

_FUSING = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


class _Unfused(TorchFunctionMode):
    """Does nothing; attention modules leave their fused kernels alone where such a mode is on."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


@block
def unfused(model: nn.Module) -> Iterator[None]:
    """Without the fused attention kernels, which hide the modules inside them from hooks.

    `torch.backends.mha.set_fastpath_enabled` would speak for all threads.
    """
    held = torch._C._len_torch_function_stack() > 0  # it does the same
    if held or not any(isinstance(module, _FUSING) for module in model.modules()):
        yield
        return
    with _Unfused():
        yield
