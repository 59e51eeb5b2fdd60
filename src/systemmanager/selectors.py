"""Selectors: `web-*`, `tag:web and not env:prod` ... read once, then asked of each target."""

import re
from collections.abc import Callable, Iterator
from fnmatch import translate
from functools import lru_cache

from systemmanager.errors import UnknownTarget
from systemmanager.target import Target

Test = Callable[[Target], bool]

GRAMMAR = "Use ids, globs, tag:web, env:prod, role:db, kind:ssh, joined by and, or, not and parentheses."
MAX_WORDS = 100

_TOKEN = re.compile(r"[()]|[^ ()]+")
_PREFIXES: dict[str, Callable[[Target], tuple[str, ...]]] = {
    "tag": lambda target: target.metadata.tags,
    "env": lambda target: (target.metadata.environment,) if target.metadata.environment else (),
    "role": lambda target: (target.metadata.role,) if target.metadata.role else (),
    "kind": lambda target: (target.executor,),
}


class Selector:
    """One expression, ready to be asked. `words` are its ids, globs and `tag:` words, each with its own test."""

    def __init__(self, expression: str) -> None:
        if not expression.isascii() or not expression.isprintable():
            raise UnknownTarget(f"selector {expression[:80]!r} holds a character that no target has", hint=GRAMMAR)
        tokens = _TOKEN.findall(expression)
        if not tokens or len(tokens) > MAX_WORDS:
            raise UnknownTarget(f"selector {expression[:80]!r} is {'too long' if tokens else 'empty'}", hint=GRAMMAR)
        self.words: dict[str, Test] = {}
        self._tokens: Iterator[str] = iter((*tokens, ""))
        self._next = next(self._tokens)
        self.matches = self._either()
        if self._next:
            raise UnknownTarget(f"selector {expression[:80]!r} can't be read at {self._next!r}", hint=GRAMMAR)

    def _take(self) -> str:
        taken, self._next = self._next, next(self._tokens, "")
        return taken

    def _either(self) -> Test:
        test = self._both()
        while self._next == "or":
            self._take()
            test = _any(test, self._both())
        return test

    def _both(self) -> Test:
        test = self._one()
        while self._next == "and":
            self._take()
            test = _all(test, self._one())
        return test

    def _one(self) -> Test:
        word = self._take()
        if word == "not":
            return _none(self._one())
        if word == "(":
            test = self._either()
            if self._take() != ")":
                raise UnknownTarget("the selector lacks a ')'", hint=GRAMMAR)
            return test
        if not word:
            raise UnknownTarget("the selector ends where a target is expected", hint=GRAMMAR)
        if word in ("and", "or", ")"):
            raise UnknownTarget(f"the selector has {word!r} where a target is expected", hint=GRAMMAR)
        self.words[word] = test = _atom(word)
        return test


def _any(left: Test, right: Test) -> Test:
    return lambda target: left(target) or right(target)


def _all(left: Test, right: Test) -> Test:
    return lambda target: left(target) and right(target)


def _none(test: Test) -> Test:
    return lambda target: not test(target)


def _atom(word: str) -> Test:
    prefix, colon, value = word.partition(":")
    if not colon:
        matched = re.compile(translate(word)).match
        return lambda target: matched(target.id) is not None
    if prefix not in _PREFIXES:
        raise UnknownTarget(f"selector {word[:80]!r}: there is no {prefix[:80]!r}:", hint=GRAMMAR)
    if not value:
        raise UnknownTarget(f"selector {word[:80]!r} has nothing after the colon", hint=GRAMMAR)
    matched, candidates = re.compile(translate(value)).match, _PREFIXES[prefix]
    return lambda target: any(matched(candidate) is not None for candidate in candidates(target))


@lru_cache(maxsize=256)
def selector(expression: str) -> Selector:
    """A selector, read. Raises `UnknownTarget` when that can't be done."""
    return Selector(expression)


def matches(expression: str, target: Target) -> bool:
    """Whether a selector expression names `target`. Raises `UnknownTarget` when the expression can't be read."""
    return selector(expression).matches(target)


def words_of(target: Target) -> Iterator[str]:
    """Everything that `tag:`, `env:`, `role:` and `kind:` can name of a target."""
    for prefix, candidates in _PREFIXES.items():
        yield from (f"{prefix}:{candidate}" for candidate in candidates(target))
