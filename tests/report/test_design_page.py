"""The page of a study of designs: one, two, three objectives, failures, one trial, thousands, and hostile words."""

from __future__ import annotations

import copy
import json
import random
import shlex
import time

import pytest
from html_pages import Page, assert_loads_nothing
from run_records import HOSTILE_NAMES
from study_records import build_study, scored, write_study
from typer.testing import CliRunner

from manticore import StackConfig
from manticore.cli.app import app
from manticore.errors import ManticoreError
from manticore.report.design_fronts import front_figure
from manticore.report.design_growth import populations
from manticore.report.design_page import loading_code, next_command, write_page
from manticore.report.design_record import parse_study
from manticore.report.design_verdict import verdict
from manticore.report.layer_picture import looks


def _page(folder, record) -> tuple[str, Page]:
    html = write_page(write_study(folder, record)).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def two_goals(tmp_path_factory):
    """A record with two objectives, its folder, the text of its page and its elements."""
    record, folder = build_study(), tmp_path_factory.mktemp("two")
    return record, folder, *_page(folder, record)


def test_the_table_has_the_front_with_the_baselines_among_it(two_goals):
    record, _, _, page = two_goals
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    start = next(i for i, row in enumerate(rows) if row[:2] == ["rank", "design"])
    listed = {trial["design"]: trial for trial in record["trials"]} | {b["name"]: b for b in record["baselines"]}
    shown = [row for row in rows[start + 1 :] if any(row[1].endswith(name) for name in (*listed, "baseline"))]
    names = [next(n for n in listed if n in row[1].split()) for row in shown]
    assert sorted(names) == sorted([*record["front"], *(b["name"] for b in record["baselines"])])
    losses = [listed[name]["measures"]["loss"] for name in names]
    assert losses == sorted(losses)
    for name, row in zip(names, shown):
        measures = listed[name]["measures"]
        assert row[2] == f"{measures['loss']:.3f}"
        assert row[3] == f"{measures['cache_bytes'] / 1024:.3g} KiB"
        rank = sorted(t["measures"]["loss"] for t in record["trials"]).index(measures["loss"]) + 1 if row[0] else None
        assert row[0] == ("" if rank is None else str(rank))


def test_the_page_has_every_part_and_loads_nothing(two_goals):
    _, folder, html, page = two_goals
    assert_loads_nothing(html)
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == [
        "classes", "front", "hypervolume", "learning_curves", "links",
    ]  # fmt: skip
    words = page.words()
    for part in ("The front", "Hypervolume", "Learning curves", "What layers share", "Motifs", "What the search cost"):
        assert part in words
    bred = sum(trial["made"] for trial in two_goals[0]["trials"])
    assert f"{bred // 2} of {bred} offspring (50%) were no legal designs and had to be repaired." in words
    assert "manticore scale designs/" in words
    figures = [dict(attributes) for tag, attributes in page.elements if tag == "svg"]
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)
    assert any("takes the keys and values of layer" in str(figure["aria-label"]) for figure in figures)


def test_long_names_are_called_by_their_rank_in_sentences():
    record = build_study(generations=1)
    best = min((t for t in record["trials"] if t["design"] in record["front"]), key=lambda t: t["measures"]["loss"])
    long = "21211-31112-21221-32112-91111-91111"
    for part in ("front", *range(len(record["generations"]))):
        place = record if part == "front" else record["generations"]
        place[part] = [long if name == best["design"] else name for name in place[part]]
    best["design"] = long
    assert verdict(parse_study(record)).sentence.startswith("Design 1 (21211-31112-…2-91111-91111)")


def test_parts_that_lists_are_grown_from_are_no_designs():
    record = build_study(("loss",), generations=1)
    record["space"]["grown_by"] = 2
    part = {**record["trials"][0], "design": "AA", "layers": ["mamba", "mamba"], "measures": {"loss": 0.1}}
    study = parse_study(record | {"trials": [*record["trials"], part]})
    assert "AA" not in {trial.design for trial in study.ranked}


def test_one_objective_shows_the_best_so_far_and_seeds(tmp_path):
    record = build_study(("mad",), repeats=2)
    _, page = _page(tmp_path, record)
    assert (tmp_path / "figures" / "best_so_far.svg").exists()
    assert not (tmp_path / "figures" / "front.svg").exists()
    best = max(record["trials"], key=lambda trial: trial["measures"]["mad"])
    row = next(row for row in page.rows if row and row[0].strip() == "1")
    assert row[1].split()[-1] == best["design"]
    assert f"{best['measures']['mad']:.3f} 2 seeds" in " ".join(row[2].split())


