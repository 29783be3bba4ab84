"""Checks every annotation of a package while the tests run: types by beartype, shapes by jaxtyping.

`install` puts an import hook in place that decorates each function and class of the package.
jaxtyping has a hook of its own, which binds arguments and checks them twice at each call: the
suite took six times as long under it. And it refuses wrong arguments before the function sees
them, so that the message which the function has for its user could not be tested.
"""

import ast
import dataclasses
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import typing
import weakref
from collections.abc import Callable, Sequence
from types import CodeType, ModuleType, TracebackType
from typing import Any, Protocol, Self, get_args, get_type_hints

from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import AbstractArray, jaxtyped

try:
    from jaxtyping._storage import get_shape_memo
except ImportError:  # it is no public name: a version without it checks as it always has
    get_shape_memo = None  # type: ignore[assignment]

CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float, as PEP 484 has it
SHAPES = jaxtyped("context")  # axes of one name have one length within it
DECORATOR = "_checked_"


def checked_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check arguments and result against the annotations, with one memory of axes per call.

    A function that answers a wrong argument by an error of its own does what it should, and this
    error passes. A wrong argument that it puts up with is reported.
    """
    hints = {name: _checkable(hint) for name, hint in inspect.get_annotations(function).items()}
    if inspect.isgeneratorfunction(function):
        hints.pop("return", None)  # what it yields comes after the call
    if all(hint is Any or hint is object for hint in hints.values()):
        return function
    made: Callable[..., Any] | None = None

    def first(*args: Any, **kwargs: Any) -> Any:  # most functions never see a call
        __tracebackhide__ = True
        nonlocal made
        function.__annotations__, stated = hints, function.__annotations__
        found = beartype(function, conf=CONF)
        function.__annotations__ = stated
        made = found
        return found(*args, **kwargs)

    made = first

    def again(violation: BeartypeCallHintParamViolation, /, *args: Any, **kwargs: Any) -> None:
        if not _passed(violation.__traceback__, function.__code__):
            function(*args, **kwargs)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            return made(*args, **kwargs)
        except BeartypeCallHintParamViolation as violation:
            again(violation, *args, **kwargs)
            raise

    @functools.wraps(function)
    def shaped(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with SHAPES:
            try:
                return made(*args, **kwargs)
            except BeartypeCallHintParamViolation as violation:
                again(violation, *args, **kwargs)
                raise

    return shaped if any(_has_shape(hint) for hint in hints.values()) else plain


def checked_class(kind: type) -> type:
    """Check the fields of a dataclass once they stand, after `__post_init__`."""
    if not dataclasses.is_dataclass(kind) or "__init__" not in vars(kind):
        return kind
    construct = kind.__init__

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        construct(self, *args, **kwargs)
        check = _field_check(kind)
        if check is not None:
            check(self)

    kind.__init__ = init  # type: ignore[misc]
    return kind


def checked(thing: Any) -> Any:
    return checked_class(thing) if isinstance(thing, type) else checked_function(thing)


@functools.cache
def _field_check(kind: type) -> Callable[[Any], None] | None:
    """All fields in one call of one function that beartype makes; None where none is checked."""
    stated = get_type_hints(kind, include_extras=True)
    hints = {f.name: _checkable(stated[f.name]) for f in dataclasses.fields(kind)}
    hints = {name: hint for name, hint in hints.items() if hint is not Any and hint is not object}
    if not hints:
        return None
    names = list(hints)
    space: dict[str, Any] = {}
    exec(f"def fields({', '.join(names)}): pass", space)
    space["fields"].__annotations__ = hints
    together = beartype(space["fields"], conf=CONF)

    def one_by_one(self: Any) -> None:
        for name, hint in hints.items():
            prefix = f"{kind.__qualname__}.{name} "
            die_if_unbearable(getattr(self, name), hint, conf=CONF, exception_prefix=prefix)

    def plain(self: Any) -> None:
        __tracebackhide__ = True
        try:
            together(*[getattr(self, name) for name in names])
        except BeartypeCallHintParamViolation:
            one_by_one(self)  # which says of which field it is

    def shaped(self: Any) -> None:
        __tracebackhide__ = True
        with SHAPES:
            plain(self)

    return shaped if any(_has_shape(hint) for hint in hints.values()) else plain


def _has_shape(hint: Any) -> bool:
    """Whether axes with names stand anywhere in a hint, so that it needs a memory of them."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    if isinstance(hint, list | tuple):  # the arguments of a callable
        return any(_has_shape(part) for part in hint)
    return any(_has_shape(part) for part in get_args(hint))


