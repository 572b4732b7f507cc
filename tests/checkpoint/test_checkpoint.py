from __future__ import annotations

import os
import pickle
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import afm_dist
from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, check_schema, load_config
from afm_dist.checkpoint.files import check_files, size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_plan, save_pretrained
from afm_dist.compression.plan import Plan
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.errors import DataError, OptionError
from afm_dist.methods.low_rank.ranks import FixedRank, plan_ranks
from afm_dist.models import build_model
from afm_dist.statistics.collect import collect_moments
from tests.small_dataset import FIELDS

HYPER = {"embedding_dim": 4, "hidden": [8, 6, 5], "dropout": 0.1}
CONFIG = ModelConfig(architecture="deepfm", hyper_parameters=HYPER, fields=FIELDS)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, f.cardinality, (200,), generator=generator) for f in FIELDS[:2]]
    return torch.stack(ids, 1), torch.randn(200, 1, generator=generator)


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model.eval()(*inputs())


def model_and_plan(kind: str) -> tuple[nn.Module, Plan]:
    torch.manual_seed(0)
    model = build_model("deepfm", FIELDS, HYPER)
    steps: dict[str, list[dict[str, Any]]] = {
        "baseline": [],
        "mlp": [{"targets": ["mlp.3", "mlp.6"], "activation": "shifted"}],
        "folded": [
            {"targets": ["mlp.3", "mlp.6"], "activation": "plain"},
            {"targets": ["embedding"], "folded_into": "mlp.0"},
        ],
        "unfolded-full": [{"targets": ["embedding"], "rank": 4}],
    }
    plan = Plan()
    for step in steps[kind]:
        moments = collect_moments(model, [inputs()], step.pop("targets"), forward_fn=lambda m, b: m(*b))
        part = plan_ranks(dict(moments), FixedRank(rank=step.pop("rank", 2)), **step)
        compress_(model, part, moments)
        plan = plan + part
    return model, plan


KINDS = ["baseline", "mlp", "folded", "unfolded-full"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, plan = model_and_plan("folded")
    save_pretrained(model, str(tmp_path / "checkpoint"), replace(CONFIG, plan=plan))
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_file_bytes", [10**9, 300], ids=["one file", "several files"])
def test_the_logits_come_back_bit_for_bit(tmp_path: Path, kind: str, max_file_bytes: int) -> None:
    model, plan = model_and_plan(kind)

    save_pretrained(model, str(tmp_path), replace(CONFIG, plan=plan), max_file_bytes=max_file_bytes)
    loaded = from_pretrained(str(tmp_path))

    assert torch.equal(logits(loaded), logits(model))
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_file_bytes == 300)
    assert load_config(str(tmp_path)).plan == plan


