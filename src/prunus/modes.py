"""Running a model to learn of it, and copying it: the caller's own is never touched."""

import copy
import copyreg
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prunus.ambient import unfused

__all__ = ["built", "copied", "evaluating", "owned", "private", "twin"]

M = TypeVar("M", bound=nn.Module)


class _Private(threading.local):
    """The models that nobody but this thread has."""

    def __init__(self) -> None:
        self.known: dict[int, weakref.ref[nn.Module]] = {}


_PRIVATE = _Private()


@contextmanager
def private(model: M) -> Iterator[M]:
    """A twin of the caller's model, that nobody else has: modes, hooks and flags are put on it.

    What an interrupt leaves on it goes with it, and another thread may run, or prune, the model
    meanwhile. Every public function that takes a model begins so; a model that is private
    already is taken as it is.

    Raises:
        ValueError: the model cannot be copied; see `copied`.
    """
    known = _PRIVATE.known.get(id(model))
    if known is not None and known() is model:
        yield model
        return
    own = twin(model)
    with owned(own):
        yield own


@contextmanager
def owned(model: M) -> Iterator[M]:
    """Say of a copy that it is private as long as the block is open."""
    before = _PRIVATE.known.get(id(model))
    try:
        _PRIVATE.known[id(model)] = weakref.ref(model)
        yield model
    finally:
        if before is None:
            _PRIVATE.known.pop(id(model), None)


def twin(model: M) -> M:
    """A copy of the modules and buffers over the very numbers of the parameters.

    The parameters are objects of their own, so that flags and gradients are; they hold no memory.

    Raises:
        ValueError: the model cannot be copied; see `copied`.
    """
    parameters = list(model.parameters())  # kept alive, since they go by their ids
    shared = {id(p): _shared(p) for p in parameters if type(p) is nn.Parameter}
    return _copied(model, shared)


def _shared(parameter: Tensor) -> nn.Parameter:
    numbers = parameter.detach()
    if numbers.is_inference():  # one that was made in inference mode takes no gradient
        numbers = numbers.clone()
    return nn.Parameter(numbers, requires_grad=parameter.requires_grad)


@contextmanager
def evaluating(model: nn.Module, *, fused: bool = False) -> Iterator[nn.Module]:
    """A private model in evaluation mode; every module's own flag comes back.

    Args:
        model: the network, one of ours: see `private`.
        fused: leave the fused attention kernels on; they are faster, and hide the modules inside
            them from hooks and traces.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        if any(flag for _, flag in flags):  # else it is said already, module by module
            model.eval()
        if fused:
            yield model
        else:
            with unfused(model):
                yield model
    finally:
        for module, flag in flags:
            if module.training is not flag:
                module.training = flag


def built(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The module, or the one that the function builds.

    Raises:
        TypeError: neither is one.
    """
    found: Any = model() if callable(model) and not isinstance(model, nn.Module) else model
    if not isinstance(found, nn.Module):
        raise TypeError(
            f"`model` must be a torch.nn.Module or a function that builds one, got "
            f"{type(found).__name__}{'' if found is model else ' from it'}."
        )
    return found


def copied(model: M) -> M:
    """A deep copy, also of a model some of whose tensors are results of a computation.

    Hooks such as those of `torch.nn.utils.prune` and `spectral_norm` leave the weight they worked
    out as a plain attribute, which `copy.deepcopy` refuses. Its value is copied; the next call
    works it out anew.

    Raises:
        ValueError: a module holds something that has no copy; or its forward was replaced by a
            function that holds on to a module of this model, so that a copy would go on using the
            original's weights.
    """
    return _copied(model, {})


def _copied(model: M, memo: dict[int, Any]) -> M:
    """A deep copy in which objects by these ids are others."""
    modules = dict(model.named_modules())
    own = set(modules.values())
    for name, module in modules.items():
        function = vars(module).get("forward")
        if isinstance(function, FunctionType) and any(_holder(v) in own for v in _held(function)):
            raise ValueError(
                f"The forward of module {name!r} was replaced by a function that calls this very "
                f"object, as a copy of the model would too. Subclass {type(module).__name__} "
                f"instead."
            )
    try:
        try:
            return _tree(model, {**memo})
        except RuntimeError:  # as of a tensor that is a result, which are looked for only then
            return _tree(model, {**_results(modules.values()), **memo})
    except (TypeError, RuntimeError, AttributeError, AssertionError) as error:
        said = str(error).strip().splitlines()
        raise ValueError(
            f"The model cannot be copied ({said[0] if said else type(error).__name__}), and only "
            f"copies are worked on. Keep locks, files and generators out of its modules, and prune "
            f"before parameters are sharded (FSDP)."
        ) from error


