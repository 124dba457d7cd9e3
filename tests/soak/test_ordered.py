"""20,000 messages of 500 keys, and four consumers that are killed with SIGKILL at random."""

from __future__ import annotations

import pytest

from tests.killed_consumers import check_order_with_killed_consumers

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("server", ["mysql", "sharded"])
def test_the_effects_of_each_key_are_complete_and_in_order_though_consumers_are_killed(
    server: str,
) -> None:
    check_order_with_killed_consumers(server, messages=20_000, keys=500, kills=20, within=900)
