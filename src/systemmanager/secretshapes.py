"""Where in a text stands something that looks like a secret: by its own shape, or by the name before it.

One quick search finds the words that a secret begins with; only there the patterns are tried. Every repetition in them
is bounded or possessive, so that hostile text costs no more than other text.
"""

import re
from collections.abc import Iterator

_SHAPES: tuple[tuple[str, str], ...] = (
    (
        "-----begin",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
        r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    ),
    ("eyj", r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{6,1024}+\.[A-Za-z0-9_-]{6,}+(?:\.[A-Za-z0-9_-]*+){0,3}"),
    ("akia", r"\bAKIA[A-Z0-9]{16}\b"),
    ("asia", r"\bASIA[A-Z0-9]{16}\b"),
    ("gh", r"\bgh[pousr]_[A-Za-z0-9]{30,}+"),
    ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{30,}+"),
    ("gl", r"\bgl(?:pat|rt|dt|ptt|cbt|soat)-[A-Za-z0-9_.-]{20,}+"),
    ("xox", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}+"),
    ("xapp-", r"\bxapp-[A-Za-z0-9-]{10,}+"),
    ("hooks.slack.com", r"\bhooks\.slack\.com/services/(?P<value>[A-Za-z0-9/]{20,}+)"),
    ("sk_", r"\bsk_(?:live|test)_[A-Za-z0-9]{16,}+"),
    ("rk_", r"\brk_(?:live|test)_[A-Za-z0-9]{16,}+"),
    ("sk-", r"\bsk-(?=[a-z0-9_-]{0,40}[A-Z0-9])[A-Za-z0-9_-]{20,}+"),
    ("tskey-", r"\btskey-[a-z]{2,20}-[A-Za-z0-9-]{10,}+"),
    ("aiza", r"\bAIza[A-Za-z0-9_-]{35}"),
    ("npm_", r"\bnpm_[A-Za-z0-9]{30,}+"),
    ("pypi-", r"\bpypi-[A-Za-z0-9_-]{30,}+"),
    ("hf_", r"\bhf_[A-Za-z0-9]{30,}+"),
    ("dop_v1_", r"\bdop_v1_[a-f0-9]{30,}+"),
    ("dckr_pat_", r"\bdckr_pat_[A-Za-z0-9_-]{20,}+"),
    ("hvs.", r"\bhvs\.[A-Za-z0-9_-]{20,}+"),
    ("age-secret-key-1", r"\bAGE-SECRET-KEY-1[A-Z0-9]{50,}+"),
    (
        "authorization",
        r"(?i:authorization[\"']?\s{0,8}[:=]\s{0,8}[\"']?(?:(?:bearer|basic|token|digest|apikey)\s{1,8})?)"
        r"(?P<value>[^\s\"',;]{1,8192}+)",
    ),
    ("cookie", r"(?i:cookie[\"']?\s{0,8}:\s{0,8}[\"']?)(?P<value>[^\s\"'][^\r\n\"']{0,8192}+)"),
    ("bearer", r"\b(?i:bearer\s{1,8})(?P<value>(?=[A-Za-z._~+/-]{0,60}[0-9])[A-Za-z0-9._~+/=-]{8,8192}+)"),
    ("://", r"://[^\s/:@\"'<>]{0,256}:(?P<value>[^\s/\"'<>]{1,512})@"),
    (" -u", r" -u[ =]?[\"']?[\w.@-]{1,64}:(?P<value>[^\s\"']{1,512}+)"),
    (" --user", r" --user[ =][\"']?[\w.@-]{1,64}:(?P<value>[^\s\"']{1,512}+)"),
)
"""What begins a secret (in lower case), and the secret from there on; with a group `value`, only that is one."""

_BEGINNINGS = (
    "passw", "passp", "pass", "pwd", "secret", "token", "credential", "api", "access", "private", "account", "signing",
    "encryption", "auth",
)  # fmt: skip
# `pass` alone only as a word of its own (not `bypass`), `token` not in the plural.
_WORD = (
    r"passwo?rd|(?<!/)passwd|passphrase|(?<![A-Za-z])pass(?![A-Za-z])|(?<=DB)PASS(?![A-Za-z])|pwd|secret|token|credentials?"
    r"|(?:api|access|private|account|signing|encryption|auth)[_-]?key"
)
# What may follow the word in the name of a secret; the words left out make it the name of something harmless.
_SUFFIX = (
    r"(?:(?-i:[A-Z][a-z]+)|[_.-](?!(?:file|path|dir|url|uri|endpoint|policy|auth|authentication|length|count|limits?|ttl"
    r"|bucket|type|names?|expir\w*|age|min|max|ids?|store|rotation|reset|last|changed?|required|enabled|attempts|version"
    r")(?![a-z0-9]))[a-z0-9]{1,32}){0,4}(?![A-Za-z0-9])"
)
NAME = rf"(?i:(?:{_WORD}){_SUFFIX})"
# A quoted value up to its closing quote, else up to white space or to the next pair of a list of pairs.
_VALUE = (
    r"(?:\\?\"(?P<double>(?:[^\"\\\n]|\\[^\n]){0,4096})|'(?P<single>[^'\n]{0,4096})"
    r"|(?P<bare>(?:(?![,;&]\s{0,4}[\w.-]{1,64}\\?[\"']?\s{0,4}[=:])[^\s\"'}\])]){1,4096}))"
)
_NAMED = re.compile(NAME)
_PAIR = re.compile(rf"\\?[\"']?\s{{0,8}}(?:=>|:=|[=:])\s{{0,8}}{_VALUE}")
_REST_OF_LINE = re.compile(r"[ \t]{0,8}[=:][ \t]{1,8}(?P<bare>[^\s\"'{\[|>][^\n]{0,4096})")
_AFTER_OPTION = re.compile(rf"\s{{1,8}}{_VALUE}")
_OPTION = re.compile(r"(?:^|\s)--?[\w-]*$")
_LINE_START = re.compile(r"(?:^|\n)[ \t-]*(?:export )?[\w.-]*$")

HARMLESS = re.compile(
    r"(?:true|false|yes|no|none|null|nil|on|off|enabled|disabled|required|optional|unset|empty|set|missing|expired"
    r"|invalid|prohibit-password|without-password|\*+|-|<[^>]*>|\$\{?\w+\}?|\[redacted\])[,;.)]?",
    re.IGNORECASE,
)
"""Values that say nothing secret even under a secret's name."""

_PATTERNS = {beginning: re.compile(pattern) for beginning, pattern in _SHAPES}
_BEGIN = re.compile("|".join(re.escape(word) for word in sorted([*_PATTERNS, *_BEGINNINGS], key=len, reverse=True)))

Span = tuple[int, int]


def secret_spans(text: str) -> Iterator[Span]:
    """Where the secrets of a text stand, in order and apart from each other."""
    # One letter alone gets longer when it is made small: without it positions stay what they are.
    lowered = text.replace("\u0130", "I").lower()
    begin = _BEGIN.search(lowered)
    while begin is not None:
        span = _by_shape(text, begin) or _by_name(text, begin.start())
        if span is not None and span[1] > span[0]:
            yield span
        begin = _BEGIN.search(lowered, span[1] if span and span[1] > begin.start() else begin.start() + 1)


def _by_shape(text: str, begin: re.Match[str]) -> Span | None:
    pattern = _PATTERNS.get(begin[0])
    match = pattern.match(text, begin.start()) if pattern else None
    if match is None:
        return None
    return match.span("value") if "value" in match.re.groupindex else match.span()


def _by_name(text: str, position: int) -> Span | None:
    name = _NAMED.match(text, position)
    if name is None:
        return None
    before = text[max(0, position - 80) : position]
    if (line := _REST_OF_LINE.match(text, name.end())) and _LINE_START.search(before):
        found = line
    elif pair := _PAIR.match(text, name.end()):
        found = pair
    elif _OPTION.search(before) and (option := _AFTER_OPTION.match(text, name.end())):
        found = option
    else:
        return None
    span = found.span(found.lastgroup or 0)
    return None if HARMLESS.fullmatch(text[span[0] : span[1]].strip()) else span
