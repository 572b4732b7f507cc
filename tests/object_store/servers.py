"""Object stores on loopback: one that speaks S3, behind a proxy that can spoil requests, and Google's."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
from pyarrow import fs as pafs

from tests.object_store.faulty_proxy import FaultyProxy


@pytest.fixture(scope="session")
def store_proxy() -> Iterator[FaultyProxy]:
    """Where S3 is for this process and all that it starts; the server itself is started when asked for."""
    proxy = FaultyProxy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def s3(store_proxy: FaultyProxy) -> Iterator[FaultyProxy]:
    """The proxy, with a server behind it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, store_proxy.upstream = server.get_host_and_port()
    yield store_proxy
    server.stop()


@pytest.fixture
def bucket(s3: FaultyProxy) -> str:
    """A new bucket."""
    name = f"bucket-{uuid4().hex[:12]}"
    s3_client(s3).create_bucket(Bucket=name)
    return f"s3://{name}"


def s3_client(s3: FaultyProxy) -> Any:
    """Another client than ours, which does not go through the proxy."""
    import boto3

    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3.upstream}", region_name="us-east-1")


def put_many(bucket: str, keys: Sequence[str]) -> None:
    """Put empty objects into the server without asking it: in its memory."""
    from moto.s3.models import s3_backends

    for key in keys:
        s3_backends["123456789012"]["aws"].put_object(bucket.removeprefix("s3://"), key, b"")


@pytest.fixture(scope="session")
def gs() -> Iterator[None]:
    """A server that speaks Google's protocol on loopback, in a process of its own.

    pyarrow's client for it holds Python's lock in places, so it cannot talk to a server in this process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Its own server waits for one client to hang up before it listens to the next.
    command = (
        "import sys; from http import server; server.HTTPServer = server.ThreadingHTTPServer; "
        "from gcp_storage_emulator.__main__ import main; main(sys.argv[1:])"
    )
    options = ("start", "--host=127.0.0.1", f"--port={port}", "--in-memory")
    server = subprocess.Popen(
        [sys.executable, "-c", command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
        yield
    server.kill()
    server.wait()


@pytest.fixture
def gs_bucket(gs: None) -> str:
    """A new bucket; nobody needs credentials for it."""
    name = f"bucket-{uuid4().hex[:12]}"
    pafs.GcsFileSystem(anonymous=True, project_id="nobody").create_dir(name)
    return f"gs://anonymous@{name}"
