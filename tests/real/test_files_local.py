"""Which files of the gateway's own machine can be read, and which can't, whatever the names and links say."""

import os
import socket
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import GatewayError
from systemmanager.executors import local_files
from systemmanager.executors.beneath import open_beneath
from systemmanager.executors.local_files import LocalFiles
from systemmanager.executors.own_files import OwnFiles
from systemmanager.request import Permit
from tests.conftest import need
from tests.support import run, target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path.resolve() / "allowed"
    made.mkdir()
    (made / "app.log").write_text("one\ntwo\n")
    (made / "folder").mkdir()
    (made / "folder" / "deep.txt").write_text("deep")
    outside = made.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("SECRET")
    (made.parent / "allowed-too").mkdir()
    (made.parent / "allowed-too" / "secret").write_text("SECRET")
    return made


def files(*roots: Path | str, protected: tuple[Path, ...] = ()) -> LocalFiles:
    one = target(constraints={"paths": [str(root) for root in roots]})
    return LocalFiles(Permit("call", one, (), None, 10), OwnFiles(*protected))  # type: ignore[arg-type]


def read(port: LocalFiles, path: Path | str, offset: int = 0, size: int = 1000) -> bytes:
    return run(port.read(str(path), offset, size))


def code(port: LocalFiles, path: Path | str, action: str = "read") -> str:
    arguments: tuple[Any, ...] = (str(path), 0, 100) if action == "read" else (str(path),)
    with pytest.raises(GatewayError) as caught:
        run(getattr(port, action)(*arguments))
    assert "SECRET" not in str(caught.value.as_dict())
    return caught.value.code


def test_a_regular_file_is_read_from_any_offset(root: Path) -> None:
    port = files(root)
    assert read(port, root / "app.log") == b"one\ntwo\n"
    assert read(port, root / "app.log", 4, 3) == b"two"
    assert read(port, root / "app.log", 100, 3) == b""


@pytest.mark.parametrize(
    "text",
    [
        "../outside/secret",
        "/etc/passwd",
        "folder/../../outside/secret",
        "../allowed-too/secret",
        "/proc/self/root/etc/passwd",
        "..",
        "/",
        "../outside/nothing-here",
    ],
)
def test_a_link_that_leads_out_is_refused_and_tells_nothing(root: Path, text: str) -> None:
    (root / "link").symlink_to(text)
    assert {code(files(root), root / "link", action) for action in ("read", "list", "info")} == {"path_outside"}


@pytest.mark.parametrize("text", ["app.log", "folder/../app.log", "folder/./deep.txt", "../allowed/app.log"])
def test_a_link_that_stays_inside_is_followed(root: Path, text: str) -> None:
    (root / "link").symlink_to(text)
    assert read(files(root), root / "link") in (b"one\ntwo\n", b"deep")
    assert run(files(root).info(str(root / "link"))).link_target is not None


def test_a_link_from_one_allowed_path_to_another_is_followed(root: Path) -> None:
    (root / "link").symlink_to(root.parent / "outside")
    port = files(root, root.parent / "outside")
    assert read(port, root / "link" / "secret") == b"SECRET"


def test_an_allowed_path_that_is_a_link_itself_works(root: Path) -> None:
    (root.parent / "alias").symlink_to("hop")
    (root.parent / "hop").symlink_to(root)
    port = files(root.parent / "alias")
    assert read(port, root.parent / "alias" / "app.log") == b"one\ntwo\n"
    (root / "link").symlink_to(root.parent / "outside" / "secret")
    assert code(port, root.parent / "alias" / "link") == "path_outside"


