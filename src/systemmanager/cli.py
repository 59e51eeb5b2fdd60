"""The command line: serve | stdio | check | call | tools | explain | token | approvals | audit | schema."""

import os
import sys

# fastmcp reads these when it is imported: no .env of the working folder, no banner, no question to a registry.
os.environ |= {
    "FASTMCP_ENV_FILE": os.devnull,
    "FASTMCP_LOG_ENABLED": "false",
    "FASTMCP_CHECK_FOR_UPDATES": "off",
    "FASTMCP_SHOW_SERVER_BANNER": "false",
}

import asyncio
import gc
import json
import signal
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from systemmanager import __version__, ending, settings

app = App(
    name="systemmanager",
    version=__version__,
    help="A control plane gateway between AI assistants and real infrastructure.",
)
token = App(name="token", help="Bearer tokens for HTTP clients.")
audit = App(name="audit", help="What was done: read the audit log.")
approvals = App(name="approvals", help="Calls that wait for a person's yes.")
app.command(token)
app.command(approvals)
app.command(audit)

STATE = ("state_dir", "audit_log", "audit_witness")
KEYS = (*STATE, "base_url", "shared_secret", "previous_secret")
"""Settings that a command needs to find what was done, and to read tokens."""

Words = Annotated[tuple[str, ...], Parameter(show=True)]


def main() -> None:
    """Run one command; an error is one clear message on standard error and exit status 1."""
    if sys.argv[1:2] in (["serve"], ["stdio"]):
        # A SIGHUP while the gateway starts waits until it can reload, and does not end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    gc.set_threshold(100_000)  # imports make no garbage: looking for it among their objects is a sixth of the start
    with ending.told():
        app(print_error=False, exit_on_error=False)


@app.command
def serve(*, announce: bool = False) -> None:
    """Serve MCP over streamable HTTP at http://MCP_HOST:MCP_PORT/mcp until SIGTERM or Ctrl-C.

    Parameters
    ----------
    announce
        Print the address, a fresh token and the JSON block for an MCP client.
    """
    from systemmanager import commands

    commands.serve(settings.read(), announce=announce)


@app.command
def stdio() -> None:
    """Serve MCP on standard input and output, as the local operator."""
    from systemmanager import commands

    commands.stdio(settings.read())


@app.command
def check(path: Path | None = None, *, policy: Path | None = None) -> None:
    """Check a targets.yaml and show its targets; exit status 1 when something is wrong.

    Parameters
    ----------
    path
        The file; default SYSTEMMANAGER_TARGETS_CONFIG.
    policy
        A policy.yaml to check and show; default SYSTEMMANAGER_POLICY_CONFIG.
    """
    from systemmanager import commands

    if path is None or policy is None:
        given = _some("targets_config", "policy_config")
        path, policy = path or given.targets_config, policy or given.policy_config
    commands.check(path, policy)


@app.command
def schema() -> None:
    """Print the JSON Schema of targets.yaml."""
    from systemmanager.target import Document

    print(json.dumps(Document.model_json_schema(), indent=2))


@app.command
def tools(name: str | None = None) -> None:
    """List the tools, or say what one of them does, needs and takes.

    Parameters
    ----------
    name
        One tool.
    """
    from systemmanager import commands

    commands.tools(name)


