"""Files of a real SSH target: only below the allowed paths, whatever lies there."""

import asyncio
import os
import socket
import time
import unicodedata
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import NotFound, PathOutside, PrivilegeRequired, TargetError, Unsupported
from systemmanager.executors.ssh_files import SshFiles
from tests.real.openssh import SshServer, SshServers
from tests.real.ssh_ports import ssh_executor
from tests.support import run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An allowed folder with all that may lie in one."""
    root, outside = tmp_path / "allowed", tmp_path / "allowed-not"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "app.log").write_bytes(b"line 1\nline 2\n")
    (root / "big.log").write_bytes(bytes(range(256)) * 4000)
    (root / "in").symlink_to("app.log")
    (root / "out").symlink_to(outside / "secret")
    (root / "sub" / "up").symlink_to("../../allowed-not")
    (root / "gone").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "proc").symlink_to("/proc/self")
    os.mkfifo(root / "pipe")
    (root / "null").symlink_to("/dev/null")
    (root / os.fsdecode(b"bad\xff\nname")).write_text("x")
    return root


def does(tmp_path: Path, server: SshServer, tree: Path, work: Callable[[Any], Any]) -> Any:
    async def wrapped() -> Any:
        async with ssh_executor(tmp_path) as opened:
            files = await opened(server.target(constraints={"paths": [str(tree), "/nonexistent/root"]}), "Files")
            async with asyncio.timeout(10):
                return await work(files)

    return run(wrapped())


def test_a_file_is_read_from_any_offset(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    whole = (tree / "big.log").read_bytes()
    for offset, size in [(0, 10), (5, 300_000), (0, 2_000_000), (len(whole) - 3, 100), (len(whole), 10), (10**9, 10)]:
        found = does(tmp_path, ssh_server, tree, methodcaller("read", f"{tree}/big.log", offset, size))
        assert found == whole[offset : offset + size]
    assert does(tmp_path, ssh_server, tree, lambda files: files.read(f"{tree}/in", 7, 4)) == b"line"


def test_a_file_is_described(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    seen = does(tmp_path, ssh_server, tree, lambda files: files.info(f"{tree}/app.log"))
    status = (tree / "app.log").stat()
    assert (seen.kind, seen.size, seen.mode, seen.owner, seen.group) == ("file", 14, status.st_mode, "root", "root")
    assert seen.modified == int(status.st_mtime) and seen.path == f"{tree}/app.log" and seen.link_target is None
    assert does(tmp_path, ssh_server, tree, lambda files: files.info(f"{tree}/in")).link_target == f"{tree}/app.log"
    assert does(tmp_path, ssh_server, tree, lambda files: files.info(str(tree))).kind == "directory"


def test_a_directory_is_listed_by_name_with_links_as_links(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    seen = does(tmp_path, ssh_server, tree, lambda files: files.list(str(tree)))
    kinds = {Path(one.path).name: one.kind for one in seen}
    assert list(kinds) == sorted(kinds) and len(kinds) == 11
    assert kinds["bad\\xff\nname"] == "file"
    assert (kinds["app.log"], kinds["sub"], kinds["out"], kinds["pipe"]) == ("file", "directory", "link", "other")
    targets = {Path(one.path).name: one.link_target for one in seen}
    assert targets["out"] == str(tree.parent / "allowed-not" / "secret") and targets["app.log"] is None


def test_a_huge_directory_is_cut(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    for number in range(10_050):
        (tree / "sub" / f"{number}").touch()
    assert len(does(tmp_path, ssh_server, tree, lambda files: files.list(f"{tree}/sub"))) == 10_000


@pytest.mark.parametrize("method", ["info", "read", "list"])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("out", PathOutside),
        ("sub/up", PathOutside),
        ("sub/up/secret", PathOutside),
        ("../allowed-not/secret", PathOutside),
        ("proc/environ", PathOutside),
        ("proc/root/etc/passwd", PathOutside),
        ("null", PathOutside),
        ("loop", TargetError),
        ("gone", NotFound),
        ("app.lgo", NotFound),
        ("app.log/x", TargetError),
    ],
)
def test_what_leads_out_or_nowhere(
    tmp_path: Path, ssh_server: SshServer, tree: Path, method: str, name: str, error: type[Exception]
) -> None:
    arguments = (0, 10) if method == "read" else ()
    with pytest.raises(error) as caught:
        does(tmp_path, ssh_server, tree, lambda files: getattr(files, method)(f"{tree}/{name}", *arguments))
    assert isinstance(caught.value, TargetError)
    assert "secret" not in str(caught.value.as_dict()).replace(f"{tree}/{name}", "")


def test_near_names_are_told_inside_only(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    with pytest.raises(NotFound) as caught:
        does(tmp_path, ssh_server, tree, lambda files: files.info(f"{tree}/app.lgo"))
    assert "'app.log'" in str(caught.value.hint)
    with pytest.raises(TargetError) as outside:
        does(tmp_path, ssh_server, tree, lambda files: files.info(f"{tree}/../allowed-not/secrte"))
    assert "'secret'" not in str(outside.value.as_dict())


def test_a_pipe_is_refused_without_hanging(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    started = time.monotonic()
    with pytest.raises(Unsupported, match="is a pipe"):
        does(tmp_path, ssh_server, tree, lambda files: files.read(f"{tree}/pipe", 0, 10))
    assert time.monotonic() - started < 5


def test_a_folder_is_not_read_and_a_file_not_listed(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    with pytest.raises(Unsupported, match="is a directory"):
        does(tmp_path, ssh_server, tree, lambda files: files.read(f"{tree}/sub", 0, 10))
    with pytest.raises(Unsupported, match="not a directory"):
        does(tmp_path, ssh_server, tree, lambda files: files.list(f"{tree}/app.log"))


def test_what_the_account_may_not_read(tmp_path: Path, ssh_servers: SshServers) -> None:
    folder = ssh_servers.client_key.parent / "shared"
    folder.mkdir(mode=0o755)
    (folder / "private").write_text("x")
    (folder / "private").chmod(0o600)
    server = ssh_servers.start(username=ssh_servers.account("sh"))
    with pytest.raises(PrivilegeRequired, match="may not read"):
        does(tmp_path, server, folder, lambda files: files.read(f"{folder}/private", 0, 10))


def test_an_allowed_path_may_itself_be_a_link(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tree)
    assert does(tmp_path, ssh_server, link, lambda files: files.read(f"{link}/app.log", 0, 6)) == b"line 1"


def test_a_swap_under_the_readers_feet_never_leads_out(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    """A folder that turns into a link and back while it is read: answers are the file, or a refusal."""
    (tree / "sub" / "log").write_text("inside")
    other = tree.parent / "allowed-not"
    (other / "log").write_text("secret")

    async def work(files: Any) -> None:
        stop = False

        def swap() -> None:
            while not stop:
                (tree / "sub").rename(tree / "aside")
                (tree / "sub").symlink_to(other)
                (tree / "sub").unlink()
                (tree / "aside").rename(tree / "sub")

        swapping = asyncio.create_task(asyncio.to_thread(swap))
        seen = set()
        for _ in range(300):
            try:
                seen.add(await files.read(f"{tree}/sub/log", 0, 10))
            except TargetError as error:
                seen.add(error.code)
        stop = True
        await swapping
        assert seen <= {b"inside", "path_outside", "not_found"}, seen

    does(tmp_path, ssh_server, tree, work)


@pytest.mark.parametrize("does_it", ["read", "list"])
def test_a_swap_between_judging_and_opening_is_noticed(
    tmp_path: Path, ssh_server: SshServer, tree: Path, monkeypatch: pytest.MonkeyPatch, does_it: str
) -> None:
    """Just after the path was found to be inside, its folder becomes a link that leads out, and stays one."""
    (tree / "sub" / "log").write_text("inside")
    other = tree.parent / "allowed-not"
    (other / "log").write_text("secret")
    found = SshFiles._found

    async def found_and_swapped(files: SshFiles, *arguments: Any) -> Any:
        answer = await found(files, *arguments)
        (tree / "sub").rename(tree / "aside")
        (tree / "sub").symlink_to(other)
        return answer

    monkeypatch.setattr(SshFiles, "_found", found_and_swapped)
    asked = methodcaller("read", f"{tree}/sub/log", 0, 9) if does_it == "read" else methodcaller("list", f"{tree}/sub")
    with pytest.raises(PathOutside, match="changed"):
        does(tmp_path, ssh_server, tree, asked)


def test_what_comes_out_differently_a_second_time_is_not_told(
    tmp_path: Path, ssh_server: SshServer, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who swaps a file there and back within one look wins that look, but not all of them."""
    once, looks = SshFiles._read_once, iter([b"secret"])

    async def swapped(files: SshFiles, *arguments: Any) -> bytes:
        return next(looks, None) or await once(files, *arguments)

    monkeypatch.setattr(SshFiles, "_read_once", swapped)
    tree.chmod(0o777)
    with pytest.raises(PathOutside, match="changed"):
        does(tmp_path, ssh_server, tree, lambda files: files.read(f"{tree}/app.log", 0, 6))
    assert does(tmp_path, ssh_server, tree, lambda files: files.read(f"{tree}/app.log", 0, 6)) == b"line 1"


