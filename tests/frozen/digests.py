"""What is remembered of a result: a digest, and enough of its content to say what became another.

An entry is ``{"sha256": …}`` and, where that is short, ``content`` (of JSON and of text) or, of a tensor,
``shape`` and ``norm``. Times, speeds, versions and paths are taken out before anything is digested.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

Entry = dict[str, Any]

# What every run has another of, or what only says how a run went.
PASSING_FILES = {"_SUCCESS", "_STARTED", "environment.json", "events.jsonl"}
PASSING_KEYS = {
    "command",
    "commands",
    "created",
    "environment",
    "finished",
    "modified_ns",
    "rows_per_second",
    "seconds",
    "throughput_ratio",
    "throughput_ratio_max",
    "throughput_ratio_min",
    "timings",
}
# What tells the objects of a list from each other.
NAMING_KEYS = ("module", "name", "field", "stage", "round", "method")
# Pages are for the eye; what they show is in report.json.
PASSING_SUFFIXES = {".html"}
# The last sections of report.md and of a model card: the command, the machine, the day.
PASSING_SECTIONS = ("\n## Run\n", "\n## Where it comes from\n")
MOST_CHARACTERS = 20_000


def entries_of_folder(folder: Path, root: str) -> dict[str, Entry]:
    """Every file below a folder.

    Args:
        folder: E.g. a run directory.
        root: The folder that paths in the files begin with; it is another in each record.

    Returns:
        By path below the folder; of a file of tensors ``path#tensor``, of JSON ``path:key/key``.
    """
    found: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in PASSING_FILES and path.suffix not in PASSING_SUFFIXES:
            found |= entries_of_file(path, str(path.relative_to(folder)), root)
    return found


def entries_of_file(path: Path, name: str, root: str) -> dict[str, Entry]:
    """One file, in as many parts as can change by themselves."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            about = file.metadata()
        parts = {
            f"{name}#{key}": of_tensor(value) for key, value in safetensors.torch.load_file(path).items()
        }
        return parts | ({f"{name}:metadata": of_json(about, root)} if about else {})
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        return {f"{name}{key}": of_json(value, root) for key, value in _parts(content)}
    if path.suffix in {".md", ".csv", ".txt", ".jsonl"}:
        return {name: of_text(path.read_text(encoding="utf-8"), root)}
    return {name: {"sha256": _sha256(path.read_bytes())}}


def of_tensor(value: Tensor) -> Entry:
    """The bits of a tensor, its type and its shape."""
    value = value.detach().cpu().contiguous()
    shape = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    bits = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    norm = float(value.double().norm())
    return {
        "sha256": _sha256(shape.encode() + bits),
        "shape": shape,
        "norm": norm if math.isfinite(norm) else str(norm),
    }


def of_json(value: Any, root: str = "") -> Entry:
    """Plain values, without what passes; floats to the last digit."""
    value = lasting(value, root)
    text = json.dumps(value, sort_keys=True)
    short = {"content": value} if len(text) <= MOST_CHARACTERS else {}
    return {"sha256": _sha256(text.encode()), **short}


def of_text(text: str, root: str = "") -> Entry:
    """A text, without the section that tells of the day and the machine."""
    for section in PASSING_SECTIONS:
        text = text.partition(section)[0]
    text = text.replace(root, "ROOT") if root else text
    short = {"content": text} if len(text) <= MOST_CHARACTERS else {}
    return {"sha256": _sha256(text.encode()), **short}


def lasting(value: Any, root: str) -> Any:
    """The same without what passes, and with ``ROOT`` for the folder of the record."""
    if isinstance(value, Mapping):
        return {key: lasting(item, root) for key, item in value.items() if key not in PASSING_KEYS}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [lasting(item, root) for item in value]
    return value.replace(root, "ROOT") if isinstance(value, str) and root else value


def _parts(content: Any) -> Iterator[tuple[str, Any]]:
    """Two levels of JSON: objects by key, lists by the names in them."""
    for key, value in _children(content):
        inner = list(_children(value))
        if key in PASSING_KEYS:
            continue
        if not inner:
            yield f":{key}", value
        for inner_key, item in inner:
            if inner_key not in PASSING_KEYS:
                yield f":{key}/{inner_key}", item


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        seen: dict[str, int] = {}
        for item in value:
            named = [str(item[key]) for key in NAMING_KEYS if key in item]
            name = " ".join(named)
            seen[name] = seen.get(name, 0) + 1
            yield f"{name}[{seen[name]}]" if seen[name] > 1 or not name else name, item


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
