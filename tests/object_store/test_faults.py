"""A store that fails: the right content or a clear error in bounded time, never half a file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

import pytest

from afm_dist import storage
from afm_dist.errors import OptionError, StorageError
from afm_dist.storage import object_store
from tests.object_store.faulty_proxy import (
    CUT_ANSWER,
    CUT_REQUEST,
    DENIED,
    RESET,
    RESET_AFTER,
    UNAVAILABLE,
    Answer,
    Fault,
    FaultyProxy,
    Request,
    Slow,
)
from tests.object_store.servers import s3_client

LARGE = (10 << 20) + 7
CONTENT = hashlib.shake_256(b"seed").digest(300_000)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients that try twice and wait for 1 s: the same, faster."""
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    monkeypatch.setattr(object_store, "SILENCE_S", 1.0)
    object_store._s3.cache_clear()
    yield
    object_store._s3.cache_clear()


def always(fault: Fault, *, method: str = "", path: str = ""):
    """Spoils every request of a method to a path that holds this."""
    return lambda number, request: fault if method in request.method and path in request.path else None


def uploads(s3: FaultyProxy, bucket: str) -> list[str]:
    """Keys of uploads that are neither completed nor aborted."""
    found = s3_client(s3).list_multipart_uploads(Bucket=bucket.removeprefix("s3://"))
    return [upload["Key"] for upload in found.get("Uploads", [])]


