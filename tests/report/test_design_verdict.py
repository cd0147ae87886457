"""The verdict over a study of designs: never kinder than the numbers."""

from __future__ import annotations

import random
import statistics

import pytest
from study_records import build_study, front

from manticore.design_settings import DIRECTIONS, TIMED
from manticore.report.design_cautions import cautions
from manticore.report.design_noise import Noise, gap, noise, within
from manticore.report.design_record import parse_study
from manticore.report.design_tables import table
from manticore.report.design_terminal import render_study
from manticore.report.design_verdict import verdict
from manticore.report.matches import Standing
from manticore.report.measure_words import words


def _study(best: float, baseline: float, *, spread: float = 0.0, maximise: bool = False, **changes):
    """Twenty designs of which one is best, and one baseline; two seeds each where they differ."""
    measure, worse = ("mad", -1.0) if maximise else ("loss", 1.0)

    def entry(value, layers):
        repeats = [{measure: value - spread}, {measure: value + spread}] if spread else []
        curve = [[0, 5.0], [1000, 2.0]]
        return {"layers": layers, "measures": {measure: value}, "repeats": repeats, "curve": curve, "flops": 1e9}

    others = [entry(best + worse * (0.1 + 0.01 * i), ["swiglu", "mamba"]) | {"design": f"d{i}"} for i in range(19)]
    trials = [*others, entry(best, ["mamba", "swiglu"]) | {"design": "winner"}]
    goals = [{"measure": measure, "maximise": maximise}]
    record = {
        "objectives": goals,
        "trials": trials,
        "front": ["winner"],
        "baselines": [entry(baseline, ["attention", "swiglu"]) | {"name": "transformer++"}],
        "flops": 2e10,
    }
    for key, value in changes.items():
        part, _, name = key.partition("_")
        entries = {"baseline": record["baselines"][:1], "winner": trials[-1:]}.get(part)
        for found in entries or ():
            found[name] = value
        if entries is None:
            record[key] = value
    return parse_study(record)


@pytest.mark.parametrize(
    ("study", "standing", "said"),
    [
        (_study(2.0, 2.5, spread=0.01), Standing.BETTER, "beats the best baseline, transformer++, by 0.500"),
        (_study(2.5, 2.0, spread=0.01), Standing.WORSE, "loses to the best baseline, transformer++, by 0.500"),
        (_study(2.0, 2.02, spread=0.01), Standing.NOISE, "is within noise of the best baseline, transformer++,"),
        (_study(2.0, 2.5), Standing.SEEN_BETTER, "was seen 0.500 ahead of the best baseline, transformer++,"),
        (_study(2.5, 2.0), Standing.SEEN_WORSE, "was seen 0.500 behind the best baseline, transformer++,"),
        (_study(0.9, 0.5, maximise=True), Standing.SEEN_BETTER, "(mad 0.900 against 0.500)"),
        (_study(2.0, 2.5, spread=0.01, baseline_layers=["mamba", "swiglu"]), Standing.PARENT, "is the baseline"),
        (_study(2.0, 2.5, spread=0.01, baseline_curve=[[0, 5], [500, 2]]), Standing.UNKNOWN, "not trained alike"),
        (_study(2.0, 2.5, baselines=[]), Standing.UNKNOWN, "no baseline has a score"),
        (_study(2.0, 2.5, max={"loss": 1.0}, front=[]), Standing.UNKNOWN, "keeps the limits: nothing was found"),
    ],
)
def test_the_outcome_and_its_words(study, standing, said):
    found = verdict(study)
    assert found.standing is standing
    assert said in found.sentence
    if study.best and standing is not Standing.UNKNOWN:
        assert "The search cost 20 GFLOP, 20 times the training of its best design." in found.sentence


def test_one_seed_is_said_and_so_is_luck():
    assert "with one seed each, how far seeds differ was not measured" in verdict(_study(2.0, 2.5)).sentence
    assert any("is picked for its luck too" in caution for caution in cautions(_study(2.0, 2.5)))
    assert not any("luck" in caution for caution in cautions(_study(2.0, 2.5, spread=0.01)))


def test_the_best_of_many_equal_designs_beats_an_equal_baseline_no_oftener_than_it_may():
    """All designs and the baseline are the same thing: 64 of them with two seeds, in 400 studies."""
    draws, false, alone = random.Random(0), 0, 0
    for _ in range(400):
        pairs = [(draws.gauss(0, 1), draws.gauss(0, 1)) for _ in range(65)]
        deviation = statistics.fmean([(a - b) ** 2 / 2 for a, b in pairs]) ** 0.5
        best = min(sum(pair) / 2 for pair in pairs[:64])
        lead = sum(pairs[64]) / 2 - best
        false += lead > within(Noise(deviation, 65), [2, 2], 64)
        alone += lead > within(Noise(deviation, 65), [2, 2], 1)
    assert false / 400 < 0.05
    # as if the best had been the only one that was looked at
    assert alone / 400 > 0.25


def test_noise_is_pooled_over_all_that_has_several_seeds():
    study = _study(2.0, 2.5, spread=0.01)
    found = noise(study, study.goals[0])
    assert found is not None
    assert found.freedom == 21
    assert found.deviation == pytest.approx(0.02 / 2**0.5)
    assert noise(_study(2.0, 2.5), study.goals[0]) is None


