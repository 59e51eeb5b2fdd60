"""Every cause is found by words that programs really write, and by nothing that only sounds like it."""

import pytest

from systemmanager.diagnosis.causes import BY_CODE, CAUSES
from systemmanager.diagnosis.diagnose import Diagnosis, Log, diagnose
from systemmanager.diagnosis.facts import Facts
from tests.diagnosis.sayings import MORE, WHAT

ENDED = Facts(state="exited", running=False, exit_code=1)
RUNNING = Facts(state="running", running=True)


def diagnosed(text: str, facts: Facts = ENDED, question: str = "") -> Diagnosis:
    return diagnose(Log.of("x", text, 1.8e9, facts), question=question)


SAYINGS: list[tuple[str, str]] = [
    ("rights_misused", "Jan  1 00:00:00 web sudo[7]:      bob : user NOT in sudoers ; TTY=pts/0 ; COMMAND=/usr/bin/id"),
    ("rights_misused", "Jan  1 00:00:00 web useradd[9]: new user: name=toor, UID=0, GID=0, home=/root, shell=/bin/sh"),
    ("rights_misused", "Jan  1 00:00:00 web sudo: ann : 3 incorrect password attempts ; TTY=pts/1 ; USER=root"),
    ("rights_misused", "Jan  1 00:00:00 web su[3]: FAILED SU (to root) bob on pts/2"),
    ("out_of_memory", "java.lang.OutOfMemoryError: Java heap space"),
    ("out_of_memory", "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory"),
    ("out_of_memory", "PHP Fatal error:  Allowed memory size of 134217728 bytes exhausted (tried to allocate 20480)"),
    ("disk_full", "OSError: [Errno 28] No space left on device: '/data/x'"),
    ("disk_full", "sqlite3.OperationalError: database or disk is full"),
    ("file_descriptors", "2026/01/01 00:00:00 [alert] 1#1: accept4() failed (24: Too many open files)"),
    ("watch_limit", "Error: ENOSPC: System limit for number of file watchers reached, watch '/app'"),
    ("process_limit", "RuntimeError: can't start new thread"),
    ("process_limit", "sh: can't fork: Resource temporarily unavailable"),
    ("read_only", "touch: /etc/x: Read-only file system"),
    ("storage_fault", "blk_update_request: I/O error, dev sda, sector 1234"),
    ("data_corrupt", "sqlite3.DatabaseError: database disk image is malformed"),
    ("data_version", "FATAL:  database files are incompatible with server"),
    ("locked", "ERROR: database is locked"),
    ("port_conflict", "Error: listen EADDRINUSE: address already in use :::3000"),
    ("port_conflict", "Web server failed to start. Port 8080 was already in use."),
    ("dns", "Error: getaddrinfo ENOTFOUND db.internal"),
    ("dns", "dial tcp: lookup redis on 127.0.0.11:53: no such host"),
    ("dns", "wget: bad address 'api.local'"),
    ("dns", 'nginx: [emerg] host not found in upstream "app" in /etc/nginx/conf.d/default.conf:2'),
    ("tls_expired", "ssl.SSLCertVerificationError: certificate verify failed: certificate has expired (_ssl.c:1000)"),
    (
        "tls_expired",
        "x509: certificate has expired or is not yet valid: current time 2026-01-01T00:00:00Z is after 2025",
    ),
    (
        "clock_skew",
        "x509: certificate has expired or is not yet valid: current time 1970-01-01T00:00:00Z is before 2025",
    ),
    ("clock_skew", "An error occurred (RequestTimeTooSkewed): The difference between the request time"),
    ("tls_untrusted", "Error: self-signed certificate in certificate chain"),
    ("tls_untrusted", "x509: certificate signed by unknown authority"),
    ("connection_refused", "connect ECONNREFUSED 10.0.0.5:5432"),
    ("unreachable", "connect: No route to host"),
    ("timed_out", "connect ETIMEDOUT 10.1.2.3:443"),
    ("rate_limited", "toomanyrequests: You have reached your pull rate limit"),
    ("permission", "open /var/lib/app/state.db: permission denied"),
    ("permission", "PermissionError: [Errno 13] Permission denied: '/data/file'"),
    ("database_auth", 'FATAL:  password authentication failed for user "app"'),
    ("database_auth", "ERROR 1045 (28000): Access denied for user 'app'@'10.0.0.2' (using password: YES)"),
    ("database_auth", "redis.exceptions.AuthenticationError: WRONGPASS invalid username-password pair"),
    ("database_missing", 'FATAL:  database "shop" does not exist'),
    ("database_schema", 'ERROR:  relation "users" does not exist at character 15'),
    ("credentials", "InvalidAccessKeyId: The AWS Access Key Id you provided does not exist"),
    ("missing_environment", "sh: DATABASE_URL: parameter not set"),
    ("missing_environment", "Error: DATABASE_URL must be set"),
    ("missing_environment", "Error: Missing required environment variable: API_HOST"),
    ("config_syntax", 'nginx: [emerg] unknown directive "lissten" in /etc/nginx/nginx.conf:3'),
    ("config_syntax", "yaml.scanner.ScannerError: mapping values are not allowed here"),
    ("config_syntax", "*** FATAL CONFIG FILE ERROR (Redis 7.0.0) ***"),
    ("wrong_architecture", "exec /app/server: exec format error"),
    ("missing_program", "sh: 1: node: not found"),
    ("missing_program", "/entrypoint.sh: line 5: envsubst: command not found"),
    ("missing_module", "ModuleNotFoundError: No module named 'flask'"),
    ("missing_module", "/app/x: error while loading shared libraries: libpq.so.5: cannot open shared object file"),
    ("missing_module", "Error: Cannot find module 'express'"),
    ("program_error", "SyntaxError: invalid syntax"),
    ("missing_file", "FileNotFoundError: [Errno 2] No such file or directory: '/config/app.yaml'"),
    ("dependency_not_ready", "db is not ready - sleeping\ngiving up after 5 attempts"),
    ("dependency_not_ready", "FATAL:  the database system is starting up"),
    ("segfault", "Segmentation fault (core dumped)"),
    ("illegal_instruction", "Illegal instruction"),
    ("aborted", "app: main.c:3: main: Assertion `x > 0' failed."),
    ("start_timeout", "app.service: start operation timed out. Terminating."),
    ("health_check", "ERROR: readiness probe failed"),
]


