"""A table compressed block by block, against ``compress_`` and ``save_pretrained``, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.pretrained import from_pretrained, save_plan, save_pretrained
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.errors import AfmError, DataError, OptionError, StageError
from afm_dist.large_tables import rewrite
from afm_dist.large_tables.codes import CodeParts, make_codes
from afm_dist.large_tables.ranges import row_groups
from afm_dist.large_tables.rewrite import compress_table
from afm_dist.large_tables.statistics import TableWork, stored_moments
from afm_dist.large_tables.table_checkpoint import TableCheckpoint
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.ranks import FixedRank, plan_ranks, using
from afm_dist.methods.rounding.config import rounding
from afm_dist.models import build_model
from afm_dist.runtime.resources import CpuOptions
from afm_dist.statistics.from_counts import moments_from_counts
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.partials import Partials
from tests.small_dataset import write_dataset, write_vocabulary

FIELDS = (
    Field(name="site", kind="categorical", cardinality=30),
    Field(name="always", kind="categorical", cardinality=1),
    Field(name="age", kind="numeric", mean=0.5, deviation=2.0),
    Field(name="ad", kind="categorical", cardinality=17),
)
SHAPE = {"embedding_dim": 5, "hidden": (8, 8), "dropout": 0.0}
FOLDS = {"deepfm": "mlp.0", "nfm": None}
ROWS = 200
DEAD = 29
BLOCK_MODULES = (
    "statistics.moments",
    "methods.low_rank.factorize",
    "large_tables.statistics",
    "large_tables.codes",
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A dataset in which the last ids of each field occur nowhere."""
    data = write_dataset(tmp_path_factory.mktemp("data"), splits={"train": (ROWS,)}, fields=FIELDS)
    vocabulary = {}
    for field in data.categorical:
        counts = np.zeros(field.cardinality, np.int64)
        alive = max(1, field.cardinality - 3)
        counts[:alive] = np.sort(np.random.default_rng(0).multinomial(ROWS, [1 / alive] * alive))[::-1]
        vocabulary[field.name] = write_vocabulary(data.location, field.name, counts)
    return replace(data, vocabulary=vocabulary)


def write_checkpoint(
    location: Path, name: str = "deepfm", change: Callable[[Any], None] = lambda model: None, **options: Any
) -> str:
    """A model with random weights; embeddings of ids that never occur may be anything."""
    torch.manual_seed(0)
    model = build_model(name, FIELDS, SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.1, 0.4)
        model.embedding.weight[DEAD] = float("nan")
        change(model)
    config = ModelConfig(architecture=name, hyper_parameters=SHAPE, fields=FIELDS)
    save_pretrained(model, str(location), config, **options)
    return str(location)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


def planned(moments: dict[str, Moments], folded_into: str | None = "mlp.0", rank: int = 2) -> Plan:
    return plan_ranks(moments, FixedRank(rank=rank), folded_into=folded_into)


def files(location: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(location).rglob("*") if path.is_file()}


def in_memory(
    checkpoint: str, target: Path, plan: Plan, moments: dict[str, Moments], *sensitivity: Any, **options: Any
) -> dict[str, bytes]:
    """The files that ``compress_`` and ``save_pretrained`` leave."""
    model = compress_(from_pretrained(checkpoint), plan, moments, *sensitivity)
    config = TableCheckpoint.open(checkpoint).config
    save_pretrained(model, str(target), replace(config, plan=config.plan + plan), **options)
    save_plan(plan, str(target))
    return files(target)


