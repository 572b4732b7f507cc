from __future__ import annotations

import pytest
import torch
from torch import nn

from afm_dist.training.gradients import clip, sum_rows, sum_rows_of


def tables(scale: float) -> tuple[nn.Module, nn.Module]:
    """The same weights and gradients, with a sparse and with a dense table."""
    models = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 3, sparse=sparse), nn.Linear(3, 1))
        (scale * model(torch.tensor([1, 4, 4, 7])).sum()).backward()
        if sparse:
            model[0].weight.grad = sum_rows(model[0].weight.grad)
        models.append(model)
    return models[0], models[1]


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_gradients_are_clipped_as_torch_clips_dense_ones(limit: float) -> None:
    ours, theirs = tables(3.0)
    norm = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    assert norm > 1

    clip(ours.parameters(), limit)

    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.to_dense(), other.grad)


def test_rows_are_summed_as_coalesce_does() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, values = (
        torch.randint(0, 50, (1, 400), generator=generator),
        torch.randn(400, 3, generator=generator),
    )
    gradient = torch.sparse_coo_tensor(rows, values, (60, 3), check_invariants=True)

    summed, expected = sum_rows(gradient), gradient.coalesce()

    assert summed.is_coalesced()
    assert torch.equal(summed.indices(), expected.indices())
    torch.testing.assert_close(summed.values(), expected.values())


def test_no_rows_are_summed_to_no_rows() -> None:
    empty = torch.sparse_coo_tensor(
        torch.empty(1, 0, dtype=torch.int64), torch.empty(0, 3), (5, 3), check_invariants=True
    )

    assert sum_rows(empty).values().shape == (0, 3)


def test_tables_with_the_same_ids_are_summed_as_each_alone() -> None:
    rows = torch.tensor([3, 0, 3, 5, 0])
    other = torch.tensor([3, 0, 3, 5, 1])
    gradients = [
        torch.sparse_coo_tensor(ids[None], torch.randn(5, width), (7, width), check_invariants=True)
        for ids, width in ((rows, 4), (rows.clone(), 1), (other, 1), (rows, 2))
    ]

    for summed, gradient in zip(sum_rows_of(gradients), gradients, strict=True):
        torch.testing.assert_close(summed.to_dense(), gradient.to_dense())
