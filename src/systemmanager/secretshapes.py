"""Where in a text stands something that looks like a secret: by its own shape, or by the name before it.

One quick search finds the words that a secret begins with; only there the patterns are tried. Every repetition in them
is bounded or possessive, so that hostile text costs no more than other text.
"""

import base64
import re
from collections.abc import Iterator
from functools import lru_cache

_HASHES = ("$1$", "$5$", "$6$", "$y$", "$2a$", "$2b$", "$2y$", "$apr1$", "$argon2", "$scrypt$")
_HASH = r"\$(?:[156y]|2[aby]|apr1|argon2id?|scrypt)\$(?P<value>[A-Za-z0-9./$,=+-]{16,}+)"

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
    ("sg.", r"\bSG\.[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{16,}+"),
    ("ya29.", r"\bya29\.[A-Za-z0-9_-]{20,}+"),
    ("shp", r"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    ("sig=", r"(?<=[?&])sig=(?P<value>[A-Za-z0-9%+/=_-]{16,}+)"),
    ("-signature=", r"(?<=[xX]-(?i:amz|goo))[gG]?-[sS]ignature=(?P<value>[A-Za-z0-9%+/=_-]{16,}+)"),
    ("/api/webhooks/", r"/api/webhooks/\d{1,20}/(?P<value>[\w-]{16,}+)"),
    ("telegram.org/bot", r"telegram\.org/bot(?P<value>\d{1,20}:[\w-]{20,}+)"),
    ('auth"', r"[aA]uth\\?\"\s{0,8}:\s{0,8}\\?\"(?P<value>[A-Za-z0-9+/=]{8,}+)"),
    ("psk", r"\bpsk\s{0,4}[=:]\s{0,4}\"?(?P<value>[^\s\"]{8,64})"),
    ("requirepass", r"\brequirepass[ \t]{1,8}[\"']?(?P<value>[^\s\"']{1,512}+)"),
    ("masterauth", r"\bmasterauth[ \t]{1,8}[\"']?(?P<value>[^\s\"']{1,512}+)"),
    ("login ", r"\blogin\s{1,8}\S{1,64}\s{1,8}password\s{1,8}(?P<value>\S{1,512}+)"),
    (":5432:", r":5432:[\w*-]{1,64}:[\w*.@-]{1,64}:(?P<value>[^\s:]\S{0,512}+)"),
    ("sshpass", r"\bsshpass\s{1,4}-p\s{0,4}(?P<value>\S{1,512}+)"),
    ("redis-cli", r"\bredis-cli\b[^\n|;&]{0,60}?\s-a\s{1,4}(?P<value>\S{1,512}+)"),
    ("mysql", r"\bmysql(?:dump|admin)?\b[^\n|;&]{0,60}?\s-p(?P<value>[^\s-]\S{0,512}+)"),
    ("ldap", r"\bldap(?:search|modify|add|delete|passwd)\b[^\n|;&]{0,60}?\s-w\s{1,4}(?P<value>\S{1,512}+)"),
    (
        "define(",
        r"define\(\s{0,4}['\"]\w{0,60}?(?:PASS|SECRET|KEY|TOKEN|SALT)\w{0,20}['\"]\s{0,4},\s{0,4}['\"](?P<value>[^'\"\n]{1,512})",
    ),
    ("%3a%2f%2f", r"(?i:%3a%2f%2f)[^\s\"'<>%]{0,64}(?i:%3a)(?P<value>[^\s\"'<>]{1,100}?)(?i:%40)"),
    *((beginning, _HASH) for beginning in _HASHES),
    ("age-secret-key-1", r"\bAGE-SECRET-KEY-1[A-Z0-9]{50,}+"),
    (
        "authorization",
        r"(?i:authorization[\"']?\s{0,8}[:=]\s{0,8}[\"']?(?:(?:bearer|basic|token|digest|apikey)\s{1,8})?)"
        r"(?P<value>[^\s\"',;]{1,8192}+)",
    ),
    ("cookie", r"(?i:cookie[\"']?\s{0,8}:\s{0,8}[\"']?)(?P<value>[^\s\"'][^\r\n\"']{0,8192}+)"),
    ("bearer", r"\b(?i:bearer\s{1,8})(?P<value>(?=[A-Za-z._~+/-]{0,60}[0-9])[A-Za-z0-9._~+/=-]{8,8192}+)"),
    (
        "://",
        r"://(?:(?P<user>(?=[A-Za-z_-]{0,40}[0-9])[A-Za-z0-9_-]{20,256}+(?::[\w-]{0,16})?)(?=@|\Z)"
        r"|[^\s/:@\"'<>]{0,256}:(?!\d{1,5}(?:[/\s.]|\Z))(?P<value>[^\s/\"'<>]{1,512}?)(?:@(?![^\s/\"'<>]{0,512}@)|(?:\.{3})?\Z))",
    ),
    (" -u", r" -[uU][ =]?[\"']?[\w.@-]{1,64}[:%](?P<value>[^\s\"']{1,512}+)"),
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
    r"(?:\\{0,3}\"(?P<double>(?:[^\"\\\n]|\\[^\n]){0,4096})|\\{0,3}'(?P<single>[^'\n]{0,4096})"
    r"|(?P<bare>(?:(?![,;&]\s{0,4}[\w.-]{1,64}\\?[\"']?\s{0,4}[=:])[^\s\"'}\])]){1,4096}))"
)
_NAMED = re.compile(NAME)
_PAIR = re.compile(
    rf"(?:\\{{0,3}}[\"']|&quot;)?\]?\s{{0,8}}(?:=>|:=|[=:]|%3[dDaA]|\\u003[dDaA])\s{{0,8}}(?:\\\n\s{{0,40}}|&quot;)?{_VALUE}"
)
# A text block of YAML: all lines that are as deep as its first.
_BLOCK = re.compile(
    r"[\"']?[ \t]{0,4}:[ \t]{0,4}[|>][+-]?\d?[ \t]{0,8}\n"
    r"(?P<indent>[ \t]{1,40})(?P<bare>[^\n]{1,4096}(?:\n(?P=indent)[^\n]{1,4096}){0,200})"
)
_ELEMENT = re.compile(r">[ \t]{0,8}(?P<bare>[^<>\n]{1,4096})</")
# `{"name": "DB_PASSWORD", "value": "..."}`, `<add key="ApiKey" value="..."/>`, and in YAML a line each.
_NAME_AND_VALUE = re.compile(rf"\\?[\"']?,?\s{{1,40}}\\?[\"']?[vV]alue\\?[\"']?\s{{0,4}}[:=]\s{{0,4}}{_VALUE}")
_REST_OF_LINE = re.compile(r"[ \t]{0,8}[=:][ \t]{1,8}(?P<bare>[^\s\"'{\[|>][^\n]{0,4096})")
_IN_PATH = re.compile(r"[\w-]/[\w.-]*$")
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
_ALL_BEGINNINGS = tuple(sorted({*_PATTERNS, *_BEGINNINGS}, key=len, reverse=True))
_LONG_TEXT = 4096


