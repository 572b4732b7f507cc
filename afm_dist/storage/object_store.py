"""Object stores through ``pyarrow.fs``: connecting, reading, uploading, and saying what went wrong.

What pyarrow leaves to its callers is done here. Its clients give up after 3 s without an answer; ours
are more patient, in bounded time. Its streams complete an upload that broke off, and so make half a file
of it; ``Upload`` never does. Its errors are texts; ``reaching`` makes one line of them that says what to
do.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import unquote

from pyarrow import ArrowException, ArrowInvalid
from pyarrow import fs as pafs

from afm_dist.errors import DataError, OptionError, StorageError

# A request to S3 is tried so often, after pauses of up to 1, 2, 4, 8 and 16 s; each try may be silent for
# so long. So a server that is down is given up within a minute, one that hangs within four.
ATTEMPTS = 6
CONNECT_S = 5.0
SILENCE_S = 30.0
# For Google's client it is the time in all.
GCS_RETRY_S = 30

REGION, FALLBACK_REGION = "AWS_REGION", "AWS_DEFAULT_REGION"
ENDPOINT, S3_ENDPOINT = "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"
DEFAULT_REGION = "us-east-1"

# What a failure means, by what the text of it holds: the first that fits, and an error number where
# trying again is of no use.
_CAUSES = (
    (
        r"NO_SUCH_BUCKET|NoSuchBucket|BUCKET_NOT_FOUND",
        f"no such bucket; check its name, or create it ({ENDPOINT} names the server where it is not AWS)",
        errno.ENOENT,
    ),
    (
        r"ACCESS_DENIED|ACCESS_KEY|SIGNATURE|EXPIRED|TOKEN|AUTHENTICATION|HTTP status 40[13]\b"
        r"|PERMISSION_DENIED|UNAUTHENTICATED|OAuth2",
        "permission denied; check the credentials and what they allow, on every node of the cluster "
        "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, an instance's role; for gs:// "
        "GOOGLE_APPLICATION_CREDENTIALS)",
        errno.EACCES,
    ),
    (
        r"HTTP status 301|PermanentRedirect|AuthorizationHeaderMalformed",
        f"the bucket lies in another region; set {REGION} to that",
        errno.EINVAL,
    ),
    (
        r"NETWORK_CONNECTION|CURL error",
        f"the store cannot be reached or does not answer; check the network and {ENDPOINT}, then run the "
        "same command to go on",
        None,
    ),
    (
        r"HTTP status 5\d\d|SLOW_DOWN|INTERNAL|UNAVAILABLE|THROTTLING",
        "the store failed again and again; run the same command to go on",
        None,
    ),
)
REASON_CHARACTERS = 300


@contextmanager
def reaching(location: str) -> Iterator[None]:
    """Turn failures of pyarrow and the operating system within the context into one line with the place.

    Raises:
        DataError: there is no such file.
        StorageError: the store refused or failed.
    """
    try:
        yield
    except StorageError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"{location}: no such file; check the path") from error
    except (OSError, ArrowException) as error:
        raise _explained(location, error) from error


def _explained(location: str, error: Exception) -> StorageError:
    if isinstance(error, OSError) and error.errno is not None:
        return StorageError(f"{location}: {os.strerror(error.errno)}", error.errno)
    reason = " ".join(str(error).split())[:REASON_CHARACTERS]
    for pattern, cause, number in _CAUSES:
        if re.search(pattern, str(error)):
            return StorageError(f"{location}: {cause} ({reason})", number)
    return StorageError(f"{location}: {reason}")


def connect(uri: str) -> tuple[pafs.FileSystem, str]:
    """Resolve a URI to a file system, and the path on it.

    A URI goes into reports and logs: it names a place, and nothing else. What else there is to know comes
    from the environment: credentials, as the SDKs of AWS and Google find them; ``AWS_REGION`` (by default
    the bucket's); ``AWS_ENDPOINT_URL`` for a server that is not AWS.

    Raises:
        OptionError: there is no file system of that name, or the URI names more than a place.
        StorageError: there is no such bucket, or the store cannot be reached.
    """
    scheme, _, rest = uri.partition("://")
    authority, _, key = rest.partition("/")
    if scheme not in ("s3", "gs", "gcs"):
        try:
            filesystem, path = pafs.FileSystem.from_uri(uri)
        except ArrowInvalid as error:
            raise OptionError(f"{uri}: {error}; give a path, or a URI such as s3://BUCKET/FOLDER") from error
        except OSError as error:
            raise _unconnected(uri, error) from error
        return filesystem, path
    user, _, bucket = authority.rpartition("@")
    if not bucket:
        raise OptionError(f"{uri}: names no bucket; give a URI such as {scheme}://BUCKET/FOLDER")
    if user and (scheme, user) != ("gs", "anonymous"):
        raise OptionError(f"{scheme}://…@{bucket}: no credentials in a URI; set them in the environment")
    if "?" in rest:
        raise OptionError(
            f"{uri}: no options in a URI; set {ENDPOINT} and {REGION} in the environment, and write a "
            "question mark of a name as %3F"
        )
    path = f"{bucket}/{unquote(key)}".rstrip("/")
    with reaching(f"{scheme}://{bucket}"):
        if scheme == "s3":
            endpoint = os.environ.get(S3_ENDPOINT) or os.environ.get(ENDPOINT) or ""
            region = os.environ.get(REGION) or os.environ.get(FALLBACK_REGION) or ""
            return _s3(bucket, endpoint, region), path
        return _gcs(authority), path


def _unconnected(uri: str, error: OSError) -> StorageError:
    """Explain why there is no connection to a file system other than S3's and Google's."""
    reason = " ".join(str(error).split())[:REASON_CHARACTERS]
    if uri.startswith(("hdfs://", "viewfs://")):
        return StorageError(
            f"{uri}: HDFS cannot be reached ({reason}); it takes Java and Hadoop's libhdfs on every node "
            "(JAVA_HOME, HADOOP_HOME, CLASSPATH), or copy the files to a disk or an object store",
            error.errno,
        )
    return StorageError(f"{uri}: cannot be reached ({reason}); check the URI", error.errno)


class _S3(pafs.S3FileSystem):  # type: ignore[misc]
    """A client for one bucket. Sent to another process, it connects anew there.

    So no credentials travel, and the retries are not lost, which pyarrow forgets to send.
    """

    def __init__(self, bucket: str, **options: Any) -> None:
        super().__init__(
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            connect_timeout=CONNECT_S,
            request_timeout=SILENCE_S,
            # Small files in one request, which is atomic.
            allow_delayed_open=True,
            # Parts of large files one after the other: in the background they pile up in memory, and
            # ``pyarrow.fs.copy_files``, which Ray Train uses, takes their failure for success.
            background_writes=False,
            **options,
        )
        self._bucket = bucket

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _reconnect, (f"s3://{self._bucket}",)


def _reconnect(uri: str) -> pafs.FileSystem:
    return connect(uri)[0]


@cache
def _s3(bucket: str, endpoint: str, region: str) -> pafs.FileSystem:
    if not endpoint:
        return _checked(_S3(bucket, region=region or pafs.resolve_s3_region(bucket)), bucket)
    scheme, _, host = endpoint.rpartition("://")
    options = {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}
    return _checked(_S3(bucket, region=region or DEFAULT_REGION, **options), bucket)


@cache
def _gcs(authority: str) -> pafs.FileSystem:
    uri = f"gs://{authority}?retry_limit_seconds={GCS_RETRY_S}"
    return _checked(pafs.FileSystem.from_uri(uri)[0], authority.rpartition("@")[2])


def _checked(filesystem: pafs.FileSystem, bucket: str) -> pafs.FileSystem:
    """Check that the bucket is there: of a file in no bucket pyarrow only says that it is not there."""
    try:
        info = filesystem.get_file_info(bucket)
    except OSError as error:
        # Not everybody who may read a file may also ask for its bucket.
        if "ACCESS_DENIED" in str(error) or "PERMISSION_DENIED" in str(error):
            return filesystem
        raise
    if info.type == pafs.FileType.NotFound:
        raise OSError("BUCKET_NOT_FOUND")
    return filesystem


class RemoteFile(io.RawIOBase):
    """A file of a store, to be read; each read is a request, so wrap it in a buffer.

    Raises:
        DataError: there is no such file.
        StorageError: the store refused or failed, now or in a later read.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str, location: str) -> None:
        self._location = location
        with reaching(location):
            self._file = filesystem.open_input_file(path)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the next byte's number."""
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte; returns its number."""
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes, in one request."""
        with reaching(self._location):
            return int(self._file.readinto(buffer))

    def readall(self) -> bytes:
        """Read the rest, in one request."""
        with reaching(self._location):
            return bytes(self._file.read())

    def close(self) -> None:
        """Close the file: no more will be read."""
        if not self.closed:
            self._file.close()
        super().close()


