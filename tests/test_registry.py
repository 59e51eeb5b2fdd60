"""targets.yaml: what loads, what is refused and where, secrets, and what a reload changed."""

from pathlib import Path
from typing import Any

import pytest

from systemmanager import registry
from systemmanager.errors import ConfigError
from systemmanager.registry import Registry

TARGETS = Path(__file__).parent / "targets"
EXAMPLES = sorted((TARGETS / "examples").glob("*.yaml"))


def load(path: Path, text: str, environment: dict[str, str] | None = None) -> Registry:
    file = path / "targets.yaml"
    file.write_text(text)
    return registry.load(file, environment or {})


def problems(path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, text)
    return [str(problem).removeprefix(f"{path}/") for problem in caught.value.problems]


def document(*targets: str) -> str:
    """A targets.yaml with these targets, each given as its lines."""
    return 'version: "1.0"\ntargets:\n' + "".join(targets)


def ssh(id: str = "web", connection: str = "{host: 10.0.0.1, username: admin}", more: str = "") -> str:
    head = f"  {id}:\n    id: {id}\n    executor: ssh\n    capabilities: [system:read]\n"
    return f"{head}    connection: {connection}\n{more}"


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_docker_engine_is_on_this_machine_or_on_another(kind: str, tmp_path: Path) -> None:
    engine = "{id: e, type: %s, executor: docker, capabilities: [], connection: {socket_path: /run/docker.sock}}"
    assert load(tmp_path, document(f"  e: {engine % kind}\n")).targets["e"].type == kind