def test_a_chain_of_links_without_end_is_refused(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    assert code(files(root), root / "a") == "not_found"


def test_a_prefix_is_not_below(root: Path) -> None:
    assert code(files(root), root.parent / "allowed-too" / "secret") == "path_outside"


def test_the_gateways_own_folders_are_never_read(root: Path) -> None:
    state = root / "state"
    state.mkdir()
    (state / "key").write_text("SECRET")
    (root / "link").symlink_to("state/key")
    os.link(state / "key", root / "second-name")
    port = files(root, protected=(state,))
    assert {code(port, root / name) for name in ("state/key", "link", "second-name")} == {"path_outside"}
    assert code(port, state, "list") == "path_outside"
    assert code(port, state / "key", "info") == "path_outside"


@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/1/root/etc/passwd", "/proc/kcore", "/proc/self/fd"])
def test_proc_is_never_read_even_below_an_allowed_root(path: str) -> None:
    assert code(files("/"), path) == "path_outside"
    assert code(files("/proc"), path) == "path_outside"


def test_another_mount_of_proc_is_never_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "_proc_device", lambda: (root / "app.log").stat().st_dev)
    assert code(files(root), root / "app.log") == "path_outside"


@pytest.fixture
def bound_socket(root: Path) -> Iterator[Path]:
    made, before = socket.socket(socket.AF_UNIX), Path.cwd()
    os.chdir(root)  # a socket's path holds 108 characters
    try:
        made.bind("socket")
    finally:
        os.chdir(before)
    yield root / "socket"
    made.close()


def test_pipes_devices_sockets_and_folders_are_not_read(root: Path, bound_socket: Path) -> None:
    os.mkfifo(root / "pipe")
    port = files(root, "/dev")
    for path in (root / "pipe", bound_socket, root / "folder", Path("/dev/zero"), Path("/dev/tty")):
        assert code(port, path) == "unsupported"
    assert run(port.info(str(root / "pipe"))).kind == "other"


def test_a_missing_name_is_answered_with_what_is_near(root: Path) -> None:
    with pytest.raises(GatewayError) as caught:
        read(files(root), root / "ap.log")
    assert caught.value.code == "not_found"
    assert "app.log" in (caught.value.hint or "")


def test_names_beside_a_missing_root_are_not_told(root: Path) -> None:
    with pytest.raises(GatewayError) as caught:
        run(files(root.parent / "outsidf").list(str(root.parent / "outsidf")))
    assert caught.value.code == "not_found"
    assert caught.value.hint is None


def test_a_list_is_sorted_does_not_follow_and_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "zz").symlink_to("/etc/passwd")
    found = {Path(entry.path).name: entry for entry in run(files(root).list(str(root)))}
    assert list(found) == ["app.log", "folder", "zz"]
    assert (found["zz"].kind, found["zz"].link_target) == ("link", "/etc/passwd")
    assert (found["app.log"].kind, found["app.log"].size) == ("file", 8)
    monkeypatch.setattr(local_files, "MAX_ENTRIES", 2)
    assert [Path(entry.path).name for entry in run(files(root).list(str(root)))] == ["app.log", "folder"]


def test_a_name_that_is_not_utf8_does_not_break_the_list(root: Path) -> None:
    (root / os.fsdecode(b"bad-\xff")).write_text("x")
    assert "bad-\\xff" in {Path(entry.path).name for entry in run(files(root).list(str(root)))}


ROUNDS = 5_000
"""Reads while somebody swaps, of each kind."""


def swapped(root: Path, port: LocalFiles, swap: Callable[[], None], path: Path) -> Counter[bytes]:
    """What reads of `path` answer while `swap` is done over and over: contents, or codes of errors."""
    stop, seen = threading.Event(), Counter[bytes]()

    def swapping() -> None:
        while not stop.is_set():
            swap()

    swapper = threading.Thread(target=swapping)
    swapper.start()
    try:
        for _ in range(ROUNDS):
            try:
                seen[port._read(str(path), 0, 100)] += 1
            except GatewayError as error:
                seen[error.code.encode()] += 1
    finally:
        stop.set()
        swapper.join()
    return seen


def test_a_link_that_is_swapped_all_the_time_never_leads_out(root: Path) -> None:
    def swap() -> None:
        for text in ("../outside/secret", "app.log"):
            (root / "next").symlink_to(text)
            (root / "next").rename(root / "swapped")

    (root / "swapped").symlink_to("app.log")
    seen = swapped(root, files(root), swap, root / "swapped")
    assert set(seen) == {b"one\ntwo\n", b"path_outside"}, seen


