"""Every mistake in a recipe is one line that names the place, the mistake and the way out."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

from manticore.errors import ManticoreError
from manticore.schema.document import MAX_BYTES, read_document
from manticore.schema.loading import load_recipe, shipped
from manticore.schema.problems import RecipeError

MINIMAL = """\
name: mini
components:
  - {name: a, source: org/a}
  - {name: b, source: org/b}
task: {name: mad/in-context-recall}
"""


def _keys() -> list[tuple[str, tuple]]:
    """(recipe, path) of every key that a shipped recipe writes, each path once.

    What is below ``config`` is left out: fields of transformers' configurations, which a check does not import. So are
    the names that a mixture gives its sources.
    """
    found: dict[tuple, str] = {}
    for name, file in shipped().items():
        for path in read_document(file.read_bytes(), name).places:
            if path and isinstance(path[-1], str) and "config" not in path[:-1] and path[-2:-1] != ("sources",):
                found.setdefault(path, name)
    return [(name, path) for path, name in found.items()]


def _misspelled(key: str) -> str:
    middle = len(key) // 2
    return key[:middle] + ("q" if key[middle] != "q" else "z") + key[middle + 1 :]


@pytest.mark.parametrize(("name", "path"), _keys(), ids=lambda value: value if isinstance(value, str) else str(value))
def test_a_misspelled_key_of_a_shipped_recipe_is_named_with_its_line(name: str, path: tuple, tmp_path: Path) -> None:
    text = shipped()[name].read_text(encoding="utf-8")
    line = read_document(text.encode(), name).places[path].line
    lines = text.split("\n")
    lines[line - 1] = lines[line - 1].replace(f"{path[-1]}:", f"{_misspelled(path[-1])}:", 1)
    file = tmp_path / f"{name}.yaml"
    file.write_text("\n".join(lines), encoding="utf-8")

    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file))

    said = [text for text in str(caught.value).split("\n") if "unknown" in text]
    assert len(said) == 1
    assert said[0].startswith(f"{file}:{line}: ")
    assert f"Did you mean {path[-1]!r}?" in said[0]


def test_shipped_recipes_are_correct_and_begin_with_their_command_cost_and_result() -> None:
    assert "quickstart" in shipped()
    for name, file in shipped().items():
        load_recipe(name)
        comments = "".join(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
        for word in (f"manticore run {name}", "Cost:", "Result:"):
            assert word in comments, f"{name}: {word}"


@pytest.mark.parametrize("name", shipped())
def test_the_commands_in_the_head_of_a_shipped_recipe_are_correct(name: str) -> None:
    head = "\n".join(
        line.lstrip("# ") for line in shipped()[name].read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    commands = re.findall(rf"manticore run {name}((?:[^\n]*\\\n)*[^\n]*)", head)
    assert commands
    for command in commands:
        load_recipe(name, shlex.split(command.replace("\\\n", " ")))


def test_shipped_recipes_search_as_the_product_does_but_for_the_published_method() -> None:
    methods = {name: load_recipe(name).recipe.search for name in shipped()}
    learned = {name for name, search in methods.items() if search is not None and search.method != "auto"}
    assert learned == {"manticore-published"}


def test_a_limit_of_a_search_may_be_a_percentage(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{MINIMAL}search:\n  max: {{cache_bytes: 60%, parameters: 2e6}}\n")
    search = load_recipe(file, ["search.max.flops_per_token=75%"]).recipe.search
    assert search is not None
    assert search.max == {"cache_bytes": "60%", "parameters": 2e6, "flops_per_token": "75%"}


def test_a_rate_that_changes_is_refused_for_candidates_before_anything_runs(tmp_path: Path) -> None:
    varies = f"{MINIMAL}finetune:\n  schedule: cosine\n"
    said = problems(tmp_path, varies)
    assert len(said) == 1
    assert "search.schedule: candidates are compared while they train" in said[0]
    assert "(got 'cosine', as in finetune). Fix: search.schedule=constant" in said[0]
    said = problems(tmp_path, f"{MINIMAL}search:\n  schedule: linear\n")
    assert said[0].startswith("mine.yaml:7: search.schedule: ")
    assert "(got 'linear')" in said[0]
    file = tmp_path / "mine.yaml"
    file.write_text(varies)
    for fix in ("search.schedule=constant", "search.method=darts", "search=null discretize.path=[0,0,0,0]"):
        load_recipe(str(file), fix.split(" "))


def problems(tmp_path: Path, text: str | bytes, *overrides: str) -> list[str]:
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManticoreError) as caught:
        load_recipe(str(file), list(overrides))
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n")


def test_all_problems_are_reported_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = MINIMAL + "search:\n  setps: 3\n  lr: fast\ncombine: {num_blocks: 0, mixing: translate}\nfinetun: {}\n"
    said = problems(tmp_path, text)
    assert said == [
        "mine.yaml:7: search.setps: unknown key. Did you mean 'steps'?",
        "mine.yaml:8: search.lr: wrong value (got 'fast', expected a number)",
        "mine.yaml:9: combine.num_blocks: wrong value (got 0, expected >= 1)",
        "mine.yaml:9: combine.mixing: unknown mixing 'translate'. Did you mean 'translated'?",
        "mine.yaml:10: finetun: unknown key. Did you mean 'finetune'? Fix: choose it, or install the package of the "
        "plug-in 'stage.finetun'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", "mine.yaml:1: the recipe is empty", id="empty"),
        pytest.param("- a\n- b\n", "mine.yaml:1: a recipe is a mapping of sections (got list)", id="list"),
        pytest.param("just text", "mine.yaml:1: a recipe is a mapping of sections (got str)", id="text"),
        pytest.param("name: [a\nseed: 1\n", "mine.yaml:2: YAML syntax: ", id="syntax"),
        pytest.param("name: a\n\tseed: 1\n", "mine.yaml:2: YAML syntax: ", id="tab"),
        pytest.param("name: a\n---\nname: b\n", "mine.yaml:2: YAML syntax: ", id="two documents"),
        pytest.param(b"name: \xff\xfe\n", "mine.yaml:1: not UTF-8 text (byte 0xff)", id="not UTF-8"),
        pytest.param(b"name: a\n\0\n", "mine.yaml:2: not a text file", id="zero byte"),
        pytest.param("name: a\nseed: \x07\n", "mine.yaml:2: character #x0007 is not allowed in YAML", id="control"),
        pytest.param("a: &x [1]\nb: *x\n", "mine.yaml:2: aliases (*name) are not allowed", id="alias"),
        pytest.param("a: " + "[" * 5000, "mine.yaml:1: nested more than 20 levels deep", id="deep"),
        pytest.param("#" * (MAX_BYTES + 1), "mine.yaml:1: too large for a recipe", id="huge"),
    ],
)
def test_what_is_no_recipe_is_one_line(text: str | bytes, expected: str, tmp_path: Path) -> None:
    said = problems(tmp_path, text)
    assert len(said) == 1
    assert said[0].startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            MINIMAL + "seed: !!python/object/apply:os.system [true]\n",
            "mine.yaml:6: seed: YAML tags are not allowed (got !!python/object/apply:os.system)",
            id="tag",
        ),
        pytest.param(
            MINIMAL + "seed: 1\nseed: 2\n", "mine.yaml:7: key 'seed' is written twice (first on line 6)", id="duplicate"
        ),
        pytest.param(MINIMAL + "7: 1\n", "mine.yaml:6: a key must be text", id="number as key"),
        pytest.param(MINIMAL + "seed: -1\n", "mine.yaml:6: seed: wrong value (got -1, expected >= 0)", id="negative"),
        pytest.param(MINIMAL + "seed: true\n", "mine.yaml:6: seed: wrong value (got true, expected", id="bool for int"),
        pytest.param(MINIMAL + "seed: '1'\n", "mine.yaml:6: seed: wrong value (got '1', expected", id="text for int"),
        pytest.param(MINIMAL + "search: 3\n", "mine.yaml:6: search: wrong value (got 3, expected a mapping)", id="int"),
        pytest.param(
            MINIMAL + "finetune: {start: serached}\n",
            "mine.yaml:6: finetune.start: not a choice (got 'serached'). Did you mean 'searched'?",
            id="choice",
        ),
        pytest.param(
            MINIMAL + "finetune: {steps: 5, budget_flops: 1e9}\n",
            "mine.yaml:6: finetune: steps and budget_flops are both given. Fix: give one of them",
            id="two budgets",
        ),
        pytest.param(
            MINIMAL + "finetune: {bf16: true, dtype: bfloat16}\n",
            "mine.yaml:6: finetune.bf16: dtype=bfloat16 has no float32 weights to compute beside. "
            "Fix: leave one of them out",
            id="two types",
        ),
        pytest.param(
            MINIMAL.replace("mad/in-context-recall", "mad/in-context-recal"),
            "mine.yaml:5: task.name: unknown task 'mad/in-context-recal'. Did you mean 'mad/in-context-recall'?",
            id="task",
        ),
        pytest.param(
            MINIMAL.replace("recall}", "recall, options: {vocab_sze: 16}}"),
            "mine.yaml:5: task.options.vocab_sze: unknown option of task 'mad/in-context-recall'. "
            "Did you mean 'vocab_size'?",
            id="task option",
        ),
        pytest.param(
            MINIMAL.replace("recall}", "recall, options: {vocab_size: many}}"),
            "mine.yaml:5: task.options.vocab_size: wrong value (got 'many', expected a whole number)",
            id="task option value",
        ),
        pytest.param(
            MINIMAL + "combine: {projector: low-rank, projector_options: {rnak: 2}}\n",
            "mine.yaml:6: combine.projector_options.rnak: unknown option of projector 'low-rank'. Did you mean 'rank'?",
            id="projector option",
        ),
        pytest.param(
            MINIMAL + "combine: {tokenizer: bb}\n",
            "mine.yaml:6: combine.tokenizer: no component is called 'bb'. Did you mean 'b'?",
            id="tokenizer of no component",
        ),
        pytest.param(
            MINIMAL + "combine: {min_coverage: 1.5}\n",
            "mine.yaml:6: combine.min_coverage: wrong value (got 1.5, expected <= 1)",
            id="coverage",
        ),
        pytest.param(
            MINIMAL.replace("  - {name: b, source: org/b}\n", ""),
            "mine.yaml:2: components: wrong value (got 1, expected at least 2 entries)",
            id="one component",
        ),
        pytest.param(
            MINIMAL.replace("name: b", "name: a"), "mine.yaml:4: components[1].name: the name 'a' is taken", id="names"
        ),
        pytest.param(
            MINIMAL.replace("org/b", "./nowhere"), "mine.yaml:4: components[1].source: no folder ./nowhere", id="folder"
        ),
        pytest.param(
            MINIMAL.replace("org/b", '"fresh:swiglu@1"'),
            "mine.yaml:4: components[1].source: fresh:swiglu@1 stands beside no parent (expected one of [0])",
            id="fresh branch of nothing",
        ),
        pytest.param(
            MINIMAL.replace("org/b", '"fresh:swigluu"'),
            "mine.yaml:4: components[1].source: unknown layer 'swigluu'. Did you mean 'swiglu'",
            id="fresh branch of unknown layers",
        ),
        pytest.param(
            MINIMAL + "discretize: {path: [0, 1]}\n",
            "mine.yaml:6: discretize.path: one component index per block (got 2, expected 4)",
            id="path length",
        ),
        pytest.param(
            MINIMAL + "discretize: {path: [0, 1, 2, 0]}\n",
            "mine.yaml:6: discretize.path: no component 2 (expected indices below 2)",
            id="path index",
        ),
        pytest.param(
            MINIMAL + "discretize: {path: [0, 1, 0, 0], weights_from: .}\n",
            "mine.yaml:6: discretize: path and weights_from are both given. Fix: give one of them",
            id="two paths",
        ),
        pytest.param(
            MINIMAL + "search: {weights_from: .}\n",
            "mine.yaml:6: search.weights_from: method 'auto' has no weights_from (got .). Fix: leave it out",
            id="weights for a race",
        ),
        pytest.param(
            MINIMAL + "search: null\n", "mine.yaml:1: discretize.path: without a search, the path", id="no search"
        ),
        pytest.param(
            MINIMAL.replace("org/a", "a") + "pretrain: [{name: a, family: mamba, layers: 3, width: 8}]\n",
            "mine.yaml:1: combine.num_blocks: more blocks than layers (got 4, a has 3 layers)",
            id="blocks",
        ),
        pytest.param(
            MINIMAL.replace("org/a", "a")
            + "pretrain: [{name: a, family: mamba, layers: 3, width: 8}]\n"
            + "combine: {boundaries: [[0, 1, 4], [0, 2, 5]]}\n",
            "mine.yaml:7: combine.boundaries: boundaries [0, 1, 4], but a has 3 layers. Fix: end them with 3",
            id="boundaries",
        ),
        pytest.param(
            MINIMAL + "combine: {num_blocks: 3, boundaries: [[0, 1, 4], [0, 2, 5]]}\n",
            "mine.yaml:6: combine.boundaries: boundaries of component 0 are 3 layer indices (expected 4",
            id="boundaries of another number of blocks",
        ),
        pytest.param(
            MINIMAL + "combine: {boundaries: [[0, 1, 4]]}\n",
            "mine.yaml:6: combine.boundaries: boundaries of 1 components (expected 2). Fix: one list",
            id="boundaries of too few",
        ),
        pytest.param(
            MINIMAL + "search: {method: gaea, temperature: 0.5}\n",
            "mine.yaml:6: search.temperature: method 'gaea' has no temperature (got 0.5). Fix: leave it out",
            id="method option",
        ),
        pytest.param(
            MINIMAL + "combine: {released: true}\nalign: null\n",
            "mine.yaml:6: combine.released: only with gated mixing, got mixing 'translated'. Fix: mixing: gated",
            id="released mixing",
        ),
        pytest.param(
            MINIMAL + "combine: {mixing: gated, released: true}\n",
            "mine.yaml:6: combine.released: fresh embeddings have nothing to be aligned to. Fix: align: null",
            id="released align",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text: str, expected: str, tmp_path: Path) -> None:
    said = problems(tmp_path, text)
    assert len(said) == 1
    assert said[0].startswith(expected)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.setps=3", "override 'search.setps=3': search.setps: unknown key. Did you mean 'steps'?"),
        ("search", "override 'search': not an override (expected key=value, for example search.steps=40)"),
        ("search.steps=[", "override 'search.steps=[': search.steps: the value is not valid YAML: "),
        ("name.first=1", "override 'name.first=1': name.first: name is a single value, it has no key 'first'"),
        ("components.c.source=x", "override 'components.c.source=x': components.c.source: no entry 'c' (expected"),
        ("components.0.sorce=x", "override 'components.0.sorce=x': components[0].sorce: unknown key. Did you mean"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, expected: str, tmp_path: Path) -> None:
    said = problems(tmp_path, MINIMAL, override)
    assert len(said) == 1
    assert said[0].startswith(expected)


def test_overrides_reach_sections_lists_and_numbers_without_a_dot(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINIMAL)
    overrides = ["search.lr=1e-3", "components.b.source=org/c", "components.0.revision=main", "align=null"]
    recipe = load_recipe(str(file), [*overrides, "compare.seeds=[3, 4]"]).recipe
    assert recipe.search.lr == 1e-3
    assert [component.source for component in recipe.components] == ["org/a", "org/c"]
    assert recipe.components[0].revision == "main"
    assert recipe.align is None
    assert recipe.compare.seeds == [3, 4]


def test_a_recipe_that_does_not_exist_suggests_one(tmp_path: Path) -> None:
    with pytest.raises(ManticoreError, match=r"^no recipe 'quickstrat'. Did you mean 'quickstart'\?$"):
        load_recipe("quickstrat")
    with pytest.raises(ManticoreError, match="no such recipe file"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(ManticoreError, match="is a folder"):
        load_recipe(str(tmp_path))


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("lra-")])
def test_the_small_tier_in_the_header_of_an_arena_recipe_is_correct(name: str) -> None:
    lines = itertools.takewhile(lambda line: line.startswith("#"), shipped()[name].read_text("utf-8").splitlines())
    header = " ".join(line[1:] for line in lines)
    words = shlex.split(header[header.rindex(f"manticore run {name} ") :].replace("\\", " "))
    assert len(words) > 12
    # folders of data are the reader's
    recipe = load_recipe(name, words[3:]).recipe
    assert recipe.finetune.steps <= 300
    assert all(entry.width == 64 and entry.steps == 0 for entry in recipe.pretrain)


def test_one_seed_twice_is_no_spread() -> None:
    with pytest.raises(ManticoreError, match=r"compare.seeds: \[0, 1, 0\] holds one twice. Fix: give different ones"):
        load_recipe("quickstart", ["compare.seeds=[0, 1, 0]"])
