"""`audit verify`: every change to a log is found and named by its first bad line; a sound log is sound."""

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from systemmanager.audit.chain import Limits
from systemmanager.audit.log import AuditLog
from systemmanager.audit.record import Record, parsed, seal
from systemmanager.audit.segments import closed
from systemmanager.audit.signing import Keys, Signer, new_key
from systemmanager.audit.verify import Broken, Found, verify
from tests.support import run

SIGNER = Signer.of(new_key())
KEYS = Keys(SIGNER.public)
EVERY = 7


def record(number: int, **fields: Any) -> Record:
    arguments = {"text": "x" * (number * 37 % 200), "nested": {"phase": "checkpoint", "hash": "0" * 64}}
    return Record("intent", f"c{number}", "look", "me", arguments=arguments, time=1000.0 + number, **fields)


def log_at(path: Path, **fields: Any) -> AuditLog:
    limits = fields.pop("limits", Limits(segment_bytes=6000, checkpoint_records=EVERY))
    fields = {"signer": SIGNER, "witness": path.with_name("witness"), "clock": lambda: 1000.0, **fields}
    return AuditLog(path, limits=limits, **fields)


def made(folder: Path, count: int = 60, **fields: Any) -> Path:
    """A log of several segments, closed in order."""
    path = folder / "audit.jsonl"

    async def work() -> None:
        log = log_at(path, **fields)
        for number in range(count):
            await log.append([record(number)], durable=False)
            if number % 20 == 10:
                await log.tend()
        log.close()

    folder.mkdir(exist_ok=True)
    run(work())
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("log"))


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original.parent, tmp_path / "copy")
    return tmp_path / "copy" / original.name


def files(path: Path) -> list[Path]:
    return [*closed(path), path]


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def broken(path: Path, **fields: Any) -> Broken:
    with pytest.raises(Broken) as caught:
        verify(path, KEYS, **fields)
    return caught.value


def at(path: Path, **fields: Any) -> tuple[str, int]:
    found = broken(path, **fields)
    return found.file, found.line


def test_a_sound_log_is_sound(path: Path) -> None:
    found = verify(path, KEYS, witness=path.with_name("witness"))
    assert found.segments == len(files(path)) > 3 and found.unsigned == 0 and found.torn == 0
    assert found.records == found.last == sum(len(lines(one)) for one in files(path))
    assert found.checkpoints > 60 // EVERY and found.witnessed >= 3


# --- Every single change ----------------------------------------------------------------------------------------------


def edits(path: Path) -> Any:
    """Each line of each segment, as (file, index, lines)."""
    for file in files(path):
        whole = lines(file)
        for index in range(len(whole)):
            yield file, index, list(whole)


def test_every_edit_is_named_by_its_line(path: Path) -> None:
    dice = random.Random(1)
    for file, index, whole in edits(path):
        before, end = file.read_bytes(), len(whole[index]) - 1
        for place in (0, dice.randrange(end), end - 2, end - 1):
            line = bytearray(whole[index])
            line[place] = dice.choice([byte for byte in b"0a}x" if byte != line[place]])
            file.write_bytes(b"".join([*whole[:index], bytes(line), *whole[index + 1 :]]))
            assert at(path) == (file.name, index + 1)
        file.write_bytes(before)
    verify(path, KEYS)


def test_every_deletion_is_named_by_the_line_that_follows(path: Path) -> None:
    for file, index, whole in edits(path):
        before = file.read_bytes()
        file.write_bytes(b"".join([*whole[:index], *whole[index + 1 :]]))
        last = index == len(whole) - 1
        # Without its last record a closed segment lacks its checkpoint; of the last segment only the witness knows.
        if not last:
            assert at(path) == (file.name, index + 1)
        elif file != path:
            following = files(path)[files(path).index(file) + 1]
            assert at(path) in ((file.name, index), (following.name, 1))
        else:
            assert at(path, witness=path.with_name("witness")) == (file.name, index)
        file.write_bytes(before)


def test_every_swap_is_named(path: Path) -> None:
    for file, index, whole in edits(path):
        if index + 1 < len(whole):
            before = file.read_bytes()
            whole[index], whole[index + 1] = whole[index + 1], whole[index]
            file.write_bytes(b"".join(whole))
            assert at(path) == (file.name, index + 1)
            file.write_bytes(before)


def test_every_insertion_is_named(path: Path) -> None:
    dice = random.Random(2)
    everything = [line for file in files(path) for line in lines(file)]
    foreign = [b"{}\n", b"\n", b"garbage\n", b"\0" * 100 + b"\n", seal(record(1).fields())[0]]
    for file, index, whole in edits(path):
        before = file.read_bytes()
        inserted = dice.choice([*foreign, dice.choice(everything)])
        file.write_bytes(b"".join([*whole[:index], inserted, *whole[index:]]))
        # The same line twice: the second is the one too many.
        assert at(path) == (file.name, index + 1 + (inserted == whole[index]))
        file.write_bytes(before)


