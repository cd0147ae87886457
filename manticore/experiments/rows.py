"""Names of rows of a comparison that are not a single parent."""

ENSEMBLE = "ensemble"
SUPERNET = "supernet (soft)"
HYBRID = "hybrid"
NOT_PARENTS = (ENSEMBLE, SUPERNET, HYBRID)
_LARGER = "larger: "


def larger_row(name: str) -> str:
    """The row of a larger single model, which stands beside the others without being a parent."""
    return f"{_LARGER}{name}"


def is_larger(row: str) -> bool:
    """Whether a row is one of those."""
    return row.startswith(_LARGER)
