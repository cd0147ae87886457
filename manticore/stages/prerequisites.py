"""What a recipe needs of this machine: texts, tokenizers, families, trackers, positions. No weights, no network.

What can be told from files and names alone is; torch and transformers are imported only where a recipe asks for what
they alone know: fields and sizes of a family, an experiment tracker, a length that may lie beyond a table of positions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from os.path import expanduser
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from manticore.components.checkpoint_folder import (
    LAYERS,
    POSITIONS,
    REFUSED_FAMILIES,
    causal_families,
    first_number,
    gguf_file,
    has_tokenizer,
    raw_configuration,
    refuse_gguf_family,
    refuse_no_weights,
)
from manticore.components.gguf_header import Header, read_header
from manticore.errors import ManticoreError
from manticore.file_names import RESULTS, SEARCHED
from manticore.machine import machine_memory
from manticore.paths import expanded
from manticore.registry import did_you_mean
from manticore.schema.consistency import Finding, uneven
from manticore.schema.options import mixtures, options_of, reads_tokenizer
from manticore.schema.problems import Path
from manticore.tasks.text_sources import find_text

if TYPE_CHECKING:
    from manticore.tasks.shape import TaskShape

_HEAD_WIDTH = 32
_LEAST_POSITIONS = 1024
_IN_GGUF = {LAYERS[0]: "block_count", POSITIONS[0]: "context_length"}


def missing_prerequisites(sections: Mapping[str, Any]) -> Iterator[Finding]:
    """What well-formed sections need and is not here.

    Args:
        sections: section name → its validated value; sections with errors of their own are absent.
    """
    pretrain, components = sections.get("pretrain") or [], sections.get("components") or []
    made = {entry.name: entry for entry in pretrain}
    for index, entry in enumerate(pretrain):
        yield from _pretrained(("pretrain", index), entry)
    found: dict[int, _Component] = {}
    for index, component in enumerate(components):
        if component.source in made:
            found[index] = _Component(component.name, made[component.source])
            continue
        try:
            found[index] = _Component(component.name, None, component.source)
        except ManticoreError as error:
            yield ("components", index, "source"), _without(component.source, error)
    for index, entry in enumerate(pretrain):
        yield from _memory(("pretrain", index), entry)
    if "combine" in sections:
        yield from _depths(sections["combine"], found)
    yield from _texts(sections)
    yield from _tokenizers(sections, found)
    for name in ("search", "distill", "finetune"):
        if sections.get(name) is not None:
            yield from _trackers(name, sections[name].report_to)
    for name in ("search", "discretize"):
        if sections.get(name) is not None:
            yield from _searched(name, sections[name].weights_from)
    yield from _lengths(sections, found)
    if "task" in sections:
        yield from _of_tokens(sections)


def _of_tokens(sections: Mapping[str, Any]) -> Iterator[Finding]:
    """What is for predictions of tokens, with a task that has classes or is made for auto-encoders."""
    combine, distills = sections.get("combine"), sections.get("distill") is not None
    mixes = combine is not None and combine.output != "logits"
    # telling a task's shape may import torch, which a recipe without either does not need
    writes = sections.get("compare") is not None and sections["compare"].generate
    if not (distills or mixes or writes) or (shape := _shape_of(sections["task"])) is None:
        return
    if writes and not shape.writes:
        what = "has classes" if shape.classes else "is made for auto-encoders"
        text = f"task {sections['task'].name!r} {what}, so that nothing is written. Fix: leave it out"
        yield ("compare", "generate"), text
    if not shape.classes:
        return
    classes = f"task {sections['task'].name!r} has classes, and"
    if distills:
        yield ("distill",), f"{classes} distillation compares predictions of tokens. Fix: leave it out"
    if combine is not None and mixes:
        yield ("combine", "output"), f"{classes} output {combine.output!r} mixes predictions of tokens. Fix: logits"


def _shape_of(task: Any) -> TaskShape | None:
    from manticore.tasks.shape import task_shape

    try:
        return task_shape(task)
    except ManticoreError:
        # not to be told beforehand
        return None


def _searched(section: str, source: str | None) -> Iterator[Finding]:
    """Nothing at all where a search should have left what it has found; what is there is read when it is needed."""
    if source is not None and not any(
        (expanded(source) / file).is_file() for file in (SEARCHED, RESULTS, "config.json")
    ):
        yield (
            (section, "weights_from"),
            f"nothing that a search has found (got {source!r}). "
            "Fix: a folder that `manticore search`, `discretize` or `run` wrote",
        )


class _Component:
    """What is known of a component: the entry that makes it, its folder, or its GGUF; nothing of an id on the hub."""

    def __init__(self, name: str, entry: Any, source: str = "") -> None:
        self.name, self.entry = name, entry
        self.header = _header(source)
        self.folder = _folder(source) if self.header is None else None
        self.raw: Mapping[str, Any] = {} if self.folder is None else raw_configuration(self.folder)
        if self.header is not None:
            self.raw = {name: self.header.of_family(key) for name, key in _IN_GGUF.items()}

    @property
    def positions(self) -> int | None:
        """What its table of positions holds, if it has one."""
        if self.entry is not None:
            return first_number(self.entry.config, POSITIONS) or max(self.entry.length, _LEAST_POSITIONS)
        return first_number(self.raw, POSITIONS)

    @property
    def tabulated(self) -> int | None:
        """What it really holds; None where nothing ends."""
        if self.entry is not None:
            return _table_of_entry(*_shape(self.entry))
        return None if self.folder is None else _table_of_folder(str(self.folder))

    @property
    def has_tokenizer(self) -> bool | None:
        """None where that is not known."""
        if self.header is not None:
            return bool(self.header.fields.get("tokenizer.ggml.tokens"))
        return True if self.entry is not None else None if self.folder is None else has_tokenizer(self.folder)


def _header(source: str) -> Header | None:
    """What a component's GGUF says of itself; None where it is something else.

    Raises:
        ManticoreError: it is damaged, or of a family that transformers does not read.
    """
    path = gguf_file(expanduser(source))
    if path is None:
        return None
    header = read_header(path, source)
    refuse_gguf_family(header.architecture, source)
    return header


def _folder(source: str) -> FilePath | None:
    """The folder of a checkpoint; None for an id on the hub, and where there is none, which is said without looking in.

    Raises:
        ManticoreError: it holds no checkpoint of a usable family.
    """
    folder = FilePath(expanduser(source))
    if not (folder / "config.json").is_file():
        return None
    raw_configuration(folder)
    refuse_no_weights(str(folder))
    return folder


def _without(source: str, error: ManticoreError) -> str:
    """An error without the name that its line begins with anyway."""
    return str(error).removeprefix(f"{source}: ").removeprefix(f"{FilePath(expanduser(source))}: ")


def _pretrained(path: Path, entry: Any) -> Iterator[Finding]:
    family = next((name for name in (entry.family, entry.family.replace("-", "_")) if name in causal_families()), None)
    if family is None:
        hint = did_you_mean(entry.family, list(causal_families()))
        hint = hint if hint.startswith(". Did") else ". Fix: a model_type of transformers, such as gpt_neo or mamba"
        yield (*path, "family"), f"{entry.family!r} is not a causal language model of transformers{hint}"
    elif family in REFUSED_FAMILIES:
        yield (*path, "family"), f"{family!r} is refused: {REFUSED_FAMILIES[family]}. Fix: use another family"
    elif entry.config or not _plain(entry.width):
        try:
            table = _table_of_entry(*_shape(entry))
        except ManticoreError as error:
            yield (*path, "config") if entry.config else path, str(error).removeprefix("pretrain: ")
        else:
            if table is not None and entry.length > table:
                yield (
                    (*path, "length"),
                    f"sequences of {entry.length:,} tokens, but the model has {table:,} positions. "
                    f"Fix: at most {table}, or a larger max_position_embeddings in config",
                )
    if entry.tokenizer != "train":
        yield from _given_tokenizer((*path, "tokenizer"), entry.tokenizer)


def _memory(path: Path, entry: Any) -> Iterator[Finding]:
    """An entry that cannot be trained in the memory of this machine, by the least that any family takes."""
    room = machine_memory()
    if room is None or entry.config:
        return
    size = 2 if entry.dtype == "bfloat16" else 4
    # a layer has at least one square map; gradients and AdamW's two moments are as large as the weights
    weights = size * (4 if entry.steps else 1) * entry.layers * entry.width**2
    # every layer keeps its input for the backward pass, and the loss reads logits of the whole vocabulary
    vocabulary = entry.vocab_size if entry.tokenizer == "train" else 0
    features = 2 * entry.batch_size * entry.length * (entry.layers * entry.width + vocabulary) * bool(entry.steps)
    if weights + features > room:
        key = "layers" if weights > features else "batch_size"
        yield (
            (*path, key),
            f"training takes {(weights + features) / 2**30:,.0f} GiB at the least, this machine has "
            f"{room / 2**30:,.0f} GiB. Fix: fewer layers, or a smaller width, batch_size or length",
        )


def _plain(width: int) -> bool:
    """Whether heads of an even width share it, so that every family can have it."""
    heads = max(1, width // _HEAD_WIDTH)
    return width % (2 * heads) == 0


def _given_tokenizer(path: Path, source: str) -> Iterator[Finding]:
    folder = FilePath(expanduser(source))
    try:
        header = _header(source)
    except ManticoreError as error:
        yield path, _without(source, error)
        return
    if header is not None:
        if not header.fields.get("tokenizer.ggml.tokens"):
            yield path, f"no tokenizer in {source}. Fix: give its folder, or train"
    elif folder.is_dir():
        if not has_tokenizer(folder):
            yield path, f"no tokenizer in {source}. Fix: give its folder, or train"
    elif folder.exists() or source.startswith((".", "~", "/")) or source.count("/") > 1:
        yield path, f"no folder {source}. Fix: give the folder or hub id of a tokenizer, or train"


def _depths(combine: Any, found: Mapping[int, _Component]) -> Iterator[Finding]:
    num_blocks, boundaries = combine.num_blocks, combine.boundaries
    for k, component in found.items():
        layers = first_number(component.raw, LAYERS)
        if layers is None or layers <= 0:
            continue
        if boundaries is not None:
            yield from uneven(boundaries[k : k + 1], component.name, layers)
        elif layers < num_blocks:
            yield (
                ("combine", "num_blocks"),
                f"{num_blocks} blocks, but {component.name} has {layers} layers. Fix: set it to at most {layers}",
            )


def _texts(sections: Mapping[str, Any]) -> Iterator[Finding]:
    for index, entry in enumerate(sections.get("pretrain") or []):
        yield from _text(("pretrain", index, "text"), entry.text, entry.text_column)
        for k, text in enumerate(entry.tokenizer_texts or []):
            yield from _text(("pretrain", index, "tokenizer_texts", k), text, None)
    align, task = sections.get("align"), sections.get("task")
    if align is not None and align.text != "task":
        yield from _text(("align", "text"), align.text, align.text_column)
    if task is None:
        return
    for name, sources in mixtures(task.name, task.options).items():
        for each, source in sources.items():
            place = ("task", "options", name, each, "text")
            yield from _text(place, str(source["text"]), source.get("text_column"))
    for name, option in (options_of("task", task.name) or {}).items():
        value = task.options.get(name)
        if not isinstance(value, str):
            continue
        if "Dataset" in option.annotation:
            column = task.options.get("text_column")
            yield from _text(("task", "options", name), value, column if isinstance(column, str) else None)
        elif "Path" in option.annotation and not FilePath(expanduser(value)).exists():
            yield ("task", "options", name), f"no such file or folder (got {value!r}). Fix: check the path"


def _text(path: Path, text: str, column: str | None) -> Iterator[Finding]:
    try:
        source = find_text(text)
    except ManticoreError as error:
        yield path, str(error).removeprefix(f"text {text}: ")
        return
    if source.many and not source.files:
        yield path, f"no files in {text}. Fix: give a source that holds text"
    if column is not None and not source.has_columns:
        yield (*path[:-1], "text_column"), f"{text} has no columns (got {column!r}). Fix: leave it out"


def _tokenizers(sections: Mapping[str, Any], found: Mapping[int, _Component]) -> Iterator[Finding]:
    """Text is read with the tokenizer of a component, which must have one."""
    task, combine = sections.get("task"), sections.get("combine")
    if task is None or combine is None or not found or len(found) < len(sections.get("components") or []):
        return
    names = [component.name for component in found.values()]
    if combine.tokenizer is not None and combine.tokenizer not in names:
        return
    owner = found[names.index(combine.tokenizer) if combine.tokenizer is not None else 0]
    align = sections.get("align")
    if reads_tokenizer(task.name):
        if owner.has_tokenizer is False:
            yield (
                ("task", "name"),
                f"task {task.name!r} reads text, and {owner.name} carries no tokenizer. "
                "Fix: save its tokenizer in its folder",
            )
    elif align is not None and align.text != "task" and all(c.has_tokenizer is False for c in found.values()):
        yield (
            ("align", "text"),
            "no component carries a tokenizer to read text with. Fix: save one in their folders, or text: task",
        )


def _trackers(section: str, names: list[str] | None) -> Iterator[Finding]:
    if not names:
        return
    from manticore.training.tracking import trackers

    for index, name in enumerate(names):
        try:
            trackers(name, ".", stage=section)
        except ManticoreError as error:
            yield (section, "report_to", index), str(error).removeprefix(f"{section}: report_to: ")


def _lengths(sections: Mapping[str, Any], found: Mapping[int, _Component]) -> Iterator[Finding]:
    """Examples longer than the table of a component's positions."""
    task, align = sections.get("task"), sections.get("align")
    if align is not None and align.text != "task":
        for component in found.values():
            yield from _too_long(("align", "length"), align.length, component)
    if task is None or not any(component.positions for component in found.values()):
        return
    option = next((name for name in ("length", "seq_len") if name in (options_of("task", task.name) or {})), None)
    path: Path = ("task", "options", option) if option is not None else ("task", "name")
    most = min(component.positions for component in found.values() if component.positions is not None)
    if _at_most(task, option) > most:
        length = _task_length(task.name, json.dumps(task.options))
        for component in found.values():
            yield from _too_long(path, length or 0, component)


