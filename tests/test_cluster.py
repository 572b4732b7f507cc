from __future__ import annotations

import pytest

from afm_dist.cluster import check_workers
from afm_dist.errors import OptionError


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(workers: int) -> None:
    with pytest.raises(OptionError, match=f"--workers {workers}: must be at least 1"):
        check_workers(workers)
