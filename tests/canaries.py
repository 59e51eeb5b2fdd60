"""A thousand planted secrets in twelve forms, made from a seed; and innocent lines that look a little like them."""

import base64
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import ascii_letters, ascii_uppercase, digits
from urllib.parse import quote

SEED = 20_260_131
COUNT = 1000


@dataclass(frozen=True)
class Canary:
    """`text` as it stands somewhere; none of `parts` may ever come out."""

    form: str
    text: str
    parts: tuple[str, ...]


class Maker:
    """Random values of the kinds that secrets have."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, *choices: str) -> str:
        return self._random.choice(choices)

    def pick_canary(self, *choices: tuple[str, str, tuple[str, ...]]) -> Canary:
        return Canary(*self._random.choice(choices))

    def chars(self, alphabet: str, count: int) -> str:
        return "".join(self._random.choices(alphabet, k=count))

    def word(self) -> str:
        """A password: letters and digits, sometimes with the signs that people take."""
        body = self.chars(ascii_letters + digits, self._random.randint(10, 24))
        return "Cn" + body + self.pick("", "", "!", "#1", "$x", "%9", "^", "*", "~k", "+/")

    def plain(self, count: int = 20) -> str:
        return "Cn7" + self.chars(ascii_letters + digits, count - 1)

    def b64(self, count: int) -> str:
        return base64.b64encode(self._random.randbytes(count)).decode()

    def b64url(self, count: int) -> str:
        return base64.urlsafe_b64encode(self._random.randbytes(count)).decode().rstrip("=")


def _env(m: Maker) -> Canary:
    name = m.pick(
        "DB_PASSWORD", "POSTGRES_PASSWORD", "MYSQL_ROOT_PASSWORD", "API_KEY", "SECRET_KEY", "APP_SECRET",
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY", "REDIS_PASSWORD", "PGPASSWORD", "NPM_TOKEN", "SESSION_SECRET", "JWT_SECRET", "DB_PASS",
        "ENCRYPTION_KEY", "MYSQL_PWD", "SMTP_PASSWORD", "CLIENT_SECRET", "VAULT_TOKEN", "PASSPHRASE", "RCON_PASSWORD",
    )  # fmt: skip
    value, quoted = m.word(), m.pick("", "", '"', "'")
    return Canary("env", f"{m.pick('', 'export ')}{name}={quoted}{value}{quoted}", (value,))


def _label(m: Maker) -> Canary:
    name = m.pick(
        "traefik.password",
        "com.example.api-key",
        "backup.secret",
        "app.token",
        "registry_password",
        "org.x.clientSecret",
    )
    value = m.plain()
    return Canary("label", m.pick(f'"{name}": "{value}"', f"{name}={value}", f"'{name}': '{value}'"), (value,))


def _argv(m: Maker) -> Canary:
    value = m.plain()
    return Canary(
        "argv",
        m.pick(
            f"mysqld --password={value} --port 3306",
            f"tool --token {value} run",
            f"agent --api-key={value}",
            f"curl -u admin:{value} http://h/",
            f"curl -H 'X-Api-Key: {value}' http://h/",
            f"psql postgresql://u:{value}@db/x",
            f"restic --password {value} backup",
            f"java -Ddb.password={value} -jar a.jar",
            f"sshpass -p {value} ssh h",
            f"wget --http-password={value} http://h",
            f"redis-cli -a {value} ping",
            f"redis-server --requirepass {value}",
            f"smbclient -U bob%{value} //h/s",
            f"mysql -u root -p{value} db",
            f"ldapsearch -D cn=a -w {value} -b dc=x",
            f"curl --user bob:{value} http://h/",
            f"openssl enc -aes-256-cbc -pass pass:{value}",
        ),
        (value,),
    )


def _file(m: Maker) -> Canary:
    value = m.plain()
    return Canary(
        "file",
        m.pick(
            f"machine h login bob password {value}",
            f"db.example:5432:app:bob:{value}",
            f"password = {value}",
            f"  requirepass {value}",
            f"spring.datasource.password={value}",
            f"define('DB_PASSWORD', '{value}');",
            f"//npm.home.lab/:_authToken={value}",
            f"  secret_key_base: {value}",
            f'token = "{value}"',
            f"wpa_passphrase={value}",
            f'psk="{value}"',
            f"PrivateKey = {m.b64(32)}",
            f"rpcpassword={value}",
            f"bob:$6${m.plain(8)}${m.plain(86)}:19000:0:99999:7:::",
            f"admin:$apr1${m.plain(8)}${m.plain(22)}",
            f"//Password\n$conf['password'] = '{value}';",
            f"<password>{value}</password>",
            f'<add key="ApiKey" value="{value}" />',
        ),
        (value,),
    )


def _header(m: Maker) -> Canary:
    value = m.plain(24)
    basic = base64.b64encode(f"bob:{value}".encode()).decode()
    return m.pick_canary(
        ("header", f"Authorization: Bearer {value}", (value,)),
        ("header", f"authorization: Basic {basic}", (basic,)),
        ("header", f"Proxy-Authorization: Basic {basic}", (basic,)),
        ("header", f"X-Api-Key: {value}", (value,)),
        ("header", f"Cookie: theme=dark; session={value}", (value,)),
        ("header", f"Set-Cookie: sid={value}; HttpOnly; Path=/", (value,)),
        ("header", f"X-Auth-Token: {value}", (value,)),
        ("header", f"X-Vault-Token: {value}", (value,)),
        ("header", f"PRIVATE-TOKEN: {value}", (value,)),
        ("header", f"X-CSRF-Token: {value}", (value,)),
    )


def _url(m: Maker) -> Canary:
    value = m.plain()
    return Canary(
        "url",
        m.pick(
            f"https://bob:{value}@host/x",
            f"GET /cb?access_token={value}&state=1",
            f"https://h/?api_key={value}",
            f"https://{value}:x-oauth-basic@github.com/o/r.git",
            f"https://s3/x?X-Amz-Credential=a&X-Amz-Signature={m_hex(m, value)}",
            f"https://a.blob.core.windows.net/c?sv=2024&sig={value}%3D",
            f"https://h/reset?token={value}#top",
            f"redis://:{value}@cache:6379/0",
            f"https://h/#access_token={value}",
            f"https://hooks.slack.com/services/T0/B0/{value}",
            f"https://discord.com/api/webhooks/123456789012345678/{value}{value}",
            f"https://api.telegram.org/bot123456789:{value}{m.plain(12)}/getMe",
        ),
        (value,),
    )


def m_hex(m: Maker, value: str) -> str:
    return value + m.chars("0123456789abcdef", 40)


def _pem(m: Maker) -> Canary:
    kind = m.pick("RSA ", "EC ", "OPENSSH ", "", "ENCRYPTED ", "DSA ")
    lines = [m.b64(48) for _ in range(4)]
    newline = m.pick("\n", "\n", "\\n", "\r\n", "\n  ")
    body = newline.join([f"-----BEGIN {kind}PRIVATE KEY-----", *lines, f"-----END {kind}PRIVATE KEY-----"])
    return Canary("pem", body, tuple(lines))


def _jwt(m: Maker) -> Canary:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    payload = base64.urlsafe_b64encode(f'{{"sub":"{m.plain(8)}"}}'.encode()).decode().rstrip("=")
    signature = m.b64url(32)
    text = m.pick("{}", "token {} expired", "jwt={}", '"{}"', "({})", "x {}, y").format(f"{head}.{payload}.{signature}")
    return Canary("jwt", text, (signature, payload))


def _cloud(m: Maker) -> Canary:
    upper = m.chars(ascii_uppercase + digits, 16)
    return m.pick_canary(
        ("cloud", f"AKIA{upper}", (upper,)),
        ("cloud", f"key ASIA{upper}.", (upper,)),
        ("cloud", f"aws_secret_access_key = {(v := m.b64(30))}", (v,)),
        ("cloud", f"ghp_{(v := m.plain(34))}", (v,)),
        ("cloud", f"github_pat_{(v := m.plain(60))}", (v,)),
        ("cloud", f"glpat-{(v := m.plain(18))}", (v,)),
        ("cloud", f"xoxb-123456789012-{(v := m.plain(22))}", (v,)),
        ("cloud", f"AIza{(v := m.plain(33))}", (v,)),
        ("cloud", f"sk_live_{(v := m.plain(22))}", (v,)),
        ("cloud", f"sk-proj-{(v := m.plain(40))}", (v,)),
        ("cloud", f"tskey-auth-{(v := m.plain(10))}-{m.plain(20)}", (v,)),
        ("cloud", f"SG.{(v := m.plain(20))}.{m.plain(41)}", (v,)),
        ("cloud", f"AccountKey={(v := m.b64(64))};EndpointSuffix=core.windows.net", (v,)),
        ("cloud", f"hvs.{(v := m.plain(24))}", (v,)),
        ("cloud", f"dop_v1_{(v := m.chars('0123456789abcdef', 64))}", (v,)),
        ("cloud", f"npm_{(v := m.plain(34))}", (v,)),
        ("cloud", f"AGE-SECRET-KEY-1{(v := m.chars(ascii_uppercase + digits, 58))}", (v,)),
        ("cloud", f"ya29.{(v := m.plain(40))}", (v,)),
        ("cloud", f"pypi-{(v := m.plain(60))}", (v,)),
        ("cloud", f"shpat_{(v := m.chars('0123456789abcdef', 32))}", (v,)),
    )


def _connection(m: Maker) -> Canary:
    value = m.plain()
    return Canary(
        "connection",
        m.pick(
            f"Server=db;Database=x;User Id=sa;Password={value};",
            f"postgresql://app:{value}@db:5432/app?sslmode=require",
            f"mongodb+srv://u:{value}@c.example/x",
            f"amqp://guest:{value}@mq//",
            f"jdbc:mysql://db/x?user=bob&password={value}",
            f"host=db user=bob password={value} dbname=x",
            f"Endpoint=sb://h/;SharedAccessKeyName=a;SharedAccessKey={value}",
            f"mysql://root:{quote(value + '@/x', safe='')}@h/x",
            f"DSN=x;UID=sa;PWD={value}",
            f"ldap://cn=a:{value}@h",
            f"smtp://bob:{value}@mail:587",
        ),
        (value,),
    )


def _document(m: Maker) -> Canary:
    value = m.plain()
    auth = base64.b64encode(f"bob:{value}".encode()).decode()
    return m.pick_canary(
        ("document", f'{{"db": {{"user": "bob", "password": "{value}"}}}}', (value,)),
        ("document", f"db:\n  password: {value}\n  user: bob", (value,)),
        ("document", f'{{"auths": {{"ghcr.io": {{"auth": "{auth}"}}}}}}', (auth,)),
        ("document", f"data:\n  password: {base64.b64encode(value.encode()).decode()}", (auth,)),
        ("document", f'{{"name": "DB_PASSWORD", "value": "{value}"}}', (value,)),
        ("document", f"- name: API_TOKEN\n  value: {value}", (value,)),
        ("document", f"secret: |\n  {value}\n", (value,)),
        ("document", f'password: "{value}"', (value,)),
        ("document", f"password: >-\n    {value}\n", (value,)),
        ("document", f'{{\\"api_key\\": \\"{value}\\"}}', (value,)),
        ("document", f"tokens:\n  - {value}\n", ()),
        ("document", f"client_secret={value}&grant_type=x", (value,)),
        ("document", f'{{"access_token":"{value}","expires_in":300}}', (value,)),
        ("document", f'{{"refreshToken": "{value}"}}', (value,)),
    )


def _encoded(m: Maker) -> Canary:
    value = m.plain()
    config = base64.b64encode(f"db_host=h\npassword={value}\n".encode()).decode()
    header = base64.b64encode(f"Authorization: Bearer {value}".encode()).decode()
    return m.pick_canary(
        ("encoded", f"blob {config} end", (config, value)),
        ("encoded", header, (header,)),
        ("encoded", f"password%3D{value}", (value,)),
        ("encoded", f"https%3A%2F%2Fbob%3A{value}%40h%2F", (value,)),
        ("encoded", f"password=\\\n  {value}", (value,)),
        ("encoded", f"PASSWORD\u200b={value}", (value,)),
        ("encoded", f"pass\u00adword: {value}", (value,)),
        ("encoded", f"\x1b[1mpassword\x1b[0m={value}", (value,)),
        ("encoded", f"\uff50assword={value}".replace("\uff50", "p"), (value,)),
        ("encoded", f"password\\u003d{value}", (value,)),
        ("encoded", f"&quot;password&quot;:&quot;{value}&quot;", (value,)),
    )


FORMS: tuple[Callable[[Maker], Canary], ...] = (
    _env, _label, _argv, _file, _header, _url, _pem, _jwt, _cloud, _connection, _document, _encoded,
)  # fmt: skip


def canaries(seed: int = SEED, count: int = COUNT) -> Iterator[Canary]:
    maker = Maker(seed)
    for number in range(count):
        yield FORMS[number % len(FORMS)](maker)


def innocent(seed: int = SEED) -> Iterator[str]:
    """Lines that hold words of secrets, or values as long as secrets, and nothing secret: image references, unit
    names, paths, hashes, ids, log lines."""
    m = Maker(seed)
    hexes = "0123456789abcdef"
    for word in ("secret", "token", "password", "api-key", "auth", "credentials", "passwd", "private-key"):
        yield f"ghcr.io/org/{word}-manager:1.2"
        yield f"registry.lan:5000/team/{word}-store@sha256:{m.chars(hexes, 64)}"
        yield f"{word}s-store.service loaded active running"
        yield f"/etc/{word}s.d/10-default.conf"
        yield f"docker.io/library/{word}:latest Up 3 hours (healthy)"
        yield f"k8s_{word}-operator_pod-1 restarted 3 times"
        yield f"Started {word}-rotator.timer."
        yield f"the {word} was rotated 3 days ago"
        yield f"no {word} given"
        yield f"https://docs.example/{word}/reset.html"
        yield f"{word}-helper 1.2.3-4 amd64"
        yield f"GET /v1/{word}s 200 12ms"
        yield f"{word}s: 12"
    for number in range(12):
        sha, short = m.chars(hexes, 40), m.chars(hexes, 12)
        yield f"commit {sha}"
        yield f"{short} nginx:1.25 Up 2 days 80/tcp"
        yield f"sha256:{m.chars(hexes, 64)}"
        yield f"{m.chars(hexes, 8)}-{m.chars(hexes, 4)}-4{m.chars(hexes, 3)}-a{m.chars(hexes, 3)}-{m.chars(hexes, 12)}"
        yield f"/var/lib/docker/overlay2/{m.chars(hexes, 64)}/merged"
        yield f"Jan 31 12:00:{number:02} web-01 sshd[{number}]: Accepted publickey for root from 192.0.2.9 port 22"
        yield f"SHA256:{m.b64(32).rstrip('=')}"
        yield f"md5 {m.chars(hexes, 32)} file-{number}.iso"
        yield f"etag W/{m.chars(hexes, 16)} 304"
        yield f"session opened for user root(uid=0) by (uid={number})"
        yield f"eth{number} 02:42:ac:11:00:{number:02x} 10.0.{number}.2/16"