def _too_long(path: Path, length: int, component: _Component) -> Iterator[Finding]:
    if component.positions is None or length <= component.positions:
        return
    try:
        table = component.tabulated
    except ManticoreError:
        # said where the component is named
        return
    if table is not None and length > table:
        yield (
            path,
            f"examples have {length:,} tokens, but {component.name} has {table:,} positions. "
            f"Fix: at most {table}, or components with more positions",
        )


def _at_most(task: Any, option: str | None) -> float:
    """More tokens than examples have, where options say it."""
    if option is None:
        return float("inf")
    value = task.options.get(option)
    if value is None:
        value = json.loads((options_of("task", task.name) or {})[option].default.replace("None", "null"))
    if not isinstance(value, int):
        return float("inf")
    # examples of MAD have other lengths than their option says, never twice as many
    return value if option == "length" else 2 * value


@cache
def _task_length(name: str, options: str) -> int | None:
    from manticore.schema.sections import TaskChoice
    from manticore.tasks.shape import task_shape

    try:
        return task_shape(TaskChoice(name=name, options=json.loads(options))).length
    except ManticoreError:
        # not to be told beforehand
        return None


def _shape(entry: Any) -> tuple[str, int, int, int, str]:
    return entry.family, entry.layers, entry.width, entry.length, json.dumps(entry.config, sort_keys=True)


@cache
def _table_of_entry(family: str, layers: int, width: int, length: int, config: str) -> int | None:
    import torch

    from manticore.components.positions import tabulated_positions
    from manticore.training.shapes import build, small_config

    shape = small_config(family, layers=layers, width=width, positions=length, options=json.loads(config))
    with torch.device("meta"):
        return tabulated_positions(build(shape))


@cache
def _table_of_folder(folder: str) -> int | None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from manticore.components.loading import load_config
    from manticore.components.positions import tabulated_positions
    from manticore.plan.skeleton import BUILD_ERRORS

    config = load_config(folder)
    try:
        with torch.device("meta"), no_init_weights():
            return tabulated_positions(AutoModelForCausalLM.from_config(config))
    except BUILD_ERRORS as error:
        raise ManticoreError(f"config.json describes no model ({error})") from error
