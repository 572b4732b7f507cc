"""A file appears when it is right, says what it is, and has what makes raw rows its inputs beside it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from socket import gethostname
from unittest.mock import Mock

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor

from afm_dist import storage
from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError, OptionError
from afm_dist.export import Parity, ParityError, aoti, export, onnx_file, torch_export
from afm_dist.export.check import check, made_up_batches
from afm_dist.export.export import PREPROCESSING_SUFFIX, _folder_in, check_format, written_bytes
from afm_dist.export.metadata import PRODUCER
from afm_dist.export.module import ExportedModel, trace
from afm_dist.serving.prepare import prepare_for_inference
from jobs.export import Export, main
from tests.checkpoint.test_preprocessing import prepared, save_model
from tests.models.small_models import FIELDS, NO_NUMBERS, SHAPES, inputs, small_model
from tests.models.test_compressed_architectures import everything
from tests.small_dataset import write_dataset


def _archive(texts: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/extra/metadata.json", texts)
    return file.getvalue()


OLDER = _archive(json.dumps({"producer": f"{PRODUCER}0.1"}))
CONFIG = ModelConfig(architecture="nfm", hyper_parameters=SHAPES["nfm"], fields=FIELDS)


def score(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A file that is right in all."""
    exported = ExportedModel(model, FIELDS)

    def run(ids: Tensor, numeric: Tensor) -> Tensor:
        with torch.inference_mode():
            return exported(ids, numeric)

    return run


# What is checked -------------------------------------------------------------------------------------


def test_made_up_rows_have_every_fields_unknown_first_and_last_id_and_batches_of_none_one_and_odd_sizes() -> (
    None
):
    batches = list(made_up_batches(FIELDS))

    sizes = [len(ids) for ids, _ in batches]
    assert {0, 1, 2}.issubset(sizes) and any(size % 2 for size in sizes if size > 100)
    small = torch.cat([ids for ids, _ in batches if len(ids) < 20])
    for i, cardinality in enumerate((7, 4, 9)):
        assert {0, 1, cardinality - 1} <= set(small[:, i].tolist())
    ids, numeric = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert ids.min() == 0 and (ids < torch.tensor([7, 4, 9])).all()
    assert (numeric == 0).all(1).any() and (numeric != 0).all(1).any()


def test_rows_with_ids_outside_their_field_give_nan_and_no_other_row_changes() -> None:
    model, _ = everything("autoint")
    ids, numeric = inputs(8)
    bad = ids.clone()
    for row, field, value in ((1, 0, -1), (2, 1, 4), (5, 2, 2**40), (7, 0, -(2**63))):
        bad[row, field] = value

    found = score(model)(bad, numeric)

    assert found.isnan().nonzero().flatten().tolist() == [1, 2, 5, 7]
    good = ~found.isnan()
    with torch.inference_mode():
        torch.testing.assert_close(found[good], model(ids, numeric)[good], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda logits, ids: logits + 2e-5,
            r"differ from the model's by up to 2\S*e-05 on 582 made-up rows, where 1e-05",
        ),
        (
            lambda logits, ids: torch.where((ids[:, 1] == 3), logits + 1, logits),
            "differ from the model's by up to 1 ",
        ),
        (
            lambda logits, ids: torch.where((ids[:, 0] == 6), torch.nan, logits),
            "differ from the model's by up to nan",
        ),
        (lambda logits, ids: logits[:1].expand(len(ids)), "differ from the model's by up to"),
        (lambda logits, ids: logits.double(), "0 rows give logits of torch.float64"),
        (lambda logits, ids: logits.unsqueeze(1), r"give logits of torch.float32 and shape \(0, 1\)"),
        (
            lambda logits, ids: logits.nan_to_num(0.25),
            "gives the logit 0.25 for id 7 of field 'site', which has 7 ids",
        ),
        (
            lambda logits, ids: logits + logits.isnan().any(),
            "ids outside their field change the logits of other rows, by up to 1 ",
        ),
    ],
    ids=["all", "one id", "nan", "one row for all", "float64", "shape", "no nan", "other rows"],
)
def test_a_file_that_computes_something_else_is_refused(
    change: Callable[[Tensor, Tensor], Tensor], message: str
) -> None:
    model, _ = everything("deepfm")
    right = score(model)
    check(right, model, FIELDS, bound=1e-5, data=None, name="F")

    with pytest.raises(ParityError, match=f"F: not written, for .*{message}"):
        check(
            lambda ids, numeric: change(right(ids, numeric), ids),
            model,
            FIELDS,
            bound=1e-5,
            data=None,
            name="F",
        )


