"""A search that is killed and resumed ends as if nothing had happened."""

import pytest
import torch
from forked import Script
from once import once
from tiny_search import make_hybrid, recall

from manticore.errors import ManticoreError
from manticore.search.search import search

# one process for all searches, since importing takes longer than searching; each search dies in a child of its own
RUN = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_search_resume import SETTINGS, run

def die(step, steps, row):
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)

for name in SETTINGS:
    child = os.fork()
    if child == 0:
        run(name, os.path.join(sys.argv[2], name), progress=die)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        sys.exit(f"{name} did not die")
"""

SETTINGS = {
    "dash": {"method": "dash", "order": "alternating", "mixture_schedule": "cosine"},
    "darts": {"method": "darts", "order": "bilevel", "warmup_steps": 2, "schedule": "linear"},
    "gaea": {"method": "gaea", "order": "simultaneous", "trainable": "lora", "lora_rank": 2},
}


def run(name, out, **options):
    """Ten steps of four batches an epoch; checkpoints at 3, 6, 9 and 10."""
    # with dropout, so that the stream of random numbers matters
    hybrid = make_hybrid("routed" if name == "gaea" else "translated", dropout=0.1)
    return search(
        hybrid,
        recall(),
        steps=10,
        batch_size=16 if name != "darts" else 8,
        mixture_lr=0.2,
        start_floor=0.05,
        save_steps=3,
        cpu=True,
        out=out,
        **SETTINGS[name],
        **options,
    )


def test_a_search_that_learns_weights_does_not_grow_into_a_longer_one(tmp_path):
    hybrid, quick = make_hybrid(), {"method": "dash", "batch_size": 8, "cpu": True, "out": tmp_path}
    search(hybrid, recall(), steps=4, **quick)
    with pytest.raises(ManticoreError, match=r"was started with steps=4 \(got 8\)"):
        search(make_hybrid(), recall(), steps=8, resume=True, **quick)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    def kill(out):
        code, said = Script(RUN, __file__, str(out), said=out / "said.txt").end()
        assert code == 0, said

    return once(tmp_path_factory, "killed searches", kill)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_search_resumes_to_the_same_bits(name, killed, tmp_path):
    whole = run(name, tmp_path)
    out = killed / name
    # written after the last checkpoint, at step 6
    assert (out / "mixture_weights.csv").read_text().splitlines()[-1].startswith("7,1,")

    resumed = run(name, out, resume=True)

    assert resumed.history == whole.history
    # those from before the training too
    assert resumed.shared == whole.shared
    assert resumed.flops == whole.flops
    assert torch.equal(resumed.weights, whole.weights)
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (out / "mixture_weights.csv").read_text() == (tmp_path / "mixture_weights.csv").read_text()
    assert resumed.path == whole.path

    again = run(name, out, resume=True, progress=lambda *_: pytest.fail("trained again"))
    assert torch.equal(again.weights, whole.weights)
    assert again.history == whole.history
    assert again.shared == whole.shared
