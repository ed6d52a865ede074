"""What a load test must reach to pass, so that it can guard a build."""

from __future__ import annotations

from dataclasses import dataclass

from app.loadtest.report import Report


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Limits in milliseconds, as a fraction of the requests, and in good answers per second.

    None sets no limit.
    """

    max_p50: float | None = None
    max_p95: float | None = None
    max_p99: float | None = None
    max_error_rate: float | None = None
    min_throughput: float | None = None

    def failures(self, report: Report) -> list[str]:
        """One line for each limit that `report` misses, and by how much; an unknown figure misses it."""
        found = []
        for name, limit in (("p50", self.max_p50), ("p95", self.max_p95), ("p99", self.max_p99)):
            if limit is None:
                continue
            value = report.latency_ms[name]
            if value is None:
                found.append(f"{name} is unknown, for there is no good answer; --max-{name} allows {limit:g} ms")
            elif value > limit:
                found.append(f"{name} is {value:.4g} ms, {value - limit:.3g} ms above the {limit:g} ms of --max-{name}")
        if (most := self.max_error_rate) is not None:
            rate = report.error_rate
            if rate is None:
                found.append(f"error rate is unknown, for nothing was counted; --max-error-rate allows {most:g}")
            elif rate > most:
                found.append(f"error rate is {rate:.4g}, {rate - most:.3g} above the {most:g} of --max-error-rate")
        if (least := self.min_throughput) is not None and report.throughput < least:
            found.append(
                f"throughput is {report.throughput:.5g}/s, {least - report.throughput:.3g}/s below "
                f"the {least:g}/s of --min-throughput"
            )
        return found