def test_a_failed_check_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("nfm")
    path = tmp_path / "model.pt2"
    path.write_bytes(OLDER)
    wrong = score(small_model("nfm", embedding_dim=8))
    monkeypatch.setattr(torch_export, "write", lambda program, metadata, path: path.write_text("new"))
    monkeypatch.setattr(torch_export, "load", lambda path: wrong)

    message = r"model.pt2: not written, for its logits differ from the model's .* where 1e-05 is accepted"
    with pytest.raises(ParityError, match=message):
        export(model, CONFIG, "torch-export", str(path))

    assert path.read_bytes() == OLDER
    assert list(tmp_path.iterdir()) == [path]


def test_a_precision_that_changes_the_model_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("nfm")
    with torch.no_grad():
        model.embedding.weight[2] = 1e4
    right = score(prepare_for_inference(model, precision="int8"))
    monkeypatch.setattr(torch_export, "write", lambda program, metadata, path: path.write_text("new"))
    monkeypatch.setattr(torch_export, "load", lambda path: right)

    with pytest.raises(ParityError, match=r"where 0\.05 is accepted .*; choose --precision float32"):
        export(model, CONFIG, "torch-export", str(tmp_path / "model.pt2"), precision="int8")

    assert not list(tmp_path.iterdir())


def test_what_belonged_to_an_older_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("nfm")
    monkeypatch.setattr(torch_export, "write", lambda program, metadata, path: path.write_text("new"))
    monkeypatch.setattr(torch_export, "load", lambda path: score(model))
    (tmp_path / "model.pt2").write_bytes(OLDER)
    (tmp_path / "model.pt2.data").write_text("tensors of an older file")
    (tmp_path / "model.pt2.preprocessing").mkdir()

    export(model, CONFIG, "torch-export", str(tmp_path / "model.pt2"))

    assert [each.name for each in tmp_path.iterdir()] == ["model.pt2"]


