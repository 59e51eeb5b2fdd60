"""Approvals: one yes, for exactly one call, used once."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from systemmanager.approvals.store import LIFETIME, MOST_PENDING, ApprovalStore, digest_of
from systemmanager.errors import ApprovalRefused, GatewayError, NotFound

QUESTION = {"tool": "pull_docker_image", "targets": ["web-01"], "arguments": {"image_name": "nginx"}, "policy": "1"}


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> ApprovalStore:
    return ApprovalStore(tmp_path / "approvals.db", clock)


def ask(store: ApprovalStore, **changes: Any) -> str:
    return store.ask("claude", "pull_docker_image", {}, digest_of(QUESTION | changes))[0].id


DIGEST = digest_of(QUESTION)


def test_an_approved_request_is_redeemed_once(store: ApprovalStore) -> None:
    id = ask(store)
    assert store.answer(id, "alice", True, "operator").state == "approved"
    assert store.redeem(id, "claude", DIGEST).people == ("alice",)
    with pytest.raises(ApprovalRefused, match="used"):
        store.redeem(id, "claude", DIGEST)


@pytest.mark.parametrize(
    "changed",
    [
        {"arguments": {"image_name": "nginx:evil"}},
        {"targets": ["web-01", "web-02"]},
        {"tool": "update_docker_container"},
        {"policy": "2"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_yes_for_one_call_is_none_for_another(store: ApprovalStore, changed: dict[str, Any]) -> None:
    id = ask(store)
    store.answer(id, "alice", True, "operator")
    with pytest.raises(ApprovalRefused, match="another call"):
        store.redeem(id, "claude", digest_of(QUESTION | changed))
    assert store.get(id).state == "approved"


def _denied(store: ApprovalStore, id: str, clock: Clock) -> None:
    store.answer(id, "alice", False, "operator")


def _late(store: ApprovalStore, id: str, clock: Clock) -> None:
    store.answer(id, "alice", True, "operator")
    clock.now += LIFETIME


@pytest.mark.parametrize("happen", [_denied, _late])
def test_what_is_not_approved_now_is_not_redeemed(
    store: ApprovalStore, clock: Clock, happen: Callable[[ApprovalStore, str, Clock], None]
) -> None:
    id = ask(store)
    happen(store, id, clock)
    with pytest.raises(ApprovalRefused):
        store.redeem(id, "claude", DIGEST)


def test_a_pending_one_is_not_used_up(store: ApprovalStore) -> None:
    id = ask(store)
    assert store.redeem(id, "claude", DIGEST).state == store.get(id).state == "pending"


def test_what_was_denied_is_not_asked_again_before_it_is_over(store: ApprovalStore, clock: Clock) -> None:
    store.answer(ask(store), "alice", False, "operator")
    with pytest.raises(ApprovalRefused, match="alice has said no"):
        ask(store)
    clock.now += LIFETIME
    assert ask(store)


@pytest.mark.parametrize(
    ("requester", "person"),
    [
        ("local:0", "root"), ("local:0", "local:00"), ("root", "local:0"), ("ann@example.com", "Ann@Example.com"),
        ("ann@example.com", "ann"),
        ("oidc:ann", "ann@example.com"),
        ("ann+x@example.com", "ann@example.com"), ("ann@a.example", "ann@b.example"),
        ("local:4242424", "local:4242424"), ("claude", "ＣＬＡＵＤＥ"), ("claude", " claude "), ("root@gw", "local:0"),
    ],
)  # fmt: skip
def test_an_alias_of_the_requester_is_the_requester(store: ApprovalStore, requester: str, person: str) -> None:
    id = store.ask(requester, "pull_docker_image", {}, DIGEST)[0].id
    with pytest.raises(ApprovalRefused, match="can't answer"):
        store.answer(id, person, True, "operator")


@pytest.mark.parametrize(
    ("requester", "person"), [("0", "local:0"), ("claude", "local:0"), ("ann@example.com", "bob@example.com")]
)
def test_others_are_others(store: ApprovalStore, requester: str, person: str) -> None:
    id = store.ask(requester, "pull_docker_image", {}, DIGEST)[0].id
    assert store.answer(id, person, True, "operator").state == "approved"


def test_nobody_else_can_redeem_it(store: ApprovalStore) -> None:
    id = ask(store)
    store.answer(id, "alice", True, "operator")
    with pytest.raises(NotFound):
        store.redeem(id, "mallory", DIGEST)


def test_nobody_answers_their_own_request(store: ApprovalStore) -> None:
    with pytest.raises(ApprovalRefused, match="can't answer"):
        store.answer(ask(store), "claude", True, "operator")


def test_two_people_means_two_different_people(store: ApprovalStore) -> None:
    id = store.ask("claude", "pull_docker_image", {}, DIGEST, needed=2)[0].id
    assert store.answer(id, "alice", True, "operator").state == "pending"
    with pytest.raises(ApprovalRefused, match="answered"):
        store.answer(id, "alice", True, "webhook")
    assert store.redeem(id, "claude", DIGEST).state == "pending"
    assert store.answer(id, "bob", True, "operator").state == "approved"
    assert store.redeem(id, "claude", DIGEST).people == ("alice", "bob")


def test_one_no_ends_it(store: ApprovalStore) -> None:
    id = store.ask("claude", "pull_docker_image", {}, DIGEST, needed=2)[0].id
    store.answer(id, "alice", False, "operator")
    with pytest.raises(ApprovalRefused, match="denied"):
        store.answer(id, "bob", True, "operator")


def test_an_answer_must_name_the_digest_it_is_for(store: ApprovalStore) -> None:
    id = ask(store)
    with pytest.raises(ApprovalRefused, match="digest"):
        store.answer(id, "alice", True, "webhook", digest="0" * 64)
    assert store.answer(id, "alice", True, "webhook", digest=digest_of(QUESTION)).state == "approved"


def test_asking_again_finds_the_same_request_and_a_flood_is_refused(store: ApprovalStore) -> None:
    assert ask(store) == ask(store)
    for number in range(MOST_PENDING - 1):
        ask(store, policy=str(number + 10))
    with pytest.raises(ApprovalRefused, match="waiting already"):
        ask(store, policy="one too many")


def test_requests_and_answers_survive_a_restart(store: ApprovalStore, tmp_path: Path, clock: Clock) -> None:
    id = ask(store)
    store.answer(id, "alice", True, "operator")
    again = ApprovalStore(tmp_path / "approvals.db", clock)
    assert [asked.id for asked in again.all("approved")] == [id]
    assert again.redeem(id, "claude", DIGEST).people == ("alice",)
    assert (tmp_path / "approvals.db").stat().st_mode & 0o777 == 0o600


def test_of_many_that_race_one_redeems(store: ApprovalStore) -> None:
    id = ask(store)
    store.answer(id, "alice", True, "operator")
    begin, won, lost = threading.Barrier(64), [], []

    def race() -> None:
        begin.wait()
        try:
            won.append(store.redeem(id, "claude", DIGEST))
        except GatewayError as error:
            lost.append(error.code)

    threads = [threading.Thread(target=race) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and lost == ["approval_refused"] * 63


def test_what_ended_long_ago_is_forgotten(store: ApprovalStore, clock: Clock) -> None:
    ask(store)
    clock.now += LIFETIME + 8 * 24 * 3600
    assert store.all() == []