def test_a_folder_that_is_swapped_for_a_link_never_leads_out(root: Path) -> None:
    (root / "folder" / "secret").write_text("inside")

    def swap() -> None:
        (root / "folder").rename(root / "aside")
        (root / "folder").symlink_to("../outside")
        (root / "folder").unlink()
        (root / "aside").rename(root / "folder")

    seen = swapped(root, files(root), swap, root / "folder" / "secret")
    assert set(seen) <= {b"inside", b"path_outside", b"not_found"} and seen[b"inside"], seen


def test_the_kernel_has_the_last_word_on_what_was_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that was led astray is caught: below the root the kernel finds something else."""
    need("openat2", None if beneath(root, "app.log") else "the kernel has no openat2")
    walk = local_files._walk

    def led_astray(path: str, judge: Any, roots: Any = ()) -> tuple[int, str]:
        found, real = walk(path, judge, roots)
        if not real.endswith("app.log"):
            return found, real
        os.close(found)
        return os.open(root.parent / "outside" / "secret", os.O_PATH), real

    monkeypatch.setattr(local_files, "_walk", led_astray)
    assert code(files(root), root / "app.log") == "path_outside"


def beneath(root: Path, path: str) -> bool:
    folder = os.open(root, os.O_PATH)
    try:
        found = open_beneath(folder, path)
    finally:
        os.close(folder)
    if found is not None:
        os.close(found)
    return found is not None


@pytest.mark.parametrize("path", ["up/secret", "../outside/secret", "/etc/passwd", "proc/self/root/etc/passwd"])
def test_openat2_opens_nothing_but_what_is_below(root: Path, path: str) -> None:
    need("openat2", None if beneath(root, "folder/deep.txt") else "the kernel has no openat2")
    (root / "link").symlink_to("app.log")
    (root / "up").symlink_to("../outside")
    (root / "proc").symlink_to("/proc")
    with pytest.raises(OSError, match=r"."):
        beneath(root, path)


def test_without_openat_2_the_walk_alone_decides(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "open_beneath", lambda *_: None)
    (root / "link").symlink_to("../outside/secret")
    assert read(files(root), root / "app.log") == b"one\ntwo\n"
    assert code(files(root), root / "link") == "path_outside"


def test_a_file_that_grows_is_read_as_it_is(root: Path) -> None:
    port = files(root)
    with (root / "app.log").open("a") as log:
        for number in range(100):
            log.write(f"{number}\n")
            log.flush()
            assert read(port, root / "app.log", 8, 4096).endswith(f"{number}\n".encode())


def test_names_are_bytes_and_are_not_made_alike(root: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "caf\u00e9"), unicodedata.normalize("NFD", "caf\u00e9")
    (root / decomposed).write_text("NFD")
    assert read(files(root), root / decomposed) == b"NFD"
    assert code(files(root), root / composed) == "not_found"
    (root / composed).write_text("NFC")
    assert [read(files(root), root / name) for name in (composed, decomposed)] == [b"NFC", b"NFD"]


def test_a_dangling_link_is_not_found(root: Path) -> None:
    (root / "link").symlink_to("nowhere")
    assert {code(files(root), root / "link", action) for action in ("read", "list", "info")} == {"not_found"}


def test_a_long_name_and_a_nul_are_no_files(root: Path) -> None:
    assert code(files(root), root / ("x" * 300)) == "not_found"
    with pytest.raises((GatewayError, ValueError)):
        read(files(root), f"{root}/app.log\0")


def test_what_the_user_may_not_read_is_a_matter_of_rights(root: Path) -> None:
    (root / "app.log").chmod(0)
    root.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(GatewayError) as caught:
            files(root)._read(str(root / "app.log"), 0, 10)
    finally:
        os.seteuid(user)
        root.chmod(0o700)
    assert caught.value.code == "privilege_required"


def test_one_file_may_be_all_that_is_allowed(root: Path) -> None:
    port = files(root / "app.log")
    assert read(port, root / "app.log", 4, 3) == b"two"
    (root / "link").symlink_to("app.log")
    assert read(files(root / "link"), root / "link") == b"one\ntwo\n"
    assert code(port, root / "folder" / "deep.txt") == code(port, root, "list") == "path_outside"
    assert read(files("/"), root / "app.log") == b"one\ntwo\n" and run(files("/").info("/")).kind == "directory"
