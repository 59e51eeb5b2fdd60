"""Something that it wants to reach, or to listen on, is not to be had."""

from systemmanager.diagnosis.causes.sign import Cause, exact, sign

CAUSES = (
    Cause(
        "port_conflict",
        "The port that it wants is taken by something else.",
        (
            "Find what listens there (`ss -ltnp`, get_active_connections), and stop it or use another port.",
            "Two containers can't publish one host port; two processes of one container can't listen on one port.",
        ),
        (
            sign(0.95, r"address already in use", r"address in use\b", r"only one usage of each socket"),
            exact(0.95, r"\bEADDRINUSE\b"),
            sign(0.97, r"port is already allocated", r"bind for \S{1,60} failed", r"bind\(\).{0,120}failed \(98"),
            sign(0.94, r"\bport \d{1,5} (?:is )?(?:already )?(?:in use|was already in use|is occupied|taken)"),
        ),
        topics=("port", "bind"),
    ),
    Cause(
        "dns",
        "A name can't be resolved.",
        (
            "See whether the name is right, and whether the container shares a network with what it names.",
            "Ask the target's resolvers with dns_lookup.",
        ),
        (
            sign(0.96, r"(?:getaddrinfo|queryA\w*) (?:ENOTFOUND|EAI_AGAIN|ENODATA)(?: (?P<what>[\w.-]{1,200}))?"),
            sign(
                0.96,
                r"lookup (?P<what>[\w.-]{1,200})(?: on \S{1,60})?: (?:no such host|server misbehaving"
                r"|.{0,60}i/o timeout)",
            ),
            sign(
                0.95,
                r"(?:could not resolve host|couldn't resolve host(?: name)?"
                r"|unable to resolve(?: host)?)(?: address)?[: ]+['\"]?(?P<what>[\w.-]{1,200})",
            ),
            sign(0.96, r"could not translate host name ['\"]?(?P<what>[\w.-]{1,200})"),
            sign(
                0.95,
                r"bad address '?(?P<what>[\w.-]{1,200})",
                r"host not found in (?:upstream|resolver) \"?(?P<where>[\w.-]{1,200})",
            ),
            sign(
                0.95, r"UnknownHost(?:Exception)?: (?P<what>[\w.-]{1,200})", r"can't resolve '?(?P<where>[\w.-]{1,200})"
            ),
            sign(
                0.94,
                r"temporary failure in name resolution",
                r"name or service not known",
                r"name does not resolve",
                r"name resolution (?:failed|failure)",
            ),
            sign(
                0.93,
                r"nodename nor servname",
                r"no such host\b",
                r"unknown host\b",
                r"server can't find \S{1,200}: NXDOMAIN",
            ),
        ),
        topics=("dns", "resolve", "name"),
    ),
    Cause(
        "tls_expired",
        "A certificate has expired.",
        (
            "Renew the certificate, and reload what serves it; check_ssl_certificate shows its dates.",
            "See why the renewal did not run.",
        ),
        (
            sign(
                0.96,
                r"certificate has expired(?! or is not yet valid: current time \S{1,60} is before)",
                r"certificate expired",
            ),
            exact(
                0.97,
                r"\bCERT_HAS_EXPIRED\b",
                r"verify error:num=10:",
                r"alert number 45",
                r"CertificateExpiredException",
            ),
            sign(
                0.95,
                r"certificate (?:\S{1,80} )?(?:is|was) expired",
                r"\bNotAfter: .{1,60}expired",
                r"SSL certificate problem: certificate has expired",
            ),
        ),
        topics=("tls", "ssl", "certificate", "https"),
    ),
    Cause(
        "clock_skew",
        "Clocks disagree: this machine's, or that of what it talks to.",
        ("Compare the clocks (`date -u`), and let one time service set both (`timedatectl`).",),
        (
            sign(
                0.95,
                r"certificate (?:is|was) not yet valid",
                r"is not yet valid: current time \S{1,60} is before",
                r"verify error:num=9:",
            ),
            sign(
                0.93,
                r"\bclock[ _-]?skew(?!.{0,20}(?:within|ok\b|0 ?ms))",
                r"RequestTimeTooSkewed",
                r"clock moved backwards",
                r"clock is (?:ahead|behind)",
            ),
            sign(
                0.9,
                r"token (?:used before issued|is not yet valid)",
                r"issued in the future",
                r"timestamp .{0,40}in the future",
                r"time (?:is )?too far in the",
            ),
        ),
        topics=("clock", "time"),
    ),
    Cause(
        "tls_untrusted",
        "A certificate is not trusted, or is for another name.",
        (
            "Install the authority that signed it, or connect by a name that stands in it.",
            "check_ssl_certificate shows the chain and the names.",
        ),
        (
            sign(
                0.94,
                r"self[- ]signed certificate",
                r"unknown certificate authority",
                r"certificate signed by unknown authority",
                r"unable to get (?:local )?issuer certificate",
            ),
            sign(
                0.94,
                r"PKIX path building failed",
                r"unable to verify the first certificate",
                r"UNABLE_TO_VERIFY_LEAF",
                r"DEPTH_ZERO_SELF_SIGNED",
            ),
            sign(
                0.9,
                r"hostname mismatch",
                r"(?:doesn't|does not) match (?:any of the|certificate'?s? )",
                r"certificate is (?:not )?valid for (?!.{0,40}not yet)",
            ),
            sign(
                0.86,
                r"certificate[_ ]verify[_ ]failed(?!.{0,40}(?:expired|not yet))",
                r"alert (?:unknown|bad) (?:ca|certificate)\b",
            ),
        ),
        topics=("tls", "ssl", "certificate", "https"),
    ),
    Cause(
        "connection_refused",
        "Nothing listens where it connects to.",
        (
            "See whether what it connects to runs, and on which address and port it listens.",
            "In a container, localhost is the container itself: use the other's service name.",
        ),
        (
            sign(0.86, r"ECONNREFUSED (?P<what>[\w.:\[\]-]{1,200})"),
            sign(0.86, r"dial (?:tcp|udp|unix) (?P<what>[\w.:\[\]/-]{1,200}): .{0,60}connection refused"),
            sign(
                0.86,
                r"(?:connect(?:ing)? to|connection to|server at"
                r"|can't connect to remote host) (?!server\b)"
                r"\(?['\"]?(?P<what>[\w.:-]{0,199}\w)\b.{0,120}connection refused",
            ),
            sign(0.86, r"can't connect to \w{5,7} server on '(?P<what>[\w.:-]{1,200})' \(111\b"),
            sign(0.86, r"connection refused.{0,40}running on host \"(?P<what>[\w.:-]{1,200})"),
            sign(
                0.82,
                r"connection refused",
                r"\bECONNREFUSED\b",
                r"connectex: No connection could be made",
                r"actively refused",
            ),
        ),
        topics=("connection", "connect"),
    ),
    Cause(
        "unreachable",
        "There is no way to what it connects to.",
        ("Look at networks, routes and firewalls between the two (traceroute, test_port_connectivity).",),
        (
            sign(0.88, r"no route to host", r"network (?:is )?unreachable", r"host is unreachable"),
            exact(0.88, r"\b(?:EHOSTUNREACH|ENETUNREACH)\b(?: (?P<what>[\w.:]{1,80}))?"),
        ),
        topics=("connection", "connect", "network"),
    ),
    Cause(
        "timed_out",
        "What it waits for does not answer in time.",
        ("See whether the other side is overloaded or a firewall drops packets (test_port_connectivity).",),
        (
            sign(
                0.84,
                r"\bETIMEDOUT\b(?: (?P<what>[\w.:]{1,80}))?",
                r"dial (?:tcp|udp) (?P<where>[\w.:-]{1,200}): i/o timeout",
            ),
            sign(0.82, r"connection timed out", r"connect(?:ion)? time-?out", r"connect(?:ing)? to .{0,120}timed out"),
            sign(
                0.74,
                r"context deadline exceeded",
                r"i/o timeout",
                r"read timed out",
                r"upstream timed out",
                r"TimeoutError",
                r"operation timed out",
            ),
        ),
        topics=("slow", "timeout", "connect"),
    ),
    Cause(
        "rate_limited",
        "What it talks to refuses more requests for now.",
        ("Wait, then ask less often: back off, cache, or raise the quota there. A registry wants a login.",),
        (
            sign(
                0.93,
                r"\btoomanyrequests\b",
                r"rate[ -]?limit(?:ed)?\b.{0,40}(?:exceeded|reached|hit)",
                r"\brate limited\b",
            ),
            sign(
                0.92,
                r"(?:HTTP(?:/[\d.]+)?|status(?: code)?|error|code)[:= \"]{1,4}429\b",
                r"\b429\b.{0,20}too many",
                r"too many requests",
            ),
            sign(
                0.88,
                r"quota (?:has been )?exceeded",
                r"throttl(?:ed|ing)Exception",
                r"RequestLimitExceeded",
                r"slow ?down\b.{0,20}reduce your request",
            ),
        ),
    ),
)
