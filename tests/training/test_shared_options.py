"""Every option of a training reaches every run that should have it, and is part of what a resumed run is held to."""

import inspect
import json

import pytest
from copying_task import copying_task
from transformers import AutoModelForCausalLM

import manticore
from manticore.errors import NotFiniteError
from manticore.experiments import comparison_runs
from manticore.experiments.compare import compare
from manticore.schema.recipe import Recipe
from manticore.settings import OneTraining, Search, Training
from manticore.stages.compare import Compare
from manticore.stages.run import Run
from manticore.training.finetune import finetune

UNUSUAL = {
    "batch_size": 12,
    "weight_decay": 0.07,
    "decay": "all",
    "adam_betas": [0.8, 0.95],
    "adam_eps": 1e-7,
    "schedule": "linear",
    "warmup_steps": 3,
    "accumulation": 3,
    "max_grad_norm": 0.6,
    "trainable": "lora",
    "lora_rank": 3,
    "gradient_checkpointing": True,
    "dtype": "float32",
    "bf16": True,
}

# what no number depends on, or what is found under another name
ELSEWHERE = {
    "model": "its weights are compared tensor by tensor",
    "hybrid": "its weights are compared tensor by tensor",
    "models": "weights of",
    "budget_flops": "steps, or the name of a unit",
    "budgets": "the name of a unit",
    "larger": "a row more",
    "spent_flops": "the name of a unit",
    "seeds": "the name of a unit",
    "ensemble": "a row more",
    "test_examples": "read after the training, with the weights that are there",
    "generate": "written after the training, with the weights that are there",
    "lengths": "of what is written",
    "tokenizer": "data",
    "settings": "each of them by its name",
    "gradient_checkpointing": "the same numbers in less memory",
    "cpu": "bf16 says whether autocast is on",
    "out": "", "resume": "", "save_steps": "", "log_steps": "", "report_to": "", "progress": "", "workers": "",
}  # fmt: skip


SMALL = {"seq_len": 16, "num_train_examples": 16, "num_test_examples": 16, "num_validation_examples": 16}


def test_unusual_values_are_unusual():
    assert set(UNUSUAL) == set(Training.model_fields)
    assert not [name for name, field in Training.model_fields.items() if field.default == UNUSUAL[name]]


def test_each_run_of_a_comparison_is_given_every_option(gpt, monkeypatch):
    given = []

    def watched(model, task, settings, **options):
        given.append(settings)
        return finetune(model, task, settings, **options)

    monkeypatch.setattr(comparison_runs, "finetune", watched)
    options = {"budget_flops": 6_000_000, "seeds": [0, 1], "learning_rates": [1e-3], "cpu": True}
    compare({"gpt": gpt}, copying_task(), **options, **UNUSUAL)
    assert len(given) == 2
    for settings in given:
        assert settings.shared() == UNUSUAL


def test_parents_ensemble_supernet_and_hybrid_are_given_the_same(gpt, mamba, hybrid, monkeypatch):
    given = {}

    class Asked(Exception):
        """Every run has been asked for once."""

    def ask(runs):
        for name, flops in runs.trainings:
            runs._train((comparison_runs.Run(name, 0, 0.5, flops),))
        raise Asked

    def told(model, task, settings, *, cpu, **options):
        given[len(given)] = settings
        # counts as a run that diverged: what it would have learned is not asked here
        raise NotFiniteError("not trained")

    monkeypatch.setattr(comparison_runs.ComparisonRuns, "make", ask)
    monkeypatch.setattr(comparison_runs, "finetune", told)
    models = {"gpt": gpt, "mamba": mamba, "supernet (soft)": hybrid, "hybrid": manticore.discretize(hybrid, [0, 1])}
    with pytest.raises(Asked):
        compare(models, copying_task(), budget_flops=10**9, learning_rates=[0.1, 0.5], cpu=True, **UNUSUAL)
    # the ensemble is the fifth
    assert len(given) == len(models) + 1
    for settings in given.values():
        assert settings.shared() == UNUSUAL
        assert (settings.budget_flops, settings.lr) == (10**9, 0.5)


