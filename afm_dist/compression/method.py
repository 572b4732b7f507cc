"""What a method of compression says about itself. Planning, rewriting, streaming and reports ask it.

A method is registered for a type of config and a type of module (``registry.register_method``). Nothing
outside a method's folder knows its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from afm_dist.compression.allocate import Choice
from afm_dist.compression.config import MethodConfig
from afm_dist.errors import OptionError
from afm_dist.statistics.statistics import Statistics

C = TypeVar("C", bound=MethodConfig)
M = TypeVar("M", bound=nn.Module)

ALREADY_COMPRESSED = "is already compressed; start from the uncompressed model"


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What a budget may choose from for one module.

    Attributes:
        whole: Ways to compress the module as a whole; their values are configs.
        fields: Of a table whose fields are chosen one by one, the ways of each; their values are what
            ``combine`` takes. Their costs count from ``base``.
        base: Bytes that a table compressed field by field has more, or fewer, than now, before any choice.
        combine: Makes the config of a choice for each field.
    """

    whole: Sequence[Choice]
    fields: Mapping[str, Sequence[Choice]] | None = None
    base: int = 0
    combine: Callable[[Mapping[str, Any]], MethodConfig] | None = None


class RowEncoder(Protocol):
    """Makes what is stored of the rows of one field, block by block, of a table larger than memory."""

    @property
    def width(self) -> int:
        """Numbers that are stored of a row."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of all that the result depends on besides the rows."""
        ...

    def __call__(self, rows: Tensor) -> Tensor:
        """Encode rows (n, T) to (n, width), in their dtype; each row for itself."""
        ...


class Method(ABC, Generic[C, M]):
    """How one method compresses modules of one type. ``name`` is always the module's name in its model.

    Attributes:
        makes: Types of modules that ``build`` gives.
        replaces: Whether ``build`` gives a new module; else only values change, of tied weights, too.
        stacks: Whether it applies to what other methods made, and to parts of it.
    """

    makes: ClassVar[tuple[type[nn.Module], ...]] = ()
    replaces: ClassVar[bool] = True
    stacks: ClassVar[bool] = False

    @abstractmethod
    def examples(self, module: M) -> Sequence[C]:
        """Give some configs that fit a module: what documentation and the conformance tests try."""

    def lossless(self, module: M) -> C | None:
        """Give the config that loses nothing of a module, up to rounding; None: there is none."""
        del module
        return None

    def refusal(self, module: M) -> str | None:
        """Say why this very module cannot be compressed, to be read behind its name; None if it can."""
        del module
        return None

    def needs_sensitivity(self, config: C) -> bool:
        """Tell whether ``fill`` needs the sensitivity of the logit to the module's outputs."""
        del config
        return False

    @abstractmethod
    def build(self, name: str, module: M, config: C) -> nn.Module:
        """Make the replacement without its values: all that a reader of a checkpoint needs.

        Returns:
            A new module; or ``module`` itself, of a method that changes only values.

        Raises:
            OptionError: the config does not fit the module.
        """

    @abstractmethod
    def fill(self, new: Any, name: str, module: M, config: C, known: Statistics) -> None:
        """Write the values into what ``build`` gave. The original is not changed.

        Args:
            new: What ``build`` gave.
            name: Of the module.
            module: That is replaced.
            config: How.
            known: Of the outputs.

        Raises:
            OptionError: statistics that are missing or of another width.
        """

    def connect(
        self, model: nn.Module, new: Any, name: str, module: M, config: C, known: Statistics | None
    ) -> bool:
        """Change the neighbours of a module that a config names, if it names any, before it is replaced.

        Args:
            model: Whose neighbouring modules are replaced, each as a whole (``replace_module``).
            new: What ``build`` gave.
            name: Of the module.
            module: That is replaced.
            config: How.
            known: Of the outputs; None: only the structure is wanted.

        Returns:
            Whether the values of ``new`` were written, too, in place of ``fill``.

        Raises:
            OptionError: the model declares no such neighbour, or as in ``fill``.
        """
        del model, new, name, module, config, known
        return False

    def finish(self, model: nn.Module, name: str, config: C) -> None:
        """Change values in place once every entry of a plan succeeded; it must not fail."""
        del model, name, config

    def stored_dtypes(self, model: nn.Module, name: str, config: C) -> Mapping[str, torch.dtype]:
        """List the tensors that a checkpoint holds in another dtype than the model has them.

        Args:
            model: To which the plan was applied.
            name: Of the module.
            config: How it was compressed.

        Returns:
            By the tensor's name in the model.

        Raises:
            OptionError: the module has nothing that could be stored so.
        """
        del model, name, config
        return {}

    def carried(self, name: str, new: Any, module: M, config: C, known: Statistics) -> Statistics:
        """Carry statistics of the module over to what it became, for the methods that stack on it.

        Args:
            name: Of the module.
            new: Filled.
            module: That was replaced.
            config: How.
            known: Of the outputs of ``module``.

        Returns:
            The same for all other modules; of this one what is known of ``new`` and its parts.
        """
        del name, new, module, config
        return known

    def candidates(
        self,
        name: str,
        module: M,
        config: C,
        known: Statistics,
        cost: Callable[[C], int],
        *,
        by_field: bool,
    ) -> Candidates:
        """List the ways to compress a module from which a budget chooses, with what each costs and saves.

        Args:
            name: Of the module.
            module: The uncompressed one; may be without values.
            config: What the ways have in common.
            known: Of the outputs; with the sensitivity.
            cost: Gives the bytes that the whole model has more, or fewer, than now with a config.
            by_field: Whether the fields of a table are chosen one by one, too.

        Raises:
            OptionError: the method does not predict what it does to the logit.
        """
        del module, known, cost, by_field
        raise OptionError(
            f"method {config.label!r} of {name}: what it does to the logit is not predicted; give its "
            "config instead of a budget"
        )

    def smallest(self, module: M, config: C, *, by_field: bool) -> Sequence[C]:
        """Give configs among which is the one that makes a module as small as any candidate does.

        Args:
            module: The uncompressed one; may be without values.
            config: What the candidates have in common.
            by_field: As in ``candidates``.
        """
        del module, by_field
        return [config]

    def longest(self, module: M, config: C, *, by_field: bool) -> C:
        """Give the one of all candidates that takes the most words in a plan and a checkpoint's header.

        Args:
            module: The uncompressed one; may be without values.
            config: What the candidates have in common.
            by_field: As in ``candidates``.
        """
        del module, by_field
        return config

    def row_encoder(self, name: str, field: str, config: C, width: int, known: Statistics) -> RowEncoder:
        """Give what makes the stored rows of a field, of a table larger than memory.

        Args:
            name: Of the table.
            field: Of the table.
            config: How the table is compressed.
            width: T, of a row.
            known: Of the rows.

        Raises:
            OptionError: what is stored of a row depends on more than the row and the statistics.
        """
        del field, width, known
        raise OptionError(
            f"method {config.label!r} of {name}: it needs the whole table in memory; use compress_"
        )
