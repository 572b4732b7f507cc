"""The pages in a real browser, where there is one: nothing is wider than the place it has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest

from afm_dist.report.comparison import compare
from afm_dist.report.comparison_page import document as comparison_document
from afm_dist.report.dataset_page import page as dataset_page
from afm_dist.report.html import to_html
from afm_dist.report.page import document
from tests.report.example import example_report
from tests.report.example_description import example_description
from tests.report.example_runs import example_runs

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (375, 1280)
MEASURE = """
<pre id="result"></pre>
<script>
onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    for (const details of page.querySelectorAll("details")) details.open = true;
    const cells = [...page.querySelectorAll("th, td")];
    const full = cells.filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent);
    found[frame.id] = [page.documentElement.scrollWidth, full];
  }
  document.getElementById("result").textContent = JSON.stringify(found);
};
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_no_page_scrolls_sideways_and_no_cell_runs_over_on_a_phone_or_a_desk(tmp_path: Path) -> None:
    report = example_report()
    pages = {
        "report": to_html(document(report)),
        "dataset": dataset_page(example_description()),
        "comparison": to_html(comparison_document(compare(example_runs()))),
    }
    frames = "".join(
        f'<iframe id="{name}-{width}" style="width:{width}px;height:900px;border:0" '
        f'srcdoc="{escape(content)}"></iframe>'
        for name, content in pages.items()
        for width in WIDTHS
    )
    (tmp_path / "all.html").write_text(f"<!DOCTYPE html>{frames}{MEASURE}", encoding="utf-8")

    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile")
    printed = subprocess.run(
        [str(BROWSER), *flags, "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path}/all.html"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout

    (found,) = re.findall(r'<pre id="result">(.*?)</pre>', printed)
    frames_found = json.loads(unescape(found))
    assert len(frames_found) == len(pages) * len(WIDTHS)
    for name, (width, cells) in frames_found.items():
        assert width <= int(name.rpartition("-")[2]), name
        assert not cells, name