def _checkable(hint: Any) -> Any:
    """The hint, or Any for `Self`, which needs the class: mypy has it."""
    return Any if hint is Self else hint


def _passed(trace: TracebackType | None, code: CodeType) -> bool:
    """Whether the exception came through the function, rather than from its own arguments."""
    while trace is not None:
        if trace.tb_frame.f_code is code:
            return True
        trace = trace.tb_next
    return False


def quick_protocols() -> None:
    """Let `isinstance` with a Protocol look at a class once.

    Python 3.11 looks every attribute of the instance up, and so computes every property, also
    where the class subclasses the Protocol; beartype asks at every call. Here members of a
    Protocol's own family pass by their bases, and what has passed lets others of its class pass
    where the class alone says that the attributes are there, as later versions of Python look.
    """
    if hasattr(typing, "_get_protocol_attrs"):  # gone through anew for each question
        typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)
    meta = type(Protocol)
    slow = meta.__instancecheck__
    passed: weakref.WeakKeyDictionary[type, set[Any]] = weakref.WeakKeyDictionary()

    def quick(cls: Any, instance: Any) -> bool:
        kind = type(instance)
        if cls in kind.__mro__ or cls in passed.get(kind, ()):
            return True
        found = slow(cls, instance)
        if found and getattr(cls, "_is_protocol", False) and _has_all(kind, cls):
            passed.setdefault(kind, set()).add(cls)
        return found

    meta.__instancecheck__ = quick  # type: ignore[method-assign]


def quick_shapes() -> None:
    """Let a tensor that fits an annotation of names and numbers pass in a fifth of the time.

    jaxtyping writes the dtype as a string and copies its four memories at each check. Here a type
    and dtype that have passed an annotation pass it again, sizes are compared with the memory of
    axes directly, and all that does not fit is left to jaxtyping, with its message.
    """
    meta = type(AbstractArray)
    slow = meta.__instancecheck__
    plans: dict[Any, tuple[set[Any], list[str | int]] | None] = {}

    def quick(cls: Any, instance: Any) -> bool:
        try:
            plan = plans[cls]
        except KeyError:
            plan = plans[cls] = _plan_of(cls)
        if plan is None:
            return slow(cls, instance)
        passed, axes = plan
        kind = (type(instance), getattr(instance, "dtype", None))
        if kind in passed and _fits(axes, instance.shape):
            return True
        found = slow(cls, instance)
        if found:
            passed.add(kind)
        return found

    meta.__instancecheck__ = quick  # type: ignore[method-assign]


def _plan_of(annotation: Any) -> tuple[set[Any], list[str | int]] | None:
    """Types and dtypes that have passed, none so far, and the axes, where they are plain ones."""
    axes = getattr(annotation, "dim_str", "...").split()
    if not all(axis.isdecimal() or (axis.isidentifier() and axis != "_") for axis in axes):
        return None
    return set(), [int(axis) if axis.isdecimal() else axis for axis in axes]


def _fits(axes: list[str | int], shape: Sequence[int]) -> bool:
    """Whether sizes agree with numbers and the memory, which then learns the new names."""
    if len(axes) != len(shape):
        return False
    known = get_shape_memo()[0]
    new: dict[str, int] = {}
    for axis, size in zip(axes, shape):  # noqa: B905 of one length, and this is every check
        if axis in known:
            if known[axis] != size:
                return False
        elif type(axis) is int:
            if axis != size:
                return False
        elif new.setdefault(axis, size) != size:
            return False
    known.update(new)
    return True


def _has_all(kind: type, protocol: Any) -> bool:
    """Whether a class alone has what a Protocol asks for: by itself or as fields."""
    there = set(getattr(kind, "__dataclass_fields__", ())).union(*map(vars, kind.__mro__))
    return there.issuperset(typing._get_protocol_attrs(protocol))


class _Decorate(ast.NodeTransformer):
    """Functions and classes of a module, and of its classes; those made at each call are not."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list.append(ast.copy_location(ast.Name(DECORATOR, ast.Load()), node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.copy_location(ast.Name(DECORATOR, ast.Load()), node))
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)  # past the cache, which holds the code as written
        tree = _Decorate().visit(ast.parse(self.get_data(path), path))
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[DECORATOR] = checked
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.package and not fullname.startswith(f"{self.package}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(package: str) -> None:
    """Check all that is imported of the package from now on; none of it may be there already."""
    if package in sys.modules:
        raise RuntimeError(f"{package!r} was imported before its checks were installed.")
    sys.meta_path.insert(0, _Finder(package))
    quick_protocols()
    if get_shape_memo is not None:
        quick_shapes()
