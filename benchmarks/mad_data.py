"""The data of all 66 settings of the MAD benchmark: a digest and the time for each; baselines against known digests.

The known digests are those of the public generator's output. Beside that, a part of what fuzzy recall would cost if
every example shuffled lists of all motifs, as the public generator does: there the lists are built and shuffled, and no
example is made of them. Digest: first 16 hex digits of sha256 over an array's bytes (int64, little-endian).

Run: python benchmarks/mad_data.py [--out NAME]    about five minutes on one core, two of them fuzzy recall at V = 128
     python benchmarks/mad_data.py --bounds        what nobody can know in the test splits; half a minute
"""

from __future__ import annotations

import argparse
import hashlib
import time
from itertools import permutations
from typing import Any

import numpy as np
from measure import interleaved, paired_ratio, write_json

from manticore.tasks.mad.fuzzy_recall import fuzzy_recall_example
from manticore.tasks.mad.grid import EXAMPLES, Setting, settings
from manticore.tasks.metrics import IGNORE

PUBLISHED = {
    "in-context-recall": ["4def3b034c43358f", "df1f5a83139c5b2f", "b1dff59a6e8bcf35", "3a037cfacf5fa008"],
    "noisy-in-context-recall": ["78a263e323605bc6", "c9df90de54b02d9d", "e897d823b02a7f0e", "f190b2b1274ef60b"],
    "fuzzy-in-context-recall": ["2ace4cffe5326a65", "be0c004caeedd255", "665bd3aab4dd791b", "e691d917c1b275c0"],
    "selective-copying": ["2d6e2456739ad177", "1d8b7de1e6286b21", "a8ddfe6fbedba640", "8c71cebd3aa7ca4f"],
    "compression": ["772183cb20e9b7c7", "772183cb20e9b7c7", "4b751d3882fb3558", "4b751d3882fb3558"],
    "memorization": ["3732a8933ac51323", "6aa6df0033e44eed", "9c1132ff8678cfe3", "2a4e4f46462e5f28"],
}
"""Task → digests of the baseline's train inputs, train targets, test inputs, test targets."""


def digest(array: np.ndarray) -> str:
    """First 16 hex digits of sha256 over the array's bytes."""
    return hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()[:16]


def measure(setting: Setting) -> dict[str, Any]:
    """Digests, shape and CPU seconds of one setting, generated without the cache."""
    start = time.process_time()
    data = setting.generate(cache=False)
    seconds = time.process_time() - start
    found = [digest(array) for split in ("train", "test") for array in data[split]]
    row = {
        "setting": setting.name,
        "train": list(data["train"][0].shape),
        "test": list(data["test"][0].shape),
        "digests": found,
        "cpu_seconds": round(seconds, 3),
    }
    if not setting.changes:
        row["equals_published"] = found == PUBLISHED[setting.task]
    return row


def against_lists(vocab_size: int) -> dict[str, Any]:
    """CPU seconds per example of fuzzy recall: as generated here, and for the lists of motifs alone."""
    options = {"vocab_size": vocab_size, "seq_len": 128, "k_motif_size": 3, "v_motif_size": 3}
    ours, theirs = np.random.default_rng(0), np.random.default_rng(0)
    usable = vocab_size - 1

    def lists() -> None:
        for tokens in (range(usable // 2), range(usable // 2, usable)):
            for size in (1, 2, 3):
                theirs.shuffle(list(permutations(tokens, size)))

    seconds = interleaved(
        {"ours": lambda: fuzzy_recall_example(ours, training=True, **options), "lists": lists}, rounds=5
    )
    return {
        "vocab_size": vocab_size,
        "seconds_per_example": {name: float(np.median(values)) for name, values in seconds.items()},
        "lists_over_ours": paired_ratio(seconds["lists"], seconds["ours"]),
    }


def facts_shown(setting: Setting) -> float:
    """Share of the facts that memorization's test split asks for which its training split shows."""
    data = setting.generate()
    asked = {}
    for split, (inputs, targets) in data.items():
        rows, places = np.nonzero(targets != IGNORE)
        asked[split] = inputs[rows, places - 1]
    return float(np.isin(asked["test"], asked["train"]).mean())


def keys_never_shown(setting: Setting) -> float:
    """Share of fuzzy recall's test sequences that end with a key which did not occur before."""
    size, first_value = setting.options["k_motif_size"], (setting.options["vocab_size"] - 1) // 2
    never = []
    for tokens in setting.generate()["test"][0]:
        starts = np.flatnonzero((tokens < first_value) & np.insert(tokens[:-1] >= first_value, 0, True))
        keys = [tuple(tokens[start : start + size]) for start in starts]
        never.append(keys[-1] not in keys[:-1])
    return float(np.mean(never))


def bounds() -> None:
    """Print what cannot be known in the test splits, and write the JSON."""
    shown = {setting.name: facts_shown(setting) for setting in settings(["memorization"])}
    fuzzy = [s for s in settings(["fuzzy-in-context-recall"]) if not {"vocab_size", EXAMPLES} & set(dict(s.changes))]
    never = {setting.name: keys_never_shown(setting) for setting in fuzzy}
    for title, found in (("test facts that training shows", shown), ("last keys that never occurred", never)):
        print(title)
        for name, share in found.items():
            print(f"  {name:44} {share:.3f}")
    print(write_json("mad_bounds", {"facts_shown": shown, "keys_never_shown": never}))


def main() -> None:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="mad_data", help="name of the file in benchmarks/results")
    parser.add_argument("--bounds", action="store_true", help="only what cannot be known in the test splits")
    arguments = parser.parse_args()
    if arguments.bounds:
        bounds()
        return
    out = arguments.out
    rows = []
    print(f"{'setting':44} {'train':>12}  {'train in':16} {'train tgt':16} {'test in':16} {'test tgt':16} {'CPU s':>7}")
    for setting in settings():
        row = measure(setting)
        rows.append(row)
        shape = "x".join(map(str, row["train"]))
        verdict = {True: "  = published", False: "  DIFFERS"}.get(row.get("equals_published"), "")
        print(
            f"{row['setting']:44} {shape:>12}  {' '.join(row['digests'])} {row['cpu_seconds']:7.2f}{verdict}",
            flush=True,
        )
    comparison = [against_lists(vocab_size) for vocab_size in (16, 32, 64, 128)]
    print(f"\nfuzzy recall, CPU seconds per example\n{'V':>5} {'here':>10} {'lists':>10} {'ratio':>8}")
    for entry in comparison:
        times = entry["seconds_per_example"]
        print(f"{entry['vocab_size']:5} {times['ours']:10.5f} {times['lists']:10.5f} {entry['lists_over_ours']:8.1f}")
    total = sum(row["cpu_seconds"] for row in rows)
    wrong = [row["setting"] for row in rows if row.get("equals_published") is False]
    print(
        f"\n{len(rows)} settings, {total:.0f} CPU seconds; baselines that differ from the published: {wrong or 'none'}"
    )
    path = write_json(out, {"settings": rows, "fuzzy_recall": comparison, "cpu_seconds": round(total, 1)})
    print(path)
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
