"""Options: invalid values, and the table comment that Vitess reads."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vitess_messages import InvalidArgument, InvalidArgumentType, InvalidQueue, QueueOptions

ORIGINAL = (
    "vitess_message,vt_ack_wait=30,vt_purge_after=86400,vt_batch_size=10,"
    "vt_cache_size=10000,vt_poller_interval=30"
)


def test_the_defaults_are_the_original_comment() -> None:
    assert QueueOptions().to_comment() == ORIGINAL


def test_every_option_reaches_the_comment() -> None:
    options = QueueOptions(
        ack_wait=timedelta(milliseconds=1500), purge_after=0.25, batch_size=1, cache_size=2,
        poller_interval=1e-3, min_backoff=2, max_backoff=timedelta(hours=1),
        message_cols=["id", "epoch", "body"],
    )  # fmt: skip
    assert options.to_comment() == (
        "vitess_message,vt_ack_wait=1.5,vt_purge_after=0.25,vt_batch_size=1,vt_cache_size=2,"
        "vt_poller_interval=0.001,vt_min_backoff=2,vt_max_backoff=3600,"
        "vt_message_cols=id|epoch|body"
    )


durations = st.one_of(st.floats(0.001, 1e9), st.integers(1, 10**9))


@given(
    ack_wait=durations,
    purge_after=durations,
    poller_interval=durations,
    batch_size=st.integers(1, 1000),
    cache_size=st.integers(1000, 1_000_000),
    backoffs=st.none() | st.tuples(durations, durations).map(sorted),
    message_cols=st.none() | st.just(("id", "epoch", "x y")),
)
def test_options_survive_the_way_to_the_comment_and_back(backoffs: Any, **values: Any) -> None:
    if backoffs is not None:
        values |= {"min_backoff": backoffs[0], "max_backoff": backoffs[1]}
    options = QueueOptions(**values)
    assert QueueOptions.from_comment(options.to_comment()) == options
    assert "e-" not in options.to_comment()  # Go's Atoi accepts no exponent.


def test_the_order_in_a_comment_does_not_matter() -> None:
    mark, *parts = ORIGINAL.split(",")
    shuffled = ",".join([mark, *reversed(parts)])
    assert QueueOptions.from_comment(shuffled) == QueueOptions.from_comment(ORIGINAL)


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "vitess_message",
        "something else",
        ORIGINAL.replace(",vt_cache_size=10000", ""),
        ORIGINAL.replace(",vt", ", vt"),
        ORIGINAL.replace("=10,", "=ten,"),
        ORIGINAL.replace("=30,", "=nan,"),
        ORIGINAL.replace("=10,", "=10.5,"),
        ORIGINAL + ",vt_ack_wait=30",
        ORIGINAL + ",vt_colour=red",
        ORIGINAL + ",min_backoff=3",
        ORIGINAL + ",",
        ORIGINAL + ",vt_message_cols=",
        ORIGINAL + ",vt_message_cols=epoch|id",
        ORIGINAL.replace("=10000", "=0"),
    ],
)
def test_a_comment_that_vitess_cannot_use_is_refused(comment: str) -> None:
    with pytest.raises(InvalidQueue, match="comment"):
        QueueOptions.from_comment(comment)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ack_wait": 0}, "ack_wait=0"),
        ({"ack_wait": -1}, "ack_wait=-1"),
        ({"ack_wait": float("inf")}, "ack_wait=inf"),
        ({"ack_wait": float("nan")}, "ack_wait=nan"),
        ({"purge_after": 10**10}, "100 years"),
        ({"poller_interval": 0}, "poller_interval=0"),
        ({"poller_interval": 1e-9}, "from 0.001"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"cache_size": 0}, "cache_size=0"),
        ({"batch_size": 20, "cache_size": 10}, "at least batch_size=20"),
        ({"min_backoff": 0}, "min_backoff=0"),
        ({"min_backoff": 5, "max_backoff": 4}, "max_backoff=4"),
        ({"max_backoff": 4}, "ack_wait unless given"),
        ({"message_cols": []}, "begin with 'id'"),
        ({"message_cols": ["epoch", "id"]}, "begin with 'id'"),
        ({"message_cols": ["id", "a,b"]}, "'a,b'"),
        ({"message_cols": ["id", "a|b"]}, "separate"),
        ({"message_cols": ["id", "a=b"]}, "separate"),
        ({"message_cols": ["id", "ID"]}, "twice"),
        ({"layout": "fancy"}, "layout='fancy'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text.replace("|", r"\|")):
        QueueOptions(**options)


@pytest.mark.parametrize(
    "options",
    [{"ack_wait": "30"}, {"ack_wait": True}, {"ack_wait": None}, {"batch_size": 1.5},
     {"batch_size": True}, {"cache_size": "1"}, {"message_cols": "id"}, {"message_cols": [1]}],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentType, match=next(iter(options))):
        QueueOptions(**options)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        QueueOptions().ack_wait = 3  # type: ignore[misc]
