"""The sections of a recipe: settings of the Python functions, and what a recipe alone says."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from manticore import settings
from manticore._moved import names_of
from manticore.option_types import Depth, Name, Rates, Size, TaskName, TaskOptions, Text
from manticore.settings import Comparing, Settings

__getattr__ = names_of(__name__, settings.__name__)


class Component(Settings):
    """One pretrained causal language model that goes into the hybrid."""

    name: Name
    """What tables and plots call it."""
    source: Text
    """A folder, a hub id, or the name of an entry of `pretrain`."""
    revision: str | None = None
    """Branch, tag or commit of the hub id."""


class TaskChoice(Settings):
    """What the hybrid is searched, fine-tuned and compared on."""

    name: TaskName
    """Name of the task."""
    options: TaskOptions = Field(default={})
    """The task's own options; `manticore show TASK` lists them."""


class _Made(Settings):
    name: Name
    """What `components` calls it as a source."""
    family: Text
    """A model_type of transformers, such as gpt_neo or mamba."""


class Pretrain(settings.Pretrain, _Made):
    __doc__ = settings.Pretrain.__doc__

    layers: Depth
    """Depth."""
    width: Size
    """Width of the hidden states."""

    unkeyed = settings.Pretrain.unkeyed | {"name"}


class Align(settings.Align):
    __doc__ = settings.Align.__doc__

    text: Text = "stdlib"
    """Text files, tables, a folder, a datasets id, stdlib (the sources of Python's standard library) or docstrings
    (English out of packages that come along); or task: the task's own inputs."""


class _Proxy(Settings):
    task_options: TaskOptions = Field(default={})
    """Options of the task that are others in the search, such as a shorter seq_len: candidates train on what is cheaper
    and of the same kind, and the path found is fine-tuned on the task itself. A unit is finetune's steps on that."""


class Search(settings.Search, _Proxy):
    __doc__ = settings.Search.__doc__

    # the data are digested
    unkeyed = settings.Search.unkeyed | {"task_options"}


class _Started(Settings):
    start: Literal["aligned", "searched"] = "aligned"
    """Weights to start from: those before the search (it then costs what a parent's costs), or after it."""


class Finetune(settings.Finetune, _Started):
    __doc__ = settings.Finetune.__doc__

    # its weights are what a run is given
    unkeyed = settings.Finetune.unkeyed | {"start"}


class _Taught(Settings):
    teacher: Text = "supernet"
    """supernet: what alignment, or a search that learns weights, has left; the name of a component; or the folder or
    hub id of a model with the same vocabulary."""


class Distill(settings.Distill, _Taught):
    __doc__ = settings.Distill.__doc__

    # its weights are digested
    unkeyed = settings.Distill.unkeyed | {"teacher"}


class Compare(Comparing):
    """Fine-tune parents, ensemble and hybrids at the same training FLOPs, with finetune's settings."""

    learning_rates: Rates | None = None
    """Each model takes, at each budget, the one that scores best on the validation split; left out, 0.3, 1 and 3 times
    finetune's."""


class Report(Settings):
    """The page that shows it all. It has no settings; `null` leaves it out."""
