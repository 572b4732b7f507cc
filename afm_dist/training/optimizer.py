"""One optimizer for both kinds of weights: Adam for dense ones, lazy Adam for tables.

A table's gradient is sparse: it names the rows that occurred. Gradient, L2 and moments touch
only those rows, so a step costs the same whatever the size of the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, Optimizer, SparseAdam


def sparse_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights whose gradients are sparse: ``weight`` of modules with ``sparse = True``."""
    return {
        f"{name}.weight".removeprefix("."): module.weight
        for name, module in model.named_modules()
        if getattr(module, "sparse", False) and isinstance(getattr(module, "weight", None), nn.Parameter)
    }


class LazyAdam:
    """Adam over a model, sparse where its gradients are.

    L2 is r·‖W‖² added to the loss (its gradient 2rW is what Adam sees), for weights with two
    dimensions or more; of a table only for the rows of the batch.

    Args:
        model: Its parameters are updated.
        learning_rate: Of both parts.
        l2: r.
    """

    def __init__(self, model: nn.Module, learning_rate: float, l2: float) -> None:
        self._l2 = l2
        self._sparse = sparse_weights(model)
        dense = {name: parameter for name, parameter in model.named_parameters() if name not in self._sparse}
        decayed = [parameter for parameter in dense.values() if parameter.ndim >= 2]
        others = [parameter for parameter in dense.values() if parameter.ndim < 2]
        names = sorted(dense, key=lambda name: dense[name].ndim < 2)  # in the order of the groups
        self._parts: list[tuple[Optimizer, list[str]]] = []
        if dense:
            groups: list[dict[str, Any]] = []
            if decayed:
                groups.append({"params": decayed, "weight_decay": 2 * l2})
            if others:
                groups.append({"params": others})
            adam = Adam(groups, lr=learning_rate, fused=True)
            self._parts.append((adam, names))
        if self._sparse:
            lazy = SparseAdam(list(self._sparse.values()), lr=learning_rate)
            self._parts.append((lazy, list(self._sparse)))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer, _ in self._parts:
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights from their gradients."""
        # Sparse tensors here are valid by construction; torch warns unless told whether to check.
        with torch.sparse.check_sparse_tensor_invariants(False):
            for parameter in self._sparse.values():
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = self._with_l2(parameter, parameter.grad)
            for optimizer, _ in self._parts:
                optimizer.step()

    def _with_l2(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        rows, values = _sum_per_row(gradient)
        if self._l2 != 0:
            values = values.add(parameter[rows], alpha=2 * self._l2)
        return torch.sparse_coo_tensor(rows[None], values, gradient.shape, is_coalesced=True)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state as named tensors: ``<parameter>/<quantity>``."""
        tensors: dict[str, Tensor] = {}
        for parameter, name, optimizer in self._parameters():
            for key, value in optimizer.state[parameter].items():
                tensors[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` gave.

        Raises:
            KeyError: a tensor of no parameter of this model.
        """
        state: dict[str, dict[str, Tensor | int]] = {}
        for key, value in tensors.items():
            name, _, quantity = key.rpartition("/")
            state.setdefault(name, {})[quantity] = value
        for parameter, name, optimizer in self._parameters():
            values = state.pop(name, {})
            if values and isinstance(optimizer, SparseAdam):
                values["step"] = int(values["step"])
            optimizer.state[parameter] = values
        if state:
            raise KeyError(f"optimizer state of unknown parameters: {', '.join(state)}")

    def _parameters(self) -> Iterator[tuple[Tensor, str, Optimizer]]:
        for optimizer, names in self._parts:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for parameter, name in zip(parameters, names, strict=True):
                yield parameter, name, optimizer


def _sum_per_row(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and values of ``gradient.coalesce()``, 3 times faster: occurrences are added on all threads.

    Those of a row are added in the order of the batch, whatever the threads.
    """
    if gradient.is_coalesced():
        return gradient.indices()[0], gradient.values()
    occurrences, order = gradient._indices()[0].sort(stable=True)
    rows, counts = occurrences.unique_consecutive(return_counts=True)
    return rows, functional.embedding_bag(order, gradient._values(), counts.cumsum(0) - counts, mode="sum")
