"""afm-dist: low-rank compression of CTR models as a distributed, out-of-core, restartable job.

The library surface, loaded when first used (torch and Ray take seconds to import):

    result = afm_dist.compress(model, batches, target_ratio=5)      # one call; print(result) says what it did

    statistics = afm_dist.collect_statistics(model, data, targets)  # the same in steps
    plan = afm_dist.plan(statistics, afm_dist.Budget("100MB"))
    afm_dist.compress_(model, plan, statistics)
    afm_dist.save_pretrained(model, "DIR", plan=plan)
    serving = afm_dist.prepare_for_inference(model, compile=True)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from afm_dist.checkpoint.pretrained import from_pretrained as from_pretrained
    from afm_dist.checkpoint.pretrained import save_pretrained as save_pretrained
    from afm_dist.compression.applied import applied_plan as applied_plan
    from afm_dist.compression.config import MethodConfig as MethodConfig
    from afm_dist.compression.method import Method as Method
    from afm_dist.compression.plan import Plan as Plan
    from afm_dist.compression.plan import PlanEntry as PlanEntry
    from afm_dist.compression.registry import register_method as register_method
    from afm_dist.compression.rewrite import compress_ as compress_
    from afm_dist.dataset.manifest import Manifest as Manifest
    from afm_dist.library.budget import Budget as Budget
    from afm_dist.library.compress import Compressed as Compressed
    from afm_dist.library.compress import compress as compress
    from afm_dist.library.plan import plan as plan
    from afm_dist.methods.low_rank.config import LowRank as LowRank
    from afm_dist.methods.low_rank.ranks import FixedRank as FixedRank
    from afm_dist.methods.low_rank.ranks import KeptEnergy as KeptEnergy
    from afm_dist.methods.low_rank.ranks import plan_ranks as plan_ranks
    from afm_dist.methods.quantization.config import Quantization as Quantization
    from afm_dist.methods.rounding.config import Rounding as Rounding
    from afm_dist.methods.rounding.rows import register_rows as register_rows
    from afm_dist.serving.prepare import prepare_for_inference as prepare_for_inference
    from afm_dist.statistics.collect import PassOptions as PassOptions
    from afm_dist.statistics.collect import collect_moments as collect_moments
    from afm_dist.statistics.collect import collect_statistics as collect_statistics
    from afm_dist.statistics.moments import Moments as Moments
    from afm_dist.statistics.outputs import Observation as Observation
    from afm_dist.statistics.outputs import Outputs as Outputs
    from afm_dist.statistics.outputs import register_outputs as register_outputs
    from afm_dist.statistics.sensitivity import output_sensitivity as output_sensitivity
    from afm_dist.statistics.statistics import Statistics as Statistics

_PUBLIC = {
    "Budget": "afm_dist.library.budget",
    "Compressed": "afm_dist.library.compress",
    "FixedRank": "afm_dist.methods.low_rank.ranks",
    "KeptEnergy": "afm_dist.methods.low_rank.ranks",
    "LowRank": "afm_dist.methods.low_rank.config",
    "Manifest": "afm_dist.dataset.manifest",
    "Method": "afm_dist.compression.method",
    "MethodConfig": "afm_dist.compression.config",
    "Moments": "afm_dist.statistics.moments",
    "Observation": "afm_dist.statistics.outputs",
    "Outputs": "afm_dist.statistics.outputs",
    "PassOptions": "afm_dist.statistics.collect",
    "Plan": "afm_dist.compression.plan",
    "PlanEntry": "afm_dist.compression.plan",
    "Quantization": "afm_dist.methods.quantization.config",
    "Rounding": "afm_dist.methods.rounding.config",
    "Statistics": "afm_dist.statistics.statistics",
    "applied_plan": "afm_dist.compression.applied",
    "collect_moments": "afm_dist.statistics.collect",
    "collect_statistics": "afm_dist.statistics.collect",
    "compress": "afm_dist.library.compress",
    "compress_": "afm_dist.compression.rewrite",
    "from_pretrained": "afm_dist.checkpoint.pretrained",
    "output_sensitivity": "afm_dist.statistics.sensitivity",
    "plan": "afm_dist.library.plan",
    "plan_ranks": "afm_dist.methods.low_rank.ranks",
    "prepare_for_inference": "afm_dist.serving.prepare",
    "register_method": "afm_dist.compression.registry",
    "register_outputs": "afm_dist.statistics.outputs",
    "register_rows": "afm_dist.methods.rounding.rows",
    "save_pretrained": "afm_dist.checkpoint.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'afm_dist' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
