"""Running a model that somebody else goes on using: in eval mode, and without a trace."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque, tuple)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Within this context a model is in eval mode; after it, also after an error, it is as it was before.

    That is: the mode of each of its modules, its buffers, and the attributes of its modules (what a
    forward caches, counts or collects). What a forward builds when it is called for the first time, modules
    and parameters, stays, and then so do attributes and buffers: they may belong to it.

    Args:
        model: Any module.

    Yields:
        A context for each forward: random numbers that are drawn in it are missed by nobody outside it, and
        those of the next forward follow on them.

    Notes:
        Buffers, and tensors that are attributes, are in memory once more meanwhile.
    """
    before = _Snapshot(model)
    modes = {module: module.training for module in model.modules()}
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    model.eval()
    try:
        # What is kept of a forward in inference mode could never be trained with.
        with torch.inference_mode(False):
            yield _RandomNumbers(devices).apart
    finally:
        # A train() of one's own may do more than set the flag, and may set it otherwise.
        for module, training in modes.items():
            if module.training != training:
                module.train(training)
        before.restore()
        for module, training in modes.items():
            module.training = training


class _RandomNumbers:
    """The random numbers of a model's forwards, apart from those of the program around it."""

    def __init__(self, devices: list[torch.device]) -> None:
        self._devices = devices
        self._own = self._states()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within this context they go on where they were at the end of the one before."""
        outside = self._states()
        self._set(self._own)
        try:
            yield
        finally:
            self._own = self._states()
            self._set(outside)

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


class _Snapshot:
    """Buffers and attributes of a model's modules."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parts = _parts(model)
        self._attributes = [(module, _attributes(module)) for module in model.modules()]
        self._buffers = [
            (module, dict(module._buffers), set(module._non_persistent_buffers_set))
            for module in model.modules()
        ]
        self._contents: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._note([value for _, values in self._attributes for value in values.values()])
        self._note([value for _, buffers, _ in self._buffers for value in buffers.values()])

    def _note(self, values: list[Any]) -> None:
        """Copy tensors and containers, also those in containers."""
        seen: set[int] = set()
        while values:
            value = values.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Tensor):
                # Nothing here can change an inference tensor.
                if not isinstance(value, nn.Parameter) and not value.is_inference():
                    self._tensors.append((value, value._version, value.detach().clone()))
            elif type(value) in _CONTAINERS:
                if not isinstance(value, tuple):
                    self._contents.append((value, value.copy()))
                values.extend(value.values() if isinstance(value, dict) else value)

    def restore(self) -> None:
        """Write back what has changed, unless a forward has built parts of the model."""
        if [_identity(part) for part in self._parts] != [_identity(part) for part in _parts(self._model)]:
            return
        for module, values in self._attributes:
            for key in _attributes(module).keys() - values.keys():
                del module.__dict__[key]
            module.__dict__.update(values)
        for module, buffers, not_stored in self._buffers:
            module._buffers.clear()
            module._buffers.update(buffers)
            module._non_persistent_buffers_set.clear()
            module._non_persistent_buffers_set.update(not_stored)
        for container, content in self._contents:
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(content)
        with torch.no_grad():
            for tensor, version, value in self._tensors:
                if tensor.shape != value.shape:
                    tensor.data = value
                elif tensor._version != version:
                    tensor.copy_(value)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """List what a module has besides what every module has."""
    return {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}


def _parts(model: nn.Module) -> list[tuple[nn.Module, str, Any, type]]:
    """The modules and parameters of a model: owner, name, the part and its type."""
    return [
        (owner, name, part, type(part))
        for owner in model.modules()
        for name, part in [*owner._modules.items(), *owner._parameters.items()]
    ]


def _identity(part: tuple[nn.Module, str, Any, type]) -> tuple[int, str, int, type]:
    owner, name, value, kind = part
    return id(owner), name, id(value), kind
