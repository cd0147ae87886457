"""What one section of a recipe demands of another: names, sources, depths, options. No network, no torch.

Each check sees only sections that are well formed by themselves, so that all problems appear at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from manticore.boundaries import wrong_end, wrong_rows
from manticore.branches import PREFIX, Branch, is_branch
from manticore.components.checkpoint_folder import gguf_file
from manticore.errors import ManticoreError
from manticore.making import Told
from manticore.option_types import TaskOption
from manticore.paths import expanded
from manticore.printing import without_passwords
from manticore.registry import did_you_mean
from manticore.schema.options import (
    expected,
    foreign_options,
    mixes,
    mixtures,
    options_of,
    reads_tokenizer,
    trains_candidates,
)
from manticore.schema.problems import Path, shown
from manticore.tasks.text_sources import STDLIB, beside_sources

Finding = tuple[Path, str]

_MAPPING = re.compile("mapping|Mapping|dict")
"""In the annotation of an option that takes one."""
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def inconsistencies(sections: dict[str, Any]) -> Iterator[Finding]:
    """Problems between and within well-formed sections.

    Args:
        sections: section name → its validated value; sections with errors of their own are absent.
    """
    pretrain = sections.get("pretrain") or []
    components = sections.get("components") or []
    yield from _twice("pretrain", [entry.name for entry in pretrain])
    yield from _twice("components", [entry.name for entry in components])
    made = [entry.name for entry in pretrain]
    parents = [index for index, component in enumerate(components) if not is_branch(component.source)]
    for index, component in enumerate(components):
        yield from _source(index, component, made, parents)
    larger = sections["compare"].larger if sections.get("compare") is not None else None
    if larger is not None and larger not in made:
        yield from _model(("compare", "larger"), larger.rpartition("=")[2], made)
    if "combine" in sections:
        yield from _depths(sections["combine"], pretrain, components)
        yield from options(
            ("combine", "projector_options"),
            "projector",
            sections["combine"].projector,
            sections["combine"].projector_options,
        )
        yield from _tokenizer(sections["combine"].tokenizer, [component.name for component in components])
        if sections["combine"].released and sections.get("align") is not None:
            yield ("combine", "released"), "fresh embeddings have nothing to be aligned to. Fix: align: null"
    yield from _new_tokenizers(sections)
    align = sections.get("align")
    if align is not None and align.text == "task" and align.text_column is not None:
        yield ("align", "text_column"), f"the task has no columns (got {align.text_column!r}). Fix: leave it out"
    if "task" in sections:
        task = sections["task"]
        yield from options(("task", "options"), "task", task.name, task.options)
        yield from mixture(("task", "options"), task.name, task.options)
        yield from _held_out(task, pretrain)
    if sections.get("search") is not None:
        search = sections["search"]
        yield from _method_options(search)
        yield from password("search", search.storage)
        yield from _rate_of_candidates(search, sections.get("finetune"))
        if search.task_options and not trains_candidates(search.method):
            text = f"method {search.method!r} trains what goes on with the task itself. Fix: leave it out"
            yield ("search", "task_options"), text
        elif "task" in sections:
            yield from options(("search", "task_options"), "task", sections["task"].name, search.task_options)
            whole = {**sections["task"].options, **search.task_options}
            if search.task_options:
                yield from mixture(("search", "task_options"), sections["task"].name, whole)
    if sections.get("distill") is not None:
        # what nobody has trained teaches nothing
        yield from _teacher(sections, [each.name for each in components if not is_branch(each.source)])
    if sections.get("discretize", True) is None and sections.get("search") is not None:
        yield ("discretize",), "a search looks for what to keep. Fix: search: null, for a hybrid that stays soft"
    elif sections.get("discretize") is not None and "combine" in sections and components:
        yield from _path(sections, len(components))


def options(path: Path, kind: str, name: str, given: Mapping[str, TaskOption]) -> Iterator[Finding]:
    """Options that the registered thing does not have, or whose values it cannot take."""
    known = options_of(kind, name)
    if known is None:
        return
    for key, value in given.items():
        if key not in known:
            choices = did_you_mean(key, list(known))
            yield (*path, key), f"unknown option of {kind} {name!r}{choices}"
        elif isinstance(value, Mapping) and not _MAPPING.search(known[key].annotation):
            yield (*path, key), "wrong value (got a mapping, expected text, a number, true, false or null)"
        elif isinstance(wanted := expected(known[key], value), Told):
            yield from (((*path, key, *way), text) for way, text in wanted.found)
        elif wanted is not None:
            yield (*path, key), f"wrong value (got {shown(value)}, expected {wanted}"


def _held_out(task: Any, pretrain: list[Any]) -> Iterator[Finding]:
    """Parents that would be trained on what the task holds out of the same text."""
    if not mixes(task.name):
        return
    mixed = [source["text"] for sources in mixtures(task.name, task.options).values() for source in sources.values()]
    read, seed = mixed or [task.options.get("source", STDLIB)], task.options.get("data_seed", 0)
    for index, entry in enumerate(pretrain):
        if entry.steps and entry.text in read and entry.data_seed != seed:
            yield (
                ("pretrain", index, "data_seed"),
                f"{entry.text} is split by another seed than the task has (got {entry.data_seed}, expected {seed}), so "
                f"it is trained on what it is scored on. Fix: data_seed: {seed}",
            )


def mixture(path: Path, task: str, given: Mapping[str, TaskOption]) -> Iterator[Finding]:
    """An option that does not go with several sources, or not without them."""
    if mixes(task) and (found := beside_sources(given)) is not None:
        yield (*path, found[0]), found[1]


def _method_options(search: Any) -> Iterator[Finding]:
    for key, text in foreign_options(search).items():
        yield ("search", key), text


def _rate_of_candidates(search: Any, finetune: Any) -> Iterator[Finding]:
    """Candidates train as fine-tuning does, where the search says nothing else; their rate must stay constant."""
    if not trains_candidates(search.method):
        return
    own = search if "schedule" in search.model_fields_set else finetune
    if own is not None and own.schedule != "constant":
        whose = "" if own is search else ", as in finetune"
        yield (
            ("search", "schedule"),
            f"candidates are compared while they train, at a constant rate (got {own.schedule!r}{whose}). "
            "Fix: search.schedule=constant, or a method that learns mixture weights (search.method=darts)",
        )


def password(section: str, storage: str | None) -> Iterator[Finding]:
    """A password in the URL of a section's storage."""
    if storage is not None and without_passwords(storage) != storage:
        yield (
            (section, "storage"),
            "holds a password, and a recipe is copied into records. Fix: leave it out of the URL, and give it in "
            "PGPASSWORD or ~/.pgpass",
        )


