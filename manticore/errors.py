"""Errors a person can act on: each names what is wrong, where, and what to do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


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


@contextmanager
def told(where: str, what: str, fix: str, *kinds: type[Exception]) -> Iterator[None]:
    """Let what a library raises inside end in one line, ``<where>: <what> (<the library's reason>). Fix: <fix>``.

    Args:
        where: what it is about; empty where that is put before it later.
        what: went wrong.
        fix: what to do.
        kinds: the classes that it raises; none: all, for libraries that raise dozens.
    """
    caught = kinds or (Exception,)
    try:
        yield
    except ManticoreError:
        raise
    except caught as error:
        if isinstance(error, PermissionError) and error.filename:
            raise closed(error.filename) from error
        reason = getattr(error, "strerror", None) or _said(error, named=not kinds) or type(error).__name__
        raise ManticoreError(f"{where and f'{where}: '}{what} ({reason}). Fix: {fix}") from error


def _said(error: Exception, *, named: bool) -> str:
    if not hasattr(error, "errors"):
        # the text of an error of any kind may be no more than a name
        return in_brief(f"{type(error).__name__}: {error}" if named and str(error) else error)
    # pydantic's, whose own words name its classes: the first value that is wrong
    first = error.errors()[0]
    at = ".".join(map(str, first["loc"]))
    return in_brief(f"{at} is {first['input']!r}" if at and first["type"] != "missing" else f"{first['msg']} {at}")


@contextmanager
def about(name: str) -> Iterator[None]:
    """Put what it is about before the errors raised inside."""
    try:
        yield
    except ManticoreError as error:
        raise ManticoreError(f"{name}: {error}") from error


def closed(path: object) -> ManticoreError:
    """What to raise for a file or folder that this user may not read."""
    return ManticoreError(f"{path}: may not be read (permission denied). Fix: ask its owner, or chmod it")


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
