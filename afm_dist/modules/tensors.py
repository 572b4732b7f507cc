"""The tensors of a model by name, each once: out of a model, and into one.

A model may hold one tensor under several names: tied weights, or a module under two names. A file
holds it under the first of them, and a model that ties the same names gets it back tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from afm_dist.errors import OptionError


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name the tensors of a model's ``state_dict``, each by the first of its names.

    Raises:
        OptionError: two tensors that share memory without being one, or a state that is no tensor.
    """
    state, first = _state(model), _first_names(model)
    tensors: dict[str, Tensor] = {}
    places: dict[int, str] = {}
    for name in dict.fromkeys(first.values()):
        tensor = state[name]
        if not isinstance(tensor, Tensor):
            raise OptionError(
                f"the model's state {name} is a {type(tensor).__name__}, and a checkpoint holds tensors; "
                "keep it in a buffer"
            )
        if tensor.numel() and not tensor.is_meta:
            other = places.setdefault(tensor.data_ptr(), name)
            if other != name:
                raise OptionError(
                    f"{other} and {name} share memory without being one parameter (tied weights), so a file "
                    "cannot say that they belong together; make them one, or give one of them a .clone()"
                )
        tensors[name] = tensor.detach()
    return tensors


def load_tensors_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let a model's parameters and buffers be these, on the devices where its own were.

    What is tied in the model is tied afterwards; what is frozen is frozen.

    Raises:
        RuntimeError: names the tensors that are missing, too many, or of another shape.
    """
    state, first = _state(model), _first_names(model)
    for name in tensors:
        if first.get(name, name) != name:
            raise RuntimeError(f"{name} is tied to {first[name]} in the model, but not in the checkpoint")
    complete = dict(tensors)
    for name, source in first.items():
        if source in tensors:
            own = state[name].device
            complete[name] = tensors[source] if own.type == "meta" else tensors[source].to(own)
    model.load_state_dict(complete, strict=True, assign=True)
    for name, source in first.items():
        if name != source:
            _tie_(model, name, source)


def _state(model: nn.Module) -> dict[str, Any]:
    return dict(model.state_dict(keep_vars=True))


def _first_names(model: nn.Module) -> dict[str, str]:
    """For every name in the ``state_dict`` the first name of the same tensor."""
    names: dict[int, str] = {}
    return {name: names.setdefault(id(tensor), name) for name, tensor in _state(model).items()}


def _tie_(model: nn.Module, name: str, source: str) -> None:
    owner, _, key = name.rpartition(".")
    source_owner, _, source_key = source.rpartition(".")
    parameter = model.get_submodule(source_owner)._parameters.get(source_key)
    if parameter is not None:
        model.get_submodule(owner)._parameters[key] = parameter