@pytest.mark.parametrize("key", [None, "/path/to/private/key"], ids=["without the key", "with the key"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_published_example_loads(example: Path, key: str | None) -> None:
    loaded = registry.load(example, {"SSH_KEY_WEB_SERVER_01": key} if key else {})
    assert list(loaded.targets)[:2] == ["local", "web-server-01"]
    assert set(loaded.faults) == (set() if key else {"web-server-01"})
    web: Any = loaded.targets["web-server-01"]
    assert web.connection.host == "192.168.1.100" and web.connection.port == 22
    assert web.connection.key_path == key or "SSH_KEY_WEB_SERVER_01" in loaded.faults["web-server-01"]


def test_the_published_examples_are_there() -> None:
    assert len(EXAMPLES) == 3


def test_every_key_that_a_target_can_have_loads() -> None:
    secrets = {"DB_KEY": "/keys/db", "API_TOKEN": "tok-123456789", "PW": "pass-123456789", "PIN": "SHA256:" + "A" * 43}
    loaded = registry.load(TARGETS / "everything.yaml", secrets)
    assert not loaded.faults
    assert loaded.secrets >= {"tok-123456789", "pass-123456789"}
    database: Any = loaded.targets["db-01"]
    assert (database.connection.port, database.connection.jump) == (2222, "bastion")
    assert database.constraints.ports == (5432, "8000-8999") and database.constraints.sudo_policy == "limited"
    assert [target.id for target in loaded.route(database)] == ["bastion"]
    assert database.offers == {"system:read", "container:write", "stack:admin", "network:read"}


REFUSED: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["targets.yaml:1:1: must hold `version` and `targets`"]),
    "list": ("[a]", ["targets.yaml:1:1: must hold `version` and `targets`"]),
    "unknown key at the top": (
        document(ssh()) + "target: {}\n",
        ["targets.yaml:8:1: target: unknown key; did you mean 'targets'?"],
    ),
    "unknown key of a target": (
        document(ssh(more="    metdata: {}\n")),
        ["targets.yaml:8:5: targets.web.metdata: unknown key; did you mean 'metadata'?"],
    ),
    "unknown key of a connection": (
        document(ssh(connection="{host: h, username: u, hostkey: x}")),
        ["targets.yaml:7:40: targets.web.connection.hostkey: unknown key; did you mean 'host_key'?"],
    ),
    "unknown key of constraints": (
        document(ssh(more="    constraints: {timout: 3}\n")),
        ["targets.yaml:8:19: targets.web.constraints.timout: unknown key; did you mean 'timeout'?"],
    ),
    "unknown key of metadata": (
        document(ssh(more="    metadata: {tag: [a]}\n")),
        ["targets.yaml:8:16: targets.web.metadata.tag: unknown key; did you mean 'tags'?"],
    ),
    "unknown key of auth": (
        document(
            "  api: {id: api, executor: http, capabilities: [], connection: {base_url: 'http://h', auth: "
            "{type: bearer, token: t, tokn: u}}}\n"
        ),
        ["targets.yaml:3:118: targets.api.connection.auth.tokn: unknown key; did you mean 'token'?"],
    ),
    "unknown executor": (
        "version: '1.0'\ntargets:\n  a: {id: a, executor: shh, capabilities: []}\n",
        [
            "targets.yaml:3:3: targets.a.connection: is missing",
            "targets.yaml:3:14: targets.a.executor: must be one of 'local', 'ssh', 'docker', 'http'; did you mean",
        ],
    ),
    "an unknown executor hides no other mistake": (
        document(ssh(connection="{host: h, username: u, hostkey: x}").replace("ssh", "shs").replace("system:r", "r")),
        [
            "targets.yaml:5:5: targets.web.executor: must be one of",
            "targets.yaml:6:20: targets.web.capabilities.0: unknown scope or capability 'read",
            "targets.yaml:7:40: targets.web.connection.hostkey: unknown key; did you mean 'host_key'?",
        ],
    ),
    "a missing executor hides no other mistake": (
        document(ssh(connection="{host: h, username: u, prt: 1}").replace("    executor: ssh\n", "")),
        [
            "targets.yaml:3:3: targets.web.executor: is missing",
            "targets.yaml:6:40: targets.web.connection.prt: unknown key; did you mean 'port'?",
        ],
    ),
    "a misspelt key of the executor is the executor": (
        document(ssh(connection="{hst: x, username: y}").replace("executor", "exector")),
        [
            "targets.yaml:3:3: targets.web.executor: is missing",
            "targets.yaml:5:5: targets.web.exector: unknown key; did you mean 'executor'?",
            "targets.yaml:7:5: targets.web.connection.host: is missing",
            "targets.yaml:7:18: targets.web.connection.hst: unknown key; did you mean 'host'?",
        ],
    ),
    "no targets": ("version: '1.0'\ntargets:\n", ["targets.yaml:2:1: targets: must map ids to targets"]),
    "remote over ssh called local": (
        document(ssh(more="    type: local\n")),
        ["targets.yaml:8:5: targets.web.type: input should be 'remote'"],
    ),
    "no executor": (
        "version: '1.0'\ntargets:\n  a: {id: a, capabilities: []}\n",
        ["targets.yaml:3:3: targets.a.executor: is missing"],
    ),
    "unknown capability": (
        "version: '1.0'\ntargets:\n  a: {id: a, executor: local, capabilities: [system:raed]}\n",
        [
            "targets.yaml:3:46: targets.a.capabilities.0: unknown scope or capability 'system:raed'. "
            "Did you mean 'system:read' or 'system:write' or 'system:admin'?"
        ],
    ),
    "wildcard capability": (
        "version: '1.0'\ntargets:\n  a: {id: a, executor: local, capabilities: ['container:*']}\n",
        ["targets.yaml:3:46: targets.a.capabilities.0: unknown scope or capability 'container:*'"],
    ),
    "id that is not the key": (
        document(ssh().replace("id: web", "id: wbe")),
        ["targets.yaml:4:5: targets.web.id: is 'wbe', but its key is 'web'"],
    ),
    "version as a number": ("version: 1.0\ntargets: {}\n", ["targets.yaml:1:1: version: input should be '1.0'"]),
    "no connection": (
        "version: '1.0'\ntargets:\n  a: {id: a, executor: ssh, capabilities: []}\n",
        ["targets.yaml:3:3: targets.a.connection: is missing"],
    ),
    "wrong type": (
        document(ssh(connection="[h]")),
        ["targets.yaml:7:5: targets.web.connection: must hold keys with values"],
    ),
    "boolean as a number": (
        document(ssh(more="    constraints: {timeout: true}\n")),
        ["targets.yaml:8:19: targets.web.constraints.timeout: is a number, not a boolean"],
    ),
    "text as a list": (
        document(ssh(more="    constraints: {paths: /var/log}\n")),
        ["targets.yaml:8:19: targets.web.constraints.paths: must be a list"],
    ),
    "broken CIDR": (
        document(ssh(more="    constraints: {hosts: [10.0.0.0/33]}\n")),
        ["targets.yaml:8:27: targets.web.constraints.hosts.0: is no CIDR block"],
    ),
    "port range backwards": (
        document(ssh(more="    constraints: {ports: [9000-8000]}\n")),
        ["targets.yaml:8:27: targets.web.constraints.ports.0: "],
    ),
    "no pin": (
        document(ssh(connection="{host: h, username: u, host_key: 'aa:bb'}")),
        ["targets.yaml:7:40: targets.web.connection.host_key: must be a SHA256:... fingerprint"],
    ),
    "host that is an option": (
        document(ssh(connection="{host: '-oProxyCommand=x', username: u}")),
        ["targets.yaml:7:18: targets.web.connection.host: "],
    ),
    "plain Docker over TCP": (
        "version: '1.0'\ntargets:\n  a: {id: a, executor: docker, capabilities: [], connection: "
        "{host: 'tcp://10.0.0.1:2375', tls_verify: false}}\n",
        ["targets.yaml:3:50: targets.a.connection: tls_verify: false is accepted for a loopback address only"],
    ),
    "Docker over TLS without certificates": (
        "version: '1.0'\ntargets:\n  a: {id: a, executor: docker, capabilities: [], connection: {host: 'tcp://h:2376'}}\n",
        ["targets.yaml:3:50: targets.a.connection: host needs cert_path"],
    ),
    "URL with credentials": (
        "version: '1.0'\ntargets:\n  a: {id: a, executor: http, capabilities: [], connection: {base_url: 'http://u:p@h'}}\n",
        ["targets.yaml:3:61: targets.a.connection.base_url: must look like https://host"],
    ),
    "jump to nowhere": (
        document(ssh("bastion"), ssh(connection="{host: h, username: u, jump: basteon}")),
        ["targets.yaml:12:40: targets.web.connection.jump: no SSH target 'basteon'. Did you mean 'bastion'?"],
    ),
    "jump in a circle": (
        document(
            ssh("a", connection="{host: h, username: u, jump: b}"),
            ssh("b", connection="{host: h, username: u, jump: a}"),
        ),
        [
            "targets.yaml:7:40: targets.a.connection.jump: leads back to itself",
            "targets.yaml:12:40: targets.b.connection.jump: leads back to itself",
        ],
    ),
    "several at once": (
        "version: '1.0'\ntargets:\n  a: {id: b, executor: ssh, colour: no}\n  c: 3\n",
        [
            "targets.yaml:3:3: targets.a.capabilities: is missing",
            "targets.yaml:3:3: targets.a.connection: is missing",
            "targets.yaml:3:7: targets.a.id: is 'b', but its key is 'a'",
            "targets.yaml:3:37: YAML reads this value as bool",
            "targets.yaml:4:3: targets.c: must hold keys with values",
        ],
    ),
}


