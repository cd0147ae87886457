"""Data made by the rules of the Long Range Arena: what an example costs, and its statistics beside the published ones.

ListOps: labels, lengths, the worth of knowing the first operator, every value checked by a second evaluator, and files
in the release's format read back. Pathfinder: share of black pixels, pairs of curves begun per image, distance of the
discs, and what a linear probe on simple features makes of the label: chance, if nothing but the connection tells it.
Published: the data of the public generators, as far as they were measured; cost is CPU time of one thread.

Run: python benchmarks/lra_data.py [--out NAME]    about a minute on one core
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import write_json

from manticore.tasks.lra import images, listops, pathfinder

LISTOPS_ROWS = 10_000
IMAGES = [(32, "easy", 2000), (32, "intermediate", 2000), (32, "hard", 2000), (128, "easy", 100), (128, "hard", 100)]
PUBLISHED_LISTOPS = {
    "labels": [0.172, 0.087, 0.081, 0.083, 0.090, 0.088, 0.077, 0.070, 0.086, 0.168],
    "mean length": 1034,
    "length at 5, 50, 95 %": [536, 955, 1799],
    "first operator known": 0.366,
}
PUBLISHED_PATHFINDER = {
    (32, "easy"): {"black": 0.78, "distance 1/0": [14.9, 14.7], "seconds": 0.016},
    (32, "intermediate"): {"seconds": 0.03},
    (32, "hard"): {"black": 0.66, "distance 1/0": [13.5, 13.1], "pairs begun": 380, "seconds": 0.13},
    (128, "hard"): {"seconds": "2.5 to 4"},
}
"""Seconds per image are those of the original code on another machine; its black share is .66 to .78 over levels."""


def value_on_a_stack(ids: list[int]) -> int:
    """The value of a tree, computed otherwise than by the generator: from its symbols, without recursion."""
    stack: list[Any] = []
    for symbol in (listops.SYMBOLS[index] for index in ids):
        if symbol != listops.CLOSE:
            stack.append(symbol if symbol.startswith("[") else int(symbol))
            continue
        arguments = []
        while isinstance(stack[-1], int):
            arguments.append(stack.pop())
        operator = stack.pop()
        stack.append(
            {
                "[MIN": min(arguments),
                "[MAX": max(arguments),
                "[MED": int(statistics.median(arguments)),
                "[SM": sum(arguments) % 10,
            }[operator]
        )
    (value,) = stack
    return value


def measure_listops() -> dict[str, Any]:
    """Cost, statistics and checks of :data:`LISTOPS_ROWS` examples."""
    start = time.process_time()
    rows = list(listops.examples("train", LISTOPS_ROWS))
    seconds = time.process_time() - start
    lengths = np.array([len(ids) for ids, _ in rows])
    guess = {"[MIN": 0, "[MAX": 9, "[MED": 4, "[SM": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "basic_train.tsv"
        listops.write_tsv(path, rows)
        read_back = list(listops.read_tsv(path)) == rows
    return {
        "rows": len(rows),
        "seconds": seconds / len(rows),
        "labels": [round(float(np.mean([value == label for _, value in rows])), 3) for label in range(10)],
        "mean length": round(float(lengths.mean())),
        "length at 5, 50, 95 %": [int(length) for length in np.quantile(lengths, [0.05, 0.5, 0.95])],
        "shortest, longest": [int(lengths.min()), int(lengths.max())],
        "first operator known": float(np.mean([guess[listops.SYMBOLS[ids[0]]] == value for ids, value in rows])),
        "values that a second evaluator rejects": sum(value_on_a_stack(ids) != value for ids, value in rows),
        "written and read back equal": read_back,
    }


def probe(features: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy on the second half of ridge regression on the first half; features [N, F], labels [N] of 0 and 1."""
    inputs = torch.tensor((features - features.mean(0)) / (features.std(0) + 1e-9))
    targets = torch.tensor(2.0 * labels - 1, dtype=torch.float64)
    half = len(labels) // 2
    gram = inputs[:half].T @ inputs[:half] + torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, inputs[:half].T @ targets[:half])
    return float(((inputs[half:] @ weights).sign() == targets[half:]).double().mean())


