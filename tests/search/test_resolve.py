"""Other limits for a search that is over."""

import json

import pytest
import torch
from typer.testing import CliRunner

from manticore.cli.app import app
from manticore.errors import ManticoreError
from manticore.option_types import Workload
from manticore.search.costs import Cost, CostTable
from manticore.search.curves import Point
from manticore.search.resolve import resolve
from manticore.search.result import Candidate, SearchResult

ZERO = ((0.0, 0.0), (0.0, 0.0))
TABLE = CostTable(
    {"cache_bytes": Cost(((100.0, 1.0), (100.0, 1.0), (100.0, 1.0)), ZERO, (0.0, 0.0), ZERO)}, Workload(64, 1)
)
SCORES = {(0, 0, 0): 0.7, (1, 1, 1): 0.4, (0, 1, 0): 0.9, (1, 1, 0): 0.6}


def result():
    """Three blocks; the path found has two of the dear component."""
    candidates = [
        Candidate(list(path), [Point(6, 10, 100, 1, 1 - score, score)], chosen=path == (0, 1, 0))
        for path, score in SCORES.items()
    ]
    candidates.append(Candidate([0, 0, 1], [], failed="diverged"))
    return SearchResult(
        model=None,
        weights=torch.eye(2)[[0, 1, 0]],
        path=[0, 1, 0],
        history=[],
        steps=40,
        tokens=400,
        flops=404,
        seconds=1.0,
        candidates=candidates,
        costs=TABLE,
        metric="accuracy",
    )


@pytest.fixture(params=["result", "folder"])
def search(request, tmp_path):
    if request.param == "result":
        return result()
    (tmp_path / "search.json").write_text(json.dumps(result().to_dict()))
    return str(tmp_path)


def test_the_best_trained_path_within_the_limits(search):
    found = resolve(search, {"cache_bytes": 150})
    assert (found.path, found.score, found.costs) == ([1, 1, 0], 0.6, {"cache_bytes": 102.0})
    assert found.trained == [[1, 1, 1], [1, 1, 0]]
    # all that keep the limits, the others were never trained
    assert found.untrained == [[0, 1, 1], [1, 0, 1]]
    assert str(found).endswith("never trained, and within them too: [0, 1, 1], [1, 0, 1]")
    assert resolve(search, {"cache_bytes": 50}).path == [1, 1, 1]
    assert str(resolve(search, {"cache_bytes": 50})).endswith("all that keep them were trained")
    # what failed was trained to nothing
    assert [0, 0, 1] in resolve(search, {"cache_bytes": 1000}).untrained
    assert resolve(search, {}).path == [0, 1, 0]
    # of the first component's 300
    assert resolve(search, {"cache_bytes": "50%"}).path == [1, 1, 0]


def test_what_cannot_be_chosen_is_said_in_one_line(search, tmp_path):
    with pytest.raises(ManticoreError, match=r"^search: max: no path keeps the limits .* \(limit 2\)\. Fix: higher"):
        resolve(search, {"cache_bytes": 2})
    with pytest.raises(ManticoreError, match=r"^search: max: decode_ms was not measured by this search\. Fix: one of"):
        resolve(search, {"decode_ms": 2})
    with pytest.raises(ManticoreError, match=r"^search: max: no cost is called 'cache'"):
        resolve(search, {"cache": 2})
    with pytest.raises(ManticoreError, match=r"^search: --resolve: .*/nowhere holds no paths that were trained\. Fix:"):
        resolve(tmp_path / "nowhere", {"cache_bytes": 2})


def test_only_untrained_paths_keep_the_limits():
    search = result()
    del search.candidates[1], search.candidates[2]
    with pytest.raises(ManticoreError) as caught:
        resolve(search, {"cache_bytes": 150})
    assert str(caught.value) == (
        "search: max: of the paths that keep the limits none was trained, such as [0, 1, 1]. "
        "Fix: search again with these limits"
    )


def test_the_verb(tmp_path):
    (tmp_path / "search.json").write_text(json.dumps(result().to_dict()))
    found = CliRunner().invoke(app, ["search", str(tmp_path), "--resolve", "--max", "cache_bytes=50%"])
    assert found.exit_code == 0
    assert "path [1, 1, 0] is the best of 2 trained ones within the limits" in " ".join(found.output.split())
