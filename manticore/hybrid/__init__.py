"""The hybrid: configuration, modeling, mixture weights, discretizing."""

# First of all, for the reason given in manticore.components.
import transformers.models.auto.modeling_auto  # noqa: F401
