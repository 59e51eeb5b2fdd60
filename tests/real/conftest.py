"""Fixtures of real parts, for every test below."""

from tests.real.engine import containers, engine, image
from tests.real.machine import machine
from tests.real.openssh import ssh_server, ssh_servers
from tests.real.registry import registry

__all__ = ["containers", "engine", "image", "machine", "registry", "ssh_server", "ssh_servers"]
