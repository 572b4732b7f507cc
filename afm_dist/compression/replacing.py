"""Putting a module in the place of another, and back again when something fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def replace_module(model: nn.Module, original: nn.Module, replacement: nn.Module) -> None:
    """Replace a module under all names that a model has for it."""
    for owner in list(model.modules()):
        for child, module in owner._modules.items():
            if module is original:
                owner._modules[child] = replacement


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Give every module back the children it had before, after an error."""
    before = [(module, dict(module._modules)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, children in before:
            module._modules.clear()
            module._modules.update(children)
        raise