def test_a_tenth_of_the_requests_may_fail(bucket: str, s3: FaultyProxy) -> None:
    kinds = [
        UNAVAILABLE,
        RESET,
        CUT_ANSWER,
        RESET_AFTER,
        CUT_REQUEST,
        Slow(0.2),
        Answer(500, "InternalError"),
    ]
    number = count()

    def every_tenth(_: int, request: Request) -> Fault:
        n = next(number)
        return kinds[n // 10 % len(kinds)] if n % 10 == 9 else None

    with s3.failing(every_tenth):
        for i in range(18):
            storage.write_bytes(f"{bucket}/files/{i:02d}", CONTENT[i:])
        storage.write_bytes(f"{bucket}/files/99", bytes(LARGE))
        for i in range(18):
            assert storage.read_bytes(f"{bucket}/files/{i:02d}") == CONTENT[i:]
        assert storage.read_bytes(f"{bucket}/files/99") == bytes(LARGE)
        names = storage.list_names(f"{bucket}/files")
        storage.remove(f"{bucket}/files")
        assert not storage.exists(f"{bucket}/files")

    assert names == [*(f"{i:02d}" for i in range(18)), "99"]
    assert next(number) > 10 * len(kinds)


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        ("?uploads", DENIED),
        ("partNumber=1", CUT_REQUEST),
        ("partNumber=2", DENIED),
        ("partNumber=2", RESET),
        ("uploadId", DENIED),
        ("uploadId", UNAVAILABLE),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_write_that_fails_at_any_step_leaves_the_old_content(
    bucket: str, s3: FaultyProxy, step: str, fault: Fault
) -> None:
    path = f"{bucket}/file"
    storage.write_bytes(path, b"old")
    # Parts are sent as PUT; what begins and completes an upload is a POST.
    method = "PUT" if step.startswith("part") else "POST"

    with s3.failing(always(fault, method=method, path=step)), pytest.raises(StorageError, match=path):
        storage.write_bytes(path, bytes(LARGE))

    assert storage.read_bytes(path) == b"old"
    assert uploads(s3, bucket) == ([] if step == "?uploads" else ["file"])


@pytest.mark.usefixtures("impatient")
def test_a_write_whose_failure_is_passed_over_leaves_the_old_content(bucket: str, s3: FaultyProxy) -> None:
    path = f"{bucket}/file"
    storage.write_bytes(path, b"old")

    with (
        pytest.raises(StorageError, match="broke off"),
        storage.open_write(path) as file,
        suppress(StorageError),
        s3.failing(always(DENIED, path="partNumber=1")),
    ):
        file.write(bytes(LARGE))

    assert storage.read_bytes(path) == b"old"


@pytest.mark.usefixtures("impatient")
def test_a_commit_whose_answer_is_lost_is_whole_or_nothing(bucket: str, s3: FaultyProxy) -> None:
    path = f"{bucket}/file"
    with (
        s3.failing(always(RESET_AFTER, method="POST", path="uploadId")),
        pytest.raises(StorageError, match=path),
    ):
        storage.write_bytes(path, bytes(LARGE))

    assert storage.read_bytes(path) == bytes(LARGE)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (UNAVAILABLE, "the store failed again and again; run the same command to go on"),
        (RESET, "the store cannot be reached or does not answer; check the network and AWS_ENDPOINT_URL"),
        (CUT_ANSWER, "the store cannot be reached or does not answer; check the network"),
        (Slow(3), "the store cannot be reached or does not answer; check the network"),
        (DENIED, "permission denied; check the credentials"),
        (Answer(301, "PermanentRedirect"), "the bucket lies in another region; set AWS_REGION"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("impatient")
def test_a_read_that_always_fails_says_what_to_do_in_bounded_time(
    bucket: str, s3: FaultyProxy, fault: Fault, says: str
) -> None:
    path = f"{bucket}/file"
    storage.write_bytes(path, CONTENT)
    began = time.monotonic()

    with s3.failing(always(fault, method="GET")), pytest.raises(StorageError) as raised:
        storage.read_bytes(path)

    assert str(raised.value).startswith(f"{path}: {says}")
    assert raised.value.exit_code == 1
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("impatient")
def test_a_list_that_fails_is_no_empty_folder(bucket: str, s3: FaultyProxy) -> None:
    storage.write_bytes(f"{bucket}/folder/x", b"")
    for fault in (UNAVAILABLE, DENIED):
        with s3.failing(always(fault)), pytest.raises(StorageError):
            storage.list_names(f"{bucket}/folder")
        with s3.failing(always(fault)), pytest.raises(StorageError):
            storage.exists(f"{bucket}/folder")
    with s3.failing(always(Slow(0.5))):
        assert storage.list_names(f"{bucket}/folder") == ["x"]


def test_an_answer_that_takes_longer_than_the_3_s_of_pyarrow_is_waited_for(
    bucket: str, s3: FaultyProxy
) -> None:
    storage.write_bytes(f"{bucket}/folder/x", b"")
    with s3.failing(always(Slow(4))) as requests:
        assert storage.list_names(f"{bucket}/folder") == ["x"]
    assert len(requests) == 1


def test_a_bucket_that_is_not_there_is_named(s3: FaultyProxy) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket: no such bucket; check its name"):
        storage.exists("s3://no-such-bucket/folder")


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://bucket: the store cannot be reached .* AWS_ENDPOINT_URL"):
        storage.exists("s3://bucket/folder")


def test_who_may_not_ask_for_the_bucket_may_still_use_its_files(bucket: str, s3: FaultyProxy) -> None:
    root = "/" + bucket.removeprefix("s3://")
    with s3.failing(lambda number, request: DENIED if request.path == root else None):
        storage.write_bytes(f"{bucket}/file", b"content")
        assert storage.read_bytes(f"{bucket}/file") == b"content"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://key:secret@bucket/x", r"s3://…@bucket: no credentials in a URI; set them in the environment"),
        ("s3://bucket/x?region=eu-west-1", "no options in a URI; set AWS_ENDPOINT_URL and AWS_REGION"),
        ("s3:///x", "names no bucket"),
        ("s4://bucket/x", "s4://bucket/x: Unrecognized filesystem"),
        ("file://data/x", "a file URI begins with three slashes"),
    ],
)
def test_a_uri_that_names_more_or_less_than_a_place_is_refused(uri: str, says: str) -> None:
    with pytest.raises(OptionError, match=says) as raised:
        storage.exists(uri)
    assert ":secret" not in str(raised.value)
