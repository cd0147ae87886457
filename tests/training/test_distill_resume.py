"""A distillation that is killed in either phase and resumed ends as if nothing had happened."""

import json
import signal
from pathlib import Path

import pytest
import torch
from copying_task import copying_task
from forked import Script

from manticore.errors import ManticoreError
from manticore.training.checkpoints import checkpoints
from manticore.training.distill import distill

RUN = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_distill_resume import models, run
out, kill_at = sys.argv[2], int(sys.argv[3])

def die(step, steps, row):
    assert steps == 16
    if step >= kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

run(*models(), out, progress=die)
"""


def models():
    """A student with dropout, so that the stream of random numbers matters, and the supernet that it is from."""
    from small_models import mamba_model
    from tiny_models import gpt_neo_config, seeded

    import manticore

    sizes = {"intermediate_size": 24, "max_position_embeddings": 32, "resid_dropout": 0.2}
    gpt = seeded(gpt_neo_config(13, 16, 2, **sizes), 1)
    supernet = manticore.combine([gpt, mamba_model()], num_blocks=2, check=False)
    return manticore.discretize(supernet, [1, 0]).train(), supernet


def run(student, teacher, out, **options):
    """Six steps on blocks, ten on logits."""
    settings = {"steps": 16, "block_share": 0.375, "batch_size": 8, "lr": 1e-2, "save_steps": 4, "log_steps": 1}
    return distill(student, teacher, copying_task(), **settings, out=out, cpu=True, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    return run(*models(), out), out


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_weights(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize(("kill_at", "left"), [(5, {"blocks": [4]}), (12, {"blocks": [4, 6], "logits": [4]})])
def test_a_killed_distillation_resumes_to_the_same_bits(uninterrupted, tmp_path, kill_at, left):
    whole, whole_out = uninterrupted
    out = tmp_path / "out"
    code, said = Script(RUN, __file__, str(out), str(kill_at), said=tmp_path / "said.txt").end()
    assert code == -signal.SIGKILL, said
    for phase in ("blocks", "logits"):
        found = checkpoints(out / phase / "checkpoints")
        assert [int(c.name.rpartition("-")[2]) for c in found] == left.get(phase, [])

    resumed = run(*models(), out, resume=True)

    assert same_weights(resumed.model, whole.model)
    assert resumed.history == whole.history
    assert (resumed.metrics, resumed.metrics_before) == (whole.metrics, whole.metrics_before)
    assert (resumed.flops, resumed.teacher_flops) == (whole.flops, whole.teacher_flops)
    for phase in ("blocks", "logits"):
        assert rows(out / phase) == rows(whole_out / phase) != []


def test_a_finished_one_resumes_without_training(uninterrupted):
    whole, out = uninterrupted
    again = run(*models(), out, resume=True, progress=lambda *_: pytest.fail("trained again"))
    assert same_weights(again.model, whole.model)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"alpha": 0.25}, "alpha"), ({"block_lr": 1e-2}, "block_lr"), ({"temperature": 2.0}, "temperature")],
)
def test_other_settings_are_refused(uninterrupted, change, said):
    with pytest.raises(ManticoreError, match=f"started with {said}="):
        run(*models(), uninterrupted[1], resume=True, **change)


def test_another_teacher_is_refused(uninterrupted):
    student, supernet = models()
    supernet.set_mixture_weights([[0.9, 0.1], [0.5, 0.5]])
    with pytest.raises(ManticoreError, match=r"teacher.*has changed|another teacher|teacher") as refused:
        run(student, supernet, uninterrupted[1], resume=True)
    assert "\n" not in str(refused.value)
