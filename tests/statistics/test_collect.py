from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError, OptionError
from afm_dist.methods.low_rank.ranks import FixedRank, plan_ranks
from afm_dist.models import build_model
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.from_counts import moments_from_counts
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import digest_of
from afm_dist.tables.fused import FusedEmbedding
from tests.small_dataset import FIELDS

BATCH_SIZE = 64
LAYERS = ["mlp.3", "mlp.6"]


def deepfm() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (12, 10, 8), "dropout": 0.5})
    nn.init.normal_(model.embedding.weight, std=0.5)
    return model


def collect(dataset: Manifest, **options: Any) -> dict[str, Moments]:
    return collect_moments(deepfm(), dataset, LAYERS, **{"batch_size": BATCH_SIZE, **options})


def whole_split(dataset: Manifest, split: str = "train") -> Batch:
    return next(read_batches(dataset, dataset.shards(split), dataset.rows(split)))


def oracle(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = rows.detach().double().numpy()
    return values.mean(0), np.cov(values.T, bias=True)


def assert_moments_of(moments: Moments, rows: Tensor) -> None:
    mean, covariance = oracle(rows)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean.numpy(), mean, rtol=1e-5, atol=1e-7)
    error = np.linalg.norm(moments.covariance.numpy() - covariance) / np.linalg.norm(covariance)
    assert error <= 1e-6


# On Ray ------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_pass_gives_the_moments_of_the_whole_split(local_ray: None, dataset: Manifest) -> None:
    moments = collect(dataset)

    model, batch = deepfm().eval(), whole_split(dataset)
    _, vectors = model.embedding(batch.ids)
    hidden = torch.cat([vectors.flatten(1), batch.numeric], 1)
    layers = list(model.mlp)
    second = nn.Sequential(*layers[:4])(hidden)
    third = nn.Sequential(*layers[4:7])(second)
    assert list(moments) == LAYERS
    assert_moments_of(moments["mlp.3"], second)
    assert_moments_of(moments["mlp.6"], third)


@pytest.mark.ray
def test_only_the_chosen_split_counts(local_ray: None, dataset: Manifest) -> None:
    assert collect(dataset)["mlp.3"].count == dataset.rows("train")
    assert collect(dataset, split="validation")["mlp.3"].count == dataset.rows("validation")


