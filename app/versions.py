"""Which versions of a model are served, as a setting says it.

A rule is ``latest`` (the highest version), ``latest:3`` (the three highest), ``all``, or a list such as ``1,3``. A rule
by itself is for every model; ``NAME=RULE`` is for one; several are joined by semicolons: ``latest:2; digits=1,3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")
# What stands for every model that has no rule of its own.
EVERY = "*"
_LATEST = re.compile(r"latest(?::([1-9][0-9]{0,8}))?")
_RIGHT = (
    "must be latest, latest:N, all, or versions such as 1,3; for one model NAME=..., several joined by semicolons: "
    '"latest:2; digits=1,3"'
)


@dataclass(frozen=True)
class Rule:
    """For one model, or for all.

    Attributes:
        newest: so many of the highest versions; None for no limit.
        listed: exactly these instead.
    """

    newest: int | None = 1
    listed: tuple[str, ...] = ()

    def choose(self, available: Iterable[str]) -> list[str]:
        """Those of the available versions that are served, ascending."""
        ascending = sorted(available, key=int)
        if self.listed:
            return [version for version in ascending if version in self.listed]
        return ascending if self.newest is None else ascending[-self.newest :]


@dataclass(frozen=True)
class Policy:
    """The rule of each model.

    Attributes:
        every: for models without a rule of their own.
        own: by name.
    """

    every: Rule = Rule()
    own: Mapping[str, Rule] = field(default_factory=dict)

    def choose(self, name: str, available: Iterable[str]) -> list[str]:
        """Those of a model's versions that are served, ascending."""
        return self.own.get(name, self.every).choose(available)

    def listed(self, name: str) -> tuple[str, ...]:
        """The versions that the setting names, whether they are there or not."""
        return self.own.get(name, self.every).listed


def parse(text: str) -> Policy:
    """What the setting says.

    Raises:
        ValueError: it says nothing that is known; the text is what would be right.
    """
    rules: dict[str, Rule] = {}
    for part in text.split(";"):
        name, equals, rule = part.rpartition("=")
        name = name.strip() if equals else EVERY
        if name != EVERY and not NAME.fullmatch(name):
            raise ValueError(_RIGHT)
        made = _rule(rule.strip())
        if name in rules:
            raise ValueError(f"must have one rule for {name}")
        rules[name] = made
    every = rules.pop(EVERY, Rule())
    return Policy(every, rules)


def _rule(text: str) -> Rule:
    if text == "all":
        return Rule(newest=None)
    if found := _LATEST.fullmatch(text):
        return Rule(newest=int(found[1] or 1))
    listed = [version.strip() for version in text.split(",")]
    if not all(VERSION.fullmatch(version) for version in listed):
        raise ValueError(_RIGHT)
    return Rule(listed=tuple(sorted(set(listed), key=int)))


def as_text(given: Any) -> Any:
    """A table of a TOML file, ``{"*" = "latest:2", digits = [1, 3]}``, as the text that says the same."""
    if not isinstance(given, Mapping):
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    rules = [f"{name}={','.join(map(str, rule)) if isinstance(rule, list) else rule}" for name, rule in given.items()]
    return "; ".join(rules)
