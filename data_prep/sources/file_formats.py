"""Formats of files that are not read, by how they begin: which it is, and what to do."""

from __future__ import annotations

from afm_dist.errors import DataError

# What a tar archive is known by lies behind the name of its first file.
TAR_OFFSET, TAR_MAGIC = 257, b"ustar"
FORMAT_BYTES = TAR_OFFSET + len(TAR_MAGIC)
PARQUET_MAGIC = b"PAR1"

_PACK = "or compress it with gzip or zstd"
_EXPORT = "write the rows as CSV or Parquet"
_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive (or an Excel file)", "unpack it: unzip FILE (or save it as CSV)"),
    (b"PK\x05\x06", "a zip archive without files", "check how it was made"),
    *(
        (b"BZh%d" % level + block, "compressed with bzip2", f"decompress it: bunzip2 FILE, {_PACK}")
        for level in range(1, 10)
        for block in (b"1AY&SY", b"\x17rE8P\x90")
    ),
    (b"\xfd7zXZ\x00", "compressed with xz", f"decompress it: unxz FILE, {_PACK}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it: 7z x FILE"),
    (b"Rar!\x1a\x07", "a rar archive", "unpack it: unrar x FILE"),
    (b"\x1f\x9d", "compressed with compress", f"decompress it: uncompress FILE, {_PACK}"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", f"decompress it: unlz4 FILE, {_PACK}"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with snappy", f"decompress it, {_PACK}"),
    (b"ARROW1\x00\x00", "an Arrow file", _EXPORT),
    (b"Obj\x01", "an Avro file", _EXPORT),
    (b"\x89HDF", "an HDF5 file", _EXPORT),
    (b"SQLite format 3\x00", "an SQLite database", _EXPORT),
    (b"\xd0\xcf\x11\xe0", "an Excel file", "save it as CSV"),
)
# Of UTF-32 before UTF-16, which it begins as.
_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def check_format(path: str, start: bytes, how: str = "") -> None:
    """Refuse a file of a format that is not read.

    Args:
        path: Its path, for the message.
        start: Its first ``FORMAT_BYTES``, or all of them.
        how: What was done to get at them, for the message.

    Raises:
        DataError: names the format, and what to do.
    """
    for magic, what, fix in _FORMATS:
        if start.startswith(magic):
            raise DataError(f"{path}: {what}{how}; {fix}")
    if start[TAR_OFFSET:].startswith(TAR_MAGIC):
        raise DataError(f"{path}: a tar archive{how}; unpack it: tar -xf FILE")
    # A column may have such a name, but no NUL.
    if start.startswith(b"ORC") and b"\0" in start:
        raise DataError(f"{path}: an ORC file{how}; {_EXPORT}")
    if encoding := _encoding(start):
        raise DataError(f"{path}: {encoding} text{how}; convert it: iconv -f {encoding} -t UTF-8 FILE > NEW")


def _encoding(start: bytes) -> str | None:
    """The encoding of a text that is not UTF-8, as far as its beginning tells."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    # Of Latin letters in UTF-16 every other byte is NUL.
    pairs = start[: len(start) // 2 * 2]
    if len(pairs) < 4 or not any(pairs):
        return None
    if not any(pairs[1::2]):
        return "UTF-16LE"
    return None if any(pairs[0::2]) else "UTF-16BE"