def test_what_only_root_may_rename_is_read_once(
    tmp_path: Path, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, looks = SshFiles._read_once, list[str]()

    async def counted(files: SshFiles, *arguments: Any) -> bytes:
        looks.append("look")
        return await once(files, *arguments)

    monkeypatch.setattr(SshFiles, "_read_once", counted)
    folder = Path("/etc")
    assert does(tmp_path, ssh_server, folder, lambda files: files.read("/etc/passwd", 0, 4)) == b"root"
    assert len(looks) == 1


def test_a_growing_file_a_name_in_nfd_and_a_socket(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    tree.chmod(0o777)
    decomposed = unicodedata.normalize("NFD", "caf\u00e9")
    (tree / decomposed).write_text("NFD")
    made = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    os.chdir(tree)  # a socket's path holds 108 characters
    try:
        made.bind("socket")
    finally:
        os.chdir(before)
        made.close()

    async def work(files: Any) -> None:
        assert await files.read(f"{tree}/{decomposed}", 0, 10) == b"NFD"
        with pytest.raises(NotFound):
            await files.read(f"{tree}/caf\u00e9", 0, 10)
        with pytest.raises(Unsupported):
            await files.read(f"{tree}/socket", 0, 10)
        with (tree / "app.log").open("a") as log:
            for number in range(30):
                log.write(f"{number}\n")
                log.flush()
                assert (await files.read(f"{tree}/app.log", 0, 4096)).endswith(f"{number}\n".encode())

    does(tmp_path, ssh_server, tree, work)


def test_one_file_may_be_all_that_is_allowed(tmp_path: Path, ssh_server: SshServer, tree: Path) -> None:
    only = tree / "app.log"
    assert does(tmp_path, ssh_server, only, methodcaller("read", str(only), 5, 3)) == b"1\nl"
    assert does(tmp_path, ssh_server, only, methodcaller("info", str(only))).kind == "file"
    for call in (methodcaller("read", f"{tree}/big.log", 0, 9), methodcaller("list", str(tree))):
        with pytest.raises(PathOutside):
            does(tmp_path, ssh_server, only, call)
