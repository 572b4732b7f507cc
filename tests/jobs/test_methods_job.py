"""Methods side by side, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_dist.checkpoint.pretrained import from_pretrained
from tests.jobs.commands import succeed
from tests.jobs.conftest import Compressed, compress_command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_every_method_has_its_rows_and_afm_ships(compressed: Compressed, tmp_path: Path) -> None:
    output = tmp_path / "methods"
    command = compress_command(compressed.data, compressed.trained, str(output))

    succeed(*command, "--methods", "afm,weighted,sequential,scratch")

    report = json.loads((output / "report" / "report.json").read_text())
    rows = {(row["name"], row["stage"]): row for row in report["rows"]}
    rounds = [f"{name}-{part}" for name in ("afm", "weighted", "sequential") for part in ("mlp", "emb")]
    assert set(rows) == {
        ("baseline", "trained"),
        ("control-mlp", "after-finetune"),
        ("control", "after-finetune"),
        *((name, stage) for name in rounds for stage in ("before-finetune", "after-finetune")),
        ("scratch", "trained"),
    }
    assert report["shipped"]["name"] == "afm-emb"
    compressed_ones = {"afm-emb", "weighted-emb", "sequential-emb", "scratch"}
    assert len({row["parameters"] for (name, _), row in rows.items() if name in compressed_ones}) == 1
    assert rows["scratch", "trained"]["auc"] > 0.5
    assert sum(note.startswith(("weighted:", "sequential:", "scratch:")) for note in report["notes"]) == 3
    # AFM is what it is without the others beside it.
    alone, beside = (
        from_pretrained(f"{folder}/rewrite-mlp/afm-mlp").state_dict()
        for folder in (compressed.output, output)
    )
    assert all(bool((alone[key] == beside[key]).all()) for key in alone)
