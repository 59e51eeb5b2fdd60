"""Fixtures of real parts, for every test below."""

from tests.real.openssh import ssh_server, ssh_servers

__all__ = ["ssh_server", "ssh_servers"]
