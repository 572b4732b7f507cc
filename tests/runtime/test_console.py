from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from afm_dist.errors import DataError, OptionError
from afm_dist.runtime import console


@dataclass
class Options:
    """A job without options."""


def raising(error: BaseException):
    def job(options: Options) -> None:
        raise error

    return job


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OptionError("--rank 0: too small"), 2, "error: --rank 0: too small"),
        (DataError("shard [3] is damaged"), 1, "error: shard [3] is damaged"),
        (PermissionError(13, "Permission denied", "/data/x"), 1, "error: /data/x: Permission denied"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted: finished stages are kept; run the same command to go on"),
    ],
)
def test_what_a_user_can_mend_is_told_in_one_line(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["job"])

    with pytest.raises(SystemExit) as stopped:
        console.run_job(Options, raising(error))

    assert stopped.value.code == code
    assert capsys.readouterr().err.splitlines() == [message]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ConnectionError("no Ray at this address")])
def test_anything_else_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["job"])

    with pytest.raises(type(error), match=str(error)):
        console.run_job(Options, raising(error))


def test_a_job_that_returns_exits_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["job"])

    with pytest.raises(SystemExit) as stopped:
        console.run_job(Options, lambda options: (tmp_path / "done").touch())

    assert stopped.value.code == 0
    assert (tmp_path / "done").exists()


def test_what_an_earlier_run_did_counts_as_progress_and_not_as_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0.0)
    clock = iter([0.0, 10.0, 10.0])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    with console.progress("statistics", 1000, before=600) as advance:
        advance(100)

    assert capsys.readouterr().out == "  statistics: 700 of 1,000 rows, 10 rows/s, 30 s left\n"


def test_credentials_in_a_uri_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console.info("training on s3://KEY:SECRET@bucket/data")

    assert capsys.readouterr().out == "training on s3://…@bucket/data\n"


@pytest.mark.parametrize("text", ["a\udcffb", "a\0b"])
@pytest.mark.parametrize("option", ["name", "names", "nested"])
def test_an_option_that_is_no_text_is_named(option: str, text: str) -> None:
    @dataclass
    class Nested:
        path: str = ""

    @dataclass
    class Named:
        name: str = ""
        names: tuple[str, ...] = ()
        nested: Nested = field(default_factory=Nested)

    value = {"name": text, "names": ("a", text), "nested": Nested(path=text)}[option]

    with pytest.raises(OptionError, match=f"--{'path' if option == 'nested' else option} "):
        console.check_texts(Named(**{option: value}))
