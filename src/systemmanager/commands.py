"""What the commands of the command line do. Imported when a command runs, so that `--help` stays quick."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop
from rich.markup import escape
from rich.progress import Progress, TextColumn

import systemmanager.operations  # noqa: F401  fills the catalogue
from systemmanager import freezing, logs, policyfile, registry, replies, terminal
from systemmanager.audit.record import Record
from systemmanager.errors import ApprovalRefused, ApprovalRequired, ConfigError, Problem, UnknownTool, did_you_mean
from systemmanager.journal import audit_log
from systemmanager.operation import CATALOGUE
from systemmanager.redaction import visible
from systemmanager.request import Request
from systemmanager.selectors import selector
from systemmanager.settings import Settings, State, prepare_state

out, err = terminal.console(), terminal.console(stderr=True)


def serve(given: Settings, *, announce: bool) -> None:
    """Serve HTTP until a signal. Raises `ConfigError`."""
    logs.configure(given.log_level)
    uvloop.run(_serve(given, announce))


async def _serve(given: Settings, announce: bool) -> None:
    from systemmanager.server import app, http, systemd
    from systemmanager.server.auth import modes

    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(app.running(given))
        switched_on = modes.authentication(given, running.state, running.gateway.degraded)
        authentication = await stack.enter_async_context(switched_on)
        if authentication.tokens is not None:
            running.gateway.revoked = authentication.tokens.revoked
        server = running.server(app.caller_of(running.gateway, authentication))
        running.reload_on_hangup()

        def ready(port: int) -> None:
            url = f"http://{given.host}:{port}/mcp"
            logs.log.info(
                "ready", url=url, targets=len(running.gateway.registry.targets), audit=str(running.state.audit_log)
            )
            systemd.ready(running.status())
            if announce and authentication.tokens is not None:
                terminal.announce(err, url, *_first_token(given, running.state))

        try:
            async with running.open(serves="http", host=given.host, port=given.port), systemd.watched():
                await http.serve(server, running.gateway, given, authentication, ready)
        except OSError as error:
            where = f"MCP_HOST={given.host}, MCP_PORT={given.port}"
            where += f", MCP_SOCKET={given.socket}" if given.socket is not None else ""
            raise ConfigError([Problem(where, f"can't listen there: {error.strerror or error}")]) from error


def _first_token(given: Settings, state: State) -> tuple[str, str]:
    token = _mint(given, state, "first-client", "readonly,network:diag", "30d", None)
    return token, "readonly and network:diag, 30 days"


def stdio(given: Settings) -> None:
    """Serve standard input and output until it ends."""
    logs.configure(given.log_level)
    asyncio.run(_stdio(given))


async def _stdio(given: Settings) -> None:
    from systemmanager.server import app
    from systemmanager.server import stdio as server_stdio
    from systemmanager.server.caller import Caller

    async with app.running(given) as running:
        server = running.server(Caller(app.operator, None))
        running.reload_on_hangup()
        async with running.open(serves="stdio"):
            await server_stdio.serve(server)


def check(path: Path | None, policy: Path | None) -> None:
    """Print the targets and the grants of files as tables. Raises `ConfigError`; exits 1 when a target lacks a secret.

    The problems of both files are told at once.
    """
    problems: list[Problem] = []
    loaded, granted = registry.builtin(), policyfile.BUILTIN
    try:
        loaded = registry.builtin() if path is None else registry.load(path)
    except ConfigError as error:
        problems += error.problems
    try:
        granted = policyfile.BUILTIN if policy is None else policyfile.load(policy)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    out.print(terminal.targets_table(loaded))
    if granted.grants:
        out.print(terminal.grants_table(granted, loaded))
    for id, why in loaded.faults.items():
        print(visible(f"{loaded.source}: targets.{id}: {why}"), file=sys.stderr)
    sys.exit(1 if loaded.faults else 0)


def tools(name: str | None) -> None:
    if name is None:
        terminal.print_tools(out, list(CATALOGUE.values()))
        out.print("\n[dim]systemmanager tools NAME says what one needs and takes.[/dim]")
    elif name in CATALOGUE:
        terminal.print_tool(out, CATALOGUE[name])
    else:
        raise UnknownTool(f"there is no tool {name!r}", hint=did_you_mean(name, CATALOGUE))


def mint(given: Settings, agent: str, scopes: str, ttl: str, targets: str | None) -> None:
    if "token" not in given.auth_modes:
        raise ConfigError([Problem("SYSTEMMANAGER_AUTH_MODE", "has no token: the gateway would not accept one")])
    try:
        token = _mint(given, prepare_state(given), agent, scopes, ttl, targets)
    except ValueError as error:
        raise ConfigError([Problem("token mint", str(error))]) from error
    if sys.stdout.isatty():
        out.print(f"[dim]Token of {agent}, {scopes}, {ttl}; it is shown once:[/dim]")
    print(token)


def _mint(given: Settings, state: State, agent: str, scopes: str, ttl: str, targets: str | None) -> str:
    from systemmanager.server.auth import ledger, modes, tokens

    names = [name.strip() for name in scopes.split(",") if name.strip()]
    token, made = tokens.mint(modes.keys_of(given, state), agent, names, tokens.duration(ttl), targets)
    assert made.id is not None and made.expires_at is not None
    held = " ".join(sorted(scope for grant in made.limits or () for scope in grant.scopes))
    modes.ledger_of(state).add(ledger.Minted(made.id, agent, held, targets, time.time(), made.expires_at))
    _event(given, state, "token mint", {"id": made.id, "agent": agent, "scopes": names, "ttl": ttl, "targets": targets})
    return token


def inspect(given: Settings, token: str) -> None:
    """Print what a token of this gateway says; exits 1 with the reason when it is not accepted."""
    from systemmanager.server.auth import identity, modes, tokens

    state = prepare_state(given)
    keys = modes.keys_of(given, state)
    try:
        claims = tokens.claims_of(keys, token)
        print(json.dumps(claims, indent=2))
        if modes.ledger_of(state).check(str(tokens.verify(keys, token).id)):
            raise tokens.BadToken("is revoked")
    except identity.Refused as error:
        raise ConfigError([Problem("token", str(error))]) from error


def revoke(given: Settings, ids: Sequence[str], agent: str | None, token: str | None) -> None:
    """Revoke tokens by id, all of an agent, or one by itself; running gateways refuse them within seconds."""
    from systemmanager.server.auth import modes, tokens

    state = prepare_state(given)
    book, latest = modes.ledger_of(state), time.time() + tokens.MOST_TTL
    try:
        if token is not None:
            ids = (*ids, str(tokens.claims_of(modes.keys_of(given, state), token)["jti"]))
        for id in ids:
            if not tokens.ID.fullmatch(id):
                raise ValueError(f"{id[:40]!r} is no id of a token: token list shows them")
    except ValueError as error:
        raise ConfigError([Problem("token revoke", str(error))]) from error
    done = [book.revoke(id, latest) for id in ids]
    done += book.revoke_subject(agent) if agent is not None else []
    for one in done:
        print(f"{one.id} {one.subject or '(not minted here)'} is revoked", flush=True)
        _event(given, state, "token revoke", {"id": one.id, "agent": one.subject or None})


def minted(given: Settings) -> None:
    """The tokens that have not expired: a table on a terminal, else JSON lines."""
    from systemmanager.server.auth import modes

    found = modes.ledger_of(prepare_state(given)).all()
    if out.is_terminal:
        out.print(terminal.tokens_table(map(asdict, found)))
        return
    for one in found:
        print(json.dumps(asdict(one)))


def _event(given: Settings, state: State, name: str, details: dict[str, Any]) -> None:
    log = audit_log(given, state)
    try:
        log.append_now(Record("event", "", name, f"local:{os.getuid()}", arguments=details, time=time.time()))
    except OSError as error:
        raise ConfigError([Problem(str(state.audit_log), f"can't be written: {error.strerror}")]) from error
    finally:
        log.close()


def freeze(given: Settings, stop: bool, targets: Sequence[str], **switches: bool) -> None:
    """Freeze or thaw, and say what is frozen then. Raises `ConfigError`, and `UnknownTarget` for a slip of the pen."""
    state = prepare_state(given)
    if stop and targets:
        _known(given, targets)
    try:
        left = freezing.change(
            state.folder, f"local:{os.getuid()}", freeze=stop, targets=tuple(dict.fromkeys(targets)), **switches
        )
    except OSError as error:
        raise ConfigError([Problem(str(state.folder), f"can't be written: {error.strerror}")]) from error
    if out.is_terminal:
        out.print(f"[bold]Frozen:[/bold] {escape(left.parts)}" if left.anything else "Nothing is frozen.")
    else:
        print(json.dumps(asdict(left)))
    given_switches = [name for name, one in switches.items() if one]
    details = {"switches": given_switches, "targets": list(targets), "frozen": left.parts}
    _event(given, state, "freeze" if stop else "thaw", details)


def _known(given: Settings, expressions: Sequence[str]) -> None:
    """Raises `UnknownTarget`: who stops a target must not miss it. A registry that can't be read stops nobody."""
    try:
        known = registry.load(given.targets_config) if given.targets_config else registry.builtin()
    except (ConfigError, OSError):
        for expression in expressions:
            selector(expression)
    else:
        known.select(expressions)


