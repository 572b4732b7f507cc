from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from afm_dist.errors import DataError
from jobs.benchmarks.summary import ROWS, Compression, spread, table


def run(
    folder: Path,
    model: str,
    seed: int,
    afm: float,
    *,
    bayes: float | None = 0.8,
    fingerprint: str = "the log's",
    **options: object,
) -> Compression:
    """A run's report with these figures, read again."""
    auc = {"baseline": 0.70, "control": 0.71, "AFM, before": 0.69, "AFM": afm, "SVD": 0.70}
    rows = [
        {"name": name, "stage": stage, "auc": auc[key], "bytes": 100 if key == "baseline" else 25}
        for key, (name, stage) in ROWS.items()
    ]
    options = {"data": "somewhere/log", **options}
    data = {"name": "part-0", "fingerprint": fingerprint, **({} if bayes is None else {"bayes_auc": bayes})}
    place = folder / f"{model}-{seed}" / "report"
    place.mkdir(parents=True)
    report = {"rows": rows, "config": {"model": model, "seed": seed, **options}, "data": data}
    (place / "report.json").write_text(json.dumps(report))
    (read,) = Compression.read(str(place.parent))
    return read


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
    with pytest.raises(DataError, match=r"log, dcn: runs on different datasets"):
        table([one, run(tmp_path, "dcn", 1, 0.72, fingerprint="another's")])
    with pytest.raises(DataError, match="its baseline was trained elsewhere"):
        run(tmp_path, "dcn", 2, 0.72, checkpoint="elsewhere")
    with pytest.raises(DataError, match=r"report\.json"):
        Compression.read(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("mlp_rank", 3, "--mlp-rank: None, 3"),
        ("linear_terms", "absorb", "--linear-terms: keep, absorb"),
        ("codes", "bfloat16", "--codes: float32, bfloat16"),
        ("target_ratio", 5.0, "--target-ratio: None, 5.0"),
        ("field_ranks", "uniform", "--field-ranks: each, uniform"),
        ("compile", True, "--compile: False, True"),
        ("of_a_later_release", 1, "--of-a-later-release: None, 1"),
    ],
)
def test_runs_that_differ_in_an_option_are_not_averaged(
    tmp_path: Path, option: str, value: object, message: str
) -> None:
    runs = [run(tmp_path, "dcn", 0, 0.72), run(tmp_path, "dcn", 1, 0.72, **{option: value})]

    with pytest.raises(DataError, match=f"log, dcn: runs with other options; {re.escape(message)}$"):
        table(runs)


def test_runs_may_differ_in_how_they_ran_and_in_what_they_measured_besides(tmp_path: Path) -> None:
    other = {
        "output": "b",
        "workers": 2,
        "methods": "afm,svd,scratch",
        "ablation": "on",
        "stream_check": True,
    }
    runs = [run(tmp_path, "dcn", 0, 0.72, output="a"), run(tmp_path, "dcn", 1, 0.72, **other)]

    assert len(table(runs).splitlines()) == 3


def test_each_seed_of_the_demo_has_a_log_of_its_own(tmp_path: Path) -> None:
    runs = [run(tmp_path, "dcn", seed, 0.72, data=None, fingerprint=str(seed)) for seed in (0, 1)]

    assert len(table(runs).splitlines()) == 3


def test_a_run_over_several_seeds_is_read_from_those_of_its_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path, "seed", seed, 0.72)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(json.dumps({"seeds": [0, 1], "rows": []}))

    assert [each.seed for each in Compression.read(str(tmp_path))] == [0, 1]

    (tmp_path / "report" / "report.json").write_text(json.dumps({"seeds": [0, 2], "rows": []}))
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "seed-2"))):
        Compression.read(str(tmp_path))


def test_a_report_of_another_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(json.dumps({"kind": "comparison", "rows": []}))

    with pytest.raises(DataError, match=r"not one of jobs/compress\.py"):
        Compression.read(str(tmp_path))


def test_differences_carry_their_sign() -> None:
    assert spread([-0.01, 0.01], sign=True) == "+0.0000 ± 0.0141"


def test_a_report_from_before_an_option_has_its_default(tmp_path: Path) -> None:
    runs = [run(tmp_path, "dcn", 0, 0.72), run(tmp_path, "dcn", 1, 0.72, finetune_average=False)]
    assert len(table(runs).splitlines()) == 3


def test_the_demo_has_no_folder_to_be_called_after(tmp_path: Path) -> None:
    assert run(tmp_path, "dcn", 0, 0.72, data=None).data == "demo"
