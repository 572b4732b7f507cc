from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim import Adagrad, SparseAdam

from afm_dist.training.tables import RULES, LazyAdam, RowWiseAdagrad

RATE = 0.05


def gradient(step: int, width: int) -> tuple[Tensor, Tensor]:
    """Some of the rows 0 to 15 of 20, and their gradients."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.randperm(16, generator=generator)[:6].sort().values
    return rows, torch.randn(6, width, generator=generator)


def table(width: int) -> Tensor:
    return torch.randn(20, width, generator=torch.Generator().manual_seed(99))


def ours(rule, width: int, *, l2: float = 0.0, steps: int = 8) -> Tensor:
    weight = table(width)
    state = rule.new_state(weight)
    for step in range(steps):
        rule.update(weight, state, *gradient(step, width), RATE, l2)
    return weight


def torchs(optimizer_type, width: int, steps: int = 8, **options: float) -> Tensor:
    weight = torch.nn.Parameter(table(width))
    optimizer = optimizer_type([weight], lr=RATE, **options)
    for step in range(steps):
        rows, values = gradient(step, width)
        weight.grad = torch.sparse_coo_tensor(rows[None], values, weight.shape, check_invariants=True)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("width", [1, 3])
def test_lazy_adam_is_torch_s_sparse_adam(width: int) -> None:
    torch.testing.assert_close(ours(LazyAdam(), width), torchs(SparseAdam, width), rtol=1e-6, atol=1e-6)


def test_row_wise_adagrad_on_a_table_of_one_column_is_torch_s_adagrad() -> None:
    torch.testing.assert_close(ours(RowWiseAdagrad(), 1), torchs(Adagrad, 1), rtol=1e-6, atol=1e-7)


def test_row_wise_adagrad_follows_its_definition() -> None:
    weight, total = table(4).double(), torch.zeros(20, dtype=torch.float64)
    for step in range(8):
        rows, values = gradient(step, 4)
        for row, value in zip(rows.tolist(), values.double(), strict=True):
            total[row] += value.square().mean()
            weight[row] -= RATE * value / (total[row].sqrt() + 1e-10)

    torch.testing.assert_close(ours(RowWiseAdagrad(), 4).double(), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_l2_adds_its_gradient_on_the_rows_of_the_step(rule) -> None:
    l2, weight = 0.3, table(3)
    state = rule.new_state(weight)
    for step in range(8):
        rows, values = gradient(step, 3)
        rule.update(weight, state, rows, values + 2 * l2 * weight[rows], RATE, 0.0)

    torch.testing.assert_close(ours(rule, 3, l2=l2), weight)
    untouched = torch.arange(16, 20)
    assert torch.equal(ours(rule, 3, l2=l2)[untouched], table(3)[untouched])


def test_row_wise_adagrad_keeps_a_number_a_row() -> None:
    state = RowWiseAdagrad().new_state(table(7))

    assert {name: value.numel() for name, value in state.items()} == {"step": 1, "sum": 20}