def summed(source: TableCheckpoint, manifest: Manifest, range_rows: int) -> dict[str, Moments]:
    """What the pass sums up, in this process."""
    groups = row_groups(source.cardinalities, range_rows)
    partials = Partials(parent="", facts={})
    work = TableWork(table=source.table, manifest=manifest, groups=groups, partials=partials)
    merged: dict[str, Moments] = {}
    for group in range(len(groups)):
        for key, part in work.moments(group).items():
            merged[key] = merged[key].merge(part) if key in merged else part
    return merged


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are made one after the other, without Ray."""

    def make(parts: CodeParts, **options: Any) -> None:
        for part in parts.missing():
            parts.make(part)

    monkeypatch.setattr(rewrite, "make_codes", make)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block=st.integers(4, 40), blocks=st.integers(1, 8), rank=st.integers(1, 5))
def test_any_blocks_and_ranges_give_the_bytes_of_compression_in_memory(
    manifest: Manifest,
    checkpoint: str,
    tmp_path_factory: pytest.TempPathFactory,
    in_this_process: None,
    block: int,
    blocks: int,
    rank: int,
) -> None:
    folder = tmp_path_factory.mktemp("out")
    source = TableCheckpoint.open(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        for module in BLOCK_MODULES:
            patch.setattr(f"afm_dist.{module}.TABLE_ROWS", block)
        patch.setattr("afm_dist.statistics.moments.RANGE_ROWS", block * blocks)
        expected = moments_from_counts(from_pretrained(checkpoint), manifest)

        moments = summed(source, manifest, block * blocks)
        plan = planned(moments, rank=rank)
        compress_table(source, str(folder / "new"), plan, moments, range_rows=block * blocks)

        assert {key: item.digest() for key, item in moments.items()} == {
            key: item.digest() for key, item in expected.items()
        }
        assert files(folder / "new") == in_memory(checkpoint, folder / "memory", plan, expected)


@pytest.mark.parametrize("name", list(FOLDS))
def test_a_compressed_mlp_and_tables_in_several_files_are_kept(
    manifest: Manifest, tmp_path: Path, in_this_process: None, name: str
) -> None:
    # Two files before, and five after.
    before = write_checkpoint(tmp_path / "before", name)
    model = from_pretrained(before)
    first = Plan(entries=(PlanEntry("mlp.3", LowRank(factors="svd", rank=2)),))
    known = {"mlp.3": Moments(count=1, mean=torch.zeros(8).double(), scatter=torch.eye(8).double())}
    compress_(model, first, known)
    config = ModelConfig(architecture=name, hyper_parameters=SHAPE, fields=FIELDS, plan=first)
    half = str(tmp_path / "half")
    save_pretrained(model, half, config, max_file_bytes=1200)
    assert len(list(Path(half).glob("*.safetensors"))) > 1
    moments = moments_from_counts(model, manifest)
    plan = planned(moments, FOLDS[name])

    compress_table(TableCheckpoint.open(half), str(tmp_path / "new"), plan, moments, max_file_bytes=300)

    written = files(tmp_path / "new")
    assert len([name for name in written if name.endswith(".safetensors")]) > 2
    assert written == in_memory(half, tmp_path / "memory", plan, moments, max_file_bytes=300)
    from_pretrained(str(tmp_path / "new"))


def test_sensitivity_weighting_goes_in_blocks_too(
    manifest: Manifest, checkpoint: str, tmp_path: Path, in_this_process: None
) -> None:
    moments = moments_from_counts(from_pretrained(checkpoint), manifest)
    factor = torch.randn(5, 5, dtype=torch.float64)
    sensitivity = dict.fromkeys(moments, factor @ factor.T)
    plan = using(planned(moments), factors="weighted")

    compress_table(TableCheckpoint.open(checkpoint), str(tmp_path / "new"), plan, moments, sensitivity)

    assert files(tmp_path / "new") == in_memory(checkpoint, tmp_path / "memory", plan, moments, sensitivity)


@pytest.mark.ray
def test_interrupted_passes_go_on_and_give_the_same_bytes_with_any_workers(
    manifest: Manifest, checkpoint: str, tmp_path: Path, local_ray: None, in_this_process: None
) -> None:
    source, range_rows = TableCheckpoint.open(checkpoint), 5
    expected = summed(source, manifest, range_rows)
    plan = planned(expected)
    compress_table(source, str(tmp_path / "expected"), plan, expected, range_rows=range_rows)
    new = tmp_path / "new"
    seen: list[str] = []

    def dies(what: str, /, **details: Any) -> None:
        seen.append(what)
        if seen.count(what) == 3:
            raise KeyboardInterrupt

    def goes_on(what: str, /, **details: Any) -> None:
        seen.append(what)

    # Two tasks at a time until the driver dies, then one.
    one = CpuOptions(task_cpus=2)
    with pytest.raises(KeyboardInterrupt):
        stored_moments(source, manifest, folder=str(new), emit=dies, range_rows=range_rows)
    moments = stored_moments(
        source, manifest, folder=str(new), emit=goes_on, range_rows=range_rows, options=one
    )
    assert "groups found committed" in seen
    assert {key: item.digest() for key, item in moments.items()} == {
        key: item.digest() for key, item in expected.items()
    }
    shutil.rmtree(new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrite, "make_codes", make_codes)
        with pytest.raises(KeyboardInterrupt):
            compress_table(source, str(new), plan, moments, emit=dies, range_rows=range_rows)
        assert "config.json" not in files(new)
        compress_table(source, str(new), plan, moments, emit=goes_on, range_rows=range_rows, options=one)
    assert "parts found committed" in seen
    assert files(new) == files(tmp_path / "expected")


@pytest.mark.parametrize("change", ["other bytes", "truncated", "another part"])
def test_a_damaged_part_is_named_and_made_again_by_the_next_run(
    manifest: Manifest,
    checkpoint: str,
    tmp_path: Path,
    in_this_process: None,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    source = TableCheckpoint.open(checkpoint)
    moments = moments_from_counts(from_pretrained(checkpoint), manifest)
    plan, new = planned(moments), tmp_path / "new"

    def damage(parts: CodeParts, **options: Any) -> None:
        for part in parts.missing():
            parts.make(part)
        first, second = (Path(parts.location(part)) for part in (0, 1))
        content = second.read_bytes()
        match change:
            case "other bytes":
                second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            case "truncated":
                second.write_bytes(content[:-1])
            case "another part":
                second.write_bytes(first.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "make_codes", damage)
        with pytest.raises(StageError, match=r"part-00001\.safetensors.*run the same command"):
            compress_table(source, str(new), plan, moments, range_rows=5)
    assert "config.json" not in files(new)
    assert not [name for name in files(new) if name.startswith("model")]
    compress_table(source, str(new), plan, moments, range_rows=5)
    assert files(new) == in_memory(checkpoint, tmp_path / "memory", plan, moments)


def test_a_rewrite_that_goes_on_with_other_ranges_takes_no_part_for_another(
    manifest: Manifest,
    checkpoint: str,
    tmp_path: Path,
    in_this_process: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = TableCheckpoint.open(checkpoint)
    moments = moments_from_counts(from_pretrained(checkpoint), manifest)
    plan, new = planned(moments), tmp_path / "new"

    def interrupted(parts: CodeParts, **options: Any) -> None:
        # With ranges of 7 this part has as many rows, but others.
        parts.make(5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "make_codes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress_table(source, str(new), plan, moments, range_rows=10)
    assert any(new.glob("codes-*/*"))

    compress_table(source, str(new), plan, moments, range_rows=7)

    assert files(new) == in_memory(checkpoint, tmp_path / "memory", plan, moments)
    # Nothing of either call is left.
    assert not list(new.glob("codes-*"))


def test_fields_in_another_order_are_refused(manifest: Manifest, checkpoint: str, tmp_path: Path) -> None:
    turned = replace(manifest, fields=tuple(reversed(manifest.fields)))

    with pytest.raises(DataError, match="trained on another schema"):
        stored_moments(TableCheckpoint.open(checkpoint), turned, folder=str(tmp_path))


def test_an_embedding_that_is_not_finite_is_named(manifest: Manifest, tmp_path: Path) -> None:
    def diverge(model: Any) -> None:
        model.embedding.weight[31 + 6, 2] = float("inf")

    source = TableCheckpoint.open(write_checkpoint(tmp_path / "broken", change=diverge))

    with pytest.raises(DataError, match=r"model\.safetensors: embedding, field 'ad', ids 5 to 9: NaN or inf"):
        summed(source, manifest, 5)


@pytest.mark.ray
def test_counts_of_another_log_are_refused(
    manifest: Manifest, checkpoint: str, tmp_path: Path, local_ray: None
) -> None:
    (shard,) = manifest.shards("train")
    other = replace(manifest, splits={"train": (replace(shard, rows=ROWS + 1),)})

    with pytest.raises(DataError, match=r"200 occurrences of embedding\[site\].*201 training rows"):
        stored_moments(TableCheckpoint.open(checkpoint), other, folder=str(tmp_path))


@pytest.mark.ray
def test_an_altered_vocabulary_of_the_same_size_is_refused(
    manifest: Manifest, checkpoint: str, tmp_path: Path, local_ray: None
) -> None:
    file = manifest.vocabulary["ad"]
    altered = replace(file, sha256="0" * len(file.sha256))
    other = replace(manifest, vocabulary={**manifest.vocabulary, "ad": altered})

    with pytest.raises(DataError, match=r"vocabulary/ad\.parquet"):
        stored_moments(TableCheckpoint.open(checkpoint), other, folder=str(tmp_path))


def truncate(location: Path) -> None:
    path = location / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lack(location: Path) -> None:
    (location / "model.safetensors").unlink()


def lie(location: Path) -> None:
    config = storage.read_json(str(location / "config.json"), object)
    config["fields"][0]["cardinality"] += 1
    storage.write_json(str(location / "config.json"), config)
    # As of an older release.
    (location / storage.SUMS).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"model\.safetensors: damaged"),
        (lack, r"model\.safetensors: missing"),
        (lie, r"do not fit the model \(embedding.weight has shape \(48, 5\), the model's \(49, 5\)"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    location = write_checkpoint(tmp_path / "checkpoint")
    spoil(Path(location))

    with pytest.raises(AfmError, match=message):
        TableCheckpoint.open(location)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.ray
@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
def test_a_flipped_bit_of_the_tensors_is_refused_before_statistics_and_before_codes(
    manifest: Manifest, tmp_path: Path, local_ray: None, name: str
) -> None:
    location = Path(write_checkpoint(tmp_path / "checkpoint", max_file_bytes=1_200))
    source = TableCheckpoint.open(str(location))
    moments = stored_moments(source, manifest, folder=str(tmp_path / "sound"))
    flip(location / name, -1)

    with pytest.raises(DataError, match=rf"{name}: .*altered"):
        stored_moments(source, manifest, folder=str(tmp_path / "moments"))
    with pytest.raises(DataError, match=rf"{name}: .*altered"):
        compress_table(source, str(tmp_path / "narrow"), planned(moments), moments)
    assert not (tmp_path / "narrow" / "config.json").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"factors": "svd"}, "'svd' of embedding.*take afm or weighted"),
        ({"absorbs": "linear"}, "cannot absorb linear"),
        ({"ranks": {"site": 2, "always": 0, "ad": 1}}, "cannot have ranks by field"),
        ({"factors": "weighted"}, "needs the sensitivity"),
    ],
)
def test_what_cannot_go_in_blocks_is_refused(
    manifest: Manifest, checkpoint: str, tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    moments = moments_from_counts(from_pretrained(checkpoint), manifest)

    with pytest.raises(OptionError, match=message):
        compress_table(
            TableCheckpoint.open(checkpoint), str(tmp_path / "new"), using(planned(moments), **entry), moments
        )
    assert not (tmp_path / "new").exists()


def test_rows_are_not_rounded_in_blocks(manifest: Manifest, checkpoint: str, tmp_path: Path) -> None:
    moments = moments_from_counts(from_pretrained(checkpoint), manifest)
    plan = planned(moments) + rounding("linear")

    with pytest.raises(
        OptionError, match=r"a plan for embedding \(afm\), linear \(rounding\): only embedding"
    ):
        compress_table(TableCheckpoint.open(checkpoint), str(tmp_path / "new"), plan, moments)


def test_a_rounded_table_is_refused(checkpoint: str, tmp_path: Path) -> None:
    config = replace(load_config(checkpoint), plan=rounding("embedding"))
    save_pretrained(compress_(from_pretrained(checkpoint), config.plan, {}), str(tmp_path), config)

    with pytest.raises(OptionError, match="compressed already, or rounded"):
        TableCheckpoint.open(str(tmp_path))


def test_a_compressed_table_is_refused(
    manifest: Manifest, checkpoint: str, tmp_path: Path, in_this_process: None
) -> None:
    moments = moments_from_counts(from_pretrained(checkpoint), manifest)
    compress_table(TableCheckpoint.open(checkpoint), str(tmp_path), planned(moments), moments)

    with pytest.raises(OptionError, match="compressed already"):
        TableCheckpoint.open(str(tmp_path))
