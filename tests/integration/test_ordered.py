"""Messages of one key are handed out one at a time, in the order in which they were enqueued."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import BigInteger, Engine, String, create_engine, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vitess_messages import Grpc, InvalidArgument, Subscriber
from sqla_vitess_messages.rows.transient import retry_transaction
from sqla_vitess_messages.transports.ordered import OrderedLeaser
from tests.backends import PULLING, Backend, ack, enqueue, eventually
from tests.faults import interrupted

MakeQueue = Callable[..., type[Any]]
Subscribe = Callable[..., Any]
Work = Callable[..., Any]

ORDERED = [
    *(backend for backend in PULLING if backend.name != "vitess-asyncio"),
    Backend("vitess-sharded-asyncio", "sharded", "auto", "asyncmy"),
]

pytestmark = pytest.mark.parametrize("backend", ORDERED, indirect=True, ids=lambda b: b.name)


@pytest.fixture
def make_ordered(make_queue: MakeQueue) -> MakeQueue:
    """Return a factory of queues that are ordered by their column ``tenant``."""

    def make(**options: Any) -> type[Any]:
        columns = {"tenant": mapped_column(BigInteger, nullable=False)}
        attributes = {**columns, **options.pop("attributes", {})}
        return make_queue(attributes=attributes, **{"ordered_by": "tenant", **options})

    return make


@pytest.fixture
def ordered(make_ordered: MakeQueue) -> type[Any]:
    return make_ordered(ack_wait=60)


def receive(subscriber: Any, count: int, timeout: float = 20) -> list[Any]:
    """Receive messages without acking them."""
    received: list[Any] = []
    ends_at = time.monotonic() + timeout
    while len(received) < count:
        received += subscriber.get_many(count - len(received), 0.5)
        assert time.monotonic() < ends_at, f"{len(received)} of {count}"
    return received


def bodies(messages: list[Any]) -> list[str]:
    return [message.body for message in messages]


def drain(engine: Engine, subscriber: Any, count: int) -> list[Any]:
    """Receive and ack messages one by one."""
    received: list[Any] = []
    for _ in range(count):
        [message] = receive(subscriber, 1)
        ack(engine, message)
        received.append(message)
    return received


def test_the_messages_of_a_key_come_one_at_a_time_and_in_order(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, *(ordered(tenant=key, body=f"{n}") for n in range(5) for key in (1, 2, 3)))
    subscriber = subscribe(ordered, max_concurrency=20)
    for number in range(5):
        received = receive(subscriber, 3)
        assert sorted(message.tenant for message in received) == [1, 2, 3]
        assert bodies(received) == [f"{number}"] * 3
        assert subscriber.get(0.3) is None
        ack(engine, *received)
    assert subscriber.get(0.3) is None


def test_the_order_is_that_in_which_messages_were_added_however_they_were_made(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    made = [ordered(tenant=1, body=f"{number}", priority=99 - number) for number in range(12)]
    with Session(engine) as session, session.begin():
        for number in (7, 3, 11):
            session.add(made[number])
        session.flush()
        session.add_all([made[0], made[9]])
        with session.begin_nested():
            session.add(made[1])
        for number in (10, 2):
            session.add(made[number])
        session.flush()
        session.execute(
            insert(ordered), [{"tenant": 1, "body": "core 1"}, {"tenant": 1, "body": "core 2"}]
        )
        session.add(made[5])
    with engine.begin() as connection:
        values = [{"tenant": 1, "body": "values 1"}, {"tenant": 1, "body": "values 2"}]
        connection.execute(insert(ordered).values(values))
    subscriber = subscribe(ordered)
    expected = ["7", "3", "11", "0", "9", "1", "10", "2", "core 1", "core 2", "5"]
    expected += ["values 1", "values 2"]
    assert bodies(drain(engine, subscriber, len(expected))) == expected


def test_the_order_of_a_key_can_be_given(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, *(ordered(tenant=1, body=f"{seq}", seq=seq) for seq in (30, 10, 20)))
    assert bodies(drain(engine, subscribe(ordered), 3)) == ["10", "20", "30"]
    for wrong in ("1", 1.5, True):
        with pytest.raises(TypeError, match="seq"):
            enqueue(engine, ordered(tenant=1, seq=wrong))
    with pytest.raises(InvalidArgument, match="seq=-1"):
        enqueue(engine, ordered(tenant=1, seq=-1))


def test_messages_of_one_place_come_one_at_a_time(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    """As after a migration, or of two processes in the same nanosecond."""
    enqueue(engine, *(ordered(tenant=key, seq=5) for _ in range(4) for key in (1, 2)))
    subscriber = subscribe(ordered, max_concurrency=20)
    for _ in range(4):
        received = receive(subscriber, 2)
        assert {message.tenant for message in received} == {1, 2}
        assert subscriber.get(0.2) is None
        ack(engine, *received)


def test_the_next_message_follows_an_ack_at_once(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    """Also when 99 other keys have nothing due, and however seldom an idle queue is polled."""
    later = [ordered(tenant=100 + n, deliver_in=3600) for n in range(99)]
    enqueue(engine, *later, *(ordered(tenant=1, body=f"{n}") for n in range(30)))
    subscriber = subscribe(ordered)
    started = time.monotonic()
    assert bodies(drain(engine, subscriber, 30)) == [f"{n}" for n in range(30)]
    assert time.monotonic() - started < 15


def test_a_retried_message_comes_again_before_its_followers(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, *(ordered(tenant=1, body=f"{n}") for n in range(3)))
    enqueue(engine, *(ordered(tenant=2, body=f"other {n}") for n in range(2)))
    subscriber = subscribe(ordered)
    received = {message.tenant: message for message in receive(subscriber, 2)}
    with Session(engine) as session, session.begin():
        received[1].retry(session, 1)
    ack(engine, received[2])
    assert bodies(drain(engine, subscriber, 1)) == ["other 1"]
    again = drain(engine, subscriber, 3)
    assert [(message.body, message.attempts) for message in again] == [
        ("0", 1),
        ("1", 0),
        ("2", 0),
    ]


def test_a_scheduled_message_keeps_its_followers_waiting(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, ordered(tenant=1, body="0", deliver_in=2), ordered(tenant=1, body="1"))
    subscriber = subscribe(ordered)
    started = time.monotonic()
    assert bodies(drain(engine, subscriber, 2)) == ["0", "1"]
    assert time.monotonic() - started > 1


def test_a_message_whose_lease_ran_out_comes_again_before_its_followers(
    engine: Engine, make_ordered: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_ordered(ack_wait=0.5, min_backoff=0.5)
    enqueue(engine, *(queue(tenant=1, body=f"{n}") for n in range(2)))
    lost = receive(subscribe(queue), 1)
    other = subscribe(queue)
    while (message := receive(other, 1)[0]).epoch == lost[0].epoch:
        pass
    assert message.body == "0"
    ack(engine, message)
    assert bodies(drain(engine, other, 1)) == ["1"]


def test_what_nobody_got_is_released_before_its_followers(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, *(ordered(tenant=1, body=f"{n}") for n in range(2)))
    first = subscribe(ordered)

    def has_leased() -> bool:
        with Session(engine) as session:
            return ordered.stats(session).leased == 1

    eventually(has_leased)
    first.close()
    assert bodies(drain(engine, subscribe(ordered), 2)) == ["0", "1"]


def test_a_dead_message_lets_the_others_pass(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, *(ordered(tenant=1, body=f"{n}") for n in range(4)))
    subscriber = subscribe(ordered)
    for number in range(2):
        [message] = receive(subscriber, 1)
        assert message.body == f"{number}"
        with Session(engine) as session, session.begin():
            message.fail(session)
    [held] = receive(subscriber, 1)
    assert held.body == "2"
    with Session(engine) as session, session.begin():
        assert ordered.requeue(session) == 2
    assert subscriber.get(0.5) is None  # Not beside the one that is being handled.
    ack(engine, held)
    assert bodies(drain(engine, subscriber, 3)) == ["3", "0", "1"]


def test_many_dead_messages_are_requeued_in_their_order(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    """Of more than fit into one statement; their ids are in no order."""
    count = 1_100
    enqueue(engine, *(ordered(tenant=n % 600, body=f"{n // 600}") for n in range(count)))
    with Session(engine) as session:
        waiting = session.scalars(select(ordered)).all()
        ordered.fail_all(session, waiting)
        session.commit()
    with Session(engine) as session, session.begin():
        assert ordered.requeue(session) == count
    enqueue(engine, *(ordered(tenant=n, body="2") for n in range(600)))
    with Session(engine) as session:
        in_order = session.execute(select(ordered.tenant, ordered.body).order_by(ordered.seq)).all()
    expected = [(n % 600, f"{n // 600}") for n in range(count)] + [(n, "2") for n in range(600)]
    assert [tuple(one) for one in in_order] == expected


def test_a_flush_changes_no_place(engine: Engine, ordered: type[Any], subscribe: Subscribe) -> None:
    enqueue(engine, *(ordered(tenant=1, body=f"{n}") for n in range(2)))
    subscriber = subscribe(ordered)
    [message] = receive(subscriber, 1)
    with Session(engine) as session, session.begin():
        merged = session.merge(message)
        merged.seq, merged.body = 2**62, "changed"
    with Session(engine) as session:
        in_order = session.scalars(select(ordered.body).order_by(ordered.seq)).all()
    assert in_order == ["changed", "1"]


def test_a_dead_message_halts_its_key_until_it_is_requeued(
    engine: Engine, make_ordered: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_ordered(ack_wait=60, halt_on_dead=True)
    enqueue(engine, *(queue(tenant=key, body=f"{n}") for n in range(2) for key in (1, 2)))
    subscriber = subscribe(queue)
    received = {message.tenant: message for message in receive(subscriber, 2)}
    with Session(engine) as session, session.begin():
        received[1].fail(session)
    ack(engine, received[2])
    assert [m.tenant for m in drain(engine, subscriber, 1)] == [2]
    assert subscriber.get(0.5) is None
    with Session(engine) as session, session.begin():
        assert queue.requeue(session) == 1
    assert bodies(drain(engine, subscriber, 2)) == ["0", "1"]


@pytest.mark.parametrize("how", ["purge", "ack", "cancel"])
def test_a_dead_message_halts_its_key_until_it_is_gone(
    engine: Engine, make_ordered: MakeQueue, subscribe: Subscribe, how: str
) -> None:
    queue = make_ordered(ack_wait=60, halt_on_dead=True)
    enqueue(engine, *(queue(tenant=1, body=f"{n}") for n in range(2)))
    subscriber = subscribe(queue)
    [message] = receive(subscriber, 1)
    with Session(engine) as session, session.begin():
        message.fail(session)
    assert subscriber.get(0.5) is None
    with Session(engine) as session, session.begin():
        if how == "purge":
            assert queue.purge_dead(session) == 1
        elif how == "cancel":
            assert queue.cancel(session, [message.id]) == 1
        else:
            [dead] = queue.dead(session)
            dead.ack(session)
    assert bodies(drain(engine, subscriber, 1)) == ["1"]


def test_no_busy_key_starves_the_others(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    """With one slot, though one key always has a next message at once."""
    enqueue(engine, *(ordered(tenant=1, body=f"{n}") for n in range(40)))
    enqueue(engine, *(ordered(tenant=2 + n % 3) for n in range(9)))
    order = [message.tenant for message in drain(engine, subscribe(ordered, max_concurrency=1), 36)]
    assert order.count(1) <= 27
    for key in (2, 3, 4):
        assert order.count(key) == 3
        turns = [number for number, tenant in enumerate(order) if tenant == key]
        assert max(later - earlier for earlier, later in zip([0, *turns], turns, strict=False)) <= 8


def test_a_batch_has_no_two_messages_of_a_key(
    engine: Engine, ordered: type[Any], work: Work
) -> None:
    keys, count = 7, 140
    enqueue(engine, *(ordered(tenant=n % keys, body=f"{n // keys}") for n in range(count)))
    done: dict[int, list[str]] = defaultdict(list)
    doubled: list[list[int]] = []

    def handle(messages: list[Any], _session: Session) -> None:
        tenants = [message.tenant for message in messages]
        if len(set(tenants)) < len(tenants):
            doubled.append(tenants)
        for message in messages:
            done[message.tenant].append(message.body)

    work(ordered, handle, batch_size=10, concurrency=2)
    eventually(lambda: sum(map(len, done.values())) >= count, within=60)
    assert not doubled
    assert all(of_key == [f"{n}" for n in range(count // keys)] for of_key in done.values())


def test_handlers_of_a_key_never_overlap_and_retries_keep_the_order(
    engine: Engine, ordered: type[Any], work: Work
) -> None:
    """Two workers, whose handlers fail now and then."""
    keys, each = 5, 12
    enqueue(engine, *(ordered(tenant=key, body=f"{n}") for n in range(each) for key in range(keys)))
    lock = threading.Lock()
    busy: set[int] = set()
    done: dict[int, list[str]] = defaultdict(list)
    overlaps: list[int] = []
    failed: set[tuple[int, str]] = set()

    def handle(message: Any, _session: Session) -> None:
        key, body = message.tenant, message.body
        with lock:
            if key in busy:
                overlaps.append(key)
            busy.add(key)
        try:
            time.sleep(0.002)
            if random.random() < 0.2 and (key, body) not in failed:
                failed.add((key, body))
                raise ValueError(body)
            done[key].append(body)
        finally:
            with lock:
                busy.discard(key)

    for _ in range(2):
        work(ordered, handle, concurrency=3)
    eventually(lambda: sum(map(len, done.values())) >= keys * each, within=60)
    assert not overlaps
    assert all(of_key == [f"{n}" for n in range(each)] for of_key in done.values())


def test_what_another_has_requeued_keeps_its_place(
    engine: Engine, url: str, ordered: type[Any], subscribe: Subscribe
) -> None:
    """Else its follower would be handed out beside it."""
    subscriber = subscribe(ordered)
    enqueue(engine, *(ordered(tenant=1, body=body) for body in ("first", "second")))
    [first] = receive(subscriber, 1)
    with Session(engine) as session, session.begin():
        first.fail(session)
    [second] = receive(subscriber, 1)
    ack(engine, second)
    other = create_engine(url)
    again: list[Any] = []

    def requeue() -> None:
        with Session(other) as session, session.begin():
            assert ordered.requeue(session) == 1
        again.extend(receive(subscriber, 1))
        enqueue(other, ordered(tenant=1, body="third"))

    with Session(engine) as session, session.begin(), interrupted(engine, "UPDATE", requeue):
        assert ordered.requeue(session, ordered.id > 0) == 0
    other.dispose()
    assert bodies(again) == ["first"]
    assert subscriber.get(1) is None
    ack(engine, again[0])
    assert bodies(receive(subscriber, 1)) == ["third"]


def test_grouped_acks_let_the_followers_come(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    keys, each = 10, 8
    enqueue(engine, *(ordered(tenant=key, body=f"{n}") for n in range(each) for key in range(keys)))
    subscriber = subscribe(ordered, max_concurrency=30)
    done: dict[int, list[str]] = defaultdict(list)
    for _ in range(keys * each):
        [message] = receive(subscriber, 1)
        done[message.tenant].append(message.body)
        subscriber.ack(message)
    assert all(of_key == [f"{n}" for n in range(each)] for of_key in done.values())
    assert subscriber.flush(10)


def test_an_earlier_message_that_commits_later_comes_first_if_it_can(
    engine: Engine, ordered: type[Any]
) -> None:
    """Between the search and the lock, as another transaction's commit may be."""
    leaser = OrderedLeaser(ordered, engine)
    enqueue(engine, ordered(tenant=1, body="late", seq=10))
    with Session(engine) as session:
        due = list(session.scalars(select(ordered.id)))
    enqueue(engine, ordered(tenant=1, body="early", seq=5))
    lock_first = partial(leaser._lock_first, due)
    assert leaser._lease(leaser._locking_heads, lock_first).messages == []
    assert bodies(leaser.lease(5).messages) == ["early"]


