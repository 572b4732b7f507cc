"""Where a model holds its modules besides registering them: lists, dicts, closures, bound methods.

A forward that reaches a module by such a reference goes on calling the original when its place among the
registered modules is taken by a replacement.
"""

from __future__ import annotations

import dis
import functools
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# Their code holds no module of a model.
_LIBRARIES = frozenset({"torch", "numpy", "afm_dist", "ray"}) | sys.stdlib_module_names - {"__main__"}
# What they take, they register.
_CONSTRUCTORS = ("__init__", "__new__", "__post_init__")
_SEQUENCES = (list, tuple, set, frozenset, deque)
_PLAIN = (Tensor, str, bytes, int, float, complex, bool, type(None), ModuleType, torch.dtype, torch.device)


def references(model: nn.Module) -> dict[nn.Module, str]:
    """Find the registered modules of a model that it can also reach in another way, which is returned.

    Followed are attributes, containers, the attributes of other objects, modules that are not registered,
    and of functions, methods and partials what they close over, their arguments and the globals that they
    name; also those of the methods of the modules' classes.

    Args:
        model: Any module.

    Returns:
        By module, as words: ``.layers[0]``, or ``.forward, which closes over head``.
    """
    registered = dict.fromkeys(model.modules())
    names = {module: name for name, module in model.named_modules()}
    found: dict[nn.Module, str] = {}
    seen: set[int] = set()
    waiting: deque[tuple[str, Any]] = deque()
    for module in registered:
        waiting.extend(_attributes(names[module], module))
        waiting.extend(_methods(names[module], type(module), seen))
    while waiting:
        where, value = waiting.popleft()
        if isinstance(value, weakref.ProxyTypes) and isinstance(value, nn.Module):
            value = getattr(value.eval, "__self__", None)
        if isinstance(value, nn.Module) and value in registered:
            found.setdefault(value, where)
        elif not isinstance(value, _PLAIN) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(_held(where, value, seen))
    return found


def _attributes(where: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds but its registered parts."""
    for key, value in vars(module).items():
        if key not in ("_modules", "_parameters", "_buffers"):
            yield f"{where}.{key}" if where else key, value


def _methods(where: str, kind: type, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """What the classes of an object hold, the libraries' apart."""
    for owner in kind.__mro__:
        if _is_library(owner) or id(owner) in seen:
            continue
        seen.add(id(owner))
        for key, value in vars(owner).items():
            if key not in _CONSTRUCTORS:
                yield f"{owner.__name__}.{key}", value


def _held(where: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """What an object refers to, and how that is written."""
    if isinstance(value, dict):
        yield from ((f"a key of {where}", key) for key in list(value) if not isinstance(key, _PLAIN))
        held = [(key, item) for key, item in value.items() if not isinstance(item, _PLAIN)]
        yield from ((f"{where}[{key!r}]", item) for key, item in held)
    elif isinstance(value, _SEQUENCES):
        held = [(i, item) for i, item in enumerate(value) if not isinstance(item, _PLAIN)]
        yield from ((f"{where}[{i}]", item) for i, item in held)
    elif isinstance(value, nn.Module):
        yield from _attributes(where, value)
        yield from _methods(where, type(value), seen)
        for key, part in value._modules.items():
            yield f"{where}.{key}, in a module that is not registered", part
    elif isinstance(value, MethodType):
        yield f"{where}, a bound method", value.__self__
        yield where, value.__func__
    elif isinstance(value, functools.partial):
        yield f"the function of the partial {where}", value.func
        yield f"the arguments of the partial {where}", value.args
        yield f"the arguments of the partial {where}", value.keywords
    elif isinstance(value, FunctionType):
        yield from _of_function(where, value)
    elif isinstance(value, staticmethod | classmethod):
        yield where, value.__func__
    elif isinstance(value, property):
        yield from ((where, function) for function in (value.fget, value.fset, value.fdel))
    elif isinstance(value, weakref.ref):
        yield f"{where}, a weak reference", value()
    elif isinstance(value, CellType):
        yield where, _content(value)
    elif not isinstance(value, type | torch.optim.Optimizer):
        yield from _of_object(where, value, seen)


def _of_object(where: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The attributes and slots of an object, and the methods of its class."""
    held = [
        *(vars(value).items() if hasattr(value, "__dict__") else ()),
        *(
            (key, getattr(value, key, None))
            for owner in type(value).__mro__
            for key, slot in vars(owner).items()
            if isinstance(slot, MemberDescriptorType) and not _is_library(owner)
        ),
    ]
    yield from ((f"{where}.{key}", item) for key, item in held if not isinstance(item, _PLAIN))
    yield from _methods(where, type(value), seen)


def _of_function(where: str, function: FunctionType) -> Iterator[tuple[str, Any]]:
    if _is_library(function):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield f"{where}, which closes over {name}", _content(cell)
    yield f"the defaults of {where}", function.__defaults__
    yield f"the defaults of {where}", function.__kwdefaults__
    yield where, vars(function)
    for name in _globals_of(function.__code__):
        if name in function.__globals__:
            yield f"{where}, which uses the global {name}", function.__globals__[name]


def _globals_of(code: CodeType) -> Iterator[str]:
    """Names of the globals that some code reads, also in functions that it defines."""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_library(code: type | FunctionType) -> bool:
    # A wrapper says that it is of the module of what it wraps.
    module = code.__globals__.get("__name__") if isinstance(code, FunctionType) else code.__module__
    return str(module).partition(".")[0] in _LIBRARIES
