"""Messages and queues are looked at and changed from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_vitess_messages import Subscriber
from tests.backends import BACKENDS, Backend
from tests.command import Commands, commands_on

pytestmark = pytest.mark.parametrize(
    "backend",
    [one for one in BACKENDS if one.name in ("sqlite", "vitess", "vitess-sharded")],
    indirect=True,
    ids=lambda backend: backend.name,
)


@pytest.fixture
def shop(engine: Engine, url: str, backend: Backend) -> Iterator[Commands]:
    with commands_on(engine, url, is_sharded=backend.server == "sharded") as commands:
        yield commands


def test_stats_count_every_queue(shop: Commands) -> None:
    dead = shop.mail(user_id=1)
    shop.enqueue(dead, shop.mail(user_id=2), shop.mail(user_id=3, deliver_in=60))
    shop.fail(dead)
    shop.run("pause", "Mail")
    bills, mails = sorted(shop.json("stats", "metadata"), key=lambda one: one["queue"])
    age = mails.pop("oldest_ready_age")
    assert 0 <= age < 60
    counts = {"ready": 1, "scheduled": 1, "leased": 0, "dead": 1, "acked": 0}
    assert mails == {"queue": shop.mail.__tablename__, "paused": True, **counts}
    assert bills == {
        "queue": shop.bill.__tablename__,
        "paused": False,
        "oldest_ready_age": None,
        **dict.fromkeys(counts, 0),
    }
    table = shop.run("stats", "Mail")
    assert table.split()[:7] == [
        "queue", "ready", "scheduled", "leased", "dead", "acked", "oldest",
    ]  # fmt: skip
    assert "paused" in table.splitlines()[1]
    assert shop.bill.__tablename__ not in table


def test_messages_are_listed_by_state_and_values(shop: Commands) -> None:
    later, dead, other = (shop.mail(user_id=user, text=f"to {user}") for user in (7, 7, 8))
    later.deliver_in = 3600
    bill = shop.bill(user_id=7)
    shop.enqueue(later, dead, other, bill)
    shop.fail(dead, reason="no such address")
    assert shop.states() == {
        str(later.id): "scheduled",
        str(dead.id): "dead",
        str(other.id): "ready",
        str(bill.id): "ready",
    }
    [found] = shop.json("list", "Mail", "--state", "dead", "--where", "user_id=7")
    assert (found["id"], found["fail_reason"]) == (str(dead.id), "no such address")
    assert found["payload"] == {"user_id": 7, "text": "to 7"}
    assert {one["id"] for one in shop.json("list", "Base", "--where", "user_id=7")} == {
        str(later.id), str(dead.id), str(bill.id),
    }  # fmt: skip
    # Bills have no text, so none of them has this one.
    assert [one["id"] for one in shop.json("list", "Base", "--where", "text=to 8")] == [
        str(other.id)
    ]
    assert len(shop.json("list", "Mail", "--limit", "2")) == 2
    text = shop.run("list", "Mail")
    assert str(dead.id) in text
    assert "no such address" in text
    assert "in 60 minutes" in text or "in 59 minutes" in text
    assert shop.run("list", "Mail", "--state", "acked") == "no messages\n"


def test_a_message_is_shown(shop: Commands) -> None:
    message = shop.mail(user_id=7, text="[bold]hello[/bold]", priority=3)
    shop.enqueue(message)
    shop.fail(message, reason="refused: <script>")
    shown = shop.json("show", "Base", str(message.id))
    assert (shown["queue"], shown["id"]) == (shop.mail.__tablename__, str(message.id))
    assert (shown["state"], shown["attempts"], shown["priority"]) == ("dead", 0, 3)
    assert shown["fail_reason"] == "refused: <script>"
    assert shown["payload"] == {"user_id": 7, "text": "[bold]hello[/bold]"}
    assert {"created_at", "failed_at"} <= shown.keys()
    text = shop.run("show", "Mail", str(message.id))
    assert "[bold]hello[/bold]" in text
    assert "ago)" in text or "(now)" in text
    assert "there is no message 17" in shop.run("show", "Base", "17", code=1)


def test_messages_are_changed_by_their_ids(shop: Commands) -> None:
    dead, later, ready = shop.mail(user_id=1), shop.bill(user_id=2), shop.mail(user_id=3)
    later.deliver_in = 3600
    shop.enqueue(dead, later, ready)
    shop.fail(dead)
    assert shop.run("requeue", "Base", str(dead.id)) == "1 message requeued\n"
    assert shop.states()[str(dead.id)] == "ready"
    shop.run("run-now", "Base", str(later.id))
    assert shop.states()[str(later.id)] == "ready"
    done = shop.json("reschedule", "Base", "--in", "2h", str(later.id), str(ready.id))
    assert (done["count"], done["unmatched"]) == (2, [])
    assert shop.states() == {
        str(dead.id): "ready",
        str(later.id): "scheduled",
        str(ready.id): "scheduled",
    }
    assert shop.run("cancel", "Base", str(dead.id), str(later.id)) == "2 messages cancelled\n"
    assert shop.states() == {str(ready.id): "scheduled"}


def test_an_id_that_matches_nothing_is_named_and_the_others_are_changed(shop: Commands) -> None:
    dead, ready = shop.mail(user_id=1), shop.mail(user_id=2)
    shop.enqueue(dead, ready)
    shop.fail(dead)
    output = shop.run("requeue", "Base", str(dead.id), str(ready.id), "17", code=1)
    assert f"has this id: {ready.id}, 17" in output
    assert "1 message requeued" in output
    assert set(shop.states().values()) == {"ready"}


def test_all_that_match_are_changed_after_the_user_has_seen_how_many(shop: Commands) -> None:
    dead = [shop.mail(user_id=user) for user in (1, 1, 2)]
    shop.enqueue(*dead, shop.mail(user_id=1), shop.bill(user_id=1, deliver_in=60))
    shop.fail(*dead)
    conditions = ("--all", "--where", "user_id=1")
    refused = shop.run("requeue", "Base", *conditions, code=1, input="n\n")
    assert "Requeue 2 messages?" in refused
    assert list(shop.states().values()).count("dead") == 3
    shop.run("requeue", "Base", *conditions, input="y\n")
    assert list(shop.states().values()).count("dead") == 1
    done = shop.json("cancel", "Base", "--all", "--state", "ready", "--yes")
    assert done["count"] == 3
    assert sorted(shop.states().values()) == ["dead", "scheduled"]
    assert shop.json("run-now", "Base", "--all", "--yes")["count"] == 1
    assert shop.json("reschedule", "Base", "--in", "1d", "--all", "--yes")["count"] == 1
    assert sorted(shop.states().values()) == ["dead", "scheduled"]


def test_the_question_is_not_among_the_results(shop: Commands) -> None:
    shop.enqueue(shop.mail(user_id=1))
    output = shop.run("cancel", "Mail", "--all", "--json", input="y\n")
    # Some versions of typer let the test see the answer as well, as on a terminal.
    assert json.loads(output[output.index("{") :]) == {
        "done": "cancelled",
        "count": 1,
        "unmatched": [],
    }
    # Nobody is asked about nothing.
    assert shop.run("cancel", "Mail", "--all") == "0 messages cancelled\n"


def test_a_state_is_for_the_queues_that_know_it(shop: Commands) -> None:
    """Bills keep no failures, so they can't be told to wait for a retry."""
    mail, bill = shop.mail(user_id=1), shop.bill(user_id=1)
    shop.enqueue(mail, bill)
    with Subscriber(shop.mail, shop.engine) as subscriber:
        received = subscriber.get(timeout=60)
        assert received is not None
        with Session(shop.engine) as session, session.begin():
            received.retry(session, 600)
    [found] = shop.json("list", "Base", "--state", "retrying")
    assert found["id"] == str(mail.id)
    done = shop.json("run-now", "Base", "--all", "--state", "retrying", "--yes")
    assert done["count"] == 1
    assert shop.states() == {str(mail.id): "ready", str(bill.id): "ready"}


