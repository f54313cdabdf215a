"""The report in a real headless Chromium: silent, inert, readable at any width, in the dark, on paper, by keyboard."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest

from sgdwalk.records import NAN
from sgdwalk.report import write_report
from sgdwalk.run import Run
from sgdwalk.text import number
from synthetic import gradient_descent, records_of_walk, sampled_walk, stochastic_descent, troubled_walk
from test_report import HOSTILE, hostile_walk

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: make browser"),
]


def seldom_measured(num_steps):
    """A measure with a threshold that is taken every fifth step, at step 10 in vain."""

    def measures(step):
        if step % 5:
            return {}
        return {"norm": NAN if step == 10 else 10.0 + step, "norm_threshold": 20.0}

    run = gradient_descent(num_steps, measures=measures)
    records = [
        replace(record, reasons={"norm": "not converged"}) if record.step == 10 else record
        for record in records_of_walk(num_steps, learning_rate=0.1, noise=0.0, measures=measures)
    ]
    return Run(run.info, records)


RUNS = {
    "two": lambda: [gradient_descent(60), stochastic_descent(60)],
    "trouble": lambda: [troubled_walk()],
    "seldom": lambda: [seldom_measured(40)],
    "sampled": lambda: [sampled_walk(num_steps=200)],
    "hostile": lambda: [hostile_walk(45), hostile_walk(45, text="x" * 100_000)],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    titles = {"hostile": HOSTILE}
    return {name: write_report(make(), folder / f"{name}.html", title=titles.get(name)) for name, make in RUNS.items()}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Tab:
    """A page with everything it said and asked for."""

    def __init__(self, browser, path, *, width=1280, height=900, **options):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.complaints, self.requests, self.failures = [], [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.failures.append((request.url, request.failure)))
        self.page.goto(path.as_uri())


@pytest.fixture
def open_tab(browser, files):
    tabs = []

    def open_tab(name, **options):
        tabs.append(Tab(browser, files[name], **options))
        return tabs[-1].page

    yield open_tab
    for tab in tabs:
        assert tab.complaints == []
        assert len(tab.requests) == 1, "the page asked for something besides itself"
        tab.context.close()


def plot_of(page, heading):
    return page.locator("figure", has=page.locator("h3", has_text=heading)).locator(".plot")


# --- silent and inert -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_using_every_part_of_the_page_says_and_fetches_nothing(open_tab, name):
    page = open_tab(name)
    for plot in page.locator(".plot[role=slider]").all():
        plot.hover()
        plot.focus()
        for key in ("End", "ArrowLeft", "PageDown", "Home", "Escape"):
            page.keyboard.press(key)
    for link in page.locator("nav a").all():
        link.click()
    assert page.evaluate("document.querySelectorAll('img, iframe, object, form').length") == 0


def test_hostile_text_is_only_text(open_tab):
    page = open_tab("hostile")
    assert page.locator("h1").inner_text().startswith("</script><script>alert(1)</script>")
    assert page.evaluate("document.scripts.length") == 2
    plot = page.locator(".plot[role=slider]").first
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "cosine: </script><script>alert(1)" in page.locator(".tip:visible").inner_text()
    assert page.locator(".tip:visible *").evaluate_all("all => all.every(e => !/SCRIPT|IMG/.test(e.tagName))")


def test_the_policy_blocks_what_a_hole_would_let_in(browser, files):
    tab = Tab(browser, files["two"])
    page = tab.page
    page.evaluate(
        """() => {
            window.blocked = [];
            addEventListener("securitypolicyviolation", (event) => window.blocked.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            const image = document.createElement("img");
            image.src = "https://example.org/x.png";
            document.body.append(image);
            const div = document.createElement("div");
            div.setAttribute("style", "color: red");
            div.setAttribute("onclick", "window.ran = true");
            document.body.append(div);
            div.click();
            return fetch("https://example.org/").catch(() => 0);
        }"""
    )
    assert page.evaluate("window.ran") is None
    wanted = {"script-src-elem", "script-src-attr", "style-src-attr", "img-src", "connect-src"}
    page.wait_for_function(f"new Set(window.blocked).size >= {len(wanted)}")
    assert set(page.evaluate("window.blocked")) == wanted
    assert [reason for url, reason in tab.failures] == ["csp"] * len(tab.failures)
    assert {*tab.requests} - {url for url, _ in tab.failures} == {files["two"].as_uri()}, "something got out"
    tab.context.close()


# --- numbers of a step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 360], ids=["desk", "phone"])
def test_pointing_at_a_step_tells_its_numbers(open_tab, width):
    page = open_tab("two", width=width)
    plot = plot_of(page, "SGD, steps 0 to 59")
    plot.scroll_into_view_if_needed()
    run = stochastic_descent(60)
    for step in (0, 17, 59):
        box = plot.bounding_box()
        left, right, _, _, first, last = page.evaluate(
            "([plot, narrow]) => JSON.parse(plot.dataset.panels)[narrow][0]", [plot.element_handle(), int(width < 500)]
        )
        scale = box["width"] / page.evaluate(
            "plot => [...plot.querySelectorAll('svg')].find(s => s.getClientRects().length).viewBox.baseVal.width",
            plot.element_handle(),
        )
        x = (left + (step + 0.5 - first) / (last - first) * (right - left)) * scale
        page.mouse.move(box["x"] + x, box["y"] + box["height"] - 60)
        told = plot.locator(".tip").inner_text()
        assert told.startswith(f"Step {step}, epoch {step // 20 + 1}")
        for name in ("loss", "floor", "height", "distance"):
            value = run.steps[name][step]
            assert re.search(rf"\b{re.escape(number(value, 4))}\b", told), (name, value, told)
        cursors = plot.locator("rect.cursor")
        assert cursors.count() == 3
        assert plot_of(page, "GD, steps 0 to 59").first.locator("rect.cursor").count() == 3, "the other walk follows"
        tip = plot.locator(".tip").bounding_box()
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= width
    page.mouse.move(5, 5)
    assert page.locator(".tip:visible").count() == 0
    assert page.locator("rect.cursor").count() == 0


def test_a_figure_of_several_runs_tells_the_numbers_of_each(open_tab):
    page = open_tab("two")
    plot = plot_of(page, "How high above the floor")
    plot.hover()
    told = plot.locator(".tip").inner_text()
    step = int(re.match(r"Step (\d+)", told)[1])
    assert "GD" in told
    assert "SGD" in told
    for run in RUNS["two"]():
        assert number(run.steps.height[step], 4) in told


def test_pointing_between_measurements_tells_the_nearest_one(open_tab):
    page = open_tab("seldom")
    plot = plot_of(page, "Curvature against its threshold")
    plot.scroll_into_view_if_needed()
    slider = page.get_by_role("slider").and_(plot)
    slider.focus()
    assert slider.get_attribute("aria-valuemax") == "35"
    for key, step in {"End": 35, "ArrowLeft": 30, "Home": 0, "ArrowRight": 5}.items():
        page.keyboard.press(key)
        assert slider.get_attribute("aria-valuenow") == str(step), key
    page.keyboard.press("ArrowRight")
    assert "norm: not converged" in slider.get_attribute("aria-valuetext")
    box = plot.bounding_box()
    for share in (0.3, 0.45, 0.6, 0.72):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 100)
        told = plot.locator(".tip").inner_text()
        step = int(re.match(r"Step (\d+)", told)[1])
        assert step % 5 == 0
        assert str(10 + step) in told


def test_a_panel_over_epochs_has_no_steps_to_point_at(open_tab):
    page = open_tab("two")
    plot = plot_of(page, "Training")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + 80)
    assert plot.locator(".tip").is_visible()
    page.mouse.move(x, box["y"] + box["height"] - 60)
    assert not plot.locator(".tip").is_visible()


def test_arrow_keys_tell_the_steps_to_a_screen_reader(open_tab):
    page = open_tab("trouble")
    slider = page.get_by_role("slider").first
    slider.focus()
    assert slider.get_attribute("aria-valuemin") == "0"
    assert slider.get_attribute("aria-valuemax") == "9"
    told = slider.get_attribute("aria-valuetext")
    assert told.startswith("Step 0. full loss 0.8")
    assert "cosine undefined" in told
    assert "cosine: there is no gradient before the first" in told
    for key, step in {"ArrowRight": 1, "End": 9, "ArrowLeft": 8, "ArrowUp": 9, "ArrowDown": 8, "Home": 0}.items():
        page.keyboard.press(key)
        assert slider.get_attribute("aria-valuenow") == str(step), key
    page.keyboard.press("PageUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert "segment: the loss was not finite (nan) at α = 0.5" in slider.get_attribute("aria-valuetext")
    assert page.locator(".tip:visible").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(".tip:visible").count() == 0


def test_the_keyboard_reaches_everything_in_order(open_tab):
    page = open_tab("two")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to what it shows"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0, "the skip link shows itself"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => { const element = document.activeElement;
                return [element.getAttribute("role") || element.tagName, getComputedStyle(element).outlineStyle]; }"""
        )
        if focus[0] == "BODY":
            break
        reached.append(focus)
    kinds = [kind for kind, _ in reached]
    assert kinds.count("slider") == 8
    assert kinds.count("region") == 4, "tables that scroll can be scrolled by keyboard"
    assert all(outline != "none" for _, outline in reached), "the focus can be seen"


