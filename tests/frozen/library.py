"""The parts of a record that use the library on a model of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

import afm_dist
from afm_dist.methods.low_rank.config import Activation
from tests.frozen.bench import Bench

ROWS, BATCHES, V, T = 300, 4, 120, 6


def numbers(*shape: int, seed: int) -> Tensor:
    """Normal, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(model: nn.Module) -> nn.Module:
    """Give every parameter seeded numbers; of a table, each column smaller than the last."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * numbers(*parameter.shape, seed=i) + 0.1)
            if parameter.shape == (V, T):
                parameter.mul_(0.6 ** torch.arange(T))
    return model.eval()


class Layers(nn.Module):
    """Linear layers, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 18, bias=False), nn.Tanh())
        self.head = nn.Linear(18, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).squeeze(1)


class Table(nn.Module):
    """One table for two fields and a list of ids that is padded."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(V, T, padding_idx=padding)
        self.head = nn.Linear(3 * T, 1)

    def forward(self, ids: Tensor) -> Tensor:
        parts = [self.table(ids[:, 0]), self.table(ids[:, 1]), self.table(ids[:, 2:]).sum(1)]
        return self.head(torch.cat(parts, 1)).squeeze(1)


class Bag(nn.Module):
    """Bags of ids."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(V, T, mode=mode, padding_idx=0)
        self.head = nn.Linear(T, 1)
        self.weighted = mode == "sum"

    def forward(self, ids: Tensor) -> Tensor:
        weights = 0.5 + (ids % 3).float() if self.weighted else None
        return self.head(self.bag(ids, per_sample_weights=weights)).squeeze(1)


def linear_batches() -> list[Tensor]:
    """Correlated inputs, far from zero."""
    mixed = numbers(10, 10, seed=90)
    return [numbers(ROWS, 10, seed=100 + i) @ mixed + 3 for i in range(BATCHES)]


def id_batches(width: int) -> list[Tensor]:
    """Ids of which the small ones are frequent."""
    drawn = [numbers(ROWS, width, seed=200 + i).abs().mul(V / 3).long() for i in range(BATCHES)]
    return [ids.clamp(max=V - 1) for ids in drawn]


def library(
    make: Callable[[], nn.Module],
    batches: Callable[[], Sequence[Tensor]],
    targets: Sequence[str],
    *,
    activations: Sequence[Any] = ("none",),
) -> Callable[[Bench], None]:
    """Moments, sensitivity, plans by rank and by energy, the model that follows, saved and loaded."""

    def part(bench: Bench) -> None:
        rows = list(batches())
        moments = afm_dist.collect_moments(fill(make()), rows, targets)
        sensitivities = afm_dist.output_sensitivity(
            fill(make()), rows, list(targets), forward=lambda model, batch: model(batch)
        )
        for name, item in moments.items():
            bench.note_json(f"moments {name} count", [item.count, item.weight])
            bench.note_tensor(f"moments {name} mean", item.mean)
            bench.note_tensor(f"moments {name} scatter", item.scatter)
            bench.note_tensor(f"sensitivity {name}", sensitivities[name])
        policies = {"rank": afm_dist.FixedRank(rank=3), "energy": afm_dist.KeptEnergy(share=0.9)}
        for how, policy in policies.items():
            for method in ("afm", "svd", "weighted"):
                for activation in activations:
                    name = f"{how} {method} {activation}"
                    plan = afm_dist.plan_ranks(moments, policy, method=method, activation=activation)
                    model = fill(make())
                    afm_dist.compress_(model, plan, moments, sensitivities)
                    _note_model(bench, name, make, model, plan, rows[0])

    return part


def _note_model(
    bench: Bench, name: str, make: Callable[[], nn.Module], model: nn.Module, plan: Any, batch: Tensor
) -> None:
    saved = bench.path(f"{bench.part}/{name}")
    afm_dist.save_pretrained(model, str(saved), plan=plan)
    loaded = afm_dist.from_pretrained(str(saved), model=make())
    bench.note_json(f"{name} plan", plan.to_json())
    for file in sorted(saved.iterdir()):
        bench.note_file(file, f"{name}/{file.name}")
    with torch.inference_mode():
        bench.note_tensor(f"{name} outputs", model(batch))
        bench.note_tensor(f"{name} outputs when loaded", loaded(batch))


LIBRARY: dict[str, Callable[[Bench], None]] = {
    "linear": library(Layers, linear_batches, ["body.0", "body.2"], activations=get_args(Activation)),
    "embedding": library(lambda: Table(None), lambda: id_batches(5), ["table"]),
    "embedding-padded": library(lambda: Table(0), lambda: id_batches(5), ["table"]),
    "bag-sum": library(lambda: Bag("sum"), lambda: id_batches(4), ["bag"]),
    "bag-mean": library(lambda: Bag("mean"), lambda: id_batches(4), ["bag"]),
}
