"""What the files below a folder should be: their SHA-256, in a file among them or in a receipt of ours.

The file has the format of ``sha256sum``: in the folder, ``sha256sum --check SHA256SUMS`` says the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from afm_dist.errors import DataError
from afm_dist.storage.content import file_sha256, sha256
from afm_dist.storage.files import TEMPORARY_SUFFIX, exists, list_files, read_bytes, write_bytes
from afm_dist.storage.inside import check_inside
from afm_dist.storage.location import is_local, join

SUMS = "SHA256SUMS"
ALTERED = "truncated or altered since it was written"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](\w[\w.-]*(?:/\w[\w.-]*)*)")


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """SHA-256 of files below a folder.

    Attributes:
        folder: Where they lie.
        sha256: By path within the folder, plain names with slashes between.
        again: What to do about a file that was altered.
    """

    folder: str
    sha256: Mapping[str, str]
    again: str = "make it again"

    @classmethod
    def load(cls, folder: str, *, again: str = "make it again") -> Checksums | None:
        """Read the checksums that lie in the folder; None where there are none.

        Raises:
            DataError: the file with them is damaged.
        """
        location = join(folder, SUMS)
        if not exists(location):
            return None
        found = {}
        for line in read_bytes(location).decode(errors="replace").splitlines():
            match = _LINE.fullmatch(line)
            if match is None:
                raise DataError(f"{location}: damaged (no line of sha256sum: {line[:80]!r}); {again}")
            found[match[2]] = match[1]
        check_inside(folder, found, source=location)
        return cls(folder=folder, sha256=found, again=again)

    def save(self) -> None:
        """Write them to the folder."""
        lines = (f"{digest}  {path}\n" for path, digest in self.sha256.items())
        write_bytes(join(self.folder, SUMS), "".join(lines).encode())

    def having(self, *paths: str) -> Checksums:
        """Add further files, as they are now."""
        found = {path: file_sha256(self.location(path)) for path in paths}
        return replace(self, sha256={**self.sha256, **found})

    def location(self, path: str) -> str:
        """Return where a file lies."""
        return join(self.folder, *path.split("/"))

    def read(self, path: str) -> bytes:
        """Read the content of a file.

        Raises:
            DataError: it is missing, truncated, altered, or not listed.
        """
        content = read_bytes(self.location(path))
        self.compare(path, sha256(content))
        return content

    def check(self, path: str, *, copy: Path | None = None) -> None:
        """Check that a file is what it should be, in pieces.

        Args:
            path: Of the file.
            copy: A copy that is looked at in its place.

        Raises:
            DataError: it is missing, truncated, altered, or not listed.
        """
        self.compare(path, file_sha256(self.location(path) if copy is None else str(copy)))

    def check_all(self, *, threads: int = 1) -> None:
        """Check that all files are what they should be.

        Raises:
            DataError: names the first that is not.
        """
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(self.check, self.sha256):
                pass

    def compare(self, path: str, found: str) -> None:
        """Check that a digest is that of a file.

        Raises:
            DataError: it is another one, or the file is not listed.
        """
        promised = self.sha256.get(path)
        if promised is None:
            raise DataError(f"{self.location(path)}: damaged (there is no checksum of it); {self.again}")
        if found != promised:
            raise DataError(f"{self.location(path)}: damaged ({ALTERED}); {self.again}")


def of_tree(folder: str, *, without: frozenset[str] = frozenset()) -> Checksums:
    """Compute the checksums of all files below a folder; those that others below it cover are not read.

    Args:
        folder: The folder.
        without: Paths to leave out.
    """
    paths = [path for path in list_files(folder) if not path.endswith(TEMPORARY_SUFFIX)]
    vouched = {f"{below}{path}" for below, sums in _among(folder, paths) for path in sums.sha256}
    read = [path for path in paths if path not in vouched and path not in without]
    return Checksums(folder=folder, sha256={}).having(*read)


def check_tree(tree: Checksums) -> None:
    """Check that the files of ``of_tree`` are what they were, on a local disk also those not read.

    An object store keeps checksums of its own, and who loads such a file compares it again.

    Raises:
        DataError: names the first that is not.
    """
    tree.check_all()
    if is_local(tree.folder):
        for _, sums in _among(tree.folder, tree.sha256):
            replace(sums, again=tree.again).check_all()


def _among(folder: str, paths: Iterable[str]) -> Iterator[tuple[str, Checksums]]:
    """Find the checksums below a folder, and in which folder there (with a slash, or nothing)."""
    for path in paths:
        below, slash, name = path.rpartition("/")
        if name == SUMS and (sums := Checksums.load(join(folder, *below.split("/")) if below else folder)):
            yield f"{below}{slash}", sums
