"""The report as a file: valid, self-contained, inert whatever a run holds, honest about its lengths, written whole."""

from __future__ import annotations

import base64
import errno
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgdwalk import figures
from sgdwalk.drawing import COLOURS
from sgdwalk.errors import InputError, SgdwalkError
from sgdwalk.records import EpochNote, Event
from sgdwalk.report import render, save_figure, write_report
from sgdwalk.run import Run
from synthetic import gradient_descent, quadratic_walk, records_of_walk, settings, stochastic_descent, troubled_walk

VOID = {"meta", "link", "br", "img", "path", "use", "rect"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028\u2029{{7*7}}<!--'\"`\x1b[31m\x00&amp;"


class Page(HTMLParser):
    """Elements with their attributes, and texts, of a page whose elements must nest."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self):
        return " ".join(data for parent, data in self.texts if parent not in ("script", "style"))


def data_of(html: str):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


@pytest.fixture(scope="module")
def two():
    return render([gradient_descent(60), stochastic_descent(60)])


@pytest.fixture(scope="module")
def trouble():
    return render([troubled_walk()])


def hostile_walk(num_steps=20, text=HOSTILE):
    records = records_of_walk(num_steps, measures=lambda step: {text: 1.0 + step})
    records[3] = replace(records[3], cosine=math.nan, reasons={"cosine": text})
    notes = [EpochNote(1, 20, {text: 1.0})]
    info = settings(text, config={text: text, "list": [text, {text: [text]}]}, model={"class": text})
    info["provenance"]["argv"] = [text]
    return Run(info, records, notes, [Event(0, 3, text, text)])


# --- structure --------------------------------------------------------------------------------------------------------


def test_structure_for_people_and_screen_readers(two):
    page = Page(two)
    assert two.startswith("<!DOCTYPE html>")
    assert page.all("html")[0]["lang"] == "en"
    assert [len(page.all(tag)) for tag in ("main", "h1", "header", "footer", "nav")] == [1, 1, 1, 1, 1]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "a level is skipped"
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = [link["href"] for link in page.all("a")]
    assert targets[0] == "#main", "the first link skips to the content"
    referred = {target.removeprefix("#") for target in targets}
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            referred |= set((attributes.get(name) or "").split())
    assert referred <= set(identifiers)
    assert {section.get("aria-labelledby") for section in page.all("section")} <= set(identifiers)


def test_every_figure_has_a_caption_and_a_text_alternative(two):
    page = Page(two)
    plots = [attributes for attributes in page.all("div") if attributes.get("class") == "plot"]
    assert len(plots) == len(page.all("figure")) == len(page.all("figcaption")) == 8
    for plot in plots:
        assert plot["role"] == "img"
        assert len(plot["aria-label"]) > 60
    assert all(svg["aria-hidden"] == "true" for svg in page.all("svg"))
    assert len(page.all("svg")) == 16


def test_every_table_has_headings_with_a_scope(two):
    page = Page(two)
    assert len(page.all("table")) == len(page.all("caption")) == 7
    assert all(heading.get("scope") in ("col", "row", "rowgroup") for heading in page.all("th"))


def test_figures_say_what_they_show(two):
    words = Page(two).text()
    run = gradient_descent(60)
    assert f"goes from {run.steps.loss[0]:.3g} to {run.steps.next_loss[59]:.3g}" in words
    assert "the floor lies between the iterates on 60 of 60 watched steps" in words


def test_key_numbers_stand_first(two):
    words = Page(two).text()
    gd, sgd = gradient_descent(60), stochastic_descent(60)
    start = words[: words.index("The walk, step by step")]
    for value in (gd.steps.height.mean(), sgd.steps.height.mean(), sgd.steps.next_distance[59]):
        assert f"{value:.3g}" in start
    assert "SGD walks higher above the valley floor than GD" in start
    assert "It crosses no barrier in 60 steps." in start


def test_settings_that_differ_are_marked(two):
    html = render([gradient_descent(3), quadratic_walk("SGD", 3, info={"created": "2026-03-02T12:00:00+00:00"})])
    marked = re.findall(r'<tr class="differs"><th scope="row">(.*?)</th>', html)
    assert marked == ["name", "created"]
    for shown in ("every(1)", "learning rate", "2.13.0", "0123abc", "sgdwalk run", "c0ffee"):
        assert shown in two


def test_title(two, trouble):
    assert "<h1>GD beside SGD</h1>" in two
    assert "<h1>trouble</h1>" in trouble
    assert "<h1>3 walks &amp; &lt;one&gt; page</h1>" in render([gradient_descent(2)] * 3, title="3 walks & <one> page")


# --- self-contained and inert -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile():
    return render([hostile_walk()], title=HOSTILE)


@pytest.mark.parametrize("name", ["hostile", "trouble", "two"])
def test_nothing_is_fetched_and_the_policy_names_the_only_script_and_style(name, request):
    html = request.getfixturevalue(name)
    page = Page(html)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules) == {"default-src", "style-src", "script-src", "base-uri", "form-action"}
    scripts = [data for parent, data in page.texts if parent == "script"]
    styles = [data for parent, data in page.texts if parent == "style"]
    assert [len(scripts), len(styles)] == [2, 1]
    for content, rule in ((scripts[1], "script-src"), (styles[0], "style-src")):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert not {"img", "link", "iframe", "object", "embed", "base", "form", "foreignobject"} & {
        tag for tag, _ in page.elements
    }
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("style", "src", "srcset") for name in attributes), tag
        link = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert link.startswith("#"), link
        assert (attributes.get("clip-path") or "url(#").startswith("url(#")
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]


def test_hostile_text_is_shown_as_text(hostile):
    page = Page(hostile)
    assert "</script><script>alert(1)</script><img src=x onerror=alert(2)>" in page.text()
    assert "{{7*7}}" in page.text()
    assert not set("\x00\x1b\u2028\u2029") & set(hostile)
    assert "\\x1b[31m" in page.text()
    assert data_of(hostile)["runs"][0]["name"].startswith("</script>")


def test_embedded_numbers_are_those_of_the_run_and_undefined_ones_are_null(trouble):
    embedded = data_of(trouble)["runs"][0]
    run = troubled_walk()
    assert "NaN" not in trouble
    assert "Infinity" not in trouble
    assert embedded["steps"] == list(range(45))
    for name in ("loss", "height", "cosine", "alpha_star", "distance"):
        expected = [None if math.isnan(value) else value for value in run.steps[name]]
        assert [value is None for value in embedded["columns"][name]] == [value is None for value in expected]
        for value, wanted in zip(embedded["columns"][name], expected, strict=True):
            assert value is None or value == pytest.approx(wanted, rel=1e-4)
    assert embedded["columns"]["barrier"][3:6] == [1, 0, None]
    assert embedded["reasons"]["cosine"]["7"] == "the gradient before it was zero"
    assert embedded["events"]["31"] == ["measurement_failed: MemoryError while the loss along a segment was measured."]


def test_megabytes_of_text_are_cut_visibly():
    html = render([hostile_walk(text="x" * 1_000_000)])
    assert len(html) < 300_000
    assert "of 1,000,000 characters" in html


@pytest.mark.parametrize("text", ["日本語 ✨", "__proto__", ""])
def test_strange_names_of_everything(text):
    embedded = data_of(render([hostile_walk(text=text)]))
    assert embedded["labels"]["measure-0"] == text.replace("_", " ")
    assert embedded["runs"][0]["columns"]["measure-0"][:2] == [1, 2]


def test_a_name_that_cannot_be_encoded_is_spelled_out(tmp_path):
    """As a path with bytes that are no UTF-8 reaches Python."""
    run = Run(settings("a\udcffb", config={"path": "\ud800"}), records_of_walk(2))
    words = Page(write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")).text()
    assert "a\\udcffb" in words
    assert "\\ud800" in words


def test_what_was_left_out_and_what_happened_is_told(trouble):
    words = Page(trouble).text()
    assert "the loss was not finite (nan) at α = 0.5" in words
    assert "the gradient before it was zero" in words
    assert "bad fit, R²" in words
    assert "The gradient scaler skipped an update: its gradients were not finite." in words
    assert "2 undefined, left out" in words


@pytest.mark.parametrize(
    "run",
    [
        Run(settings("empty"), []),
        Run({"name": "bare"}, records_of_walk(3)),
        quadratic_walk(num_steps=3, watched=lambda step: False),
        quadratic_walk(num_steps=1),
    ],
    ids=["no step", "nothing recorded", "no segment", "one step"],
)
def test_a_run_with_little_in_it_has_a_report(run):
    other = stochastic_descent(3)
    text = Page(render([run, other])).text()
    assert run.name in text
    assert other.name in text


def test_the_same_runs_give_the_same_bytes(two):
    assert two == render([gradient_descent(60), stochastic_descent(60)])


# --- long runs --------------------------------------------------------------------------------------------------------


def test_a_long_report_stays_small_and_says_what_it_shows():
    runs = [gradient_descent(1_000, steps_per_epoch=3), stochastic_descent(1_000, steps_per_epoch=3)]
    html = render(runs)
    assert len(html.encode()) < 3_000_000
    page = Page(html)
    assert page.text().count("200 of 1,000 steps, evenly spaced") == 2
    assert page.text().count("200 of 334 epochs, evenly spaced") == 2
    assert len(data_of(html)["runs"][0]["steps"]) == 1_000


def test_of_ten_thousand_steps_the_watched_ones_are_told():
    run = quadratic_walk(num_steps=10_000, noise=0.3, watched=lambda step: step % 10 == 0, steps_per_epoch=1_000)
    html = render([run])
    assert len(html.encode()) < 3_000_000
    steps = set(data_of(html)["runs"][0]["steps"])
    assert set(range(0, 10_000, 10)) <= steps
    assert set(figures.windows(run)[0]) <= steps
    assert f"Of 10,000 steps {len(steps):,} can be read so" in html
    assert "200 of 1,000 watched steps, evenly spaced" in html


def test_many_events_measures_and_settings_are_counted():
    records = records_of_walk(5, measures=lambda step: {f"measure {index}": 1.0 for index in range(9)})
    notes = [EpochNote(1, 5, {f"value {index}": 1.0 for index in range(9)})]
    events = [Event(index, 0, "kind", f"message {index}") for index in range(500)]
    info = settings("many", config={f"key {index}": index for index in range(500)})
    words = Page(render([Run(info, records, notes, events)])).text()
    assert "the first 100 of 500 events" in words
    assert "6 of 9 measures" in words
    assert "6 of 9 noted values" in words
    assert "400 more are in run.info" in words


# --- light, dark, resources -------------------------------------------------------------------------------------------


def test_every_colour_of_the_figures_has_a_dark_value(two):
    style = resources.files("sgdwalk").joinpath("report.css").read_text()
    dark = style[style.index("prefers-color-scheme: dark") :].split("}")[0]
    assert set(COLOURS) <= set(re.findall(r"--(\w+):", dark))
    rules = two[two.index(".fill-") : two.index("</style>")]
    assert not re.findall(r"#[0-9a-f]{6}", rules), "a colour of a figure is not a variable"


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_render(monkeypatch):
    """What follows is about files, not about their content."""
    monkeypatch.setattr("sgdwalk.report.render", lambda runs, *, title: f"θ of {len(runs)}, {title}")


def test_a_report_is_written_into_a_new_folder_and_replaces_an_old_one(tmp_path, quick_render):
    path = tmp_path / "new folder ü" / "report.html"
    assert write_report([gradient_descent(2)], path) == path
    path.write_text("old")
    write_report([gradient_descent(2)], str(path), title="mine")
    assert path.read_text(encoding="utf-8") == "θ of 1, mine"
    assert os.listdir(path.parent) == ["report.html"]


def test_a_report_needs_a_run(tmp_path):
    with pytest.raises(InputError, match="needs at least one run"):
        write_report([], tmp_path / "report.html")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch, quick_render, function):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    with pytest.raises(SgdwalkError, match=r"report\.html could not be written: No space left on device"):
        write_report([gradient_descent(2)], path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_full_disk_leaves_the_old_report(small_disk, quick_render):
    path = small_disk.path / "report.html"
    path.write_text("old")
    small_disk.fill()
    with pytest.raises(SgdwalkError, match=r"report\.html could not be written: No space left on device"):
        write_report([gradient_descent(2)], path)
    with pytest.raises(SgdwalkError, match=r"heights\.png could not be written: No space left on device"):
        save_figure(figures.heights(gradient_descent(2)), small_disk.path / "heights.png")
    assert path.read_text() == "old"
    assert sorted(os.listdir(small_disk.path)) == ["filling", "report.html"]


def test_a_read_only_place_is_named(small_disk, quick_render):
    small_disk.read_only()
    with pytest.raises(SgdwalkError, match="could not be written: Read-only file system"):
        write_report([gradient_descent(2)], small_disk.path / "folder" / "report.html")
    small_disk.read_only(False)


def test_a_write_cut_short_by_a_limit_leaves_the_old_report(tmp_path):
    """In a process of its own, whose files may not grow beyond 10,000 bytes."""
    path = tmp_path / "report.html"
    path.write_text("old")
    script = (
        "import resource, signal, sys\n"
        "from synthetic import gradient_descent\n"
        "from sgdwalk.report import write_report\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "run = gradient_descent(2)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "write_report([run], sys.argv[1])\n"
    )
    path_of_modules = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path_of_modules, "MPLCONFIGDIR": str(tmp_path / "matplotlib")},
    )
    assert "SgdwalkError" in done.stderr
    assert "report.html could not be written: File too large" in done.stderr
    assert path.read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


# --- figures saved ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("SVG", b"<?xml")])
def test_a_figure_is_saved_with_its_caption_and_the_same_bytes_each_time(tmp_path, suffix, magic):
    first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
    for path in (first, second):
        assert save_figure(figures.three_panels(gradient_descent(5)), path) == path
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(magic)
    assert len(os.listdir(tmp_path)) == 2


def test_the_caption_is_in_the_file(tmp_path):
    picture = figures.three_panels(quadratic_walk(HOSTILE, 5))
    save_figure(picture, tmp_path / "three.svg")
    page = Page((tmp_path / "three.svg").read_text().split("?>", 1)[1])
    assert picture.caption in page.text()
    save_figure(picture, tmp_path / "three.png")
    image = Image.open(tmp_path / "three.png")
    assert image.info["Description"].startswith("Top: the full training loss")
    assert image.size[0] == round(7.6 * 200)
    assert len(np.unique(np.asarray(image.convert("L")))) > 20


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "figure.png.exe"])
def test_another_format_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"does not end in \.png, \.pdf or \.svg"):
        save_figure(figures.heights(gradient_descent(2)), tmp_path / name)
