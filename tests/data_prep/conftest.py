from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.data_prep.in_this_process import in_this_process


@pytest.fixture
def here() -> Iterator[pytest.MonkeyPatch]:
    """``prepare`` without Ray; the patch reaches its tasks."""
    with in_this_process() as patch:
        yield patch
