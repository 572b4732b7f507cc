"""Every format computes every model's logits, also in a process that knows nothing of this library."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.dataset.manifest import Field
from afm_dist.export import FORMATS, Parity, export
from afm_dist.export.export import BOUNDS, SUFFIXES, check_format
from afm_dist.serving.rows import PRECISIONS, Precision
from tests.models.small_models import FIELDS, MODELS, NO_NUMBERS, SHAPES, inputs, small_model
from tests.models.test_compressed_architectures import everything
from tests.serving.test_prepare import Compression, compressed

slow = pytest.mark.slow
NUMBERS = pytest.mark.parametrize("fields", [FIELDS, NO_NUMBERS], ids=["numbers", "no numbers"])

README = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
FORMAT_OF = {"onnxruntime": "onnx", "torch.export.load": "torch-export", "aoti_load_package": "aoti"}
# What the README tells its readers to run.
PROGRAMS = {
    format: program
    for program in re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    for word, format in FORMAT_OF.items()
    if word in program
}
# Around it: the rows of an .npz file go in, in batches of several sizes, and the logits are printed.
BEGIN = """
import json, sys, numpy
rows = numpy.load("rows.npz")
for size in (301, 1, 0):
    ids, numeric = rows["ids"][:size], rows["numeric"][:size]
"""
TENSORS = """
    import torch
    ids, numeric = torch.from_numpy(ids), torch.from_numpy(numeric)
"""
END = """
    print(json.dumps(logits.tolist()))
assert not any(name.split(".")[0] in ("afm_dist", "jobs", "data_prep", "tests") for name in sys.modules)
"""


def exported(
    model: nn.Module,
    name: str,
    format: str,
    folder: Path,
    *,
    fields: tuple[Field, ...] = FIELDS,
    precision: Precision = "float32",
) -> tuple[Path, Parity]:
    config = ModelConfig(architecture=name, hyper_parameters=SHAPES[name], fields=fields)
    path = folder / f"model{SUFFIXES[format]}"
    parity = export(model, config, format, str(path), precision=precision)
    assert [each.name for each in folder.iterdir()] == [path.name]
    # It is known as one that may be replaced.
    check_format(format, str(path))
    return path, parity


def assert_runs_as(
    model: nn.Module, path: Path, format: str, *, fields: tuple[Field, ...], bound: float
) -> None:
    """The file, loaded again, gives the model's logits, of a batch of one and of none as well."""
    run = FORMATS[format].load(path)
    for rows in (301, 1, 0):
        ids, numeric = inputs(rows, fields, seed=7)
        given = (ids, numeric) if numeric.shape[1] else (ids,)
        with torch.inference_mode():
            expected = model(ids, numeric)
        torch.testing.assert_close(run(*given), expected, rtol=0, atol=bound)
        assert rows < 2 or expected.std() > 0.05


@pytest.mark.parametrize("name", MODELS)
def test_torch_export_computes_every_compressed_model(name: str, tmp_path: Path) -> None:
    model, _ = everything(name)

    path, parity = exported(model, name, "torch-export", tmp_path)

    assert parity.difference <= 1e-5 and parity.rows > 500
    assert_runs_as(model, path, "torch-export", fields=FIELDS, bound=1e-5)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("deepfm", NO_NUMBERS), ("dlrm", FIELDS), *(pytest.param(name, FIELDS, marks=slow) for name in MODELS)],
)
def test_onnx_computes_every_compressed_model(name: str, fields: tuple[Field, ...], tmp_path: Path) -> None:
    model = everything(name)[0] if fields is FIELDS else small_model(name, fields)

    path, parity = exported(model, name, "onnx", tmp_path, fields=fields)

    assert parity.difference <= 1e-5
    assert_runs_as(model, path, "onnx", fields=fields, bound=1e-5)


@pytest.mark.parametrize("compression", ["ranks folded and absorbed", "ranks 0"])
def test_onnx_computes_fields_without_codes(compression: Compression, tmp_path: Path) -> None:
    model = compressed("deepfm", compression)

    path, _ = exported(model, "deepfm", "onnx", tmp_path)

    assert_runs_as(model, path, "onnx", fields=FIELDS, bound=1e-5)


@slow
@NUMBERS
@pytest.mark.parametrize("name", MODELS)
def test_every_format_computes_every_uncompressed_model(
    name: str, fields: tuple[Field, ...], tmp_path: Path
) -> None:
    model = small_model(name, fields)
    for format in ("torch-export", "onnx"):
        (folder := tmp_path / format).mkdir()
        path, _ = exported(model, name, format, folder, fields=fields)
        assert_runs_as(model, path, format, fields=fields, bound=1e-5)


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MODELS)
def test_aoti_computes_every_compressed_model(name: str, tmp_path: Path) -> None:
    model, _ = everything(name)

    path, parity = exported(model, name, "aoti", tmp_path)

    assert parity.difference <= 1e-5
    assert_runs_as(model, path, "aoti", fields=FIELDS, bound=1e-5)


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_aoti_computes_an_uncompressed_model_without_numbers(precision: Precision, tmp_path: Path) -> None:
    model = small_model("deepfm", NO_NUMBERS)

    path, parity = exported(model, "deepfm", "aoti", tmp_path, fields=NO_NUMBERS, precision=precision)

    assert parity.difference <= BOUNDS[precision]
    assert_runs_as(model, path, "aoti", fields=NO_NUMBERS, bound=BOUNDS[precision])


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("format", ["torch-export", pytest.param("onnx", marks=slow)])
def test_tables_of_lower_precision_make_smaller_files_with_nearly_the_same_logits(
    format: str, precision: Precision, tmp_path: Path
) -> None:
    model, _ = everything("deepfm")

    path, parity = exported(model, "deepfm", format, tmp_path, precision=precision)

    assert 1e-5 < parity.difference <= BOUNDS[precision]
    assert_runs_as(model, path, format, fields=FIELDS, bound=BOUNDS[precision])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("format", ["torch-export", "onnx", pytest.param("aoti", marks=slow)])
def test_the_readmes_program_gets_the_same_logits_without_this_library(format: str, tmp_path: Path) -> None:
    model, _ = everything("dcnv2")
    path, _ = exported(model, "dcnv2", format, tmp_path)
    program = PROGRAMS[format]
    path.rename(tmp_path / re.search(r'"(\w+\.\w+)"', program)[1])
    program = BEGIN + (TENSORS if "torch" in program else "") + textwrap.indent(program, "    ") + END
    ids, numeric = inputs(301, seed=7)
    np.savez(tmp_path / "rows.npz", ids=ids.numpy(), numeric=numeric.numpy())

    result = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    found = [Tensor(json.loads(line)) for line in result.stdout.splitlines()]
    with torch.inference_mode():
        expected = model(ids, numeric)
    for logits, rows in zip(found, (301, 1, 0), strict=True):
        torch.testing.assert_close(logits, expected[:rows], rtol=0, atol=1e-5)
