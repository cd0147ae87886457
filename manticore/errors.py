"""Errors a person can act on: each names what is wrong, where, and what to do."""


class ManticoreError(Exception):
    """Bad input or an impossible request; the command line prints it as one line and exits with code 2.

    The message reads ``<where>: <what is wrong> (got X, expected Y). Fix: <what to do>``.
    """

    exit_code = 2


class NotFiniteError(ManticoreError):
    """A loss, gradient, weight or score is NaN or infinite: a training diverged, or a checkpoint is damaged."""


def require_hybrid(model: object, stage: str) -> None:
    """Refuse what is no hybrid, in a call from Python.

    Raises:
        ManticoreError: it is something else.
    """
    if not hasattr(model, "is_discretized"):
        raise ManticoreError(
            f"{stage}: a {type(model).__name__} is no hybrid. "
            "Fix: make one with manticore.combine, or load one with AutoModelForCausalLM.from_pretrained"
        )