def test_a_touch_keeps_the_numbers_until_another(open_tab):
    page = open_tab("two", width=360, has_touch=True)
    plots = page.locator(".plot[role=slider]")
    plots.nth(0).scroll_into_view_if_needed()
    plots.nth(0).tap()
    assert page.locator(".tip:visible").count() == 1
    plots.nth(1).tap()
    assert page.locator(".tip:visible").count() == 1
    page.locator("h1").tap()
    assert page.locator(".tip:visible").count() == 0


def test_what_a_screen_reader_finds(open_tab):
    page = open_tab("two")
    tree = page.locator("body").aria_snapshot()
    for landmark in ("banner", "main", "contentinfo", 'navigation "Sections"', 'heading "GD beside SGD" [level=1]'):
        assert landmark in tree, landmark
    for figure in ("GD, steps 0 to 59", "SGD, steps 0 to 59", "How high above the floor", "Training"):
        assert page.get_by_role("figure", name=figure, exact=True).count() == 1
    assert page.get_by_role("slider", name="GD, steps 0 to 59: choose a step", exact=True).count() == 1
    assert 'region "Steps of GD"' in tree
    assert page.get_by_role("columnheader", name="height").count() >= 2
    for slider in page.get_by_role("slider").all():
        assert len(slider.get_attribute("aria-label")) > 10
        described = slider.get_attribute("aria-describedby")
        assert len(page.locator(f"#{described}").text_content()) > 60


