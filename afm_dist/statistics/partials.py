"""The committed partial results of a statistics pass: one file per group of shards.

They lie in a folder of their own, named after the fingerprint of everything they depend on, next
to a file ``pass.json`` that is there as long as the pass is under way. A partial appears by
write-then-rename. Each carries its own key (the pass and the group), so that neither a partial of
another pass nor of another group is ever taken for it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import digest_of, load_moments, save_moments

Result = TypeVar("Result")

PREFIX = "partials-"
UNDER_WAY = "pass.json"
_FOLDER = re.compile(rf"{PREFIX}[0-9a-f]{{16}}")
_PARTIAL = re.compile(r"group-\d{5,}\.safetensors")
MAX_RACES = 20
# What an operating system says when a file or folder came or went meanwhile.
RACES = (errno.ENOENT, errno.ENOTEMPTY, errno.EISDIR, errno.EEXIST)


@dataclass(frozen=True, kw_only=True)
class Partials:
    """The partials of one pass.

    Attributes:
        parent: Where the folder of the pass is made.
        facts: Everything the partials depend on; plain JSON values.
    """

    parent: str
    facts: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of everything the partials depend on."""
        return storage.fingerprint(self.facts)

    @property
    def folder(self) -> str:
        """Where they lie."""
        return storage.join(self.parent, f"{PREFIX}{self.fingerprint[:16]}")

    def location(self, group: int) -> str:
        """Where the partial of a group is committed."""
        return storage.join(self.folder, _name(group))

    def begin(self) -> None:
        """Announce that the pass is under way (again)."""
        announcement = storage.join(self.folder, UNDER_WAY)
        _against_others(lambda: storage.write_json(announcement, self.facts))

    def under_way(self) -> bool:
        """Return whether the pass was announced and is not over."""
        return storage.exists(storage.join(self.folder, UNDER_WAY))

    def end(self) -> None:
        """Delete it all. Another driver may be doing the same."""
        _end(self.folder)

    def committed(self, groups: int) -> list[int]:
        """Which of the groups have a partial. Whether it is sound shows when it is loaded."""
        names = set(_against_others(lambda: storage.list_names(self.folder)))
        return [group for group in range(groups) if _name(group) in names]

    def commit(self, group: int, moments: Mapping[str, Moments]) -> str:
        """Write the partial of a group; returns the digest of the moments.

        A late attempt, whose pass is over, leaves nothing behind: whoever ends a pass first deletes
        the announcement and then the partials, so either it deletes this one or this sees the end.
        """
        location, key = self.location(group), self._key(group)
        digest = _against_others(lambda: save_moments(location, moments, fingerprint=key))
        if not self.under_way():
            _remove_folder(self.folder)
        return digest

    def digest(self, group: int) -> str | None:
        """Return the digest of a group's partial; None when there is none, or a damaged one."""
        if not storage.exists(self.location(group)):
            return None
        try:
            return digest_of(self.load(group))
        except DataError:
            return None

    def load(self, group: int) -> dict[str, Moments]:
        """Read the partial of a group.

        Raises:
            DataError: it is not there, damaged, or not this pass's.
        """
        return load_moments(self.location(group), fingerprint=self._key(group))

    def beside(self) -> list[str]:
        """Names of folders with partials of other passes in the same place."""
        names = storage.list_names(self.parent)
        return [n for n in names if n.startswith(PREFIX) and storage.join(self.parent, n) != self.folder]

    def _key(self, group: int) -> str:
        return f"{self.fingerprint}/{group}"


def remove_partials(parent: str) -> None:
    """Delete the partials of all passes in a folder; a folder that holds anything else stays."""
    for name in storage.list_names(parent):
        folder = storage.join(parent, name)
        if _FOLDER.fullmatch(name) and all(_is_own(each) for each in storage.list_names(folder)):
            _end(folder)


def _is_own(name: str) -> bool:
    return name == UNDER_WAY or _PARTIAL.fullmatch(name) is not None or storage.is_temporary(name)


def _end(folder: str) -> None:
    # The announcement first: see ``Partials.commit``.
    storage.remove(storage.join(folder, UNDER_WAY))
    _remove_folder(folder)


def _name(group: int) -> str:
    return f"group-{group:05d}.safetensors"


def _remove_folder(folder: str) -> None:
    _against_others(lambda: storage.remove(folder))


def _against_others(action: Callable[[], Result]) -> Result:
    """Do something to a folder that others may be writing to or deleting at the same time."""
    for _ in range(MAX_RACES):
        try:
            return action()
        except OSError as error:
            if error.errno not in RACES:
                raise
    return action()
