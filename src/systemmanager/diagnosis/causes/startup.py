"""It can't begin, or not go on: something that it needs is missing or wrong."""

from systemmanager.diagnosis.causes.sign import Cause, Told, exact, sign
from systemmanager.diagnosis.facts import Facts

_CONFIG = r"(?:conf(?:ig(?:uration)?)?|settings|ya?ml|json|toml|ini)\b"


def _no_program(facts: Facts) -> Told | None:
    return (0.75, "exit_code=127") if facts.exit_code == 127 else None


def _not_executable(facts: Facts) -> Told | None:
    return (0.55, "exit_code=126") if facts.exit_code == 126 else None


CAUSES = (
    Cause(
        "missing_environment",
        "An environment variable that it needs is not set.",
        ("Set the variable (`environment:` in Compose, `-e`, `Environment=` of a unit), or the file that holds it.",),
        (
            exact(
                0.96, r"KeyError: '(?P<what>[A-Z][A-Z0-9_]{1,80})'(?=[\s\S]*(?:os\.environ|environ\[|os\.py|frozen os))"
            ),
            sign(
                0.96,
                r"(?:^|[\s:])(?P<what>[A-Za-z_][A-Za-z0-9_]{1,80}): (?:parameter (?:null or )?not set"
                r"|unbound variable)",
            ),
            exact(
                0.93,
                r"(?P<what>\b[A-Z][A-Z0-9]*_[A-Z0-9_]{1,80})\b.{0,40}\b(?:must be set|must be provided"
                r"|is required|not set|is not set|is missing|is undefined|is not defined|is empty|must not be empty)",
            ),
            exact(
                0.88,
                r"(?i:missing|required|undefined|unset|set the|specify"
                r"|define)\b.{0,60}\b(?P<what>[A-Z][A-Z0-9]*_[A-Z0-9_]{1,80})\b",
            ),
            sign(
                0.93,
                r"(?:environment|env)[ _]?var(?:iable)?s? .{0,80}(?:not (?:set|found|defined)|missing|required"
                r"|must be|undefined)",
            ),
            sign(
                0.94,
                r"(?:missing|required|undefined|unset) (?:required )?(?:environment|env)[ _]?var",
                r"environment variable not found",
            ),
            sign(
                0.96,
                r"superuser password is not specified",
                r"database is uninitiali[sz]ed and password option is not specified",
            ),
        ),
        topics=("environment", "variable", "env"),
    ),
    Cause(
        "config_syntax",
        "Its configuration is wrong or can't be read.",
        ("Correct the line that the message names, and check it before the next start (`nginx -t`, `sshd -t` ...).",),
        (
            sign(
                0.96,
                r"unknown directive",
                r"invalid number of arguments in",
                r"directive is not (?:terminated|allowed)",
                r"unexpected (?:end of file|\"[;{}]\"),? (?:expecting|in) ",
            ),
            sign(
                0.93,
                r"(?<![^\s'\"(=:])(?P<what>/[^\s:'\"]{1,200}\.(?:conf|cfg|ya?ml|json|toml|ini))\b"
                r".{0,80}(?:syntax error|invalid"
                r"|parse error|unexpected|malformed|line \d)",
            ),
            sign(
                0.92,
                rf"(?:invalid|bad|malformed|broken|wrong|unparsable|errors? in) (?:\w+ ){{0,2}}"
                rf"[\w./-]{{0,120}}?{_CONFIG}",
            ),
            sign(
                0.9,
                rf"(?:failed|unable|cannot|can't|could not|error) (?:to )?(?:load|loading|pars\w+|read|reading"
                rf"|decod\w+|process\w+|unmarshal\w*) .{{0,60}}{_CONFIG}",
            ),
            sign(
                0.92,
                rf"{_CONFIG}.{{0,60}}(?:syntax error|is invalid|not valid|parse error|could not be parsed"
                rf"|test failed)",
            ),
            sign(
                0.95,
                r"fatal config file error",
                r"bad directive or wrong number",
                r"mapping values are not allowed",
                r"yaml: line \d",
                r"yaml\.(?:scanner|parser)\.",
            ),
            sign(
                0.88,
                r"JSONDecodeError",
                r"Unexpected token .{1,40} in JSON",
                r"is not valid JSON",
                r"cannot unmarshal",
                r"toml(?:lib)?\.\w*DecodeError",
                r"configparser\.\w*Error",
            ),
            sign(
                0.88,
                r"unrecognized (?:option|argument|configuration parameter)",
                r"unknown (?:option|flag|setting|configuration key)",
                r"flag provided but not defined",
            ),
        ),
        topics=("config", "configuration", "syntax"),
    ),
    Cause(
        "wrong_architecture",
        "The program was built for another kind of processor, or its first line names no interpreter.",
        ("Use an image or a build for this machine's architecture; a script needs `#!` as its first bytes.",),
        (
            sign(
                0.96,
                r"exec format error",
                r"cannot execute binary file",
                r"bad CPU type",
                r"cannot execute: required file",
            ),
            exact(0.95, r"\bENOEXEC\b"),
        ),
        topics=("architecture", "platform"),
    ),
    Cause(
        "missing_program",
        "A program that is to be run is not there.",
        ("Correct the command or PATH, or install the program in the image; see CMD and ENTRYPOINT.",),
        (
            sign(
                0.97, r"exec: \"?(?P<what>[^\"\s]{1,200})\"?: (?:executable file not found|stat .{1,200}no such file)"
            ),
            sign(
                0.93,
                r"(?:^"
                r"|\n)(?:\S{1,60}: )?(?:line )?(?:\d+: )?(?P<what>[\w./-]{1,120}): (?:command )?not found(?=\n|$)",
            ),
            sign(
                0.95,
                r"exec(?:ing)? (?P<what>\S{1,200}): no such file or directory",
                r"executable file not found",
                r"Failed at step EXEC",
            ),
            sign(
                0.85,
                r"can't execute '(?P<what>[^']{1,200})': No such file",
                r"FileNotFoundError: .{0,60}No such file or directory: '(?P<where>[\w-]{1,60})'",
            ),
        ),
        _no_program,
        topics=("command", "program"),
    ),
    Cause(
        "missing_module",
        "A library or module that it needs is not there, or of another version.",
        ("Install what is missing in the image, in the version that the program was built with.",),
        (
            exact(
                0.96,
                r"ModuleNotFoundError: No module named '?(?P<what>[\w.]{1,120})",
                r"Cannot find (?:module|package) '(?P<where>[^']{1,200})",
            ),
            sign(
                0.96,
                r"error while loading shared libraries: (?P<what>[\w.+-]{1,120})",
                r"cannot open shared object file",
                r"Error loading shared library",
            ),
            exact(
                0.93,
                r"ImportError: ",
                r"ClassNotFoundException",
                r"NoClassDefFoundError",
                r"ERR_MODULE_NOT_FOUND",
                r"UnsupportedClassVersionError",
            ),
            sign(
                0.94,
                r"cannot load such file -- (?P<what>\S{1,200})",
                r"could not load file or assembly",
                r"Class \"[\w\\]{1,200}\" not found",
            ),
            sign(
                0.94,
                r"symbol (?:lookup error|not found)",
                r"version [`'](?:GLIBC|GLIBCXX|OPENSSL)\w*_?[\d.]+' not found",
                r"undefined symbol",
            ),
        ),
        topics=("module", "library", "import"),
    ),
    Cause(
        "program_error",
        "The program's own text can't be understood by its interpreter.",
        ("Correct the line that the message names, or go back to the version before.",),
        (
            exact(0.93, r"(?:^|\n)\s*(?:SyntaxError|IndentationError|TabError): "),
            sign(
                0.9,
                r"PHP Parse error:",
                r": syntax error:? (?:unexpected|near)",
                r"syntax error, unexpected",
                r"unterminated quoted string",
                r"unexpected EOF while looking",
            ),
        ),
    ),
    Cause(
        "missing_file",
        "A file or folder that it needs is not there.",
        ("See whether the volume is mounted where the program looks, and whether the path is right.",),
        (
            sign(
                0.86,
                r"no such file or directory:? ['\"](?P<what>[^'\"]{1,200})",
                r"(?<![^\s'\"(=:])(?P<where>/[^\s:'\"]{1,200})['\"]?:? .{0,40}no such file or directory",
            ),
            sign(
                0.82,
                r"no such file or directory",
                r"\bENOENT\b",
                r"unable to access jarfile",
                r"FileNotFound(?:Error|Exception)",
                r"NoSuchFileException",
            ),
            sign(
                0.8,
                r"(?:file|directory|folder|path) (?:\S{1,200} )?(?:does not exist|not found|is missing)",
                r"(?:cannot|can't|could not) (?:find|open) (?:the )?(?:file|directory)",
            ),
        ),
        topics=("file", "volume", "mount"),
    ),
    Cause(
        "dependency_not_ready",
        "It waited for something that it depends on, which was not ready in time.",
        (
            "Start it after what it needs is healthy (`depends_on: condition: service_healthy`), and let it retry.",
            "Look at what it waits for: that may be where the fault is.",
        ),
        (
            sign(
                0.92,
                r"(?:gave|giving) up (?:waiting|connecting|trying|after)",
                r"(?:max(?:imum)?|too many) (?:number of )?(?:retries|attempts|connection attempts)",
                r"retries exhausted",
                r"after \d+ (?:failed )?(?:attempts|retries|tries)",
            ),
            sign(
                0.91,
                r"tim(?:ed|e) ?out (?:while )?waiting (?:for|on) (?P<what>\S{1,80})",
                r"waited .{1,40}for (?P<where>\S{1,80}).{0,40}(?:timeout|giving up|not)",
            ),
            sign(
                0.86,
                r"(?<![\w.:-])(?P<what>[\w.:-]{1,80})"
                r" (?:is|was) (?:still )?(?:not (?:yet )?(?:ready|available|up|healthy)"
                r"|unavailable)(?:\b.{0,40}(?:retry|wait|sleep|try))?",
            ),
            sign(
                0.9,
                r"the database system is (?:starting up|shutting down|in recovery mode)",
                r"dependency failed for",
                r"LOADING Redis is loading",
            ),
            sign(
                0.86,
                r"dependency (?:\S{1,60} )?(?:failed|is unhealthy|not (?:ready|available))",
                r"no (?:live upstreams|healthy upstream|leader)\b",
            ),
        ),
        topics=("dependency", "ready", "waiting", "start"),
    ),
    Cause(
        "not_executable",
        "What is to be run may not be executed.",
        ("Make it executable (`chmod +x`), and see that its mount is not `noexec`.",),
        (),
        _not_executable,
    ),
)
