"""The hybrid: configuration, modeling, mixture weights, discretizing. Importing it registers its classes."""

from manticore._auto import register_hybrid

register_hybrid()
