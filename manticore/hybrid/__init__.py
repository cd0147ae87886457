"""The hybrid: configuration, modeling, mixture weights, discretizing. Importing it registers its classes."""

from manticore import _auto

_auto.register()