@lru_cache(maxsize=128)
def _search_for(beginnings: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, beginnings)))


_ANY_BEGINNING = _search_for(_ALL_BEGINNINGS)

Span = tuple[int, int]


def _in_base64(word: str) -> Iterator[str]:
    """What base64 makes of a word, wherever in the encoded text it stands: whole sextets of each of three places."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + word.encode()).decode().rstrip("=")
        first, rest = (before * 8 + 5) // 6, (before + len(word)) * 8 // 6
        yield encoded[first:rest]


_ENCODED_WORDS = (
    "password",
    "Password",
    "PASSWORD",
    "secret",
    "SECRET",
    "_TOKEN",
    "token=",
    "Authorization",
    "PRIVATE KEY",
)
_ENCODED = tuple(form for word in _ENCODED_WORDS for form in _in_base64(word))
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"
_SHORTEST_RUN = 20
_LONGEST_RUN = 65_536


def _decoded(run: str) -> Iterator[str]:
    """What base64 says, whichever of its first four characters it begins with: other letters may stand before it."""
    standard = run.replace("-", "+").replace("_", "/")
    for skipped in range(4):
        whole = (len(standard) - skipped) // 4 * 4
        rest = standard[skipped + whole :]
        padded = standard[skipped : skipped + whole] + (rest + "=" * (4 - len(rest)) if len(rest) > 1 else "")
        yield base64.b64decode(padded).decode("utf-8", "replace")


def encoded_spans(text: str) -> Iterator[Span]:
    """Where base64 stands that holds a secret when it is decoded."""
    words = tuple(form for form in _ENCODED if form in text) if len(text) >= _SHORTEST_RUN else ()
    if not words:
        return
    search, done = _search_for(words).search, 0
    while (found := search(text, done)) is not None:
        before = text[max(done, found.start() - _LONGEST_RUN) : found.start()]
        after = text[found.end() : found.end() + _LONGEST_RUN]
        start = found.start() - (len(before) - len(before.rstrip(_ALPHABET)))
        end = found.end() + (len(after) - len(after.lstrip(_ALPHABET)))
        if any(next(secret_spans(plain), None) is not None for plain in _decoded(text[start:end])):
            yield start, end
        done = end


def secret_spans(text: str) -> Iterator[Span]:
    """Where the secrets of a text stand, in order and apart from each other."""
    # One letter alone gets longer when it is made small: without it positions stay what they are.
    lowered = text.replace("\u0130", "I").lower()
    # A look for each word alone is much faster than the search for all of them: long texts hold few.
    search = _ANY_BEGINNING.search
    if len(text) > _LONG_TEXT:
        words = tuple(word for word in _ALL_BEGINNINGS if word in lowered)
        if not words:
            return
        search = _search_for(words).search
    begin = search(lowered)
    while begin is not None:
        span = _by_shape(text, begin) or _by_name(text, begin.start())
        if span is not None and span[1] > span[0]:
            yield span
        begin = search(lowered, span[1] if span and span[1] > begin.start() else begin.start() + 1)


def _by_shape(text: str, begin: re.Match[str]) -> Span | None:
    pattern = _PATTERNS.get(begin[0])
    match = pattern.match(text, begin.start()) if pattern else None
    if match is None:
        return None
    return match.span(match.lastgroup or 0)


def _by_name(text: str, position: int) -> Span | None:
    name = _NAMED.match(text, position)
    if name is None:
        return None
    before = text[max(0, position - 80) : position]
    if (
        text[name.end() : name.end() + 1] == ":"
        and text[name.end() + 1 : name.end() + 2].strip()
        and _IN_PATH.search(before)
    ):
        return None  # an image and its tag
    if (line := _REST_OF_LINE.match(text, name.end())) and _LINE_START.search(before):
        found = line
    elif block := _BLOCK.match(text, name.end()):
        found = block
    elif pair := _PAIR.match(text, name.end()):
        found = pair
    elif other := _ELEMENT.match(text, name.end()) or _NAME_AND_VALUE.match(text, name.end()):
        found = other
    elif _OPTION.search(before) and (option := _AFTER_OPTION.match(text, name.end())):
        found = option
    else:
        return None
    span = found.span(found.lastgroup or 0)
    return None if HARMLESS.fullmatch(text[span[0] : span[1]].strip()) else span
