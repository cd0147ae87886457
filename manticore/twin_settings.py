"""Options of twins: of the Python function and of the verb. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Annotated

from manticore.option_sets import Settings
from manticore.option_types import (
    Bos,
    Count,
    InPython,
    LayerIndices,
    Pair,
    Positive,
    Share,
    Size,
    Text,
    TwinMixers,
)


class Twin(Settings):
    """A parent's MLPs, norms and embeddings with fresh token mixers, fitted to what its attention does."""

    mixer: TwinMixers = "gated-delta-net"
    """What stands where the parent's attention stood: a recurrence whose state does not grow with the text, or the
    parent's own attention in a window."""
    layers: LayerIndices | None = None
    """Which of the parent's layers get it; left out, all that have softmax attention. The others keep theirs."""
    rotary: bool | None = None
    """Whether mixers rotate queries and keys by their positions, as the parent does; left out, sliding attention does
    and the others do not."""
    window: Count | None = None
    """With sliding attention: tokens that it sees, the current one included; left out, the parent's own window, or
    256."""
    text: Annotated[Text | None, InPython("Text | None")] = None
    """What the mixers are fitted on, as of align; left out, they stay as they start."""
    text_column: Text | None = None
    """Of a table, the column that holds the documents; else text, or the only column of strings."""
    bos: Bos = "auto"
    """Whether every sequence begins with the tokenizer's BOS token; auto: where it adds one."""
    tokens: Pair = 262144
    """Tokens to fit on, held-out ones included."""
    holdout: Share = 0.05
    """Share of the tokens that errors are measured on, and that nothing is fitted to."""
    length: Pair = 512
    """Tokens per sequence."""
    batch_size: Size = 4
    """Sequences per step."""
    lr: Positive = 1e-3
    """The first learning rate; it falls linearly to zero."""
    save_steps: Size = 50
    """How often what a stopped fit goes on from is written."""
