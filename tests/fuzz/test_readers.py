"""Whatever happens to a file that is read: an error in one line, the same result, or a legitimate edit.

Every case has a seed of its own, ``READER NUMBER``, which a failure names:


"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from afm_dist.errors import AfmError, OptionError
from tests.fuzz.mutations import mutated
from tests.fuzz.world import Reader, readers, without_ray

MUTATIONS, FEW = 10_000, 300
LONGEST = 1_500
SHOWN = 20


@pytest.fixture(scope="module")
def every_reader(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    with without_ray():
        return readers(tmp_path_factory.mktemp("fuzz"))


def cases(every: list[Reader], number: int) -> Iterator[tuple[Reader, int]]:
    """Each reader has its share, at least one."""
    total = sum(reader.weight for reader in every)
    for reader in every:
        for index in range(max(1, round(number * reader.weight / total))):
            yield reader, index


def outcome(reader: Reader, index: int, whole: Any) -> str | None:
    """What went wrong with one mutation, in words; None: nothing."""
    generator = random.Random(f"{reader.name} {index}")
    path = generator.choice(reader.files)
    content = path.read_bytes()
    others = [other.read_bytes() for other in reader.files if other != path]
    damaged = mutated(content, generator, others)
    path.write_bytes(damaged)
    try:
        found = reader.read()
        if found == whole or damaged == content:
            return None
        with suppress(Exception):
            if reader.legitimate(path, damaged, found):
                return None
        return f"another result, without a word: {str(found)[:300]} where it was {str(whole)[:300]}"
    except AfmError as error:
        return _unfit(reader, path, error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # What panics in Rust is no Exception.
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        path.write_bytes(content)


def _unfit(reader: Reader, path: Path, error: AfmError) -> str | None:
    """What is wrong with an error, in words."""
    text = str(error)
    if isinstance(error, OptionError) and not reader.options:
        return f"damage is called an option's mistake: {text[:300]}"
    if "\n" in text or len(text) > LONGEST:
        return f"not one line: {text[:300]}"
    if str(path.parent) not in text and path.name not in text and str(reader.folder) not in text:
        return f"the file {path.name} is not named: {text[:300]}"
    return None


def check(every: list[Reader], number: int) -> None:
    """Try so many mutations, and show the first ones that went wrong."""
    whole: dict[str, Any] = {}
    wrong, tried = [], 0
    for reader, index in cases(every, number):
        if reader.name not in whole:
            whole[reader.name] = reader.read()
        what = outcome(reader, index, whole[reader.name])
        tried += 1
        if what is not None:
            wrong.append(f"{reader.name} {index}: {what}")
    assert tried >= 0.95 * number
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong[:SHOWN])


def test_a_few_mutations(every_reader: list[Reader]) -> None:
    check(every_reader, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_ten_thousand_mutations(every_reader: list[Reader]) -> None:
    check(every_reader, MUTATIONS)