def test_vocabularies_that_cannot_be_copied_leave_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("nfm")
    path = tmp_path / "model.pt2"
    path.write_bytes(OLDER)
    monkeypatch.setattr(torch_export, "write", lambda program, metadata, path: path.write_text("new"))
    monkeypatch.setattr(torch_export, "load", lambda path: score(model))
    vocabulary = prepared(tmp_path / "data")
    monkeypatch.setattr(preprocessing, "copy", Mock(side_effect=DataError("altered")))

    with pytest.raises(DataError, match="altered"):
        export(model, CONFIG, "torch-export", str(path), vocabulary=vocabulary)

    assert path.read_bytes() == OLDER


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize(
    "content",
    [
        b"notes on afm-dist 0.1, torch 2",
        json.dumps({"producer": f"{PRODUCER}0.1"}).encode(),
        _archive("notes on afm-dist 0.1, torch 2"),
        _archive(json.dumps({"producer": "another, not afm-dist 0.1"})),
        OLDER[:-30],
        b"",
    ],
)
def test_a_file_that_only_mentions_us_is_not_replaced(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(OptionError, match="was not written by this job"):
        check_format("onnx" if name.endswith("onnx") else "torch-export", str(tmp_path / name))


def test_files_of_others_among_vocabularies_are_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(OLDER)
    theirs = tmp_path / f"model.pt2{PREPROCESSING_SUFFIX}"
    preprocessing.copy(prepared(tmp_path / "data"), str(theirs))
    check_format("torch-export", str(tmp_path / "model.pt2"))
    (theirs / "vocabulary" / "notes.txt").write_text("theirs")

    for _ in range(2):
        with pytest.raises(OptionError, match=r"pt2\.preprocessing is there and was not written by this job"):
            check_format("torch-export", str(tmp_path / "model.pt2"))
        (theirs / "manifest.json").unlink(missing_ok=True)


def test_a_file_of_another_model_is_replaced_only_if_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt2"

    def write(program: object, metadata: Mapping[str, str], path: Path) -> None:
        path.write_bytes(_archive(json.dumps(dict(metadata))))

    def exported(model: nn.Module, **options: bool) -> None:
        monkeypatch.setattr(torch_export, "write", write)
        monkeypatch.setattr(torch_export, "load", lambda path: score(model))
        export(model, CONFIG, "torch-export", str(path), **options)

    first, other = small_model("nfm"), small_model("nfm")
    with torch.no_grad():
        other.mlp[-1].bias.add_(1)
    exported(first, overwrite=False)
    exported(first, overwrite=False)
    before = path.read_bytes()

    with pytest.raises(OptionError, match=r"of another model .* --overwrite"):
        exported(other, overwrite=False)
    assert path.read_bytes() == before

    exported(other, overwrite=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize("end", ["", onnx_file.TENSORS_SUFFIX, PREPROCESSING_SUFFIX])
def test_what_others_wrote_is_not_replaced(end: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.onnx{end}"
    path.write_text("another exporter's")

    with pytest.raises(OptionError, match=f"{re.escape(str(path))} is there and was not written by this job"):
        check_format("onnx", str(tmp_path / "model.onnx"))


def test_folders_of_killed_exports_are_removed_and_those_of_others_at_work_are_not(tmp_path: Path) -> None:
    # No system has so large a process id.
    killed, at_work = (tmp_path / f".export-{gethostname()}-{n}-x.tmp" for n in (2**30, os.getpid()))
    killed.mkdir()
    at_work.mkdir()

    with _folder_in(str(tmp_path)) as folder:
        assert set(tmp_path.iterdir()) == {at_work, folder}

    assert list(tmp_path.iterdir()) == [at_work]


def test_round_off_of_large_logits_is_measured_by_their_size() -> None:
    def model(ids: Tensor, numeric: Tensor) -> Tensor:
        return 1000.0 + ids.sum(1)

    right = score(model)
    check(lambda *rows: right(*rows) * (1 + 8e-6), model, FIELDS, bound=1e-5, data=None, name="F")

    with pytest.raises(ParityError, match=r"or 1e-05 of the logit; the model's reach 1\S+\)"):
        check(lambda *rows: right(*rows) * (1 + 2e-5), model, FIELDS, bound=1e-5, data=None, name="F")


def test_round_off_of_another_formula_is_measured_by_the_largest_logit() -> None:
    def model(ids: Tensor, numeric: Tensor) -> Tensor:
        return 1000.0 * ids.sum(1)

    exact = score(model)
    largest = 1000.0 * (6 + 3 + 8)

    def run_off_by(part: float) -> Callable[..., Tensor]:
        return lambda *rows: exact(*rows) + part * largest

    compare = partial(check, model=model, fields=FIELDS, bound=1e-5, data=None, name="F")
    compare(run_off_by(8e-6), of_largest=True)

    with pytest.raises(ParityError, match=r"or 1e-05 of the largest logit; the model's reach 1\.7e\+04\)"):
        compare(run_off_by(1.2e-5), of_largest=True)
    with pytest.raises(ParityError, match=r"or 1e-05 of the logit;"):
        compare(run_off_by(8e-6))


def test_a_form_with_other_round_off_is_written_and_what_is_off_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("nfm")
    with torch.no_grad():
        model.mlp[-1].weight.mul_(1000)
        largest = max(float(model(*rows).abs().max()) for rows in made_up_batches(FIELDS) if len(rows[0]))

    def exported(of_form: float, of_file: float) -> Parity:
        """With a form and a file that are off by parts of the largest logit."""

        def form(ids: Tensor, numeric: Tensor) -> Tensor:
            return model(ids, numeric) + of_form * largest

        right = score(form)
        module = sys.modules["afm_dist.export.export"]
        monkeypatch.setattr(module, "prepare_for_inference", lambda *args, **options: form)
        monkeypatch.setattr(module, "trace", Mock())
        monkeypatch.setattr(torch_export, "write", lambda program, metadata, path: path.write_bytes(OLDER))
        monkeypatch.setattr(torch_export, "load", lambda path: lambda *rows: right(*rows) + of_file * largest)
        return export(model, CONFIG, "torch-export", str(tmp_path / "model.pt2"))

    assert exported(8e-6, 0).difference == pytest.approx(8e-6 * largest, rel=0.05)
    with pytest.raises(ParityError, match=r"1e-05 of the logit; .*; try another --format"):
        exported(0, 8e-6)
    with pytest.raises(ParityError, match=r"1e-05 of the largest logit; .* serve the checkpoint"):
        exported(1.2e-5, 0)


def test_rows_of_the_test_split_are_compared(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, fields=FIELDS, splits={"train": (50,), "test": (20,)})
    (batch,) = read_batches(data, data.shards("test"), 20)
    only_there = batch.numeric[:, 0].max()
    model = small_model("nfm")
    right = score(model)
    compare = partial(check, model=model, fields=FIELDS, bound=1e-5, data=data, name="F")
    assert compare(right).real_rows == 20

    def wrong(ids: Tensor, numeric: Tensor) -> Tensor:
        return right(ids, numeric) + (numeric[:, 0] == only_there)

    with pytest.raises(ParityError, match="by up to 1 on 20 rows of the dataset, where"):
        compare(wrong)


# What the files are ----------------------------------------------------------------------------------


def test_onnx_keeps_tensors_in_a_second_file_where_they_are_too_large_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 100)
    model = small_model("nfm")

    export(model, CONFIG, "onnx", str(tmp_path / "model.onnx"))

    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert written_bytes(str(tmp_path / "model.onnx")) == sum(p.stat().st_size for p in tmp_path.iterdir())
    ids, numeric = inputs()
    with torch.inference_mode():
        expected = model(ids, numeric)
    torch.testing.assert_close(
        onnx_file.load(tmp_path / "model.onnx")(ids, numeric), expected, rtol=0, atol=1e-5
    )
    # Inputs, batch and texts are as a client of the runtime sees them.
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    given = [(each.name, each.type, each.shape[1]) for each in session.get_inputs()]
    assert given == [("ids", "tensor(int64)", 3), ("numeric", "tensor(float)", 2)]
    assert not isinstance(session.get_inputs()[0].shape[0], int)
    assert [(each.name, len(each.shape)) for each in session.get_outputs()] == [("logit", 1)]
    assert_explains_itself(session.get_modelmeta().custom_metadata_map)
    assert str(Path(__file__).parents[2]) not in (tmp_path / "model.onnx").read_bytes().decode("latin-1")


def assert_explains_itself(texts: dict[str, str]) -> None:
    fields = json.loads(texts["fields"])
    assert [(field["name"], field["cardinality"]) for field in fields] == [
        (field.name, field.cardinality) for field in FIELDS
    ]
    assert {"mean", "deviation"} <= set(fields[1])
    assert (texts["model"], texts["precision"]) == ("nfm", "float32")
    assert json.loads(texts["hyper_parameters"]) == {**SHAPES["nfm"], "hidden": [8, 8, 8]}
    assert json.loads(texts["compression"])["entries"] == []
    assert set(json.loads(texts["inputs"])) == {"ids", "numeric"}
    assert "1 / (1 + exp(-logit))" in json.loads(texts["outputs"])["logit"]


def test_a_torch_export_file_explains_itself(tmp_path: Path) -> None:
    export(small_model("nfm"), CONFIG, "torch-export", str(tmp_path / "model.pt2"))

    texts = {torch_export.METADATA: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=texts)
    assert_explains_itself(json.loads(texts[torch_export.METADATA]))
    assert program.example_inputs is None
    assert str(Path(__file__).parents[2]) not in (tmp_path / "model.pt2").read_bytes().decode("latin-1")


def test_without_numeric_fields_ids_are_the_only_input() -> None:
    program = trace(prepare_for_inference(small_model("nfm", NO_NUMBERS)), NO_NUMBERS)

    assert program.graph_signature.user_inputs == ("ids",)


# The job ---------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return prepared(tmp_path / "data")


@pytest.fixture
def checkpoint(manifest: Manifest, tmp_path: Path) -> Path:
    return Path(save_model(tmp_path / "checkpoint", manifest))


def test_a_checkpoint_becomes_a_file_with_its_vocabularies(
    checkpoint: Path, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "model.pt2"

    main(
        Export(format="torch-export", checkpoint=str(checkpoint), output=str(output), data=manifest.location)
    )

    assert sorted(each.name for each in output.parent.iterdir()) == ["model.pt2", "model.pt2.preprocessing"]
    printed = capsys.readouterr().out
    assert re.search(
        r"difference of a logit from the checkpoint's: \S+ on 632 rows, 50 of them of the", printed
    )
    travelled = Manifest.load(f"{output}.preprocessing")
    assert travelled.fields == manifest.fields
    for file in manifest.vocabulary.values():
        assert travelled.read(file) == manifest.read(file)


def refuse(checkpoint: Path, message: str, tmp_path: Path, **options: str) -> None:
    options = {"format": "torch-export", "output": str(tmp_path / "out" / "model.pt2"), **options}
    with pytest.raises((DataError, OptionError), match=message):
        main(Export(checkpoint=str(checkpoint), **options))
    assert not (tmp_path / "out").exists()


def test_damaged_and_foreign_checkpoints_are_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    tensors, config = checkpoint / "model.safetensors", checkpoint / "config.json"
    whole, described = tensors.read_bytes(), json.loads(config.read_text())

    tensors.write_bytes(whole[:-10])
    refuse(checkpoint, f"{re.escape(str(tensors))}: damaged", tmp_path)
    tensors.unlink()
    refuse(checkpoint, f"{re.escape(str(tensors))}: missing", tmp_path)
    tensors.write_bytes(whole)
    # As of an older release: what is refused is the content.
    (checkpoint / storage.SUMS).unlink()
    config.write_text(json.dumps({**described, "hyper_parameters": {"embedding_dim": 8, "hidden": [8]}}))
    refuse(checkpoint, f"{re.escape(str(checkpoint))}: the tensors do not fit the model", tmp_path)
    config.write_text(json.dumps({**described, "architecture": "transformer"}))
    refuse(checkpoint, f"{re.escape(str(checkpoint))}: --model transformer: unknown", tmp_path)
    config.write_text(json.dumps({**described, "architecture": None}))
    refuse(checkpoint, "a checkpoint of a model of your own", tmp_path)
    config.write_text(json.dumps({"model_type": "bert"}))
    refuse(checkpoint, f"{re.escape(str(config))}: format version None is unknown", tmp_path)
    config.unlink()
    refuse(checkpoint, f"{re.escape(str(checkpoint))}: not a checkpoint directory", tmp_path)


def test_data_of_another_schema_and_damaged_vocabularies_are_refused(
    checkpoint: Path, manifest: Manifest, tmp_path: Path
) -> None:
    (vocabulary, *_) = manifest.vocabulary.values()
    path = Path(manifest.location, vocabulary.path)
    path.write_bytes(path.read_bytes()[:-1])
    refuse(checkpoint, f"{re.escape(str(path))}: .* truncated or altered", tmp_path, data=manifest.location)

    saved = json.loads(Path(manifest.location, "manifest.json").read_text())
    saved["fields"][0]["cardinality"] += 1
    Path(manifest.location, "manifest.json").write_text(json.dumps(saved))
    refuse(checkpoint, "was trained on another schema", tmp_path, data=manifest.location)


def test_a_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"training mode; call model.eval\(\) first"):
        export(small_model("nfm").train(), CONFIG, "torch-export", str(tmp_path / "model.pt2"))


def test_a_dataset_without_rows_is_refused(checkpoint: Path, manifest: Manifest, tmp_path: Path) -> None:
    preprocessing.attach(manifest, str(checkpoint))
    folder = str(checkpoint / "preprocessing")
    refuse(checkpoint, f"--data {re.escape(folder)}: has no rows to check the file on", tmp_path, data=folder)


def test_a_file_that_no_real_row_was_tried_on_is_said_to_be_one(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["afm_dist.export.export"], "export", lambda *args, **options: Parity(0.0, 10, 0)
    )
    (tmp_path / "model.pt2").write_bytes(OLDER)

    main(Export(format="torch-export", checkpoint=str(checkpoint), output=str(tmp_path / "model.pt2")))

    assert "made-up rows only; to have it compared on real ones too" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("format", "name"), [("torch-export", "model.onnx"), ("aoti", "model.so"), ("onnx", "model.pt2")]
)
def test_another_ending_of_the_name_is_refused(
    format: str, name: str, checkpoint: Path, tmp_path: Path
) -> None:
    message = rf"--output .*{name}: the name of a file of --format {format} ends in \.(pt2|onnx)"
    refuse(checkpoint, message, tmp_path, format=format, output=str(tmp_path / "out" / name))


def test_missing_libraries_are_named_with_the_command_that_installs_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)

    message = r"--format onnx: .*onnxscript.*; pip install '\.\[onnx\]' in the clone"
    refuse(checkpoint, message, tmp_path, format="onnx", output=str(tmp_path / "out" / "model.onnx"))


def test_a_missing_compiler_is_named_before_the_work_begins() -> None:
    message = r"--format aoti: .*no-such-compiler.*needs a C\+\+ compiler"
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(OptionError, match=message):
        aoti.prepare()


class SumOfIds(nn.Module):
    """Next to nothing to compile."""

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        return ids.sum(1).float()


def test_a_compiler_that_fails_is_named(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec {shutil.which("g++")} "$@"\necho no room >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    # Without ``vec_isa_ok`` it is asked which vectors it knows, and the answer is kept for all later tests.
    broken = {"cpp.cxx": (str(compiler),), "cpp.vec_isa_ok": True, "force_disable_caches": True}
    with inductor.patch(broken):
        aoti.prepare()
        with pytest.raises(
            OptionError, match=r"--format aoti: the compiler failed \(.*no room.*C\+\+ compiler"
        ):
            aoti.write(trace(SumOfIds(), FIELDS), {}, tmp_path / "model.pt2")
