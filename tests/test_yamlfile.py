"""Strict YAML: what is refused, where, and that no message repeats a value."""

from pathlib import Path

import pytest

from systemmanager import yamlfile
from systemmanager.errors import ConfigError

REFUSED: dict[str, tuple[bytes, str]] = {
    "duplicate-key": (b"a: 1\nb: 2\na: 3\n", "f:3:1: key 'a' stands twice"),
    "anchor": (b"a: &x 1\nb: *x\n", "f:1:4: anchors and aliases are not accepted"),
    "alias-bomb": (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "f:1:4: anchors"),
    "merge": (b"<<: {a: 1}\n", "f:1:1: key '<<' is no text; merge keys are not accepted"),
    "python-tag": (b"a: !!python/object/apply:os.system [id]\n", "f:1:4: tag 'python/object/apply:os.system'"),
    "own-tag": (b"a: !secret x\n", "f:1:4: tag '!secret' is not accepted"),
    "binary-tag": (b"a: !!binary aGk=\n", "f:1:4: tag 'binary'"),
    "list-key": (b"? [a, b]\n: c\n", "f:1:3: a key must be a text"),
    "number-key": (b"1: a\n", "f:1:1: key '1' is no text; quote it"),
    "norway-key": (b"no: a\n", "f:1:1: key 'no' is no text; quote it"),
    "norway": (b"a: no\n", "f:1:4: YAML reads this value as bool: write true or false"),
    "yes-in-a-list": (b"a:\n  - on\n", "f:2:5: YAML reads this value as bool"),
    "octal": (b"a: 0755\n", "f:1:4: YAML reads this value as int"),
    "hexadecimal": (b"a: 0x1f\n", "f:1:4: YAML reads this value as int"),
    "binary-number": (b"a: 0b11\n", "f:1:4: YAML reads this value as int"),
    "sexagesimal": (b"a: 22:22\n", "f:1:4: YAML reads this value as int"),
    "underscores": (b"a: 1_000\n", "f:1:4: YAML reads this value as int"),
    "nan": (b"a: .nan\n", "f:1:4: YAML reads this value as float"),
    "infinity": (b"a: -.inf\n", "f:1:4: YAML reads this value as float"),
    "many-digits": (b"a: " + b"1" * 100_000, "f:1:4: YAML reads this value as int"),
    "deep-flow": (b"[" * 20_000, "f:1:41: is nested deeper than 40 levels"),
    "deep-block": (b"".join(b" " * i + b"a:\n" for i in range(1000)), "is nested deeper than 40 levels"),
    "too-large": (b"a: " + b"x" * (4 * 1024 * 1024), "f: is larger than 4 MiB"),
    "latin-1": ("a: 1\nb: \xe4".encode("latin-1"), "f:2:4: is not UTF-8"),
    "utf-16": ("a: 1".encode("utf-16"), "f:1:1: is not UTF-8"),
    "utf-16-without-mark": ("a: 1".encode("utf-16-le"), "f:1:2: is not valid YAML: "),
    "nul": (b"a: x\nb: \x00\n", "f:2:4: is not valid YAML: "),
    "escape": (b"a: \x1b[31m\n", "f:1:4: is not valid YAML: "),
    "two-documents": (b"a: 1\n---\nb: 2\n", "is not valid YAML: but found another document"),
    "tab": (b"a:\n\tb: 1\n", "f:2:1: is not valid YAML: "),
    "open-quote": (b'a: "x\n', "is not valid YAML: "),
}


def loaded(path: Path, raw: bytes) -> yamlfile.Loaded:
    file = path / "f.yaml"
    file.write_bytes(raw)
    result = yamlfile.load(file, "f")
    if result.problems:
        raise ConfigError(result.problems)
    return result


@pytest.mark.parametrize(("raw", "message"), REFUSED.values(), ids=REFUSED)
def test_what_nobody_means_is_refused_with_its_place(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, raw)
    assert message in str(caught.value), str(caught.value)


ACCEPTED: dict[str, tuple[bytes, object]] = {
    "words": (b"a: b\nc: 'no'\nd: \"0755\"\n", {"a": "b", "c": "no", "d": "0755"}),
    "numbers": (b"a: 0\nb: -12\nc: 1.5\n", {"a": 0, "b": -12, "c": 1.5}),
    "truth": (b"a: true\nb: False\nc:\nd: ~\n", {"a": True, "b": False, "c": None, "d": None}),
    "a date is a text": (b"a: 2026-01-31\n", {"a": "2026-01-31"}),
    "flow": (b"a: [1, {b: c}]\n", {"a": [1, {"b": "c"}]}),
    "windows": (b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    "empty": (b"", None),
    "comments": (b"# nothing\n", None),
    "unicode": ("a: ä漢\n".encode(), {"a": "ä漢"}),
}


@pytest.mark.parametrize(("raw", "data"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_people_mean_is_read(tmp_path: Path, raw: bytes, data: object) -> None:
    assert loaded(tmp_path, raw).data == data


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"a: no\nb: 0755\na: 1\nc: !x y\n")
    assert [problem.line for problem in yamlfile.load(file).problems] == [1, 2, 3, 4]


def test_no_message_repeats_a_value(tmp_path: Path) -> None:
    for value in (b"0123456701234567", b"!!int hunter2secret", b"1_2_3_4_5_6", b'"hunter2secret', b"[hunter2secret"):
        with pytest.raises(ConfigError) as caught:
            loaded(tmp_path, b"password: " + value)
        assert "hunter2" not in str(caught.value) and "123" not in str(caught.value)


@pytest.mark.parametrize(("name", "why"), [("absent", "does not exist"), (".", "is no regular file")])
def test_what_is_no_file_is_said(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        yamlfile.load(tmp_path / name)


def test_the_place_of_a_value_counts_lines_and_columns_from_one(tmp_path: Path) -> None:
    result = loaded(tmp_path, b"a:\n  - b\n  - c: d\n")
    assert yamlfile.place_of(("a", 1, "c"), result.marks) == (3, 5)
    assert yamlfile.place_of(("a", 1, "absent"), result.marks) == (3, 5)
    assert yamlfile.place_of(("absent",), result.marks) == (1, 1)
