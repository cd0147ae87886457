"""Where the trials of a search are kept: an optuna study, in SQLite or PostgreSQL, and what can be wrong with it.

Workers beat: a trial whose worker was killed is found by its silence, and given to another one.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path as Folder
from typing import Any, Literal

import optuna
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from manticore.errors import ManticoreError, in_brief
from manticore.printing import without_passwords
from manticore.processes import own_mark
from manticore.runs.ledger import CONDITIONS, INPUTS, SETTINGS, digest_of, key, refuse_another
from manticore.writing import usable_folder, write_text

logger = logging.getLogger(__name__)

STUDY = "study.db"
"""The study of a search that was given no storage, in its folder."""
FOLDER = "study-folder"
"""A file that tells the search's folder from others: every worker has to see the same one."""
NAME = "search"
"""Of the study in ``STUDY``."""

HEARTBEAT, GRACE = 15, 120
"""Seconds between a worker's signs of life, and those of silence after which its trial is another's."""
PATIENCE = 10
"""Seconds that a database has to answer, and that another worker has to describe a study that it has made."""
BUSY = 120
"""Seconds that a writer waits for the others of an SQLite file."""

_KEY, _TOKEN = "key", "folder"
_MADE_TWICE = ("already exists", "duplicate key", "UNIQUE constraint")
_TRIES = 10
_TABLES = {"studies", "version_info", "alembic_version"}
_EXPECTED = "expected sqlite:///FILE or postgresql://USER@HOST/DATABASE"


class Storage(optuna.storages.RDBStorage):
    """Beats even where the database has not answered once."""

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            # the thread that beats would end, and a living worker would be taken for dead
            logger.warning("search: a heartbeat was lost (%s)", in_brief(without_passwords(str(error)), 100))


