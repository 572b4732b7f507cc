"""One copy of a model per node: its tensors as plain arrays in Ray's object store.

A ``torch.Tensor`` put into the object store is copied by every reader; a NumPy array is mapped.
So the model travels as a skeleton (pickled in memory, never on disk) that refers to its tensors
by number, and workers read them in place.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import pickle
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.cloudpickle import CloudPickler
from torch import Tensor, nn

from afm_dist.errors import OptionError

# NumPy has no bfloat16: such tensors travel as their bits.
_BITS = {torch.bfloat16: torch.uint16}
# Attributes that say nothing of what a module computes in eval mode, or are looked at elsewhere.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PARSING = threading.Lock()


@dataclass(frozen=True)
class SharedModel:
    """A model in the object store.

    Attributes:
        skeleton: The model without its tensors.
        tensors: References to the arrays, in the order in which the skeleton numbers them.
    """

    skeleton: bytes
    tensors: Sequence[ray.ObjectRef[Any]]


class _Pickler(CloudPickler):
    """Replaces every tensor by (number, dtype, whether it is a parameter, requires_grad)."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)  # type: ignore[no-untyped-call]
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> tuple[int, torch.dtype, bool, bool] | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        number = self._numbers[id(value)]
        return number, value.dtype, isinstance(value, nn.Parameter), value.requires_grad


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, arrays: Sequence[np.ndarray]) -> None:
        super().__init__(file)
        self._arrays = arrays
        self._seen: dict[int, Tensor] = {}

    def persistent_load(self, key: tuple[int, torch.dtype, bool, bool]) -> Tensor:
        number, dtype, is_parameter, requires_grad = key
        if number not in self._seen:
            with warnings.catch_warnings():
                # The object store's memory is read-only, and so is what is done with it.
                warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
                tensor = torch.from_numpy(self._arrays[number])
            if dtype in _BITS:
                tensor = tensor.view(dtype)
            self._seen[number] = nn.Parameter(tensor, requires_grad) if is_parameter else tensor
        return self._seen[number]


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(_BITS[tensor.dtype]) if tensor.dtype in _BITS else tensor).numpy()


def share(model: nn.Module) -> SharedModel:
    """Put a model into the object store of the connected Ray.

    Raises:
        OptionError: the model holds something that cannot be sent to another process.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(model)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise OptionError(
            f"the model cannot be sent to workers: {error}; keep locks, open files and the like out of it"
        ) from error
    return SharedModel(file.getvalue(), [ray.put(_array(tensor)) for tensor in pickler.tensors])


def load_shared(shared: SharedModel) -> nn.Module:
    """Return the model, its tensors read-only views of the object store, in eval mode."""
    arrays = ray.get(list(shared.tensors))
    model: nn.Module = _Unpickler(io.BytesIO(shared.skeleton), arrays).load()
    return model.eval()


def model_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def model_digest(model: nn.Module) -> str:
    """SHA-256 of a model: its structure as printed, the source of its classes, the plain values that
    its modules hold as attributes, and the names, shapes, types and bits of its tensors.
    """
    digest = hashlib.sha256(str(model).encode())
    for kind in {type(module): None for module in model.modules()}:
        digest.update(source_of(kind).encode())
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}
        values = [(key, value) for key, value in sorted(plain.items()) if _is_plain(value)]
        digest.update(f"{name}{type(module).__module__}.{type(module).__qualname__}{values}".encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(_array(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def source_of(code: Any) -> str:
    """Return the source of a class, a function, or an instance's class; empty where there is none.

    What is pickled by its name alone may be another one tomorrow. PyTorch's own is left out.
    """
    if not isinstance(code, type) and not inspect.isroutine(code):
        code = type(code)
    if code.__module__.partition(".")[0] == "torch":
        return ""
    try:
        # Parsing in two threads at once is an error in CPython 3.11.
        with _PARSING:
            return inspect.getsource(code)
    except (OSError, TypeError):
        return ""


def _is_plain(value: Any) -> bool:
    """Return whether a value is printed the same in every process."""
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return value is None or type(value) in (bool, int, float, str, bytes, torch.dtype)
