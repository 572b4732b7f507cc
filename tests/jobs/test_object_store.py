"""All jobs with everything on an object store: the same bits as on a local disk."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.statistics.moments_file import digest_of, load_moments
from tests.jobs.commands import ROOT, run
from tests.jobs.conftest import Compressed, compress_command, prepare_command, train_command, write_clicks

pytestmark = pytest.mark.ray

# One after the other in one process: each would take as long as its work to start.
JOBS = """
import importlib, json, pathlib, sys, tyro
for path, *arguments in json.loads(sys.argv[1]):
    name = pathlib.Path(path).stem
    job = importlib.import_module(f"jobs.{name}")
    job.main(tyro.cli(getattr(job, name.capitalize()), args=arguments))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
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
        ["jobs/evaluate.py", "--data", data, "--checkpoint", f"{output}/checkpoint", "--json", figures],
    ]

    result = run("-c", JOBS, json.dumps(jobs), timeout=560)

    assert result.returncode == 0, result.stdout + result.stderr
    assert Manifest.load(data).fingerprint() == Manifest.load(compressed.data).fingerprint()
    for remote, local in ((trained, compressed.trained), (output, compressed.output)):
        weights = storage.read_bytes(f"{remote}/checkpoint/model.safetensors")
        assert weights == Path(local, "checkpoint", "model.safetensors").read_bytes()
    # Their files differ: safetensors writes metadata in any order.
    remote, local = (
        load_moments(f"{place}/statistics-mlp/moments.safetensors") for place in (output, compressed.output)
    )
    assert digest_of(remote) == digest_of(local)
    report = storage.read_json(f"{output}/report/report.json", object)
    assert {row["name"] for row in report["rows"]} >= {"baseline", "control", "afm-emb"}
    assert storage.read_json(figures, object)["auc"] > 0.5
    assert storage.read_bytes(f"{output}/events.jsonl").count(b'"event": "stage finished"') == 10


@pytest.mark.timeout(600)
def test_command_for_an_object_store_runs(compressed: Compressed, bucket: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python (.* s3://my-bucket/.*)$", readme, re.MULTILINE)
    for folder, local in (("clicks", compressed.data), ("compressed", compressed.output)):
        for path in (path for path in Path(local).rglob("*") if path.is_file()):
            name = path.relative_to(local).as_posix()
            storage.write_bytes(f"{bucket}/{folder}/{name}", path.read_bytes())

    result = run(*shlex.split(command.replace("s3://my-bucket", bucket)))

    assert result.returncode == 0, result.stdout + result.stderr
    assert "AUC" in result.stdout