SAYINGS += MORE


@pytest.mark.parametrize(("code", "text"), SAYINGS, ids=[f"{code}-{text[:30]}" for code, text in SAYINGS])
def test_what_programs_say_names_the_cause(code: str, text: str) -> None:
    found = diagnosed(f"starting\n{text}\n")
    assert found.cause is not None and found.cause.cause.code == code, found.causes
    assert 2 in found.cause.lines and 0.5 <= found.cause.confidence <= 0.98


@pytest.mark.parametrize(("text", "what"), WHAT, ids=[text[:40] for text, _ in WHAT])
def test_what_it_is_about_is_named(text: str, what: str) -> None:
    found = diagnosed(f"starting\n{text}\n")
    assert found.cause is not None and found.cause.what == what


BY_FACTS: list[tuple[str, Facts]] = [
    ("out_of_memory", Facts(running=False, exit_code=137, signal=9, oom_killed=True)),
    ("segfault", Facts(running=False, exit_code=139, signal=11)),
    ("aborted", Facts(running=False, exit_code=134, signal=6)),
    ("illegal_instruction", Facts(running=False, exit_code=132, signal=4)),
    ("killed", Facts(running=False, exit_code=137, signal=9)),
    ("missing_program", Facts(running=False, exit_code=127)),
    ("not_executable", Facts(running=False, exit_code=126)),
    ("health_check", Facts(running=True, health="unhealthy", failing_streak=3)),
    ("ends_at_once", Facts(running=False, exit_code=0, restarting=True, restarts=4)),
    ("crash_loop", Facts(running=False, exit_code=2, restarting=True, restarts=4)),
    ("failed", Facts(running=False, exit_code=2)),
    ("start_timeout", Facts(running=False, result="timeout")),
]


