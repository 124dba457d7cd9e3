"""A real browser, driven by Selenium: Chromium, or Chrome, and the driver that belongs to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"


def missing_browser() -> str:
    """Return the line for a machine that lacks a browser; "" for one that doesn't."""
    lacks = [] if _browser() else ["chromium"]
    lacks += [] if shutil.which(DRIVER) else [DRIVER]
    return f"tests in a browser: this machine lacks {' and '.join(lacks)}" if lacks else ""


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def open_browser(width: int = 1280, height: int = 800) -> Iterator[Chrome]:
    """Open a window that nobody sees."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = _browser() or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    os.environ["SE_OFFLINE"] = "true"  # Selenium would download a browser that it misses.
    driver = Chrome(options=options, service=ChromeService(shutil.which(DRIVER)))
    try:
        driver.set_page_load_timeout(60)
        yield driver
    finally:
        driver.quit()