class Connection:
    """The way to a study, which every process opens for itself.

    Args:
        url: of a database; None: ``STUDY`` in the folder.
        folder: of the search; None: in memory, for one process.
        name: of the study; None: one that follows from its key, in ``STUDY`` always the same.
        stage: the verb that messages begin with.
        directions: ``"minimize"`` or ``"maximize"`` for each value of a trial.

    Raises:
        ManticoreError: a URL of nothing that can hold a study, or a driver that is not installed.
    """

    def __init__(
        self,
        url: str | None,
        folder: Folder | None,
        name: str | None,
        *,
        stage: str = "search",
        directions: Sequence[Literal["minimize", "maximize"]] = ("minimize",),
    ) -> None:
        self._folder, self.name, self.stage, self._directions = folder, name, stage, list(directions)
        self._url: URL | None = None
        if url is not None:
            self._url = _checked(url, stage)
        elif folder is not None:
            self._url = URL.create("sqlite", database=str(folder / STUDY))
            self.name = name or NAME
        self._storage: Storage | None = None

    @property
    def shown(self) -> str:
        """The database, as messages name it: nothing of a URL that could be a secret."""
        if self._url is None:
            return "memory"
        if self._url.get_backend_name() == "sqlite":
            return str(self._url.database)
        url = self._url
        return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()

    def study(self, settings: Mapping[str, Any], inputs: Mapping[str, str], *, joins: bool) -> optuna.Study:
        """The study of a search, new or found.

        Args:
            settings: everything that its trials depend on, beside
            inputs: digests of what is read.
            joins: a study that is there already is gone on with.

        Raises:
            ManticoreError: the database does not answer or is none, or it holds a study of something else.
        """
        now = key(settings, inputs)
        if self.name is None:
            self.name = f"{self.stage}-{digest_of({SETTINGS: now[SETTINGS], INPUTS: now[INPUTS]})[:12]}"
        with self.trouble():
            if self._folder is not None:
                usable_folder(self._folder)
            _refuse_foreign(self._url, self.stage)
            study, made = self._made_or_found()
            if not made and not joins and study.get_trials(deepcopy=False):
                raise ManticoreError(
                    f"{self.stage}: {self.shown} holds results of an earlier {self.stage}. "
                    "Fix: resume it (resume=True) or choose another out"
                )
            self._recognise(study, now, made)
        return study

    def again(self) -> optuna.Study:
        """The study, in a process that was forked from one that has opened it."""
        with self.trouble():
            assert self.name is not None
            return optuna.load_study(study_name=self.name, storage=self._opened(), sampler=_sampler())

    def close(self) -> None:
        """Let go of the database before a fork: no connection may be used by two processes."""
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """Say in a line what the database has said in many."""
        try:
            yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
            cause = error.__cause__ or error
            text = in_brief(without_passwords(str(getattr(cause, "orig", None) or cause)))
            raise ManticoreError(f"{self.stage}: {self.shown}: {_said(text)}") from error
        except KeyError as error:
            if "Record does not exist" not in str(error):
                raise
            raise ManticoreError(
                f"{self.stage}: {self.shown}: the study {self.name!r} was removed meanwhile. Fix: start again"
            ) from error
        except RuntimeError as error:
            if "optuna version" not in str(error):
                raise
            raise ManticoreError(
                f"{self.stage}: {self.shown}: was made by another version of optuna than {optuna.__version__}. "
                "Fix: another place, or that version"
            ) from error

    def _made_or_found(self) -> tuple[optuna.Study, bool]:
        if self._url is None:
            return optuna.create_study(sampler=_sampler(), directions=self._directions), True
        storage = self._opened()
        try:
            study = optuna.create_study(
                storage=storage, study_name=self.name, sampler=_sampler(), directions=self._directions
            )
            return study, True
        except optuna.exceptions.DuplicatedStudyError:
            assert self.name is not None
            return optuna.load_study(study_name=self.name, storage=storage, sampler=_sampler()), False

    def _opened(self) -> Storage:
        assert self._url is not None
        lite = self._url.get_backend_name() == "sqlite"
        connect = {"timeout": BUSY} if lite else {"connect_timeout": PATIENCE}
        text = self._url.render_as_string(hide_password=False)
        for left in reversed(range(_TRIES)):
            try:
                with warnings.catch_warnings():
                    # heartbeats are as old as optuna 2.8
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    self._storage = Storage(
                        # optuna fills in braces
                        text.replace("{", "{{").replace("}", "}}"),
                        engine_kwargs={"connect_args": connect, "pool_pre_ping": True},
                        heartbeat_interval=HEARTBEAT,
                        grace_period=GRACE,
                    )
                break
            except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
                # another worker is making the same tables
                if not left or not any(said in f"{error} {error.__cause__}" for said in _MADE_TWICE):
                    raise
                time.sleep(random.random())
        assert self._storage is not None
        return self._storage

    def _recognise(self, study: optuna.Study, now: Mapping[str, Any], made: bool) -> None:
        """Write the key into a new study; refuse a found one with another, or that cannot be read."""
        try:
            study.get_trials(deepcopy=False)
        except ValueError as error:
            raise ManticoreError(
                f"{self.stage}: {self.shown}: a trial of {self.name!r} is damaged ({in_brief(error, 100)}). "
                "Fix: put it back, or choose another place"
            ) from error
        described = {} if made else _described(study)
        if not described:
            if not made and study.get_trials(deepcopy=False):
                raise ManticoreError(
                    f"{self.stage}: {self.shown}: the study {self.name!r} is not that of a {self.stage}. "
                    "Fix: another name or place"
                )
            # the key last: it is what others wait for
            study.set_user_attr(_TOKEN, _token(self._folder, new=True))
            study.set_user_attr(_KEY, now)
            return
        where = f"{self.stage}: {self.shown}: the study {self.name!r}"
        before = described[_KEY]
        if not isinstance(before, dict) or not all(isinstance(before.get(n), dict) for n in (SETTINGS, INPUTS)):
            raise ManticoreError(f"{where} is damaged. Fix: another name or place")
        taken_over = ", whose --reuse takes over what was trained here" if self.stage == "design" else ""
        refuse_another({CONDITIONS: {}, **before}, now, where, f"choose another name, or another place{taken_over}")
        if described.get(_TOKEN) != _token(self._folder, new=False):
            raise ManticoreError(
                f"{where} has its candidates in another folder than {self._folder}. "
                "Fix: give all workers the same folder, on a disk that all their machines see"
            )


