"""The sizes that are given: ranks, or a share of the variance to keep."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from afm_dist import storage
from afm_dist.search.search import Problem, Search, write_plans


@dataclass(frozen=True, kw_only=True)
class FixedSearch(Search):
    """Takes the sizes that were asked for."""

    stage: ClassVar[str] = "plan"

    def fingerprint(self, problem: Problem) -> dict[str, Any]:
        """Give the request."""
        del problem
        return dict(
            storage.plain({"request": asdict(self.request), "leaders": [own.name for own in self.leaders]})
        )

    def propose(self, problem: Problem, folder: str) -> None:
        """Plan what each leader makes of the request."""
        plans = {
            leader.name: leader.plan(problem.model, problem.linear_moments, self.request)
            for leader in self.leaders
        }
        write_plans(folder, plans)
