"""What a training saw: its evaluations, and which state is kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from afm_dist import storage
from afm_dist.errors import DataError

FIX = "delete the folder of this stage to train anew"


@dataclass
class EvaluationPoint:
    """One evaluation on the validation split; step 0 is before the first step.

    Attributes:
        step: Steps done.
        rows: Rows of all batches before.
        train_loss: Mean log loss against the labels of the batches since the last evaluation, each
            before its update; without L2 and soft labels. None before the first step.
        validation_auc: Of the weights that would be kept: their average, where they are averaged.
        validation_log_loss: The same, in nats per row.
    """

    step: int
    rows: int
    train_loss: float | None
    validation_auc: float
    validation_log_loss: float


@dataclass
class History:
    """What a training saw and which of its states is kept.

    Attributes:
        curve: Evaluations in order.
        kept_step: Step of the best validation AUC: the weights that are kept.
        stopped_early: Whether patience ran out.
        finished: Whether training came to its end.
        bytes_sent: Bytes that all workers gave to collectives to exchange gradients, up to the last
            evaluation or checkpoint; 0 with one worker.
    """

    curve: list[EvaluationPoint] = field(default_factory=list)
    kept_step: int = -1
    stopped_early: bool = False
    finished: bool = False
    bytes_sent: int = 0

    @property
    def best(self) -> EvaluationPoint:
        """The evaluation of the kept weights."""
        return next(point for point in self.curve if point.step == self.kept_step)

    @property
    def scored_states(self) -> int:
        """Evaluations after the first step."""
        return sum(point.step > 0 for point in self.curve)

    @property
    def setbacks(self) -> int:
        """Evaluations that were not the best so far."""
        best, setbacks = float("-inf"), 0
        for point in self.curve:
            setbacks += point.validation_auc <= best
            best = max(best, point.validation_auc)
        return setbacks

    def add(self, point: EvaluationPoint, patience: int) -> bool:
        """Record an evaluation; returns whether it is the best so far."""
        self.curve.append(point)
        improved = self.kept_step < 0 or point.validation_auc > self.best.validation_auc
        if improved:
            self.kept_step = point.step
        since_best = sum(other.step > self.kept_step for other in self.curve)
        self.stopped_early = since_best >= patience
        return improved

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, *, source: str, fix: str = FIX) -> History:
        """Make it from plain values.

        Args:
            value: What ``to_json`` gave.
            source: Where it was found, for messages.
            fix: What to do about an error.

        Raises:
            DataError: it is no history, or what it kept is none of its evaluations.
        """
        history = storage.as_typed(value, cls, source=source, fix=fix)
        steps = [point.step for point in history.curve]
        if history.kept_step not in (steps or [-1]):
            raise DataError(
                f"{source}: damaged (kept_step {history.kept_step} is not a step of its curve {steps}); {fix}"
            )
        return history

    @classmethod
    def read(cls, location: str) -> History:
        """Read the history of a training that is finished.

        Raises:
            DataError: the file is missing, damaged or altered.
        """
        content = storage.read_sealed_json(location, dict[str, Any], fix=FIX, unsealed=True)
        return cls.from_json(content, source=location)


def summary(history: History) -> dict[str, Any]:
    """Explain why the kept weights were kept."""
    best, first, last = history.best, history.curve[0], history.curve[-1]
    if history.kept_step == 0:
        others = [point.validation_auc for point in history.curve[1:]]
        reason = (
            f"no evaluation beat the validation AUC {best.validation_auc:.5f} from before "
            f"fine-tuning (the best after it was {max(others):.5f})"
            if others
            else "nothing was trained"
        )
        return {"kept": "before fine-tuning", "reason": reason}
    reason = f"validation AUC {first.validation_auc:.5f} -> {best.validation_auc:.5f}, the best seen"
    if last.step != best.step:
        reason += f" (it fell to {last.validation_auc:.5f} by step {last.step})"
    return {"kept": f"step {history.kept_step}", "reason": reason}
