"""The command ``admin`` serves queues, in a real browser too, to those who may see them.

With SQLA_VITESS_MESSAGES_PICTURES=1 the test in a browser also makes the pictures of the docs.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from sqla_vitess_messages import Subscriber
from sqla_vitess_messages.cli.app import app
from tests.admin_models import Base, Invoice, Mail
from tests.backends import eventually
from tests.browser import missing_browser, open_browser

ANYWHERE = "0.0.0.0"  # noqa: S104

PASSWORD = "correct horse"
SCRIPT = "<script>document.title = 'broken'</script>"
ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "how-to" / "admin"

WITHIN = 60.0
"""Seconds, for a browser on a busy machine."""


@pytest.fixture
def password(tmp_path: Path) -> str:
    """The path of the file with the password."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return str(tmp_path / "password")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _wal(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")

    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def arguments(folder: Path, target: str = "tests.admin_models:Base") -> list[str]:
    return ["admin", target, "--url", f"sqlite:///{folder}/app.db"]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """Run the command, and give the URL that it prints."""
    program = [sys.executable, "-m", "sqla_vitess_messages", *arguments(folder), "--port", "0"]
    with subprocess.Popen(
        [*program, *options],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+/", line)
            assert found, line
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def refused(folder: Path, *options: str, target: str = "tests.admin_models:Base") -> str:
    done = CliRunner().invoke(app, [*arguments(folder, target), *options])
    assert done.exit_code == 2, done.output
    assert done.output.startswith("Error: ")
    assert len(done.output.splitlines()) == 1
    return done.output


def test_another_address_needs_a_password_file(tmp_path: Path) -> None:
    assert "--password-file" in refused(tmp_path, "--host", ANYWHERE)
    assert "--password-file" in refused(tmp_path, "--host", "::")
    missing_file = ("--host", ANYWHERE, "--password-file", "missing")
    assert "can't be read" in refused(tmp_path, *missing_file)
    (tmp_path / "empty").write_text("\n")
    assert "is empty" in refused(tmp_path, "--password-file", str(tmp_path / "empty"))


def test_bad_usage_ends_with_one_line(tmp_path: Path) -> None:
    assert "no module" in refused(tmp_path, target="elsewhere:Base")
    assert "expected a declarative base" in refused(tmp_path, target="os:sep")
    unreachable = ("--url", "mysql+pymysql://user:s3cret@127.0.0.1:1/app")
    assert "Can't connect" in (output := refused(tmp_path, *unreachable))
    assert "s3cret" not in output
    assert "oracledb" in refused(tmp_path, "--url", "oracle+oracledb://localhost/app")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "in use" in refused(tmp_path, "--port", port)


def test_without_a_password_only_names_of_this_computer_are_served(
    tmp_path: Path, engine: Engine
) -> None:
    """Else a page of another site could have its name lead here, and read what it likes."""
    with serving(tmp_path) as url:
        assert httpx.get(url, follow_redirects=True, timeout=60).status_code == 200
        foreign = httpx.get(url, headers={"host": "attacker.example"}, timeout=60)
        assert foreign.status_code == 400


def test_a_password_lets_in_and_a_wrong_one_does_not(
    tmp_path: Path, engine: Engine, password: str
) -> None:
    with (
        serving(tmp_path, "--host", ANYWHERE, "--password-file", password) as url,
        httpx.Client(base_url=url.replace(ANYWHERE, "127.0.0.1"), timeout=60) as client,
    ):
        for path in ("", "queues", "queues/cards", "mail/list", "mail/export/json"):
            assert client.get(path).headers["location"].endswith("/login")
        assert (
            client.post("mail/apply/cancel", data={"all": "1"})
            .headers["location"]
            .endswith("/login")
        )
        for wrong in ("", "wrong", PASSWORD + "\n", "é"):
            denied = client.post("login", data={"password": wrong})
            assert denied.status_code == 400
            assert "set-cookie" not in denied.headers
        foreign = {"sec-fetch-site": "cross-site"}
        assert client.post("login", data={"password": PASSWORD}, headers=foreign).status_code == 403
        accepted = client.post("login", data={"password": PASSWORD})
        assert accepted.status_code == 302
        cookie = accepted.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert client.get("queues").status_code == 200
        client.get("logout")
        assert client.get("queues").status_code == 302


@pytest.fixture
def browser() -> Iterator[Chrome]:
    if line := missing_browser():
        if os.environ.get("CI"):
            pytest.fail(line)
        pytest.skip(line)
    with open_browser() as driver:
        yield driver


def fill(engine: Engine) -> None:
    """Enqueue messages, of which three are dead."""
    with Session(engine) as session, session.begin():
        bad = [
            Mail(address=address, data={"template": "welcome", "user_id": 2**60 + n})
            for n, address in enumerate(("ada@example", SCRIPT, "eve@@example.com"))
        ]
        session.add_all(bad)
        session.add_all(
            Mail(address=f"user{n}@example.com", data={"n": n}, deliver_in=3600 * n)
            for n in range(1, 30)
        )
        session.add_all(Invoice(number=n) for n in range(40))
    with Subscriber(Mail, engine) as subscriber:
        for _ in bad:
            message = subscriber.get(timeout=30)
            assert message is not None
            with Session(engine) as session, session.begin():
                message.fail(session, f"SMTPRecipientsRefused: 550 no such user {message.address}")


@contextmanager
def traffic(engine: Engine) -> Iterator[None]:
    """Enqueue and ack invoices, now more and now fewer."""
    stop = threading.Event()

    def produce() -> None:
        with Subscriber(Invoice, engine) as subscriber:
            for n in range(10_000):
                with Session(engine) as session, session.begin():
                    session.add_all(Invoice(number=n) for _ in range(3 + n // 40 % 4 * 4))
                for message in subscriber.get_many(8, timeout=1):
                    subscriber.ack(message)
                if stop.wait(0.2):
                    return

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Pages:
    """What a user does in the browser."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self.pictures = bool(os.environ.get("SQLA_VITESS_MESSAGES_PICTURES"))

    @property
    def text(self) -> str:
        """What is to be read on the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def see(self, text: str) -> None:
        """Wait until a text is on the page."""
        eventually(lambda: self._holds(lambda: text in self.text), WITHIN)

    def number(self, queue: str, state: str) -> int:
        """Return a number on the overview; -1 while it is being replaced."""
        selector = f'[data-queue="{queue}"] [data-state="{state}"]'
        found: list[int] = []
        self._holds(
            lambda: found.append(int(self.driver.find_element(By.CSS_SELECTOR, selector).text))
        )
        return found[0] if found else -1

    @staticmethod
    def _holds(look: Callable[[], Any]) -> Any:
        try:
            return look()
        except Exception:  # noqa: BLE001  # The page is being replaced.
            return None

    def click(self, selector: str) -> None:
        """Click what a selector finds."""

        def try_click() -> bool:
            self.driver.find_element(By.CSS_SELECTOR, selector).click()
            return True

        eventually(lambda: self._holds(try_click), WITHIN)

    def log_in(self, password: str) -> None:
        """Send the form."""
        self.driver.find_element(By.ID, "password").send_keys(password)
        self.click("button[type=submit]")

    def picture(self, name: str) -> None:
        """Make a picture for the docs, if they are wanted."""
        if self.pictures:
            PICTURES.mkdir(exist_ok=True)
            self.driver.save_screenshot(str(PICTURES / f"{name}.png"))

    def is_cut(self) -> bool:
        """Return whether the page is wider than the window."""
        return bool(
            self.driver.execute_script(
                "return document.documentElement.scrollWidth > window.innerWidth"
            )
        )


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_user_looks_at_dead_messages_and_requeues_them_in_a_browser(
    tmp_path: Path, engine: Engine, password: str, browser: Chrome
) -> None:
    fill(engine)
    pages = Pages(browser)
    with serving(tmp_path, "--password-file", password) as url:
        browser.get(url)
        pages.log_in("wrong")
        pages.see("Invalid credentials")
        pages.log_in(PASSWORD)
        pages.see("enqueued/s")
        assert pages.number("mail", "dead") == 3
        _see_numbers_move(engine, pages)
        _look_at_a_dead_message(pages)
        _requeue_all(pages)
        browser.get(f"{url}queues")
        eventually(lambda: pages.number("mail", "dead") == 0, WITHIN)
        assert pages.number("mail", "ready") == 3
        pages.click('[data-queue="mail"] button')
        pages.see("Resume")
        with Session(engine) as session:
            assert Mail.is_paused(session)
        pages.click('[data-queue="mail"] button')
        pages.see("Resumed mail")
        _nothing_is_cut(pages, url)
        browser.set_window_size(1280, 800)
        pages.click("a[href$='/logout']")
        eventually(lambda: browser.find_elements(By.ID, "password"), WITHIN)
        browser.get(f"{url}mail/list")
        assert browser.current_url.endswith("/login")


def _see_numbers_move(engine: Engine, pages: Pages) -> None:
    pages.driver.execute_script("window.isSamePage = true")
    before = pages.number("invoice", "acked")
    with traffic(engine):
        eventually(lambda: pages.number("invoice", "acked") > before, WITHIN)
        if pages.pictures:
            time.sleep(75)  # The plots need something to show.
            pages.picture("overview")
    assert pages.driver.execute_script("return window.isSamePage"), "it was reloaded"


def _look_at_a_dead_message(pages: Pages) -> None:
    pages.click('[data-queue="mail"] [data-state="dead"]')
    pages.see("Showing 1 to 3 of 3")
    pages.picture("list")
    pages.driver.find_element(By.PARTIAL_LINK_TEXT, _id_beside(pages, "<script>")).click()
    pages.see("550 no such user")
    assert SCRIPT in pages.text
    assert str(2**60 + 1) in pages.text
    assert pages.driver.title == "Message queues"
    pages.picture("message")
    pages.click("a.btn[href*='state=dead']")
    pages.see("Showing 1 to 3 of 3")


def _id_beside(pages: Pages, text: str) -> str:
    [row] = [r for r in pages.driver.find_elements(By.CSS_SELECTOR, "tbody tr") if text in r.text]
    return row.find_element(By.CSS_SELECTOR, "td a").text


def _requeue_all(pages: Pages) -> None:
    Select(pages.driver.find_element(By.NAME, "all")).select_by_value("1")
    pages.click("#queue-action-requeue")
    pages.see("Requeue: 3 messages")
    pages.picture("confirm")
    pages.click("#queue-confirm")
    pages.see("Requeued 3 messages")
    assert "state=dead" in pages.driver.current_url
    assert "No messages match" in pages.text


def _nothing_is_cut(pages: Pages, url: str) -> None:
    for width in (1280, 400):
        pages.driver.set_window_size(width, 800)
        for path in ("queues", "mail/list", "mail/create"):
            pages.driver.get(f"{url}{path}")
            assert not pages.is_cut(), (width, path)
