from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, SparseAdam

from afm_dist.models import build_model
from afm_dist.tables.fused import FusedEmbedding
from afm_dist.training.optimizer import SplitOptimizer, sparse_weights
from tests.small_dataset import FIELDS

RATE = 0.01


def deepfm() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (8, 5), "dropout": 0.0})
    nn.init.normal_(model.linear.weight)
    return model


def batch(step: int, rows: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Ids up to 20 of 30 and 5 of 7: some rows of the tables never occur."""
    generator = torch.Generator().manual_seed(step)
    ids = [torch.randint(0, size, (rows,), generator=generator) for size in (20, 5)]
    numeric = torch.randn(rows, 1, generator=generator)
    return torch.stack(ids, 1), numeric, torch.randint(0, 2, (rows,), generator=generator).float()


def loss(model: nn.Module, step: int) -> Tensor:
    ids, numeric, labels = batch(step)
    return nn.functional.binary_cross_entropy_with_logits(model(ids, numeric), labels)


def train(model: nn.Module, optimizer, steps: int = 6, first: int = 0) -> dict[str, Tensor]:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Both:
    """torch's own optimizers, side by side."""

    def __init__(self, model: nn.Module, weight_decay: float = 0.0) -> None:
        tables = [model.embedding.weight, model.linear.weight]
        dense = [p for p in model.parameters() if all(p is not table for table in tables)]
        matrices = [p for p in dense if p.ndim >= 2]
        vectors = [p for p in dense if p.ndim < 2]
        self.parts = [
            SparseAdam(tables, lr=RATE),
            Adam([{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}], lr=RATE),
        ]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()


def test_without_l2_it_is_sparse_adam_on_tables_and_adam_elsewhere() -> None:
    ours, theirs = deepfm(), deepfm()

    states = train(ours, SplitOptimizer(ours, RATE, 0.0)), train(theirs, Both(theirs))

    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_l2_is_the_gradient_of_r_times_the_squared_norm() -> None:
    r = 0.05

    class Penalised(Both):
        """The same penalty through autograd: on all matrices, of tables on the rows of the batch."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            self.model = model

        def step(self) -> None:
            tables = {"embedding.weight", "linear.weight"}
            for name, parameter in self.model.named_parameters():
                if name in tables:
                    gradient = parameter.grad.coalesce()
                    rows = gradient.indices()
                    values = gradient.values() + 2 * r * parameter.detach()[rows[0]]
                    parameter.grad = torch.sparse_coo_tensor(rows, values, gradient.shape)
                elif parameter.ndim >= 2:
                    penalty = r * parameter.square().sum()
                    parameter.grad += torch.autograd.grad(penalty, parameter)[0]
            super().step()

    ours, theirs = deepfm(), deepfm()

    states = train(ours, SplitOptimizer(ours, RATE, r)), train(theirs, Penalised(theirs))

    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_rows_that_do_not_occur_do_not_change(l2: float) -> None:
    model = deepfm()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    after = train(model, SplitOptimizer(model, RATE, l2))

    for table in ("embedding.weight", "linear.weight"):
        changed = (after[table] != before[table]).any(1)
        occurring = torch.zeros(37, dtype=torch.bool)
        for step in range(6):
            ids = batch(step)[0]
            occurring[ids[:, 0]] = True
            occurring[ids[:, 1] + 30] = True
        assert not changed[~occurring].any()
        assert changed[occurring].all()


def test_biases_are_not_decayed() -> None:
    model = nn.Linear(3, 2)
    optimizer = SplitOptimizer(model, RATE, 0.1)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()

    model.weight.grad, model.bias.grad = torch.zeros(2, 3), torch.zeros(2)
    optimizer.step()

    assert torch.equal(model.bias, bias)
    assert (model.weight.detach().abs() < weight.abs()).all()


def test_a_row_that_occurs_often_in_a_batch_is_updated_once_with_the_sum() -> None:
    torch.manual_seed(0)
    tables = [FusedEmbedding(["x"], [5], 3), FusedEmbedding(["x"], [5], 3)]
    tables[1].load_state_dict(tables[0].state_dict())
    optimizers = (
        SplitOptimizer(nn.ModuleList(tables[:1]), RATE, 0.0),
        SparseAdam(tables[1].parameters(), lr=RATE),
    )

    for table, optimizer in zip(tables, optimizers, strict=True):
        table(torch.tensor([[2], [2], [4], [2]]))[1].square().sum().backward()
        optimizer.step()

    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-6, atol=1e-7)


def test_the_state_can_be_taken_over() -> None:
    whole, halves = deepfm(), deepfm()
    expected = train(whole, SplitOptimizer(whole, RATE, 1e-3))

    first = SplitOptimizer(halves, RATE, 1e-3)
    train(halves, first, steps=3)
    second = SplitOptimizer(halves, RATE, 1e-3)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    actual = train(halves, second, steps=3, first=3)

    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_state_is_named_after_the_parameters_it_belongs_to() -> None:
    model = deepfm()
    optimizer = SplitOptimizer(model, RATE, 1e-3)
    train(model, optimizer, steps=1)

    averages = {k.removesuffix("/exp_avg"): v for k, v in optimizer.state().items() if k.endswith("/exp_avg")}

    assert {name: average.shape for name, average in averages.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }


def test_the_state_of_another_model_is_refused_by_name() -> None:
    optimizer = SplitOptimizer(nn.Linear(2, 2), RATE, 0.0)

    with pytest.raises(KeyError, match=r"tower\.weight"):
        optimizer.load_state({"tower.weight/step": torch.tensor(1.0)})


def test_tables_are_found_by_their_sparse_gradients() -> None:
    model = nn.ModuleDict(
        {
            "fused": FusedEmbedding(["x"], [5], 3),
            "dense": nn.Embedding(4, 2),
            "sparse": nn.Embedding(4, 2, sparse=True),
            "linear": nn.Linear(2, 2),
        }
    )

    assert list(sparse_weights(model)) == ["fused.weight", "sparse.weight"]


def test_a_table_that_is_the_whole_model_is_trained_once() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = SplitOptimizer(table, RATE, 0.0)

    table(torch.tensor([1])).sum().backward()
    optimizer.step()

    torch.testing.assert_close(table.weight.detach()[1], before[1] - RATE, rtol=0, atol=1e-6)
    assert list(optimizer.state()) == ["weight/step", "weight/exp_avg", "weight/exp_avg_sq"]


def test_a_scaled_learning_rate_is_that_of_both_kinds_of_weights() -> None:
    models = deepfm(), deepfm()
    scaled, lower = SplitOptimizer(models[0], 0.02, 0.0), SplitOptimizer(models[1], 0.005, 0.0)
    scaled.scale_learning_rates(0.25)

    for model, optimizer in zip(models, (scaled, lower), strict=True):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        for table in (model.embedding.weight, model.linear.weight):
            table.grad = table.grad.to_sparse(1)
        optimizer.step()

    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_tables_have_a_rate_and_an_l2_of_their_own() -> None:
    models = [deepfm() for _ in range(3)]
    optimizers = [
        SplitOptimizer(models[0], 0.01, 0.1, table_learning_rate=0.02, table_l2=0.0),
        SplitOptimizer(models[1], 0.01, 0.1),
        SplitOptimizer(models[2], 0.02, 0.0),
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        for table in (model.embedding.weight, model.linear.weight):
            table.grad = table.grad.to_sparse(1)
        optimizer.step()

    own, dense, tables = (model.state_dict() for model in models)
    for name, value in own.items():
        other = tables if name in ("embedding.weight", "linear.weight") else dense
        assert torch.equal(value, other[name]), name
