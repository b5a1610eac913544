"""The page itself: nothing from outside, nothing executed, pictures of a bearable size."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evonorm_repro.report as package
from evonorm_gan.sampling import write_png
from evonorm_repro.report.figures import COLOURS, plain, style

CSS = Path(package.__file__).with_name("style.css").read_text()
# Each would do something, were it not escaped: in HTML, an attribute, a script, or Plotly's text.
HOSTILE = [
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "<!--<script>",
    '"><img src=x onerror=window.pwned=1>',
    "'><svg onload=window.pwned=1>",
    "<b>bold</b> <a href='https://example.org'>x</a> &lt;i&gt;",
    "{{ 7 * 7 }} {% raw %}",
    "\u2028\u2029\u202e$x^2$ %{y} \\u003c",
    "javascript:window.pwned=1",
]


def pictures(page):
    """The pictures in a page by their alternative texts, and whether they show at first."""
    found = {}
    for image in page.root.iter("img"):
        kind, data = re.fullmatch(r"data:image/(\w+);base64,(.+)", image.get("src")).groups()
        decoded = Image.open(io.BytesIO(base64.b64decode(data)))
        assert decoded.format.lower() == kind
        found[image.get("alt")] = (decoded, "hidden" not in image.attrib)
    return found


@pytest.fixture
def everything(tmp_path, gan_run, detection_run, classifier_run, metrics, noise):
    """A folder with a run of each kind in it, and all that they can bring along."""
    gan = gan_run(tmp_path / "all/gan", [(s, metrics(9.0, 2.0)) for s in (1, 2)])
    detector = detection_run(tmp_path / "all/det", [(1, {"bbox/AP": 1.0, "bbox/AP-3": 1.0})])
    files = {"confusion.json": '{"classes": ["0", "1"], "counts": [[0, 1, 2]]}'}
    lines = [(s, {"accuracy": 9.0, "loss": s}) for s in (1, 2)]
    classifier_run(tmp_path / "all/cls", lines, files=files)
    write_png(gan / "samples/0000001.png", noise(0, 64))
    write_png(detector / "predictions.png", noise(1, 64))
    table = {"title": "T", "columns": ["a"], "rows": [["1"]], "notes": []}
    (tmp_path / "all/table.json").write_text(json.dumps(table))
    return tmp_path / "all"


def test_nothing_comes_from_outside(everything, report):
    page = report(everything, whole=True)
    for element in page.root.iter():
        for name, value in element.attrib.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:image/", "#")), (element.tag, name, value[:80])
    styles = "".join(style.text for style in page.root.iter("style"))
    assert "url(" not in styles and "@import" not in styles
    assert not list(page.root.iter("link")) and not list(page.root.iter("iframe"))


def test_links_lead_to_sections_and_labels_to_controls(everything, report):
    page = report(everything)
    ids = [element.get("id") for element in page.root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for name in ("href", "for", "aria-labelledby", "aria-describedby"):
        found = [e.get(name).lstrip("#") for e in page.root.iter() if e.get(name)]
        assert found and set(found) <= set(ids), name
    for image in page.root.iter("img"):
        assert image.get("alt") and int(image.get("width")) and int(image.get("height"))
    levels = [int(e.tag[1]) for e in page.root.iter() if re.fullmatch(r"h\d", e.tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))


def test_plotly_is_there_once_and_only_our_scripts_may_run(everything, report):
    page = report(everything, whole=True)
    scripts = [s.text for s in page.root.iter("script") if s.get("type") is None]
    assert len(scripts) == 2 and "plotly.js v" in scripts[0] and "plotly.js v" not in scripts[1]
    (policy,) = (m.get("content") for m in page.root.iter("meta") if m.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert rules["script-src"] == " ".join(f"'sha256-{h}'" for h in hashes)
    assert rules["default-src"] == "'none'"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(tmp_path, report, detection_run, noise, text):
    name = text.replace("/", "∕")  # a file's name can have anything else in it
    folder = tmp_path / "all" / name
    lines = [(s, {f"bbox/AP-{text}": 5.0, f"{text}/bbox/AP": 5.0 + s}) for s in (1, 2)]
    files = {
        "config.yaml": json.dumps({"MODEL": {text: text, "META_ARCHITECTURE": text}}),
        "failed.txt": text,
        "log.txt": f"Environment info:\n--  --\nkey  {text}\n--  --\n",
    }
    detection_run(folder, lines, files=files)
    write_png(folder / f"{name}.png", noise(0, 16))
    table = {"title": text, "columns": [text], "rows": [[text]], "notes": [text]}
    (tmp_path / "all/table.json").write_text(json.dumps(table))
    page = report(tmp_path / "all")

    allowed = {"script": 3, "svg": len(page.root.findall(".//span[@class='run']")), "b": 0, "i": 0}
    for tag, count in allowed.items():
        assert len(list(page.root.iter(tag))) == count, tag
    for element in page.root.iter():
        assert not [key for key in element.attrib if key.startswith("on")]
        assert not element.get("href", "").startswith(("http", "javascript"))

    shown = " ".join(text.split())
    assert page.table("Runs")[1][0] == " ".join(name.split())
    assert page.table("Runs")[1][4].endswith(
        f"failed at iteration 2: {text.strip().splitlines()[0]}"
    )
    assert page.table(text) == [[shown], [shown]]
    assert page.folded("settings of the run")[" ".join(f"MODEL.{text}".split())] == shown
    if "\u2028" not in text:  # which ends a line of a log, for Python
        assert page.folded("entries alike in 1 run") == {"key": shown}
    assert page.table("box AP by class")[1][0] == shown
    assert f"{name}.png of {name}" in [i.get("alt") for i in page.root.iter("img")]

    for figure in json.loads(page.by_id("figures").text).values():
        drawn = [trace["name"] for trace in figure["data"]]
        drawn += [y for trace in figure["data"] for y in trace["y"] if isinstance(y, str)]
        drawn += [figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
        for label in drawn:
            assert not re.search(r"<(?!br>)", label) and ">" not in label.replace("<br>", "")


@pytest.mark.parametrize("text", HOSTILE)
def test_what_plotly_is_given_means_the_text(text):
    escaped = plain(text, longest=200)
    assert "<" not in escaped and html.unescape(escaped) == " ".join(text.split())
    assert len(html.unescape(plain("<" * 99, longest=40))) == 40


def test_names_that_are_no_unicode(tmp_path, report, write_run):
    import os

    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    write_run(folder, [(1, {"loss_d": 1, "FID-\ud800": 3})])
    assert report(folder).table("Runs")[1][0] == "??"


def test_pictures_are_scaled_and_say_so(tmp_path, report, gan_run, noise):
    run = gan_run(tmp_path / "a", [])
    write_png(run / "grid.png", noise(0, 1500))
    small = np.full((40, 60, 3), (200, 30, 90), np.uint8)
    Image.fromarray(small).save(run / "small.png")
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).resize((1300, 1300)).save(run / "clear.png")
    (run / "broken.png").write_bytes((run / "grid.png").read_bytes()[:5000])
    page = report(run)
    shown = pictures(page)
    assert shown["grid.png of a"][0].size == (1200, 1200)
    assert "grid.png: scaled from 1500×1500 to 1200×1200 pixels" in page.said
    kept = shown["small.png of a"][0]
    assert kept.format == "PNG" and (np.asarray(kept.convert("RGB")) == small).all()
    assert np.asarray(shown["clear.png of a"][0].convert("RGB")).min() > 250  # white, not black
    assert "broken.png: can't be read" in page.said and "broken.png of a" not in shown


def test_a_picture_of_too_many_pixels_is_not_opened(tmp_path, report, gan_run):
    run = gan_run(tmp_path / "a", [])
    Image.new("1", (10_000, 10_000)).save(run / "bomb.png")
    assert "bomb.png: not shown: 10000×10000 pixels" in report(run).said


def test_grids_of_samples_over_time(tmp_path, report, gan_run, noise):
    a, b = (gan_run(tmp_path / name, []) for name in "ab")
    for step in range(100, 3100, 100):
        write_png(a / f"samples/{step:07d}.png", noise(step, 32))
    for step in (50, 300):
        write_png(b / f"samples/{step:07d}.png", noise(step, 32))
    (b / "samples/notes.png").touch()
    page = report(a, b)
    (slider,) = (e for e in page.root.iter("div") if e.get("class") == "slider")
    steps = [int(step) for step in slider.get("data-steps").split()]
    assert steps == sorted(steps) and (steps[0], steps[-1]) == (50, 3000)
    (control,) = slider.iter("input")
    assert (control.get("type"), control.get("max")) == ("range", str(len(steps) - 1))
    assert control.get("aria-valuetext") == "step 3000"
    grids = {alt: at for alt, at in pictures(page).items() if alt.startswith("Samples")}
    assert len(grids) == 12 + 2 and "12 of the run's 30 grids" in page.said
    assert {alt for alt, (_, visible) in grids.items() if visible} == {
        *("Samples of a after step 3000", "Samples of b after step 300")
    }
    first = Image.open(a / "samples/0000100.png")
    assert (np.asarray(grids["Samples of a after step 100"][0]) == np.asarray(first)).all()


def test_a_report_of_three_runs_stays_small(tmp_path, report, write_run, noise):
    write_png(tmp_path / "noise.png", noise(0, 600))  # compresses worse than any real picture
    for name in "abc":
        curve = ((s, {"loss_d": s / 7, "loss_g": s / 3, "lr_g": 1e-4}) for s in range(9999))
        run = write_run(tmp_path / "all" / name, curve)
        (run / "samples").mkdir()
        for target in (*(f"samples/{step:07d}.png" for step in range(19)), "a.png", "b.png"):
            shutil.copy(tmp_path / "noise.png", run / target)
    page = report(tmp_path / "all", whole=True)
    assert len(page.text.encode()) < 10e6
    assert "not shown, to keep this page small" in page.said


def test_many_runs_wait_for_their_tick_but_no_failure_does(tmp_path, report, write_run):
    for i in range(30):
        config = f"MODEL: {{WIDTH: {i // 3}, NORM: GN}}\nSEED: {i % 3}\n"
        lines = [(s, {"loss": 1}) for s in range(9)]
        folder = write_run(tmp_path / f"all/{i:02d}", lines, files={"config.yaml": config})
    (folder / "failed.txt").write_text("nan")
    page = report(tmp_path / "all")
    boxes = [e for e in page.root.iter("input") if e.get("type") == "checkbox"]
    ticked = [int(e.get("value")) for e in boxes if "checked" in e.attrib]
    assert len(boxes) == 30 and ticked == [*range(0, 30, 3), 29]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """WCAG 2.2's contrast ratio."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_told_from_the_background_in_both_themes():
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in CSS.split("@media", 2)[:2]
    )
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        runs = [colour for name, colour in theme.items() if name.startswith("run-")]
        assert len(runs) == len(set(runs)) == COLOURS
        assert min(contrast(colour, theme["back"]) for colour in runs) >= 3
        for name in ("text", "soft", "accent", "good", "bad"):
            assert contrast(theme[name], theme["back"]) >= 4.5, name
            assert contrast(theme[name], theme["raised"]) >= 4.5, name
        assert contrast(theme["text"], theme["highlight"]) >= 4.5


def test_runs_differ_in_more_than_colour():
    assert len({style(i) for i in range(64)}) == 64
    for i in range(24):  # no neighbours in the legend share a dash or a symbol
        assert style(i)[1] != style(i + 1)[1] and style(i)[2] != style(i + 1)[2]
