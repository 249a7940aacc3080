"""The page in headless Chromium: no violation, no error, no request, no overflow, and the timeline moves."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from typing import TYPE_CHECKING

import pytest
from reports import report

from tracetool.document import document
from tracetool.report import render_html

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromedriver") is None, reason="no chromedriver here"),
]

STRICT = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
JENKINS = "sandbox allow-same-origin; default-src 'none'; img-src 'self'; style-src 'self';"
LISTEN = """
window.seen = [];
addEventListener("securitypolicyviolation", (e) => seen.push(e.violatedDirective + " " + e.blockedURI));
addEventListener("error", (e) => seen.push(String(e.message)), true);
addEventListener("unhandledrejection", (e) => seen.push(String(e.reason)));
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    webdriver = pytest.importorskip("selenium.webdriver")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1440,1100"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=service.Service(shutil.which("chromedriver")))
    made.set_page_load_timeout(60)
    made.execute_cdp_cmd("Network.enable", {})
    made.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LISTEN})
    yield made
    made.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(report(16, 20_000)), encoding="utf-8")
    return path


def console(driver: Chrome) -> list[dict[str, object]]:
    """Return what the browser's console has said since the last call."""
    said: list[dict[str, object]] = driver.get_log("browser")  # type: ignore[no-untyped-call]  # selenium leaves it so
    return said


def open_page(driver: Chrome, address: str, width: int = 1440, theme: str = "light") -> None:
    """Load a page at a width and theme, network emulated offline for files."""
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": address.startswith("file:"), "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
    )
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 1100, "deviceScaleFactor": 1, "mobile": False},
    )
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    console(driver)
    driver.get(address)


def drawn(driver: Chrome) -> None:
    """Wait until the timeline says that it has unpacked its slices."""
    wait = pytest.importorskip("selenium.webdriver.support.wait")
    wait.WebDriverWait(driver, 20).until(
        lambda d: d.execute_script("return document.querySelector('.timeline').dataset.slices")
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 800, 400])
def test_it_opens_in_silence_and_fits(driver: Chrome, page: Path, width: int, theme: str) -> None:
    open_page(driver, page.as_uri(), width, theme)
    drawn(driver)
    assert driver.execute_script("return window.seen") == []
    assert console(driver) == []
    assert driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)"
                                 ".filter(n => !n.startsWith('data:'))") == []  # fmt: skip
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_hostile_names_create_no_element(driver: Chrome, page: Path) -> None:
    open_page(driver, page.as_uri())
    drawn(driver)
    assert driver.execute_script("return document.querySelectorAll('img:not([src^=\"data:image/png\"])').length") == 0
    assert driver.execute_script("return document.querySelectorAll('script').length") == 2


def test_anchors_resolve_and_ids_are_unique(driver: Chrome, page: Path) -> None:
    open_page(driver, page.as_uri())
    dangling = "return [...document.querySelectorAll('a')].map(a => a.hash.slice(1))"
    assert driver.execute_script(dangling + ".filter(id => !document.getElementById(id))") == []
    twice = "const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
    assert driver.execute_script(twice + "return ids.filter((id, i) => ids.indexOf(id) !== i)") == []


def test_the_timeline_holds_every_slice_and_obeys_its_keys(driver: Chrome, page: Path) -> None:
    open_page(driver, page.as_uri())
    drawn(driver)
    slices = len(document(report(16, 20_000))["results"]["timeline"]["tables"]["slices"])
    assert driver.execute_script("return Number(document.querySelector('.timeline').dataset.slices)") == slices
    picture = "return document.querySelector('canvas').toDataURL()"
    press = (
        "const c = document.querySelector('canvas'); c.focus(); const done = arguments[1];"
        "c.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], cancelable: true, bubbles: true}));"
        "requestAnimationFrame(() => requestAnimationFrame(done))"
    )
    whole = driver.execute_script(picture)
    driver.execute_async_script(press, "w")
    zoomed = driver.execute_script(picture)
    driver.execute_async_script(press, "d")
    moved = driver.execute_script(picture)
    driver.execute_async_script(press, "0")
    assert len({whole, zoomed, moved}) == 3
    assert driver.execute_script(picture) == whole


def test_a_plain_wheel_scrolls_the_page_and_ctrl_wheel_zooms(driver: Chrome, page: Path) -> None:
    open_page(driver, page.as_uri())
    drawn(driver)
    wheel = (
        "const e = new WheelEvent('wheel', {deltaY: 100, ctrlKey: arguments[0], cancelable: true, bubbles: true});"
        "document.querySelector('canvas').dispatchEvent(e); return e.defaultPrevented"
    )
    assert driver.execute_script(wheel, False) is False
    assert driver.execute_script(wheel, True) is True


def test_a_canvas_without_room_is_left_alone(driver: Chrome, page: Path) -> None:
    open_page(driver, page.as_uri())
    drawn(driver)
    driver.execute_async_script(
        "document.querySelector('.timeline').hidden = true; const done = arguments[0];"
        "requestAnimationFrame(() => requestAnimationFrame(done))"
    )
    assert driver.execute_script("return window.seen") == []


def test_printing_opens_the_tables(driver: Chrome, page: Path) -> None:
    open_page(driver, page.as_uri())
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert driver.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    driver.execute_script("dispatchEvent(new Event('afterprint'))")
    assert driver.execute_script("return document.querySelectorAll('details:not([open])').length") > 0


class Serve(http.server.SimpleHTTPRequestHandler):
    """Serves a folder under a content security policy."""

    policy = ""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", self.policy)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: the test's output is its own."""


@pytest.fixture
def served(page: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Handler", (Serve,), {"policy": request.param})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=page.parent))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/report.html"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("served", [STRICT], indirect=True)
def test_it_draws_under_the_strict_policy(driver: Chrome, served: str) -> None:
    open_page(driver, served)
    drawn(driver)
    assert driver.execute_script("return window.seen.filter(s => !s.includes('favicon'))") == []


@pytest.mark.parametrize("served", [JENKINS], indirect=True)
def test_tables_and_pictures_remain_where_styles_and_scripts_are_blocked(driver: Chrome, served: str) -> None:
    open_page(driver, served)
    by_css = driver.find_elements("css selector", "table[data-table]")
    expected = render_html(report(16, 20_000)).count("data-table=")
    assert len(by_css) == expected
    bars = driver.find_elements("css selector", "table.bars rect[fill]")
    assert len(bars) > 50
    assert max(bar.size["width"] for bar in bars) > 200