def test_a_recipe_compares_with_everything_that_it_fine_tunes_with(tmp_path, monkeypatch):
    recipe = Recipe.model_validate(
        {
            "name": "run",
            "components": [{"name": name, "source": str(tmp_path)} for name in "ab"],
            "task": {"name": "mad/in-context-recall", "options": SMALL},
            "finetune": {**UNUSUAL, "test_examples": 5},
        }
    )

    class Given(Exception):
        """Carries what the comparison was asked for."""

    def asked(models, task, settings, **options):
        raise Given(settings)

    class Folder:
        path = tmp_path

    Folder.recipe = recipe
    run = Run(Folder())
    monkeypatch.setattr(manticore, "compare", asked)
    monkeypatch.setattr(run, "results_of", lambda stage: {"path": [0, 1], "flops": 7})
    with pytest.raises(Given) as caught:
        Compare().work(run, tmp_path)
    (settings,) = caught.value.args
    assert settings.shared() == UNUSUAL
    assert settings.test_examples == 5


def test_entries_of_a_recipe_start_from_weights_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {n} of a text that is long enough to be split" for n in range(400)))
    entry = {"family": "gpt_neo", "layers": 1, "width": 8, "length": 16, "steps": 0, "text": str(text)}
    names = ("one", "other")

    class Folder:
        path = tmp_path
        recipe = Recipe.model_validate(
            {
                "name": "run",
                "pretrain": [{"name": name, "vocab_size": 270, **entry} for name in names],
                "components": [{"name": name, "source": name} for name in names],
                "task": {"name": "text"},
            }
        )

    first, second = (AutoModelForCausalLM.from_pretrained(made) for made in Run(Folder()).sources)
    tables = [model.get_input_embeddings().weight for model in (first, second)]
    assert tables[0].shape == tables[1].shape
    assert not (tables[0] == tables[1]).any()


def test_what_changes_a_run_is_what_resuming_compares(gpt, hybrid, tmp_path):
    quick = {"steps": 1, "batch_size": 8, "trainable": "lora", "cpu": True}
    finetune(gpt, copying_task(), out=tmp_path / "finetune", **quick)
    manticore.search(hybrid, copying_task(), out=tmp_path / "search", method="darts", **quick)
    for verb in ("finetune", "search"):
        kept = json.loads((tmp_path / verb / "checkpoints" / "settings.json").read_text())
        # of searches over candidates, which refuse to go on with others themselves (tests/search/test_candidates.py)
        others = Search.unkeyed - OneTraining.unkeyed
        assert set(inspect.signature(getattr(manticore, verb)).parameters) - ELSEWHERE.keys() - others <= kept.keys(), (
            verb
        )


def test_what_changes_a_comparison_is_what_resuming_compares(gpt, tmp_path):
    compare(
        [gpt],
        copying_task(),
        budget_flops=4_000_000,
        batch_size=8,
        seeds=[0],
        learning_rates=[1e-3],
        out=tmp_path,
        cpu=True,
    )
    kept = json.loads((tmp_path / "units.jsonl").read_text().splitlines()[0])["settings"]
    assert set(inspect.signature(compare).parameters) - ELSEWHERE.keys() <= kept.keys()


def test_resuming_with_another_rank_is_refused(gpt, tmp_path):
    quick = {"steps": 1, "batch_size": 8, "trainable": "lora", "cpu": True, "out": tmp_path}
    finetune(gpt, copying_task(), lora_rank=2, **quick)
    with pytest.raises(manticore.ManticoreError, match=r"started with lora_rank=2 \(got 4\)"):
        finetune(gpt, copying_task(), lora_rank=4, resume=True, **quick)