def test_every_file_keeps_to_the_limit_and_the_index_names_each_tensor(tmp_path: Path) -> None:
    model, plan = model_and_plan("mlp")

    save_pretrained(model, str(tmp_path), replace(CONFIG, plan=plan), max_file_bytes=300)

    index = storage.read_json(str(tmp_path / "model.safetensors.index.json"), object)
    files = {path.name: safetensors.torch.load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert {name: index["weight_map"][name] for tensors in files.values() for name in tensors} == {
        name: file for file, tensors in files.items() for name in tensors
    }
    assert set(index["weight_map"]) == set(model.state_dict())
    for tensors in files.values():
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 300


@pytest.mark.parametrize(("before", "after"), [(300, 10**9), (10**9, 300), (300, 900)])
def test_a_checkpoint_written_over_another_is_the_new_one_alone(
    tmp_path: Path, before: int, after: int
) -> None:
    for name, limit in (("over", before), ("over", after), ("fresh", after)):
        model, plan = model_and_plan("mlp")
        with torch.no_grad():
            model.linear.numeric.fill_(limit)
        save_pretrained(model, str(tmp_path / name), replace(CONFIG, plan=plan), max_file_bytes=limit)

    assert storage.list_names(str(tmp_path / "over")) == storage.list_names(str(tmp_path / "fresh"))
    assert torch.equal(
        logits(from_pretrained(str(tmp_path / "over"))), logits(from_pretrained(str(tmp_path / "fresh")))
    )


def test_the_size_on_disk_is_that_of_the_files(saved: Path) -> None:
    (saved / "plan.json").write_text("{}")

    expected = sum((saved / name).stat().st_size for name in ("config.json", "model.safetensors"))
    assert size_on_disk(str(saved)) == expected


def test_a_loaded_model_can_be_trained(saved: Path) -> None:
    model = from_pretrained(str(saved))

    model(*inputs()).sum().backward()

    assert all(parameter.grad is not None for parameter in model.parameters())


# A model of the user's own -----------------------------------------------------------------------


def own_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def test_a_model_of_ones_own_comes_back_into_its_own_class(tmp_path: Path) -> None:
    model, x = own_model(0), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    model.train()(x)
    moments = collect_moments(model, [x], [nn.Linear])
    plan = plan_ranks(dict(moments), FixedRank(rank=2))
    compress_(model, plan, moments)

    afm_dist.save_pretrained(model, str(tmp_path), plan=plan)
    loaded = afm_dist.from_pretrained(str(tmp_path), model=own_model(1))

    assert torch.equal(loaded(x), model.eval()(x))


def test_a_model_of_ones_own_has_to_be_given(tmp_path: Path) -> None:
    save_pretrained(own_model(0), str(tmp_path))

    with pytest.raises(DataError, match=r"model of your own: .*model=model"):
        from_pretrained(str(tmp_path))


def test_another_model_than_the_saved_one_is_refused(tmp_path: Path) -> None:
    save_pretrained(own_model(0), str(tmp_path))

    with pytest.raises(DataError, match="do not fit"):
        from_pretrained(str(tmp_path), model=nn.Sequential(nn.Linear(3, 9)))


# What is refused ---------------------------------------------------------------------------------


def refused(location: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        from_pretrained(str(location))
    assert str(location) in str(error.value)
    assert "\n" not in str(error.value)


def forget_checksums(location: Path) -> None:
    """As of an older release: what is refused is the content."""
    (location / storage.SUMS).unlink(missing_ok=True)


def edit_config(location: Path, **changes: Any) -> None:
    path = str(location / "config.json")
    storage.write_json(path, {**storage.read_json(path, object), **changes})
    forget_checksums(location)


def edit_tensors(location: Path, **changes: Tensor | None) -> None:
    path = location / "model.safetensors"
    tensors = {**safetensors.torch.load_file(path), **changes}
    safetensors.torch.save_file({k: v for k, v in tensors.items() if v is not None}, path)
    forget_checksums(location)


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_an_unknown_format_version_is_refused_by_name(saved: Path, version: Any) -> None:
    edit_config(saved, format_version=version)

    refused(saved, rf"config\.json: format version {version!r} is unknown")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "transformer"}, "transformer"),
        ({"hyper_parameters": {"depth": 3}}, "depth"),
        ({"hyper_parameters": 7}, "hyper_parameters"),
        ({"fields": [{"name": "x", "kind": "picture"}]}, "picture"),
        ({"fields": 3}, "damaged"),
        ({"compression": {"format_version": 9}}, r"plan format version 9"),
        ({"compression": None}, "compression"),
    ],
    ids=["architecture", "hyper-parameter", "hyper-parameters", "kind", "fields", "plan version", "no plan"],
)
def test_content_that_is_not_understood_is_refused_by_name(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(saved, **changes)

    refused(saved, message)


def test_an_unknown_method_in_the_plan_is_refused_by_name(saved: Path) -> None:
    plan = storage.read_json(str(saved / "config.json"), object)["compression"]
    plan["entries"][0]["method"] = "tucker"
    edit_config(saved, compression=plan)

    refused(saved, r"mlp\.3.*method 'tucker' is unknown")


@pytest.mark.parametrize(
    ("change", "message"), [({"module": "mlp.77"}, r"mlp\.77"), ({"config": {"rank": 4711}}, "4711")]
)
def test_a_plan_that_does_not_fit_the_architecture_is_refused(
    saved: Path, change: dict[str, Any], message: str
) -> None:
    plan = storage.read_json(str(saved / "config.json"), object)["compression"]
    plan["entries"][0] |= change
    edit_config(saved, compression=plan)

    refused(saved, message)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, r"not a checkpoint directory \(no config\.json\)")


