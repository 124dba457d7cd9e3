"""The admin in the browser: what its pages show, and what users can do with messages."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqladmin import Admin
from sqladmin.authentication import AuthenticationBackend
from sqladmin.authorization import AuthorizationBackend
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Computed,
    Date,
    DateTime,
    Double,
    Engine,
    Float,
    Interval,
    LargeBinary,
    MetaData,
    NullPool,
    Numeric,
    PickleType,
    Select,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
    create_engine,
    select,
    text,
    update,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import UserDefinedType
from starlette.applications import Starlette
from starlette.requests import Request

from sqla_vitess_messages import (
    InvalidArgument,
    InvalidArgumentType,
    MessageQueueMixin,
    QueueOptions,
    Subscriber,
    changes,
)
from sqla_vitess_messages.contrib.sqladmin import QueueAdmin, add_queues
from sqla_vitess_messages.failures import MessageFailuresMixin
from sqla_vitess_messages.table.pauses import PAUSES
from tests.backends import BACKENDS, Backend, async_url, make_queue_class

Client = httpx.AsyncClient
Visit = Callable[[Client], Awaitable[None]]

WHERE = [
    b for b in BACKENDS if b.name in ("sqlite", "mysql", "mariadb", "vitess", "vitess-sharded")
]

everywhere = pytest.mark.parametrize("backend", WHERE, indirect=True, ids=lambda b: b.name)
on_sqlite = pytest.mark.parametrize("backend", BACKENDS[:1], indirect=True)
sync_only = pytest.mark.parametrize("bind", ["sync"], indirect=True)

SCRIPT = "<script>document.title = 'broken'</script>"


@pytest.fixture
def mail(make_queue: Callable[..., type[Any]]) -> type[Any]:
    """A queue with several columns of payload."""
    attributes = {
        "__annotations__": {"address": Mapped[str], "data": Mapped[dict[str, Any]]},
        "address": mapped_column(String(100)),
        "data": mapped_column(JSON, default=dict),
        "fail_reason": mapped_column(String(255), nullable=True),
    }
    return make_queue(attributes=attributes)


@pytest.fixture(params=["sync", "asyncio"])
def bind(request: pytest.FixtureRequest, url: str, engine: Engine) -> Engine | AsyncEngine:
    """The engine of the admin."""
    if request.param == "sync":
        return engine
    driver = "aiosqlite" if engine.dialect.name == "sqlite" else "asyncmy"
    return create_async_engine(async_url(url, driver), poolclass=NullPool)


def visit(bind: Any, base: Any, pages: Visit, **options: Any) -> None:
    """Serve an admin in a new event loop, and call a function with a client of it."""
    app = Starlette()
    add_queues(Admin(app, bind, base_url="/admin", **options), base)
    _serve(app, pages)


def _serve(app: Any, pages: Visit) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with Client(transport=transport, base_url="http://testserver/admin/") as client:
            await pages(client)

    asyncio.run(main())


def add(engine: Engine, *messages: Any) -> list[int]:
    with Session(engine) as session, session.begin():
        session.add_all(messages)
        session.flush()
        return [message.id for message in messages]


def kill(engine: Engine, model: type[Any], ids: list[int], reason: str = "no route") -> None:
    with Session(engine) as session, session.begin():
        model.fail_all(session, session.scalars(select(model).where(model.id.in_(ids))), reason)


def states(engine: Engine, model: type[Any]) -> dict[int, str]:
    with Session(engine) as session:
        return {message.id: message.state for message in session.scalars(select(model))}


def path(model: type[Any]) -> str:
    """Return the part of URLs that sqladmin derives from a class's name."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", model.__name__).lower()


async def get(client: Client, url: str, status: int = 200) -> str:
    response = await client.get(url)
    assert response.status_code == status, response.text
    return response.text


