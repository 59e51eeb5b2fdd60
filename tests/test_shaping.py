"""The Reply: bounded for one target and for many, cursors that lead on, and texts that say nothing superfluous."""

import json
from typing import Any

import pytest
from toon_format import decode

from systemmanager.shaping import MAX_REPLY_BYTES, Reply, TargetReply, bound, clip, compact_json, size_of


def reply(*data: dict[str, Any]) -> Reply:
    return Reply("c1", "t", [TargetReply(f"web-{number}", one) for number, one in enumerate(data)])


def listing(rows: int, width: int = 100) -> dict[str, Any]:
    return {"rows": [{"n": number, "text": "x" * width} for number in range(rows)], "total": rows}


LARGE: dict[str, list[dict[str, Any]]] = {
    "one long list": [listing(10_000)],
    "one long text": [{"content": "x" * 1_000_000}],
    "text of many bytes": [{"content": "\U0001f642" * 300_000}],
    "text of escapes": [{"content": '"\\\n' * 300_000}],
    "one huge item": [{"rows": [{"text": "x" * 1_000_000}], "total": 1}],
    "nested": [{"a": {"b": {"c": ["x" * 100] * 10_000}}}],
    "many fields": [{f"f{number}": "x" * 100 for number in range(10_000)}],
    "wide names": [{"x" * 1000 + str(number): number for number in range(1000)}],
    "500 targets": [listing(100) for _ in range(500)],
    "500 small targets": [listing(3) for _ in range(500)],
    "one large of 500": [listing(10_000), *({"a": 1} for _ in range(499))],
    "1000 targets": [{"rows": [{"a": ["x" * 60] * 60} for _ in range(3)]} for _ in range(1000)],
    "500 a little too large": [listing(6) for _ in range(500)],
    "1500 targets": [{"rows": [{"text": "x" * 200} for _ in range(3)], "total": 3} for _ in range(1500)],
    "10,000 targets": [{"a": "x" * 50} for _ in range(10_000)],
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_no_answer_is_too_large_for_a_client(data: list[dict[str, Any]]) -> None:
    shaped = bound(reply(*data), 0)
    assert size_of(shaped.as_dict()) <= MAX_REPLY_BYTES
    assert len(shaped.text().encode()) <= MAX_REPLY_BYTES
    summary = shaped.as_dict()["summary"]
    assert summary["targets"] == len(data) == summary["succeeded"] and shaped.ok
    assert summary.get("omitted", 0) + len(shaped.results) == len(data)
    assert len(shaped.results) >= min(len(data), 1000), "every target is heard as long as there is room"
    for one in shaped.results:
        assert one.data is not None and int(one.data.get("next", 1)) > 0, "a cursor leads on"


def test_what_is_small_stays_as_it_is() -> None:
    data = [listing(5), {"a": None, "b": {"c": []}}, {}]
    assert [one.data for one in bound(reply(*data), 0).results] == data


def test_what_small_results_leave_goes_to_the_large_one() -> None:
    shaped = bound(reply(listing(10_000), *({"a": 1} for _ in range(499))), 0)
    assert size_of(shaped.results[0].as_dict()) > MAX_REPLY_BYTES // 2
    assert all(one.data == {"a": 1} for one in shaped.results[1:])


def test_errors_are_bounded_too() -> None:
    shaped = Reply("c1", "t", [TargetReply(f"w{n}", error={"code": "x", "message": "y" * 5000}) for n in range(500)])
    assert size_of(bound(shaped).as_dict()) <= MAX_REPLY_BYTES and shaped.failed
    assert all(one.error and one.error["code"] == "x" and len(one.error["message"]) > 50 for one in shaped.results)


@pytest.mark.parametrize("start", [0, 300])
def test_a_cursor_leads_to_every_row_once(start: int) -> None:
    shaped = bound(reply(listing(10_000)), start).results[0].data
    assert shaped is not None and shaped["truncated"] is True and shaped["total"] == 10_000
    assert 0 < len(shaped["rows"]) < 10_000 and shaped["next"] == str(start + len(shaped["rows"]))


def test_a_row_too_large_for_any_page_is_no_loop() -> None:
    shaped = bound(reply({"rows": [{"text": "x" * 1_000_000}, {"text": "y"}], "total": 2}), 7).results[0].data
    assert shaped is not None and int(shaped["next"]) > 7


def test_without_a_cursor_a_cut_names_none() -> None:
    shaped = bound(reply(listing(10_000))).results[0].data
    assert shaped is not None and shaped["truncated"] is True and "next" not in shaped


def test_a_cut_of_a_list_without_cursor_takes_the_stale_next_away() -> None:
    shaped = bound(Reply("id", "file_operations", [TargetReply("a", {"entries": ["x" * 100] * 9_000, "next": "9000"})]))
    data = shaped.results[0].data
    assert data is not None and data["truncated"] is True and "next" not in data


# --- Text ------------------------------------------------------------------------------------------------------------


def test_the_text_says_what_the_data_says_and_no_more() -> None:
    one = Reply("c1", "get_x", [TargetReply("web", {"a": 1}, elapsed_ms=5)])
    assert one.text() == '{"call_id":"c1","results":[{"target":"web","data":{"a":1}}]}'
    structured = one.as_dict()
    assert structured["results"] == [{"target": "web", "ok": True, "data": {"a": 1}, "elapsed_ms": 5}]
    failed = Reply("c1", "get_x", [TargetReply("a", {}), TargetReply("b", error={"code": "x", "message": "y"})])
    assert json.loads(failed.text())["summary"] == {"targets": 2, "succeeded": 1, "failed": 1}
    assert json.loads(Reply("c1", "t", error={"code": "x"}).text()) == {"call_id": "c1", "error": {"code": "x"}}
    assert (
        json.loads(Reply("c1", "t", [TargetReply("a", {}, untrusted=True)]).text())["results"][0]["untrusted"] is True
    )


TOON: dict[str, list[dict[str, Any]]] = {
    "table": [listing(50, 5)],
    "nested": [{"a": {"b": [1, 2, {"c": None}]}, "d": [], "e": {}}],
    "hostile text": [{"a": 'x: y\n- z\t"q" \\ [3]: , | #', "b": "", "c": "true", "d": "12", "e": " x "}],
    "many targets": [{"a": 1.5, "b": True} for _ in range(20)],
    "unicode": [{"a": "ä漢🙂"}],
    "a little": [{"a": [[{"b": [[]]}]]}],
}


@pytest.mark.parametrize("data", TOON.values(), ids=TOON)
def test_toon_is_never_longer_and_says_the_same(data: list[dict[str, Any]]) -> None:
    one = reply(*data)
    compact, toon = one.text(), one.text("toon")
    if toon.startswith("{"):
        said = json.loads(toon)
        assert said.pop("format").startswith("json") and said == json.loads(compact)
    else:
        assert len(toon) <= len(compact) and decode(toon) == json.loads(compact)


def test_a_table_is_shorter_as_toon() -> None:
    one = reply(listing(50, 5))
    assert not one.text("toon").startswith("{") and len(one.text("toon")) < 0.75 * len(one.text())


# --- Clipping for the log --------------------------------------------------------------------------------------------


CLIPPED: dict[str, Any] = {
    "texts": {"a": "x" * 10_000_000},
    "many texts": {f"k{n}": "x" * 1000 for n in range(10_000)},
    "long list": {"a": list(range(1_000_000))},
    "long names": {"x" * 1_000_000: 1},
    "wide and deep": {f"a{i}": {f"b{j}": [["x" * 100] * 50] * 50 for j in range(20)} for i in range(20)},
    "huge number": {"a": 10**5000, "b": -(10**5000)},
    "no numbers": {"a": float("nan"), "b": float("-inf")},
    "empty values": {"a": [[] for _ in range(100_000)], "b": ["" for _ in range(100_000)]},
    "no JSON": {"a": object(), 1: b"x"},
}


@pytest.mark.parametrize("value", CLIPPED.values(), ids=CLIPPED)
def test_nothing_floods_the_log(value: Any) -> None:
    line = json.dumps(clip(value), allow_nan=False)
    assert len(line) < 20_000


def test_what_is_short_is_not_clipped() -> None:
    value = {"a": ["b", 1, 1.5, True, None, {"c": []}], "d": "x" * 2000}
    assert clip(value) == value
    assert clip({"a": "x" * 3000})["a"] == "x" * 2048 + "... (3000 characters)"
    deep: Any = "bottom"
    for _ in range(2000):
        deep = [deep]
    assert "items" in compact_json(clip(deep))