@pytest.mark.parametrize(("text", "wanted"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused_with_its_place(tmp_path: Path, text: str, wanted: list[str]) -> None:
    found = problems(tmp_path, text)
    assert len(found) == len(wanted), found
    for line, beginning in zip(found, wanted, strict=True):
        assert line.startswith(beginning), found


def test_no_message_repeats_a_secret(tmp_path: Path) -> None:
    text = document(
        "  a: {id: a, executor: http, capabilities: [], connection: {base_url: 'http://h', auth: {type: bearer, "
        "token: [hunter2hunter2]}}}\n",
        ssh(connection="{host: h, username: u, passphrase: {x: hunter2hunter2}, port: hunter2hunter2}"),
    )
    assert "hunter2" not in "\n".join(problems(tmp_path, text))


# --- ${NAME} ---------------------------------------------------------------------------------------------------------

UNRESOLVED = {
    "key": "{host: h, username: u, key_path: '${GONE}'}",
    "host": "{host: '${GONE}', username: u}",
    "part of a host": "{host: 'db.${GONE}', username: u}",
    "user": "{host: h, username: '${GONE}'}",
    "port": "{host: h, username: u, port: '${GONE}'}",
    "pin": "{host: h, username: u, host_key: '${GONE}'}",
    "two": "{host: '${GONE}', username: '${AWAY}'}",
}


@pytest.mark.parametrize("connection", UNRESOLVED.values(), ids=UNRESOLVED)
def test_an_unresolved_name_is_the_fault_of_its_target_alone(tmp_path: Path, connection: str) -> None:
    loaded = load(tmp_path, document(ssh("web", connection), ssh("db")))
    assert list(loaded.targets) == ["web", "db"]
    assert set(loaded.faults) == {"web"} and "${" in loaded.faults["web"]


def test_an_unresolved_name_elsewhere_is_one_target_s_fault_too(tmp_path: Path) -> None:
    text = document(
        "  api: {id: api, executor: http, capabilities: [], connection: {base_url: '${GONE}', auth: "
        "{type: bearer, token: '${AWAY}'}}}\n",
        "  engine: {id: engine, executor: docker, capabilities: [], connection: {host: '${GONE}', cert_path: /c}}\n",
        ssh(),
    )
    loaded = load(tmp_path, text)
    assert set(loaded.faults) == {"api", "engine"} and list(loaded.targets) == ["api", "engine", "web"]


def test_an_unresolved_name_hides_no_other_problem(tmp_path: Path) -> None:
    found = problems(tmp_path, document(ssh(connection="{host: '${GONE}', username: u, prot: 3}")))
    assert found == ["targets.yaml:7:48: targets.web.connection.prot: unknown key; did you mean 'port'?"]


def test_an_empty_variable_resolves_nothing(tmp_path: Path) -> None:
    loaded = load(tmp_path, document(ssh(connection="{host: h, username: u, key_path: '${KEY}'}")), {"KEY": ""})
    assert set(loaded.faults) == {"web"}


def test_who_is_reached_through_a_target_at_fault_is_at_fault(tmp_path: Path) -> None:
    text = document(
        ssh("edge", "{host: h, username: u, key_path: '${GONE}'}"),
        ssh("inner", "{host: h, username: u, jump: edge}"),
        ssh("innermost", "{host: h, username: u, jump: inner}"),
        ssh("other"),
    )
    loaded = load(tmp_path, text)
    assert set(loaded.faults) == {"edge", "inner", "innermost"}
    assert "jump host 'edge'" in loaded.faults["innermost"]


def test_a_credential_comes_before_the_environment_and_is_redacted(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "KEY").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbg\n-----END OPENSSH PRIVATE KEY-----\n")
    (credentials / "WHO").write_text("deploy\n")
    environment = {"CREDENTIALS_DIRECTORY": str(credentials), "KEY": "/elsewhere", "WHO": "nobody", "HOST": "h1"}
    text = document(ssh(connection="{host: '${HOST}', username: '${WHO}', key_path: '${KEY}'}"))
    loaded = load(tmp_path, text, environment)
    web: Any = loaded.targets["web"]
    assert web.connection.key_path.startswith("-----BEGIN") and web.connection.host == "h1"
    assert web.connection.key_path in loaded.secrets
    assert web.connection.username == "deploy" and "deploy" not in loaded.secrets, "a user name is no secret"


def test_the_value_of_a_name_is_not_resolved_again(tmp_path: Path) -> None:
    connection = "{host: h, username: u, key_path: '${A}'}"
    loaded = load(tmp_path, document(ssh(connection=connection)), {"A": "${B}", "B": "/key"})
    web: Any = loaded.targets["web"]
    assert web.connection.key_path == "${B}"


# --- Reload ----------------------------------------------------------------------------------------------------------


def test_a_reload_says_what_was_added_changed_and_removed(tmp_path: Path) -> None:
    key = "{host: h, username: u, key_path: '${KEY}'}"
    older = load(tmp_path, document(ssh("same"), ssh("gone"), ssh("moved"), ssh("key", key)), {"KEY": "/a"})
    moved = ssh("moved", "{host: 10.0.0.9, username: admin}")
    newer = load(tmp_path, document(ssh("same"), moved, ssh("fresh"), ssh("key", key)), {"KEY": "/b"})
    assert older.changes(newer) == {"added": ["fresh"], "changed": ["key", "moved"], "removed": ["gone"]}
    assert older.version != newer.version
    assert newer.changes(newer) == {"added": [], "changed": [], "removed": []}


def test_a_file_of_two_thousand_targets_is_no_wait(tmp_path: Path) -> None:
    loaded = load(tmp_path, document(*(ssh(f"web-{number}") for number in range(2000))))
    assert len(loaded.targets) == 2000
