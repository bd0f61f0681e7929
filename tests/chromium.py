"""Pages in headless Chromium as people meet them: sizes, themes, paper, keys, what they load.

The fixture `chromium` in conftest.py hands out a `Browser` and skips where there is none.
"""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root in containers, and the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
)


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a fresh profile folder; skip the test where a part of it is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in found.items():
        if path is None:
            pytest.skip(f"{name} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=found["chromedriver"])
    )
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """One tab. What is emulated stays until it is emulated anew; `errors` and `requests` collect.

    Attributes:
        driver: selenium's, for what is missing here.
        errors: what the console and uncaught errors said since the last `open`.
        requests: addresses asked for since the last `open`, the page's own first.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.errors: list[str] = []
        self.requests: list[str] = []

    def emulate(
        self,
        width_px: int = 1280,
        height_px: int = 900,
        *,
        dark: bool = False,
        paper: bool = False,
        calm: bool = False,
    ) -> None:
        """Set the viewport, the colour scheme, print media and `prefers-reduced-motion`."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width_px,
            height=height_px,
            deviceScaleFactor=1,
            mobile=width_px < 600,
        )
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if calm else "no-preference",
        }
        self.cdp(
            "Emulation.setEmulatedMedia",
            media="print" if paper else "screen",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )

    def open(self, page: Path | str) -> None:
        """Load a file or an address and forget what earlier pages said and asked for."""
        self.collect()
        self.errors, self.requests = [], []
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)
        self.collect()

    def collect(self) -> None:
        """Add to `errors` and `requests` what came since; warnings of the console count too."""
        self.errors += [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, which gets `arguments`; return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys one after the other wherever the focus is; named as in selenium's `Keys`."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        actions = ActionChains(self.driver)
        for key in keys:
            actions.send_keys(getattr(Keys, key, key))
        actions.perform()

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a PNG of the whole page, or of the viewport only."""
        taken = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(b64decode(taken["data"]))

    def pdf(self, path: Path) -> None:
        """Print to A4."""
        printed = self.cdp(
            "Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False
        )
        path.write_bytes(b64decode(printed["data"]))

    def cdp(self, command: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the Chrome DevTools Protocol."""
        answer: dict[str, Any] = self.driver.execute_cdp_cmd(command, parameters)
        return answer
