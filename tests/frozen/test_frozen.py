"""What some models, methods and options give on a tiny log is what was recorded.

After an intended change: ``python -m tests.frozen.record --figures``, in a commit of its own that says why.
"""

from __future__ import annotations

import json

import pytest

from afm_dist.models import ARCHITECTURES
from tests.frozen.bench import MODELS
from tests.frozen.figures import FIGURES, FIGURES_PARTS, Figures, close, figures_of
from tests.frozen.parts import PARTS
from tests.frozen.record import chosen, record

RENEW = "if that is intended: python -m tests.frozen.record --figures"


@pytest.fixture(scope="module")
def found(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Figures:
    parts, failed = record(FIGURES_PARTS, tmp_path_factory.mktemp("frozen"))
    assert not failed, "\n".join(f"{name}: {trouble}" for name, trouble in failed.items())
    return figures_of(parts)


@pytest.mark.ray
@pytest.mark.parametrize("part", chosen(FIGURES_PARTS))
def test_the_figures_are_those_recorded(part: str, found: Figures) -> None:
    recorded: dict[str, float] = json.loads(FIGURES.read_text(encoding="utf-8"))[part]

    assert found[part].keys() == recorded.keys(), RENEW
    different = {
        name: f"{recorded[name]} -> {value}"
        for name, value in found[part].items()
        if not close(part, name, recorded[name], value)
    }
    assert recorded
    assert not different, RENEW


def test_every_architecture_is_recorded() -> None:
    assert set(MODELS) == set(ARCHITECTURES)
    assert {f"{verb}/{model}" for verb in ("train", "compress", "serving") for model in MODELS} <= set(PARTS)
