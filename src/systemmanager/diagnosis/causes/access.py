"""It is not let in, or not let do what it wants; or somebody else tries to get in."""

from systemmanager.diagnosis.causes.sign import Cause, exact, sign

CAUSES = (
    Cause(
        "permission",
        "It may not do what it tries: permission denied.",
        (
            "Compare the owner and mode of the path with the user that it runs as (`user:`, `User=`).",
            "Ports below 1024, devices and mounts may need a capability.",
        ),
        (
            sign(
                0.93,
                r"permission denied: ['\"]?(?P<what>/[^\s'\"]{1,200})",
                r"(?<![^\s'\"(=:])(?P<where>/[^\s'\":]{1,200})['\"]?:? .{0,40}permission denied",
            ),
            sign(
                0.9,
                r"permission denied(?! \((?:publickey|password))(?! for (?:table|schema|relation|database|user"
                r"|sequence))",
            ),
            exact(0.92, r"\b(?:EACCES|EPERM)\b", r"AccessDeniedException", r"UnauthorizedAccessException"),
            sign(
                0.88,
                r"operation not permitted",
                r"access is denied",
                r"insufficient privileges?",
                r"must be run as root",
            ),
        ),
        topics=("permission", "denied", "access"),
    ),
    Cause(
        "database_auth",
        "The database does not let it in: user, password or its access rules are wrong.",
        (
            "Compare user and password with those of the database; a volume keeps those of its first start.",
            "See whether the database's access rules name the address that it comes from.",
        ),
        (
            sign(
                0.96,
                r"password authentication failed",
                r"no pg_hba\.conf entry",
                r"access denied for user",
                r"role \"[^\"]{1,80}\" does not exist",
            ),
            exact(
                0.95,
                r"\bNOAUTH\b",
                r"\bWRONGPASS\b",
                r"ORA-0(?:1017|1005)",
                r"ERR invalid password",
                r"SASL.{0,40}authentication failed",
                r"code 18\b.{0,40}Authentication",
            ),
            sign(
                0.93,
                r"login failed for user",
                r"(?:mongo|mysql|postgres|redis|database|db).{0,80}authentication fail",
                r"authentication failed.{0,80}(?:mongo|SCRAM|database)",
            ),
        ),
        topics=("database", "password", "login"),
    ),
    Cause(
        "database_missing",
        "The database that it asks for is not there.",
        ("Create it, or correct its name; an init script runs on an empty volume only.",),
        (
            sign(
                0.95,
                r"database \"[^\"]{1,80}\" does not exist",
                r"unknown database '",
                r"database .{1,80} not found on server",
            ),
        ),
        topics=("database",),
    ),
    Cause(
        "database_schema",
        "The database lacks a table or a column that it uses: migrations did not run, or are of another version.",
        ("Run the program's migrations, and see whether its version fits the database's.",),
        (
            sign(
                0.92,
                r"relation \"[^\"]{1,120}\" does not exist",
                r"no such table: ",
                r"table '[^']{1,120}' doesn't exist",
            ),
            sign(
                0.9,
                r"unknown column '",
                r"column \"?[\w.]{1,120}\"? does not exist",
                r"no such column: ",
                r"pending migrations",
            ),
            sign(0.85, r"permission denied for (?:table|schema|relation|sequence)"),
        ),
        topics=("database",),
    ),
    Cause(
        "credentials",
        "Its credentials are refused where it asks.",
        ("Renew the token, key or password that it uses, and see that it is the one for this place.",),
        (
            sign(
                0.92,
                r"invalid (?:api[ _-]?key|access token|auth(?:entication|orization)? token|credentials"
                r"|client secret)",
            ),
            exact(
                0.94,
                r"InvalidAccessKeyId",
                r"SignatureDoesNotMatch",
                r"ExpiredToken",
                r"InvalidClientTokenId",
                r"UnauthorizedException",
            ),
            sign(
                0.88,
                r"permission denied \((?:publickey|password)",
                r"authentication (?:has )?failed",
                r"unauthorized: authentication required",
            ),
            sign(
                0.82,
                r"(?:HTTP(?:/[\d.]+)?|status(?: code)?|error|code)[:= \"]{1,4}(?:401|403)\b",
                r"\b401 unauthorized",
                r"\b403 forbidden",
                r"(?:token|api key) (?:has )?expired",
            ),
        ),
        topics=("login", "token", "password", "auth"),
    ),
    Cause(
        "login_attacks",
        "Somebody tries passwords: many logins failed.",
        (
            "Allow keys only (PasswordAuthentication no), and limit who reaches the port.",
            "See whether one of these logins succeeded: look for `Accepted` from the same address.",
        ),
        (
            sign(
                0.9,
                r"failed password for (?:invalid user )?\S{1,80} from (?P<what>\S{1,60})",
                r"invalid user \S{0,80} from (?P<where>\S{1,60})",
                least=5,
            ),
            sign(
                0.88,
                r"authentication failure;.{0,200}rhost=(?P<what>\S{1,60})",
                r"maximum authentication attempts exceeded",
                least=5,
            ),
        ),
        topics=("security", "attack", "attacks", "intrusion", "brute", "login", "logins"),
        deed=True,
    ),
    Cause(
        "break_in",
        "Somebody got in from an address that had tried many logins before.",
        (
            "Take the machine off the network and look at what that login did; end its session, change the password.",
            "Allow keys only (PasswordAuthentication no), and limit who reaches the port.",
        ),
        topics=("security", "attack", "attacks", "intrusion", "break", "login", "logins"),
        deed=True,
    ),
    Cause(
        "rights_misused",
        "Somebody tried to get rights that are not theirs, or made an account that has all of them.",
        ("Ask who that was; look at what the account did before and after, and at the accounts with number 0.",),
        (
            sign(
                0.93,
                r"new user: name=(?P<what>[^,]{1,80}), UID=0,",
                r"change user '(?P<where>[^']{1,80})' UID from '\d{1,10}' to '0'",
            ),
            sign(
                0.85,
                r"(?P<what>\S{1,80}) : (?:user NOT in sudoers|command not allowed) ;",
                r"(?P<where>\S{1,80}) is not in the sudoers file",
            ),
            sign(
                0.75,
                r"(?P<what>\S{1,80}) : \d{1,4} incorrect password attempts? ;",
                r"FAILED SU \(to root\) (?P<where>\S{1,80})",
            ),
        ),
        topics=("security", "misuse", "rights", "intrusion", "sudo", "account"),
        deed=True,
    ),
)
