"""What stands on the card beside a shipped checkpoint."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import tyro
import yaml

from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.manifest import Field
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.report.model_card import model_card
from jobs.predict import Predict
from tests.report.example import example_report

FIELDS = (
    Field(name="age", kind="numeric"),
    Field(name="user", kind="categorical", cardinality=9),
    Field(name="ad_id", kind="categorical", cardinality=5),
)
CONFIG = ModelConfig(
    architecture="deepfm",
    hyper_parameters={"embedding_dim": 4, "hidden": [6, 5, 4], "dropout": 0.0},
    fields=FIELDS,
    plan=Plan(
        entries=(
            PlanEntry("mlp.3", LowRank(factors="afm", rank=2, activation="shifted")),
            PlanEntry("embedding", LowRank(factors="afm", rank=2, folded_into="mlp.0")),
        )
    ),
)


@pytest.fixture(scope="module")
def card() -> str:
    return model_card(example_report(), CONFIG.to_json(), vocabularies=True)


def front(card: str) -> dict:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def section(card: str, heading: str) -> str:
    return card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_front_matter_says_library_task_and_measured_scores(card: str) -> None:
    matter = front(card)

    assert matter["library_name"] == "afm-dist"
    assert matter["pipeline_tag"] == "tabular-classification"
    assert {"deepfm", "click-through-rate"} <= set(matter["tags"])
    assert "license" not in matter
    (model,) = matter["model-index"]
    (result,) = model["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "roc_auc": 0.8027, "log_loss": 0.4484,
    }  # fmt: skip
    assert result["dataset"] == {"name": "invented", "type": "synthetic", "split": "test"}


def test_the_scores_stand_beside_those_of_the_control(card: str) -> None:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if "|" in line
    ]
    rows = {cells[0]: cells[1:] for cells in lines}

    assert rows["this model"] == ["0.8027", "–", "0.4484", "1.0123", "406", "2.11×"]
    assert rows["control"][:2] == ["0.8034", "−0.0007"]
    assert rows["baseline"][:2] == ["0.8016", "+0.0011"]


def test_the_plan_is_a_table(card: str) -> None:
    plan = section(card, "Model details")

    assert "| mlp.3 | afm | 2 | shifted | – | – |" in plan
    assert "| embedding | afm | 2 | none | mlp.0 | – |" in plan


def test_limits_are_told_in_figures(card: str) -> None:
    limits = section(card, "Limitations")

    assert "at most 0.1 % of a field's rows (C3)" in limits
    assert "1.012 times the clicks" in limits
    assert "2,292,000 rows and one seed" in limits
    assert "preprocessing/" in limits
    assert "preprocessing/" not in model_card(example_report(), CONFIG.to_json(), vocabularies=False)


def test_the_program_on_the_card_runs(card: str, tmp_path: Path) -> None:
    model = CONFIG.build()
    restructure_(model, CONFIG.plan)
    save_pretrained(model, str(tmp_path), CONFIG)
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, object] = {}

    exec(program.replace("path/to/this/folder", str(tmp_path)), names)

    probability = names["probability"]
    assert isinstance(probability, torch.Tensor)
    assert probability.shape == (1,)
    assert "numeric age; categorical user, ad\\_id" in card


def test_the_command_for_raw_rows_is_one_of_the_job(card: str) -> None:
    (command,) = [block for block in re.findall(r"```sh\n(.*?)\n```", card) if "predict" in block]

    _, job, *options = shlex.split(command)

    assert job == "jobs/predict.py"
    assert tyro.cli(Predict, args=options).output == "scores.parquet"
    assert "predict.py" not in model_card(example_report(), CONFIG.to_json(), vocabularies=False)


def test_a_card_changes_nothing_of_its_checkpoint(card: str, tmp_path: Path) -> None:
    model = CONFIG.build()
    restructure_(model, CONFIG.plan)
    save_pretrained(model, str(tmp_path), CONFIG)
    (tmp_path / "README.md").write_text(card, encoding="utf-8")

    assert load_config(str(tmp_path)) == CONFIG
    save_pretrained(model, str(tmp_path), CONFIG)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == card


def test_the_least_report_and_hostile_names_make_a_card() -> None:
    report = example_report()
    for key in ("data", "environment", "command", "created", "layers", "finetuning"):
        del report[key]
    hostile = 'x: "\n---\n# <script>'
    for row in report["rows"]:
        if row["name"] == "afm-emb":
            row["name"] = hostile
    report["shipped"]["name"] = hostile

    card = model_card(report, {**CONFIG.to_json(), "architecture": hostile}, vocabularies=False)

    assert hostile in front(card)["tags"]
    assert "<script" not in card.split("---\n", 2)[2]
