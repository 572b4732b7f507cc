"""The methods that a run compares: which there are, and what is written of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afm_dist import storage
from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.plan import Plan
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.errors import DataError, OptionError
from afm_dist.models import ARCHITECTURES
from afm_dist.pipelines.step import Given
from afm_dist.report.degenerate_words import degenerate_layers
from afm_dist.stages import sequential
from afm_dist.stages.compression import MOMENTS
from afm_dist.stages.report_parts import layers
from afm_dist.stages.reporting import variant_notes
from afm_dist.stages.sensitivity import linear_sensitivity, table_sensitivity
from afm_dist.stages.sequential import statistics_behind
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity_file import load_sensitivity, save_sensitivity
from jobs.compress_options import DEFAULT_METHODS
from jobs.compress_request import parse_methods
from tests.small_dataset import write_dataset
from tests.stages.bench import HYPER, Bench, named

ALL = "afm,svd,weighted,sequential"


# Names -------------------------------------------------------------------------------------------


def test_afm_and_its_control_are_compared_by_default() -> None:
    assert parse_methods(DEFAULT_METHODS) == (named("afm,svd"), False)


def test_methods_are_compared_in_one_order() -> None:
    assert parse_methods(" scratch, weighted ,afm") == (named("afm,weighted"), True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "afm,tucker",
            "'tucker' is no method; choose from afm, svd, weighted, sequential, int8, int4",
        ),
        ("", "'' is no method"),
        ("afm,", "'' is no method"),
        ("AFM", "'AFM' is no method"),
        ("afm,svd,afm", "name each method once"),
        ("scratch", "none of them compresses; add one of afm, svd, weighted, sequential, int8"),
    ],
)
def test_wrong_methods_are_refused(value: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_methods(value)


@pytest.mark.parametrize(
    ("names", "beginnings"),
    [
        ("afm", []),
        ("afm,svd", ["The svd rows have the ranks"]),
        ("afm,int8", ["afm:", "int8:"]),
        ("afm,weighted", ["The weighted rows have the ranks", "afm:", "weighted:"]),
        (
            ALL,
            ["The svd, weighted and sequential rows have", "afm:", "svd:", "weighted:", "sequential:"],
        ),
    ],
)
def test_the_report_says_what_each_method_is(names: str, beginnings: list[str]) -> None:
    notes = variant_notes(named(names))

    assert len(notes) == len(beginnings)
    assert all(note.startswith(words) for note, words in zip(notes, beginnings, strict=True))


# What is written ---------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over shards in this process, without Ray."""

    def collect(model, manifest, targets, **_):
        from afm_dist.dataset.reader import read_batches

        batches = read_batches(manifest, manifest.shards("train"), 500)
        return collect_moments(model, list(batches), targets, forward_fn=forward_batch)

    monkeypatch.setattr(sequential, "collect_moments", collect)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_method_gives_models_of_the_same_size_and_ranks(
    name: str, dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench(name, dataset, tmp_path, HYPER)

    for models in bench.compress((3, 2), named(ALL)):
        round_name = next(iter(models.checkpoints)).removeprefix("afm")
        assert list(models.checkpoints) == [f"{method}{round_name}" for method in ALL.split(",")]
        tensors = [from_pretrained(location).state_dict() for location in models.checkpoints.values()]
        for other in tensors[1:]:
            assert {k: t.shape for k, t in other.items()} == {k: t.shape for k, t in tensors[0].items()}
        for state in tensors:
            assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.usefixtures("here")
def test_the_methods_of_a_plan_are_its_own(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)

    low_rank, narrow = bench.compress((3, 2), named(ALL))

    for models in (low_rank, narrow):
        used = [
            {entry.config.factors for entry in Plan.load(storage.join(location, "plan.json")).entries}
            for location in models.checkpoints.values()
        ]
        # Sequential AFM is AFM of other statistics.
        assert used == [{"afm"}, {"svd"}, {"weighted"}, {"afm"}]


@pytest.mark.usefixtures("here")
def test_other_methods_beside_them_leave_afm_and_svd_the_same_bits(dataset: Manifest, tmp_path: Path) -> None:
    results = []
    for methods in ("afm,svd", ALL):
        folder = tmp_path / str(len(results))
        folder.mkdir()
        bench = Bench("deepfm", dataset, folder, HYPER)
        results.append(bench.compress((3, 2), named(methods)))

    for few, many in zip(*results, strict=True):
        for name, location in few.checkpoints.items():
            expected = from_pretrained(location).state_dict()
            found = from_pretrained(many.checkpoints[name]).state_dict()
            assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.usefixtures("here")
def test_statistics_in_turn_are_those_of_a_model_whose_layers_before_are_compressed(
    dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    low_rank, _ = bench.compress((3, 2), named("afm,sequential"))
    whole = load_moments(bench.statistics.result.file(MOMENTS))
    model = from_pretrained(bench.source)
    plan = Plan.load(storage.join(low_rank.checkpoints["sequential-mlp"], "plan.json"))

    first = Plan(entries=plan.entries[:1])
    behind = collect_moments(
        compress_(model, first, whole), bench.batches, ["mlp.6"], forward_fn=forward_batch
    )
    expected = compress_(model, Plan(entries=plan.entries[1:]), behind).state_dict()

    found = from_pretrained(low_rank.checkpoints["sequential-mlp"]).state_dict()
    assert [entry.name for entry in plan.entries] == ["mlp.3", "mlp.6"]
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("here")
def test_modules_may_be_left_as_they_are_by_every_method(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    ranks = bench.given({"mlp.3": 2, "mlp.6": None, "embedding": None})

    _, narrow = bench.compress(ranks, named(ALL))

    for location in narrow.checkpoints.values():
        assert [entry.name for entry in load_config(location).plan.entries] == ["mlp.3"]


@pytest.mark.usefixtures("here")
def test_fields_of_one_token_keep_their_embedding_and_are_named_in_the_report(tmp_path: Path) -> None:
    fields = (
        Field(name="site", kind="categorical", cardinality=30),
        Field(name="country", kind="categorical", cardinality=1),
    )
    bench = Bench("deepfm", write_dataset(tmp_path / "data", fields=fields), tmp_path, HYPER)
    low_rank, narrow = bench.compress((3, 1), named(ALL))

    ids = torch.zeros(1, 2, dtype=torch.int32)
    for (_, source), (_, target) in zip(
        low_rank.checkpoints.items(), narrow.checkpoints.items(), strict=True
    ):
        (_, before), (_, after) = (
            from_pretrained(location).get_submodule("embedding")(ids) for location in (source, target)
        )
        torch.testing.assert_close(after[:, 1], before[:, 1], rtol=0, atol=1e-6)
        assert all(tensor.isfinite().all() for tensor in from_pretrained(target).state_dict().values())
    moments = load_moments(storage.join(bench.run.path, "statistics-embedding", MOMENTS))
    plan = Plan.load(storage.join(narrow.checkpoints["afm-emb"], "plan.json"))
    (printed,) = degenerate_layers(layers(moments, plan))
    assert printed.startswith("field country has one token in all training rows")


def test_nothing_is_measured_that_no_method_needs(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    compared = named("afm,svd")

    assert linear_sensitivity(bench.model, compared) is None
    assert table_sensitivity(bench.baseline, compared) == {}
    found = Given(bench.given({"mlp.3": 1, "mlp.6": 1, "embedding": 1}))
    assert statistics_behind(bench.model, bench.statistics, found, compared) is None


def test_a_sensitivity_survives_its_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    location = str(tmp_path / "sensitivity.safetensors")
    sensitivity = {"mlp.3": torch.eye(3, dtype=torch.float64), "embedding[a]": torch.ones(2, 2).double()}
    save_sensitivity(location, sensitivity)

    found = load_sensitivity(location)

    assert all(torch.equal(found[key], sensitivity[key]) for key in sensitivity)
    Path(location).write_bytes(b"no tensors")
    with pytest.raises(DataError, match="damaged"):
        load_sensitivity(location)
