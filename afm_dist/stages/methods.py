"""The methods that a run compares, and what each is: the rows of its report.

A method of factorising gives the rows ``<name>-mlp`` and ``<name>-emb``, before and after fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import Factors


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A method of factorising, as a run applies it.

    Attributes:
        name: Of the option and the rows.
        factors: Where the factors come from.
        words: What the report says of it.
        by_data: Whether the factors of tables depend on how often each token occurs.
        weighted: Whether they depend on the sensitivity of the logit.
        in_turn: Whether a linear layer is compressed by what it gives behind compressed layers.
    """

    name: str
    factors: Factors
    words: str
    by_data: bool = True
    weighted: bool = False
    in_turn: bool = False

    @property
    def linears(self) -> str:
        """Row of the model with compressed linear layers."""
        return f"{self.name}-mlp"

    @property
    def tables(self) -> str:
        """Row of the model with compressed tables, too."""
        return f"{self.name}-emb"


# What ships; the others are there to compare.
AFM = Compared(
    name="afm",
    factors="afm",
    words="afm: the principal components of the outputs, all of which count alike (Yu et al., KDD 2024).",
)
FACTORED = (
    AFM,
    Compared(
        name="svd",
        factors="svd",
        by_data=False,
        words="svd: truncated singular value decomposition of the weights and tables, whatever the data.",
    ),
    Compared(
        name="weighted",
        factors="weighted",
        weighted=True,
        words="weighted: as afm, but errors of the outputs count as the logit feels them: principal "
        "components in the metric E[ggᵀ] with g the gradient of the logit, over a sample of the training "
        "rows.",
    ),
    Compared(
        name="sequential",
        factors="afm",
        in_turn=True,
        words="sequential: as afm, but the statistics of a linear layer are taken once the layers before it "
        "are compressed; the tables as in afm.",
    ),
)
SCRATCH = "scratch"
SCRATCH_WORDS = (
    "scratch: the structure of afm-emb with weights drawn anew, trained once, with the training recipe of "
    "the preset; afm-emb had the baseline's training and two rounds of fine-tuning."
)
NAMES = (*(method.name for method in FACTORED), SCRATCH)


@dataclass(frozen=True, kw_only=True)
class Methods:
    """What a run compares.

    Attributes:
        factored: Methods of factorising; AFM is the first.
        scratch: Whether a small model is trained from scratch, too.
    """

    factored: Sequence[Compared] = FACTORED[:2]
    scratch: bool = False

    @property
    def names(self) -> list[str]:
        """As the option has them."""
        return [*(method.name for method in self.factored), *([SCRATCH] if self.scratch else [])]

    @property
    def weighted(self) -> list[Compared]:
        """Those that need the sensitivity of the logit."""
        return [method for method in self.factored if method.weighted]

    @property
    def in_turn(self) -> list[Compared]:
        """Those that need statistics behind compressed layers."""
        return [method for method in self.factored if method.in_turn]

    @property
    def notes(self) -> list[str]:
        """What the report says of them."""
        others = [method.name for method in self.factored if method is not AFM]
        notes = []
        if others:
            listed = " and ".join(filter(None, [", ".join(others[:-1]), others[-1]])).replace("svd", "SVD")
            notes.append(
                f"The {listed} rows have the ranks, the ReLU mode and the fine-tuning of the AFM rows; only "
                "the factors differ."
            )
        if others not in ([], ["svd"]):
            notes += [method.words for method in self.factored]
        return [*notes, *([SCRATCH_WORDS] if self.scratch else [])]


def parse_methods(value: str) -> Methods:
    """Names of methods between commas.

    Raises:
        OptionError: an unknown name, one that is there twice, or AFM, which ships, is not among them.
    """
    names = [part.strip() for part in value.split(",")]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise OptionError(
            f"--methods {value!r}: {unknown[0]!r} is no method; choose from {', '.join(NAMES)}, with commas "
            "between them"
        )
    if len(set(names)) < len(names):
        raise OptionError(f"--methods {value!r}: name each method once")
    if AFM.name not in names:
        raise OptionError(f"--methods {value!r}: {AFM.name} is missing, which is what ships; add it")
    return Methods(
        factored=tuple(method for method in FACTORED if method.name in names), scratch=SCRATCH in names
    )
