"""From raw arguments to validated ones: the shared parameters, and messages that say all and repeat nothing."""

from typing import Any

import pytest

from systemmanager.arguments import call_model, validate
from systemmanager.errors import InvalidArguments
from systemmanager.operation import CATALOGUE

TARGETS: list[tuple[dict[str, Any], tuple[str, ...] | None]] = [
    ({}, None),
    ({"target": "web"}, ("web",)),
    ({"target": None, "targets": None}, None),
    ({"targets": "tag:web"}, ("tag:web",)),
    ({"targets": ["a", "b"]}, ("a", "b")),
]


@pytest.mark.parametrize(("raw", "wanted"), TARGETS, ids=str)
def test_targets_are_named_in_any_of_these_ways(raw: dict[str, Any], wanted: Any) -> None:
    assert validate(CATALOGUE["get_system_status"], raw)[1].targets == wanted


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("get_system_status", {"target": "a", "targets": ["b"]}, "give target or targets, not both"),
    ("get_system_status", {"targets": ["a"] * 1001}, "targets list should have at most 1000 items"),
    ("get_system_status", {"targets": {"a": 1}}, "targets input should be a valid list or a valid string"),
    ("get_system_status", {"targest": "a"}, "there is no parameter 'targest', did you mean 'target'?"),
    ("get_system_status", {"dry_run": True}, "there is no parameter 'dry_run'"),
    ("get_system_status", {"format": "xml"}, "format input should be 'json' or 'toon'"),
    ("get_system_status", {"x\x1b[31m\n": 1}, "there is no parameter 'x\\x1b[31m\\n'"),
    ("get_top_processes", {"limit": 0}, "limit input should be greater than or equal to 1"),
    ("get_top_processes", {"limit": True}, "limit is a number, not a boolean"),
    ("get_top_processes", {"limit": 1.5}, "limit input should be a valid integer"),
    ("get_top_processes", {"limit": 10**30}, "limit "),
    ("get_top_processes", {"sort_by": "CPU"}, "sort_by input should be 'cpu' or 'memory'"),
    ("get_service_status", {}, "service_name is missing"),
    ("get_service_status", {"service_name": "-H root@evil"}, "service_name is not of the form that it must have"),
    ("get_service_status", {"service_name": "nginx\n"}, "service_name is not of the form that it must have"),
    (
        "remove_stack",
        {"stack_name": "My_Stack", "target": "a"},
        "stack_name is not of the form that it must have, ^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
    ),
    ("update_packages", {}, "targets is missing"),
    ("manage_service", {"action": "reboot", "service_name": "a", "dry_run": "perhaps"}, "dry_run input should be"),
]


@pytest.mark.parametrize(("tool", "raw", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_said(tool: str, raw: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArguments) as caught:
        validate(CATALOGUE[tool], raw)
    assert message in caught.value.message and caught.value.message.startswith(f"{tool}: ")


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(InvalidArguments) as caught:
        validate(CATALOGUE["get_top_processes"], {"limit": "x", "sort_by": "y", "frmat": "z"})
    for word in ("limit ", "sort_by ", "'frmat', did you mean 'format'?"):
        assert word in caught.value.message
    assert caught.value.hint and "sort_by" in caught.value.hint


def test_thousands_of_wrong_arguments_are_a_short_message() -> None:
    with pytest.raises(InvalidArguments) as caught:
        validate(CATALOGUE["get_top_processes"], {f"parameter-{number}" * 20: 1 for number in range(5000)})
    assert len(caught.value.message) < 3000 and "and 4990 more" in caught.value.message


def test_no_message_repeats_a_value() -> None:
    for raw in ({"limit": "hunter2"}, {"sort_by": "hunter2"}, {"format": "hunter2"}, {"targets": {"hunter2": 1}}):
        with pytest.raises(InvalidArguments) as caught:
            validate(CATALOGUE["get_top_processes"], raw)
        assert "hunter2" not in caught.value.message


def test_every_tool_that_changes_something_has_a_dry_run() -> None:
    for operation in CATALOGUE.values():
        has = "dry_run" in call_model(operation).model_fields
        assert has == (operation.mutates or operation.access.approval), operation.name
