"""Consumers of an ordered queue are killed: a small version of what ``make soak`` does."""

from __future__ import annotations

import pytest

from tests.killed_consumers import check_order_with_killed_consumers


@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", ["mysql", "sharded"])
def test_a_few_keys_stay_complete_and_in_order_though_consumers_are_killed(server: str) -> None:
    check_order_with_killed_consumers(server, messages=600, keys=30, kills=4, within=200)
