"""The house rules that a program can check: who imports whom, file and function sizes, where a Permit is made."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "systemmanager"
TESTS = Path(__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

VOCABULARY = {
    "across", "addresses", "errors", "fencing", "following", "params", "plan", "ports", "operation", "references",
    "request", "scopes", "stacks", "target",
}  # fmt: skip
ALLOWED: dict[str, set[str]] = {
    "vocabulary": VOCABULARY,
    "diagnosis": {"diagnosis"},  # text in, a diagnosis out: no port, no clock, nothing but the standard library
    "operations": (VOCABULARY - {"target", "request"}) | {"operations", "paging", "diagnosis"},
    "policy": VOCABULARY | {"policy"},
    # executors: what a stack was deployed with is kept (statefile), and what Compose says is cleaned of it (redaction)
    "executors": VOCABULARY | {"executors", "redaction", "statefile"},
    "audit": VOCABULARY | {"audit"},
}
HOMES = {
    **dict.fromkeys(("asyncssh", "docker", "httpcore", "psutil", "subprocess"), ("executors",)),
    **dict.fromkeys(("fastmcp", "mcp", "mcp_types", "starlette", "joserfc", "uvicorn"), ("server",)),
    # HTTP targets; the issuer and tailscaled, who say who calls; the webhook that is asked for approvals
    "httpx": ("executors", "server", "approvals"),
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a module imports, at any depth; imports for types alone do not count."""
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_type_checking(tree: ast.Module) -> ast.Module:
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    ]
    return tree


def layer(path: Path) -> str:
    top = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "vocabulary" if top in VOCABULARY else top


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    own = layer(path)
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "systemmanager":
            part = rest.partition(".")[0]
            if own in ALLOWED and part != "__version__":
                assert part in ALLOWED[own], f"{own} imports {name}"
            assert part != "server" or own in ("server", "commands", "cli"), f"{own} imports {name}"
        elif package in HOMES:
            assert own in HOMES[package], f"{package} is imported outside {HOMES[package]}"


@pytest.mark.parametrize("path", MODULES + sorted(TESTS.rglob("*.py")), ids=str)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 50, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize(("name", "maker"), [("Permit", "policy/gate.py"), ("Judged", "policy/compose/judge.py")])
def test_only_the_policy_makes_what_executors_act_on(name: str, maker: str) -> None:
    makers = {
        str(path.relative_to(SOURCE))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    }
    assert makers == {maker}


def test_broad_excepts_stand_where_calls_are_decided_and_run() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
    }
    assert found <= {"gateway.py", "running.py"}