def test_what_is_counted_has_no_noise():
    record = build_study(("cache_bytes", "loss"), generations=2)
    study = parse_study(record)
    design, baseline = study.best, study.rivals[0]
    assert gap(study, study.goals[0], design, baseline).standing is Standing.BETTER
    assert "one seed" not in verdict(study).sentence


def test_every_measure_has_words_of_its_own():
    for measure, maximise in DIRECTIONS.items():
        assert words(measure).note
        assert sum((words(measure).exact, words(measure).trained)) == (measure not in TIMED)
        assert not (maximise and words(measure).price)


def _all_better_than_before(measure):
    record = build_study((measure,), generations=1)
    for place, entry in enumerate([*record["baselines"], *record["trials"]]):
        entry["measures"] = {measure: 9.0 - 0.5 * place}
    record["front"] = [record["trials"][-1]["design"]]
    return parse_study(record)


@pytest.mark.parametrize("measure", [name for name in DIRECTIONS if words(name).exact])
def test_what_is_counted_is_the_same_on_every_machine(measure):
    study = _all_better_than_before(measure)
    assert verdict(study).standing is Standing.BETTER
    assert "machine" not in verdict(study).sentence
    assert not any("machine" in caution or "luck" in caution for caution in cautions(study))


def test_a_time_is_of_one_machine():
    study = _all_better_than_before("decode_ms")
    assert "seed" not in verdict(study).sentence
    assert "measured on one machine" in verdict(study).sentence
    assert not any("luck" in caution for caution in cautions(study))
    assert any("decode ms" in caution for caution in cautions(study))


def test_several_objectives_count_who_dominates_whom():
    record = build_study(("loss", "cache_bytes"), generations=1)
    for place, trial in enumerate(record["trials"]):
        trial["measures"] = {"loss": 3.0 + place, "cache_bytes": 100.0 - place}
    record["front"] = front(record["objectives"], {trial["design"]: trial for trial in record["trials"]})
    values = [(3.0, 101.0), (2.0, 50.0), (2.5, 99.0)]
    for baseline, (loss, cache) in zip(record["baselines"], values):
        baseline["measures"] = {"loss": loss, "cache_bytes": cache}
    sentence = verdict(parse_study(record)).sentence
    assert "designs of the front dominate 1 of 3 baselines, and baselines dominate 8 of the 8 designs" in sentence
    assert "loses" not in sentence
    assert "was seen 1.000 behind" in sentence


def test_a_smaller_cache_at_no_worse_loss_is_named():
    record = build_study(("loss", "cache_bytes"), generations=1)
    for place, trial in enumerate(record["trials"]):
        trial["measures"] = {"loss": 2.0 + 0.1 * place, "cache_bytes": 8192.0 - 1024 * place}
    record["front"] = [trial["design"] for trial in record["trials"]]
    record["baselines"] = record["baselines"][:1]
    record["baselines"][0]["measures"] = {"loss": 2.35, "cache_bytes": 9216.0}
    name = record["trials"][3]["design"]
    assert (
        f"With no worse loss than transformer++, {name} has cache bytes 5 KiB against 9 KiB."
        in verdict(parse_study(record)).sentence
    )


def test_a_better_baseline_over_a_limit_is_said():
    study = _study(2.0, 1.5, spread=0.01, max={"loss": 2.2})
    assert verdict(study).standing is Standing.WORSE
    record = build_study(("loss",), generations=2)
    top = min(trial["measures"]["loss"] for trial in record["trials"])
    record["max"] = {"cache_bytes": 1e6}
    record["baselines"][0]["measures"] |= {"loss": top - 1, "cache_bytes": 2e6}
    assert "transformer++, which is over a limit, has" in verdict(parse_study(record)).sentence


def test_designs_over_a_limit_are_neither_ranked_nor_the_best():
    record = build_study(("loss",), generations=2)
    least = sorted(trial["measures"]["cache_bytes"] for trial in record["trials"])
    record["max"] = {"cache_bytes": least[len(least) // 2]}
    kept = {t["design"]: t for t in record["trials"] if t["measures"]["cache_bytes"] <= record["max"]["cache_bytes"]}
    record["front"] = [min(kept, key=lambda name: kept[name]["measures"]["loss"])]
    study = parse_study(record)
    assert {trial.design for trial in study.ranked} == set(kept)
    assert verdict(study).sentence.startswith(f"{record['front'][0]}, the best of {len(kept)},")
    shown = {row.name for row in table(study) if not row.is_baseline}
    assert shown <= set(kept)
    assert f"{len(study.trials) - len(kept)} designs are over a limit, and not ranked." in cautions(study)


def test_the_terminal_shows_names_as_they_are():
    from rich.console import Console

    record = build_study(generations=2)
    record["baselines"][0]["name"] = "[bold]not markup[/bold]"
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_study(record))
    text = console.export_text()
    assert "[bold]not" in text
    assert max(map(len, text.splitlines())) <= 80
    assert " ".join(text.split()).count(verdict(parse_study(record)).sentence[:40]) == 1