@pytest.mark.parametrize(("code", "facts"), BY_FACTS, ids=[code for code, _ in BY_FACTS])
def test_a_state_alone_names_a_cause(code: str, facts: Facts) -> None:
    found = diagnosed("starting\nworking\n", facts)
    assert found.cause is not None and found.cause.cause.code == code, found.causes
    assert found.cause.facts and found.cause.lines == (1, 2)


def test_every_cause_has_a_saying_or_a_state_here() -> None:
    beside = {"login_attacks", "break_in", "unhandled_exception"}  # these take more than a line: below
    assert {code for code, _ in (*SAYINGS, *BY_FACTS)} | beside == set(BY_CODE)
    assert len(BY_CODE) == len(CAUSES)


def test_many_failed_logins_are_an_attack_and_one_is_none() -> None:
    line = "Jan  1 00:00:0{} web sshd[1]: Failed password for root from 192.0.2.7 port 4000 ssh2\n"
    found = diagnosed("".join(line.format(second) for second in range(6)), Facts())
    assert found.cause is not None and found.cause.cause.code == "login_attacks" and found.cause.what == "192.0.2.7"
    assert diagnosed(line.format(1), Facts()).cause is None
    line = "Jan  1 00:00:0{} web sshd[1]: pam_unix(sshd:auth): authentication failure; tty=ssh rhost=192.0.2.8 user=x\n"
    found = diagnosed("".join(line.format(second) for second in range(6)), Facts())
    assert found.cause is not None and found.cause.cause.code == "login_attacks" and found.cause.what == "192.0.2.8"


TRIED = "Jan  1 00:00:0{} web sshd[1]: Failed password for {} from {} port 4000 ssh2\n"
USUAL = "Jan  1 00:01:{:02} web CRON[7]: pam_unix(cron:session): session opened for user root\n"


def auth_log(entered: str, user: str = "root", address: str = "192.0.2.7", tries: int = 6) -> Diagnosis:
    """An attack, one more line of sshd's, and then nothing out of the ordinary."""
    text = "".join(TRIED.format(second, user, address) for second in range(tries))
    text += f"Jan  1 00:00:09 web sshd[2]: {entered}\n" + "".join(USUAL.format(second) for second in range(40))
    return diagnosed(text, Facts())


ENTERED = "Accepted password for root from 192.0.2.7 port 4001 ssh2"


def test_a_login_after_many_that_failed_is_a_break_in_with_its_line() -> None:
    found = auth_log(ENTERED)
    assert found.cause is not None and found.cause.cause.code == "break_in", found.causes
    assert found.cause.what == "root from 192.0.2.7" and found.cause.lines == (1, 2, 3, 4, 5, 6, 7)
    assert [one.cause.code for one in found.causes] == ["break_in", "login_attacks"]
    by_key = auth_log(ENTERED.replace("password", "publickey"))
    assert by_key.cause is not None and by_key.cause.cause.code == "login_attacks", "many may share an address"
    assert [one.confidence for one in by_key.causes if one.cause.code == "break_in"] == [0.6]
    again = "Jan  1 00:00:01 web sshd[1]: message repeated 5 times: [ Failed password for root from 192.0.2.7 port 4]\n"
    repeated = diagnosed(again + again + f"Jan  1 00:00:09 web sshd[2]: {ENTERED}\n" + TRIED.format(9, "x", "::1") * 5)
    assert repeated.cause is not None and repeated.cause.cause.code == "break_in", repeated.causes
    assert auth_log(ENTERED, tries=5).causes[0].cause.code == "break_in"
    key = f"Jan  1 00:02:00 web sshd[4]: {ENTERED.replace('password', 'publickey')}\n"
    both = diagnosed("".join(TRIED.format(n, "root", "192.0.2.7") for n in range(6)) + f"{ENTERED}\n{key}", Facts())
    assert both.causes[0].confidence == 0.97, "what came later by a key does not hide it"


