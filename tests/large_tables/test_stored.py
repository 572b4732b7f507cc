"""Tensors read where they lie, against the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.errors import DataError
from afm_dist.large_tables.stored import (
    DTYPES,
    Described,
    as_bytes,
    header,
    in_file_order,
    read_header,
)

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
files = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
    st.tuples(shapes, st.sampled_from(list(DTYPES.values()))),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(files=files, metadata=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=1))
def test_a_file_written_piece_by_piece_is_the_librarys(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, tuple[tuple[int, ...], torch.dtype]],
    metadata: dict[str, str],
) -> None:
    tensors = {
        name: torch.randint(0, 2, shape, dtype=torch.uint8).to(dtype)
        for name, (shape, dtype) in files.items()
    }
    described = {name: Described(shape=shape, dtype=dtype) for name, (shape, dtype) in files.items()}

    content = header(described, metadata) + b"".join(
        as_bytes(tensors[name]) for name in in_file_order(described)
    )

    assert content == safetensors.torch.save(tensors, metadata or None)
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    path.write_bytes(content)
    stored, read_metadata = read_header(str(path))
    assert read_metadata == metadata
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert bytes(as_bytes(stored[name].load())) == bytes(as_bytes(tensor))
        assert b"".join(map(bytes, stored[name].pieces())) == bytes(as_bytes(tensor))


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_blocks_of_any_size_are_the_rows(tmp_path: Path, rows: int) -> None:
    table = torch.randn(20, 3)
    safetensors.torch.save_file({"before": torch.zeros(5), "table": table}, tmp_path / "x.safetensors")
    stored = read_header(str(tmp_path / "x.safetensors"))[0]["table"]

    blocks = [block.clone() for block in stored.blocks(2, 19, rows)]

    assert torch.equal(torch.cat(blocks), table[2:19])
    assert max(map(len, blocks)) <= rows


def damaged(change: str, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    described = json.loads(content[8 : 8 + length])
    match change:
        case "truncated":
            return content[:-1]
        case "longer":
            return content + b"\0"
        case "empty":
            return b""
        case "only a header":
            return content[: 8 + length // 2]
        case "no JSON":
            return content[:8] + b"x" + content[9:]
        case "offsets":
            described["b"]["data_offsets"][0] += 4
        case "overlap":
            described["b"]["data_offsets"] = described["a"]["data_offsets"]
        case "negative":
            described["a"]["shape"] = [-2, -3]
        case "type":
            described["a"]["dtype"] = "F31"
        case "list":
            described = [described]
        case "key":
            del described["a"]["shape"]
    text = json.dumps(described).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        *("truncated", "longer", "empty", "only a header", "no JSON"),
        *("offsets", "overlap", "negative", "type", "list", "key"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, change: str) -> None:
    content = safetensors.torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)})
    (tmp_path / "model.safetensors").write_bytes(damaged(change, content))

    with pytest.raises(DataError, match=r"model\.safetensors: (damaged|not valid JSON)"):
        read_header(str(tmp_path / "model.safetensors"))


def test_a_file_cut_while_it_is_read_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2000, 3)}, path)
    stored = read_header(str(path))[0]["a"]
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(DataError, match=r"model\.safetensors: ends early"):
        list(stored.blocks(0, 2000, 64))
