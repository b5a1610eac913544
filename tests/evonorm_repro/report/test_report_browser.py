"""The page in a browser, opened from its file as a reader would."""

from __future__ import annotations

import base64
import re
import shutil

import pytest

from evonorm_gan.sampling import write_png
from evonorm_repro.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip)")
wait = pytest.importorskip("selenium.webdriver.support.wait")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
DRIVER = shutil.which("chromedriver")
needed = not (BROWSER and DRIVER)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(needed, reason="needs Chromium and its driver (chromium, chromium-driver)"),
]
FORMULA = "x * sigmoid(v1 * x) / std_g(x) + log(x - mean_c(x)) / sqrt(rms_i(x) + v0 * abs(x))"
HOSTILE = "<img src=x onerror=window.pwned=1><b>bold&lt;"  # the name of a folder


@pytest.fixture(scope="module")
def page(tmp_path_factory, gan_run, write_run, metrics, noise):
    """A report over three runs of the GAN, one of them with a hostile name."""
    folder = tmp_path_factory.mktemp("browser")
    for i, name in enumerate(("alpha", "beta", HOSTILE)):
        lines = [(s, metrics(9.0 - s + i, 1.0 + s, KID=0.1) | {"loss_d": s + i}) for s in (1, 2, 3)]
        norm = ("EvoNormS0", FORMULA, "GN-ReLU")[i]
        settings = ("SOLVER.LR_G", f"{i + 1}e-4", "MODEL.NORM", norm)
        run = gan_run(folder / "runs" / name, lines, *settings)
        for step in (10, 20, 30)[i:]:
            write_png(run / f"samples/{step:07d}.png", noise(step, 32))
    # Plotly's own tags, in what it draws as the labels of an axis and as a title.
    values = {"total_loss": 2, f"bbox/AP-{HOSTILE}": 50, f"{HOSTILE}/bbox/AP": 9}
    write_run(folder / "runs/detector", [(i, values) for i in (1, 2)])
    write_report([folder / "runs"], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def tab(browser, page):
    """The page anew, in a window of 1280 pixels, with the light theme."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.set_window_size(1280, 900)
    browser.get(page.as_uri())
    yield Tab(browser)
    assert browser.get_log("browser") == []


class Tab:
    """What a reader does and sees."""

    def __init__(self, browser):
        self.browser = browser

    def js(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def box(self, name):
        """The checkbox of a run."""
        labels = self.browser.find_elements("css selector", ".legend label")
        (label,) = (label for label in labels if label.text.strip() == name)
        return label.find_element("css selector", "input")

    def drawn(self):
        """By chart, the indices of the runs whose lines are drawn."""
        return self.js(
            "return Object.fromEntries([...document.querySelectorAll('.plot')].filter(p => p.data)"
            ".map(p => [p.id, p.data.filter((t, i) => p.querySelectorAll('.scatterlayer .trace')"
            ".length && t.visible).map(t => t.meta)]))"
        )

    def lines(self):
        """The number of lines that the charts show, from their SVG."""
        return self.js("return document.querySelectorAll('.scatterlayer .trace').length")

    def rows(self):
        """The texts of the rows of all tables of runs that can be seen."""
        rows = self.browser.find_elements("css selector", "tr[data-run]")
        return [row.text.split("\n")[0] for row in rows if row.is_displayed()]

    def press(self, *keys):
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def wait(self, condition):
        wait.WebDriverWait(self.browser, 20).until(lambda _: condition())

    def focused(self):
        return self.browser.switch_to.active_element


def test_it_opens_without_errors_and_draws_every_chart(tab):
    charts = tab.js("return document.querySelectorAll('.plot').length")
    open_ones = tab.js("return document.querySelectorAll('.plot .main-svg').length > 0")
    assert charts > 6 and open_ones
    empty = tab.js(
        "return [...document.querySelectorAll('.plot')].filter(p => !p.closest('details')"
        " && !p.querySelector('.scatterlayer .trace path')).map(p => p.id)"
    )
    assert empty == []
    loaded = tab.js("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_a_toggle_hides_a_run_in_charts_and_tables(tab):
    before, lines = tab.drawn(), tab.lines()
    assert any(1 in runs for runs in before.values()) and len(before) > 5
    box = tab.box("alpha")
    index = int(box.get_attribute("value"))
    shown = tab.rows()
    assert sum("alpha" in row for row in shown) == 2  # all runs, and results
    box.click()
    assert all(index not in runs for runs in tab.drawn().values())
    assert all(set(tab.drawn()[c]) == set(runs) - {index} for c, runs in before.items())
    affected = sum(index in runs for runs in before.values())
    assert tab.lines() == lines - affected
    assert not any("alpha" in row for row in tab.rows())
    settings = tab.find("#gan-settings").text
    assert "alpha" not in settings and "beta" in settings
    assert tab.find("#shown").text == "3 of 4"
    box.click()
    assert (tab.drawn(), tab.lines(), tab.rows()) == (before, lines, shown)


def test_all_and_none(tab):
    tab.find("[data-all='0']").click()
    assert tab.rows() == [] and tab.lines() == 0 and tab.find("#shown").text == "0 of 4"
    tab.find("[data-all='1']").click()
    assert tab.lines() > 5 and tab.find("#shown").text == "4 of 4"


def test_the_slider_shows_the_grids_of_a_step(tab):
    slider = tab.find(".slider input")
    end, home, left, right = (
        getattr(webdriver.Keys, key) for key in ("END", "HOME", "ARROW_LEFT", "ARROW_RIGHT")
    )

    def visible():
        images = tab.browser.find_elements("css selector", ".grids img")
        return [image.get_attribute("alt") for image in images if image.is_displayed()]

    def alts(**steps):
        names = {"other": HOSTILE}
        return [f"Samples of {names.get(n, n)} after step {s}" for n, s in steps.items()]

    order = {alt: i for i, alt in enumerate(visible())}
    assert set(order) == set(alts(alpha=30, beta=30, other=30))
    slider.send_keys(left)
    assert slider.get_attribute("aria-valuetext") == "step 20"
    assert tab.find(".slider output").text == "step 20"
    assert set(visible()) == set(alts(alpha=20, beta=20))
    slider.send_keys(home)
    assert set(visible()) == set(alts(alpha=10)) and "none yet" in tab.find(".grids").text
    slider.send_keys(right, end)
    assert set(visible()) == set(order)
    tab.box("beta").click()
    assert set(visible()) == set(alts(alpha=30, other=30))


def test_everything_can_be_done_by_keyboard(tab):
    keys = webdriver.Keys
    tab.press(keys.TAB)
    assert tab.focused().text == "Skip to the results" and tab.focused().is_displayed()
    outline = tab.js("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline not in ("none", "")
    reached = []
    for _ in range(80):
        tab.press(keys.TAB)
        focused = tab.focused()
        kind = focused.get_attribute("type") or focused.tag_name
        reached.append(kind)
        outline = tab.js("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", focused.get_attribute("outerHTML")[:200]
        if kind == "checkbox":
            before = tab.lines()
            tab.press(keys.SPACE)
            assert tab.lines() < before or not focused.is_selected()
            tab.press(keys.SPACE)
            assert tab.lines() == before
        if kind == "summary" and "more curve" in focused.text:
            tab.press(keys.ENTER)
            break
    assert reached.count("checkbox") == 4 and "button" in reached
    drawn = "return document.activeElement.parentElement.querySelectorAll('.main-svg').length"
    tab.wait(lambda: tab.js(drawn) > 0)


def test_hostile_names_are_shown_and_not_run(tab):
    for fold in tab.browser.find_elements("css selector", "summary"):
        fold.click()
    tab.browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert tab.js("return window.pwned") is None
    assert tab.box(HOSTILE).is_selected()
    ticks = tab.js("return [...document.querySelectorAll('.ytick text')].map(t => t.textContent)")
    assert any(t.startswith("<img src=x onerror=") for t in ticks)
    titles = tab.js("return [...document.querySelectorAll('.ytitle')].map(t => t.textContent)")
    assert any("<img src=x onerror=" in t for t in titles)
    # Hovering shows the names of runs.
    plot = tab.js(
        "const p = [...document.querySelectorAll('#gan .plot')].find(p => p.data?.length == 3);"
        "p.scrollIntoView({block: 'center'}); return p"
    )
    webdriver.ActionChains(tab.browser).move_to_element(plot).move_by_offset(1, 1).perform()
    tab.wait(lambda: tab.js("return document.querySelectorAll('.hoverlayer text').length") > 0)
    hover = tab.js(
        "return [...document.querySelectorAll('.hoverlayer text')].map(t => t.textContent).join()"
    )
    assert "<img src=x onerror=" in hover and "pwned" in hover
    injected = "[onerror], .plot b, .plot a[href^=http]"
    assert tab.js("return document.querySelectorAll(arguments[0]).length", injected) == 0
    assert tab.js("return window.pwned") is None


def test_formulas_are_drawn_as_fractions(tab):
    formulas = tab.browser.find_elements("css selector", ".formulas math")
    assert len(formulas) == 2
    for formula in formulas:
        letter = formula.find_element("css selector", "mi")
        whole, letter = (element.size["height"] for element in (formula, letter))
        assert whole > 2 * letter > 0


def test_nothing_is_wider_than_a_phone(tab):
    tab.js("for (const fold of document.querySelectorAll('details')) fold.open = true")
    for width in (768, 360):
        size = {"width": width, "height": 780, "deviceScaleFactor": 2, "mobile": True}
        tab.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        tab.browser.execute_async_script("setTimeout(arguments[0], 500)")
        assert tab.js("return document.documentElement.scrollWidth") == width
        wide = tab.js(
            "return [...document.querySelectorAll('.plot .main-svg, figure img, .toggles')]"
            ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
        )
        assert wide == 0
        formulas = tab.browser.find_elements("css selector", ".formulas dd")
        assert min(formula.size["width"] for formula in formulas) > 200
    table = tab.find("#gan-results .scroll")  # it scrolls in its own box
    assert tab.js("return arguments[0].scrollWidth > arguments[0].clientWidth", table)


def test_the_dark_theme_reaches_the_charts(tab):
    def colours():
        return tab.js(
            "const line = document.querySelector('.scatterlayer .js-line');"
            "const body = getComputedStyle(document.body);"
            "return [body.backgroundColor, getComputedStyle(line).stroke,"
            "getComputedStyle(document.querySelector('.xtick text')).fill]"
        )

    light = colours()
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    # The page's script hears of it a moment later.
    tab.wait(lambda: all(a != b for a, b in zip(light, colours())))
    dark = colours()

    def brightness(colour):
        return sum(map(float, colour[4:-1].split(",")))

    assert brightness(light[0]) > 700 > 200 > brightness(dark[0])
    assert brightness(light[2]) < 200 < 600 < brightness(dark[2])


def test_on_paper_it_is_light_unfolded_and_without_controls(tab):
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    folds = tab.js("return document.querySelectorAll('details:not([open])').length")
    assert folds > 0
    tab.js(
        "addEventListener('beforeprint', () => {"
        " const plots = [...document.querySelectorAll('.plot')];"
        " window.printed = [document.querySelectorAll('details:not([open])').length,"
        " plots.filter(p => !p.querySelector('.main-svg')).length,"
        " getComputedStyle(document.body).backgroundColor] })"
    )
    result = tab.browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pdf = base64.b64decode(result["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    width, height = (round(float(x)) for x in media_box(pdf))
    assert (width, height) == (595, 842)  # A4 in points
    assert tab.js("return window.printed") == [0, 0, "rgb(255, 255, 255)"]
    assert tab.js("return document.querySelectorAll('details:not([open])').length") == folds
    tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    controls = (".legend input", "button", ".slider input", "nav", ".skip", ".modebar-container")
    for selector in controls:
        elements = tab.browser.find_elements("css selector", selector)
        assert elements and not any(e.is_displayed() for e in elements), selector


def media_box(pdf):
    found = re.search(rb"/MediaBox ?\[ ?0 0 ([\d.]+) ([\d.]+)", pdf)
    return found.groups()
