"""All jobs with everything on an object store: the same bits as on a local disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from afm_dist import storage
from tests.jobs.commands import run
from tests.jobs.conftest import Compressed, compress_command, prepare_command, train_command, write_clicks

pytestmark = pytest.mark.ray

# One after the other in one process: each would take as long as its work to start.
JOBS = """
import importlib, json, sys, tyro
for name, *arguments in json.loads(sys.argv[1]):
    job = importlib.import_module(f"jobs.{name}")
    job.main(tyro.cli(getattr(job, name.capitalize()), args=arguments))
"""


def test_all_jobs_give_the_same_bits_on_an_object_store(
    compressed: Compressed, bucket: str, tmp_path: Path
) -> None:
    write_clicks(tmp_path / "clicks.csv")
    storage.write_bytes(f"{bucket}/raw/clicks.csv", (tmp_path / "clicks.csv").read_bytes())
    data, trained, output = (f"{bucket}/{name}" for name in ("data", "trained", "compressed"))
    figures = f"{bucket}/figures.json"
    jobs = [
        prepare_command(f"{bucket}/raw", data),
        train_command(data, trained),
        compress_command(data, trained, output),
        [
            "jobs/evaluate.py",
            "--data",
            data,
            "--checkpoint",
            f"{output}/checkpoint",
            "--json",
            f"{bucket}/x.json",
        ],
    ]

    result = run("-c", JOBS, json.dumps(jobs))

    assert result.returncode == 0, result.stdout + result.stderr
    places = {data: compressed.data, trained: compressed.trained, output: compressed.output}
    for remote, local in places.items():
        for name in ("manifest.json", "checkpoint/model.safetensors", "statistics-mlp/moments.safetensors"):
            path = Path(local, name)
            if path.exists():
                expected = hashlib.sha256(path.read_bytes()).hexdigest()
                assert storage.file_sha256(storage.join(remote, *name.split("/"))) == expected, name
    report = storage.read_json(f"{output}/report/report.json")
    assert {row["name"] for row in report["rows"]} >= {"baseline", "control", "afm-emb"}
    assert storage.read_json(figures)["auc"] > 0.5
    assert storage.read_bytes(f"{output}/events.jsonl").count(b'"event": "stage finished"') == 9
