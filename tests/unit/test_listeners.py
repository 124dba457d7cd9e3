"""Event listeners of SQLAlchemy that the library registers for the whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT = """
import sqla_vitess_messages, sqla_vitess_messages.aio, sqla_vitess_messages.testing
from sqlalchemy.orm import Session, sessionmaker
"""

SHOW = """
events = [name for name in dir(Session.dispatch) if not name.startswith("_")]
dispatch = Session().dispatch
print(sorted(name for name in events if list(getattr(dispatch, name))))
"""

EMITS = """
from sqla_vitess_messages import emits
emits(type("Model", (), {}), "insert")(lambda changed: None)
"""

ON_COMMIT = """
from sqla_vitess_messages import on_commit
on_commit(Session(), lambda: None)
"""


@pytest.mark.parametrize(
    ("use", "events"),
    [
        ("", []),
        (ON_COMMIT, []),
        (EMITS, ["after_flush", "before_flush", "do_orm_execute"]),
    ],
    ids=["import", "on_commit", "emits"],
)
def test_sessions_have_listeners_only_once_a_hook_is_used(use: str, events: list[str]) -> None:
    code = IMPORT + use + SHOW
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(events), done.stderr