@pytest.mark.parametrize(
    "found",
    [
        auth_log(ENTERED, address="192.0.2.8"),
        auth_log(ENTERED, tries=4),
        diagnosed("GET /?q=Failed password for root from 192.0.2.7 port 4 HTTP/1.1\n" * 7 + ENTERED, Facts()),
        auth_log(f"Connection closed by invalid user {ENTERED} 192.0.2.7 port 4 [preauth]"),
        auth_log(f"Failed password for invalid user {ENTERED} from 192.0.2.7 port 4001 ssh2"),
        auth_log(ENTERED, user="invalid user a from 192.0.2.7 port 1", address="192.0.2.8"),
    ],
    ids=[
        "of another address",
        "of who mistyped",
        "what an app says",
        "a name alone",
        "a name that failed",
        "a name with an address",
    ],
)
def test_no_break_in_is_claimed_for(found: Diagnosis) -> None:
    assert "break_in" not in [one.cause.code for one in found.causes], found.causes


def test_the_same_error_with_other_numbers_stands_in_the_timeline_once() -> None:
    found = diagnosed("".join(TRIED.format(n, "root", f"192.0.2.{n}") for n in range(6)), Facts())
    assert [row.line for row in found.timeline] == [1] and "from 192.0.2.0" in found.timeline[0].text


def test_an_attack_stays_one_whatever_came_after_and_however_it_is_graded() -> None:
    """A unit's journal grades failed logins as information, and the unit runs on."""
    text = "".join(f"INFO Invalid user x from 192.0.2.9 port {number}\n" for number in range(6)) + "INFO fine\n" * 60
    found = diagnosed(text, RUNNING)
    assert found.cause is not None and found.cause.cause.code == "login_attacks", found.causes


def test_an_exception_that_nothing_else_explains_is_the_cause() -> None:
    trace = (
        'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nZeroDivisionError: division by zero\n'
    )
    found = diagnosed(trace)
    assert found.cause is not None and found.cause.cause.code == "unhandled_exception"
    assert found.cause.what == "ZeroDivisionError: division by zero"


HARMLESS = [
    "INFO 0 errors, 0 warnings",
    "error_log /var/log/nginx/error.log configured",
    "retrying disabled",
    "will retry when connection refused",
    "INFO retry on connection refused: enabled",
    "INFO will retry when connection refused",
    "no errors found, errors=0 failed: 0",
    "INFO backup succeeded after retry: connection timed out",
    "INFO exception handler installed",
    'GET /errors/404 "HTTP/1.1" 200',
    "INFO self-test: simulated disk full, ok",
    "INFO OOM killer protection enabled",
    "INFO rate limit detection enabled: too many requests would be refused",
    "DEBUG certificate has expired? false",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_a_healthy_log_names_no_cause(text: str) -> None:
    assert diagnosed(f"starting\n{text}\nlistening on :80\n", RUNNING).cause is None
    assert diagnosed(f"starting\n{text}\nlistening on :80\n", Facts()).cause is None


def test_trouble_that_is_over_is_no_cause_of_a_container_that_runs_well() -> None:
    refused = "ERROR connect ECONNREFUSED 10.0.0.5:5432\n"
    assert diagnosed(f"{refused}INFO connected to 10.0.0.5:5432\nINFO ready to serve\n", RUNNING).cause is None
    found = diagnosed(f"INFO connected to 10.0.0.5:5432\n{refused * 3}", RUNNING)
    assert found.cause is not None and found.cause.cause.code == "connection_refused"


def test_a_question_turns_the_scales_between_equals() -> None:
    text = "ERROR connect ECONNREFUSED 10.0.0.5:5432\nERROR connect ETIMEDOUT 10.0.0.6:80\n"
    assert [one.cause.code for one in diagnosed(text).causes[:2]] == ["connection_refused", "timed_out"]
    assert diagnosed(text, question="why is it slow?").causes[0].cause.code == "timed_out"
