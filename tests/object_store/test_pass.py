"""The statistics pass with data and partials on a store that fails: the same bits, nothing left."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments_file import digest_of
from tests.faults.passes import BATCH_SIZE, GROUPS, LAYERS, expected_digest, model, write_shards
from tests.object_store.faulty_proxy import (
    CUT_ANSWER,
    CUT_REQUEST,
    RESET,
    RESET_AFTER,
    UNAVAILABLE,
    Fault,
    FaultyProxy,
    Request,
)

pytestmark = pytest.mark.ray


@pytest.fixture
def manifest(tmp_path: Path, bucket: str) -> Manifest:
    """A dataset in the bucket."""
    local = write_shards(tmp_path)
    for folder in ("", "train", "vocabulary"):
        storage.copy(storage.join(str(tmp_path), folder), storage.join(bucket, "data", folder))
    return replace(local, location=storage.join(bucket, "data"))


def collect(manifest: Manifest, folder: str, events: list[dict[str, Any]]) -> str:
    moments = collect_moments(
        model(),
        manifest,
        LAYERS,
        batch_size=BATCH_SIZE,
        folder=folder,
        emit=lambda what, /, **details: events.append({"event": what, **details}),
    )
    return digest_of(moments)


def test_a_store_that_fails_a_tenth_of_the_requests_gives_the_bits_of_a_plain_loop(
    local_ray: None, manifest: Manifest, bucket: str, s3: FaultyProxy
) -> None:
    kinds = cycle([UNAVAILABLE, RESET, CUT_ANSWER, RESET_AFTER, CUT_REQUEST])

    def every_tenth(number: int, request: Request) -> Fault:
        return next(kinds) if number % 10 == 9 else None

    events: list[dict[str, Any]] = []
    with s3.failing(every_tenth) as requests:
        assert collect(manifest, f"{bucket}/stage", events) == expected_digest(manifest)

    assert len(requests) > 5 * GROUPS
    assert [event["event"] for event in events].count("group committed") == GROUPS
    assert storage.list_names(f"{bucket}/stage") == []