def test_every_truncation_shows_at_the_witness(path: Path) -> None:
    dice = random.Random(3)
    size = path.stat().st_size
    whole = path.read_bytes()
    for cut in {0, 1, size - 1, *(dice.randrange(size) for _ in range(100))} - {size - 1}:
        path.write_bytes(whole[:cut])
        found = broken(path, witness=path.with_name("witness"))
        assert found.line in (whole[:cut].count(b"\n"), whole[:cut].count(b"\n") + 1)
    path.unlink()
    assert at(path) == (path.name, 1)


@pytest.mark.parametrize("which", [0, 1, -2])
def test_a_missing_segment_is_named(path: Path, which: int) -> None:
    files(path)[which].unlink()
    found = broken(path)
    assert found.line == 1 and ("missing" in found.what or "removed" in found.what)


def test_a_splice_is_named_by_its_first_line(path: Path, tmp_path: Path) -> None:
    """Records of another log with the same key and the same numbers: each is sound by itself, and follows another."""
    other = made(tmp_path / "other", clock=lambda: 2000.0)
    for file, foreign in zip(files(path), files(other), strict=True):
        mine, theirs = lines(file), lines(foreign)
        numbers = [[(parsed(line) or {})["n"] for line in whole] for whole in (mine, theirs)]
        assert numbers[0] == numbers[1] and not set(mine) & set(theirs)
        for index in range(1, len(mine)):
            for end in {index + 1, len(mine)}:
                file.write_bytes(b"".join([*mine[:index], *theirs[index:end], *mine[end:]]))
                assert at(path) == (file.name, index + 1) and "another log" in broken(path).what
        file.write_bytes(foreign.read_bytes())
        # The first segment stands for itself; the next one does not follow it.
        assert at(path) == ((files(path)[1] if file == files(path)[0] else file).name, 1)
        file.write_bytes(b"".join(mine))
    verify(path, KEYS)


def reforged(whole: list[bytes], index: int, change: Callable[[dict[str, Any]], None], head: str) -> list[bytes]:
    """The lines with one changed and the chain behind it computed again, as whoever lacks the key would do it."""
    done = []
    for number, line in enumerate(whole):
        fields = parsed(line.strip()) or {}
        del fields["hash"]
        if number == index:
            change(fields)
        fields["after"] = head if number else fields["after"]
        made, head = seal(fields)
        done.append(made)
    return done


def test_a_chain_that_was_computed_again_fails_at_the_next_checkpoint(path: Path) -> None:
    file = files(path)[0]
    whole = lines(file)
    for index in range(len(whole)):
        file.write_bytes(b"".join(reforged(whole, index, lambda fields: fields.update(subject="nobody"), "")))
        found = broken(path)
        checkpoint = next(n for n in range(index, len(whole)) if parsed(whole[n])["phase"] == "checkpoint")  # type: ignore[index]
        assert (found.file, found.line) == (file.name, checkpoint + 1) and "forged" in found.what


def test_checkpoints_can_t_be_left_out(tmp_path: Path) -> None:
    path = made(tmp_path / "a", 300, limits=Limits(checkpoint_records=EVERY))
    kept = [line for line in lines(path) if b'"text"' in line]
    first = lines(path)[0]
    forged = [first]
    for number, line in enumerate(kept):
        fields = {**(parsed(line) or {}), "n": number + 2, "after": (parsed(forged[-1]) or {})["hash"]}
        del fields["hash"]
        forged.append(seal(fields)[0])
    path.write_bytes(b"".join(forged))
    assert "checkpoints were taken out" in broken(path).what
    path.write_bytes(b"".join(forged[1:]))
    assert at(path) == (path.name, 1)


def test_another_s_signature_does_not_count(tmp_path: Path) -> None:
    path = made(tmp_path / "a", 3, signer=Signer.of(new_key()))
    assert at(path) == (path.name, 1) and "not the log's" in broken(path).what


def test_an_empty_or_absent_log_is_not_whole(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "audit.jsonl", KEYS)
    (tmp_path / "audit.jsonl").touch()
    assert "empty" in broken(tmp_path / "audit.jsonl").what


# --- The witness ------------------------------------------------------------------------------------------------------


def test_a_log_that_was_rolled_back_and_went_on_shows(tmp_path: Path) -> None:
    path = made(tmp_path / "a", 40, limits=Limits(checkpoint_records=EVERY))
    path.write_bytes(b"".join(lines(path)[:20]))
    log = log_at(path, witness=None, limits=Limits(checkpoint_records=EVERY))
    for number in range(200, 230):
        log.append_now(record(number))
    log.close()
    verify(path, KEYS)
    assert "witness" in broken(path, witness=path.with_name("witness")).what


