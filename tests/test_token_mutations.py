"""A token that is not what was minted or signed, by so much as one bit, is refused: more than 100,000 of them."""

import base64
import json
import random
from collections.abc import Callable

import pytest

from systemmanager.server.auth.identity import Refused
from systemmanager.server.auth.tokens import Keys, mint, verify
from tests.idp import Idp, jwt, provider, verifier
from tests.serving import AUDIENCE, KEYS, OTHER_SECRET
from tests.support import run

NOW = 1_800_000_000
ROUNDS = 12_000
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

GOOD = [
    mint(KEYS, subject, scopes, ttl, targets, now=NOW)[0]
    for subject, scopes, ttl, targets in (
        ("agent", ["system:read"], 3600, None),
        ("claude@desk", ["readonly", "network:diag"], 86_400, "tag:web"),
        ("ops", ["admin"], 90 * 86_400, "not env:prod"),
    )
]
FOREIGN = [
    mint(Keys(AUDIENCE, OTHER_SECRET), "agent", ["admin"], 3600, now=NOW)[0],
    mint(Keys("http://other.test", OTHER_SECRET), "agent", ["admin"], 3600, now=NOW)[0],
]


def one_character(chance: random.Random, token: str) -> str:
    place = chance.randrange(len(token))
    return token[:place] + chance.choice(ALPHABET + ".=+/ \n\u212a") + token[place + 1 :]


def one_bit(chance: random.Random, token: str) -> str:
    """A bit of what a part holds, written down again."""
    parts = token.split(".")
    which = chance.randrange(3)
    data = bytearray(base64.urlsafe_b64decode(parts[which] + "=="))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    parts[which] = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    return ".".join(parts)


def cut(chance: random.Random, token: str) -> str:
    begin, end = sorted(chance.randrange(len(token) + 1) for _ in range(2))
    return token[:begin] + token[end:] if chance.random() < 0.5 else token[begin:end]


def grown(chance: random.Random, token: str) -> str:
    place = chance.randrange(len(token) + 1)
    return token[:place] + "".join(chance.choices(ALPHABET + ".=", k=chance.randint(1, 8))) + token[place:]


def swapped(chance: random.Random, token: str) -> str:
    left, right = sorted(chance.sample(range(len(token)), 2))
    return token[:left] + token[right] + token[left + 1 : right] + token[left] + token[right + 1 :]


def spliced(chance: random.Random, token: str) -> str:
    """Parts of several good tokens and of foreign ones together."""
    parts = [chance.choice(GOOD + FOREIGN).split(".")[which] for which in range(3)]
    return ".".join(parts)


def claimed(chance: random.Random, token: str) -> str:
    """Better claims under an old signature."""
    header, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    changes = {"scope": "system:admin", "sub": "root", "exp": NOW + 10**9, "aud": "x", "targets": "*", "jti": "0" * 16}
    name = chance.choice(list(changes))
    claims[name] = changes[name]
    body = base64.urlsafe_b64encode(json.dumps(claims, separators=(",", ":")).encode()).rstrip(b"=").decode()
    return f"{header}.{body}.{signature}"


def headed(chance: random.Random, token: str) -> str:
    """Another header over the same claims and signature."""
    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    changes = {"alg": ["none", "HS512", "RS256", ""], "typ": ["JWT", "", None], "kid": ["", "..", "0" * 16]}
    name = chance.choice(list(changes))
    header[name] = chance.choice(changes[name])  # type: ignore[arg-type]
    if chance.random() < 0.3:
        header |= chance.choice([{"jku": "http://127.0.0.1:1"}, {"crit": ["x"]}, {"b64": False}, {"jwk": {}}])
    encoded = base64.urlsafe_b64encode(json.dumps(header, separators=(",", ":")).encode()).rstrip(b"=").decode()
    return ".".join([encoded, *token.split(".")[1:]])


MUTATIONS: tuple[Callable[[random.Random, str], str], ...] = (
    one_character, one_bit, cut, grown, swapped, spliced, claimed, headed,
)  # fmt: skip


def accepted(token: str) -> bool:
    try:
        verify(KEYS, token, NOW + 1)
    except Refused:
        return False
    return True


def test_the_tokens_that_are_mutated_are_good_ones() -> None:
    assert all(map(accepted, GOOD)) and not any(map(accepted, FOREIGN))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.__name__)
def test_no_mutation_of_a_token_is_accepted(mutation: Callable[[random.Random, str], str]) -> None:
    chance, tried = random.Random(mutation.__name__), 0
    while tried < ROUNDS + 1_000:
        changed = mutation(chance, chance.choice(GOOD))
        if changed in GOOD:
            continue
        tried += 1
        assert not accepted(changed), changed


SIGNED = (one_character, one_bit, cut, grown, swapped, claimed, headed)


@pytest.mark.parametrize("kind", ["RS256", "ES256", "EdDSA"])
def test_no_mutation_of_a_signed_token_of_an_issuer_is_accepted(kind: str) -> None:
    chance, idp = random.Random(kind), Idp()

    async def work() -> None:
        async with provider(idp), verifier(idp) as oidc:
            good = jwt(idp.url, kind=kind)
            await oidc._signed(good)
            for mutation in SIGNED:
                for _ in range(700):
                    if (changed := mutation(chance, good)) != good:
                        with pytest.raises(Refused):
                            await oidc._signed(changed)

    run(work())
