"""What threads and the process keep for everybody: torch's modes, random numbers, warnings.

A call of ours works in torch's plain modes and leaves all of this as it found it, whatever the
threads beside it do, and wherever an interrupt comes.
"""

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, _GeneratorContextManager, contextmanager
from typing import Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

__all__ = [
    "ONE_AT_A_TIME",
    "drawing",
    "generators",
    "mutable",
    "noise_seed",
    "plainly",
    "quiet",
    "states",
    "theirs",
    "transformed",
    "uncompiled",
    "undisturbed",
    "unfused",
    "unless_interrupted",
]

P = ParamSpec("P")
T = TypeVar("T")
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu")  # those that autocast knows
# Random numbers, the compiler's stance, leave to change what autograd has saved: one each for the
# whole process.
ONE_AT_A_TIME = threading.RLock()


class _Own(threading.local):
    """What this thread has open.

    Attributes:
        depth: calls of `plainly`.
        caller: modes in which the outermost of them was called.
        seed: what the innermost of them that takes a seed was given.
    """

    def __init__(self) -> None:
        self.depth = self.seed = 0
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
    an interrupt kept the code inside from putting one back. The keyword `seed`, where there is one,
    is what forward passes inside draw from; see `prunus.noise`.

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
            before.enter(autocast, kwargs.get("seed"))
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
        self.caller, self.depth, self.seed = _OWN.caller, _OWN.depth, _OWN.seed
        self.stack = ExitStack()

    def enter(self, autocast: bool, seed: object) -> None:
        half = {
            device: torch.get_autocast_dtype(device)
            for device in DEVICES
            if torch.is_autocast_enabled(device)
        }
        device = torch.get_default_device()
        if self.depth == 0:
            _OWN.caller = (device, half) if half or device.type != "cpu" else None
        _OWN.depth = self.depth + 1
        if type(seed) is int:  # the function says what is wrong with anything else
            _OWN.seed = seed
        if torch.is_inference_mode_enabled():
            self.stack.enter_context(torch.inference_mode(False))
        if not autocast:
            for kind in half:
                self.stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type != "cpu":
            self.stack.enter_context(torch.device("cpu"))

    def leave(self) -> None:
        """End what this call began; beside the stack there is nothing, unless an interrupt came."""
        _end_suspended(sys.exception())
        self.stack.close()
        torch.set_grad_enabled(self.grad)
        while torch._C._len_torch_function_stack() > self.functions:
            torch._C._pop_torch_function_stack()
        while torch._C._len_torch_dispatch_stack() > self.dispatches:
            torch._C._pop_torch_dispatch_stack(None)
        while torch._C._autograd._top_saved_tensors_default_hooks(False) != self.saved:
            torch._C._autograd._pop_saved_tensors_default_hooks()
        _OWN.depth, _OWN.caller, _OWN.seed = self.depth, self.caller, self.seed


_END = _GeneratorContextManager.__exit__.__code__


def _end_suspended(error: BaseException | None) -> None:
    """End the `with` blocks whose end an interrupt has kept from beginning.

    The generator of such a block would end when it is collected, any time later, and then take
    back what is another's by then. The traceback knows it.
    """
    while error is not None:
        frames, trace = [], error.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        for frame in reversed(frames):
            if frame.f_code is _END:
                frame.f_locals["self"].gen.close()
        error = error.__context__


def unless_interrupted(error: BaseException) -> None:
    """Raise the interrupt that an error stands for, where one got in the way of a mode's end."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, KeyboardInterrupt):
            raise found
        found = found.__context__


@contextmanager
def mutable() -> Iterator[None]:
    """What autograd has saved may be changed in place; it is copied before. One thread at a time.

    torch keeps one flag for this for the whole process.
    """
    with ONE_AT_A_TIME, allow_mutation_on_saved_tensors():
        yield


def transformed() -> bool:
    """Whether this thread runs code under `torch.func` or `torch.vmap`.

    Tensors there stand for others (a sample for a batch of them), and say nothing of those. What
    `torch.compile` traces is none of them, and asks in vain for what runs around it.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def noise_seed() -> int:
    """The seed of the public call that this thread is in; 0 where none was given."""
    return _OWN.seed


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


@contextmanager
def quiet(category: type[Warning] = Warning) -> Iterator[None]:
    """Warnings of this thread are ignored inside the block, and those of no other."""
    silence = _Silence(category)
    filters: Any = warnings.filters
    try:
        filters.insert(0, silence.entry)
        yield
    finally:  # no call of Python's own in here, into which an interrupt could come
        silence.thread = None
        try:  # noqa: SIM105 a function of Python, too
            filters.remove(silence.entry)
        except ValueError:  # somebody has emptied the list
            pass


# -- what the process has one of -------------------------------------------------------------------


def undisturbed(run: Callable[[], T]) -> T:
    """What `run` gives, as compiled code's own Python has it, without a trace of its having run.

    It draws from seed 0, the process's random state comes back, and warnings (torch's own
    deprecations; they concern no user of ours) are not shown. One thread at a time is in here, for
    as long as one forward pass takes. A function and no context manager: an interrupt can come
    between a block and the code that ends it, but not between a call and its `finally`.

    Args:
        run: a forward pass.
    """
    told = functools.partial(_quietly, functools.partial(uncompiled, run))
    return drawing(generators(), told, seed=0)


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


def generators() -> list[torch.Generator]:
    """The process's own generators, of the CPU and of all devices in use."""
    found = [torch.default_generator]
    for device in (torch.cuda, torch.xpu):
        if device.is_initialized():
            found += device.default_generators
    if torch.backends.mps.is_available():
        found.append(torch.mps._get_default_mps_generator())
    return found


def states() -> list[Tensor]:
    """Where the process's own generators stand."""
    return [generator.get_state() for generator in generators()]


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


class _Odd(int):
    """A number of heads that passes for odd, with which the fused kernels do nothing."""

    def __mod__(self, other: int) -> int:
        return 1 if other == 2 else int(self) % other


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Without the fused attention kernels, which hide the modules inside them from hooks.

    `torch.backends.mha.set_fastpath_enabled` would speak for all threads; this speaks for a model,
    which must be private.
    """
    before: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            before.append((module, "num_heads", module.num_heads))
            module.num_heads = _Odd(module.num_heads)
        elif isinstance(module, nn.TransformerEncoder) and hasattr(module, "use_nested_tensor"):
            before.append((module, "use_nested_tensor", module.use_nested_tensor))
            module.use_nested_tensor = False
    try:
        yield
    finally:
        for module, key, value in before:
            setattr(module, key, value)
