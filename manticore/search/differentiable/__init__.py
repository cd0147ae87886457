"""Searches that train the supernet and its mixture weights together."""
