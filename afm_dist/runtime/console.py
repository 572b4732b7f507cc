"""What a job says: its entry point, its lines, its progress bars."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from afm_dist.errors import AfmError, OptionError

Config = TypeVar("Config")

PLAIN_INTERVAL_S = 5.0
# A NUL, and what Python makes of a byte that is not UTF-8.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def run_job(
    config_type: type[Config], job: Callable[[Config], None], description: str | None = None
) -> NoReturn:
    """Parse the command line into ``config_type``, run the job, exit with its code.

    Exit codes: 0 success, 1 bad data or a stage that failed, 2 a mistake in the options,
    130 interrupted. An ``AfmError``, and what the operating system refused (no permission, no space),
    is reported in one line, anything else with its traceback.
    """
    # Before torch is loaded, and for the workers of a local Ray: OpenMP threads that wait by spinning
    # cost 5 times and more when anything else runs on the machine, sleeping ones 15 % when nothing does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    config = tyro.cli(config_type, description=description)
    try:
        check_texts(config)
        job(config)
    except AfmError as error:
        err.print(f"[bold red]error:[/] {_escape(str(error))}")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        err.print(f"[bold red]error:[/] {_escape(f'{where}{error.strerror}')}")
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("[bold red]interrupted:[/] finished stages are kept; run the same command to go on")
        sys.exit(130)
    sys.exit(0)


def _escape(text: str) -> str:
    """Escape square brackets, and remove credentials: what a job prints ends up in logs.

    Names of files may hold bytes that are not UTF-8; they are spelled.
    """
    text = text.encode(errors="backslashreplace").decode()
    return re.sub(r"://[^/@\s]+@", "://…@", text).replace("[", r"\[")


def check_texts(config: Any) -> None:
    """Refuse options whose text is not UTF-8, or holds a NUL: neither a file nor a column has such a name.

    Args:
        config: The configuration of a job: a dataclass.

    Raises:
        OptionError: names the option.
    """
    for option in fields(config):
        value = getattr(config, option.name)
        if is_dataclass(value):
            check_texts(value)
        for text in value if isinstance(value, tuple | list) else (value,):
            if isinstance(text, str) and _NO_TEXT.search(text):
                name = option.name.replace("_", "-")
                raise OptionError(f"--{name} {text!a}: not UTF-8 text; rename what it names")


def info(text: str) -> None:
    """Print one line; square brackets in it are plain text."""
    out.print(_escape(text))


def warn(text: str) -> None:
    """Print one warning line on standard error."""
    err.print(f"[yellow]warning:[/] {_escape(text)}")


def counted(count: int, noun: str) -> str:
    """Write a number of things, for a line: ``1 file``, ``12,000 files``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


@contextmanager
def progress(
    what: str, total: int, unit: str = "rows", *, before: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show one bar for one stage; yields a function to call with what was just finished.

    With a terminal: a bar with rate and time left. Without: a plain line every few seconds.

    Args:
        what: Name of the stage.
        total: All there is to do, in units.
        unit: What is counted.
        before: What an earlier run had done already; it does not count as this one's speed.
    """
    started = time.monotonic()
    done = before

    def rate() -> str:
        return f"{(done - before) / max(time.monotonic() - started, 1e-9):,.0f} {unit}/s"

    if out.is_terminal:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}% {task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=out, transient=True) as bar:
            task = bar.add_task(what, total=total, completed=before, rate="")

            def advance(amount: int) -> None:
                nonlocal done
                done += amount
                bar.update(task, advance=amount, rate=rate())

            yield advance
        return

    last = started

    def report(amount: int) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_S and done < total:
            last = now
            left = (now - started) / max(done - before, 1) * (total - done)
            info(f"  {what}: {done:,} of {total:,} {unit}, {rate()}, {left:,.0f} s left")

    yield report