def test_three_objectives_are_drawn_in_pairs_and_an_older_figure_goes(tmp_path):
    _page(tmp_path, build_study(("loss",), generations=2))
    _, page = _page(tmp_path, build_study(("loss", "parameters", "cache_bytes"), generations=3))
    front = (tmp_path / "figures" / "front.svg").read_text()
    for pair in ("parameters (lower is better)", "cache bytes (lower is better)", "loss (lower is better)"):
        assert front.count(pair) == 2
    assert not (tmp_path / "figures" / "best_so_far.svg").exists()
    assert "Hypervolume" in page.words()


@pytest.mark.parametrize(("factor", "scale"), [(1, "linear"), (1000, "log")])
def test_costs_that_lie_far_apart_are_drawn_in_doublings(factor, scale):
    record = build_study(generations=1)
    record["trials"][0]["measures"]["cache_bytes"] *= factor
    record["front"] = record["front"][1:2]
    study = parse_study(record)
    figure = front_figure(study, looks(study))
    assert figure.axes[0].get_xscale() == scale
    assert figure.axes[0].get_yscale() == "linear"


def test_failures_only(tmp_path):
    record = build_study(generations=1)
    for place, trial in enumerate(record["trials"]):
        trial |= {
            "failed": "loss is not finite" if place else "out of memory",
            "measures": {},
            "curve": [],
            "repeats": [],
        }
    record["front"] = []
    _, page = _page(tmp_path, record)
    words = page.words()
    assert "None of the 8 designs has scores (8 failed): nothing was found." in words
    assert page.row("loss is not finite")[1] == "7"
    assert page.row("out of memory")[1] == "1"


def test_one_trial_without_anything_else(tmp_path):
    trial = {"design": "AM", **scored("AM", random.Random(0))}
    record = {"objectives": [{"measure": "loss", "maximise": False}], "trials": [trial], "front": ["AM"]}
    _, page = _page(tmp_path, record)
    assert "no baseline has a score, so it cannot be said whether the search has found anything" in page.words()


def test_thousands_of_trials_make_a_page_that_opens(tmp_path):
    record, draws = build_study(generations=1, layers=12), random.Random(1)
    base = record["trials"][0]
    for place in range(2000):
        measures = {"loss": draws.uniform(2, 3), "cache_bytes": draws.uniform(1e5, 1e6)}
        record["trials"].append({**base, "design": f"design-{place}", "measures": measures, "generation": None})
    record["generations"] = [[trial["design"]] for trial in record["trials"]]
    record["front"] = [min(record["trials"], key=lambda trial: trial["measures"]["loss"])["design"]]
    people = populations(parse_study(record))
    assert sum(step.designs for step in people.steps) == len(record["trials"])
    assert people.names[0] == "0–83"
    assert people.names[-1].endswith(f"–{len(record['generations']) - 1}")
    before = time.process_time()
    html, _ = _page(tmp_path, record)
    assert len(html) < 2_000_000
    # of one core; it takes about two
    assert time.process_time() - before < 30


def test_every_text_of_the_record_is_escaped(tmp_path, two_goals):
    names = iter(HOSTILE_NAMES * 2000)

    def poison(value, key=""):
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return f"{next(names)} {value}" if isinstance(value, str) else value

    record = copy.deepcopy(two_goals[0])
    record["trials"][3] |= {"failed": "why", "measures": {}}
    record["front"] = [name for name in record["front"] if name != record["trials"][3]["design"]]
    hostile = {part: poison(record[part]) for part in ("space", "method", "baselines")}
    known = {trial["design"]: f"{next(names)} {trial['design']}" for trial in record["trials"]}
    hostile["trials"] = [
        {**poison(trial), "design": known[trial["design"]], "parents": []} for trial in record["trials"]
    ]
    hostile["generations"] = [[known[name] for name in each] for each in record["generations"]]
    hostile["front"] = [known[name] for name in record["front"]]
    html, page = _page(tmp_path, {**record, **hostile, "name": HOSTILE_NAMES[0]})
    assert_loads_nothing(html)
    clean = {tag for tag, _ in two_goals[3].elements}
    assert {tag for tag, _ in page.elements} <= clean
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    for figure in (tmp_path / "figures").iterdir():
        assert "<script" not in figure.read_text(encoding="utf-8")


