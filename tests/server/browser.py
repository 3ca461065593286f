# SPDX-License-Identifier: Apache-2.0
"""A real headless Chromium, and what it noticed while it showed a page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking".split()
FLAGS += "--disable-component-update --disable-sync --no-first-run".split()
SCREENSHOTS = os.environ.get("HEADKV_SCREENSHOTS")
"""A folder where the tests leave pictures of what they saw; none without it."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where there is no browser."""
    paths = [found for name in NAMES if (found := shutil.which(name))]
    if not paths:
        pytest.skip(f"none of {', '.join(NAMES)} is installed, see scripts/system-packages")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=paths[0], args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """One page of one fresh browser profile.

    messages: what the console said of errors and warnings; those of refused requests aside, which
    Chromium reports itself. addresses: of all requests that it made.
    """

    def __init__(
        self, browser: Browser, url: str, scheme: str = "light", width: int = 1280
    ) -> None:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        context.set_default_timeout(30_000)
        self.page: Page = context.new_page()
        self.messages: list[str] = []
        self.addresses: list[str] = []
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.goto(url)

    def picture(self, name: str) -> None:
        """Leave a picture of the whole page in `SCREENSHOTS`, if there is one."""
        if SCREENSHOTS:
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)

    def close(self) -> None:
        self.page.context.close()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.messages.append(text)
