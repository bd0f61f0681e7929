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
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="no selenium; make install brings it"
    )
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in found.items():
        if path is None:
            pytest.skip(f"no {name}; .ci/packages installs it, as root")
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
        self.driver.get("about:blank")  # the earlier page must ask for nothing more
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
                address = event["params"]["request"]["url"]
                if not address.startswith(("chrome:", "data:")):  # the first tab's; inline
                    self.requests.append(address)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, which gets `arguments`; return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str, holding: str | None = None) -> None:
        """Press keys one after the other wherever the focus is; named as in selenium's `Keys`."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        actions = ActionChains(self.driver)
        if holding:
            actions.key_down(getattr(Keys, holding))
        for key in keys:
            actions.send_keys(getattr(Keys, key, key))
        if holding:
            actions.key_up(getattr(Keys, holding))
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


# Contrast as WCAG 2 defines it: what is seen of a colour is blended over the backgrounds below it.
CONTRAST = """
const parse = text => {
  const n = (text.match(/[\\d.]+/g) || []).map(Number);
  return text.startsWith('rgb') ? [n[0], n[1], n[2], n[3] ?? 1] : [0, 0, 0, 0];
};
const over = ([r, g, b, a], ground) =>
  [r, g, b].map((value, i) => a * value + (1 - a) * ground[i]);
const ground = element => {
  const layers = [];
  for (let e = element; e; e = e.parentElement)
    layers.unshift(parse(getComputedStyle(e).backgroundColor));
  return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
};
const luminance = colour => {
  const [r, g, b] = colour.map(value => {
    const c = value / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (colour, opacity, below) => {
  const [r, g, b, a] = parse(colour);
  const pair = [over([r, g, b, a * opacity], below), below].map(luminance).sort((x, y) => x - y);
  return (pair[1] + 0.05) / (pair[0] + 0.05);
};
const opacity = element => {
  let all = 1;
  for (let e = element; e; e = e.parentElement) all *= Number(getComputedStyle(e).opacity);
  return all;
};
"""

# [text, contrast, what WCAG AA asks for] of every text that is seen.
TEXT_CONTRAST = (
    CONTRAST
    + """
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || element.closest('title, desc')) continue;
  if (!element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const drawn = element.ownerSVGElement;
  const px = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
  found.push([
    walker.currentNode.data.trim(),
    contrast(
      drawn ? style.fill : style.color,
      opacity(element) * (drawn ? Number(style.fillOpacity) : 1),
      ground(element)),
    px >= 24 || (bold && px >= 18.66) ? 3 : 4.5,
  ]);
}
return found;
"""
)

# [classes, contrast] of every mark of a plot, its fill or its line, whichever is seen better.
MARK_CONTRAST = (
    CONTRAST
    + """
return [...document.querySelectorAll('svg :is(path, circle, rect, line)')].map(mark => {
  const style = getComputedStyle(mark), below = ground(mark), whole = opacity(mark);
  return [mark.getAttribute('class'), Math.max(
    contrast(style.fill, whole * Number(style.fillOpacity), below),
    contrast(style.stroke, whole * Number(style.strokeOpacity), below))];
});
"""
)
