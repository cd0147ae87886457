"""A pretrained model seen as embeddings, layers, final norm and head."""

# First of all: loading the auto classes registers the hybrid, which imports modules of this package. Where one of
# these were the first to load them, it would be asked for before it is complete.
import transformers.models.auto.modeling_auto  # noqa: F401