def test_missing_tensors_are_refused_by_name(saved: Path) -> None:
    (saved / "model.safetensors").unlink()

    refused(saved, r"model\.safetensors: missing")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_tensors_are_refused_by_name(saved: Path, keep: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])

    refused(saved, r"model\.safetensors: damaged .truncated or altered")
    forget_checksums(saved)
    refused(saved, r"model\.safetensors: damaged")


def test_a_pickle_in_place_of_the_tensors_is_refused_and_never_opened(saved: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (saved / "exploded",)

    forget_checksums(saved)
    for content in (pickle.dumps(Bomb()), b""):
        torch.save({"weight": Bomb()}, saved / "model.safetensors")
        if content:
            (saved / "model.safetensors").write_bytes(content)

        refused(saved, r"model\.safetensors: damaged")

    assert not (saved / "exploded").exists()


def test_a_tensor_too_few_or_too_many_or_of_another_shape_is_refused_by_name(saved: Path) -> None:
    content = (saved / "model.safetensors").read_bytes()
    for changes in (
        {"linear.numeric": None},
        {"surplus": torch.zeros(1)},
        {"linear.numeric": torch.zeros(2)},
    ):
        (saved / "model.safetensors").write_bytes(content)
        edit_tensors(saved, **changes)

        refused(saved, next(iter(changes)))


@pytest.mark.parametrize(
    "index",
    [{}, [], {"weight_map": 3}, {"weight_map": {"x": 3}}, {"weight_map": {"x": "../model.safetensors"}}],
)
def test_an_index_that_is_not_understood_is_refused(saved: Path, index: Any) -> None:
    storage.write_json(str(saved / "model.safetensors.index.json"), index)

    refused(saved, r"index\.json: damaged .there is no checksum of it")
    forget_checksums(saved)
    refused(saved, r"index\.json: damaged")


def test_a_missing_part_of_several_files_is_refused_by_name(tmp_path: Path) -> None:
    model, _ = model_and_plan("baseline")
    save_pretrained(model, str(tmp_path), CONFIG, max_file_bytes=300)
    part = sorted(tmp_path.glob("model-00002-of-*.safetensors"))[0]
    part.unlink()

    refused(tmp_path, rf"{part.name}: missing")


# What was altered --------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    """The lowest bit of one byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("max_file_bytes", [10**9, 300], ids=["one file", "several files"])
def test_a_flipped_bit_of_any_file_is_refused_by_name(tmp_path: Path, max_file_bytes: int) -> None:
    model, plan = model_and_plan("folded")
    save_pretrained(model, str(tmp_path), replace(CONFIG, plan=plan), max_file_bytes=max_file_bytes)

    names = storage.list_names(str(tmp_path))
    assert {"config.json", "SHA256SUMS"} < set(names)
    for name in names:
        content = (tmp_path / name).read_bytes()
        for at in (0, len(content) // 3, len(content) // 2, len(content) - 2):
            flip(tmp_path / name, at)

            # Of the list of checksums itself, the file whose line it is may be named.
            refused(tmp_path, re.escape(name) if name != storage.SUMS else "altered|SHA256SUMS")
            (tmp_path / name).write_bytes(content)

    assert torch.equal(logits(from_pretrained(str(tmp_path))), logits(model))


def test_a_description_that_was_altered_is_refused_by_all_who_read_it(saved: Path) -> None:
    text = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text.replace('"kappa": 2.0', '"kappa": 3.0'))
    assert (saved / "config.json").read_text() != text

    for read in (from_pretrained, load_config, check_files):
        with pytest.raises(DataError, match=r"config\.json: damaged .truncated or altered"):
            read(str(saved))


def test_the_checksums_are_those_of_sha256sum(saved: Path) -> None:
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=saved, check=False)

    assert checked.returncode == 0


