"""The rules, in the order in which their verdicts are shown. A rule is a pure function from Request to Verdict."""

from collections.abc import Callable

from systemmanager.policy.rules.ability import ability
from systemmanager.policy.rules.approval import approval
from systemmanager.policy.rules.capabilities import capabilities
from systemmanager.policy.rules.concurrency import concurrency
from systemmanager.policy.rules.freeze import freeze
from systemmanager.policy.rules.hardening import hardening
from systemmanager.policy.rules.hosts import hosts
from systemmanager.policy.rules.images import images
from systemmanager.policy.rules.paths import paths
from systemmanager.policy.rules.rate import rate
from systemmanager.policy.rules.scopes import scopes
from systemmanager.policy.rules.stacks import stacks
from systemmanager.policy.rules.sudo import sudo
from systemmanager.policy.rules.taint import taint
from systemmanager.policy.rules.units import units
from systemmanager.request import Request, Verdict

RULES: tuple[Callable[[Request], Verdict], ...] = (
    scopes,
    ability,
    capabilities,
    paths,
    units,
    hosts,
    images,
    stacks,
    sudo,
    freeze,
    hardening,
    concurrency,
    rate,
    taint,
    approval,
)
