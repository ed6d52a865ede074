"""What was done to the service, and what became of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from benchmarks.speed.tables import NOTHING, markdown

# Violations that are kept in words; all are counted.
_KEPT = 20


@dataclass
class Ledger:
    """Counts by kind of request.

    Attributes:
        sent: of each kind, how many.
        ended: of each kind, how many ended in which way.
        violations: what must not have happened, by kind.
        notes: what else was found out.
    """

    sent: Counter[str] = field(default_factory=Counter)
    ended: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    violations: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def end(self, kind: str, how: str, fault: str = "") -> None:
        """One request has ended.

        Args:
            how: in a word, such as its status.
            fault: why it must not have ended so.
        """
        self.ended[kind][how] += 1
        if fault:
            self.violate(kind, fault)

    def violate(self, kind: str, fault: str) -> None:
        self.violations[kind] += 1
        if len(self.texts) < _KEPT:
            self.texts.append(f"{kind}: {fault}")

    def close(self, kinds: Collection[str] = ()) -> None:
        """Nothing more will come: whatever was sent must have ended, once.

        Args:
            kinds: of which some must have been sent.
        """
        for kind, count in self.sent.items():
            if (ended := self.ended[kind].total()) != count:
                self.violate(kind, f"{count} were sent and {ended} ended")
        for kind in kinds:
            if not self.sent[kind]:
                self.violate(kind, "none was sent, so that nothing is known of them")

    @property
    def clean(self) -> bool:
        return not self.violations

    def table(self) -> str:
        """As Markdown."""
        rows = []
        for kind, count in self.sent.items():
            ways = ", ".join(f"{how} × {n:,}" for how, n in sorted(self.ended[kind].items()))
            rows.append([kind, f"{count:,}", ways or NOTHING, str(self.violations[kind] or NOTHING)])
        parts = [markdown(["what was done to it", "times", "what came of it", "violations"], rows)]
        parts += ["\n".join(f"- {name}: {text}" for name, text in self.notes.items())] if self.notes else []
        if self.texts:
            more = self.violations.total() - len(self.texts)
            rest = [f"- and {more:,} more"] if more > 0 else []
            parts.append("Violations:\n\n" + "\n".join([f"- {text}" for text in self.texts] + rest))
        return "\n\n".join(parts)
