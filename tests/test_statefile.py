"""Files of the state folder that grow with the program: each step once, whole or not at all."""

import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from systemmanager.statefile import StateFile

FIRST = ("CREATE TABLE thing (id TEXT PRIMARY KEY) STRICT",)
SECOND = ("ALTER TABLE thing ADD COLUMN size INTEGER", "UPDATE thing SET size = 7")


def rows(file: StateFile) -> list[Any]:
    with file.reading() as database:
        return database.execute("SELECT * FROM thing").fetchall()


def version(path: Path) -> int:
    with sqlite3.connect(path) as database:
        (found,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return int(found)


def test_an_older_file_is_brought_up_to_date_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "things.sqlite"
    with StateFile(path, (FIRST,)).transaction() as database:
        database.execute("INSERT INTO thing VALUES ('a')")
    assert rows(StateFile(path, (FIRST, SECOND))) == [("a", 7)]
    assert rows(StateFile(path, (FIRST, SECOND))) == [("a", 7)], "a step is done once"
    assert version(path) == 2 and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "things.sqlite"
    StateFile(path, (FIRST,))
    with pytest.raises(sqlite3.Error):
        StateFile(path, (FIRST, (*SECOND, "SELECT nothing FROM nowhere")))
    assert version(path) == 1 and rows(StateFile(path, (FIRST,))) == []


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "things.sqlite"
    StateFile(path, (FIRST, SECOND))
    with pytest.raises(sqlite3.DatabaseError, match="newer version"):
        StateFile(path, (FIRST,))
    assert version(path) == 2
