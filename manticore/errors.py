"""Errors a person can act on: each names what is wrong, where, and what to do."""


class ManticoreError(Exception):
    """Bad input or an impossible request; the command line prints it as one line and exits with code 2.

    The message reads ``<where>: <what is wrong> (got X, expected Y). Fix: <what to do>``.
    """

    exit_code = 2
