"""Which weights a round of training updates; all others are frozen.

A table has a row for every id, most of which occur a few times: an epoch more over the same rows
overfits them first (Zhang et al., "Towards understanding the overfitting phenomenon of deep
click-through rate prediction models", CIKM 2022). The dense weights see every row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn

from afm_dist.tables.parts import Store
from afm_dist.training.optimizer import sparse_weights
from afm_dist.training.recipe import Trained


def freeze_(model: nn.Module, trained: Trained) -> None:
    """Freeze the weights that a recipe does not train, in place.

    Args:
        model: Its tables are the weights with sparse gradients.
        trained: ``all``: nothing is frozen; ``dense``: the tables are; ``factors``: everything but
            ``factor_weights``. A model that was not compressed has none: there all dense weights are
            trained.

    Notes:
        A compressed model and its control are not restrained alike: projections are dense, so the
        embeddings of compressed tables still move where those of the control cannot; with ``factors`` the
        control's dense weights all move, those of the compressed model do not.
    """
    if trained == "all":
        return
    tables = {*sparse_weights(model), *_stored(model)}
    wanted = {name for name, _ in model.named_parameters() if name not in tables}
    if trained == "factors":
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        wanted = factor_weights(model) & trainable or wanted
    for name, parameter in model.named_parameters():
        if name not in wanted:
            parameter.requires_grad_(False)


def factor_weights(model: nn.Module) -> set[str]:
    """Name the dense weights that compression made; none in an uncompressed model.

    A compressed module says which of its weights they are (``factor_names``).

    Both factors of each linear layer with their biases, the projections and biases of the tables
    and of a first-order term that reads their codes, and the layers that a projection was folded into
    (paper eqs. 5, 10 and 12). The narrow tables themselves are not among them.
    """
    found: set[str] = set()
    for prefix, module in model.named_modules():
        names: Callable[[], Collection[str]] | None = getattr(module, "factor_names", None)
        if names is None:
            continue
        found |= {f"{prefix}.{name}" for name in names()}
        if getattr(module, "folded", False):
            found |= _reader(model, prefix)
    return {name.removeprefix(".") for name in found}


def _stored(model: nn.Module) -> set[str]:
    """Name what the rows of tables are stored in, other than as weights: codebooks."""
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, Store)
        for name, _ in module.named_parameters()
    }


def _reader(model: nn.Module, table: str) -> set[str]:
    """Find the weights of the layer that reads the codes of a folded table."""
    layer = getattr(model, "folds", {})[table]
    return {f"{layer}.{name}" for name, _ in model.get_submodule(layer).named_parameters()}
