"""Golden cases: what an operation makes of what a target says, as data in `cases/<operation>/<case>.yaml`.

A case holds `arguments`, `replies` (argv, stdout, stderr, status of each command that the operation may run) and either
`data`, the answer's fields that must be so, or `error`, the code, with a part of its `hint` and its `details`.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from systemmanager.errors import GatewayError
from systemmanager.operation import CATALOGUE
from tests.support import FakeShell, run

FOLDER = Path(__file__).parent / "cases"
CASES = sorted(FOLDER.glob("*/*.yaml"))


def made_of(path: Path) -> Any:
    """What the operation answers in this case. Raises `GatewayError` where the case is an error's."""
    case = yaml.safe_load(path.read_text())
    operation = CATALOGUE[path.parent.name]
    arguments = operation.arguments.model_validate(case.get("arguments", {}))
    values = {name: getattr(arguments, name) for name in type(arguments).model_fields}
    shell = FakeShell(list(case["replies"]))
    answer: Any = run(operation.function(shell, **values))  # type: ignore[arg-type]
    assert shell.replies == [], "commands that were expected but not run"
    return answer


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_case(path: Path) -> None:
    case = yaml.safe_load(path.read_text())
    if "error" in case:
        with pytest.raises(GatewayError) as caught:
            made_of(path)
        assert caught.value.code == case["error"]
        assert case.get("hint", "") in (caught.value.hint or "")
        assert_holds(caught.value.details or {}, case.get("details", {}))
    else:
        assert_holds(made_of(path).model_dump(mode="json", exclude_none=True), case["data"])


def assert_holds(found: Any, wanted: Any) -> None:
    """Every field that `wanted` names is in `found` with that value; lists are compared whole."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict), f"{found!r} is no object"
        for name, value in wanted.items():
            assert name in found, f"no {name!r} in {sorted(found)}"
            assert_holds(found[name], value)
    elif isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted), f"{found!r} is not {wanted!r}"
        for one, expected in zip(found, wanted, strict=True):
            assert_holds(one, expected)
    else:
        assert found == wanted
