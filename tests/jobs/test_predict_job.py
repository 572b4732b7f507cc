"""Raw rows scored by the command of the README, and what the command refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.protocol import Protocol
from tests.jobs.commands import ROOT, fail, run_warm
from tests.jobs.conftest import Compressed

pytestmark = pytest.mark.ray


def readme_command() -> list[str]:
    """The README's command, without ``python``."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python (jobs/predict.py .*)$", readme, re.MULTILINE)
    return shlex.split(command)


def test_raw_rows_of_the_test_split_have_the_log_loss_of_the_evaluation(
    compressed: Compressed, tmp_path: Path
) -> None:
    log = Path(compressed.data).parents[1] / "clicks.csv"
    output = tmp_path / "scores.parquet"

    places = {"runs/compressed/checkpoint": f"{compressed.output}/checkpoint"}
    places |= {"rows.csv": str(log), "scores.parquet": str(output), "user": "click"}
    result = run_warm(*(places.get(word, word) for word in readme_command()))

    assert result.returncode == 0, result.stderr
    assert "6,000 rows in" in result.stdout
    scores = pq.read_table(output)
    assert scores.column_names == ["row", "score", "logit", "click"]
    assert list(tmp_path.iterdir()) == [output]
    test = Protocol().split(1)(0, np.arange(6_000), {}) == 2
    labels, logits = scores["click"].cast("int8").to_numpy()[test], scores["logit"].to_numpy()[test]
    log_loss = np.logaddexp(0, np.where(labels == 1, -logits, logits).astype(np.float64)).mean()
    assert log_loss == pytest.approx(json.loads(Path(compressed.figures).read_text())["log_loss"], abs=1e-6)


def test_damaged_model_and_missing_preprocessing_are_named(compressed: Compressed, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(f"{compressed.output}/checkpoint", checkpoint)
    tensors = checkpoint / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\0")
    command = (
        *("jobs/predict.py", "--checkpoint", str(checkpoint)),
        *("--input", compressed.data, "--output", str(tmp_path / "scores.parquet")),
    )

    assert f"{tensors}: not the file that preprocessing/ came with" in fail(*command, code=1)

    shutil.rmtree(checkpoint / "preprocessing")
    assert f"{checkpoint}: has no preprocessing/" in fail(*command, code=1)
