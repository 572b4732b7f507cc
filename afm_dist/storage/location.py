"""Names of places: local paths and URIs.

In a URI ``%`` begins an escape; a path is taken as it is.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

from afm_dist.errors import OptionError


def is_uri(location: str) -> bool:
    """Return whether the location names a file system (``s3://bucket/key``) rather than a local path."""
    return "://" in location


def is_local(location: str) -> bool:
    """Return whether the location is on this machine's own file system."""
    return not is_uri(location) or location.startswith("file://")


def local_path(location: str) -> Path:
    """Return the local path of a local location.

    Raises:
        OptionError: a ``file://`` URI that names another machine, or a relative path; a text that cannot
            name a file.
        ValueError: the location is on an object store.
    """
    check_text(location)
    if location.startswith("file://"):
        path = unquote(location.removeprefix("file://"))
        if not path.startswith("/"):
            raise OptionError(f"{location}: a file URI begins with three slashes, file:///FOLDER")
        return Path(path)
    if is_uri(location):
        raise ValueError(f"{location} is not a local path")
    return Path(location)


def join(location: str, *parts: str) -> str:
    """Join plain names, escaped where needed, to a location."""
    if not parts:
        return location
    below = [quote(part) for part in parts] if is_uri(location) else parts
    return "/".join([_without_slashes(location), *below])


def relative(location: str, folder: str) -> str:
    """Return what ``join`` adds to a folder for a location below it: names with slashes between.

    Raises:
        ValueError: the location is not below the folder.
    """
    prefix = f"{_without_slashes(folder)}/"
    if not location.startswith(prefix):
        raise ValueError(f"{location} is not below {folder}")
    below = location.removeprefix(prefix)
    return unquote(below) if is_uri(folder) else below


def absolute(location: str) -> str:
    """Make a location independent of the working directory, without slashes at the end.

    Raises:
        OptionError: links that lead to each other, a home directory that is not known, or a text that cannot
            name a file.
    """
    check_text(location)
    if is_uri(location):
        return _without_slashes(location)
    try:
        return str(Path(location).expanduser().resolve())
    except RuntimeError as error:
        # What pathlib says of a loop, and of ``~nobody``.
        raise OptionError(f"{location}: {error}; name another path") from error


def check_text(location: str) -> None:
    """Refuse a text that no file system takes: with a NUL, or with bytes that are not UTF-8.

    Raises:
        OptionError: showing it.
    """
    try:
        location.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"{location!a}: not UTF-8 text; rename the file or folder") from error
    if "\0" in location:
        raise OptionError(f"{location!a}: holds a NUL character, which no path can")


def _without_slashes(location: str) -> str:
    """Remove the slashes at the end."""
    scheme, colon, rest = location.rpartition("://")
    return f"{scheme}{colon}{rest.rstrip('/')}"
