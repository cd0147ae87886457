"""A shared folder loads in tools that never heard of manticore, and its card says what the model is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.report.sharing import LOADER
from manticore.training.saved_models import load_hybrid

ROOT = Path(__file__).resolve().parents[2]
ASKED = [
    {"question": "def f(x):", "choices": [" return x", " 1 + x", " f(x)"], "label": 0},
    {"question": "return x", "choices": [" + 1", " * 2", "x"], "label": 0},
    {"question": "f(x", "choices": ["):", " + 1", "x x"], "label": 1},
]
LOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, logging
logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)
found = []
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        found.append(model(torch.arange(12)[None]).logits.sum().item())
    model.save_pretrained(folder + "-again")
print(json.dumps(found))
"""


def elsewhere(folder: Path, *command: str) -> str:
    """Run Python where nothing has imported manticore; its output."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def small_hybrid() -> ManticoreForCausalLM:
    hybrid = manticore.combine([tiny_model("gpt_neo"), tiny_model("mamba")], num_blocks=2, check=False)
    return manticore.discretize(hybrid, [1, 0])


def total(model: PreTrainedModel) -> float:
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits.sum().item()


def chosen(hybrid: ManticoreForCausalLM, asked: dict[str, Any]) -> int:
    """The choice that is most probable after the question."""
    scores = []
    for choice in asked["choices"]:
        start = len(hybrid.tokenizer(asked["question"]).input_ids)
        ids = torch.tensor([hybrid.tokenizer(asked["question"] + choice).input_ids])
        with torch.no_grad():
            told = hybrid(ids[:, :-1]).logits.log_softmax(-1)
        scores.append(told.gather(-1, ids[:, 1:, None])[0, start - 1 :, 0].sum())
    return int(torch.stack(scores).argmax())


def test_the_command_line_of_lm_eval_scores_a_shared_hybrid(checkpoints: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[eval]'")
    hybrid = manticore.combine(checkpoints, num_blocks=2, check=False)
    hybrid.save_pretrained(tmp_path / "hybrid")
    manticore.share(tmp_path / "hybrid")
    (tmp_path / "tasks").mkdir()
    lines = "".join(json.dumps(asked) + "\n" for asked in ASKED)
    (tmp_path / "tasks/asked.jsonl").write_text(lines)
    task = {
        "task": "asked",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "tasks/asked.jsonl")},
            "cache_dir": str(tmp_path / "data"),
        },
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tasks/asked.yaml").write_text(yaml.safe_dump(task))
    model = ["--model", "hf", "--model_args", "pretrained=hybrid,trust_remote_code=True", "--device", "cpu"]
    on = ["--tasks", "asked", "--include_path", "tasks", "--batch_size", "2", "--output_path", "scores"]
    said = elsewhere(tmp_path, "-m", "lm_eval", "run", *model, *on)
    assert "|asked|" in said.replace(" ", "")
    (scores,) = (tmp_path / "scores").rglob("results_*.json")
    expected = sum(chosen(hybrid, asked) == asked["label"] for asked in ASKED) / len(ASKED)
    assert json.loads(scores.read_text())["results"]["asked"]["acc,none"] == pytest.approx(expected)


def test_a_process_without_manticore_loads_what_was_shared_and_saves_it_as_any_other(tmp_path: Path) -> None:
    stack = manticore.StackForCausalLM(manticore.StackConfig(layers=["mamba", "mlp"], vocab_size=97, hidden_size=16))
    models = {"hybrid": small_hybrid(), "stack": stack.eval()}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        manticore.share(tmp_path / name)
    found = json.loads(elsewhere(tmp_path, "-c", LOAD, *models).splitlines()[-1])
    assert found == [pytest.approx(total(model)) for model in models.values()]
    for name in models:
        assert "auto_map" not in json.loads((tmp_path / f"{name}-again/config.json").read_text())
        assert not list((tmp_path / f"{name}-again").glob("*.py"))


@pytest.mark.parametrize("trust", [False, True])
def test_code_beside_a_hybrid_is_never_run_where_manticore_is_imported(tmp_path: Path, trust: bool) -> None:
    small_hybrid().save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('code from a checkpoint was run')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    evil = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", "evil.T"]}
    for part in (config, config["component_0"], config["component_1"]):
        part["auto_map"] = evil
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = total(small_hybrid())
    assert total(AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust)) == expected
    assert total(ManticoreForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust)) == expected
    assert total(load_hybrid(tmp_path)) == expected


def test_sharing_twice_changes_nothing_and_a_card_that_is_there_stays(tmp_path: Path) -> None:
    small_hybrid().save_pretrained(tmp_path)
    assert "README.md" in manticore.share(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert manticore.share(tmp_path) == [LOADER, "config.json"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "README.md").write_text("mine")
    manticore.share(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_card_tells_parents_licence_blocks_and_what_the_verb_has_noted(tmp_path: Path) -> None:
    for name, family, licence in (("a", "gpt_neo", "mit"), ("b", "mamba", "apache-2.0")):
        tiny_model(family).save_pretrained(tmp_path / name)
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    hybrid = manticore.combine([tmp_path / "a", tmp_path / "b"], num_blocks=2, vocab_size=97, check=False)
    small = manticore.discretize(hybrid, [1, 0])
    assert small.config.parents == [
        {"source": "a", "commit": None, "license": "mit"},
        {"source": "b", "commit": None, "license": "apache-2.0"},
    ]
    small.save_pretrained(tmp_path / "small")
    note = {
        "seed": 7,
        "task": {
            "name": "text",
            "primary_metric": "loss",
            "options": {"source": str(tmp_path / "x")},
            "examples": {"test": 12},
        },
        "steps": 30,
        "tokens": 960,
        "flops": 2.5e9,
        "metrics": {"loss": 1.25},
    }
    (tmp_path / "small/finetune.json").write_text(json.dumps(note))
    manticore.share(tmp_path / "small")
    card = ModelCard.load(tmp_path / "small/README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.eval_results[0].metric_value == 1.25
    assert "each block keeps the layers of one parent" in card.text
    assert "| finetune | text | 30 | 960 | 2.5 GFLOP |" in card.text
    assert "text: source=x, 12 examples in test." in card.text
    assert "Seed 7." in card.text
    assert "| loss | 1.25" in card.text
    assert str(tmp_path) not in (tmp_path / "small/README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "small/config.json").read_text()


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManticoreError, match="no such folder"):
        manticore.share(tmp_path / "absent")
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ManticoreError, match="gpt2 model, which every tool loads"):
        manticore.share(tmp_path / "gpt2")
    assert not (tmp_path / "gpt2" / LOADER).exists()
