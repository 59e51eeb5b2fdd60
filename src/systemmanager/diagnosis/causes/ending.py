"""How it ended, where nothing says more: these stand behind every cause that the log names."""

from systemmanager.diagnosis.causes.sign import Cause, Told, exact, sign
from systemmanager.diagnosis.facts import Facts

_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 31: "SIGSYS"}


def _by(facts: Facts, *numbers: int) -> str | None:
    code = facts.exit_code
    if facts.signal in numbers:
        return f"signal={facts.signal} ({_SIGNALS.get(facts.signal or 0, '?')})"
    return f"exit_code={code}" if code is not None and code - 128 in numbers else None


def _segfault(facts: Facts) -> Told | None:
    return (0.82, fact) if (fact := _by(facts, 11, 7)) else None


def _aborted(facts: Facts) -> Told | None:
    return (0.72, fact) if (fact := _by(facts, 6)) else None


def _illegal(facts: Facts) -> Told | None:
    return (0.85, fact) if (fact := _by(facts, 4, 31)) else None


def _killed(facts: Facts) -> Told | None:
    fact = _by(facts, 9)
    return (0.6, fact) if fact and not facts.oom_killed and not facts.stopped else None


def _unhealthy(facts: Facts) -> Told | None:
    return (0.74, f"health=unhealthy, {facts.failing_streak} in a row") if facts.health == "unhealthy" else None


def _timed_out(facts: Facts) -> Told | None:
    return (0.72, f"result={facts.result}") if facts.result in ("timeout", "watchdog") else None


def _again(facts: Facts) -> Told | None:
    if facts.exit_code == 0 and (facts.restarting or facts.restarts >= 3):
        return 0.66, f"exit_code=0, restarts={facts.restarts}"
    return None


def _crash_loop(facts: Facts) -> Told | None:
    looping = facts.restarts >= 3 or (facts.restarting and facts.restarts > 0) or facts.result == "start-limit-hit"
    if looping and facts.exit_code != 0:
        code = f"exit_code={facts.exit_code}, " if facts.exit_code is not None else ""
        return 0.58, f"{code}restarts={facts.restarts}"
    return None


def _failed(facts: Facts) -> Told | None:
    if facts.running is False and facts.exit_code not in (None, 0) and not facts.stopped:
        return 0.52, f"exit_code={facts.exit_code}"
    return (0.52, f"result={facts.result}") if facts.result not in (None, "timeout", "watchdog") else None


CAUSES = (
    Cause(
        "segfault",
        "It crashed: it touched memory that is not its own.",
        (
            "Update the program and its libraries; look for a core dump (`coredumpctl`).",
            "When it began with an update of the image, go back to the one before.",
        ),
        (
            sign(0.92, r"segmentation fault", r"\bsegfault at\b", r"bus error", r"signal 11\b"),
            exact(
                0.92,
                r"(?<!signal )\bSIGSEGV\b(?!: segmentation violation code)",
                r"caught signal 11",
                r"A fatal error has been detected by the Java Runtime",
            ),
        ),
        _segfault,
        ("crash",),
    ),
    Cause(
        "illegal_instruction",
        "It used an instruction that this processor does not have, or a system call that is forbidden.",
        ("Use a build for an older processor, or a wider seccomp profile if that is meant to be allowed.",),
        (
            sign(
                0.9,
                r"illegal instruction",
                r"bad system call",
                r"CPU does not support",
                r"requires (?:a CPU with )?(?:AVX|SSE4|x86-64-v\d)",
            ),
        ),
        _illegal,
    ),
    Cause(
        "aborted",
        "It ended itself: something that it holds for certain was not so.",
        ("The assertion in the log says what; search the program's issues for it, or go back to the version before.",),
        (
            sign(
                0.85,
                r"assertion .{0,200}failed",
                r"assert(?:ion)? failure",
                r"\bSIGABRT\b",
                r"terminate called after throwing",
                r"stack smashing detected",
            ),
            sign(0.85, r"(?:^|\n)Aborted\b", r"double free or corruption", r"malloc\(\): ", r"free\(\): invalid"),
        ),
        _aborted,
    ),
    Cause(
        "unhandled_exception",
        "An error in the program ended it: nothing caught an exception.",
        ("Read the last trace: its message and the innermost frame of the program's own code say where.",),
        (),
    ),
    Cause(
        "health_check",
        "Its health check fails, while the program itself runs.",
        (
            "Run the health check by hand in the container; compare its address and port with those it listens on.",
            "When it is only slow to start, give it a start period.",
        ),
        (sign(0.7, r"(?:health|liveness|readiness) ?(?:check|probe)s? (?:has |have )?(?:failed|failing|errored)"),),
        _unhealthy,
        ("health", "unhealthy"),
    ),
    Cause(
        "start_timeout",
        "It did not say in time that it has started, or stopped answering its watchdog.",
        ("See what it does while it starts; give it more time (`TimeoutStartSec=`) only when it needs it.",),
        (sign(0.86, r"start operation timed out", r"watchdog timeout"),),
        _timed_out,
    ),
    Cause(
        "killed",
        "It was killed from outside, without a word of its own.",
        (
            "Look for the kernel's out-of-memory killer (`dmesg`), and for whoever stopped it.",
            "A stop that takes longer than its grace period ends so too.",
        ),
        (),
        _killed,
    ),
    Cause(
        "ends_at_once",
        "It does its work and ends well, and is started again and again.",
        ("A container lives as long as its first process: keep that in the foreground, or use `restart: no`.",),
        (),
        _again,
        ("restart", "restarting"),
    ),
    Cause(
        "crash_loop",
        "It ends with an error soon after each start.",
        ("The last lines before each end say most; if there are none, run its command by hand.",),
        (),
        _crash_loop,
        ("restart", "restarting", "crash"),
    ),
    Cause(
        "failed",
        "It ended with an error and does not say why.",
        ("Run its command by hand with more logging; its documentation says what the exit status means.",),
        (),
        _failed,
    ),
)
