"""Data-parallel fine-tuning: two processes do what one does that cuts its batches in two."""

import shutil
from pathlib import Path

import pytest
import torch
from class_tasks import class_task
from copying_task import copying_task
from small_models import gpt_model, mamba_model
from two_processes import run_by_two

from manticore.errors import ManticoreError
from manticore.hybrid.combine import combine
from manticore.hybrid.discretize import discretize
from manticore.processes import is_first, wait_for_all
from manticore.training.finetune import finetune

# 21 examples are not a whole number of batches, so epochs end between them
SETTINGS = {"steps": 6, "batch_size": 4, "lr": 1e-3, "save_steps": 2, "log_steps": 1, "cpu": True}


def supernet():
    return combine([gpt_model(), mamba_model()], num_blocks=2, check=False)


def run(name, out, accumulation=1, **more):
    """One fine-tuning and what came of it."""
    model = supernet()
    if name == "path":
        model = discretize(model, path=[0, 1])
    elif name == "vertex":
        # one component and its projectors get no gradient; dropped by recomputation, they must not be waited for
        model.set_mixture_weights([0, 0])
        more["gradient_checkpointing"] = True
    task = class_task(examples=21) if name == "classes" else copying_task(examples=21)
    result = finetune(model, task, out=out, accumulation=accumulation, **SETTINGS, **more)
    return {
        "losses": [row["loss"] for row in result.history],
        "norms": [row["grad_norm"] for row in result.history],
        "weights": [parameter.tolist() for parameter in result.model.parameters()],
        "metrics": result.metrics,
    }


def work(folder):
    """What each of the two processes does."""
    folder = Path(folder)
    outcome = {name: run(name, folder / name) for name in ("path", "vertex", "classes")}
    if is_first():
        # as if it had been killed after the checkpoint before the last
        shutil.copytree(folder / "path", folder / "stopped")
        shutil.rmtree(folder / "stopped" / "checkpoints" / "checkpoint-6")
    wait_for_all()
    outcome["resumed"] = run("path", folder / "stopped", resume=True)
    return outcome


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    return run_by_two(tmp_path_factory, __file__)


@pytest.mark.parametrize("name", ["path", "vertex", "classes"])
def test_two_processes_train_like_one_with_twice_the_accumulation(by_two, name, tmp_path):
    _, (both, other) = by_two
    assert both[name] == other[name]
    alone = run(name, tmp_path / "alone", accumulation=2)
    # the same gradients, summed in another order: float32 rounding, which Adam may raise where a gradient is near zero
    for figure in ("losses", "norms"):
        torch.testing.assert_close(torch.tensor(both[name][figure]), torch.tensor(alone[figure]), atol=1e-5, rtol=1e-5)
    for shared, own in zip(both[name]["weights"], alone["weights"]):
        torch.testing.assert_close(torch.tensor(shared), torch.tensor(own), atol=1e-4, rtol=0)
    for metric, value in alone["metrics"].items():
        assert both[name]["metrics"][metric] == pytest.approx(value, abs=1e-4)


def test_two_processes_resume_to_the_same_numbers(by_two):
    _, (both, _) = by_two
    assert both["resumed"] == both["path"]


def test_another_number_of_processes_does_not_resume(by_two):
    folder, _ = by_two
    with pytest.raises(ManticoreError, match=r"started with processes=2 \(got 1\)"):
        run("path", folder / "stopped", resume=True)