def measure_pathfinder(side: int, level: str, count: int) -> dict[str, Any]:
    """Cost and statistics of ``count`` images, drawn as examples are, but all from one stream."""
    uniform = random.Random(f"benchmark/{side}/{level}").random
    # the segments, drawn once per process, are not part of an example's cost
    pathfinder.draw(uniform, side, level)
    features, labels, distances, black, begun, same = [], [], [], [], [], []
    seconds = 0.0
    for _ in range(count):
        start = time.process_time()
        label, first = int(2 * uniform()), int(2 * uniform())
        drawing = pathfinder.draw(uniform, side, level)
        pixels = drawing.pixels(label, first)
        seconds += time.process_time() - start
        (row, column), (other_row, other_column) = drawing.discs(label, first)
        labels.append(label)
        distances.append(np.hypot(row - other_row, column - other_column))
        black.append(np.mean(pixels == 0))
        begun.append(drawing.attempts)
        same.append(drawing.curves[0][-1] == drawing.curves[1][-1])
        histogram = np.bincount(pixels.ravel() // 16, minlength=16)
        features.append([*histogram, pixels.sum(), (pixels.astype(float) ** 2).sum(), distances[-1]])
    truth = np.array(labels)
    return {
        "side": side,
        "level": level,
        "images": count,
        "seconds": seconds / count,
        "label 1": float(truth.mean()),
        "black": float(np.mean(black)),
        "pairs begun": float(np.mean(begun)),
        "distance 1/0": [round(float(np.array(distances)[truth == label].mean()), 2) for label in (1, 0)],
        "curves that end in one pixel": float(np.mean(same)),
        "probe": probe(np.array(features, float), truth),
        "probe, standard error": 0.5 / (count - count // 2) ** 0.5,
    }


def layout_reads_back() -> bool:
    """Whether images written in the release's layout are read back equal, with their labels."""
    pictures = list(pathfinder.examples("train", 200, level="easy"))
    with tempfile.TemporaryDirectory() as root:
        folder = images.write_pathfinder(root, pictures, "easy", batch=64)
        rows = list(images.picture_rows(images.pathfinder_pictures(folder), 32))
    return len(rows) == len(pictures) and all(
        np.array_equal(row["input_ids"], image.pixels.reshape(-1)) and row["label"] == image.label
        for row, image in zip(rows, pictures)
    )


def main() -> None:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="lra_data", help="name of the file in benchmarks/results")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    begin = time.process_time()
    operations = measure_listops()
    print(f"ListOps, {operations['rows']} examples")
    for name, value in operations.items():
        published = f"   published {PUBLISHED_LISTOPS[name]}" if name in PUBLISHED_LISTOPS else ""
        print(f"  {name:40} {value:.5f}{published}" if isinstance(value, float) else f"  {name:40} {value}{published}")
    pictures = []
    print("\nPathfinder")
    for side, level, count in IMAGES:
        pictures.append(measured := measure_pathfinder(side, level, count))
        published = PUBLISHED_PATHFINDER.get((side, level), {})
        print(f"  {side} {level}, {count} images")
        for name in list(measured)[3:]:
            value = measured[name]
            beside = f"   published {published[name]}" if name in published else ""
            print(
                f"    {name:30} {value:.4f}{beside}" if isinstance(value, float) else f"    {name:30} {value}{beside}"
            )
    equal = layout_reads_back()
    print(f"  200 easy images in the release's layout read back equal: {equal}")
    total = time.process_time() - begin
    print(f"\n{total:.0f} CPU seconds")
    figures = {
        "listops": {"here": operations, "published": PUBLISHED_LISTOPS},
        "pathfinder": {
            "here": pictures,
            "published": [{"side": side, "level": level, **row} for (side, level), row in PUBLISHED_PATHFINDER.items()],
            "written and read back equal": equal,
        },
        "cpu_seconds": round(total, 1),
    }
    print(write_json(out, figures))
    sound = operations["written and read back equal"] and equal
    if not sound or operations["values that a second evaluator rejects"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
