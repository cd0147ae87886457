"""What a method of architecture search is: it asks for designs in batches, looks at their scores, and asks on.

As with paths (:mod:`manticore.search.choice`), what a method asks for next depends on the scores and the seed alone,
never on who trained what first: any number of workers, a resumed study and a replay on recorded scores decide alike.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias

from manticore.search.designs.space import Design

Batch: TypeAlias = list[Design]
"""Designs that may be scored at the same time; one that has scores already costs nothing."""

Asking: TypeAlias = Generator[Batch, None, None]
"""Yields batches, and finds their scores when it goes on."""