def test_old_dead_messages_are_purged(shop: Commands) -> None:
    dead, ready = shop.mail(user_id=1), shop.mail(user_id=2)
    shop.enqueue(dead, ready)
    shop.fail(dead)
    assert shop.run("purge-dead", "Base", "--older-than", "7d") == "0 messages deleted\n"
    assert shop.json("purge-dead", "Base", "--older-than", "0")["count"] == 1
    assert shop.states() == {str(ready.id): "ready"}


def test_queues_are_paused_and_resumed(shop: Commands) -> None:
    name = shop.mail.__tablename__
    assert shop.run("pause", "Mail") == f"paused: {name}\n"
    assert shop.json("stats", "Mail")[0]["paused"] is True
    assert shop.json("resume", "Mail") == {"resumed": [name]}
    assert shop.json("stats", "Mail")[0]["paused"] is False
    # All or none of the queues that are named.
    assert "Bill can't be paused: set pausable=True" in shop.run("pause", "Base", code=2)
    assert shop.json("stats", "Mail")[0]["paused"] is False


PAYLOAD = {
    "user_id": 7,
    "amount": "12.50",
    "due": "2026-01-31T12:00:00",
    "day": "2026-02-28",
    "grace": 90,
    "color": "BLUE",
    "scan": "AP8=",
    "more": {"lines": [1, None, "ä"]},
    "is_paid": True,
    "number": "12345678-1234-5678-1234-567812345678",
    "size": "small",
    "at": "12:30:00",
    "weight": None,
}


