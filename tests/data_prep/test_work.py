from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from afm_dist.errors import DataError
from data_prep.work import Task, Usage, WorkDirectory


def _work(folder: Path, plan: dict[str, Any] | None = None, *, keep: bool = True) -> WorkDirectory:
    work = WorkDirectory(str(folder), {"version": 1} if plan is None else plan, keep=keep, usage=Usage())
    work.begin()
    return work


def _square(number: int) -> int | None:
    return number * number if number else None


def _noted(path: str, number: int) -> int:
    with Path(path).open("a") as file:
        file.write(f"{number}\n")
    return number


def _damaged(path: str) -> None:
    raise DataError(f"{path}: the file is damaged; fetch it again")


def _pid() -> int:
    return os.getpid()


def test_results_come_in_the_order_of_the_tasks_nothing_included(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    tasks = [Task(key=f"{n}", function=_square, arguments=(n,)) for n in (3, 0, 2)]

    assert _work(tmp_path).run("stage", "squaring", tasks) == [9, None, 4]
    assert _work(tmp_path).run("stage", "squaring", tasks) == [9, None, 4]


def test_a_task_with_a_receipt_is_not_done_again(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes"
    tasks = [Task(key=f"{n}", function=_noted, arguments=(str(notes), n)) for n in range(3)]
    _work(tmp_path / "data").run("stage", "noting", tasks[:2])

    _work(tmp_path / "data").run("stage", "noting", tasks)
    _work(tmp_path / "data").run("other stage", "noting", tasks[:1])

    assert notes.read_text().split() == ["0", "1", "2", "0"]


@pytest.mark.parametrize(("plan", "keep"), [({"version": 2}, True), ({"version": 1}, False)])
def test_another_plan_or_a_fresh_start_throws_receipts_away(
    tmp_path: Path, here: pytest.MonkeyPatch, plan: dict[str, Any], keep: bool
) -> None:
    notes = tmp_path / "notes"
    tasks = [Task(key="0", function=_noted, arguments=(str(notes), 0))]
    _work(tmp_path / "data").run("stage", "noting", tasks)

    _work(tmp_path / "data", plan, keep=keep).run("stage", "noting", tasks)

    assert notes.read_text().split() == ["0", "0"]


def test_an_action_of_the_driver_is_done_once(tmp_path: Path) -> None:
    done: list[int] = []
    for number in range(3):
        _work(tmp_path).once("clear", lambda number=number: done.append(number))

    assert done == [0]


@pytest.mark.ray
def test_on_ray_tasks_run_elsewhere_and_what_a_task_raises_reaches_the_driver_in_one_line(
    tmp_path: Path, local_ray: None
) -> None:
    work = _work(tmp_path)
    tasks = [
        Task(key="good", function=_pid, arguments=()),
        Task(key="bad", function=_damaged, arguments=("log.gz",)),
    ]

    (pid,) = work.run("pids", "looking", tasks[:1])
    with pytest.raises(DataError) as caught:
        work.run("stage", "reading", tasks)

    assert pid != os.getpid()
    assert str(caught.value) == "log.gz: the file is damaged; fetch it again"
    assert caught.value.__cause__ is None
    assert work.usage.peak_bytes > 1 << 20
    assert not (tmp_path / "stage" / "bad.json").exists()