def test_without_scripts_everything_is_still_there(browser, files):
    tab = Tab(browser, files["two"], java_script_enabled=False)
    assert tab.page.locator(".plot[role=img]").count() == 8
    assert tab.page.locator("svg:visible").count() == 8
    assert tab.page.get_by_role("rowheader", name="59").count() == 2
    assert tab.complaints == []
    tab.context.close()


# --- widths, dark, print ----------------------------------------------------------------------------------------------

TOO_WIDE = """() => [...document.querySelectorAll("body *")].filter((element) => {
    if (element.closest(".scroll, .unseen, .skip, .tip, svg")) return false;
    const box = element.getBoundingClientRect();
    return box.width > 0 && (box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5);
}).map((element) => element.outerHTML.slice(0, 120))"""
SMALLEST_TEXT = """() => Math.min(...[...document.querySelectorAll("svg text")]
    .filter((text) => text.getClientRects().length)
    .map((text) => parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a))"""
CUT_TEXT = """() => [...document.querySelectorAll("svg text")].filter((text) => {
    const box = text.getBoundingClientRect(), plot = text.ownerSVGElement.getBoundingClientRect();
    return box.width > 0 && (box.left < plot.left - 1 || box.right > plot.right + 1);
}).map((text) => text.textContent)"""


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 2560])
@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_too_wide_or_too_small(open_tab, name, width):
    page = open_tab(name, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(SMALLEST_TEXT) >= (9.5 if width < 360 else 10.5)
    assert page.evaluate(CUT_TEXT) == []
    assert page.locator("svg:visible").count() == page.locator(".plot").count()


# The contrast of each text with the background behind it, as WCAG 2.2 counts it.
CONTRASTS = """() => {
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const contrast = (one, other) => {
        const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    };
    const behind = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const colour = parse(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        if (element.closest("script, style, .unseen, .skip") || !element.getClientRects().length) continue;
        const style = getComputedStyle(element);
        if ([...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) {
            const colour = element.closest("svg") ? style.fill : style.color;
            found.push(["text", contrast(parse(colour), behind(element)), element.textContent.slice(0, 40)]);
        } else if (element.matches("path, use") && style.stroke !== "none" && style.strokeOpacity === "1"
                && parseFloat(style.strokeWidth) > 0.9)
            found.push(["line", contrast(parse(style.stroke), behind(element)), element.outerHTML.slice(0, 80)]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_light_and_in_dark(open_tab, scheme):
    page = open_tab("two", color_scheme=scheme)
    page.locator(".plot[role=slider]").first.hover()
    found = page.evaluate(CONTRASTS)
    assert len(found) > 300
    for kind, contrast, what in found:
        assert contrast >= (4.5 if kind == "text" else 3.0), (what, contrast)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(value) for value in re.findall(r"\d+", background)]
    assert (max(levels) < 60) == (scheme == "dark")


def test_print_is_light_whole_and_within_the_page(open_tab):
    page = open_tab("two", width=688, height=980, color_scheme="dark")
    page.locator(".plot[role=slider]").first.focus()
    page.keyboard.press("End")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 251)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    assert page.locator(".tip:visible, nav:visible, .hint:visible, .cursor:visible").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    assert page.evaluate(TOO_WIDE) == []
    heights = page.evaluate("[...document.querySelectorAll('.tall')].map(e => e.scrollHeight - e.clientHeight)")
    assert max(heights) <= 0, "a table that scrolls would be cut on paper"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_a_figure_turns_narrow_with_its_column(open_tab):
    page = open_tab("two", width=1280)
    assert page.locator("svg.wide:visible").count() == 8
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.locator("svg.narrow:visible").count() == 8
    assert page.locator("svg.wide:visible").count() == 0