def _results(modules: Iterable[nn.Module]) -> dict[int, Tensor]:
    """Copies of the tensors among the attributes of modules that a computation gave, by ids."""
    return {
        id(value): value.detach().clone()
        for module in modules
        for kept in vars(module).values()
        if type(kept) not in NO_TENSOR
        for value in (kept if isinstance(kept, list) else (kept,))  # recurrent layers keep a list
        if isinstance(value, Tensor) and not value.is_leaf
    }


def _tree(module: M, memo: dict[int, Any]) -> M:
    """What `copy.deepcopy` gives, several times as fast: a module is a dozen empty dicts."""
    known = memo.get(id(module))
    if known is not None:
        found: M = known
        return found
    kind: Any = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return _scripted(module, memo)
    if not _as_any_module(kind) or "__deepcopy__" in vars(module):
        return copy.deepcopy(module, memo)
    new: M = kind.__new__(kind)
    memo[id(module)] = new  # before its parts, which may know it
    state = module.__getstate__()  # type: ignore[no-untyped-call]  # without what `compile` made
    made = new.__dict__
    for key, value in state.items():
        what = type(value)
        if what in ATOMS:
            made[key] = value
        elif what in HOLDERS and not value:
            made[key] = memo.setdefault(id(value), what())
        elif key in PARTS and what is dict:
            own: dict[str, Any] = {}
            made[key] = memo[id(value)] = own
            part = _tree if key == "_modules" else _tensor
            for name, child in value.items():
                own[name] = None if child is None else part(child, memo)
        elif what is tuple and ATOMS.issuperset(map(type, value)):
            made[key] = value
        else:
            made[key] = copy.deepcopy(value, memo)
    return new


def _scripted(module: M, memo: dict[int, Any]) -> M:
    """A copy whose parameters are leaves; torch's own keeps the graph of their being cloned."""
    with torch.no_grad():
        new = copy.deepcopy(module, memo)
    for parameter, old in zip(new.parameters(), module.parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    return new


def _tensor(tensor: Any, memo: dict[int, Any]) -> Any:
    """What `copy.deepcopy` gives of a parameter or buffer; one that is plain at a tenth of it."""
    known = memo.get(id(tensor))
    if known is not None:
        return known
    if type(tensor) is nn.Parameter:
        return tensor.__deepcopy__(memo)  # type: ignore[no-untyped-call]
    plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.is_leaf
    if not plain or tensor.requires_grad or tensor.is_quantized or vars(tensor):
        return copy.deepcopy(tensor, memo)
    storage = tensor.untyped_storage()
    shared: dict[int, Any] = memo.setdefault("torch", {})  # type: ignore[call-overload]
    whole = storage.nbytes() == tensor.numel() * tensor.element_size()
    if not whole or tensor.is_meta or storage._cdata in shared:  # others may look at it too
        return copy.deepcopy(tensor, memo)
    new = tensor.clone(memory_format=torch.preserve_format)
    if new.stride() != tensor.stride():
        return copy.deepcopy(tensor, memo)
    memo[id(tensor)], shared[storage._cdata] = new, new.untyped_storage()
    return new


PARTS = ("_modules", "_parameters", "_buffers")
ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
HOLDERS = frozenset({dict, OrderedDict, set})
NO_TENSOR = ATOMS | HOLDERS
COPYING = ("__reduce_ex__", "__reduce__", "__getstate__", "__getattribute__")
SETTING = (  # the last two add what modules of earlier versions lack
    nn.Module.__setstate__,
    nn.Conv2d.__setstate__,
    nn.MultiheadAttention.__setstate__,
)


@lru_cache(maxsize=1024)  # parametrizations make a class for every module
def _as_any_module(kind: type[nn.Module]) -> bool:
    """True where instances of a class are copied as `nn.Module` says, by their `__dict__`."""
    return (
        all(getattr(kind, name) is getattr(nn.Module, name) for name in COPYING)
        and any(kind.__setstate__ is own for own in SETTING)
        and not any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__"))
        and not any(hasattr(kind, name) for name in ("__getnewargs_ex__", "__slots__"))
        and kind not in copyreg.dispatch_table
    )


def _held(function: FunctionType) -> Iterator[Any]:
    """What a function brings along: the values it closes over, and its defaults."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _holder(value: Any) -> Any:
    """A module itself, or the module of a bound method; None for anything else."""
    found = getattr(value, "__self__", value)
    return found if isinstance(found, nn.Module) else None
