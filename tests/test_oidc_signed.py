"""Signed access tokens of an issuer: what is accepted, everything that is not, and which keys count."""

from collections.abc import Callable
from typing import Any

import pytest

from systemmanager.server.auth.identity import Identity, Refused, Unavailable
from tests.idp import BASE, NOW, Idp, Moment, encode, jwk, jwt, provider, verifier
from tests.support import run

Changes = dict[str, Any]


async def one(idp: Idp, token: Callable[[Idp], str], **fields: Any) -> Identity:
    async with provider(idp), verifier(idp, **fields) as oidc:
        return (await oidc.identify(token(idp)))[0]


def refused(idp: Idp, token: Callable[[Idp], str], **fields: Any) -> str:
    with pytest.raises(Refused) as caught:
        run(one(idp, token, **fields))
    return str(caught.value)


# --- Signed tokens ----------------------------------------------------------------------------------------------------

GOOD: dict[str, Callable[[Idp], str]] = {
    "RS256": lambda idp: jwt(idp.url),
    "ES256": lambda idp: jwt(idp.url, kind="ES256"),
    "EdDSA": lambda idp: jwt(idp.url, kind="EdDSA"),
    "Ed25519, its newer name": lambda idp: jwt(idp.url, {"alg": "Ed25519"}, kind="EdDSA"),
    "typ as a whole media type": lambda idp: jwt(idp.url, {"typ": "application/at+JWT"}),
    "typ JWT, with a scope": lambda idp: jwt(idp.url, {"typ": "JWT"}),
    "no typ, with a client": lambda idp: jwt(idp.url, {"typ": None}, scope=None),
    "typ at+jwt, with nothing else": lambda idp: jwt(idp.url, scope=None, client_id=None),
    "aud with a slash": lambda idp: jwt(idp.url, aud=f"{BASE}/"),
    "aud the endpoint": lambda idp: jwt(idp.url, aud=f"{BASE}/mcp"),
    "aud one of several": lambda idp: jwt(idp.url, aud=["https://other.test", BASE]),
    "nbf now": lambda idp: jwt(idp.url, nbf=NOW),
    "exp in a day": lambda idp: jwt(idp.url, exp=NOW + 24 * 3600),
    "exp with a fraction": lambda idp: jwt(idp.url, exp=NOW + 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_signed_token_is_accepted(name: str) -> None:
    found = run(one(Idp(), GOOD[name]))
    assert (found.subject, found.kind, found.limits) == ("oidc:u-17", "person", None)


def unsigned(idp: Idp) -> str:
    parts = jwt(idp.url).split(".")
    header = encode(b'{"alg":"none","typ":"at+jwt"}')
    return f"{header}.{parts[1]}."


def with_public_key_as_secret(idp: Idp) -> str:
    return jwt(idp.url, {"alg": "HS256"})


HEADERS: dict[str, Changes] = {
    "alg none": {"alg": "none"},
    "alg HS256": {"alg": "HS256"},
    "alg RS512": {"alg": "RS512"},
    "alg PS256": {"alg": "PS256"},
    "alg in lower case": {"alg": "rs256"},
    "alg of another key": {"alg": "ES256"},
    "alg list": {"alg": ["RS256"]},
    "no alg": {"alg": None},
    "typ of a logout token": {"typ": "logout+jwt"},
    "typ of a proof": {"typ": "dpop+jwt"},
    "typ number": {"typ": 1},
    "kid unknown": {"kid": "unknown"},
    "kid path": {"kid": "../../../dev/null"},
    "kid address": {"kid": "http://127.0.0.1:1/key"},
    "kid number": {"kid": 7},
    "kid of a key of another kind": {"kid": "ES256"},
    "no kid, three keys": {"kid": None},
    "crit": {"crit": ["exp"]},
    "crit empty": {"crit": []},
    "b64": {"b64": False, "crit": ["b64"]},
    "jwk": {"jwk": jwk("RS256", "RS256", 1)},
    "jku": {"jku": "http://127.0.0.1:1/jwks"},
    "x5u": {"x5u": "http://127.0.0.1:1/cert"},
    "x5c": {"x5c": ["AAAA"]},
    "zip": {"zip": "DEF"},
}
CLAIMS: dict[str, Changes] = {
    "no iss": {"iss": None},
    "another iss": {"iss": "https://evil.test"},
    "iss list": {"iss": ["x"]},
    "no aud": {"aud": None},
    "aud empty": {"aud": []},
    "aud other": {"aud": "https://other.test"},
    "aud longer": {"aud": f"{BASE}.evil.test"},
    "aud prefix": {"aud": BASE[:-1]},
    "aud in capitals": {"aud": BASE.upper()},
    "aud with two slashes": {"aud": f"{BASE}//"},
    "aud number": {"aud": 7},
    "aud with a number inside": {"aud": [BASE, 7]},
    "aud object": {"aud": {BASE: True}},
    "no exp": {"exp": None},
    "exp past": {"exp": NOW - 1},
    "exp now": {"exp": NOW},
    "exp in two days": {"exp": NOW + 2 * 24 * 3600},
    "exp in 2999": {"exp": 32_472_144_000},
    "exp text": {"exp": str(NOW + 300)},
    "exp true": {"exp": True},
    "exp list": {"exp": [NOW + 300]},
    "exp huge": {"exp": 10**400},
    "exp NaN": {"exp": float("nan")},
    "exp Infinity": {"exp": float("inf")},
    "nbf in the future": {"nbf": NOW + 60},
    "nbf text": {"nbf": "0"},
    "nbf object": {"nbf": {}},
    "no iat": {"iat": None},
    "iat in the future": {"iat": NOW + 60},
    "iat text": {"iat": str(NOW)},
    "no sub": {"sub": None},
    "sub empty": {"sub": ""},
    "sub number": {"sub": 17},
    "sub with a line break": {"sub": "u\nroot"},
    "sub with bidi marks": {"sub": "u\u202e"},
    "sub of 1,000 letters": {"sub": "u" * 1000},
    "nonce: an ID token": {"nonce": "n"},
    "at_hash: an ID token": {"at_hash": "h"},
    "c_hash: an ID token": {"c_hash": "h"},
    "scope list": {"scope": ["system:read"]},
    "bound to a key": {"cnf": {"jkt": "x"}},
}  # fmt: skip
SHAPES: dict[str, Callable[[Idp], str]] = {
    "no signature": unsigned,
    "HS256 with the public key": with_public_key_as_secret,
    "another key": lambda idp: jwt(idp.url, number=1),
    "a signature of another algorithm": lambda idp: jwt(idp.url, {"alg": "RS256", "kid": "RS256"}, kind="ES256"),
    "an ECDSA signature in DER": lambda idp: jwt(idp.url, kind="ES256")[:-4],
    "a signature in another spelling": lambda idp: respelt(jwt(idp.url)),
    "two parts": lambda idp: jwt(idp.url).rpartition(".")[0] + ".",
    "four parts": lambda idp: jwt(idp.url) + ".AAAA",
    "five parts, a JWE": lambda idp: "eyJhbGciOiJkaXIifQ.AAAA.AAAA.AAAA.AAAA",
    "1 MB": lambda idp: jwt(idp.url) + "A" * 1_000_000,
    "claims twice": lambda idp: twice(jwt(idp.url)),
    "ID token of a client": lambda idp: jwt(idp.url, {"typ": "JWT"}, aud=[BASE, "gateway"]),
    "ID token of tsidp": lambda idp: jwt(idp.url, {"typ": "JWT"}, aud=["desk", BASE], azp="desk", sub="userid:5",
                                         scope=None, client_id=None, email="a@b.test"),
}  # fmt: skip


def respelt(token: str) -> str:
    """The same bytes: the last letter of 342 has four spare bits."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + letters[letters.index(token[-1]) ^ 1]


def twice(token: str) -> str:
    header, _, signature = token.split(".")
    payload = encode(b'{"sub":"a","sub":"b"}')
    return f"{header}.{payload}.{signature}"


@pytest.mark.parametrize("name", HEADERS)
def test_a_signed_token_with_a_hostile_header_is_refused(name: str) -> None:
    idp = Idp()
    refused(idp, lambda idp: jwt(idp.url, HEADERS[name]))
    assert set(idp.asked) <= {"/.well-known/openid-configuration", "/jwks"}, "an address of the token was followed"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_signed_token_with_hostile_claims_is_refused(name: str) -> None:
    changes = dict(CLAIMS[name])
    refused(Idp(), lambda idp: jwt(changes.pop("iss", idp.url), None, "ES256", **changes))


@pytest.mark.parametrize("name", SHAPES)
def test_what_only_looks_like_a_signed_token_is_refused(name: str) -> None:
    refused(Idp(), SHAPES[name])


ISSUERS = {
    "slash": "{}/",
    "capitals": "HTTP://{}",
    "port": "{}:0",
    "path": "{}/x",
    "space": "{} ",
    "user": "http://a@{}",
}


@pytest.mark.parametrize("name", ISSUERS)
def test_an_issuer_is_compared_to_the_letter(name: str) -> None:
    assert "issuer" in refused(Idp(), lambda idp: jwt(ISSUERS[name].format(idp.url)))


WEAK_KEYS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "RSA of 1,024 bits": ([jwk("weak", "k")], "weak"),
    "another curve": ([jwk("ES384", "k")], "ES384"),
    "a key for encryption": ([jwk("RS256", "k", use="enc")], "RS256"),
    "a key that may not verify": ([jwk("RS256", "k", key_ops=["encrypt"])], "RS256"),
    "a key for another algorithm": ([jwk("RS256", "k", alg="PS256")], "RS256"),
    "a secret as a key": ([{"kty": "oct", "k": "AAAA", "kid": "k"}], "RS256"),
    "garbage": ([{"kty": "RSA", "kid": "k", "n": "?", "e": 7}, {}, "k", None, 7], "RS256"),  # type: ignore[list-item]
    "none": ([], "RS256"),
}


@pytest.mark.parametrize("name", WEAK_KEYS)
def test_a_token_of_a_key_that_is_not_fit_is_refused(name: str) -> None:
    keys, kind = WEAK_KEYS[name]
    algorithm = {"weak": "RS256", "ES384": "ES256"}.get(kind, kind)
    refused(Idp(keys=keys), lambda idp: jwt(idp.url, {"alg": algorithm, "kid": "k"}, kind=kind))


def test_a_new_key_is_found_and_a_flood_of_unknown_ones_asks_once() -> None:
    idp, clock = Idp(), Moment()

    async def work() -> None:
        async with provider(idp), verifier(idp, clock) as oidc:
            await oidc.identify(jwt(idp.url))
            idp.keys.append(jwk("ES256", "rotated", 5))
            await oidc.identify(jwt(idp.url, {"kid": "rotated"}, kind="ES256", number=5))
            assert idp.times("/jwks") == 2
            for number in range(50):
                with pytest.raises(Refused):
                    await oidc.identify(jwt(idp.url, {"kid": f"made-up-{number}"}, kind="ES256"))
            assert idp.times("/jwks") == 2
            clock.now += 10
            with pytest.raises(Refused):
                await oidc.identify(jwt(idp.url, {"kid": "made-up"}, kind="ES256"))
            assert idp.times("/jwks") == 3

    run(work())


def test_a_key_that_is_gone_counts_no_more_after_ten_minutes() -> None:
    idp, clock = Idp(), Moment()

    async def work() -> None:
        async with provider(idp), verifier(idp, clock) as oidc:
            await oidc.identify(jwt(idp.url))
            idp.keys.clear()
            clock.now += 601
            with pytest.raises(Refused, match="does not have"):
                await oidc.identify(jwt(idp.url, exp=NOW + 3600))

    run(work())


def test_keys_outlive_an_outage_for_an_hour_and_no_longer() -> None:
    idp, clock = Idp(), Moment()

    async def work() -> None:
        async with provider(idp), verifier(idp, clock) as oidc:
            await oidc.identify(jwt(idp.url))
            idp.behave["/jwks"] = idp.behave["/.well-known/openid-configuration"] = lambda: (500, b"", {})
            clock.now += 3000
            assert await oidc.identify(jwt(idp.url, exp=NOW + 9000))
            clock.now += 601
            with pytest.raises(Unavailable):
                await oidc.identify(jwt(idp.url, exp=NOW + 9001))

    run(work())
