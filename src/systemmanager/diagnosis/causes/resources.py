"""Something ran out, or the storage does not do as it should."""

from systemmanager.diagnosis.causes.sign import Cause, Told, exact, sign
from systemmanager.diagnosis.facts import Facts


def _oom(facts: Facts) -> Told | None:
    return (0.97, "oom_killed=true") if facts.oom_killed else None


CAUSES = (
    Cause(
        "out_of_memory",
        "It ran out of memory.",
        (
            "Raise its memory limit, or lower what it keeps in memory (heap, caches, workers).",
            "Compare the limit with what it uses under load before raising it again.",
        ),
        (
            sign(
                0.94,
                r"\bout of memory\b",
                r"\bOutOfMemoryError\b",
                r"heap out of memory",
                r"\bbad_alloc\b",
                r"memory cgroup out of",
            ),
            sign(0.9, r"Cannot allocate memory", r"\bENOMEM\b", r"Allowed memory size of \d+ bytes exhausted"),
            exact(
                0.93,
                r"(?:^|\n|\s)MemoryError\b",
                r"runtime: out of memory",
                r"Killed process \d+ \(",
                r"A process of this unit has been killed by the OOM",
            ),
        ),
        _oom,
        ("memory", "oom", "ram"),
    ),
    Cause(
        "disk_full",
        "There is no space left on the disk that it writes to.",
        (
            "Free space or enlarge the volume; `df -h` and `df -i` show which file system is full.",
            "Rotate logs and set limits for what grows.",
        ),
        (
            sign(
                0.95,
                r"no space left on device(?!.{0,40}inotify)",
                r"\bdisk (?:is )?full\b",
                r"database or disk is full",
            ),
            exact(0.95, r"\bENOSPC\b(?!: System limit)", r"\bEDQUOT\b", r"Disk quota exceeded"),
            sign(
                0.88,
                r"(?:not enough|insufficient|out of) (?:free )?(?:disk|storage) ?space",
                r"No usable temporary directory",
            ),
            sign(0.88, r"flood.stage disk watermark .{0,80}exceeded", r"write error: .{0,40}space"),
        ),
        topics=("disk", "space", "storage"),
    ),
    Cause(
        "file_descriptors",
        "It has no file descriptors left.",
        (
            "Raise the limit (`ulimits: nofile` in Compose, `LimitNOFILE=` of a unit).",
            "Look for files or connections that are opened and never closed.",
        ),
        (sign(0.95, r"too many open files", r"file table overflow"), exact(0.95, r"\b(?:EMFILE|ENFILE)\b")),
    ),
    Cause(
        "watch_limit",
        "The limit of inotify watches is reached.",
        ("Raise fs.inotify.max_user_watches and fs.inotify.max_user_instances on the host.",),
        (
            sign(0.96, r"system limit for number of file watchers", r"inotify.{0,60}(?:limit|no space left)"),
            sign(0.9, r"no space left on device.{0,40}inotify", r"max_user_(?:watches|instances)"),
        ),
    ),
    Cause(
        "process_limit",
        "It may not start more processes or threads.",
        ("Raise the limit (`pids_limit`, `ulimits: nproc`, `TasksMax=`), or look for what starts so many.",),
        (
            sign(0.93, r"fork(?:ing)?\b.{0,60}(?:resource temporarily unavailable|retry|cannot|can't)"),
            sign(
                0.93,
                r"can'?t start new thread",
                r"unable to create (?:new )?native thread",
                r"pthread_create.{0,40}failed",
            ),
            sign(0.93, r"can'?t fork", r"BlockingIOError: \[Errno 11\]", r"failed to create new OS thread"),
        ),
    ),
    Cause(
        "read_only",
        "It writes to a file system that is read-only.",
        (
            "Mount a writable volume or a tmpfs at the path that it writes to.",
            "On a host, look in the kernel's log: a damaged disk is remounted read-only.",
        ),
        (
            sign(0.95, r"(?<![^\s'\"(=:])(?P<what>/[^\s:'\"]{1,200})['\"]?:? .{0,20}read-only file ?system"),
            sign(
                0.93,
                r"read-only file ?system",
                r"attempt to write a readonly database",
                r"remounting filesystem read-only",
            ),
            exact(0.95, r"\bEROFS\b"),
        ),
    ),
    Cause(
        "storage_fault",
        "The storage below it reports errors.",
        ("Look at the disk (`smartctl -a`, `dmesg`), and have a backup before anything else.",),
        (
            sign(
                0.9,
                r"\binput/output error\b",
                r"\bI/O error,? (?:on )?dev",
                r"buffer I/O error",
                r"medium error",
                r"blk_update_request: ",
            ),
            exact(0.88, r"\bEIO\b", r"EXT4-fs error", r"XFS .{0,40}(?:corruption|metadata I/O error)", r"BTRFS error"),
        ),
        topics=("disk", "storage"),
    ),
    Cause(
        "data_corrupt",
        "Its data is damaged.",
        ("Restore from a backup, or use the program's own check and repair; keep a copy of the damaged data first.",),
        (
            sign(
                0.94,
                r"database disk image is malformed",
                r"invalid page in block",
                r"could not locate a valid checkpoint",
            ),
            sign(
                0.85,
                r"(?:data|index|file|log|journal|segment|block|page)s?\b.{0,30}\bcorrupt(?:ed|ion)?\b",
                r"checksum mismatch",
            ),
            sign(0.94, r"bad file format reading the append only file", r"wrong signature trying to load DB"),
        ),
    ),
    Cause(
        "data_version",
        "Its data was written by another version of the program.",
        ("Go back to the version that wrote the data, or migrate the data as the program's upgrade notes say.",),
        (
            sign(
                0.96,
                r"database files are incompatible with server",
                r"data directory was initiali[sz]ed by .{0,40}version",
            ),
            sign(
                0.92,
                r"can't handle RDB format version",
                r"unsupported (?:data|storage|on-disk) (?:format )?version",
                r"downgrade is not supported",
            ),
            sign(0.85, r"cannot (?:be )?(?:downgrade|upgrade)d? .{0,60}version"),
        ),
    ),
    Cause(
        "locked",
        "Something else holds a lock that it needs: another instance of it, or one that died.",
        ("See whether another instance uses the same data; if none does, remove the lock that was left behind.",),
        (
            sign(
                0.92,
                r"another (?:instance|process|server|mongod).{0,60}(?:running|using|in use)",
                r"lock ?file .{0,120}already exists",
            ),
            sign(
                0.88,
                r"(?:could not|unable to|failed to|can't|cannot) (?:acquire|obtain|get|lock|take)\b.{0,60}\block\b",
            ),
            sign(
                0.88,
                r"database is locked",
                r"lock ?file already in use",
                r"resource is locked",
                r"unable to lock",
                r"Could not get lock",
            ),
        ),
    ),
)