def test_producers_that_lock_what_they_write_about_have_an_order(
    engine: Engine, make_ordered: MakeQueue, subscribe: Subscribe
) -> None:
    """Each takes the next version of the thing, while a consumer handles the messages."""
    base = type("Base", (DeclarativeBase,), {})
    attributes: dict[str, Any] = {
        "__tablename__": "ordered_thing",
        "__annotations__": {"tenant": Mapped[int], "version": Mapped[int]},
        "tenant": mapped_column(BigInteger, primary_key=True, autoincrement=False),
        "version": mapped_column(default=0),
        "__module__": __name__,
    }
    if engine.url.database == "sharded":
        pytest.skip("the thing would need a vindex")
    attributes["__tablename__"] = f"thing_{random.randrange(10**9)}"
    thing: Any = type("Thing", (base,), attributes)
    base.metadata.create_all(engine)
    queue = make_ordered(ack_wait=60)
    keys, producers, each = 3, 4, 15
    enqueue(engine, *(thing(tenant=key) for key in range(keys)))

    def write(key: int) -> None:
        with Session(engine) as session, session.begin():
            session.execute(
                update(thing).where(thing.tenant == key).values(version=thing.version + 1)
            )
            version = session.scalar(select(thing.version).where(thing.tenant == key))
            session.add(queue(tenant=key, body=f"{version}"))

    def produce() -> None:
        for number in range(each):
            retry_transaction(lambda key=number % keys: write(key))  # type: ignore[misc]

    threads = [threading.Thread(target=produce) for _ in range(producers)]
    try:
        for thread in threads:
            thread.start()
        subscriber = subscribe(queue, max_concurrency=10)
        done: dict[int, list[str]] = defaultdict(list)
        for message in drain(engine, subscriber, producers * each):
            done[message.tenant].append(message.body)
        for thread in threads:
            thread.join()
        expected = [f"{n}" for n in range(1, producers * each // keys + 1)]
        assert all(of_key == expected for of_key in done.values())
    finally:
        for thread in threads:
            thread.join()
        base.metadata.drop_all(engine)


def test_a_key_of_several_columns(
    engine: Engine, make_ordered: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_ordered(
        ack_wait=60,
        ordered_by=("tenant", "region"),
        attributes={"region": mapped_column(String(20), nullable=False)},
    )
    keys = [(tenant, region) for tenant in range(8) for region in ("a", "b", "c")]
    messages = [
        queue(tenant=tenant, region=region, body=f"{n}")
        for n in range(3)
        for tenant, region in random.sample(keys, len(keys))
    ]
    enqueue(engine, *messages)
    # Fewer slots than keys: each poll goes on where the last one ended.
    subscriber = subscribe(queue, max_concurrency=5)
    done: dict[tuple[int, str], list[str]] = defaultdict(list)
    for message in drain(engine, subscriber, len(messages)):
        done[message.tenant, message.region].append(message.body)
    assert set(done) == set(keys)
    assert all(of_key == ["0", "1", "2"] for of_key in done.values())


def test_many_keys_are_all_served(engine: Engine, ordered: type[Any], subscribe: Subscribe) -> None:
    """More keys than one statement looks at; of some, the first message is due later."""
    keys = 700
    enqueue(engine, *(ordered(tenant=key, deliver_in=3600) for key in range(0, keys, 2)))
    enqueue(engine, *(ordered(tenant=key) for key in range(1, keys, 2)))
    subscriber = subscribe(ordered, max_concurrency=40)
    served: set[int] = set()
    while len(served) < keys // 2:
        received = receive(subscriber, 1)
        received += subscriber.get_many(40, 0)
        ack(engine, *received)
        served |= {message.tenant for message in received}
    assert served == set(range(1, keys, 2))


def test_the_row_of_a_follower_is_untouched(
    engine: Engine, ordered: type[Any], subscribe: Subscribe
) -> None:
    """What waits in the subscriber's buffer counts as handed out: nothing of its key is beside."""
    enqueue(engine, *(ordered(tenant=1, body=f"{n}") for n in range(3)))
    subscriber = subscribe(ordered, max_concurrency=50)
    receive(subscriber, 1)
    with Session(engine) as session:
        in_order = select(ordered.epoch).order_by(ordered.seq)
        assert session.scalars(in_order).all() == [1, 0, 0]


def test_a_stream_is_refused(ordered: type[Any], url: str) -> None:
    if "sqlite" in url:
        pytest.skip("refused as no Vitess")
    for transport in ("stream", Grpc("host:15991")):
        with pytest.raises(InvalidArgument, match=r"ordered by tenant.*use 'pull' or 'auto'"):
            Subscriber(ordered, url, transport=transport)
