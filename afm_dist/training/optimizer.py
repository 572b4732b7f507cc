"""One optimizer for both kinds of weights: Adam for dense ones, a lazy rule for tables.

A table's gradient is sparse: it names the rows that occurred. Gradient, L2 and state touch only
those rows, so a step costs the same whatever the size of the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from afm_dist.training.gradients import sum_rows
from afm_dist.training.recipe import TableOptimizer
from afm_dist.training.tables import RULES


def sparse_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """List the weights whose gradients are sparse: ``weight`` of modules with ``sparse = True``."""
    return {
        f"{name}.weight".removeprefix("."): module.weight
        for name, module in model.named_modules()
        if getattr(module, "sparse", False) and isinstance(getattr(module, "weight", None), nn.Parameter)
    }


class SplitOptimizer:
    """Adam over a model's dense weights, a lazy rule over its tables.

    L2 is r·‖W‖² added to the loss (its gradient 2rW is what the optimizers see), for weights with
    two dimensions or more; of a table only for the rows of the batch.

    Args:
        model: Its parameters are updated.
        learning_rate: Of the dense weights.
        l2: r of the dense weights.
        tables: How tables are updated.
        table_learning_rate: Of the tables; default: as the dense weights.
        table_l2: r of the tables; default: as the dense weights.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        l2: float,
        *,
        tables: TableOptimizer = "adam",
        table_learning_rate: float | None = None,
        table_l2: float | None = None,
    ) -> None:
        self._rule = RULES[tables]
        self._rate = learning_rate
        self._table_rate = learning_rate if table_learning_rate is None else table_learning_rate
        self._table_l2 = l2 if table_l2 is None else table_l2
        self._scale = 1.0
        self._tables = sparse_weights(model)
        self._table_state: dict[str, dict[str, Tensor]] = {}
        dense = {name: parameter for name, parameter in model.named_parameters() if name not in self._tables}
        decayed = {name: parameter for name, parameter in dense.items() if parameter.ndim >= 2}
        others = {name: parameter for name, parameter in dense.items() if parameter.ndim < 2}
        self._dense = {**decayed, **others}  # in the order of the groups
        groups: list[dict[str, Any]] = [
            {"params": list(decayed.values()), "weight_decay": 2 * l2},
            {"params": list(others.values())},
        ]
        self._adam = Adam(groups, lr=learning_rate, fused=True) if dense else None

    def scale_learning_rates(self, scale: float) -> None:
        """Use the learning rates given at first, times ``scale``, from now on."""
        self._scale = scale
        if self._adam is not None:
            for group in self._adam.param_groups:
                group["lr"] = self._rate * scale

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in (*self._dense.values(), *self._tables.values()):
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights from their gradients."""
        for name, weight in self._tables.items():
            if weight.grad is None:
                continue
            gradient = sum_rows(weight.grad)
            state = self._table_state.get(name)
            if state is None:
                state = self._table_state[name] = self._rule.new_state(weight)
            rate = self._table_rate * self._scale
            rows, values = gradient._indices()[0], gradient._values()
            self._rule.update(weight, state, rows, values, rate, self._table_l2)
        if self._adam is not None:
            self._adam.step()

    def forget(self, names: Iterator[str] | list[str]) -> None:
        """Begin anew with the state of some tables."""
        for name in names:
            self._table_state.pop(name, None)

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's state as named tensors: ``<parameter>/<quantity>``."""
        return {
            f"{name}/{quantity}": value for name, state in self._states() for quantity, value in state.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` gave.

        Raises:
            KeyError: a tensor of no parameter of this model.
        """
        states: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, quantity = key.rpartition("/")
            states.setdefault(name, {})[quantity] = value
        for name, weight in self._tables.items():
            if name in states:
                self._table_state[name] = {
                    quantity: value.to(weight.device) for quantity, value in states.pop(name).items()
                }
        for name, parameter in self._dense.items():
            if name in states:
                assert self._adam is not None
                self._adam.state[parameter] = {
                    quantity: value.to(parameter.device) for quantity, value in states.pop(name).items()
                }
        if states:
            raise KeyError(f"optimizer state of unknown parameters: {', '.join(states)}")

    @property
    def steps(self) -> int:
        """How many updates the parameters have had."""
        return max((int(state["step"]) for _, state in self._states()), default=0)

    def _states(self) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Return the states there are: of a weight that never had a gradient there is none."""
        if self._adam is not None:
            for name, parameter in self._dense.items():
                if parameter in self._adam.state:
                    yield name, self._adam.state[parameter]
        yield from self._table_state.items()