def _twice(section: str, names: list[str]) -> Iterator[Finding]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield (section, index, "name"), f"the name {name!r} is taken. Fix: give each entry its own name"


def _teacher(sections: dict[str, Any], components: list[str]) -> Iterator[Finding]:
    """A teacher that is not there, or that cannot know the tokens of the task."""
    section, path = sections["distill"], ("distill", "teacher")
    teacher, task, search = section.teacher, sections.get("task"), sections.get("search", True)
    own = task is not None and not reads_tokenizer(task.name)
    untrained = search is None or (search is not True and trains_candidates(search.method))
    if sections.get("discretize", True) is None:
        yield ("distill",), "what stays soft is its own teacher. Fix: leave it out, or discretize"
    elif teacher not in ("supernet", *components):
        yield from _model(path, teacher, components)
    elif own and (teacher != "supernet" or untrained):
        yield (
            path,
            f"{teacher!r} knows no token of {task.name!r}, which has its own vocabulary. "  # type: ignore[union-attr]
            "Fix: the folder of a model that was trained on it, or supernet after a search that learns mixture weights "
            "(search.method=darts)",
        )


def _source(index: int, component: Any, pretrained: list[str], parents: list[int]) -> Iterator[Finding]:
    path: Path = ("components", index, "source")
    source = component.source
    if source in pretrained:
        if component.revision is not None:
            yield ("components", index, "revision"), f"{source!r} is pretrained here, it has no revisions"
        return
    if is_branch(source):
        if component.revision is not None:
            yield ("components", index, "revision"), f"{source!r} is made here, it has no revisions"
        try:
            Branch.named(source, parents)
        except ManticoreError as error:
            yield path, str(error).removeprefix("combine: ")
        return
    yield from _model(path, source, pretrained)


def _model(path: Path, source: str, names: list[str]) -> Iterator[Finding]:
    """What can be neither the folder nor the hub id of a model.

    Args:
        path: where it stands.
        source: what stands there.
        names: of what it could have meant.
    """
    try:
        folder = expanded(source)
        if gguf_file(str(folder)) is not None:
            return
    except ManticoreError as error:
        yield path, str(error)
        return
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            yield (
                path,
                f"the folder {source} holds no config.json. Fix: give a folder saved by save_pretrained",
            )
        return
    if folder.exists():
        yield path, f"{source} is a file (expected the folder of a model, or a GGUF file)"
        return
    if source.startswith((".", "~", "/")):
        yield path, f"no folder {source}. Fix: give an existing folder or a hub id"
    elif not _HUB_ID.match(source):
        yield (
            path,
            f"neither a folder nor a hub id (got {source!r}, expected something like gpt2 or org/model)",
        )
    elif "/" not in source and names and "Did you mean" in did_you_mean(source, names):
        what = "entry of pretrain" if path[0] == "components" else "component"
        yield path, f"no {what} is called {source!r}{did_you_mean(source, names)}"


