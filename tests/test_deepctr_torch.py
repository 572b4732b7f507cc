"""A model of another package, trained by that package, compressed by this one: DeepCTR-Torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import afm_dist

ROWS, LIST = 4000, 5
SIZES = {"user": 300, "item": 120, "liked": 120}
Log = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def deepctr() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "get", lambda url: None)  # it asks the registry for a newer version
        import deepctr_torch.inputs
        import deepctr_torch.models
    return deepctr_torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of such small batches two threads make slower work
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def log() -> Log:
    """Clicks of users on items; ``liked`` is a list of items, 0 where it is shorter."""
    generator = np.random.default_rng(0)
    tastes = {name: generator.normal(size=(size, 3)) for name, size in SIZES.items()}
    log: Log = {name: generator.integers(1, SIZES[name], ROWS) for name in ("user", "item")}
    liked = generator.integers(1, SIZES["liked"], (ROWS, LIST))
    lengths = generator.integers(0, LIST + 1, ROWS)
    log["liked"] = np.where(np.arange(LIST) < lengths[:, None], liked, 0)
    log["age"] = generator.normal(size=ROWS).astype(np.float32)
    score = (tastes["user"][log["user"]] * tastes["item"][log["item"]]).sum(1) + log["age"]
    log["click"] = (generator.random(ROWS) < 1 / (1 + np.exp(-2 * score))).astype(np.float32)
    return log


def new_model(deepctr: Any) -> nn.Module:
    """Two fields and a list, which shares the items' table, and a number."""
    sparse, listed, dense = (
        getattr(deepctr.inputs, name) for name in ("SparseFeat", "VarLenSparseFeat", "DenseFeat")
    )
    table = sparse("liked", SIZES["item"], 8, embedding_name="item")
    columns = [
        *(sparse(name, SIZES[name], 8) for name in ("user", "item")),
        listed(table, LIST, combiner="mean"),
        dense("age", 1),
    ]
    model: nn.Module = deepctr.models.DeepFM(columns, columns, dnn_hidden_units=(32, 32), seed=7)
    return model


def batches(log: Log) -> list[Log]:
    return [{name: log[name][i : i + 512] for name in (*SIZES, "age")} for i in range(0, ROWS, 512)]


def forward(model: nn.Module, batch: Log) -> Tensor:
    """The package's models take one matrix of all columns."""
    columns = [batch[name].reshape(len(batch[name]), -1) for name in model.feature_index]
    probabilities: Tensor = model(torch.from_numpy(np.concatenate(columns, 1)).float())
    return probabilities


def predictions(model: nn.Module, log: Log) -> Tensor:
    with torch.inference_mode():
        return torch.cat([forward(model.eval(), batch) for batch in batches(log)]).squeeze(1)


def test_a_model_it_trained_is_compressed_saved_and_loaded(deepctr: Any, log: Log, tmp_path: Path) -> None:
    model = new_model(deepctr)
    model.compile(torch.optim.Adam(model.parameters(), lr=0.01), "binary_crossentropy")
    model.fit({name: log[name] for name in (*SIZES, "age")}, log["click"], 256, epochs=3, verbose=0)
    expected = predictions(model, log)
    auc = roc_auc_score(log["click"], expected)
    assert auc > 0.75
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    targets = ["embedding_dict.*", "dnn.linears.1"]

    moments = afm_dist.collect_moments(model, batches(log), targets, forward_fn=forward)
    # "item" looks up a row for the item and one for each place of the list.
    uses = {name: item.count // ROWS for name, item in moments.items()}
    assert uses == {"embedding_dict.user": 1, "embedding_dict.item": 1 + LIST, "dnn.linears.1": 1}

    full = afm_dist.Plan(
        entries=tuple(
            afm_dist.PlanEntry(name, afm_dist.LowRank(factors="afm", rank=item.width))
            for name, item in moments.items()
        )
    )
    # Of the moments alone: the tables need all of their rank, and do not become smaller.
    most = afm_dist.plan_ranks(dict(moments), afm_dist.KeptEnergy(share=0.999))
    for plan, tolerance in ((full, 1e-5), (most, 0.03)):
        compressed = new_model(deepctr)
        compressed.load_state_dict(state)
        afm_dist.compress_(compressed, plan, moments)
        after = predictions(compressed, log)
        torch.testing.assert_close(after, expected, rtol=0, atol=tolerance)

    assert most.entries[2].config.rank < full.entries[2].config.rank == 32
    assert roc_auc_score(log["click"], after) == pytest.approx(auc, abs=0.002)
    afm_dist.save_pretrained(compressed, str(tmp_path), plan=most)
    loaded = afm_dist.from_pretrained(str(tmp_path), model=new_model(deepctr))
    assert torch.equal(predictions(loaded, log), after)
