from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_dist.errors import DataError
from jobs.benchmarks.summary import ROWS, Compression, spread, table


def run(
    folder: Path, model: str, seed: int, afm: float, *, bayes: float | None = 0.8, **options: object
) -> Compression:
    """A run's report with these figures, read again."""
    auc = {"baseline": 0.70, "control": 0.71, "AFM, before": 0.69, "AFM": afm, "SVD": 0.70}
    rows = [
        {"name": name, "stage": stage, "auc": auc[key], "bytes": 100 if key == "baseline" else 25}
        for key, (name, stage) in ROWS.items()
    ]
    options = {"data": "somewhere/log", **options}
    data = {"name": "part-0", **({} if bayes is None else {"bayes_auc": bayes})}
    place = folder / f"{model}-{seed}" / "report"
    place.mkdir(parents=True)
    report = {"rows": rows, "config": {"model": model, "seed": seed, **options}, "data": data}
    (place / "report.json").write_text(json.dumps(report))
    return Compression.read(str(place.parent))


def test_a_row_has_means_and_deviations_over_the_seeds(tmp_path: Path) -> None:
    runs = [run(tmp_path, "dcn", 0, 0.72), run(tmp_path, "dcn", 1, 0.74), run(tmp_path, "nfm", 0, 0.71)]

    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(runs).split("\n")
    )

    dcn, nfm = (dict(zip(head, row, strict=True)) for row in rows)
    assert (dcn["data"], dcn["model"], dcn["seeds"], dcn["smaller"]) == ("log", "dcn", "2", "4.0×")
    assert dcn["AFM"] == "0.7300 ± 0.0141"
    assert dcn["AFM − control"] == "+0.0200 ± 0.0141"
    assert dcn["to Bayes"] == "0.0700 ± 0.0141"
    assert (nfm["model"], nfm["AFM"], nfm["AFM − baseline"]) == ("nfm", "0.7100", "+0.0100")


def test_without_a_known_optimum_there_is_no_distance_to_it(tmp_path: Path) -> None:
    (last,) = table([run(tmp_path, "dcn", 0, 0.72, bayes=None)]).splitlines()[2:]

    assert [cell.strip() for cell in last.split("|")][-3:] == ["", "4.0×", ""]


def test_runs_that_cannot_be_summarised_are_named(tmp_path: Path) -> None:
    one = run(tmp_path, "dcn", 0, 0.72)

    with pytest.raises(DataError, match="log, dcn: two runs of one seed"):
        table([one, one])
    with pytest.raises(DataError, match=r"log, dcn: runs with other options.*mlp_rank"):
        table([one, run(tmp_path, "dcn", 1, 0.72, mlp_rank=3)])
    with pytest.raises(DataError, match="its baseline was trained elsewhere"):
        run(tmp_path, "dcn", 2, 0.72, checkpoint="elsewhere")
    with pytest.raises(DataError, match=r"report\.json"):
        Compression.read(str(tmp_path / "absent"))


def test_differences_carry_their_sign() -> None:
    assert spread([-0.01, 0.01], sign=True) == "+0.0000 ± 0.0141"


def test_a_report_from_before_an_option_has_its_default(tmp_path: Path) -> None:
    runs = [run(tmp_path, "dcn", 0, 0.72), run(tmp_path, "dcn", 1, 0.72, finetune_average=False)]
    assert len(table(runs).splitlines()) == 3


def test_the_demo_has_no_folder_to_be_called_after(tmp_path: Path) -> None:
    assert run(tmp_path, "dcn", 0, 0.72, data=None).data == "demo"
