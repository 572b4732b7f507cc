"""Printing a plan: what each stage takes, what there is, and whether it fits."""

from __future__ import annotations

from rich.table import Table

from afm_dist.planning.capacity import Estimate, JobPlan, admit, describe_nodes, free_disk, size
from afm_dist.runtime import console


def show(plan: JobPlan, *, check: bool) -> None:
    """Print the plan as a table, and what it needs of each node.

    Args:
        plan: What would be done.
        check: Whether to refuse what does not fit.

    Raises:
        OptionError: the cluster cannot hold it.
    """
    console.out.print(_table(plan))
    conclude(plan, check=check)


def conclude(plan: JobPlan, *, check: bool) -> None:
    """Print what a plan needs of each node, and whether it fits; as ``show``, without the table."""
    for line in _needs(plan):
        console.info(line)
    admit(plan, check=check)
    if plan.cluster.growing:
        console.info("more nodes may come: each must have what is said above")
    else:
        console.info(f"{plan.cluster.where} can hold this")


def _table(plan: JobPlan) -> Table:
    table = Table(title="What this would do (rough estimates; nothing was started)")
    for heading in ("stage", "rows read", "memory a worker", "memory of the driver", "disk", "time"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for item in plan.estimates:
        table.add_row(
            item.stage,
            f"{item.rows:,}" if item.rows else "",
            *(size(count) if count else "" for count in (item.memory, item.driver, item.disk)),
            _time(item.seconds),
        )
    known = [item.seconds for item in plan.estimates if item.seconds is not None]
    more = "" if len(known) == len(plan.estimates) else "more than "
    table.add_row(
        "total",
        f"{sum(item.rows for item in plan.estimates):,}",
        *(size(max(counts)) for counts in zip(*map(_memory, plan.estimates), strict=True)),
        size(plan.disk),
        f"{more}{_time(sum(known))}",
        style="bold",
    )
    return table


def _memory(estimate: Estimate) -> tuple[int, int]:
    return estimate.memory, estimate.driver


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _needs(plan: JobPlan) -> list[str]:
    """Describe what there is, and what each node must have."""
    lines = [f"on {plan.cluster.where}: {describe_nodes(plan.cluster)}"]
    if any(item.seconds is None for item in plan.estimates):
        lines.append("?: nobody has measured it on GPUs, or the nodes for it are not up yet")
    if plan.object_store:
        lines.append(f"object store of each node: the model, {size(plan.object_store)}")
    for place, worker in (("tasks", "task"), ("training", "training worker")):
        widest = [
            (plan.workers_on(node, item) * item.memory, plan.workers_on(node, item), item)
            for node in plan.cluster.nodes
            for item in plan.estimates
            if item.place == place
        ]
        if widest:
            bytes_, count, item = max(widest, key=lambda one: one[0])
            if count:
                at_once = f"{count} {worker}s at once" if count > 1 else f"a {worker}"
                lines.append(f"memory of a node for {at_once} ({item.stage}): {size(bytes_)}")
    lines += [f"{item.stage}: {item.note}" for item in plan.estimates if item.note]
    if most := max(plan.estimates, key=lambda item: item.gpu).gpu:
        lines.append(
            f"memory of a GPU for a worker: {size(most)} (not checked: Ray does not say what they have)"
        )
    if plan.output is not None:
        free = free_disk(plan.output)
        there = "its free space is not known" if free is None else f"{size(free)} free"
        lines.append(f"disk: {size(plan.disk)} in {plan.output} ({there})")
    return lines
