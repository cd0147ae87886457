"""Models with a parent's MLPs, norms and embeddings and fresh token mixers. Importing it registers them."""

from manticore._auto import register_twin

register_twin()
