from __future__ import annotations

from collections.abc import Iterator

import pytest

from afm_dist.compression import registry
from tests.methods import toy


@pytest.fixture
def with_toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy method is registered as one of the folders of ``afm_dist.methods`` would be."""
    registry.registered()
    for table in ("_CONFIGS", "_METHODS", "_FACTS", "_VARIANTS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    toy.register()
    registry.register_variant(toy.TOY)
    yield
