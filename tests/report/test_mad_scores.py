"""MAD scores as table and plot: what is missing shows."""

from rich.console import Console

from manticore.report.mad_scores import render_scores, scores_figure
from manticore.report.svg import house_style, to_svg
from manticore.tasks.mad.examples import KINDS
from manticore.tasks.mad.score import Run, model_scores


def run(model, task, value, setting="baseline"):
    return Run(model, task, f"{task}/{setting}", 1e-3, 0.0, value, value)


SCORES = model_scores(
    [
        run("whole", "in-context-recall", 0.25),
        run("whole", "compression", 0.75),
        run("part[red]", "in-context-recall", 0.9),
        run("part[red]", "in-context-recall", float("nan"), "seq_len=256"),
    ]
)


def test_the_table_marks_missing_tasks_and_failed_runs():
    console = Console(width=120, record=True)
    console.print(render_scores(SCORES, metric="mad_macro", title="MAD"))
    lines = console.export_text().splitlines()
    whole = next(line for line in lines if "whole" in line)
    assert "0.250" in whole
    assert "0.750" in whole
    assert "0.500" in whole
    part = lines.index(next(line for line in lines if "part[red]" in line))
    assert "–" in lines[part]
    assert "1 failed" in lines[part + 1]
    assert "1 tasks" in lines[part + 1]


def test_the_table_of_all_tasks_fits_a_terminal_with_whole_names():
    name = "striped-mh-hyena-swiglu"
    console = Console(width=80, record=True)
    console.print(render_scores(model_scores([run(name, task, 0.5) for task in KINDS]), metric="m", title="MAD"))
    line = next(line for line in console.export_text().splitlines() if "0.500" in line)
    assert line.split() == [name, *["0.500"] * 7]


def test_the_plot_draws_every_score_and_says_what_a_hollow_mark_is():
    with house_style():
        figure = scores_figure(SCORES, tier="baseline", chance={"in-context-recall": 0.125})
        (ax,) = figure.axes
        points = [tuple(round(float(v), 3) for v in p) for c in ax.collections for p in c.get_offsets() if p[1] > 0]
        svg = to_svg(figure)
    assert sorted(y for _, y in points) == [0.25, 0.5, 0.75, 0.9, 0.9]
    for text in ("whole", "part[red]", "hollow: a mean that leaves tasks out", "dashed: a uniform guess"):
        assert text in svg
    with house_style():
        complete = to_svg(scores_figure(SCORES[:1], tier="baseline", chance={}))
    assert "hollow" not in complete


def test_nothing_to_draw_is_an_empty_plot():
    with house_style():
        assert to_svg(scores_figure([], tier="smoke", chance={})).startswith("<?xml")
