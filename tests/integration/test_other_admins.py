"""Queues in admins that this library has no code for: Flask-Admin and starlette-admin."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import flask
import httpx
import pytest
from flask_admin import Admin as FlaskAdmin
from flask_admin.contrib.sqla import ModelView as FlaskView
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from starlette.applications import Starlette
from starlette_admin.contrib.sqla import Admin as StarletteAdmin
from starlette_admin.contrib.sqla import ModelView as StarletteView

from tests.backends import BACKENDS

pytestmark = pytest.mark.parametrize("backend", BACKENDS[:1], indirect=True)

OWN = ("time_scheduled", "id", "time_next", "epoch", "time_created", "time_acked")


@pytest.fixture
def mail(make_queue: Callable[..., type[Any]]) -> type[Any]:
    return make_queue(layout="portable")


def only(engine: Engine, model: type[Any]) -> Any:
    with Session(engine) as session:
        return session.scalars(select(model)).one()


@pytest.mark.filterwarnings("ignore:Passing a session object directly:DeprecationWarning")
def test_flask_admin_lists_shows_creates_and_edits(engine: Engine, mail: type[Any]) -> None:
    class MailView(FlaskView):
        can_view_details = True
        column_list = ("id", "state", "body", "attempts")
        form_excluded_columns = OWN

    app = flask.Flask(__name__)
    app.secret_key = "secret"
    session = scoped_session(sessionmaker(engine))
    admin = FlaskAdmin(app)
    admin.add_view(MailView(mail, session, endpoint="mail"))
    client = app.test_client()

    created = client.post("/admin/mail/new/", data={"body": "hello", "priority": "50"})
    assert created.status_code == 302, created.text
    message = only(engine, mail)
    assert message.state == "ready"
    assert str(message.id) in client.get("/admin/mail/").text
    key = f"{message.time_scheduled},{message.id}"
    assert "hello" in client.get("/admin/mail/details/", query_string={"id": key}).text
    edited = client.post(
        "/admin/mail/edit/",
        query_string={"id": key},
        data={"body": "bye", "priority": "50", "time_next": "7"},
    )
    assert edited.status_code == 302, edited.text
    assert only(engine, mail).body == "bye"
    assert only(engine, mail).time_next == message.time_next
    session.remove()


def test_starlette_admin_lists_shows_creates_and_edits(engine: Engine, mail: type[Any]) -> None:
    class MailView(StarletteView):
        fields = ("id", "body", "priority", "epoch")
        exclude_fields_from_create = ("id", "epoch")
        exclude_fields_from_edit = ("id", "epoch")

    app = Starlette()
    admin = StarletteAdmin(engine, secret_key="secret")  # noqa: S106
    admin.add_view(MailView(mail, key="mail"))
    admin.mount_to(app)

    async def pages() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test/admin/") as client:

            async def send(url: str, **form: str) -> None:
                [token] = re.findall(
                    r'name="csrftoken" value="([^"]+)"', (await client.get(url)).text
                )[:1]
                sent = await client.post(url, data={"csrftoken": token, "priority": "50", **form})
                assert sent.status_code == 303, sent.text

            await send("mail/create", body="hello")
            message = only(engine, mail)
            listed = (await client.get("mail/list")).text
            assert str(message.id) in listed
            key = f"pk={message.time_scheduled},{message.id}"
            assert "hello" in (await client.get(f"mail/detail?{key}")).text
            await send(f"mail/edit?{key}", body="bye", time_next="7")
            assert only(engine, mail).time_next == message.time_next

    asyncio.run(pages())
    assert only(engine, mail).body == "bye"