class ByName(nn.Module):
    """A user's model: fields by name, several layers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleDict({"site": nn.Embedding(30, 3), "ad": nn.Embedding(7, 2)})
        self.age = nn.Linear(1, 4)
        self.head = nn.Linear(9, 2)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        vectors = [table(features[name]) for name, table in self.tables.items()]
        return self.head(torch.cat([*vectors, self.age(features["age"])], 1))


@pytest.mark.ray
def test_a_model_of_any_interface_is_watched_at_several_modules_in_one_pass(
    local_ray: None, dataset: Manifest
) -> None:
    def call(model: nn.Module, batch: Batch) -> None:
        model({"site": batch.ids[:, 0], "ad": batch.ids[:, 1], "age": batch.numeric})

    model = ByName()
    moments = collect_moments(
        model, dataset, ["head", "age", nn.Embedding], forward_fn=call, batch_size=BATCH_SIZE
    )

    batch = whole_split(dataset)
    vectors = {
        f"tables.{name}": table(batch.ids[:, i]) for i, (name, table) in enumerate(model.tables.items())
    }
    vectors["age"] = model.age(batch.numeric)
    vectors["head"] = model.head(torch.cat(list(vectors.values()), 1))
    assert list(moments) == list(vectors)
    for name, rows in vectors.items():
        assert_moments_of(moments[name], rows)


def call_counting(folder: Path, act: Callable[[int, Batch], None]) -> Callable[[nn.Module, Batch], None]:
    """A forward function that leaves one file a call and acts on the number of calls so far."""
    folder.mkdir()

    def forward(model: nn.Module, batch: Batch) -> None:
        (folder / f"{time.monotonic_ns()}-{os.getpid()}").touch()
        act(len(list(folder.iterdir())), batch)
        model(batch.ids, batch.numeric)

    return forward


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob("partials-*/group-*.safetensors"))


@pytest.mark.ray
def test_an_interrupted_pass_goes_on_from_its_sound_partials(
    local_ray: None, dataset: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, repaired = tmp_path / "stage", tmp_path / "repaired"

    def fail(calls: int, batch: Batch) -> None:
        if len(batch) == 200 and not repaired.exists():  # the last group only
            while len(partials(folder)) < 4:
                time.sleep(0.01)
            raise RuntimeError("power cut")

    forward = call_counting(tmp_path / "calls", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        collect(dataset, forward_fn=forward, folder=str(folder), batch_size=500)
    first, second, third, _ = partials(folder)
    second.unlink()
    content = bytearray(third.read_bytes())
    content[-1] ^= 1
    third.write_bytes(content)
    (first.parent / ".group-00004.safetensors.0123.tmp").write_bytes(b"half")
    for call in (tmp_path / "calls").iterdir():
        call.unlink()
    repaired.touch()

    heard: list[dict[str, Any]] = []
    moments = collect(
        dataset,
        forward_fn=forward,
        folder=str(folder),
        batch_size=500,
        emit=lambda what, /, **details: heard.append({"event": what, **details}),
    )

    assert len(list((tmp_path / "calls").iterdir())) == 3  # the deleted, the damaged, the last
    assert (
        "checksum does not match; delete it and run again; doing this group again" in capsys.readouterr().err
    )
    assert digest_of(moments) == digest_of(collect(dataset, batch_size=500))
    assert list(folder.iterdir()) == []
    assert [event["event"] for event in heard] == [
        "groups found committed",
        *["group committed"] * 2,
        "damaged partial",
        "group committed",
    ]
    assert heard[0]["groups"] == [0, 2, 3]


@pytest.mark.ray
def test_partials_of_another_model_or_another_call_are_not_used(
    local_ray: None, dataset: Manifest, tmp_path: Path
) -> None:
    def flawed(model: nn.Module, batch: Batch) -> None:
        model(batch.ids, torch.zeros_like(batch.numeric))
        if len(batch) == 200:
            while not partials(tmp_path / "stage"):
                time.sleep(0.01)
            raise RuntimeError("power cut")

    options = {"folder": str(tmp_path / "stage"), "batch_size": 500}
    with pytest.raises(RuntimeError, match="power cut"):
        collect(dataset, forward_fn=flawed, **options)
    assert partials(tmp_path / "stage")

    moments = collect(dataset, **options)

    assert digest_of(moments) == digest_of(collect(dataset, batch_size=500))


@pytest.mark.ray
def test_a_pass_leaves_no_files_and_no_change_behind(
    local_ray: None, dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    model = deepfm().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    collect_moments(model, dataset.location, LAYERS)

    assert list((tmp_path / "temporary").iterdir()) == []
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.ray
def test_counts_and_streaming_agree(local_ray: None, dataset: Manifest) -> None:
    model = deepfm()
    with torch.no_grad():
        model.embedding.weight += 30  # a mean far from zero

    counted = moments_from_counts(model, dataset)
    streamed = collect_moments(model, dataset, [FusedEmbedding], batch_size=BATCH_SIZE)

    assert list(counted) == list(streamed) == ["embedding[site]", "embedding[ad]"]
    for name, moments in counted.items():
        assert moments.count == streamed[name].count == dataset.rows("train")
        error = (moments.covariance - streamed[name].covariance).norm() / moments.covariance.norm()
        assert float(error) <= 1e-9
        torch.testing.assert_close(moments.mean, streamed[name].mean, rtol=1e-12, atol=0)


@pytest.mark.ray
def test_nan_in_an_output_names_layer_and_shard(local_ray: None, dataset: Manifest) -> None:
    model = deepfm()
    rare = 29
    holders = [
        shard.path
        for shard in dataset.shards("train")
        if bool((next(read_batches(dataset, [shard], 500)).ids[:, 0] == rare).any())
    ]
    with torch.no_grad():
        model.embedding.weight[rare] = float("nan")

    with pytest.raises(DataError, match=r"output of mlp\.3: NaN or infinity") as error:
        collect_moments(model, dataset, LAYERS)

    assert str(error.value).split(":")[0] in holders


@pytest.mark.ray
def test_a_damaged_shard_stops_the_pass_by_name(local_ray: None, dataset: Manifest) -> None:
    path = Path(dataset.location, dataset.shards("train")[2].path)
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(DataError, match=r"train/part-00002\.parquet: .*truncated"):
        collect(dataset)


def test_counts_of_something_else_than_a_fused_table_are_refused(dataset: Manifest) -> None:
    with pytest.raises(OptionError, match=r"mlp\.3 is a Linear"):
        moments_from_counts(deepfm(), dataset, "mlp.3")


def test_counts_give_the_moments_of_embeddings_and_first_order_weights_together(dataset: Manifest) -> None:
    model = deepfm()
    with torch.no_grad():
        model.linear.weight.normal_()
    batches = [batch for shard in dataset.shards("train") for batch in read_batches(dataset, [shard], 500)]
    rows = torch.cat([batch.ids for batch in batches])[:, 1]
    joint = torch.cat([model.embedding.weight, model.linear.weight], 1)[30 + rows].detach().double()

    moments = moments_from_counts(model, dataset, absorbs="linear")["embedding[ad]"]

    assert moments.count == len(rows)
    torch.testing.assert_close(moments.mean, joint.mean(0))
    torch.testing.assert_close(moments.covariance, joint.T.cov(correction=0))


def test_counts_of_what_a_model_does_not_declare_are_refused(dataset: Manifest) -> None:
    with pytest.raises(OptionError, match="first-order weights mlp cannot be absorbed into embedding"):
        moments_from_counts(deepfm(), dataset, absorbs="mlp")


def test_counts_of_a_table_with_nan_name_the_field(dataset: Manifest) -> None:
    model = deepfm()
    with torch.no_grad():
        model.embedding.weight[30] = float("nan")

    with pytest.raises(DataError, match=r"embedding, field 'ad': NaN"):
        moments_from_counts(model, dataset)


# In this process, any module and any batches -----------------------------------------------------


def plain_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def plain_rows() -> Tensor:
    return torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))


def test_a_plain_model_over_tensors_in_memory() -> None:
    model, x = plain_model(), plain_rows()

    moments = collect_moments(model, iter(x.split(64)), [nn.Linear])

    model.eval()
    assert list(moments) == ["0", "3"]
    assert_moments_of(moments["0"], model[0](x))
    assert_moments_of(moments["3"], model(x))


def test_each_module_keeps_its_own_mode_and_no_hook_stays() -> None:
    model = plain_model().train()
    model[3].eval()

    collect_moments(model, [plain_rows()], [nn.Linear])

    assert [module.training for module in model] == [True, True, True, False]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_module_used_twice_counts_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    torch.manual_seed(0)
    model, x = Twice(), plain_rows()

    moments = collect_moments(model, [x], ["layer"])

    first = model.layer(x)
    assert_moments_of(moments["layer"], torch.cat([first, model.layer(first)]))


def test_every_position_of_a_sequence_counts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 6))
    ids = torch.randint(0, 20, (50, 7), generator=torch.Generator().manual_seed(0))

    moments = collect_moments(model, [ids], [nn.Embedding, "1"])

    assert_moments_of(moments["0"], model[0](ids).flatten(0, 1))
    assert_moments_of(moments["1"], model(ids).flatten(0, 1))


def test_nan_names_the_layer_and_the_batch() -> None:
    x = plain_rows()
    x[700] = float("nan")

    with pytest.raises(DataError, match="batch 10: output of 0: NaN or infinity"):
        collect_moments(plain_model(), x.split(64), [nn.Linear])


@pytest.mark.parametrize("max_groups", [0, 257])
def test_a_number_of_groups_that_no_pass_has_is_refused(dataset: Manifest, max_groups: int) -> None:
    with pytest.raises(OptionError, match=f"max_groups {max_groups}: must lie between 1 and 256"):
        collect(dataset, max_groups=max_groups)


@pytest.mark.parametrize("target", ["mlp.*", nn.Conv2d, nn.Embedding, "1"])
def test_a_target_that_matches_nothing_is_refused_with_the_candidates(target: Any) -> None:
    with pytest.raises(OptionError, match=r"matches no compressible module.*; there are: 0, 3"):
        collect_moments(plain_model(), [plain_rows()], [target])


def test_patterns_and_types_are_united_in_the_order_of_the_model() -> None:
    moments = collect_moments(deepfm(), [], ["mlp.6", "mlp.[03]", FusedEmbedding])

    assert list(moments) == ["embedding[site]", "embedding[ad]", "mlp.0", "mlp.3", "mlp.6"]


def test_a_module_with_brackets_in_its_name_is_found_by_it() -> None:
    model = nn.ModuleDict({"x[0]": nn.Linear(5, 3), "x0": nn.Linear(5, 3)})

    moments = collect_moments(model, [plain_rows()], ["x[0]"], forward_fn=lambda m, x: m["x[0]"](x))

    assert list(moments) == [r"x\[0]"]
    assert [entry.name for entry in plan_ranks(dict(moments), FixedRank(rank=2)).entries] == ["x[0]"]


class Attentive(nn.Module):
    """A user's model: tables, attention between them, a linear layer behind."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.renormalised = nn.Embedding(20, 4, max_norm=1.0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.output = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.table(ids) + self.renormalised(ids)
        return self.output(self.attention(vectors, vectors, vectors)[0])


