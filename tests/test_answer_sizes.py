"""What the tools cost a model is known of every tool."""

from systemmanager.operation import CATALOGUE
from tests.benchmarks.tokens import answers, estimate


def test_every_tool_has_a_typical_answer() -> None:
    sizes = answers()
    assert sizes.keys() == CATALOGUE.keys()
    assert all(0 < min(size) <= max(size) < 6000 for size in sizes.values()), sizes


def test_tokens_are_counted_by_words_digits_and_marks() -> None:
    assert [estimate(text) for text in ("", "word", "nineteen-letters", "1234", '{"a":1}')] == [0, 1, 3, 2, 5]