def test_a_witness_that_is_changed_is_named_itself(path: Path) -> None:
    witness = path.with_name("witness")
    fields = parsed(lines(witness)[-1].strip()) or {}
    del fields["hash"]
    witness.write_bytes(witness.read_bytes() + seal({**fields, "n": fields["n"] + 50})[0])
    assert at(path, witness=witness) == ("witness", len(lines(witness)))


@pytest.mark.parametrize("poison", [b'{"n":999999999}\n', b"torn", b'{"n":"x"}\n' * 500, seal({"n": 10**9})[0]])
def test_nothing_appended_to_the_witness_silences_it(tmp_path: Path, poison: bytes) -> None:
    path, witness = made(tmp_path / "a", 10), tmp_path / "a" / "witness"
    known = witness.read_bytes()
    witness.write_bytes(known + poison)
    assert at(path, witness=witness) == ("witness", len(known.splitlines()) + 1)

    async def goes_on() -> list[dict[str, str]]:
        log, said = log_at(path), []
        for number in range(2 * EVERY):
            await log.append([record(number)], durable=False)
            await log.tend()
            said.append(log.troubles)
        log.close()
        return said

    troubles = run(goes_on())
    assert any("no checkpoint of this log" in one.get("audit witness", "") for one in troubles)
    added = witness.read_bytes().removeprefix(known + poison).splitlines(keepends=True)
    assert added[-1] in lines(path) and len([line for line in added if line in lines(path)]) >= 2
    if poison != seal({"n": 10**9})[0]:
        assert verify(path, KEYS, witness=witness).unreadable == len(poison.splitlines())
    path.write_bytes(b"".join(lines(path)[:-1]))
    broken(path, witness=witness)


def test_a_line_of_the_witness_that_a_crash_cut_off_is_told_apart_and_heals(tmp_path: Path) -> None:
    path, witness = made(tmp_path / "a", 30), tmp_path / "a" / "witness"
    whole = witness.read_bytes()
    *before, last = whole.splitlines(keepends=True)
    for cut in (1, 40, len(last) // 2, len(last) - 2):
        witness.write_bytes(b"".join(before) + last[:cut])
        found = verify(path, KEYS, witness=witness)
        assert (found.witness_torn, found.unreadable, found.bad_lines) == (True, 1, (len(before) + 1,))
    for forged in (last[:-20] + b"x", b"x" + last[1:40], last[:40] + b"\n", b"x\n" + last[:40]):
        witness.write_bytes(b"".join(before) + forged)
        assert "no part of this log" in broken(path, witness=witness).what
    witness.write_bytes(b"".join(before) + last[:40])

    async def next_start() -> None:
        log = log_at(path)
        for number in range(2 * EVERY):
            await log.append([record(number)], durable=False)
        await log.tend()
        log.close()

    run(next_start())
    found = verify(path, KEYS, witness=witness)
    assert (found.witness_torn, found.unreadable, found.bad_lines) == (False, 1, (len(before) + 1,))


def test_bad_lines_in_the_middle_of_the_witness_are_named(path: Path) -> None:
    witness = path.with_name("witness")
    first, *rest = lines(witness)
    witness.write_bytes(b"".join([first, b"x\n", *rest[:1], b"y\n" * 20, *rest[1:]]))
    found = verify(path, KEYS, witness=witness)
    assert found.unreadable == 21 and found.bad_lines == (2, *range(4, 13)) and not found.witness_torn


def test_a_witness_of_something_else_is_none(path: Path) -> None:
    witness = path.with_name("witness")
    witness.write_bytes(b"no checkpoint\n")
    assert "no checkpoint" in broken(path, witness=witness).what


def test_without_its_oldest_segments_a_log_is_sound_when_that_is_said(path: Path) -> None:
    for segment in closed(path)[:2]:
        segment.unlink()
    assert "missing" in broken(path).what
    found = verify(path, KEYS, witness=path.with_name("witness"), partial=True)
    assert found.last > found.records > 0


# --- While it is written ----------------------------------------------------------------------------------------------


def test_a_log_that_is_being_written_verifies(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    counts = [0]

    def check() -> None:
        while counts[-1] < 2000 and len(counts) < 2000:
            counts.append(verify(path, KEYS).records)

    async def work() -> None:
        log = log_at(path, limits=Limits(segment_bytes=200_000, checkpoint_records=EVERY))
        await log.append([record(0)], durable=True)
        loop = asyncio.get_running_loop()
        checking = loop.run_in_executor(None, check)
        number = 0
        while not checking.done() and number < 3000:
            number += 1
            await log.append([record(number)], durable=False)
            await asyncio.sleep(0)
        await checking
        log.close()

    run(work())
    assert counts == sorted(counts) and len(set(counts)) > 2
    assert isinstance(verify(path, KEYS), Found) and len(files(path)) > 2