@pytest.mark.parametrize("targets", [["*"], [nn.Linear, nn.Embedding]], ids=["pattern", "types"])
def test_what_cannot_be_compressed_is_left_out_with_a_warning(
    targets: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    moments = collect_moments(Attentive(), [torch.zeros(7, 3, dtype=torch.int64)], targets)

    assert list(moments) == ["table", "output"]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert "left out of the statistics: renormalised has max_norm=1.0" in warnings[0]
    assert "left out of the statistics: attention.out_proj is a part of attention, a Multihe" in warnings[1]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("attention.out_proj", "reads the weights of its parts without calling them"),
        ("renormalised", "its rows change when they are looked up"),
        ("attention", "is a MultiheadAttention, which cannot be compressed"),
    ],
)
def test_a_named_module_that_cannot_be_compressed_is_refused_with_the_reason(target: str, why: str) -> None:
    with pytest.raises(OptionError, match=rf"'{target}' .*{why}.*there are: table, output"):
        collect_moments(Attentive(), [], [target])


def test_a_module_under_two_names_goes_by_its_first() -> None:
    layer = nn.Linear(5, 3)
    model = nn.ModuleDict({"first": layer, "second": layer})

    moments = collect_moments(model, [plain_rows()], ["second"], forward_fn=lambda m, x: m["second"](x))

    assert list(moments) == ["first"]
    assert moments["first"].count == 1000


def test_a_folder_is_asked_for_where_workers_do_not_share_this_disk(
    local_ray: None, dataset: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": True}])

    with pytest.raises(OptionError, match="folder="):
        collect(dataset)
