"""An alarm never rings early: a request sent before it is due would make the service look faster."""

import asyncio

import pytest

from app.loadtest import clock


@pytest.mark.parametrize("kernel_timer", [True, False])
def test_wakes_at_or_after_the_time(kernel_timer, monkeypatch):
    if not kernel_timer:
        monkeypatch.setattr(clock, "_kernel_timer", lambda: None)

    async def lateness() -> list[float]:
        alarm = clock.Alarm()
        try:
            late = []
            for wait in [-0.1, 0.0, 0.0003, 0.004, 0.02] * 3:
                due = clock.now() + wait
                await alarm.until(due)
                late.append(clock.now() - due)
            return late
        finally:
            alarm.close()

    late = asyncio.run(lateness())
    assert min(late) >= 0
    assert sorted(late)[len(late) // 2] < 0.05


def test_a_wait_can_be_given_up_and_the_alarm_used_again():
    async def use() -> float:
        alarm = clock.Alarm()
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(alarm.until(clock.now() + 60), 0.01)
            due = clock.now() + 0.005
            await alarm.until(due)
            return clock.now() - due
        finally:
            alarm.close()

    assert asyncio.run(use()) >= 0
