"""A page on disk as a phone shows it: headless Chromium by WebDriver."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
WIDTH, HEIGHT = 390, 844
"""Of a phone, in CSS pixels."""


@contextmanager
def opened(page: Path) -> Iterator[WebDriver]:
    """The page in a phone's window; its driver and browser end with the block."""
    options = Options()
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_experimental_option("mobileEmulation",
                                    {"deviceMetrics": {"width": WIDTH, "height": HEIGHT, "pixelRatio": 2.0}})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def requested(driver: WebDriver) -> list[str]:
    """Addresses that the page has asked for, itself included."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
