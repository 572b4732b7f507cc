"""Files on local disks and object stores behind a few functions.

A *location* is a string: a local path, or a URI (``file://``, ``s3://``, ``gs://``, or another that
``pyarrow.fs`` understands). Writes are atomic: a reader sees the whole new file or none of it.
"""

from afm_dist.storage.content import (
    file_sha256,
    fingerprint,
    json_line,
    plain,
    read_json,
    sha256,
    write_json,
)
from afm_dist.storage.files import (
    TEMPORARY_SUFFIX,
    copy,
    copy_file,
    exists,
    file_system,
    info,
    is_file,
    is_folder,
    is_temporary,
    list_infos,
    list_names,
    list_sizes,
    local_copy,
    new_file,
    open_read,
    open_write,
    read_bytes,
    remove,
    remove_temporaries,
    size,
    write_bytes,
)
from afm_dist.storage.inside import check_inside, fault_of
from afm_dist.storage.location import (
    absolute,
    is_local,
    is_uri,
    join,
    local_path,
)
from afm_dist.storage.typed_json import MAKE_AGAIN, as_typed, parse_json

__all__ = [
    "MAKE_AGAIN",
    "TEMPORARY_SUFFIX",
    "absolute",
    "as_typed",
    "check_inside",
    "copy",
    "copy_file",
    "exists",
    "fault_of",
    "file_sha256",
    "file_system",
    "fingerprint",
    "info",
    "is_file",
    "is_folder",
    "is_local",
    "is_temporary",
    "is_uri",
    "join",
    "json_line",
    "list_infos",
    "list_names",
    "list_sizes",
    "local_copy",
    "local_path",
    "new_file",
    "open_read",
    "open_write",
    "parse_json",
    "plain",
    "read_bytes",
    "read_json",
    "remove",
    "remove_temporaries",
    "sha256",
    "size",
    "write_bytes",
    "write_json",
]
