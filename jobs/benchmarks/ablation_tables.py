"""The tables of an ablation: what each level of a factor does on average, and every combination."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from afm_dist.methods.low_rank.config import Activation
from afm_dist.search.rows import LinearTerms
from jobs.benchmarks.summary import spread


class Combination(NamedTuple):
    """One level of each factor of compression.

    Attributes:
        method: Where the factors come from, and which statistics.
        activation: Between the factors of linear layers.
        linear_terms: What becomes of the first-order weights.
    """

    method: str
    activation: Activation
    linear_terms: LinearTerms

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join(self)


FACTORS = ("method", "ReLU", "linear terms", "distillation")
# One level of each factor; before fine-tuning there is no distillation.
Levels = tuple[Hashable, ...]
# An AUC, and that of what it is compared with.
Pair = tuple[float, float]


@dataclass(frozen=True)
class Measured:
    """What came of one uncompressed model; each AUC is of the test split.

    Attributes:
        baseline: AUC of the uncompressed model.
        smaller: Its bytes on disk over those of the compressed model.
        before: AUC of the compressed model before fine-tuning.
        control: AUC of the uncompressed model after fine-tuning, by weight of distillation.
        after: AUC of the compressed model after fine-tuning, by weight of distillation.
    """

    baseline: float
    smaller: Mapping[Combination, float]
    before: Mapping[Combination, float]
    control: Mapping[float, float]
    after: Mapping[float, Mapping[Combination, float]]

    @property
    def pairs_before(self) -> dict[Levels, Pair]:
        """AUC before fine-tuning, and the baseline's."""
        return {tuple(one): (auc, self.baseline) for one, auc in self.before.items()}

    @property
    def pairs_after(self) -> dict[Levels, Pair]:
        """AUC after fine-tuning, and the control's; distillation is the last factor."""
        return {
            (*one, weight): (auc, self.control[weight])
            for weight, own in self.after.items()
            for one, auc in own.items()
        }


@dataclass(frozen=True)
class Effect:
    """What one level of a factor does, the mean over all other factors; a value a model.

    Attributes:
        gains: AUC less that of the reference.
        differences: AUC less that of the factor's first level, all other factors equal.
    """

    gains: list[float]
    differences: list[float]


def effects(models: Sequence[Mapping[Levels, Pair]], factor: int) -> dict[Hashable, Effect]:
    """The levels of one factor, in order; nothing where there is only one.

    Args:
        models: Of each model the AUC, and that of what it is compared with, at all levels of all factors.
        factor: Which of them.
    """
    names = list(dict.fromkeys(levels[factor] for levels in models[0] if factor < len(levels)))
    found: dict[Hashable, Effect] = {}
    for name in names if len(names) > 1 else []:
        effect = found[name] = Effect([], [])
        for pairs in models:
            own = [levels for levels in pairs if levels[factor] == name]
            effect.gains.append(statistics.mean(pairs[levels][0] - pairs[levels][1] for levels in own))
            first = [(*levels[:factor], names[0], *levels[factor + 1 :]) for levels in own]
            differences = (pairs[one][0] - pairs[two][0] for one, two in zip(own, first, strict=True))
            effect.differences.append(statistics.mean(differences))
    return found


def effects_table(models: Sequence[Measured]) -> str:
    """A row for each level of each factor that has several."""
    measured = {"before": [one.pairs_before for one in models]}
    head = ["before: AUC − baseline", "before: AUC − that of the first level"]
    if models[0].after:
        measured = {"after": [one.pairs_after for one in models], **measured}
        head = ["after: AUC − control", "after: AUC − that of the first level", *head]
    rows = [["factor", "level", *head], [*["---"] * 2, *["--:"] * len(head)]]
    for factor, title in enumerate(FACTORS):
        columns = [effects(pairs, factor) for pairs in measured.values()]
        for level in columns[0]:
            shown = f"{level:g}" if isinstance(level, float) else str(level)
            cells = [cell for column in columns for cell in _effect_cells(column, level)]
            rows.append([title, shown, *cells])
    return _markdown(rows)


def _effect_cells(column: Mapping[Hashable, Effect], level: Hashable) -> list[str]:
    if level not in column:
        return ["", ""]
    effect = column[level]
    first = level == next(iter(column))
    return [spread(effect.gains, sign=True), "–" if first else spread(effect.differences, sign=True)]


def grid_table(models: Sequence[Measured]) -> str:
    """A row for each combination: gains of the same model, mean ± deviation over the models."""
    weights = list(models[0].after)
    head = ["method", "ReLU", "linear terms", "smaller", "before: AUC − baseline"]
    head += [f"after, distillation {weight:g}: AUC − control" for weight in weights]
    rows = [head, [*["---"] * 3, *["--:"] * (len(head) - 3)]]
    for one in models[0].before:
        cells = [*one, f"{statistics.mean(model.smaller[one] for model in models):.2f}×"]
        cells.append(spread([model.before[one] - model.baseline for model in models], sign=True))
        for weight in weights:
            gains = [model.after[weight][one] - model.control[weight] for model in models]
            cells.append(spread(gains, sign=True))
        rows.append(cells)
    return _markdown(rows)


def references(models: Sequence[Measured]) -> str:
    """What the compressed models are compared with, in a line."""
    parts = [f"baseline {spread([model.baseline for model in models])}"]
    for weight in models[0].control:
        control = spread([model.control[weight] for model in models])
        parts.append(f"control (distillation {weight:g}) {control}")
    return f"Test AUC of the uncompressed model: {', '.join(parts)}."


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
