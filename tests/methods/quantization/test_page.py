from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def test_the_program_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(program, "docs/quantization.md", "exec"), names)
    assert (tmp_path / "quantised" / "model.safetensors").stat().st_size < 4 * 16 * 7_000 / 5
