"""One optimizer for both kinds of weights: Adam for dense ones, lazy Adam for tables.

A table's gradient is sparse: it names the rows that occurred. Gradient, L2 and moments touch
only those rows, so a step costs the same whatever the size of the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, SparseAdam

from afm_dist.training.gradients import sum_rows


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
                    parameter.grad = sum_rows(parameter.grad)
                    if self._l2 != 0:
                        rows, values = parameter.grad.indices()[0], parameter.grad.values()
                        values.add_(parameter[rows], alpha=2 * self._l2)
            for optimizer, _ in self._parts:
                optimizer.step()

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
        state: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, quantity = key.rpartition("/")
            state.setdefault(name, {})[quantity] = value
        for parameter, name, optimizer in self._parameters():
            values: dict[str, Any] = {
                quantity: value.to(parameter.device) for quantity, value in state.pop(name, {}).items()
            }
            if values and isinstance(optimizer, SparseAdam):
                values["step"] = int(values["step"])
            optimizer.state[parameter] = values
        if state:
            raise KeyError(f"optimizer state of unknown parameters: {', '.join(state)}")

    @property
    def steps(self) -> int:
        """How many updates the parameters have had."""
        states = [optimizer.state[parameter] for parameter, _, optimizer in self._parameters()]
        return max((int(state["step"]) for state in states if state), default=0)

    def _parameters(self) -> Iterator[tuple[Tensor, str, Optimizer]]:
        for optimizer, names in self._parts:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for parameter, name in zip(parameters, names, strict=True):
                yield parameter, name, optimizer
