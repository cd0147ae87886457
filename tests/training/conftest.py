"""The models and the task that tests of trainings share."""

from small_models import gpt, hybrid, mamba, task

__all__ = ["gpt", "hybrid", "mamba", "task"]
