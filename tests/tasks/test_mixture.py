"""Mixtures of texts: shares, packs that keep to a source or change it, splits, metrics of each source."""

import json
import math
import random
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import gpt_neo_config, mamba_config, seeded
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app
from manticore.errors import ManticoreError
from manticore.runs.lineage import data_lineage, task_inputs
from manticore.schema.document import read_value
from manticore.schema.loading import load_recipe
from manticore.stages.prerequisites import missing_prerequisites
from manticore.tasks.metrics import IGNORE, SourceMetrics, TextMetrics, TokenMetrics
from manticore.tasks.mixture import allotted, in_turn
from manticore.tasks.shape import task_shape
from manticore.tasks.task import load_task
from manticore.tasks.text import split_documents
from manticore.training.tokenizers import train_tokenizer

NUMBERS = random.Random(0)
DIGITS = ["".join(NUMBERS.choices("0123456789", k=60)) + "\n" for _ in range(120)]
LETTERS = ["".join(NUMBERS.choices("abcdefghij", k=90)) + "\n" for _ in range(120)]
SIGNS = ["".join(NUMBERS.choices("+-*/=<>", k=70)) + "\n" for _ in range(120)]


def sources(**shares):
    texts = {"digits": DIGITS, "letters": LETTERS, "signs": SIGNS}
    return {name: {"text": texts[name], "share": share} for name, share in shares.items()}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DIGITS + LETTERS + SIGNS, 258)


