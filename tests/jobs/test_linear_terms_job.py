"""First-order weights absorbed into the tables, or rounded, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained
from tests.jobs.commands import succeed
from tests.jobs.conftest import Compressed, compress_command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_table_of_first_order_weights_is_gone_and_the_report_says_so(
    compressed: Compressed, tmp_path: Path
) -> None:
    output = tmp_path / "absorbed"
    command = compress_command(compressed.data, compressed.trained, str(output))
    command.remove("--stream-check")

    succeed(*command, "--methods", "afm,weighted,scratch", "--linear-terms", "absorb")

    kept, absorbed = (f"{folder}/checkpoint" for folder in (compressed.output, output))
    assert [entry.config.absorbs for entry in load_config(absorbed).plan.entries] == [None, None, "linear"]
    before, after = (from_pretrained(checkpoint).state_dict() for checkpoint in (kept, absorbed))
    assert "linear.weight" in before
    assert "linear.weight" not in after
    report = json.loads((output / "report" / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["afm-emb"]["parameters"] == rows["scratch"]["parameters"]
    assert rows["afm-emb"]["parameters"] == sum(tensor.numel() for tensor in after.values())
    tables = [tensor for name, tensor in after.items() if name.startswith(("embedding", "linear"))]
    assert sum(table["bytes_after"] for table in report["tables"]) == sum(
        tensor.nbytes for tensor in tables if tensor is not after["linear.numeric"]
    )
    (width,) = {layer["width"] for layer in report["layers"] if layer["kind"] == "embedding"}
    assert width == load_config(absorbed).hyper_parameters["embedding_dim"] + 1
    assert any(note.startswith("The first-order weights of the ids (linear)") for note in report["notes"])


def test_rounded_rows_have_two_bytes_a_number_and_the_report_says_so(
    compressed: Compressed, tmp_path: Path
) -> None:
    output = tmp_path / "rounded"
    command = compress_command(compressed.data, compressed.trained, str(output))

    succeed(*command, "--linear-terms", "bfloat16", "--codes", "bfloat16")

    checkpoint = str(output / "checkpoint")
    assert load_config(checkpoint).plan.bfloat16 == ("embedding", "linear")
    model = from_pretrained(checkpoint)
    rows = model.embedding.weight.numel() + model.linear.weight.numel()
    saved = size_on_disk(f"{compressed.output}/checkpoint") - size_on_disk(checkpoint)
    assert saved == pytest.approx(2 * rows, abs=200)
    report = json.loads((output / "report" / "report.json").read_text())
    assert any(note.startswith("The rows of embedding and linear are rounded") for note in report["notes"])
