"""Messages that differ in their values alone are one template."""

from systemmanager.diagnosis.diagnose import Log, diagnose
from systemmanager.diagnosis.templates import MOST_GROUPS, Templates, masked


def test_values_are_masked() -> None:
    text = 'user "ann" (id 17, 3f2504e0-4f89-11d3-9a0c-0305e82c3301) from 10.0.0.7:4000 took 12.5ms at 0xdeadbeef, 93%'
    assert masked(text) == "user <*> (id <*>, <*>) from <*> took <*> at <*>, <*>"
    assert masked("sha256 utf8 node18 v1beta1") == "sha256 utf8 node18 v1beta1"


def test_messages_of_one_kind_are_one_template_and_others_are_not() -> None:
    mined = Templates()
    first = [
        mined.add(f"job {number} of user{number} failed after {number}s with code {number}") for number in range(9)
    ]
    other = mined.add("job 3 of user3 was started by the timer again")
    assert len({id(one) for one in first}) == 1 and first[0].count == 9
    assert first[0].text == "job <*> of <*> failed after <*> with code <*>"
    assert other is not first[0] and mined.groups == 2


def test_a_log_of_noise_is_bounded() -> None:
    mined = Templates()
    for number in range(3 * MOST_GROUPS):
        mined.add(" ".join(f"w{char}{number % 7}" * (1 + number % 50) for char in format(number, "b")))
    assert mined.groups <= MOST_GROUPS


def test_errors_of_one_kind_are_counted_with_their_lines() -> None:
    text = "".join(f"2026-01-01T00:00:{second:02}Z ERROR request {second} failed\n" for second in range(30))
    found = diagnose(Log.of("x", text, 1.8e9))
    (group,) = found.groups
    assert (group.count, group.template, group.lines[:2]) == (30, "ERROR request <*> failed", [1, 2])
    assert group.last_seen is not None and group.first_seen is not None and group.last_seen - group.first_seen == 29
    assert (found.levels, found.errors_in_all) == ({"error": 30}, 30)
