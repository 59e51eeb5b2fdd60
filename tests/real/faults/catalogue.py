"""Every fault that is made, with the cause that must be named for it, and the healthy ones, which have none.

The programs are real ones of this machine: Python, Node, nginx, openssl and busybox fail by themselves; nothing here
writes the message that it is looked for by, but for what a program's author would write (`sys.exit("giving up ...")`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Until = Literal["ended", "unhealthy", "restarted", "failed to start", "settled"]

PY = "/usr/bin/python3"
NODE = "/usr/bin/node"


@dataclass(frozen=True)
class Case:
    """One container: `cause` is None for a healthy one. `until` says when it has come so far that it is looked at;
    `host` holds HostConfig options of the SDK; `files` are put into `/case`; `quick` ones are part of every CI run."""

    name: str
    cause: str | None
    command: list[str]
    until: Until = "ended"
    host: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    lines: str = ""
    """Words that the first cited lines must hold between them."""


def python(text: str) -> list[str]:
    return [PY, "-u", "-c", text]


def sh(text: str) -> list[str]:
    return ["/bin/busybox", "sh", "-c", text]


def node(text: str) -> list[str]:
    return [NODE, "-e", text]


def nginx(text: str) -> dict[str, str]:
    head = "daemon off; pid /tmp/nginx.pid; error_log stderr notice; events {}\n"
    return {"nginx.conf": f"{head}http {{ access_log /dev/stdout; {text} }}\n"}


NGINX = ["/usr/sbin/nginx", "-c", "/case/nginx.conf"]
SMALL_DISK = {"tmpfs": {"/data": "size=256k"}}

TLS_CLIENT = """
import socket, ssl, subprocess, sys, time
print("starting the TLS server")
subprocess.Popen(["/usr/bin/openssl", "s_server", "-accept", "8443", "-cert", "/case/cert.pem", "-key", "/case/key.pem",
                  "-quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
context = ssl.create_default_context(cafile=sys.argv[1] if len(sys.argv) > 1 else None)
for attempt in range(50):
    try:
        raw = socket.create_connection(("127.0.0.1", 8443), 2)
        break
    except OSError:
        time.sleep(0.1)
print("calling https://api.test:8443")
context.wrap_socket(raw, server_hostname="api.test")
print("connected")
"""

HTTP_STATUS = """
import http.server, threading, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error({status})
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 8000), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("calling the API")
urllib.request.urlopen("http://127.0.0.1:8000/v1/items")
"""

WAIT = """
import socket, sys, time
for attempt in range(1, 6):
    try:
        socket.create_connection(("127.0.0.1", 5432), 1)
        break
    except OSError as error:
        print(f"waiting for postgres ({attempt}/5): {error}")
        time.sleep(0.2)
else:
    sys.exit("postgres not ready after 5 attempts, giving up")
"""

ELF_FOR_MIPS = "\x7fELF\x02\x01\x01" + "\0" * 9 + "\x02\0\x08\0\x01\0\0\0" + "\0" * 40

FAULTS = (
    # --- ports
    Case("port-python", "port_conflict", sh(f"{PY} -m http.server 8000 & sleep 1.5; exec {PY} -m http.server 8000"),
         quick=True, lines="Address already in use"),
    Case("port-nginx", "port_conflict", sh("busybox httpd -p 8080; exec /usr/sbin/nginx -c /case/nginx.conf"),
         files=nginx("server { listen 8080; }"), quick=True, lines="bind() to 0.0.0.0:8080 failed"),
    Case("port-node", "port_conflict", node(
        "const h=require('http');h.createServer().listen(3000,()=>{console.log('first up');"
        "h.createServer().listen(3000)})"), lines="EADDRINUSE"),
    # --- memory
    Case("oom-killed", "out_of_memory", python("print('loading');x=[bytearray(1<<20) for _ in range(4096)]"),
         host={"mem_limit": "32m", "memswap_limit": "32m"}, quick=True),
    Case("oom-python", "out_of_memory", sh(f"ulimit -v 200000; exec {PY} -c 'x=bytearray(1<<30)'"),
         lines="MemoryError"),
    Case("oom-node", "out_of_memory", [NODE, "--max-old-space-size=16", "-e", "let a=[];for(;;)a.push({a:[1,2,3]})"],
         lines="heap out of memory"),
    # --- disks
    Case("disk-python", "disk_full", python("print('writing');open('/data/x','wb').write(bytes(1<<22))"),
         host=SMALL_DISK, quick=True, lines="No space left on device"),
    Case("disk-shell", "disk_full", sh("echo backup begins; dd if=/dev/zero of=/data/dump bs=1k count=4096"),
         host=SMALL_DISK, lines="No space left"),
    Case("disk-sqlite", "disk_full", python(
        "import sqlite3;c=sqlite3.connect('/data/a.db');c.execute('create table t(x)');"
        "c.execute('insert into t values(zeroblob(1<<22))');c.commit()"), host=SMALL_DISK, lines="disk is full"),
    Case("read-only", "read_only", sh("set -e; echo migrating; touch /var/state"), host={"read_only": True}, quick=True,
         lines="Read-only file system"),
    Case("sqlite-damaged", "data_corrupt", python(
        "import sqlite3;p='/tmp/a.db';c=sqlite3.connect(p);c.execute('create table t(x)');"
        "[c.execute('insert into t values(?)',('x'*900,)) for _ in range(200)];c.commit();c.close();"
        "f=open(p,'r+b');f.seek(4096);f.write(b'\\xff'*90000);f.close();"
        "print(len(sqlite3.connect(p).execute('select * from t').fetchall()))"), lines="malformed"),
    Case("sqlite-locked", "locked", python(
        "import sqlite3;a=sqlite3.connect('/tmp/a.db',isolation_level=None);a.execute('create table t(x)');"
        "a.execute('begin exclusive');b=sqlite3.connect('/tmp/a.db',timeout=0.2);b.execute('insert into t values(1)')"),
         lines="database is locked"),
    Case("sqlite-schema", "database_schema", python(
        "import sqlite3;print('app 2.1 starting');sqlite3.connect('/tmp/a.db').execute('select * from users')"),
         lines="no such table"),
    # --- names and connections
    Case("dns-python", "dns", python("import urllib.request as u;print('calling');u.urlopen('http://db.invalid/')"),
         lines="name", quick=True),
    Case("dns-wget", "dns", sh("echo fetching; wget -q -O - http://api.invalid/v1"), lines="bad address"),
    Case("dns-nginx", "dns", NGINX, lines="host not found",
         files=nginx("server { listen 8080; location / { proxy_pass http://app.invalid; } }")),
    Case("dns-node", "dns", node("require('http').get('http://queue.invalid/')"), lines="queue.invalid"),
    Case("refused-python", "connection_refused", python(
        "import socket;print('connecting to redis');socket.create_connection(('127.0.0.1',6379))"), quick=True,
         lines="refused"),
    Case("refused-wget", "connection_refused", sh("wget -q -O - http://127.0.0.1:9/health"), lines="refused"),
    Case("refused-node", "connection_refused", node("require('net').connect(5432,'127.0.0.1')"), lines="ECONNREFUSED"),
    Case("unreachable", "unreachable", python("import socket;socket.create_connection(('192.0.2.1',443),3)"),
         options={"network_mode": "none"}, lines="unreachable"),
    Case("timed-out", "timed_out", python(
        "import socket,urllib.request as u;s=socket.create_server(('127.0.0.1',8000));print('asking upstream');"
        "u.urlopen('http://127.0.0.1:8000/',timeout=1)"), lines="timed out"),
    Case("dependency", "dependency_not_ready", python(WAIT), quick=True, lines="giving up"),
    Case("rate-limited", "rate_limited", python(HTTP_STATUS.format(status=429)), lines="429"),
    Case("unauthorized", "credentials", python(HTTP_STATUS.format(status=401)), lines="401"),
    # --- TLS
    Case("tls-expired", "tls_expired", [*python(TLS_CLIENT), "/case/ca.pem"], files={"tls": "expired"}, quick=True,
         lines="expired"),
    Case("tls-not-yet", "clock_skew", [*python(TLS_CLIENT), "/case/ca.pem"], files={"tls": "future"},
         lines="not yet valid"),
    Case("tls-untrusted", "tls_untrusted", python(TLS_CLIENT), files={"tls": "valid"},
         lines="CERTIFICATE_VERIFY_FAILED"),
    Case("tls-other-name", "tls_untrusted", [*python(TLS_CLIENT), "/case/ca.pem"], files={"tls": "other"},
         lines="mismatch"),
    # --- rights
    Case("permission-shell", "permission", sh("echo starting; echo 1 > /var/state/x"), options={"user": "65534"},
         quick=True, lines="Permission denied"),
    Case("permission-python", "permission", python("print('boot');open('/case/secret.key').read()"),
         options={"user": "65534"}, files={"secret.key": "-"}, lines="Permission denied"),
    Case("permission-nginx", "permission", ["/usr/sbin/nginx", "-g", "daemon off;", "-c", "/case/nginx.conf"],
         options={"user": "65534"}, files={"nginx.conf": "pid /var/state/nginx.pid; events {} http {}\n"},
         lines="Permission denied"),
    Case("permission-exec", "permission", ["/case/start.sh"], until="failed to start",
         files={"start.sh": "#!/bin/sh\ntrue\n"}),
    # --- limits
    Case("descriptors", "file_descriptors", python("x=[open('/dev/null') for _ in range(100)]"),
         host={"ulimits": [{"Name": "nofile", "Soft": 32, "Hard": 32}]}, lines="Too many open files", quick=True),
    Case("threads", "process_limit", python(
        "import threading as t,time\nfor _ in range(100): t.Thread(target=time.sleep,args=(60,),daemon=True).start()"),
         host={"pids_limit": 20}, lines="start new thread"),
    # --- what is missing or wrong
    Case("environment-python", "missing_environment", python("import os;print('boot');os.environ['DATABASE_URL']"),
         quick=True, lines="DATABASE_URL"),
    Case("environment-shell", "missing_environment", sh('echo boot; echo "${API_KEY:?must be set}"'), lines="API_KEY"),
    Case("environment-node", "missing_environment", node(
        "console.log('boot');if(!process.env.QUEUE_URL)throw new Error('QUEUE_URL is not set')"), lines="QUEUE_URL"),
    Case("module-python", "missing_module", python("import flask_of_nobody"), quick=True, lines="No module named"),
    Case("module-node", "missing_module", node("require('express-of-nobody')"), lines="Cannot find module"),
    Case("library", "missing_module", python("import ctypes;ctypes.CDLL('libnobody.so.9')"), lines="shared object"),
    Case("program-exec", "missing_program", ["gunicorn-of-nobody"], until="failed to start", quick=True),
    Case("program-shell", "missing_program", sh("echo starting; gunicorn-of-nobody --bind :80"), lines="not found"),
    Case("file-python", "missing_file", python("open('/config/app.yaml')"), quick=True, lines="app.yaml"),
    Case("architecture", "wrong_architecture", ["/case/program"], files={"program": ELF_FOR_MIPS},
         lines="xec format error"),
    Case("config-nginx", "config_syntax", NGINX, files=nginx("lissten 80;"), quick=True, lines="unknown directive"),
    Case("config-json", "config_syntax", python("import json;json.load(open('/case/config.json'))"),
         files={"config.json": "{'a': 1}"}, lines="JSONDecodeError"),
    Case("config-ini", "config_syntax", python("import configparser as c;c.ConfigParser().read('/case/app.ini')"),
         files={"app.ini": "no section here\n"}, lines="configparser"),
    Case("syntax", "program_error", [PY, "/case/app.py"], files={"app.py": "def main(:\n    pass\n"},
         lines="SyntaxError"),
    # --- how it ended
    Case("exception", "unhandled_exception", python("print('working');print(1/0)"), quick=True, lines="ZeroDivision"),
    Case("segfault", "segfault", python("print('working');import ctypes;ctypes.string_at(0)"), quick=True),
    Case("segfault-shell", "segfault", sh("echo working; busybox sh -c 'kill -SEGV $$'; exit $?")),
    Case("abort", "aborted", sh(f"echo working; {PY} -c 'import os;os.abort()'; exit $?")),
    Case("illegal", "illegal_instruction", sh("echo working; busybox sh -c 'kill -ILL $$'; exit $?")),
    Case("killed", "killed", sh("echo working; sleep 600"), "settled", options={"signal": "SIGKILL"}),
    Case("unhealthy", "health_check", sh("busybox httpd -p 8080; echo serving on 8080; sleep 600"), "unhealthy",
         options={"healthcheck": ["CMD", "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8081/"]}, quick=True),
    Case("crash-loop", "crash_loop", sh("echo worker 1.4; exit 3"), "restarted",
         host={"restart_policy": {"Name": "always"}}, quick=True),
    Case("ends-at-once", "ends_at_once", sh("echo nothing to do"), "restarted",
         host={"restart_policy": {"Name": "always"}}),
    Case("failed", "failed", sh("echo worker 1.4; sleep 0.2; exit 7")),
)  # fmt: skip

_CHATTER = r"""
import logging, sys, time
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s %(message)s")
log = logging.getLogger("shop")
log.info("error_log=/var/log/shop/error.log level=warn")
log.info("retrying disabled, failover disabled, on_failure=ignore")
log.debug("exception handler installed; will retry when connection refused")
log.info("health: 0 errors, 0 warnings, timeouts=0, failed: 0")
log.info("certificate expires in 89 days")
log.info("memory 120 MiB of 512 MiB, disk 41% full, open files 12 of 1024")
log.info("import done: 12000 rows, 0 rejected, no errors")
log.info("ready to serve")
for number in range(40):
    log.info("GET /errors/404 200 in %d ms", number % 7)
time.sleep(600)
"""

_RETRY = """
import socket, time
print("connecting to 127.0.0.1:7000")
try:
    socket.create_connection(("127.0.0.1", 7000), 1)
except OSError as error:
    print(f"attempt 1: {error}, next try in 0.2 s")
server = socket.create_server(("127.0.0.1", 7000)); time.sleep(0.2)
socket.create_connection(("127.0.0.1", 7000), 1)
print("connected to 127.0.0.1:7000")
for number in range(30):
    print(f"processed batch {number}, 0 failed")
time.sleep(600)
"""

HEALTHY = (
    Case("nginx-serves", None, sh("/usr/sbin/nginx -c /case/nginx.conf & sleep 1; for i in 1 2 3; do"
         " wget -q -O- http://127.0.0.1:8080/; wget -q -O- http://127.0.0.1:8080/nothing 2>/dev/null; done; wait"),
         "settled", files=nginx("server { listen 8080; location = / { return 200 'ok'; } }"), quick=True),
    Case("http-serves", None, sh(f"{PY} -u -m http.server 8000 & sleep 1; wget -q -O /dev/null http://127.0.0.1:8000/;"
         " wget -q -O /dev/null http://127.0.0.1:8000/failed/error 2>/dev/null; wait"), "settled", quick=True),
    Case("chatter", None, python(_CHATTER), "settled", quick=True),
    Case("retried", None, python(_RETRY), "settled", quick=True),
    Case("node-serves", None, node("require('http').createServer().listen(3000,()=>console.log('listening on 3000,"
         " errors: 0, retry on ECONNREFUSED enabled'))"), "settled"),
    Case("job-done", None, sh("echo backup begins; echo verifying: 0 errors, 0 mismatches; echo done without errors")),
    Case("stopped", None, NGINX, "settled", files=nginx("server { listen 80; }"),
         options={"signal": "SIGTERM"}, quick=True),
    Case("terminated", None, sh("trap 'echo bye; exit 143' TERM; echo working; sleep 600 & wait"), "settled",
         options={"signal": "SIGTERM"}),
    Case("healthy-check", None, sh("busybox httpd -p 8080; echo serving; sleep 600"), "settled",
         options={"healthcheck": ["CMD", "busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/bin/sh"]}),
    Case("tls-serves", None, sh("openssl s_server -accept 8443 -cert /case/cert.pem -key /case/key.pem -www & sleep 1;"
         " echo | openssl s_client -connect 127.0.0.1:8443 -CAfile /case/ca.pem -brief; wait"), "settled",
         files={"tls": "valid"}),
    Case("silent", None, ["/bin/busybox", "sleep", "600"], "settled"),
    Case("tests-pass", None, sh(f"cd /case && {PY} -m unittest -v test_app 2>&1"), files={"test_app.py": (
        "import unittest\nclass Errors(unittest.TestCase):\n    def test_permission_denied_is_shown(self): pass\n"
        "    def test_connection_refused_is_retried(self): pass\n    def test_disk_full_fails_well(self): pass\n")}),
)  # fmt: skip
