"""The report of a simulated run of 64 ranks, hostile kernel names and all, in headless Chromium."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest
from simulator import Config, simulate

from tracetool import cli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromedriver") is None, reason="no chromedriver here"),
]

HOSTILE = "</script><img src=x onerror=alert(1)>"
BUDGET_BYTES = 1_000_000


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of 64 ranks through the command line."""
    folder = tmp_path_factory.mktemp("run")
    run = simulate(Config(dp=4, tp=4, pp=4, steps=2, microbatches=4, gpus_per_node=8))
    name = next(seen.name for seen in run.traces[0].activities if "gemm" in seen.name)
    run.write_kineto(folder / "traces", rename={name: HOSTILE})
    target = folder / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["tracetool", "report", str(folder / "traces"), "-o", str(target), "--cache", "off", "-q"]
        )
        with pytest.raises(SystemExit) as exited:
            cli.main()
    assert exited.value.code == 0
    return target


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    """Start a browser that cannot reach anything."""
    webdriver = pytest.importorskip("selenium.webdriver")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=service.Service(shutil.which("chromedriver")))
    made.set_page_load_timeout(60)
    yield made
    made.quit()


def test_the_page_of_64_ranks_keeps_to_its_size(page: Path) -> None:
    assert page.stat().st_size <= BUDGET_BYTES


def test_the_page_names_no_address(page: Path) -> None:
    text = page.read_text()
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert "https://" not in text


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 800])
def test_nothing_is_said_and_nothing_overflows(driver: Chrome, page: Path, width: int, theme: str) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 1100, "deviceScaleFactor": 1, "mobile": False}
    )
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    driver.get(page.as_uri())
    assert driver.get_log("browser") == []  # type: ignore[no-untyped-call]  # selenium leaves it so
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert driver.execute_script("return document.querySelectorAll('img[onerror]').length") == 0
    assert driver.execute_script("return document.body.textContent.includes('onerror=alert(1)')")
