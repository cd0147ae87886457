"""Fits over many runs: what size is best at a number of FLOPs, how it grows, and whether one score ranks as another.

```python
table = manticore.fits.isoflops("runs.jsonl")
table.exponents["striped"].size.value, table.exponents["striped"].size.interval
manticore.fits.state_optimal(table).exponent
manticore.fits.rank_correlation(mad_scores, {name: table.best_loss(name) for name in mad_scores})
```
"""

from manticore.experiments.fits.bootstrap import Estimate
from manticore.experiments.fits.isoflop import Exponents, IsoFlops, Minimum, isoflops
from manticore.experiments.fits.ledger import Run, read_runs
from manticore.experiments.fits.ranks import RankCorrelation, rank_correlation
from manticore.experiments.fits.state import StateFit, state_optimal

__all__ = [
    "Estimate",
    "Exponents",
    "IsoFlops",
    "Minimum",
    "RankCorrelation",
    "Run",
    "StateFit",
    "isoflops",
    "rank_correlation",
    "read_runs",
    "state_optimal",
]
