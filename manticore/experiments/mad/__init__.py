"""Architectures trained side by side on the MAD benchmark."""
