"""The daemon's log lines, for people and for programs."""

import io
import json
import logging

import pytest

from nitro_vsock.daemon import logs


def record(**extra: object) -> logging.LogRecord:
    made = logs.LOGGER.makeRecord(
        "nitro_vsock", logging.WARNING, "file.py", 1, "proxy %s", ("refused",), None, extra=extra
    )
    made.created, made.msecs = 1_700_000_000.25, 250.0
    return made


def test_json_has_one_object_per_line_with_the_fields() -> None:
    line = logs.JsonFormatter().format(record(guest_cid=16, why="two\nlines"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "message": "proxy refused",
        "guest_cid": 16,
        "why": "two\nlines",
    }


def test_text_has_the_fields_behind_the_message() -> None:
    assert logs.TextFormatter().format(record(guest_cid=16)) == "warning: proxy refused (guest_cid=16)"
    assert logs.TextFormatter().format(record()) == "warning: proxy refused"


@pytest.mark.parametrize("form", ["json", "text"])
def test_only_what_is_asked_for_is_logged(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    logs.configure(form=form, level="warning")
    logs.LOGGER.info("chatter")
    logs.LOGGER.error("trouble", extra={"guest_cid": 16})
    assert written.getvalue().count("\n") == 1
    assert "trouble" in written.getvalue()
