"""A record sees every bit of a result, and nothing of the day, the machine and the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.frozen.compare import differences
from tests.frozen.digests import Entry, entries_of_folder

REPORT = {
    "created": "2026-01-01",
    "rows": [
        {"name": "afm-emb", "stage": "before-finetune", "auc": 0.5, "rows_per_second": 10.0},
        {"name": "afm-emb", "stage": "after-finetune", "auc": 0.7, "rows_per_second": 11.0},
    ],
    "shipped": {"name": "afm-emb", "checkpoint": "FOLDER/checkpoint"},
}


def write(folder: Path, *, weight: torch.Tensor | None = None, name: str = "a", **changes: Any) -> None:
    (folder / "report").mkdir(parents=True)
    text = json.dumps({**REPORT, **changes}).replace("FOLDER", str(folder))
    (folder / "report/report.json").write_text(text)
    (folder / "report/report.md").write_text(f"AUC 0.7 of {folder}\n\n## Run\n\n{changes}\n")
    (folder / "environment.json").write_text(str(folder))
    tensor = torch.arange(3.0) if weight is None else weight
    save_file({name: tensor}, folder / "model.safetensors")


def entries(folder: Path, **changes: Any) -> dict[str, Entry]:
    write(folder, **changes)
    return entries_of_folder(folder, str(folder))


def test_the_same_result_of_another_day_in_another_folder_is_the_same(tmp_path: Path) -> None:
    before = entries(tmp_path / "a")
    after = entries(tmp_path / "b", created="2026-02-02", timings=[{"stage": "x", "seconds": 1}])

    assert list(before) == [
        "model.safetensors#a",
        "report/report.json:rows/afm-emb before-finetune",
        "report/report.json:rows/afm-emb after-finetune",
        "report/report.json:shipped/name",
        "report/report.json:shipped/checkpoint",
        "report/report.md",
    ]
    assert before == after


def test_the_last_bit_of_a_weight_is_a_change(tmp_path: Path) -> None:
    weight = torch.arange(3.0)
    weight[1] = torch.nextafter(weight[1], torch.tensor(2.0))

    found = differences(entries(tmp_path / "a"), entries(tmp_path / "b", weight=weight))

    assert found.any
    (line,) = found.changed
    assert line.startswith("model.safetensors#a: norm ")


def test_the_last_digit_of_a_figure_is_a_change_and_is_named(tmp_path: Path) -> None:
    rows = [REPORT["rows"][0], {**REPORT["rows"][1], "auc": 0.7000000000000001}]

    found = differences(entries(tmp_path / "a"), entries(tmp_path / "b", rows=rows))

    assert found.changed == ["report/report.json:rows/afm-emb after-finetune: auc 0.7 -> 0.7000000000000001"]


def test_another_type_of_the_same_numbers_is_a_change(tmp_path: Path) -> None:
    found = differences(entries(tmp_path / "a"), entries(tmp_path / "b", weight=torch.arange(3.0).double()))

    assert found.changed == ["model.safetensors#a: float32 (3,) -> float64 (3,)"]


def test_a_tensor_of_another_name_has_moved_and_one_that_is_gone_is_missing(tmp_path: Path) -> None:
    before, after = entries(tmp_path / "a"), entries(tmp_path / "b", name="other")

    moved = differences(before, after)
    missing = differences(before, {})

    assert not moved.any
    assert moved.moved == ["model.safetensors#a -> model.safetensors#other"]
    assert missing.any
    assert sorted(missing.missing) == sorted(before)