def test_what_is_enqueued_is_shown_as_it_was_given(shop: Commands) -> None:
    message_id = shop.run("enqueue", "Bill", json.dumps(PAYLOAD), "--priority", "10").strip()
    shown = shop.json("show", "Bill", message_id)
    assert shown["payload"] == PAYLOAD
    assert (shown["state"], shown["priority"]) == ("ready", 10)
    again = shop.json("enqueue", "Bill", json.dumps(shown["payload"]), "--in", "2h")
    assert again["queue"] == shop.bill.__tablename__
    assert shop.states() == {message_id: "ready", again["id"]: "scheduled"}
    for name in (
        "user_id",
        "amount",
        "due",
        "day",
        "color",
        "is_paid",
        "number",
        "scan",
        "size",
        "at",
    ):
        value = json.dumps(PAYLOAD[name]) if name == "is_paid" else str(PAYLOAD[name])
        assert len(shop.json("list", "Bill", "--where", f"{name}={value}")) == 2, name


def test_a_message_whose_key_is_taken_is_refused_skipped_or_replaces_the_other(
    shop: Commands,
) -> None:
    def enqueue(text: str, *arguments: str, **options: Any) -> str:
        payload = json.dumps({"user_id": 7, "text": text})
        return shop.run("enqueue", "Reminder", payload, *arguments, **options)

    def texts() -> dict[str, str]:
        return {one["id"]: one["payload"]["text"] for one in shop.json("list", "Others")}

    first = enqueue("first").strip()
    assert "Error: " in enqueue("second", code=2)
    assert "Error: " in enqueue("second", "--if-exists", "raise", code=2)
    assert enqueue("second", "--if-exists", "skip") == "skipped\n"
    assert texts() == {first: "first"}
    assert enqueue("second", "--if-exists", "replace") == "replaced\n"
    assert texts() == {first: "second"}
    payload = json.dumps({"user_id": 8})
    other = shop.json("enqueue", "Reminder", payload, "--if-exists", "replace")
    assert other["outcome"] == "enqueued"
    assert texts() == {first: "second", other["id"]: ""}
    refused = shop.run("enqueue", "Mail", payload, "--if-exists", "skip", code=2)
    assert "set unique_by in its QueueOptions" in refused


def test_dead_messages_whose_key_is_taken_stay_dead(shop: Commands) -> None:
    reminder = shop.module.Reminder
    dead = reminder(user_id=7)
    shop.enqueue(dead)
    shop.fail(dead)
    shop.enqueue(reminder(user_id=7))
    assert shop.run("requeue", "Others", str(dead.id), code=1).startswith("0 messages requeued")
    assert shop.json("requeue", "Others", "--all", "--yes")["count"] == 0
    assert sorted(shop.states("Others").values()) == ["dead", "ready"]
