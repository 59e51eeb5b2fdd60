"""The README's generated tables. `make docs` writes them; test_documentation.py holds the file against them."""

import re
from pathlib import Path

import systemmanager.operations  # noqa: F401
from systemmanager.arguments import call_model
from systemmanager.operation import CATALOGUE, Operation
from systemmanager.settings import Settings
from systemmanager.terminal import summary

README = Path(__file__).parent.parent / "README.md"
SHARED = ("target", "targets", "format", "dry_run", "approval_id", "approval_wait")


def tools() -> str:
    """One row a tool."""
    rows = [_tool(operation) for operation in CATALOGUE.values()]
    return "\n".join(["| tool | scope | risk | |", "|---|---|---|---|", *rows])


def _tool(operation: Operation) -> str:
    parameters = [name for name in call_model(operation).model_fields if name not in SHARED]
    risk = operation.access.risk + (", approval" if operation.access.approval else "")
    scopes = " or ".join(f"`{scope}`" for scope in operation.access.scopes) or "none"
    for value, access in operation.cases.items():
        if access.scopes != operation.access.scopes:
            scopes += f"; {value}: `{access.scopes[0]}`"
    for begins, form in operation.forms.items():
        scopes += f"; {begins}...: `{form.access.scopes[0]}`, {form.access.risk}"
    return f"| `{operation.name}({', '.join(parameters)})` | {scopes} | {risk} | {summary(operation)} |"


def settings() -> str:
    """One row a setting."""
    rows = [f"| `{field.alias}` | {field.description} |" for field in Settings.model_fields.values()]
    return "\n".join(["| variable | means |", "|---|---|", *rows])


def rendered(text: str) -> str:
    """The README with both tables as they should be."""
    for name, table in (("tools", tools()), ("settings", settings())):
        begin, end = f"<!-- {name}: written by `make docs` -->", f"<!-- /{name} -->"
        assert begin in text and end in text, f"README.md lacks the marks of {name}"
        block = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
        text = block.sub(lambda _, whole=f"{begin}\n{table}\n{end}": whole, text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
