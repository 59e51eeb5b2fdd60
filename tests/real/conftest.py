"""Fixtures of real parts, for every test below."""

from tests.real.appliance import debian
from tests.real.assistant import home
from tests.real.engine import containers, engine, image
from tests.real.engines import engines
from tests.real.gitserver import repositories
from tests.real.machine import machine
from tests.real.machines import machines
from tests.real.openssh import ssh_server, ssh_servers
from tests.real.registry import registry
from tests.real.stacks import compose_installed, stacks

__all__ = [
    "compose_installed",
    "containers",
    "debian",
    "engine",
    "engines",
    "home",
    "image",
    "machine",
    "machines",
    "registry",
    "repositories",
    "ssh_server",
    "ssh_servers",
    "stacks",
]
