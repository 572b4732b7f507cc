"""Record what every model, method and option gives on a tiny log, and compare with an earlier record.

python -m tests.frozen.record --output /tmp/before.json          # before a step
python -m tests.frozen.record --compare /tmp/before.json         # after it: ends with 1 where a value differs
python -m tests.frozen.record --figures                          # renew tests/frozen/figures.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Before torch is loaded. On one thread sums have one order.
    os.environ["OMP_NUM_THREADS"] = "1"

import ray
import torch

from afm_dist.runtime import machine
from tests.frozen.bench import Bench, JobFailedError
from tests.frozen.compare import MOST_LINES, differences
from tests.frozen.digests import Entry
from tests.frozen.figures import FIGURES, FIGURES_PARTS, figures_of
from tests.frozen.here import trainings_in_this_process, without_times
from tests.frozen.parts import ON_RAY_TRAIN, PARTS

PACKAGES = ("numpy", "polars", "pyarrow", "ray", "safetensors", "torch")


def record(
    patterns: Sequence[str], folder: Path, *, progress: bool = False
) -> tuple[dict[str, dict[str, Entry]], dict[str, str]]:
    """Run the parts that a pattern names.

    Args:
        patterns: E.g. ``compress/*``.
        folder: Empty; the runs are left in it.
        progress: Whether to print a line a part.

    Returns:
        Entries by part, and of the parts that failed what happened.
    """
    bench = Bench(folder)
    found: dict[str, dict[str, Entry]] = {}
    failed: dict[str, str] = {}
    for name in chosen(patterns):
        began = time.monotonic()
        bench.begin(name)
        try:
            with without_times():
                if name in ON_RAY_TRAIN:
                    ON_RAY_TRAIN[name](bench)
                else:
                    with trainings_in_this_process():
                        PARTS[name](bench)
        except JobFailedError as error:
            failed[name] = str(error)
        except Exception:
            failed[name] = traceback.format_exc()
        else:
            found[name] = bench.noted
        finally:
            torch.set_flush_denormal(False)
        if progress:
            what = "FAILED" if name in failed else f"{len(bench.noted):5} entries"
            print(f"{name:32} {what} {time.monotonic() - began:6.1f} s", file=sys.stderr, flush=True)
    return found, failed


def chosen(patterns: Sequence[str]) -> list[str]:
    """Names of the parts that one of the patterns fits."""
    return [
        name for name in [*PARTS, *ON_RAY_TRAIN] if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def environment() -> dict[str, Any]:
    """What bits depend on besides the code."""
    from importlib.metadata import version

    return {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": machine.cores(),
        **{name: version(name) for name in PACKAGES},
    }


def compare(before: Mapping[str, Any], after: Mapping[str, Any], patterns: Sequence[str], most: int) -> bool:
    """Print what differs, so many lines of each kind in a part; returns whether a value does."""
    for key, value in before["environment"].items():
        if value != after["environment"].get(key):
            print(f"another {key}: {value} -> {after['environment'].get(key)}; bits compare on one machine")
    different = False
    names = dict.fromkeys([*before["parts"], *after["parts"]])
    for name in (name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)):
        found = differences(before["parts"].get(name, {}), after["parts"].get(name, {}))
        different = different or found.any
        lines = list(found.lines(most))
        if lines:
            print(f"{name}:", *lines, sep="\n")
    print("values differ" if different else "the same values, to the bit")
    return different


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="file to write the record to")
    parser.add_argument("--compare", type=Path, help="an earlier record to compare with")
    parser.add_argument("--recorded", type=Path, help="with --compare: this record instead of a new one")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of parts, e.g. 'compress/*'")
    parser.add_argument("--folder", type=Path, help="keep the runs here, to look at; must be empty")
    parser.add_argument(
        "--most", type=int, default=MOST_LINES, help="lines of each kind of difference in a part"
    )
    parser.add_argument("--figures", action="store_true", help=f"renew {FIGURES.name}")
    parser.add_argument("--list", action="store_true", help="name the parts, and do nothing")
    given = parser.parse_args()
    if given.figures:
        given.only = list(FIGURES_PARTS)
    if given.list:
        print(*chosen(given.only), sep="\n")
        return 0
    failed: dict[str, str] = {}
    if given.recorded:
        content = json.loads(given.recorded.read_text(encoding="utf-8"))
    else:
        parts, failed = _record_on_a_ray_of_its_own(given.only, given.folder)
        content = {"environment": environment(), "parts": parts}
    if given.output:
        given.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if given.figures and not failed:
        FIGURES.write_text(json.dumps(figures_of(content["parts"]), indent=1) + "\n", encoding="utf-8")
        print(f"{FIGURES} is renewed: commit it with the reason")
    for name, trouble in failed.items():
        print(f"{name} FAILED:\n{trouble}", file=sys.stderr)
    different = False
    if given.compare:
        before = json.loads(given.compare.read_text(encoding="utf-8"))
        different = compare(before, content, given.only, given.most)
    return 1 if failed or different else 0


def _record_on_a_ray_of_its_own(
    patterns: Sequence[str], folder: Path | None
) -> tuple[dict[str, dict[str, Entry]], dict[str, str]]:
    torch.set_num_threads(1)
    began = time.monotonic()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            return record(patterns, folder, progress=True)
        with tempfile.TemporaryDirectory(prefix="frozen-") as temporary:
            return record(patterns, Path(temporary), progress=True)
    finally:
        ray.shutdown()
        print(f"recorded in {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