class Upload(io.RawIOBase):
    """A new file of a store, which appears when it is committed, and not at all otherwise.

    Of a small file one request is made, of a large one one for each 10 MB; no more is in memory.

    Raises:
        StorageError: the store refused or failed, now or later.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str, location: str) -> None:
        self._location = location
        self._position = 0
        self._stream: Any = None
        with self._reaching():
            self._stream = filesystem.open_output_stream(path, compression=None)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            with reaching(self._location):
                yield
        except DataError as error:
            text = f"{self._location}: cannot be written; check bucket and path"
            raise StorageError(text, errno.ENOENT) from error

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._position

    def write(self, data: Any) -> int:
        """Send some bytes; after an error no more, and nothing appears."""
        if self.closed:
            raise StorageError(f"{self._location}: the upload broke off")
        try:
            with self._reaching():
                self._stream.write(data)
        except BaseException:
            self.close()
            raise
        size = memoryview(data).nbytes
        self._position += size
        return size

    def commit(self) -> None:
        """Make the file appear, whole."""
        if self.closed:
            raise StorageError(f"{self._location}: the upload broke off")
        try:
            with self._reaching():
                self._stream.close()
            self._stream = None
        finally:
            self.close()

    def close(self) -> None:
        """Abandon the upload, unless it was committed."""
        if self._stream is not None:
            # Its destructor would complete the upload with what was sent so far, and pyarrow has no call
            # that aborts one: the stream must never be destroyed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._stream))
            self._stream = None
        super().close()
