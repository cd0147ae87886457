"""A check says everything that can be known without weights, in one pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manticore.cli.app import app
from manticore.components.checkpoint_folder import causal_families
from manticore.errors import ManticoreError
from manticore.schema.loading import load_recipe
from manticore.stages.prerequisites import missing_prerequisites
from tests.conftest import gpt_neo

PRETRAIN = """\
name: mini
pretrain:
  - {name: gpt, family: gpt_neo, layers: 4, width: 32}
  - {name: mamba, family: mamba, layers: 4, width: 32}
components:
  - {name: gpt, source: gpt}
  - {name: mamba, source: mamba}
task: {name: mad/in-context-recall}
"""


def said(text: str, tmp_path: Path, *overrides: str) -> list[str]:
    """What is wrong, without the file's name; nothing where the recipe is fine."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    try:
        load_recipe(str(file), list(overrides), needs=missing_prerequisites)
    except ManticoreError as error:
        return str(error).replace(f"{file}:", "").split("\n")
    return []


@pytest.fixture
def folders(checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the folders of two parents, one without a tokenizer, and texts."""
    monkeypatch.chdir(tmp_path)
    for source in checkpoints:
        (tmp_path / source.name).symlink_to(source)
    gpt_neo().save_pretrained(tmp_path / "bare")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    return tmp_path


def two(first: str, second: str, *more: str) -> str:
    lines = [
        "name: mini",
        f"components: [{{name: a, source: {first}}}, {{name: b, source: {second}}}]",
        "task: {name: text, options: {length: 16}}",
        "align: {length: 16}",
        "combine: {num_blocks: 2}",
    ]
    return "\n".join([*lines, *more]) + "\n"


def test_recipes_that_can_go_through_are_fine(folders: Path) -> None:
    assert said(PRETRAIN, folders) == []
    assert said(two("gpt", "mamba"), folders) == []
    assert said(two("org/a", "org/b"), folders) == []
    # recurrent layers have no table, however long examples are
    assert said(two("mamba", "mamba", "finetune: {steps: 1}"), folders, "task.options.length=5000") == []


def test_everything_is_said_in_one_pass_beside_the_schema_errors(folders: Path) -> None:
    text = (
        PRETRAIN.replace("gpt_neo", "gpt_neoo").replace("family: mamba", "family: mamba, text: nowhere.txt")
        + "align: {text: gone/}\nsearch: {setps: 3}\nfinetune: {report_to: [wandbb, clearml]}\n"
    )
    found = said(text, folders, "task.options.seq_len=[1, 2]")
    assert [line.partition(" ")[2] for line in found[:4]] == [
        "pretrain[0].family: 'gpt_neoo' is not a causal language model of transformers. Did you mean 'gpt_neo'?",
        "pretrain[1].text: no such file or folder. Fix: check the path, or write hf:nowhere.txt if it is a data set on "
        "the hub",
        "align.text: no such file or folder. Fix: check the path, or write hf:gone/ if it is a data set on the hub",
        "search.setps: unknown key. Did you mean 'steps'?",
    ]
    assert "finetune.report_to[0]: no tracker 'wandbb'. Did you mean 'wandb'?" in found[4]
    assert "finetune.report_to[1]: clearml cannot be used" in found[5]
    assert found[6:] == [
        "override 'task.options.seq_len=[1, 2]': task.options.seq_len: wrong value (got a list, expected text, a "
        "number, true, false or null)"
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "mine"}, "components[0].source: family 'mine' is not a causal language model"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "x.Y"}}, "asks to run its own Python code"),
        ({"model_type": "rwkv"}, "family 'rwkv' is refused"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "family 't5' is not a causal language model"),
        ({"architectures": ["GPTNeoForSequenceClassification"]}, "is a GPTNeoForSequenceClassification (expected GPTN"),
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
        ({"model_type": "manticore"}, "it is a hybrid itself"),
        ({"model_type": 7}, "config.json names no model_type"),
        ({"num_layers": 1}, "combine.num_blocks: 2 blocks, but a has 1 layers. Fix: set it to at most 1"),
        (None, "config.json cannot be read"),
    ],
)
def test_folders_of_other_things_are_named(change: dict | None, expected: str, folders: Path) -> None:
    raw = json.loads((folders / "gpt" / "config.json").read_text())
    (folders / "other").mkdir()
    (folders / "other" / "model.safetensors").write_bytes(b"")
    (folders / "other" / "tokenizer.json").write_bytes(b"")
    (folders / "other" / "config.json").write_text("{" if change is None else json.dumps(raw | change))
    found = said(two("other", "gpt"), folders)
    assert len(found) == 1
    assert expected in found[0]
    assert "Fix: " in found[0]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (two("bare", "gpt"), [], "task.name: task 'text' reads text, and a carries no tokenizer"),
        (two("bare", "bare"), ["task.name=mad/in-context-recall", "task.options={seq_len: 16}"],
         "align.text: no component carries a tokenizer to read text with"),
        (two("gpt", "mamba"), ["combine.boundaries=[[0, 1, 99], [0, 1, 6]]"],
         "combine.boundaries: boundaries [0, 1, 99], but a has 4 layers. Fix: end them with 4"),
        (two("gpt", "mamba"), ["task.options.source=gone.jsonl"], "task.options.source: no such file or folder"),
        (two("gpt", "mamba"), ["align.text=a.txt", "align.text_column=body"],
         "align.text_column: a.txt has no columns (got 'body')"),
        (two("mamba", "mamba"), ["task.name=lra/text", "task.options={data_dir: gone}"],
         "task.options.data_dir: no such file or folder (got 'gone')"),
        (two("gpt", "mamba"), ["align.length=65"], "align.length: examples have 65 tokens, but a has 64 positions"),
        (two("gpt", "mamba"), ["task.options.length=65"], "task.options.length: examples have 65 tokens, but a has"),
        (two("gpt", "mamba"), ["task.name=mad/in-context-recall", "task.options={seq_len: 128}"],
         "task.options.seq_len: examples have 127 tokens, but a has 64 positions"),
        (two("gpt", "mamba"), ["discretize.weights_from=gone"],
         "discretize.weights_from: nothing that a search has found (got 'gone')"),
        (two("mamba", "mamba"), ["task.name=lra/listops", "task.options={}", "combine.output=gate"],
         "combine.output: task 'lra/listops' has classes, and output 'gate' mixes predictions of tokens"),
        (two("mamba", "mamba"), ["task.name=lra/listops", "task.options={}", "compare.generate=true"],
         "compare.generate: task 'lra/listops' has classes, so that nothing is written. Fix: leave it out"),
        (PRETRAIN, ["task.name=mad/compression", "compare.generate=true"],
         "compare.generate: task 'mad/compression' is made for auto-encoders, so that nothing is written"),
        (PRETRAIN, ["compare.lengths=[64]"], "compare.lengths: only with generate, since they are of what a model"),
        (PRETRAIN, ["align.length=1025"], "align.length: examples have 1,025 tokens, but gpt has 1,024 positions"),
        (PRETRAIN, ["pretrain.gpt.tokenizer=./gone"], "pretrain[0].tokenizer: no folder ./gone"),
        (PRETRAIN, ["pretrain.gpt.tokenizer=bare"], "pretrain[0].tokenizer: no tokenizer in bare"),
        (PRETRAIN, ["pretrain.gpt.tokenizer=gpt", "pretrain.gpt.tokenizer_texts=[a.txt]"],
         "pretrain[0].tokenizer_texts: a tokenizer is given, none is trained"),
        (PRETRAIN, ["pretrain.gpt.config={num_haeds: 2}"], "pretrain[0].config: gpt_neo has no option 'num_haeds'"),
        (PRETRAIN, ["pretrain.gpt.width=100"], "pretrain[0]: gpt_neo cannot have 4 layers of width 100"),
        (PRETRAIN, ["pretrain.gpt.config={max_position_embeddings: 64}", "align=null", "task.options.seq_len=32"],
         "pretrain[0].length: sequences of 128 tokens, but the model has 64 positions"),
    ],
)  # fmt: skip
def test_what_a_run_would_die_of_is_said_before(text: str, overrides: list[str], expected: str, folders: Path) -> None:
    found = said(text, folders, *overrides)
    assert len(found) == 1, found
    assert expected in found[0]


@pytest.mark.parametrize("different", ["text=b.txt", "vocab_size=300", "max_bytes=100", "data_seed=1"])
def test_new_tokenizers_that_would_differ_are_said_before_they_are_paid_for(different: str, folders: Path) -> None:
    overrides = ["pretrain.gpt.text=a.txt", "pretrain.mamba.text=a.txt", f"pretrain.mamba.{different}"]
    found = said(PRETRAIN, folders, *overrides)
    assert len(found) == 1
    name = different.partition("=")[0]
    assert f"pretrain[1].{name}: another {name} than 'gpt' has, so their new tokenizers differ" in found[0]
    # with a component's tokenizer kept, or without any text to read before the task, they may differ
    assert said(PRETRAIN, folders, *overrides, "combine={tokenizer: gpt}") == []
    assert said(PRETRAIN, folders, *overrides, "align=null") == []
    if name == "text":
        assert "Fix: give both tokenizer_texts: " in found[0]
        shared = [f"pretrain.{entry}.tokenizer_texts={texts}" for entry, texts in
                  (("gpt", "[a.txt, b.txt]"), ("mamba", "[b.txt, a.txt]"))]  # fmt: skip
        assert said(PRETRAIN, folders, *overrides, *shared) == []


def test_families_are_those_of_the_installed_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    names = {name: (kind,) if isinstance(kind, str) else kind for name, kind in known}
    assert {name: kind for name, kind in names.items() if name in causal_families()} == causal_families()
    assert set(names) - set(causal_families()) <= {"manticore", "manticore_stack"}


def test_the_verb_says_it_too(folders: Path) -> None:
    (folders / "mine.yaml").write_text(two("bare", "gpt"))
    for verb in ("check", "run"):
        result = CliRunner().invoke(app, [verb, "mine.yaml"])
        assert result.exit_code == 2
        assert "carries no tokenizer" in result.stderr
    assert not (folders / "runs").exists()