def _checked(text: str, stage: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError:
        raise ManticoreError(f"{stage}: storage is not the URL of a database ({_EXPECTED})") from None
    if url.drivername in ("postgres", "postgresql"):
        # the driver that is installed with the extra, not sqlalchemy's default
        url = url.set(drivername="postgresql+psycopg")
    if "@" in (url.host or ""):
        raise ManticoreError(f"{stage}: storage has an @ in its password. Fix: write it as %40, or use PGPASSWORD")
    kind, _, driver = url.drivername.partition("+")
    if kind == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    if kind != "postgresql":
        where = "memory" if kind == "sqlite" else kind
        raise ManticoreError(
            f"{stage}: storage is in {where}, where workers do not find it or it was not tried ({_EXPECTED})"
        )
    if find_spec(driver) is None:
        raise ManticoreError(
            f"{stage}: storage needs the driver {driver}, which is not installed. "
            "Fix: pip install 'manticore-hybrids[postgres]'"
        )
    return url


def _refuse_foreign(url: URL | None, stage: str) -> None:
    """Refuse an SQLite file of another program, which would get optuna's tables, and a damaged one."""
    file = Folder(str(url.database)) if url is not None and url.get_backend_name() == "sqlite" else None
    if file is None or not file.exists():
        return
    # not read-only: what a killed writer has left is rolled back
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        whole = connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    if tables and not tables & _TABLES:
        raise ManticoreError(f"{stage}: {file} is the database of something else. Fix: another place")
    if not whole:
        raise sqlite3.DatabaseError("database disk image is malformed")


def _said(text: str) -> str:
    if "malformed" in text or "not a database" in text:
        return f"is damaged, or no database ({text}). Fix: put it back, or choose another place"
    if "disk is full" in text or "disk I/O" in text:
        return f"cannot be written, the disk may be full ({text}). Fix: free some space, then resume"
    if "locked" in text:
        return f"is in use by others for more than {BUSY} s ({text}). Fix: PostgreSQL, for many workers"
    if "unable to open" in text or "readonly" in text or "read-only" in text:
        return f"cannot be opened ({text}). Fix: a file in a folder that exists and may be written"
    return f"the storage does not answer ({text}). Fix: start the database, or see to the URL; then resume"


def _described(study: optuna.Study) -> dict[str, Any]:
    """The attributes of a found study, once they are there; empty where nobody sets them."""
    deadline = time.monotonic() + PATIENCE
    while _KEY not in (found := study.user_attrs) and time.monotonic() < deadline:
        if study.get_trials(deepcopy=False):
            return {}
        time.sleep(0.1)
    return found if _KEY in found else {}


def _token(folder: Folder | None, *, new: bool) -> str | None:
    """The name that a folder was given when a search first used it; None where it has none."""
    if folder is None:
        return None
    file = folder / FOLDER
    if new and not file.exists():
        write_text(file, own_mark())
    return file.read_text(encoding="utf-8") if file.exists() else None


def _sampler() -> optuna.samplers.BaseSampler:
    """Nothing is sampled: a method says which candidates it wants."""
    return optuna.samplers.RandomSampler(seed=0)


@contextmanager
def quiet() -> Iterator[None]:
    """Without optuna's own words about every trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def no_notices() -> Iterator[None]:
    """Without these, and without what optuna says of options that are new: those used here are years old."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
