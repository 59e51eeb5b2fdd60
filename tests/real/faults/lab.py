"""Makes the catalogue's containers on a real engine, waits until each is where it should be, and asks the gateway."""

import datetime
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from docker.errors import APIError, ImageNotFound

from systemmanager.fencing import unfenced
from tests.real.engine import Containers, Engine, root_filesystem, until
from tests.real.faults.catalogue import NODE, PY, Case
from tests.support import OPERATOR, real_gateway, run, target

IMAGE = "systemmanager-faults:2"
WITHIN = 60.0
"""Seconds in which each fault must have happened."""

NEEDED = ("/bin/busybox", PY, NODE, "/usr/sbin/nginx", "/usr/bin/openssl")
SECOND = 1_000_000_000


_MODES = {"secret.key": 0o600, "program": 0o755}


@dataclass(frozen=True)
class Score:
    """What was said of one case."""

    case: Case
    found: dict[str, Any]
    log: str
    state: dict[str, Any]
    seconds: float

    @property
    def causes(self) -> list[str]:
        first = self.found.get("root_cause")
        return [first["cause"], *(one["cause"] for one in self.found.get("other_causes") or [])] if first else []

    @property
    def right(self) -> bool:
        return self.causes[:1] == ([self.case.cause] if self.case.cause else [])

    @property
    def cites(self) -> bool:
        """Whether the cited lines say what the cause is about."""
        cause = self.found.get("root_cause") or {"lines": []}
        rows = self.log.split("\n")
        cited = " ".join(rows[number - 1] for number in cause["lines"])
        return self.case.lines.lower() in cited.lower()


def lacking() -> str | None:
    missing = [path for path in NEEDED if not Path(path).exists()]
    return f"{', '.join(missing)} not installed" if missing else None


def scored(engine: Engine, cases: Sequence[Case], state: Path) -> list[Score]:
    """All of them at once, and then one answer after the other."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, containers(engine) as made:
        names = [_start(made, case, Path(folder)) for case in cases]
        for case, name in zip(cases, names, strict=True):
            _wait(made, case, name)
        return run(_answers(engine, cases, names, state, made))


@contextmanager
def containers(engine: Engine) -> Iterator[Containers]:
    _image(engine)
    made = Containers(engine.client, IMAGE)
    try:
        yield made
    finally:
        if made.names:
            made.clean()


def _image(engine: Engine) -> None:
    """A root with busybox and a few folders; everything else is this machine's /usr, read-only."""
    with suppress(ImageNotFound):
        engine.client.inspect_image(IMAGE)
        return
    engine.client.import_image_from_data(
        root_filesystem(
            {
                "etc/passwd": "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
                "etc/group": "root:x:0:\nnogroup:x:65534:\n",
            },
            {name: f"usr/{name}" for name in ("lib", "lib64")},
            folders=("usr", "tmp", "var/state", "var/log/nginx", "var/lib/nginx", "data", "run"),
        ),
        *IMAGE.split(":"),
    )


def _start(made: Containers, case: Case, folder: Path) -> str:
    options, place = dict(case.options), folder / case.name
    place.mkdir(mode=0o755)
    folder.chmod(0o755)
    for name, text in _files(case).items():
        (place / name).write_text(text)
        (place / name).chmod(_MODES.get(name, 0o644))
    options.pop("signal", None)
    if check := options.pop("healthcheck", None):
        options["healthcheck"] = {
            "Test": check, "Interval": SECOND // 4, "Timeout": SECOND * 2, "Retries": 2, "StartPeriod": 0,
        }  # fmt: skip
    binds = ["/usr:/usr:ro", "/etc/ssl:/etc/ssl:ro", f"{place}:/case:ro"]
    host = {"binds": binds, "network_mode": options.pop("network_mode", "none"), **case.host}
    name = made(case.command, start=False, host=host, environment={"PYTHONUNBUFFERED": "1"}, **options)
    with suppress(APIError):  # those that can't be started say why in their state
        made.client.start(name)
    return name


def _files(case: Case) -> dict[str, str]:
    files = dict(case.files)
    kind = files.pop("tls", None)
    return files | (certificates(kind) if kind else {})


def _wait(made: Containers, case: Case, name: str) -> None:
    def there() -> bool:
        found = made.state(name)
        state, seen = found["State"], made.client.logs(name, tail=50)
        match case.until:
            case "unhealthy":
                return bool(state["Health"]["Status"] == "unhealthy")
            case "restarted":
                return bool(found["RestartCount"] >= 3)
            case "failed to start":
                return bool(state["Error"])
            case "settled":
                checked = state.get("Health", {"Status": "healthy"})["Status"] == "healthy"
                return checked and (bool(seen) or "sleep" in case.command) and _age(state) > 2.5
            case _:
                return bool(state["Status"] == "exited")

    until(there, WITHIN, 0.2)
    if signal := case.options.get("signal"):
        with suppress(APIError):  # it has ended by itself, which will be seen
            made.client.kill(name, signal)
        until(lambda: made.state(name)["State"]["Status"] == "exited", WITHIN)


def _age(state: dict[str, Any]) -> float:
    started = datetime.datetime.fromisoformat(state["StartedAt"][:19] + "+00:00")
    return time.time() - started.timestamp()


async def _answers(
    engine: Engine, cases: Iterable[Case], names: Iterable[str], folder: Path, made: Containers
) -> list[Score]:
    scores = []
    where = target("engine", "docker", connection={"socket_path": engine.socket})
    async with real_gateway(folder, where) as gateway:
        for case, name in zip(cases, names, strict=True):
            started = time.perf_counter()
            arguments = {"name_or_id": name, "target": "engine", "use_ai": False}
            reply = unfenced((await gateway.call(OPERATOR, "analyze_container_logs", arguments)).as_dict())
            took = time.perf_counter() - started
            assert reply["ok"], reply
            log = made.client.logs(name, tail=200).decode(errors="replace")
            state = _seen(made.state(name))
            scores.append(Score(case, reply["results"][0]["data"], log, state, took))
    return scores


def _seen(found: dict[str, Any]) -> dict[str, Any]:
    """The part of an inspection that a diagnosis reads."""
    state = {name: found["State"][name] for name in ("Status", "Running", "ExitCode", "OOMKilled", "Error")}
    if health := found["State"].get("Health"):
        checks = [
            {name: check[name] for name in ("ExitCode", "Output")} for check in health["Log"][-1:] if check["ExitCode"]
        ]
        state["Health"] = {"Status": health["Status"], "FailingStreak": health["FailingStreak"], "Log": checks}
    return {"Name": "/app", "State": state, "RestartCount": found["RestartCount"]}


def certificates(kind: str) -> dict[str, str]:
    """An authority, and a certificate of it: expired, of the future, for another name, or valid."""
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    begins = now + 2 * day if kind == "future" else now - 30 * day
    ends = now - day if kind == "expired" else now + 30 * day
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("Test CA", authority.public_key(), "Test CA", authority, (now - 60 * day, now + 60 * day), None)
    name = "other.test" if kind == "other" else "api.test"
    leaf = _certificate(name, key.public_key(), "Test CA", authority, (begins, ends), name)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"ca.pem": root, "cert.pem": leaf, "key.pem": private.decode()}


def _certificate(
    subject: str,
    key: ec.EllipticCurvePublicKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime.datetime, datetime.datetime],
    host: str | None,
) -> str:
    named = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)]
    builder = x509.CertificateBuilder().subject_name(named[0]).issuer_name(named[1]).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(valid[0]).not_valid_after(valid[1])
    builder = builder.add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    if host is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