async def call(given: Settings, tool: str, arguments: Mapping[str, Any], *, yes: bool, as_json: bool) -> int:
    """Do one call as the local operator and print its answer; the exit status is 0 when all of it succeeded."""
    from systemmanager.server import app

    logs.configure("ERROR" if given.log_level == "INFO" else given.log_level)
    arguments = read_values(tool, arguments)
    async with app.running(given) as running:
        with Progress(
            *Progress.get_default_columns(),
            TextColumn("{task.fields[last]}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        ) as bar:
            task = bar.add_task(tool, total=None, last="")

            async def progress(done: float, total: int, message: str) -> None:
                bar.update(task, completed=done, total=total, last=message)

            async def approve(requests: Sequence[Request]) -> str:
                bar.stop()
                return await asyncio.to_thread(_approve, requests, yes)

            # Who gives an approval, or waits for one, has asked others: then nobody is asked here.
            here = None if not yes and arguments.keys() & {"approval_id", "approval_wait"} else approve
            reply = await running.gateway.call(app.operator(), tool, arguments, progress=progress, approve=here)
    if as_json:
        print(json.dumps(reply.as_dict(), ensure_ascii=False))
    else:
        replies.print_reply(out, reply)
    return 0 if reply.ok else 1


def read_values(tool: str, words: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the tool means them: a word is a text where the parameter is one, else JSON where it reads as such."""
    operation = CATALOGUE.get(tool)
    properties = operation.arguments.model_json_schema().get("properties", {}) if operation else {}
    values: dict[str, Any] = {}
    for name, word in words.items():
        values[name] = word
        schema = properties.get(name, {})
        kinds = {branch.get("type") for branch in schema.get("anyOf", [schema])}
        if isinstance(word, str) and not ("string" in kinds and kinds <= {"string", "null"}):
            with suppress(ValueError, RecursionError):
                values[name] = json.loads(word)
    return values


def _approve(requests: Sequence[Request], yes: bool) -> str:
    """Who said yes at the terminal. Raises `ApprovalRefused` for their no, `ApprovalRequired` where nobody is there."""
    person = f"{requests[0].principal.subject} at the terminal"
    if yes:
        return person
    if not sys.stdin.isatty():
        raise ApprovalRequired(
            "it needs a person's yes, and nobody was asked: standard input is no terminal",
            hint="Call it at a terminal, or with --yes where a script may say it for you.",
        )
    terminal.print_question(err, requests)
    if err.input("[bold]Do it? \\[y/N] [/bold]").strip().lower() not in ("y", "yes"):
        raise ApprovalRefused("you said no; nothing ran")
    return person


async def explain(given: Settings, asked: dict[str, Any]) -> int:
    from systemmanager.server import app

    logs.configure("ERROR")
    asked = {**asked, "arguments": read_values(asked["tool"], asked["arguments"])}
    async with app.running(given) as running:
        reply = await running.gateway.call(app.operator(), "explain_access", asked)
    replies.print_explanation(out, reply)
    return 0 if reply.ok else 1


def approvals(given: Settings, do: str, id: str = "", *, everything: bool = False, yes: bool = False) -> None:
    """What an operator does with approval requests, by way of the running gateway. Raises `GatewayError`."""
    from systemmanager.approvals import console

    folder = prepare_state(given).runtime
    if do == "list":
        console.list_all(out, folder, everything=everything)
    elif do == "show":
        console.show(out, folder, id)
    else:
        console.answer(out, folder, id, approve=do == "approve", yes=yes)
