"""Errors a person can act on: each names what is wrong, where, and what to do."""

from collections.abc import Sequence


class ManticoreError(Exception):
    """Bad input or an impossible request; the command line prints it as one line and exits with code 2.

    The message reads ``<where>: <what is wrong> (got X, expected Y). Fix: <what to do>``.
    """

    exit_code = 2

    @property
    def lines(self) -> list[str]:
        """The message as it is printed: one line, unless it holds several findings."""
        return [str(self)]


class SeveralErrors(ManticoreError):
    """Several findings at once, one line each."""

    def __init__(self, findings: Sequence[str]) -> None:
        self._findings = list(findings)
        super().__init__("\n".join(self._findings))

    @property
    def lines(self) -> list[str]:
        """One per finding."""
        return self._findings


class NotFiniteError(ManticoreError):
    """A loss, gradient, weight or score is NaN or infinite: a training diverged, or a checkpoint is damaged."""


def in_brief(error: object, most: int = 200) -> str:
    """What an exception says, on one line, at most ``most`` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def require_hybrid(model: object, stage: str) -> None:
    """Refuse what is not a hybrid, in a call from Python.

    Raises:
        ManticoreError: it is something else.
    """
    if not hasattr(model, "is_discretized"):
        raise ManticoreError(
            f"{stage}: a {type(model).__name__} is not a hybrid. "
            "Fix: make one with manticore.combine, or load one with AutoModelForCausalLM.from_pretrained"
        )
