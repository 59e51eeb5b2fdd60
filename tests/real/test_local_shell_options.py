"""What `env` and `latest` of `Shell.run` do on the gateway's own machine."""

from typing import Any

import pytest

from systemmanager.errors import GatewayError, PrivilegeRequired
from systemmanager.executors.bounded import finished, with_privilege
from systemmanager.executors.local import LocalShell
from systemmanager.ports import Output
from systemmanager.request import Permit
from tests.support import run, target


def permit(**constraints: Any) -> Permit:
    one = target(constraints=constraints)
    return Permit("call", one, (), None, 10)  # type: ignore[arg-type]


def test_env_reaches_the_program() -> None:
    output = run(LocalShell(permit()).run("printenv", "DEBIAN_FRONTEND", env={"DEBIAN_FRONTEND": "noninteractive"}))
    assert output.stdout == "noninteractive\n"


def test_env_is_handed_to_sudo_before_the_command() -> None:
    command = with_privilege(
        ("apt-get", "update"), permit(sudo_policy="limited"), root=False, privileged=True, env={"A": "b"}
    )
    assert command == ("sudo", "-n", "A=b", "--", "apt-get", "update")


def test_a_refused_variable_is_a_matter_of_rights() -> None:
    argv = ("sudo", "-n", "A=b", "--", "apt-get", "update")
    said = "sudo: sorry, you are not allowed to set the following environment variables: A\n"
    with pytest.raises(PrivilegeRequired, match="apt-get"):
        finished(Output(argv, 1, "", said), check=True, partial=False, limit=1024)


def test_latest_keeps_the_end_and_lets_the_program_finish() -> None:
    output = run(LocalShell(permit(max_output_bytes=1024)).run("seq", "1", "200000", latest=True))
    assert output.status == 0
    assert output.truncated
    assert output.stdout.endswith("199999\n200000\n")
    assert len(output.stdout) <= 2048


def test_without_latest_the_same_program_is_ended() -> None:
    with pytest.raises(GatewayError) as caught:
        run(LocalShell(permit(max_output_bytes=1024)).run("seq", "1", "200000"))
    assert caught.value.code == "output_too_large"
