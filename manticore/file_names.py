"""Names of files and folders that more than one module writes or reads."""

SCHEMA_VERSION = 1
"""Of ``results.json``."""
RESULTS = "results.json"
ENVIRONMENT = "environment.json"
RESOLVED = "resolved.yaml"
LINEAGE = "lineage.json"
PAGE = "report.html"
SEARCHED = "search.json"
"""What the verb ``search`` writes beside the model."""
MODEL = "model"
"""The folder of a model, in a stage's folder and in the run's."""