def _depths(combine: Any, pretrain: list[Any], components: list[Any]) -> Iterator[Finding]:
    num_blocks, boundaries = combine.num_blocks, combine.boundaries
    if boundaries is not None and components:
        for text, fix in wrong_rows(boundaries, len(components), num_blocks):
            yield ("combine", "boundaries"), f"{text}. Fix: {fix}"
    depth = {entry.name: entry.layers for entry in pretrain}
    for k, component in enumerate(components):
        layers = depth.get(component.source)
        if is_branch(component.source):
            layers = num_blocks * len(component.source.removeprefix(PREFIX).split("+"))
        if layers is None:
            continue
        if boundaries is not None:
            yield from uneven(boundaries[k : k + 1], component.name, layers)
        elif layers < num_blocks:
            yield (
                ("combine", "num_blocks"),
                f"more blocks than layers (got {num_blocks}, {component.name} has {layers} layers). "
                f"Fix: set it to at most {layers}",
            )


def uneven(rows: list[list[int]], name: str, layers: int) -> Iterator[Finding]:
    """Given boundaries of a component that do not end with its number of layers.

    Args:
        rows: that component's, or none where it has none.
        name: of the component.
        layers: how many it has.
    """
    for row in rows:
        if (end := wrong_end(row, name, layers)) is not None:
            yield ("combine", "boundaries"), f"{end[0]}. Fix: {end[1]}"


def _tokenizer(chosen: str | None, components: list[str]) -> Iterator[Finding]:
    if chosen is not None and components and chosen not in components:
        yield ("combine", "tokenizer"), f"no component is called {chosen!r}{did_you_mean(chosen, components)}"


_NEW_TOKENIZER = ("text_column", "max_bytes", "vocab_size", "data_seed")
"""What a new tokenizer depends on, beside its texts."""


def _new_tokenizers(sections: dict[str, Any]) -> Iterator[Finding]:
    """Entries that train tokenizers of their own, where one has to read for all."""
    pretrain, task, combine = sections.get("pretrain") or [], sections.get("task"), sections.get("combine")
    for index, entry in enumerate(pretrain):
        if entry.tokenizer != "train" and entry.tokenizer_texts is not None:
            yield (
                ("pretrain", index, "tokenizer_texts"),
                f"a tokenizer is given, none is trained (got {entry.tokenizer!r}). Fix: leave one of them out",
            )
    if task is None or combine is None or combine.tokenizer is not None or "align" not in sections:
        return
    align = sections["align"]
    if not reads_tokenizer(task.name) and (align is None or align.text == "task"):
        # the task's vocabulary is there from the beginning
        return
    used = {component.source for component in sections.get("components") or []}
    trained = [(k, e) for k, e in enumerate(pretrain) if e.name in used and e.tokenizer == "train"]
    for index, entry in trained[1:]:
        first = trained[0][1]
        differ = [] if _tokenizer_texts(entry) == _tokenizer_texts(first) else ["text"]
        differ += [name for name in _NEW_TOKENIZER if getattr(entry, name) != getattr(first, name)]
        if differ:
            texts = ", ".join(dict.fromkeys([*_tokenizer_texts(first), *_tokenizer_texts(entry)]))
            fix = f"give both tokenizer_texts: [{texts}]" if differ == ["text"] else "give both the same"
            listed = differ[0] == "text" and entry.tokenizer_texts is not None
            yield (
                ("pretrain", index, "tokenizer_texts" if listed else differ[0]),
                f"another {' and '.join(differ)} than {first.name!r} has, so their new tokenizers differ and token ids "
                f"do not mean the same. Fix: {fix}, or set combine.tokenizer",
            )


def _tokenizer_texts(entry: Any) -> list[str]:
    texts = entry.tokenizer_texts or [entry.text]
    return sorted({str(expanded(t).resolve()) if expanded(t).exists() else t for t in texts})


def _path(sections: dict[str, Any], num_components: int) -> Iterator[Finding]:
    chosen, num_blocks = sections["discretize"].path, sections["combine"].num_blocks
    where: Path = ("discretize", "path")
    if chosen is None:
        if sections.get("search", True) is None and sections["discretize"].weights_from is None:
            yield (
                where,
                "without a search, the path must be given. Fix: set discretize.path, for example [0, 1], or "
                "discretize.weights_from, a search on another task, or discretize: null, for a hybrid that stays soft",
            )
        return
    if len(chosen) != num_blocks:
        yield where, f"one component index per block (got {len(chosen)}, expected {num_blocks})"
    if wrong := [index for index in chosen if index >= num_components]:
        yield where, f"no component {wrong[0]} (expected indices below {num_components})"
