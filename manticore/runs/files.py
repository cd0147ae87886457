"""Names in a run folder that more than one module knows."""

SCHEMA_VERSION = 1
"""Of ``results.json``."""
RESULTS = "results.json"
ENVIRONMENT = "environment.json"
RESOLVED = "resolved.yaml"
LINEAGE = "lineage.json"
PAGE = "report.html"
MODEL = "model"
"""The folder of a model, in a stage's folder and in the run's."""