@everywhere
def test_a_list_shows_what_matches_the_filter_and_the_search(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    ids = add(engine, *(mail(address=f"ada{n}@example.com", data={"n": n}) for n in range(12)))
    kill(engine, mail, ids[:3])

    async def pages(client: Client) -> None:
        everything = await get(client, f"{path(mail)}/list")
        assert all(str(message_id) in everything for message_id in ids)
        dead = await get(client, f"{path(mail)}/list?state=dead")
        assert [str(i) in dead for i in ids] == [True] * 3 + [False] * 9
        assert "no route" in dead
        found = await get(client, f"{path(mail)}/list?search=ADA1")
        assert [str(i) in found for i in ids] == [False, True] + [False] * 8 + [True] * 2
        both = await get(client, f"{path(mail)}/list?state=dead&search=ada1")
        assert [str(i) in both for i in ids] == [False, True] + [False] * 10
        by_id = await get(client, f"{path(mail)}/list?search={ids[7]}")
        assert [str(i) in by_id for i in ids] == [i == ids[7] for i in ids]
        assert "No messages match" in await get(client, f"{path(mail)}/list?search=%25")
        for sort_by in ("id", "deliver_at", "created_at", "priority"):
            await get(client, f"{path(mail)}/list?sortBy={sort_by}&sort=desc&pageSize=10&page=2")
        await get(client, f"{path(mail)}/list?state=lost", status=400)

    visit(bind, mail, pages)


@everywhere
def test_a_page_shows_a_message_with_its_payload_attempts_and_reason(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    [message_id] = add(engine, mail(address=SCRIPT, data={"text": SCRIPT, "big": 2**60 + 1}))
    kill(engine, mail, [message_id], f"{SCRIPT} failed")

    async def pages(client: Client) -> None:
        for url in (f"list?search={message_id}", f"details/{message_id}", f"edit/{message_id}"):
            shown = await get(client, f"{path(mail)}/{url}")
            assert str(message_id) in shown
            assert "&lt;script&gt;" in shown
            assert SCRIPT not in shown
        shown = await get(client, f"{path(mail)}/details/{message_id}")
        assert str(2**60 + 1) in shown
        assert "failed" in shown
        assert ">dead</span>" in shown
        for unknown in ("5", "abc", str(2**64), "-1"):
            await get(client, f"{path(mail)}/details/{unknown}", status=404)

    visit(bind, mail, pages)


@everywhere
@pytest.mark.parametrize(
    ("action", "then"),
    [("requeue", "ready"), ("purge", None), ("cancel", None), ("run-now", "ready")],
)
def test_an_action_is_for_the_selected_messages(
    engine: Engine, bind: Any, mail: type[Any], action: str, then: str | None
) -> None:
    ids = add(engine, *(mail(address=f"a{n}", deliver_in=3600) for n in range(4)))
    if action in ("requeue", "purge"):
        kill(engine, mail, ids)
    before = states(engine, mail)
    data = {"ids": [str(i) for i in ids[:2]]}

    async def pages(client: Client) -> None:
        asked = await client.post(f"{path(mail)}/confirm/{action}", data=data)
        assert "2 messages of the 2 selected" in asked.text
        assert states(engine, mail) == before, "nothing happens before the confirmation"
        done = await client.post(f"{path(mail)}/apply/{action}?state=dead&page=1", data=data)
        assert done.status_code == 303
        assert done.headers["location"].endswith(f"/{path(mail)}/list?state=dead&page=1")
        assert "%202%20messages" in done.headers["set-cookie"]

    visit(bind, mail, pages)
    changed = {} if then is None else dict.fromkeys(ids[:2], then)
    assert states(engine, mail) == {i: before[i] for i in ids[2:]} | changed


@everywhere
def test_an_action_is_for_all_messages_that_match(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    """More than one portion of them, and none that only the filter or only the search matches."""
    ids = add(engine, *(mail(address=f"{'ada' if n % 2 else 'bob'}{n}") for n in range(1_300)))
    kill(engine, mail, ids[:1_200])
    query = "state=dead&search=ada"

    async def pages(client: Client) -> None:
        asked = await client.post(f"{path(mail)}/confirm/requeue?{query}", data={"all": "1"})
        assert "Requeue: 600 messages" in asked.text
        done = await client.post(f"{path(mail)}/apply/requeue?{query}", data={"all": "1"})
        assert "Requeued%20600%20messages" in done.headers["set-cookie"]

    visit(bind, mail, pages)
    now = states(engine, mail)
    assert [now[i] for i in ids] == [
        "ready" if n % 2 or n >= 1_200 else "dead" for n in range(1_300)
    ]


@on_sqlite
@sync_only
def test_only_a_post_of_the_same_origin_changes_anything(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    [message_id] = add(engine, mail(address="a"))
    data = {"ids": str(message_id)}
    urls = [f"{path(mail)}/{name}" for name in ("confirm/cancel", "apply/cancel", "create")]
    foreign = [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://testserver"},
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
    ]

    async def pages(client: Client) -> None:
        for url in urls[:2]:
            await get(client, url, status=405)
        for url in urls:
            for headers in foreign:
                refused = await client.post(url, data=data, headers=headers)
                assert refused.status_code == 403, (url, headers)
        assert states(engine, mail) == {message_id: "ready"}
        for headers in ({"sec-fetch-site": "same-origin"}, {"origin": "http://testserver"}):
            accepted = await client.post(urls[0], data=data, headers=headers)
            assert accepted.status_code == 200
            assert accepted.headers["x-frame-options"] == "SAMEORIGIN"

    visit(bind, mail, pages)


class _Login(AuthenticationBackend):
    """The user's own: whoever has a header is in."""

    async def authenticate(self, request: Request) -> bool:
        return request.headers.get("x-user") == "ada"


class _Permissions(AuthorizationBackend):
    """Nobody may cancel or pause."""

    def has_permission(self, _request: Request, _identity: str, action: str, _obj: Any) -> bool:
        return action not in ("action:cancel", "action:pause")


@on_sqlite
@sync_only
def test_every_page_asks_for_the_users_own_authentication(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    [message_id] = add(engine, mail(address="a"))
    data = {"ids": str(message_id)}

    async def pages(client: Client) -> None:
        gets = [
            "queues",
            "queues/cards",
            f"{path(mail)}/list",
            f"{path(mail)}/details/{message_id}",
        ]
        for url in gets:
            assert (await client.get(url)).headers["location"].endswith("/admin/login")
            assert (await client.get(url, headers={"x-user": "ada"})).status_code == 200
        for name in ("confirm/cancel", "apply/cancel", "pause", "resume"):
            refused = await client.post(f"{path(mail)}/{name}", data=data)
            assert refused.headers["location"].endswith("/admin/login")
            # This queue can't be paused.
            allowed = await client.post(
                f"{path(mail)}/{name}", data=data, headers={"x-user": "ada"}
            )
            assert allowed.status_code == {"confirm/cancel": 200, "apply/cancel": 303}.get(
                name, 403
            )

    visit(bind, mail, pages, authentication_backend=_Login("secret"))


@on_sqlite
@sync_only
def test_what_a_user_may_not_do_is_neither_offered_nor_done(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    [message_id] = add(engine, mail(address="a"))

    async def pages(client: Client) -> None:
        shown = await get(client, f"{path(mail)}/list")
        assert "queue-action-requeue" in shown
        assert "queue-action-cancel" not in shown
        refused = await client.post(f"{path(mail)}/apply/cancel", data={"ids": str(message_id)})
        assert refused.status_code == 403
        unknown = await client.post(f"{path(mail)}/apply/lose", data={"ids": str(message_id)})
        assert unknown.status_code == 404

    visit(bind, mail, pages, authorization_backend=_Permissions())
    assert states(engine, mail) == {message_id: "ready"}


@everywhere
def test_the_overview_counts_and_its_numbers_move(
    engine: Engine, bind: Any, backend: Backend, mail: type[Any]
) -> None:
    add(engine, *(mail(address=f"a{n}") for n in range(5)))

    def numbers(cards: str) -> dict[str, int]:
        return {k: int(v) for k, v in re.findall(r'data-state="(\w+)">(\d+)<', cards)}

    async def pages(client: Client) -> None:
        first = numbers(await get(client, "queues"))
        assert first == {"ready": 5, "scheduled": 0, "leased": 0, "dead": 0, "acked": 0}

        def settle() -> None:
            with Subscriber(mail, engine, **backend.options) as subscriber:
                for message in subscriber.get_many(3, timeout=30):
                    with Session(engine) as session, session.begin():
                        message.ack(session)
            add(engine, *(mail(address=f"b{n}") for n in range(7)))

        await asyncio.to_thread(settle)
        for _ in range(300):
            cards = await get(client, "queues/cards")
            if numbers(cards)["ready"] + numbers(cards)["leased"] + numbers(cards)["acked"] == 12:
                break
            await asyncio.sleep(0.1)
        assert numbers(cards)["acked"] >= 1
        assert "0.0 enqueued/s" not in cards
        assert "0.0 settled/s" not in cards

    visit(bind, mail, pages)


@everywhere
def test_a_queue_is_paused_and_resumed(engine: Engine, bind: Any, backend: Backend) -> None:
    options: dict[str, Any] = {"pausable": True}
    if backend.server == "sharded":
        options |= {"shard_by": "tenant", "vindex": "hash"}
    model = make_queue_class(QueueOptions(**options))
    model.metadata.create_all(engine)

    async def pages(client: Client) -> None:
        assert ">Pause<" in await get(client, "queues")
        for name, paused in (("pause", True), ("resume", False)):
            done = await client.post(f"{path(model)}/{name}", data={"overview": "1"})
            assert done.headers["location"].endswith("/admin/queues")
            with Session(engine) as session:
                assert model.is_paused(session) is paused
            assert (">Resume<" in await get(client, "queues")) is paused

    visit(bind, model, pages)
    model.__table__.drop(engine)


@on_sqlite
def test_a_message_is_created_and_edited_unless_somebody_has_it(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    async def pages(client: Client) -> None:
        form = {"address": "ada", "data": '{"n": 1}', "priority": "10", "save": "Save"}
        created = await client.post(f"{path(mail)}/create", data=form)
        assert created.status_code == 302, created.text
        [message_id] = states(engine, mail)
        edit = f"{path(mail)}/edit/{message_id}"
        assert "time_next" not in await get(client, edit)
        edited = await client.post(edit, data=form | {"address": "eve", "time_next": "7"})
        assert edited.status_code == 302, edited.text
        too_large = await client.post(edit, data=form | {"priority": "1000"})
        assert too_large.status_code == 400
        with Session(engine) as session:
            message = session.scalars(select(mail)).one()
            assert (message.address, message.data, message.priority) == ("eve", {"n": 1}, 10)
            assert message.time_next > 7
        with Subscriber(mail, engine) as subscriber:
            assert await asyncio.to_thread(subscriber.get, timeout=30)
            held = await client.post(edit, data=form | {"address": "mallory"})
        assert held.status_code == 403

    visit(bind, mail, pages)
    with Session(engine) as session:
        assert session.scalars(select(mail)).one().address == "eve"


@on_sqlite
def test_what_is_held_is_not_edited_after_its_replacement_or_by_another_clock(
    engine: Engine, bind: Any, make_queue: Callable[..., type[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_queue(unique_by="body")
    [message_id] = add(engine, model(body="a"))
    edit = f"{path(model)}/edit/{message_id}"

    async def pages(client: Client) -> None:
        with Subscriber(model, engine) as subscriber:
            assert await asyncio.to_thread(subscriber.get, timeout=30)
            with Session(engine) as session, session.begin():
                model.enqueue(session, model(body="a", priority=7), if_exists="replace")
            await get(client, edit, status=403)
            monkeypatch.setattr(changes, "state_of", lambda _message: "ready")
            held = await client.post(edit, data={"body": "b", "priority": "9", "save": "Save"})
            assert held.status_code == 403

    visit(bind, model, pages)
    with Session(engine) as session:
        assert session.scalars(select(model.body)).one() == "a"


@on_sqlite
@sync_only
def test_what_matches_is_exported_with_ids_as_strings(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    ids = add(engine, *(mail(address=f"ada{n}") for n in range(3)))
    kill(engine, mail, ids[:2])

    async def pages(client: Client) -> None:
        exported = json.loads(await get(client, f"{path(mail)}/export/json?state=dead"))
        assert {row["id"] for row in exported} == {str(i) for i in ids[:2]}
        lines = (await get(client, f"{path(mail)}/export/csv?search=ada1")).splitlines()
        assert len(lines) == 2

    visit(bind, mail, pages)


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@on_sqlite
@sync_only
def test_a_message_that_cannot_be_loaded_is_shown_and_cancelled(
    engine: Engine, bind: Any, make_queue: Callable[..., type[Any]]
) -> None:
    model = make_queue(attributes={"color": mapped_column(EnumType(Color), default=Color.RED)})
    ids = add(engine, model(), model())
    with engine.begin() as connection:
        table = model.__table__
        green = text("'GREEN'")
        connection.execute(update(table).where(table.c.id == ids[0]).values(color=green))

    async def pages(client: Client) -> None:
        for url in ("list", f"details/{ids[0]}"):
            shown = await get(client, f"{path(model)}/{url}")
            assert str(ids[0]) in shown
            assert "can&#39;t be loaded" in shown
            assert "GREEN" in shown
        await client.post(f"{path(model)}/apply/cancel", data={"ids": str(ids[0])})

    visit(bind, model, pages)
    assert list(states(engine, model)) == ids[1:]


@on_sqlite
@sync_only
@pytest.mark.parametrize("layout", ["portable", "classic", "minimal"])
def test_every_layout_and_kept_failures_are_shown(engine: Engine, bind: Any, layout: Any) -> None:
    class Base(DeclarativeBase):
        pass

    class Plain(MessageQueueMixin, Base):
        __tablename__ = "plain"
        __queue__ = QueueOptions(layout=layout)
        body: Mapped[str]

    class Kept(MessageFailuresMixin, MessageQueueMixin, Base):
        __tablename__ = "kept"
        __queue__ = QueueOptions(layout=layout)
        body: Mapped[str]

    Base.metadata.create_all(engine)
    [message_id] = add(engine, Kept(body="a"))
    with Subscriber(Kept, engine) as subscriber:
        message = subscriber.get(timeout=30)
        assert message is not None
        with Session(engine) as session, session.begin():
            message.retry(session, 600, reason="try later")

    async def pages(client: Client) -> None:
        assert "retrying" not in await get(client, "plain/list?sortBy=id&sort=asc")
        assert (await get(client, "queues")).count("data-queue=") == 2
        shown = await get(client, "kept/list?state=retrying")
        assert str(message_id) in shown
        assert "try later" in shown
        assert "try later" in await get(client, f"kept/details/{message_id}")

    visit(bind, Base, pages)


@on_sqlite
@sync_only
def test_a_queue_that_cannot_be_counted_is_shown_so(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    mail.metadata.drop_all(engine)

    async def pages(client: Client) -> None:
        assert "no such table" in await get(client, "queues")
        mail.metadata.create_all(engine)
        for _ in range(100):
            if "no such table" not in await get(client, "queues/cards"):
                return
            await asyncio.sleep(0.1)
        pytest.fail("the error stays")

    visit(bind, mail, pages)


@on_sqlite
@sync_only
def test_a_view_of_the_users_own_stays_and_fastapi_mounts_it(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    class MailAdmin(QueueAdmin, model=mail):
        column_list = ("id", "address")
        name = "Letter"
        can_create = False

    [message_id] = add(engine, mail(address="ada"))
    app = FastAPI()
    admin = Admin(app, bind, base_url="/admin")
    admin.add_view(MailAdmin)
    add_queues(admin, mail.metadata)

    async def pages(client: Client) -> None:
        shown = await get(client, f"{path(mail)}/list")
        assert "Letters" in shown
        assert "Attempts" not in shown
        assert "+ New" not in shown
        await get(client, f"{path(mail)}/details/{message_id}")
        await get(client, "queues")

    _serve(app, pages)


def test_bad_arguments_are_refused() -> None:
    class Base(DeclarativeBase):
        pass

    admin = Admin(Starlette(), create_engine("sqlite://"))
    with pytest.raises(InvalidArgument, match="has no models"):
        add_queues(admin, Base)
    with pytest.raises(InvalidArgument, match="has no models"):
        add_queues(admin, MetaData())
    for wrong in (None, 7, "models:Base"):
        with pytest.raises(InvalidArgumentType, match="base="):
            add_queues(admin, wrong)
    with pytest.raises(InvalidArgumentType, match="admin="):
        add_queues(Starlette(), Base)  # type: ignore[arg-type]


@on_sqlite
def test_what_a_users_own_query_hides_is_neither_shown_nor_changed(
    engine: Engine, bind: Any, mail: type[Any]
) -> None:
    class MailAdmin(QueueAdmin, model=mail):
        def list_query(self, _request: Request) -> Select[Any]:
            return select(mail).where(mail.address == "ada")

        def details_query(self, request: Request) -> Select[Any]:
            return super().details_query(request).where(mail.address == "ada")

    ada, eve = add(engine, mail(address="ada"), mail(address="eve"))
    app = Starlette()
    admin = Admin(app, bind, base_url="/admin")
    admin.add_view(MailAdmin)

    async def pages(client: Client) -> None:
        shown = await get(client, f"{path(mail)}/list?search=a")
        assert str(ada) in shown
        assert str(eve) not in shown
        await get(client, f"{path(mail)}/details/{ada}")
        await get(client, f"{path(mail)}/details/{eve}", status=404)
        for data in ({"ids": [str(ada), str(eve)]}, {"all": "1"}):
            await client.post(f"{path(mail)}/apply/cancel", data=data)
        assert list(states(engine, mail)) == [eve]

    _serve(app, pages)


@on_sqlite
@sync_only
def test_an_action_that_fails_tells_why(engine: Engine, bind: Any, mail: type[Any]) -> None:
    ids = add(engine, mail(address="a"), mail(address="b"))
    with engine.begin() as connection:
        connection.execute(
            text(
                f"CREATE TRIGGER refuse BEFORE DELETE ON {mail.__tablename__} "
                "BEGIN SELECT RAISE(ABORT, 'not in the mood'); END"
            )
        )

    async def pages(client: Client) -> None:
        done = await client.post(f"{path(mail)}/apply/cancel?search=a", data={"all": "1"})
        assert done.headers["location"].endswith("/list?search=a")
        assert "not in the mood" in unquote(done.headers["set-cookie"])

    visit(bind, mail, pages)
    assert set(states(engine, mail)) == set(ids)


@everywhere
@sync_only
def test_of_dead_messages_with_one_key_one_is_requeued(
    engine: Engine, bind: Any, backend: Backend, make_queue: Callable[..., type[Any]]
) -> None:
    if backend.server == "sharded":
        pytest.skip("a key of a sharded queue contains its shard's column")
    model = make_queue(unique_by="body")
    ids = []
    for _ in range(2):
        ids += add(engine, model(body="same"))
        kill(engine, model, ids[-1:])

    async def pages(client: Client) -> None:
        done = await client.post(f"{path(model)}/apply/requeue", data={"all": "1"})
        assert "Requeued%201%20message" in done.headers["set-cookie"]
        for url in ("list", f"details/{ids[0]}"):
            shown = await get(client, f"{path(model)}/{url}")
            assert "revision" not in shown

    visit(bind, model, pages)
    assert sorted(states(engine, model).values()) == ["dead", "ready"]


class Fields(HTMLParser):
    """The fields of a form, each with what a browser posts if its user changes nothing."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.posted: dict[str, str] = {}
        self._within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attributes}
        name = found.get("name", "")
        if tag == "input" and found.get("type") not in ("submit", "search", "hidden"):
            self.posted[name] = re.sub(r"[\r\n]", "", found.get("value", ""))
        elif tag == "select":
            self._within = name
        elif tag == "option" and "selected" in found:
            # wtforms leaves the value of False out, and then the text is posted.
            self.posted[self._within] = found.get("value", "False")
        elif tag == "textarea":
            self._within, self.posted[name] = name, ""

    def handle_data(self, data: str) -> None:
        if self._within in self.posted and self.lasttag == "textarea":
            text = re.sub(r"\r\n?", "\n", self.posted[self._within] + data)
            text = text.removeprefix("\n") if not self.posted[self._within] else text
            self.posted[self._within] = text.replace("\n", "\r\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("select", "textarea"):
            self._within = ""


class Tags(TypeDecorator[list[str]]):
    """Values that are no text, stored as text."""

    impl = String(100)
    cache_ok = True

    def process_bind_param(self, value: list[str] | None, _dialect: Any) -> str | None:
        return None if value is None else ",".join(value)

    def process_result_value(self, value: str | None, _dialect: Any) -> list[str] | None:
        return None if value is None else value.split(",")


class Lower(TypeDecorator[str]):
    impl = String(100)
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Any) -> str | None:
        return value and value.lower()


class Own(UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "INTEGER"


TYPES: dict[str, tuple[Any, Any, str | None, Any]] = {
    "whole": (BigInteger, 2**60, "-5", -5),
    "real": (Float, 0.1, "1e300", 1e300),
    "double": (Double, -1.5, "2", 2.0),
    "price": (Numeric(10, 2), Decimal("1.50"), "2.25", Decimal("2.25")),
    "is_paid": (Boolean, False, "True", True),
    "empty": (String(50), "", "x", "x"),
    "lines": (String(50), "a\nb\r\nc", "d", "d"),
    "prose": (Text, "a\nb", "c\r\nd", "c\nd"),
    "lower": (Lower, "abc", "DEF", "def"),
    "at": (
        DateTime,
        datetime(2026, 1, 2, 3, 4, 5, 678),
        "2026-01-02 03:04:06",
        datetime(2026, 1, 2, 3, 4, 6),
    ),
    "day": (Date, date(2026, 1, 2), "2026-01-03", date(2026, 1, 3)),
    "clock": (Time, time(3, 4, 5, 678), "03:05", time(3, 5)),
    "grace": (Interval, timedelta(0), "1 day, 0:00:01.5", timedelta(days=1, seconds=1.5)),
    "number": (Uuid, UUID(int=7), str(UUID(int=8)), UUID(int=8)),
    "color": (EnumType(Color), Color.RED, "BLUE", Color.BLUE),
    "size": (EnumType("small", "big"), "small", "big", "big"),
    "listed": (JSON, [], "false", False),
    "false": (JSON, False, "[]", []),
    "zero": (JSON, 0, '{"a": 1}', {"a": 1}),
    "null": (JSON, None, '"x"', "x"),
    "odd": (JSON, {"a": "\ud800", "b": float("inf")}, "{}", {}),
    # These have no field.
    "scan": (LargeBinary, b"\0\xff", None, b"\0\xff"),
    "pickled": (PickleType, {1: "a"}, None, {1: "a"}),
    "tags": (Tags, ["a", "b"], None, ["a", "b"]),
    "own": (Own, 3, None, 3),
}
"""Types of columns, each with a value, what a user types in its field, and the value then."""


@on_sqlite
def test_only_what_is_changed_in_a_form_is_saved(
    engine: Engine, bind: Any, make_queue: Callable[..., type[Any]]
) -> None:
    columns: dict[str, Any] = {
        name: mapped_column(type_, nullable=True) for name, (type_, *_) in TYPES.items()
    }
    columns["twice"] = mapped_column(BigInteger, Computed("whole * 2"))
    model = make_queue(attributes=columns)
    before = {name: value for name, (_, value, *_) in TYPES.items()}
    [message_id] = add(engine, model(**before))

    def stored() -> dict[str, Any]:
        with Session(engine) as session:
            message = session.scalars(select(model)).one()
            return {name: getattr(message, name) for name in TYPES}

    async def pages(client: Client) -> None:
        edit = f"{path(model)}/edit/{message_id}"
        posted = Fields(await get(client, edit)).posted
        assert set(TYPES) - set(posted) == {"scan", "pickled", "tags", "own"}
        assert "twice" not in posted
        posted["at"] = "2026-01-02 03:04:5"  # As the browser's script for dates rewrites it.
        saved = await client.post(edit, data=posted | {"priority": "7"})
        assert saved.status_code == 302, saved.text
        assert stored() == before
        typed = {name: text for name, (_, _, text, _) in TYPES.items() if text is not None}
        saved = await client.post(edit, data=posted | typed)
        assert saved.status_code == 302, saved.text
        assert stored() == {name: value for name, (*_, value) in TYPES.items()}

    visit(bind, model, pages)


@on_sqlite
@sync_only
def test_a_message_is_created_with_every_type_that_has_a_field(
    engine: Engine, bind: Any, make_queue: Callable[..., type[Any]]
) -> None:
    columns = {name: mapped_column(type_, nullable=True) for name, (type_, *_) in TYPES.items()}
    model = make_queue(attributes=columns)
    typed = {name: text for name, (_, _, text, _) in TYPES.items() if text is not None}

    async def pages(client: Client) -> None:
        create = f"{path(model)}/create"
        posted = Fields(await get(client, create)).posted
        created = await client.post(create, data=posted | typed)
        assert created.status_code == 302, created.text

    visit(bind, model, pages)
    with Session(engine) as session:
        message = session.scalars(select(model)).one()
        expected = {name: TYPES[name][3] for name in typed}
        assert {name: getattr(message, name) for name in typed} == expected


def _mails(base: Any, *tables: str) -> list[Any]:
    """Return queues whose classes have the same name, as those of two modules may."""
    return [
        type(
            "Mail",
            (MessageQueueMixin, base),
            {
                "__module__": table,
                "__tablename__": table,
                "__queue__": QueueOptions(pausable=True),
            },
        )
        for table in tables
    ]


@on_sqlite
@sync_only
def test_queues_whose_classes_have_the_same_name_are_not_mixed_up(
    engine: Engine, bind: Any
) -> None:
    class Base(DeclarativeBase):
        pass

    first, second = _mails(Base, "bill_mail", "Shop Mail")
    Base.metadata.create_all(engine)
    [message_id] = add(engine, second())

    async def pages(client: Client) -> None:
        shown = await get(client, "queues")
        assert "Mails (Shop Mail)" in shown
        urls = re.findall(r'action="[^"]*/admin/([^"]*)/pause"', shown)
        assert urls == ["mail", "shop-mail"]
        assert str(message_id) in await get(client, "shop-mail/list")
        assert str(message_id) not in await get(client, "mail/list")
        await client.post("shop-mail/pause")
        with Session(engine) as session:
            assert [first.is_paused(session), second.is_paused(session)] == [False, True]

    visit(bind, Base, pages)


@on_sqlite
@sync_only
def test_queues_of_several_bases_are_in_one_overview(engine: Engine, bind: Any) -> None:
    bases = [type("Base", (DeclarativeBase,), {}) for _ in range(2)]
    queues = [_mails(base, "mail")[0] for base in bases]
    bases[0].metadata.create_all(engine)
    app = Starlette()
    admin = Admin(app, bind, base_url="/admin")
    for queue in (*queues, *queues):
        add_queues(admin, queue.metadata)

    async def pages(client: Client) -> None:
        shown = await get(client, "queues")
        assert re.findall(r'action="[^"]*/admin/([^"]*)/pause"', shown) == ["mail", "mail-2"]
        assert shown.count('nav-link-title">Queues<') == 1

    _serve(app, pages)


@on_sqlite
@sync_only
def test_what_cannot_be_encoded_is_shown_and_exported(
    engine: Engine, bind: Any, make_queue: Callable[..., type[Any]]
) -> None:
    model = make_queue(attributes={"body": mapped_column(JSON), "real": mapped_column(Float)})
    half = "\ud800"
    [message_id, _] = add(
        engine, model(body=[half, float("nan")], real=float("inf")), model(body=half, real=0.5)
    )

    async def pages(client: Client) -> None:
        for url in ("list", f"details/{message_id}", f"edit/{message_id}", "export/csv"):
            assert "\\ud800" in await get(client, f"{path(model)}/{url}")
        exported = json.loads(
            await get(client, f"{path(model)}/export/json?sortBy=id"), parse_constant=pytest.fail
        )
        found = next(row for row in exported if row["id"] == str(message_id))
        assert (found["body"], found["real"]) == ([half, "NaN"], "Infinity")

    visit(bind, model, pages)


@on_sqlite
@sync_only
def test_a_pause_that_fails_tells_why(
    engine: Engine, bind: Any, make_queue: Callable[..., type[Any]]
) -> None:
    model = make_queue(pausable=True)
    model.metadata.tables[PAUSES].drop(engine)

    async def pages(client: Client) -> None:
        for name in ("Pause", "Resume"):
            done = await client.post(f"{path(model)}/{name.lower()}", data={"overview": "1"})
            assert done.headers["location"].endswith("/admin/queues")
            told = unquote(done.headers["set-cookie"])
            assert f"{name} has failed: OperationalError" in told
            assert "no such table" in told

    visit(bind, model, pages)