@app.command
def call(
    tool: str,
    *arguments: str,
    target: str | None = None,
    dry_run: bool = False,
    yes: bool = False,
    json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Call a tool as the local operator: systemmanager call get_top_processes limit=5 --target web-01

    Parameters
    ----------
    tool
        Its name; `systemmanager tools` lists them.
    arguments
        key=value each; a value that reads as JSON is taken as such.
    target
        Target id or selector.
    dry_run
        Only say whether it may run.
    yes
        Approve what needs an approval, without a question.
    json
        Print the whole Reply as JSON.
    """
    from systemmanager import commands

    given = parse_arguments(arguments)
    given |= {"targets": target} if target is not None else {}
    given |= {"dry_run": True} if dry_run else {}
    sys.exit(asyncio.run(commands.call(settings.read(), tool, given, yes=yes, as_json=json)))


@app.command
def explain(tool: str, *arguments: str, target: str = "local") -> None:
    """Say rule by rule whether the local operator may use a tool on a target, and what would allow it."""
    from systemmanager import commands

    asked = {"tool": tool, "target": target, "arguments": parse_arguments(arguments)}
    sys.exit(
        asyncio.run(
            commands.explain(_some(*STATE, "targets_config", "policy_config", "hardening", "require_hardening"), asked)
        )
    )


Target = Annotated[list[str] | None, Parameter(name="--target", negative=())]


@app.command
def freeze(*, writes: bool = False, egress: bool = False, target: Target = None, all: bool = False) -> None:
    """Stop calls now, those that run included: within a second, until `thaw`, whether the gateway runs or not.

    Parameters
    ----------
    writes
        Calls that change something.
    egress
        Whatever reaches beyond its target (diagnostics, pulls, packages, stacks), and HTTP targets.
    target
        Everything on the targets that an id or a selector names; may be given several times.
    all
        Everything but health_check, list_targets and explain_access; so it is without any switch.
    """
    from systemmanager import commands

    commands.freeze(_some(*STATE, "targets_config"), True, target or [], all=all, writes=writes, egress=egress)


@app.command
def thaw(*, writes: bool = False, egress: bool = False, target: Target = None, all: bool = False) -> None:
    """Let calls through again: what the switches name, everything without any."""
    from systemmanager import commands

    commands.freeze(_some(*STATE, "targets_config"), False, target or [], all=all, writes=writes, egress=egress)


@token.command
def mint(*, agent: str, scopes: str = "readonly", ttl: str = "30d", targets: str | None = None) -> None:
    """Make a bearer token. Alone on standard output when that is no terminal.

    Parameters
    ----------
    agent
        Who it is for; the audit log names it.
    scopes
        By comma; bundles: readonly, admin.
    ttl
        15m to 90d.
    targets
        Selector that narrows where it counts.
    """
    from systemmanager import commands

    commands.mint(_some(*KEYS, "auth_modes"), agent, scopes, ttl, targets)


@token.command
def inspect(text: str | None = None) -> None:
    """Say what a token holds and whether this gateway accepts it.

    Parameters
    ----------
    text
        The token; without it one is read from standard input, where no process list shows it.
    """
    from systemmanager import commands

    commands.inspect(_some(*KEYS), text or sys.stdin.readline().strip())


@token.command
def revoke(*ids: str, agent: str | None = None, stdin: bool = False) -> None:
    """Revoke tokens; running gateways refuse them within 5 seconds, without a restart.

    Parameters
    ----------
    ids
        Ids that `token list` shows.
    agent
        Revoke every token of this agent.
    stdin
        Revoke the token that stands on standard input.
    """
    from systemmanager import commands

    if not ids and agent is None and not stdin:
        print("say which: an id, --agent or --stdin", file=sys.stderr)
        sys.exit(2)
    commands.revoke(_some(*(KEYS if stdin else STATE)), ids, agent, sys.stdin.readline().strip() if stdin else None)


@token.command(name="list")
def list_tokens() -> None:
    """The tokens that have not expired, as JSON lines when standard output is no terminal."""
    from systemmanager import commands

    commands.minted(_some(*STATE))


@approvals.command(name="list")
def list_approvals(*, all: bool = False) -> None:
    """The requests that wait, or are approved and not used yet; JSON lines when standard output is no terminal.

    Parameters
    ----------
    all
        Those of the last week, too.
    """
    from systemmanager import commands

    commands.approvals(_some(*STATE), "list", everything=all)


@approvals.command
def show(id: str) -> None:
    """One request, whole."""
    from systemmanager import commands

    commands.approvals(_some(*STATE), "show", id)


@approvals.command
def approve(id: str, *, yes: bool = False) -> None:
    """Show one request and, after a question, say yes to it: its call may then be made once.

    Parameters
    ----------
    id
        As `approvals list` shows it.
    yes
        Without the question.
    """
    from systemmanager import commands

    commands.approvals(_some(*STATE), "approve", id, yes=yes)


@approvals.command
def deny(id: str) -> None:
    """Say no to one request."""
    from systemmanager import commands

    commands.approvals(_some(*STATE), "deny", id)


@audit.command
def tail(lines: int = 20) -> None:
    """The newest records, oldest of them first."""
    from systemmanager import proof

    proof.audit(_some(*STATE), {}, lines)


@audit.command
def query(
    *,
    call_id: str | None = None,
    tool: str | None = None,
    target: str | None = None,
    subject: str | None = None,
    phase: str | None = None,
    since: str | None = None,
    limit: int = 100,
) -> None:
    """Records that match all given filters, as JSON lines when standard output is no terminal."""
    from systemmanager import proof

    filters = {"call_id": call_id, "tool": tool, "target": target, "subject": subject, "phase": phase, "since": since}
    proof.audit(_some(*STATE), filters, limit)


@audit.command
def verify(
    path: Path | None = None,
    *,
    witness: Path | None = None,
    key: tuple[Path, ...] = (),
    partial: bool = False,
    json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Check that nothing was changed, removed, moved or put in; exit status 1 with the first bad line.

    Parameters
    ----------
    path
        The log; default the gateway's own, with all its segments.
    witness
        File with the checkpoints as they were seen elsewhere; default SYSTEMMANAGER_AUDIT_WITNESS.
    key
        Public key in PEM, several when it was changed; default the gateway's own.
    partial
        Older segments may be elsewhere.
    json
        Print the result as JSON.
    """
    from systemmanager import proof

    sys.exit(proof.verified(_some(*STATE), path, witness, key, partial=partial, as_json=json))


@audit.command
def key() -> None:
    """Print the public key of the log's checkpoints, in PEM."""
    from systemmanager import proof

    proof.public_key(_some(*STATE))


def parse_arguments(words: tuple[str, ...]) -> dict[str, Any]:
    """`key=value` words by key. Exits with status 2 for a word that is none."""
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            print(f"{word!r} is no key=value", file=sys.stderr)
            sys.exit(2)
        arguments[key] = value
    return arguments


def _some(*needed: str) -> settings.Settings:
    """Settings for a command that needs only these: in an emergency nothing else stops it; it is told."""
    given, wrong = settings.some(*needed)
    for problem in wrong:
        print(f"{problem} (not needed for this command)", file=sys.stderr)
    return given
