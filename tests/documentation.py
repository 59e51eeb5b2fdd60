"""The README's generated tables. `make docs` writes them; test_documentation.py holds the file against them.

The module's options are those of nix/options.json, which `make docs` renews where SYSTEMMANAGER_TEST_NIX names a nix
(test_nix.py says how); test_nix.py holds that file against the module.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import systemmanager.operations  # noqa: F401
from systemmanager.arguments import call_model
from systemmanager.operation import CATALOGUE, Operation
from systemmanager.settings import Settings
from systemmanager.terminal import summary

README = Path(__file__).parent.parent / "README.md"
OPTIONS = README.parent / "nix" / "options.json"
EVALUATED = "path:/project#checks.x86_64-linux.module.options"
SHARED = ("target", "targets", "format", "dry_run", "strategy", "approval_id", "approval_wait")


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


def options() -> str:
    """One row an option of the module."""
    rows = [_option(**option) for option in json.loads(OPTIONS.read_text())]
    return "\n".join(["| option | type | default | |", "|---|---|---|---|", *rows])


def _option(name: str, type: str, default: str | None, description: str) -> str:
    value = "" if default in (None, "null") else f"`{' '.join(str(default).split())}`"
    kind = re.sub(r" matching the pattern \S+|, meaning >0| \(both inclusive\)|^null or ", "", type)
    kind += ")" * (kind.count("(") - kind.count(")"))  # a pattern takes the list's end with it
    cells = (f"`{name.removeprefix('services.systemmanager.')}`", kind, value, " ".join(description.split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def as_kept(evaluated: str) -> str:
    """The text of nix/options.json for what nix has evaluated: a line an option."""
    return "[\n" + ",\n".join(json.dumps(option) for option in json.loads(evaluated)) + "\n]\n"


def rendered(text: str) -> str:
    """The README with its tables as they should be."""
    for name, table in (("tools", tools()), ("settings", settings()), ("options", options())):
        begin, end = f"<!-- {name}: written by `make docs` -->", f"<!-- /{name} -->"
        assert begin in text and end in text, f"README.md lacks the marks of {name}"
        block = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
        text = block.sub(lambda _, whole=f"{begin}\n{table}\n{end}": whole, text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    if nix := shlex.split(os.environ.get("SYSTEMMANAGER_TEST_NIX", "")):
        done = subprocess.run([*nix, "eval", "--json", EVALUATED], check=True, capture_output=True, text=True)
        OPTIONS.write_text(as_kept(done.stdout))
    README.write_text(rendered(README.read_text()))