def test_a_checkpoint_of_an_older_release_loads_with_a_warning(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = from_pretrained(str(saved))
    assert not capsys.readouterr().err

    forget_checksums(saved)

    assert torch.equal(logits(from_pretrained(str(saved))), logits(model))
    warned = capsys.readouterr().err
    assert f"{saved}: has no SHA256SUMS" in warned.replace("\n", "")
    check_files(str(saved))
    assert not capsys.readouterr().err


def test_a_checkpoint_that_was_overwritten_by_half_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = model_and_plan("mlp")
    for last in ("SHA256SUMS", "config.json"):
        write = storage.files.open_write

        def interrupted(location: str, last: str = last, write: Any = write) -> Any:
            if location.endswith(last):
                raise KeyboardInterrupt
            return write(location)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(storage.files, "open_write", interrupted)
            save_pretrained(model, str(saved), replace(CONFIG, plan=plan))

        refused(saved, "altered")

    save_pretrained(model, str(saved), replace(CONFIG, plan=plan))
    assert torch.equal(logits(from_pretrained(str(saved))), logits(model))


def test_a_plan_beside_its_checkpoint_is_checked_and_a_copy_may_be_edited(
    saved: Path, tmp_path: Path
) -> None:
    plan = load_config(str(saved)).plan
    save_plan(plan, str(saved))
    path = saved / "plan.json"
    assert Plan.load(str(path)) == plan
    path.write_text(path.read_text().replace('"rank": 2', '"rank": 3', 1))

    with pytest.raises(DataError, match=r"plan\.json: damaged .truncated or altered .* another folder"):
        Plan.load(str(path))

    path.rename(tmp_path / "plan.json")
    assert Plan.load(str(tmp_path / "plan.json")).entries[0].rank == 3


def test_several_files_are_read_once_a_process(
    saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path in saved.iterdir():
        os.utime(path, (0, 0))
    monkeypatch.setattr(storage.content, "SETTLED_NS", 0)
    read: list[str] = []
    whole = storage.content._sha256_in_pieces
    monkeypatch.setattr(
        storage.content, "_sha256_in_pieces", lambda path: [read.append(path), whole(path)][1]
    )

    for _ in range(3):
        from_pretrained(str(saved))
        check_files(str(saved))

    assert sorted(Path(path).name for path in read) == ["config.json", "model.safetensors"]


# Schemas -----------------------------------------------------------------------------------------


def data_with(fields: tuple[Field, ...]) -> Manifest:
    return Manifest(location="DATA", label="click", fields=fields, splits={})


def test_the_schema_it_was_trained_on_is_accepted() -> None:
    check_schema(CONFIG, data_with(FIELDS), checkpoint="CHECKPOINT")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((replace(FIELDS[0], cardinality=31), *FIELDS[1:]), r"'site' has cardinality 30 .* 31 in the data"),
        ((*FIELDS[:2], replace(FIELDS[2], mean=0.6)), r"'age' has mean 0\.5 .* 0\.6"),
        ((*FIELDS[:2], replace(FIELDS[2], deviation=3.0)), r"'age' has deviation"),
        (
            (FIELDS[0], replace(FIELDS[1], kind="numeric", cardinality=0), FIELDS[2]),
            "'ad' has kind categorical",
        ),
        ((replace(FIELDS[0], column="page"), *FIELDS[1:]), "'site' has column .* page in the data"),
        (
            (replace(FIELDS[0], transform="weekday"), *FIELDS[1:]),
            "'site' has transform .* weekday in the data",
        ),
        ((*FIELDS, Field(name="hour", kind="numeric")), "does not know field 'hour'"),
        (FIELDS[:2], "the data lacks age"),
        ((FIELDS[1], FIELDS[0], FIELDS[2]), "the same order of fields"),
    ],
    ids=["cardinality", "mean", "deviation", "kind", "column", "transform", "new", "gone", "order"],
)
def test_another_schema_is_refused_with_the_field_that_differs(
    fields: tuple[Field, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        check_schema(CONFIG, data_with(fields), checkpoint="CHECKPOINT")
    assert "CHECKPOINT" in str(error.value)
    assert "DATA" in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        '{"job": "train"}',
        '{"model_type": "bert", "format_version": 1}',
        "half",
        "[]",
        '{"format_version": 2}',
    ],
)
def test_a_folder_of_something_else_is_not_written_over(tmp_path: Path, config: str) -> None:
    theirs = {"config.json": config, "model.safetensors": "x", "model-00001-of-00002.safetensors": "y"}
    for name, text in theirs.items():
        (tmp_path / name).write_text(text)
    model, _ = model_and_plan("baseline")

    for limit in (10**9, 300):
        with pytest.raises(OptionError, match="something else than a checkpoint of this library"):
            save_pretrained(model, str(tmp_path), CONFIG, max_file_bytes=limit)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == theirs
