"""Learning curves that were never trained, for tests of what searches decide."""

from manticore.search.curves import MARKS, Curves, Point
from manticore.search.space import Space

START = 3.0


def made_up(losses, marks=range(1, MARKS + 1), examples=8, higher_is_better=True):
    """Curves that fall in a straight line from 3 nats to the given losses after a unit; accuracy is 1 - loss / 3.

    A mark costs a thousand FLOPs, scoring ten. Single examples lie to both sides of the mean, alike for all paths.
    """
    paths = list(losses)
    space = Space(len(paths[0]), 1 + max(map(max, paths)))
    curves = Curves(space, higher_is_better, list(marks))
    for path, last in losses.items():
        for mark in marks:
            loss = START + (last - START) * mark / MARKS
            each = tuple(round(loss + 0.01 * (-1) ** n, 5) for n in range(examples))
            metric = 1 - loss / START if higher_is_better else loss
            curves.add(path, Point(mark, mark, 1000 * mark, 10, round(loss, 5), round(metric, 5), each))
    return curves


def decide(method, curves, seed=0, **options):
    """Run a method on curves that hold everything already; (what it asked for, its choice)."""
    asked = []
    search = method(curves, seed, **options)
    try:
        while True:
            asked.append(next(search))
    except StopIteration as end:
        return asked, end.value
