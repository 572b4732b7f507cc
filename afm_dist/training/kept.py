"""The best weights of a training that may still go back to an earlier checkpoint."""

from __future__ import annotations

from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.files import CONFIG
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.errors import StageError
from afm_dist.training.registration import Registered

PREFIX = "kept-"


class KeptWeights:
    """Best weights by step, as long as a restart may go back to where they were the best.

    Weights that were the best after a checkpoint are of no use when the training goes on from it:
    on another number of threads, or on a GPU, it may take a slightly other way. So none are
    overwritten before a checkpoint is registered at which better ones were known.

    Args:
        folder: Of the candidate.
        config: Of the model.
    """

    def __init__(self, folder: str, config: ModelConfig) -> None:
        self._folder = folder
        self._config = config

    def add(self, model: nn.Module, step: int, registered: Registered | None) -> None:
        """Keep the weights of a step.

        Args:
            model: Has them.
            step: The step.
            registered: The last checkpoint of this training; weights that were known to be
                surpassed there are deleted.
        """
        if registered is not None:
            for older in self._steps():
                if older < registered.kept_step:
                    storage.remove(self._location(older))
        save_pretrained(model, self._location(step), self._config)

    def commit(self, step: int, checkpoint: str) -> None:
        """Move the weights of a step to where they stay, and delete the others.

        Doing it again, after an interruption, changes nothing.

        Raises:
            StageError: they are not there.
        """
        kept = self._location(step)
        if storage.exists(storage.join(kept, CONFIG)):
            storage.remove(checkpoint)
            _move(kept, checkpoint)
        elif not storage.exists(storage.join(checkpoint, CONFIG)):
            raise StageError(
                f"{kept}: the best weights are gone; delete the folder of this stage to train anew"
            )
        for other in self._steps():
            storage.remove(self._location(other))

    def _steps(self) -> list[int]:
        names = storage.list_names(self._folder)
        return [int(name.removeprefix(PREFIX)) for name in names if name.startswith(PREFIX)]

    def _location(self, step: int) -> str:
        return storage.join(self._folder, f"{PREFIX}{step:08d}")


def _move(source: str, target: str) -> None:
    """Move a folder of files; on an object store by copying them."""
    if storage.is_local(source):
        storage.local_path(source).rename(storage.local_path(target))
        return
    storage.copy(source, target)
    storage.remove(source)
