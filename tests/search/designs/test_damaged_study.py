"""What a study finds in its folder and cannot use: damaged trials, those of another version, no folder at all."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest
from tiny_designs import QUICK, written_text

import manticore
from manticore.errors import ManticoreError

GIVEN = {**QUICK, "method": "random", "method_options": {}, "trials": 2, "steps": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished study, and its options."""
    folder = tmp_path_factory.mktemp("place")
    given = {**GIVEN, "text": str(written_text(folder)), "cpu": True}
    manticore.design(**given, out=folder / "study")
    return folder, given


@pytest.mark.parametrize("value", ["{", "{}", "3", '{"measures": 3}', '{"measures": {}}', '{"loss_of_the_future": 1}'])
def test_a_trial_that_cannot_be_read_is_refused_in_a_line(place, tmp_path, value):
    folder, given = place
    shutil.copytree(folder / "study", tmp_path / "study")
    with closing(sqlite3.connect(tmp_path / "study" / "study.db")) as connection:
        connection.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'trained'", [value])
        connection.commit()
    with pytest.raises(ManticoreError, match=r"study\.db.* damaged.*Fix: ") as refused:
        manticore.design(**given, out=tmp_path / "study", resume=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("out", ["a-file", "a-file/study"])
def test_a_file_in_the_place_of_the_folder_is_refused_in_a_line(place, tmp_path, out):
    (tmp_path / "a-file").write_text("mine")
    with pytest.raises(ManticoreError, match="a-file is a file, not a folder"):
        manticore.design(**place[1], out=tmp_path / out, resume=True)
    assert (tmp_path / "a-file").read_text() == "mine"


def test_what_no_method_can_do_leaves_nothing_behind(place, tmp_path):
    with pytest.raises(ManticoreError, match="9 trials, but the space has 8 designs"):
        manticore.design(**{**place[1], "trials": 9}, out=tmp_path / "study")
    assert not (tmp_path / "study").exists()
