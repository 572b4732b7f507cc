"""Which modules of a model can be compressed, by what, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from afm_dist.compression.fused import FusedHandler
from afm_dist.compression.handler import ALREADY_COMPRESSED, Handler
from afm_dist.compression.linear import LinearHandler
from afm_dist.compression.references import references
from afm_dist.compression.tables import EmbeddingBagHandler, EmbeddingHandler
from afm_dist.embedding import FusedEmbedding

_HANDLERS: dict[type[nn.Module], Handler[Any]] = {
    nn.Linear: LinearHandler(),
    nn.Embedding: EmbeddingHandler(),
    nn.EmbeddingBag: EmbeddingBagHandler(),
    FusedEmbedding: FusedHandler(),
}
_Holders = dict[int, list[tuple[nn.Module, str]]]

# Their fused computations take the weights of their parts, which are then never called.
_CLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def register_handler(module_type: type[nn.Module], handler: Handler[Any]) -> None:
    """Say how a type of module is compressed.

    Args:
        module_type: Exactly this type; a subclass may compute something else.
        handler: Of all modules of this type.
    """
    _HANDLERS[module_type] = handler


def handler_of(module: nn.Module) -> Handler[Any]:
    """The handler of a module without a ``refusal``."""
    return _HANDLERS[type(module)]


def compressible(model: nn.Module) -> list[str]:
    """Names of the modules that can be compressed, in the order of the model."""
    return [name for name, reason in refusals(model).items() if reason is None]


def refusals(model: nn.Module) -> dict[str, str | None]:
    """For each module of a model why it cannot be compressed; None for those that can."""
    holders, elsewhere = _holders(model), references(model)
    return {name: _refusal(model, name, module, holders, elsewhere) for name, module in model.named_modules()}


def refusal(model: nn.Module, name: str) -> str | None:
    """Why a module cannot be compressed, to be read behind its name; None if it can."""
    return _refusal(model, name, model.get_submodule(name), _holders(model), references(model))


def irreplaceable(model: nn.Module, name: str) -> str | None:
    """Why a module cannot be replaced, whatever its type, to be read behind its name; None if it can."""
    module = model.get_submodule(name)
    return _hooked(module) or _tied(module, _holders(model)) or _referenced(module, references(model))


def has_handler(module: nn.Module) -> bool:
    """Whether a module's type, or one it derives from, can be compressed in general."""
    return isinstance(module, tuple(_HANDLERS))


def _refusal(
    model: nn.Module,
    name: str,
    module: nn.Module,
    holders: _Holders,
    elsewhere: Mapping[nn.Module, str],
) -> str | None:
    if module is model:
        return "itself has no parent to replace it in; wrap it, for example in nn.Sequential"
    made = tuple(kind for handler in _HANDLERS.values() for kind in handler.makes)
    for owner_name, owner in _owners(model, name):
        if isinstance(owner, made):
            return f"is a part of {owner_name}, which {ALREADY_COMPRESSED}"
        if isinstance(owner, _CLOSED):
            whole = f"{owner_name or 'the model'}, a {type(owner).__name__}"
            return f"is a part of {whole}, which reads the weights of its parts without calling them"
    if isinstance(module, made):
        return ALREADY_COMPRESSED
    handler = _HANDLERS.get(type(module))
    if handler is None:
        kinds = ", ".join(kind.__name__ for kind in _HANDLERS)
        return f"is a {type(module).__name__}, which cannot be compressed (only {kinds} can)"
    return (
        handler.refusal(module) or _hooked(module) or _tied(module, holders) or _referenced(module, elsewhere)
    )


def _owners(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a module is a part of, from the model inwards."""
    parts = name.split(".")
    for depth in range(len(parts)):
        owner = ".".join(parts[:depth])
        yield owner, model.get_submodule(owner)


def _hooked(module: nn.Module) -> str | None:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    if not any(hooks):
        return None
    return (
        "has hooks, which a replacement would lose (some of them, like weight_norm's and pruning's, make "
        "the weights); remove them first"
    )


def _referenced(module: nn.Module, elsewhere: Mapping[nn.Module, str]) -> str | None:
    if module not in elsewhere:
        return None
    return (
        f"is also reached by {elsewhere[module]}, which would go on with the original when a replacement "
        "takes its place among the registered modules; hold modules as attributes, or in nn.ModuleList or "
        "nn.ModuleDict, and reach them by those"
    )


def _holders(model: nn.Module) -> _Holders:
    """By where a parameter lies, who holds it and under which name."""
    holders: _Holders = {}
    for owner_name, owner in model.named_modules():
        for name, parameter in owner.named_parameters(owner_name, recurse=False):
            holders.setdefault(_memory(parameter), []).append((owner, name))
    return holders


def _tied(module: nn.Module, holders: _Holders) -> str | None:
    """Whether another module holds a parameter of this one, or one in the same memory."""
    family = set(module.modules())
    for key, parameter in module.named_parameters():
        for owner, name in holders[_memory(parameter)]:
            if owner not in family:
                return (
                    f"has its {key} tied to {name}, which a replacement would silently untie; untie them "
                    "first, or leave it out"
                )
    return None


def _memory(parameter: Tensor) -> int:
    """Where a tensor lies; transposed it lies at the same place."""
    if is_lazy(parameter) or parameter.is_meta or not parameter.numel():
        return id(parameter)
    return parameter.data_ptr()
