"""A run that is killed and resumed ends as if nothing had happened."""

import json
import signal
from pathlib import Path

import pytest
import torch
from copying_task import copying_task
from forked import Script
from safetensors.torch import load_file

from manticore.errors import ManticoreError
from manticore.training.checkpoints import checkpoints
from manticore.training.finetune import finetune

STEPS, SAVE, LOG = 14, 4, 3

RUN = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_trainer_resume import model, run
out, kill_at = sys.argv[2], int(sys.argv[3])

def die(step, steps, row):
    if step >= kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

run(model(), out, progress=die)
"""


def model():
    """A GPT with dropout, so that the stream of random numbers matters."""
    from tiny_models import gpt_neo_config, seeded

    dropout = {"embed_dropout": 0.2, "resid_dropout": 0.2}
    return seeded(gpt_neo_config(13, 16, 1, max_position_embeddings=16, **dropout), 0)


def run(model, out, **options):
    """Three steps per epoch, so that the kill falls into a later epoch; the schedule depends on the step."""
    settings = {"steps": STEPS, "batch_size": 8, "lr": 1e-2, "schedule": "cosine", "warmup_steps": 2}
    return finetune(model, copying_task(), **settings, save_steps=SAVE, log_steps=LOG, out=out, cpu=True, **options)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_weights(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    return run(model(), out), out


@pytest.mark.parametrize("kill_at", [6, 12])
def test_a_killed_run_resumes_to_the_same_weights_rows_and_metrics(uninterrupted, tmp_path, kill_at):
    # step 12 is the end of an epoch and a checkpoint; step 6 lies between two checkpoints
    whole, whole_out = uninterrupted
    out = tmp_path / "out"
    code, said = Script(RUN, __file__, str(out), str(kill_at), said=tmp_path / "said.txt").end()
    assert code == -signal.SIGKILL, said
    assert rows(out), "it logged before it died"
    expected_step = {6: 4, 12: 8}[kill_at]
    assert checkpoints(out / "checkpoints")[-1].name == f"checkpoint-{expected_step}"

    resumed = run(model(), out, resume=True)

    assert same_weights(resumed.model, whole.model)
    assert resumed.metrics == whole.metrics
    assert resumed.history == whole.history
    assert rows(out) == rows(whole_out) == whole.history
    assert resumed.flops == whole.flops


def test_history_has_a_row_per_logged_step_and_per_checkpoint(uninterrupted):
    whole, _ = uninterrupted
    assert [row["step"] for row in whole.history] == [3, 4, 6, 8, 9, 12, 14]


def test_a_finished_run_resumes_without_training(uninterrupted):
    whole, out = uninterrupted
    again = run(model(), out, resume=True, progress=lambda *_: pytest.fail("trained again"))
    assert same_weights(again.model, whole.model)
    assert again.history == whole.history
    assert 0 < again.seconds <= whole.seconds
    assert rows(out) == whole.history


def test_only_whole_checkpoints_count(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in ("checkpoint-2", "checkpoint-10", ".partial/checkpoint-11", "checkpoint-x"):
        (folder / name).mkdir(parents=True)
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-2", "checkpoint-10"]


def test_the_last_two_checkpoints_are_kept(uninterrupted):
    _, out = uninterrupted
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == [
        "checkpoint-12",
        "checkpoint-14",
        "settings.json",
    ]


def test_a_checkpoint_holds_what_trains(uninterrupted):
    _, out = uninterrupted
    checkpoint = checkpoints(out / "checkpoints")[-1]
    assert set(load_file(checkpoint / "trained.safetensors")) == {n for n, _ in model().named_parameters()}


def test_an_earlier_run_is_not_overwritten(uninterrupted):
    _, out = uninterrupted
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(ManticoreError, match=r"holds the checkpoints of an earlier run.*Fix: resume"):
        run(model(), out)
    assert (out / "metrics.jsonl").read_bytes() == before


def test_resuming_with_other_settings_is_refused(uninterrupted):
    _, out = uninterrupted
    with pytest.raises(ManticoreError, match=r"started with lr=0.01 \(got 0.5\)"):
        finetune(
            model(),
            copying_task(),
            steps=STEPS,
            batch_size=8,
            lr=0.5,
            schedule="cosine",
            warmup_steps=2,
            out=out,
            resume=True,
            cpu=True,
        )


def test_resuming_with_another_model_is_refused(uninterrupted, gpt):
    _, out = uninterrupted
    with pytest.raises(ManticoreError, match="is of another model"):
        run(gpt, out, resume=True)


def grown(out, steps, **options):
    settings = {"batch_size": 8, "lr": 1e-2, "warmup_steps": 3, **options}
    return finetune(model(), copying_task(), steps=steps, out=out, cpu=True, resume=True, **settings)


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path):
    shorter, unbroken = grown(tmp_path / "grown", 12), grown(tmp_path / "unbroken", 24)
    made = []
    longer = grown(tmp_path / "grown", 24, progress=lambda step, *_: made.append(step))
    assert min(made) > 12
    assert same_weights(longer.model, unbroken.model)
    assert not same_weights(longer.model, shorter.model)
    assert longer.metrics == unbroken.metrics
    assert [row["loss"] for row in longer.history] == [row["loss"] for row in unbroken.history]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 4}, r"started with warmup_steps=3 \(got 4\)"),
        ({"schedule": "linear"}, r"started with schedule='constant' \(got 'linear'\)"),
        ({"steps": 6}, r"started with steps=12 \(got 6\)"),
    ],
)
def test_what_does_not_go_on_is_refused(tmp_path, change, message):
    grown(tmp_path, 12)
    with pytest.raises(ManticoreError, match=message):
        grown(tmp_path, **{"steps": 24, **change})
