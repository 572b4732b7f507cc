"""Figures of a record that any processor reproduces to a tolerance: scores, sizes, ranks, norms.

They are of contracts alone (``report.json``, ``manifest.json``, ``OUTPUT/checkpoint``, the library), so that
what stages are called does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.frozen.bench import MODELS
from tests.frozen.digests import Entry

FIGURES = Path(__file__).with_name("figures.json")
# A few of each kind, quick enough for every run of the tests.
FIGURES_PARTS = (
    "prepare/clicks",
    *(f"train/{model}" for model in MODELS),
    "compress/once",
    "compress/bytes-uniform",
    "compress/absorb-nfm",
    "compress/codes",
    "tables/deepfm",
    "serving/once",
    "library/*",
)
# What is taken of the objects in some files.
_KEYS = {
    "report.json": ("auc", "log_loss", "parameters", "bytes", "rank", "kept_energy"),
    "results.json": ("auc", "log_loss"),
    "manifest.json": ("cardinality", "mean", "deviation", "rows"),
}
EXACT = ("parameters", "rank", "cardinality", "rows")
# Largest difference, (relative, absolute), of other figures: ten times what was seen between the widest
# instructions of a processor and none (ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE).
TOLERANCES = {
    "auc": (0.0, 5e-4),
    "log_loss": (0.0, 2e-4),
    "kept_energy": (1e-3, 0.0),
    "norm": (1e-3, 1e-6),
    "bytes": (0.0, 64.0),  # numbers written out are longer or shorter
}
UNTRAINED = {"norm": (1e-5, 1e-8)}
# The unit of absorbed first-order weights is a ratio of sensitivities; those of NFM, hardly trained, are
# nearly 0, and were seen to differ by 2 % between two processors of one kind.
ABSORBED = {"norm": (5e-2, 1e-6)}
OTHERWISE = (1e-6, 1e-9)

Figures = dict[str, dict[str, float]]


def figures_of(parts: Mapping[str, Mapping[str, Entry]]) -> Figures:
    """By part and name; the last word of a name says what it is."""
    return {part: dict(_figures(part, entries)) for part, entries in parts.items()}


def close(part: str, name: str, expected: float, found: float) -> bool:
    """Whether two processors may differ so."""
    kind = name.rpartition(" ")[2]
    if kind in EXACT:
        return expected == found
    tolerances = TOLERANCES
    if part.startswith("library/"):
        tolerances = TOLERANCES | UNTRAINED
    elif part.startswith("compress/absorb"):
        tolerances = TOLERANCES | ABSORBED
    relative, absolute = tolerances.get(kind, OTHERWISE)
    return math.isclose(expected, found, rel_tol=relative, abs_tol=absolute)


def _figures(part: str, entries: Mapping[str, Entry]) -> Iterator[tuple[str, float]]:
    squares: dict[str, float] = {}
    for name, entry in entries.items():
        file, _, _ = name.partition("#")
        if "norm" in entry and (file.startswith("checkpoint/") or part.startswith(("library/", "serving/"))):
            # One figure a file: what its tensors are called may change.
            squares[file] = squares.get(file, 0.0) + float(entry["norm"]) ** 2
        path, _, where = name.partition(":")
        content = entry.get("content")
        if isinstance(content, Mapping) and not path.startswith("checkpoint/"):
            for key in _KEYS.get(Path(path).name, ()):
                if isinstance(content.get(key), int | float):
                    yield f"{where} {key}", content[key]
    for file, square in squares.items():
        yield f"{file} norm", math.sqrt(square)