def written_in(tokenizer, ids):
    """The kinds of characters of some tokens, the ends of lines and documents aside."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    kinds = {"digits": "0123456789", "letters": "abcdefghij", "signs": "+-*/=<>"}
    return {name for name, letters in kinds.items() if set(text) & set(letters)}


def columns(task, split="test"):
    return {name: np.array(values) for name, values in task.data[split].with_format("numpy")[:].items()}


@pytest.mark.parametrize(
    "shares",
    [{"digits": 0.5, "letters": 0.5}, {"digits": 0.2, "letters": 0.8}, {"digits": 0.2, "letters": 0.35, "signs": 0.45}],
)
@pytest.mark.parametrize("bos", ["never", "always"])
def test_packs_keep_to_one_source_and_every_source_has_its_share(tokenizer, shares, bos):
    task = load_task("text", tokenizer=tokenizer, sources=sources(**shares), length=16, bos=bos)
    assert task.sources == tuple(shares)
    for split in ("train", "validation", "test"):
        rows = columns(task, split)
        counts = np.bincount(rows["sources"][:, 0], minlength=len(shares))
        assert np.all(np.abs(counts - len(rows["sources"]) * np.array(list(shares.values()))) < 1)
        assert np.all(rows["sources"] == rows["sources"][:, :1])
        for ids, targets, index in zip(rows["input_ids"], rows["targets"], rows["sources"][:, 0]):
            assert written_in(tokenizer, [*ids, *targets[targets != IGNORE]]) == {task.sources[index]}
        # scoring the first examples only scores all sources
        beginning = np.bincount(rows["sources"][:20, 0], minlength=len(shares)) / 20
        assert np.all(np.abs(beginning - list(shares.values())) <= 0.1)


@pytest.mark.parametrize("bos", ["never", "always"])
def test_packs_that_change_their_source_say_of_every_target_which_it_is_from(tokenizer, bos):
    given = sources(digits=0.3, letters=0.3, signs=0.4)
    task = load_task("text", tokenizer=tokenizer, sources=given, length=32, bos=bos, change_every=10)
    rows = columns(task, "train")
    for targets, marks in zip(rows["targets"], rows["sources"]):
        for index, name in enumerate(task.sources):
            own = targets[(marks == index) & (targets != IGNORE)]
            assert written_in(tokenizer, own) <= {name}
    changes = (np.diff(rows["sources"].reshape(-1)) != 0).mean()
    assert changes == pytest.approx(1 / 10, rel=0.1)
    assert np.bincount(rows["sources"].reshape(-1)) / rows["sources"].size == pytest.approx([0.3, 0.3, 0.4], abs=0.01)
    # one stream, which goes on from pack to pack
    if bos == "never":
        stream, targets = rows["input_ids"].reshape(-1), rows["targets"].reshape(-1)
        assert np.array_equal(targets[:-1], stream[1:])


def test_each_source_is_read_on_where_it_was_left(tokenizer):
    task = load_task("text", tokenizer=tokenizer, sources=sources(digits=0.5, letters=0.5), length=32, change_every=9)
    rows = columns(task, "train")
    own = rows["targets"][(rows["sources"] == 0) & (rows["targets"] != IGNORE)]
    whole = tokenizer.eos_token.join(split_documents(DIGITS)["train"])
    # the first token of all is no target
    assert whole[1:].startswith(tokenizer.decode(own))
    assert len(own) > 0.9 * len(tokenizer(whole).input_ids)


@pytest.mark.parametrize("change_every", [None, 10])
def test_what_is_held_out_of_a_source_is_in_no_other_split(tokenizer, change_every):
    given = sources(digits=0.5, letters=0.5)
    task = load_task("text", tokenizer=tokenizer, sources=given, length=16, change_every=change_every)
    texts = {split: tokenizer.decode(columns(task, split)["targets"].clip(0).reshape(-1)) for split in task.data}
    for documents in (DIGITS, LETTERS):
        for split, parts in split_documents(documents).items():
            for other in texts:
                found = [part for part in parts if part[20:50] in texts[other]]
                assert not found or other == split


def test_the_same_seed_gives_the_same_packs_and_digests_say_what_changed(tokenizer):
    def made(**options):
        given = {"sources": sources(digits=0.5, letters=0.5), "length": 16, **options}
        return load_task("text", tokenizer=tokenizer, **given)

    task = made()
    assert data_lineage(task) == data_lineage(made())
    assert {name for name in data_lineage(task) if name.endswith("test")} == {
        "test",
        "source digits, test",
        "source letters, test",
    }
    longer = {"letters": {"text": [*LETTERS, "abcabc\n" * 30], "share": 0.5}}
    changed = data_lineage(made(sources={**sources(digits=0.5, letters=0.5), **longer}))
    before = data_lineage(task)
    assert changed["source letters, train"] != before["source letters, train"]
    assert changed["source digits, validation"] == before["source digits, validation"]
    renamed = {"numbers": sources(digits=0.5)["digits"], "letters": sources(letters=0.5)["letters"]}
    for other in (made(data_seed=1), made(change_every=8), made(sources=renamed)):
        assert task_inputs(other) != task_inputs(task)


def test_a_document_of_two_sources_counts_for_the_first_and_a_source_without_its_own_is_refused(tokenizer, caplog):
    given = {"all": {"text": DIGITS + LETTERS, "share": 0.5}, "both": {"text": LETTERS + SIGNS, "share": 0.5}}
    task = load_task("text", tokenizer=tokenizer, sources=given, length=16)
    assert "source 'both': 120 of its 240 documents are in an earlier source too" in caplog.text
    rows = columns(task, "train")
    seconds = rows["targets"][(rows["sources"] == 1) & (rows["targets"] != IGNORE)]
    assert written_in(tokenizer, seconds) == {"signs"}
    given["both"]["text"] = LETTERS
    with pytest.raises(ManticoreError, match=r"^source 'both': all of its 120 documents are in 'all' too\. Fix"):
        load_task("text", tokenizer=tokenizer, sources=given, length=16)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.data())
@settings(deadline=None, max_examples=60)
def test_packs_are_allotted_to_within_one_and_no_beginning_lacks_a_source(there, data):
    raw = [data.draw(st.integers(1, 20)) for _ in there]
    shares = [each / sum(raw) for each in raw]
    counts = allotted(there, shares)
    total = min(have / share for have, share in zip(there, shares))
    assert all(count <= have for count, have in zip(counts, there))
    assert all(abs(count - total * share) < 1 + 1e-6 for count, share in zip(counts, shares))
    order = in_turn(counts)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    for length in range(1, len(order) + 1):
        so_far = np.bincount(order[:length], minlength=len(counts))
        assert np.all(np.abs(so_far - length * np.array(counts) / len(order)) <= len(counts) / 2 + 1e-6)


def test_the_sources_metrics_make_up_the_whole():
    torch.manual_seed(0)
    logits, targets, marks = torch.randn(6, 9, 12), torch.randint(0, 12, (6, 9)), torch.randint(0, 3, (6, 9))
    targets[0, :4] = IGNORE
    sizes = torch.randint(0, 4, (12,))
    names = ["a", "b", "c"]
    state = SourceMetrics(names, lambda: TextMetrics(sizes))
    for rows in (slice(0, 2), slice(2, 6)):
        state.update(logits[rows], targets[rows], marks[rows])
    values = state.compute()
    scored = {name: (marks == k) & (targets != IGNORE) for k, name in enumerate(names)}
    tokens = {name: int(mask.sum()) for name, mask in scored.items()}
    weighted = sum(values[f"loss:{name}"] * tokens[name] for name in names) / sum(tokens.values())
    assert values["loss"] == pytest.approx(weighted, rel=1e-12)
    bytes_of = {name: int(sizes[targets[mask]].sum()) for name, mask in scored.items()}
    weighted = sum(values[f"bits_per_byte:{name}"] * bytes_of[name] for name in names) / sum(bytes_of.values())
    assert values["bits_per_byte"] == pytest.approx(weighted, rel=1e-12)
    for k, name in enumerate(names):
        alone = TextMetrics(sizes)
        alone.update(logits, targets.where(marks == k, IGNORE))
        assert values[f"loss:{name}"] == pytest.approx(alone.compute()["loss"], rel=1e-12)


def test_a_source_of_which_nothing_was_scored_has_no_metrics():
    state = SourceMetrics(["a", "b"], TokenMetrics)
    assert set(state.compute()) == {"loss", "accuracy", "perplexity"}
    state.update(torch.zeros(1, 2, 5), torch.tensor([[1, 2]]), torch.tensor([[1, 1]]))
    assert {name for name in state.compute() if ":" in name} == {"loss:b"}
    assert state.compute()["loss:b"] == pytest.approx(math.log(5))


SHARED = {"digits": {"text": "a.txt", "share": 0.5}, "letters": {"text": "b.txt", "share": 0.5}}
WRONG = [
    ({}, (), r"^sources: no sources by name"),
    ({"digits": "a.txt"}, (), r"^sources\.digits: no text with its share"),
    ({"digits": {"share": 1}}, (), r"^sources\.digits\.text: missing"),
    ({"digits": {"text": "a.txt"}}, (), r"^sources\.digits\.share: None is none"),
    ({"digits": {"text": "a.txt", "share": 0}}, (), r"^sources\.digits\.share: 0 is none \(expected .* above 0"),
    ({"digits": {"text": "a.txt", "share": True}}, (), r"^sources\.digits\.share: True is none"),
    ({"digits": {"text": "a.txt", "share": 1, "wieght": 2}}, (), r"^sources\.digits\.wieght: unknown key 'wieght'"),
    (
        {"digits": {"text": "a.txt", "share": 0.9}},
        (),
        r"^sources: the shares sum to 0\.9 \(expected 1\). Fix: digits 1$",
    ),
    ({"a:b": {"text": "a.txt", "share": 1}}, (), r"^sources: the name 'a:b'"),
    (SHARED, ("source=a.txt",), r"^source: beside sources"),
    (SHARED, ("text_column=body",), r"^text_column: beside sources"),
    (None, ("change_every=8",), r"^change_every: only with sources"),
]
RECIPE = """\
name: mini
pretrain:
  - {name: gpt, family: gpt_neo, layers: 2, width: 32}
  - {name: mamba, family: mamba, layers: 2, width: 32}
