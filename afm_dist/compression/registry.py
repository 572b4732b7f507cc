"""Which types of modules can be compressed, and by what."""

from __future__ import annotations

from typing import Any

from torch import nn

from afm_dist.compression.fused import FusedHandler
from afm_dist.compression.handler import Handler
from afm_dist.compression.linear import LinearHandler
from afm_dist.compression.tables import EmbeddingHandler
from afm_dist.embedding import FusedEmbedding
from afm_dist.errors import OptionError

_HANDLERS: dict[type[nn.Module], Handler[Any]] = {
    nn.Linear: LinearHandler(),
    nn.Embedding: EmbeddingHandler(),
    FusedEmbedding: FusedHandler(),
}


def register_handler(module_type: type[nn.Module], handler: Handler[Any]) -> None:
    """Say how a type of module is compressed.

    Args:
        module_type: Exactly this type; a subclass may compute something else.
        handler: Of all modules of this type.
    """
    _HANDLERS[module_type] = handler


def compressible(module: nn.Module) -> bool:
    """Whether there is a handler for exactly this type of module."""
    return type(module) in _HANDLERS


def handler_of(name: str, module: nn.Module) -> Handler[Any]:
    """The handler of a module.

    Raises:
        OptionError: there is none.
    """
    if not compressible(module):
        kinds = ", ".join(kind.__name__ for kind in _HANDLERS)
        raise OptionError(
            f"{name} is a {type(module).__name__}, which cannot be compressed (only {kinds} can)"
        )
    return _HANDLERS[type(module)]
