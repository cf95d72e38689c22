"""The page in a browser: it works by mouse and keyboard, on a phone and in the dark, without a network."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kept import made_once
from pages import HOSTILE, analysis_of, block_names, page_with

from lowrank.report.page.page_data import page_data_of
from lowrank.report.page.webpage import SECTIONS, write_page
from lowrank.results.parts import Provenance

pytestmark = pytest.mark.browser

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
TABS = [key for key, _ in SECTIONS]

CONTRAST = """
const parts = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const colour = parts(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const e = node.parentElement;
  if (!node.textContent.trim() || !e.getClientRects().length) continue;
  if (e.closest("title, desc, script, .unseen, .skip")) continue;
  const style = getComputedStyle(e);
  const ink = parts(e.ownerSVGElement ? style.fill : style.color);
  const [a, b] = [luminance(ink), luminance(ground(e))].sort((x, y) => x - y);
  found.push([(b + 0.05) / (a + 0.05), e.tagName, node.textContent.trim().slice(0, 40)]);
}
return found;
"""
"""Of every text that can be seen, against what is behind it, as in WCAG 2.2."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium with its driver; the reason to skip where they cannot be had."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    from tools.browser import chromium

    installed, beside = shutil.which("chromium"), shutil.which("chromedriver")
    with made_once("chromium") as folder:
        if installed and beside:
            program, environment, driver = Path(installed), {}, Path(beside)
        else:
            try:
                program, environment = chromium(folder)
            except SystemExit as why:
                pytest.skip(f"no browser: {why}")
            driver = program.with_name("chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(program)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(str(driver), env={**os.environ, **environment}))
    yield found
    found.quit()


TASK = {"task": "sts:a", "metric": "spearman", "higher_is_better": True, "dense": 0.9, "compressed": 0.8, "drop": 0.1}
QUALITY = {
    "cosine": 0.99,
    "tasks": [{**TASK, "samples": 9}, {**TASK, "task": "sts:b"}, {**TASK, "task": "sts:c", "samples": 5}],
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a usual run, of one whose names mean harm, and of an analysis."""
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "run": page_with(block_names(24), problems=["something was not as it should be"], quality=QUALITY),
        "hostile": page_with(HOSTILE, notes=list(HOSTILE), problems=list(HOSTILE)),
        "analysis": page_data_of(analysis_of(block_names(12)), provenance=Provenance(command=["lowrank", "analyze"])),
    }
    for name, facts in made.items():
        write_page(folder / f"{name}.html", facts)
    return {name: folder / f"{name}.html" for name in made}


def show(browser: Any, page: Path, width: int = 1280, scheme: str = "light") -> None:
    """Open a page anew in a window of a width."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(f"file://{page}")


def element(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def elements(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def into_view(browser: Any, selector: str) -> Any:
    found = element(browser, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    return found


def shown(browser: Any) -> list[str]:
    return [panel.get_attribute("id") for panel in elements(browser, ".panel") if panel.is_displayed()]


def picture(browser: Any, path: Path) -> None:
    """The whole page, however long."""
    size = browser.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 8000), "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(taken["data"]))


@pytest.mark.parametrize("name", ["run", "hostile", "analysis"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens(browser: Any, pages: dict[str, Path], tmp_path: Path, name: str, width: int) -> None:
    """No word of complaint, nothing that is fetched, nothing wider than the screen; pictures of every part."""
    folder = Path(os.environ.get("LOWRANK_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in SCHEMES:
        show(browser, pages[name], width, scheme)
        for tab in TABS:
            element(browser, f"#tab-{tab}").click()
            assert shown(browser) == [tab]
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, tab
            picture(browser, folder / f"{name}-{width}-{scheme}-{tab}.png")
            assert (folder / f"{name}-{width}-{scheme}-{tab}.png").read_bytes().startswith(b"\x89PNG")
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert [url.split("#")[0] for url in asked if not url.startswith("data:")] == [f"file://{pages[name]}"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["run", "analysis"])
def test_every_text_can_be_read(browser: Any, pages: dict[str, Path], scheme: str, name: str) -> None:
    show(browser, pages[name], 1280, scheme)
    seen = 0
    for tab in TABS:
        element(browser, f"#tab-{tab}").click()
        found = browser.execute_script(CONTRAST)
        seen += len(found)
        assert not [each for each in found if each[0] < 4.5], tab
    assert seen > 500


def test_the_dark_has_colours_of_its_own(browser: Any, pages: dict[str, Path]) -> None:
    colours = {}
    for scheme in SCHEMES:
        show(browser, pages["run"], scheme=scheme)
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        colours[scheme] = browser.execute_script(script)
    assert not set(colours["light"]) & set(colours["dark"])


def test_tabs_by_mouse_and_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["run"])
    assert shown(browser) == ["overview"]
    tabs = elements(browser, "[role=tab]")
    assert [tab.get_attribute("aria-controls") for tab in tabs] == TABS
    assert element(browser, "#tabs").get_attribute("role") == "tablist"
    tabs[2].click()
    assert shown(browser) == ["spectra"]
    moves = (
        (Keys.ARROW_RIGHT, "tradeoff"),
        (Keys.ARROW_LEFT, "spectra"),
        (Keys.END, "made"),
        (Keys.ARROW_RIGHT, "overview"),
        (Keys.ARROW_LEFT, "made"),
        (Keys.HOME, "overview"),
    )
    for key, wanted in moves:
        browser.switch_to.active_element.send_keys(key)
        assert shown(browser) == [wanted]
        now = browser.switch_to.active_element
        assert now.get_attribute("id") == f"tab-{wanted}" and now.get_attribute("aria-selected") == "true"
        # Only one of them is reached with the tabulator.
        assert [tab.get_attribute("tabindex") for tab in tabs].count("0") == 1
        assert element(browser, f"#{wanted}").get_attribute("aria-labelledby") == f"tab-{wanted}"
    # The address names the part, and opens it.
    assert browser.current_url.endswith("#overview")
    browser.execute_script("location.hash = '#layers'")
    assert shown(browser) == ["layers"]


def test_tables_can_be_sorted(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["run"])
    element(browser, "#tab-tradeoff").click()

    def column(table: str, at: int) -> list[str]:
        return [cell.text for cell in elements(browser, f"{table} tbody tr > :nth-child({at})")]

    sweep = "#tradeoff [aria-label='Measured points'] table"
    head = element(browser, f"{sweep} th:nth-child(2)")
    assert head.get_attribute("aria-sort") is None
    head.find_element("css selector", "button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(sweep, 2) == ["600,000", "1,000,000", "4,000,000", "4,000,000"]
    head.find_element("css selector", "button").send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert column(sweep, 2) == ["4,000,000", "4,000,000", "1,000,000", "600,000"]
    # One column at a time; what was not measured stays at the end, whichever way.
    browser.execute_script("location.hash = '#overview'")
    tasks = "#overview [aria-label='Tasks'] table"
    for way in ("ascending", "descending"):
        element(browser, f"{tasks} th:nth-child(7) button").send_keys(Keys.ENTER)
        assert [head.get_attribute("aria-sort") for head in elements(browser, f"{tasks} [aria-sort]")] == [way]
        assert column(tasks, 7)[-1] == ""
    browser.execute_script("location.hash = '#layers'")
    names = column("#layers table", 1)
    into_view(browser, "#layers th:first-child button").click()
    into_view(browser, "#layers th:first-child button").click()
    assert column("#layers table", 1) == sorted(names, reverse=True)


def test_weights_can_be_found(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["run"])
    for tab, selector, wanted in (("spectra", "#spectra figure", 6), ("layers", "#layers tbody tr", 6)):
        element(browser, f"#tab-{tab}").click()
        box = element(browser, f"#{tab} input")
        box.send_keys("QUERY")
        assert len([e for e in elements(browser, selector) if e.is_displayed()]) == wanted
        assert element(browser, f"#{tab} output").text == "6 of 24"
        box.clear()
        box.send_keys("layer.3.")
        assert len([e for e in elements(browser, selector) if e.is_displayed()]) == 4
    element(browser, "#tab-spectra").click()
    assert [block.text for block in elements(browser, ".block h3") if block.is_displayed()] == ["Block 3"]


def test_what_is_pointed_at_is_told(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver import ActionChains

    show(browser, pages["run"])
    element(browser, "#tab-ranks").click()
    cell = into_view(browser, ".heat td[data-tip]")
    ActionChains(browser).move_to_element(cell).perform()
    tip = element(browser, "#tip")
    assert tip.is_displayed() and "encoder.layer.0" in tip.text
    element(browser, "#tab-spectra").click()
    assert not element(browser, "#tip").is_displayed()
    drawn = element(browser, "#spectra svg.spectrum:not(.key)")
    before = element(browser, "#spectra .read").text
    ActionChains(browser).move_to_element(drawn).perform()
    assert (
        " keeps " in element(browser, "#spectra .read").text and " on data" in element(browser, "#spectra .read").text
    )
    ActionChains(browser).move_to_element(element(browser, "h1")).perform()
    assert element(browser, "#spectra .read").text == before


def test_hostile_names_stay_text(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    show(browser, pages["hostile"])
    for tab in TABS:
        element(browser, f"#tab-{tab}").click()
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert
    assert browser.title == "tiny - lowrank report"
    assert not elements(browser, "main b b, main img, [onmouseover], [onerror]")
    element(browser, "#tab-layers").click()
    assert HOSTILE[0] in element(browser, "#layers").text
    # Nor do tips make more of them than text.
    browser.execute_script(
        "document.querySelector('.heat td[data-tip]').dispatchEvent(new Event('pointerover', {bubbles: true}))"
    )
    assert "<" in element(browser, "#tip").text and not elements(browser, "#tip *")


def test_without_scripts_all_of_it_is_there(browser: Any, pages: dict[str, Path]) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, pages["run"], 390)
        assert shown(browser) == TABS
        assert not elements(browser, "[role=tab]") and not [e for e in elements(browser, ".find") if e.is_displayed()]
        assert [link.get_attribute("href").split("#")[1] for link in elements(browser, "#tabs a")] == TABS
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