components:
  - {name: gpt, source: gpt}
  - {name: mamba, source: mamba}
task: {name: text, options: {length: 16}}
combine: {num_blocks: 2}
"""


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, documents in (("a.txt", DIGITS), ("b.txt", LETTERS)):
        (tmp_path / name).write_text("".join(documents))
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize(("given", "more", "message"), WRONG)
def test_bad_sources_end_in_one_line_from_python_the_command_line_and_a_recipe(texts, tokenizer, given, more, message):
    options = [] if given is None else [f"sources={json.dumps(given)}"]
    read = {name: read_value(value) for name, value in (option.split("=") for option in more)}
    with pytest.raises(ManticoreError) as caught:
        load_task("text", tokenizer=tokenizer, **({} if given is None else {"sources": given}), **read)
    prefix = "task 'text': "
    assert str(caught.value).startswith(prefix)
    said = [str(caught.value).removeprefix(prefix)]
    words = [word for option in [*options, *more] for word in ("--task-option", option)]
    result = CliRunner().invoke(app, ["evaluate", "nowhere", "--task", "text", *words])
    assert result.exit_code == 2
    assert "nowhere" not in result.output
    overrides = [f"task.options.{option}" for option in [*options, *more]]
    with pytest.raises(ManticoreError) as caught:
        load_recipe("mine.yaml", overrides, needs=missing_prerequisites)
    found = [line for line in str(caught.value).split("\n") if "task.options" in line]
    assert len(found) == 1
    said.append(found[0].partition(": task.options.")[2])
    for line in said:
        assert "\n" not in line
        assert re.search(message, line), line
    assert "Fix" in said[0] or said[0].endswith("?")


def test_a_source_that_cannot_be_read_or_holds_too_little_is_named(texts, tokenizer):
    (texts / "empty.txt").write_text(" \n")
    with pytest.raises(ManticoreError, match=r"^source 'letters': text empty\.txt: empty"):
        load_task("text", tokenizer=tokenizer, sources={**SHARED, "letters": {"text": "empty.txt", "share": 0.5}})
    few = {**sources(digits=0.999), "letters": {"text": LETTERS, "share": 0.001}}
    with pytest.raises(ManticoreError, match=r"a share of 0\.001 gives source 'letters' none of them"):
        load_task("text", tokenizer=tokenizer, sources=few, length=16)
    with pytest.raises(ManticoreError, match="validation part of source 'digits' is too short"):
        load_task("text", tokenizer=tokenizer, sources=sources(digits=0.5, letters=0.5), length=4096)
    with pytest.raises(ManticoreError, match="packs of 256 tokens that change their source every 1000000"):
        load_task("text", tokenizer=tokenizer, sources=sources(digits=0.5, letters=0.5), length=256, change_every=10**6)


def test_a_check_reads_the_names_of_texts_and_an_override_reaches_a_share(texts):
    lines = RECIPE.replace("options: {length: 16}", f"options: {{length: 16, sources: {json.dumps(SHARED)}}}")
    (texts / "mine.yaml").write_text(lines)
    recipe = load_recipe("mine.yaml", needs=missing_prerequisites).recipe
    assert recipe.task.options["sources"]["digits"]["share"] == 0.5
    assert task_shape(recipe.task).length == 16
    with pytest.raises(ManticoreError, match=r"task\.options\.sources\.letters\.text: no such file") as caught:
        load_recipe("mine.yaml", ["task.options.sources.letters.text=gone.txt"], needs=missing_prerequisites)
    assert len(str(caught.value).split("\n")) == 1
    with pytest.raises(ManticoreError, match=r"the shares sum to 0\.75"):
        load_recipe("mine.yaml", ["task.options.sources.letters.share=0.25"])


def test_paths_of_sources_are_absolute_in_a_run_folder(texts):
    from manticore.runs.folder import create_run, open_run

    given = {**SHARED, "signs": {"text": "docstrings", "share": 0.5}, "letters": {"text": "stdlib", "share": 0.25}}
    given["digits"] = {"text": "a.txt", "share": 0.25}
    run = create_run(load_recipe("mine.yaml", [f"task.options.sources={json.dumps(given)}"]), "run")
    kept = open_run(run.path).recipe.task.options["sources"]
    assert Path(kept["digits"]["text"]) == texts / "a.txt"
    assert (kept["signs"]["text"], kept["letters"]["text"]) == ("docstrings", "stdlib")


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """The folders of two tiny models with the tokenizer."""
    made = {}
    for name, config in (("gpt", gpt_neo_config(258, 16, 2)), ("mamba", mamba_config(258, 16, 2))):
        made[name] = tmp_path_factory.mktemp("models") / name
        seeded(config, 3).save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.mark.parametrize("change_every", [None, 6])
def test_a_model_is_scored_source_by_source_whatever_the_batches(models, tokenizer, change_every):
    given = sources(digits=0.25, letters=0.75)
    task = load_task("text", tokenizer=tokenizer, sources=given, length=16, change_every=change_every)
    model = AutoModelForCausalLM.from_pretrained(models["gpt"])
    values = manticore.evaluate(model, task, batch_size=7)
    assert values == pytest.approx(manticore.evaluate(model, task, batch_size=64), rel=1e-6)
    rows = columns(task)
    counted = np.bincount(rows["sources"][rows["targets"] != IGNORE], minlength=2)
    weighted = (values["loss:digits"] * counted[0] + values["loss:letters"] * counted[1]) / counted.sum()
    assert values["loss"] == pytest.approx(weighted, rel=1e-9)
    kept = [index for index, mark in enumerate(rows["sources"][:, 0]) if mark == 1]
    if change_every is None:
        alone = replace(task, data=DatasetDict({"test": task.data["test"].select(kept)}))
        assert values["loss:letters"] == pytest.approx(manticore.evaluate(model, alone)["loss"], rel=1e-6)
    assert "loss:letters" not in manticore.evaluate(model, replace(task, sources=(), metric_state=TokenMetrics))


def test_a_training_on_a_mixture_goes_on_with_the_same_texts_alone(models, tmp_path):
    def tuned(resume, steps=2, **options):
        task = load_task("text", tokenizer=tokenizer_of(models), length=16, sources=sources(**options))
        model = AutoModelForCausalLM.from_pretrained(models["gpt"])
        given = {"batch_size": 4, "test_examples": 8, "save_steps": 1, "out": tmp_path / "out"}
        return manticore.finetune(model, task, steps=steps, resume=resume, **given)

    first = tuned(False, digits=0.5, letters=0.5)
    again = tuned(True, digits=0.5, letters=0.5)
    assert again.metrics == first.metrics
    with pytest.raises(ManticoreError, match="data"):
        tuned(True, digits=0.4, letters=0.6)


def test_the_verbs_train_and_compare_on_a_mixture(texts, models):
    given = ["--task-option", f"sources={json.dumps(SHARED)}", "--task-option", "length=16"]
    task = ["--task", "text", *given]
    fast = ["--batch-size", "4", "--test-examples", "20"]

    def do(*words, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result.output

    said = do("finetune", models["gpt"], *task, "--steps", "2", *fast, "-o", "tuned")
    for name in ("loss:digits", "bits_per_byte:letters"):
        assert name in said
    noted = json.loads(Path("tuned/finetune.json").read_text())
    assert {"loss:digits", "loss:letters"} <= set(noted["metrics"])
    # what is suggested next is the same task
    following = shlex.split(said.split("next: manticore ")[1].split("\n")[0])
    assert following[following.index("--task") :] == task
    words = ["compare", *models.values(), *task, *fast, "--seeds", "0", "--budget-flops", "2e8", "--ensemble", "false"]
    said = do(*words, "-o", "compared")
    record = json.loads(Path("compared/results.json").read_text())
    for row in record["compare"]["rows"]:
        metrics = row["seeds"][0]["metrics"]
        assert {"loss:digits", "loss:letters", "bits_per_byte:digits", "bits_per_byte:letters"} <= set(metrics)
        assert f"digits {metrics['loss:digits']:.3f}" in said


def tokenizer_of(models):
    return AutoTokenizer.from_pretrained(models["gpt"])


def test_models_with_other_tokenizers_are_not_compared_on_a_mixture(texts, models, tmp_path):
    other = tmp_path / "other"
    seeded(mamba_config(300, 16, 2), 3).save_pretrained(other)
    train_tokenizer(DIGITS, 300).save_pretrained(other)
    task = load_task("text", tokenizer=tokenizer_of(models), sources=SHARED, length=16)
    with pytest.raises(ManticoreError, match="shares of tokens, so that texts would differ"):
        manticore.compare({"gpt": str(models["gpt"]), "other": str(other)}, task, seeds=[0], budget_flops=1e9)
