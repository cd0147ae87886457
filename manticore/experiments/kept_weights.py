"""Weights of trained models of a comparison, kept on the disk until what these models write has been scored."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from manticore.cache import content_key
from manticore.writing import partial_path

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from manticore.experiments.comparison_runs import Run

logger = logging.getLogger(__name__)


class KeptWeights:
    """One file per run that is wanted.

    Args:
        folder: of the files; made where it is needed.
        wanted: (model, training FLOPs) of the runs to keep.
    """

    def __init__(self, folder: Path, wanted: Collection[tuple[str, int]]) -> None:
        self._folder, self._wanted = folder, set(wanted)

    def keep(self, run: Run, model: PreTrainedModel) -> None:
        """Write what a run has left, if that is wanted; in the type that the weights have."""
        if (run.name, run.train_flops) not in self._wanted:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # tied weights lie in the file as often as they have names
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
        path = self._file(run)
        with partial_path(path) as aside:
            save_file(tensors, aside)
            aside.replace(path)

    def read(self, run: Run) -> dict[str, Tensor] | None:
        """The weights that a run has left; None where they are not there, or damaged."""
        path = self._file(run)
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read (%s)", path, error)
            return None

    def drop(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, run: Run) -> Path:
        # names of models may differ in what no file name can hold
        name = re.sub(r"[^\w.-]+", "_", run.name)[:60]
        return self._folder / f"{name}_{content_key([str(run)])[:12]}.safetensors"