def _damage(**changes):
    record = build_study(generations=1)
    trial = {k[6:]: changes.pop(k) for k in list(changes) if k.startswith("trial_")}
    record["trials"][0] |= trial
    return {**record, **changes}


@pytest.mark.parametrize(
    ("record", "at"),
    [
        (_damage(trials=[]), "trials: wrong value"),
        (_damage(objectives=[]), "objectives: wrong value"),
        (_damage(objectives=[{"measure": 3}]), "objectives[0].measure: wrong value (got 3, expected a text)"),
        (_damage(trial_measures={"loss": "low"}), "trials[0].measures.loss: wrong value"),
        (_damage(trial_layers=[]), "trials[0].layers: wrong value"),
        (_damage(trial_layers=["swiglu", ["mamba", {}, {"weights_of": 1}]]), "trials[0].layers[1]: wrong value"),
        (_damage(trial_layers=[["mamba", {}, {"features_of": "x"}]]), "trials[0].layers[0].features_of: wrong value"),
        (_damage(trial_layers=[3]), "trials[0].layers[0]: wrong value"),
        (_damage(trial_curve=[[1, 2, 3]]), "trials[0].curve: wrong value"),
        (_damage(front=["nobody"]), "front: wrong value (got 'nobody'"),
        (_damage(generations=[["nobody"]]), "generations[0]: wrong value"),
        (_damage(trials=build_study(generations=1)["trials"][:1] * 2), "trials: wrong value (got '2 trials'"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(tmp_path, record, at):
    with pytest.raises(ManticoreError) as refused:
        write_page(write_study(tmp_path, record))
    assert f"study.json: {at}" in str(refused.value)
    assert "Fix: " in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "report.html").exists()


def test_what_is_no_record_at_all_is_refused_in_one_line(tmp_path):
    with pytest.raises(ManticoreError, match=r"study\.json: no such file\. Fix: give the folder of a study"):
        write_page(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps(build_study(generations=1))[:900])
    with pytest.raises(ManticoreError, match=r"study\.json: cannot be read \(.*\)\. Fix: run manticore design again"):
        write_page(tmp_path)


def test_a_record_in_memory_may_hold_tuples():
    record = build_study(generations=1)
    known = parse_study(record).trials
    for trial in record["trials"]:
        trial["layers"] = tuple(each if isinstance(each, str) else tuple(each) for each in trial["layers"])
    assert parse_study(record).trials == known


def test_numbers_that_are_not_finite_are_no_scores():
    record = build_study(generations=1)
    name = record["trials"][0]["design"]
    record["trials"][0]["measures"]["loss"] = float("nan")
    record["front"] = [design for design in record["front"] if design != name]
    study = parse_study(json.loads(json.dumps(record)))
    assert name not in {trial.design for trial in study.ranked}
    assert len(study.ranked) == len(record["trials"]) - 1


def test_an_unfinished_study_has_a_page_that_says_so(tmp_path):
    _, page = _page(tmp_path, build_study(generations=1) | {"unfinished": True})
    assert "The study is unfinished" in page.words()


def test_code_and_command_are_quoted():
    record = build_study(generations=1)
    best = min((t for t in record["trials"] if t["design"] in record["front"]), key=lambda t: t["measures"]["loss"])
    best["folder"] = "designs/a 'b'\"; rm -rf x"
    study = parse_study(record)
    assert r'from_pretrained("designs/a ' in loading_code(study)
    assert '\\"; rm' in loading_code(study)
    compile(loading_code(study), "code", "exec")
    assert shlex.split(next_command(study, "out"))[2] == f"out/{best['folder']}"


@pytest.mark.parametrize(("layers", "how"), [(6, "stack"), (16, "stretch")])
def test_the_next_command_is_one_that_runs(tmp_path, layers, how):
    record = build_study(("loss",), generations=1, layers=layers)
    study = parse_study(record)
    command = shlex.split(next_command(study, str(tmp_path)))
    assert command[command.index("--how") + 1] == how
    entries = ["mamba", "swiglu"] * (layers // 2)
    StackConfig(layers=entries, hidden_size=16).save_pretrained(command[2])
    command[command.index("350M")] = "100k"
    command[-1] = str(tmp_path / "larger")
    done = CliRunner().invoke(app, command[1:])
    assert done.exit_code == 0, done.output
    assert StackConfig.from_pretrained(tmp_path / "larger").num_hidden_layers >= layers
