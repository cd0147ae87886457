"""Names of rows of a comparison that are not a single parent."""

ENSEMBLE = "ensemble"
SUPERNET = "supernet (soft)"
HYBRID = "hybrid"
NOT_PARENTS = (ENSEMBLE, SUPERNET, HYBRID)
