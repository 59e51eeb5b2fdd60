"""Files that were damaged anyhow are refused with a `ConfigError`, or they are as good as others. Nothing else."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from systemmanager import policyfile, registry
from systemmanager.errors import ConfigError

ROUNDS = 1500
PIECES = [
    "&a ", "*a", "<<: ", "!!python/name:os.system ", "{", "}", "[", "]", "'", '"', "|", ">", "#", "---\n", "? ", ": ",
    "- ", "\t", "\0", "\x85", "\u2028", "\ufeff", "\U0001f600", "\ud800", ".nan", "0x10", "0o7", "1e999", "9" * 400,
    "~", "no", "${HOME}", "${", "${A${B}}", "%YAML 1.2\n", "@", "`", "null", "!!binary ", "a" * 5000, "\r\n",
    "id: id\n", "version: ",
]  # fmt: skip

POLICY = """\
version: "1.0"
grants:
  - subjects: [ann@example.com, "*@example.org"]
    groups: [admins]
    tags: [tag:ci]
    scopes: [readonly, "service:write"]
    targets: tag:web and not env:prod
approvals:
  approvers: [root, ann@example.com]
  require: [{risks: [high], targets: "env:prod"}]
"""
TARGETS = (Path(__file__).parents[2] / "targets.example.yaml").read_text()


def damaged(chance: random.Random, text: str) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place, length = chance.randrange(len(text) + 1), chance.choice((0, 0, 1, 3, 40))
        lines = text.split("\n")
        match chance.randrange(5):
            case 0 | 1:
                text = text[:place] + chance.choice(PIECES) + text[place + length :]
            case 2:
                text = text[:place] + text[place + length + 1 :]
            case 3:
                chance.shuffle(lines) if chance.random() < 0.1 else lines.insert(
                    chance.randrange(len(lines) + 1), chance.choice(lines)
                )
                text = "\n".join(lines)
            case _:
                text = (
                    text[:place] + chr(chance.choice((chance.randrange(128), chance.randrange(0x3000)))) + text[place:]
                )
    data = text.encode("utf-8", "surrogatepass")
    return data if chance.random() < 0.9 else data[: chance.randrange(len(data) + 1)] + bytes([chance.randrange(256)])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("text", "load"),
    [(POLICY, policyfile.load), (TARGETS, lambda path: registry.load(path, {}))],
    ids=["policy", "targets"],
)
def test_a_damaged_file_is_refused_and_no_more(
    text: str, load: Callable[[Path], Any], seed: int, tmp_path: Path
) -> None:
    chance, path, refused = random.Random(seed), tmp_path / "file.yaml", 0
    path.write_text(text)
    load(path)
    for _ in range(ROUNDS):
        path.write_bytes(data := damaged(chance, text))
        try:
            load(path)
        except ConfigError as error:
            refused += 1
            assert error.problems, data
        except BaseException as error:
            raise AssertionError(f"{error!r} for {data!r}") from error
    assert refused > ROUNDS / 4
