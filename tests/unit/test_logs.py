"""The log that never fails."""

from __future__ import annotations

import logging

import pytest

from sqla_vitess_messages.logs import get_logger

log = get_logger("sqla_vitess_messages.test")


def refuse(_record: logging.LogRecord) -> bool:
    raise LookupError("no request")


def test_an_exception_of_a_filter_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    log.logger.addFilter(refuse)
    try:
        log.warning("anything")
    finally:
        log.logger.removeFilter(refuse)
    assert "LookupError: no request" in capsys.readouterr().err


def test_extra_fields_replace_those_of_a_record_factory(caplog: pytest.LogCaptureFixture) -> None:
    made = logging.getLogRecordFactory()

    def factory(*arguments: object, **options: object) -> logging.LogRecord:
        record = made(*arguments, **options)
        record.queue = "of the application"
        return record

    logging.setLogRecordFactory(factory)
    try:
        log.warning("%s %d", "text", 1, extra={"queue": "mail"})
        log.warning("without")
    finally:
        logging.setLogRecordFactory(made)
    found = [(record.message, record.__dict__["queue"]) for record in caplog.records]
    assert found == [("text 1", "mail"), ("without", "of the application")]


def test_a_record_names_its_caller_and_its_exception(caplog: pytest.LogCaptureFixture) -> None:
    error = ZeroDivisionError()
    try:
        int("no number")
    except ValueError:
        log.exception("handled")
        log.error("given", exc_info=error)  # noqa: TRY400
        log.warning("none")
    found = [(record.filename, record.funcName, record.exc_info) for record in caplog.records]
    assert {entry[:2] for entry in found} == {
        ("test_logs.py", "test_a_record_names_its_caller_and_its_exception")
    }
    kinds = [None if info is None else info[0] for *_place, info in found]
    assert kinds == [ValueError, ZeroDivisionError, None]


def test_a_level_that_is_off_costs_no_record(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, log.logger.name):
        log.warning("nobody reads this")
    assert not caplog.records
