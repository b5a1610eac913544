"""The built site: all pages, whole links, nothing from elsewhere."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from evonorm import list_norm_acts

ROOT = Path(__file__).parents[2]
PACKAGES = ("evonorm", "evonorm_d2", "evonorm_gan", "evonorm_repro")
# What a page loads by itself; a link is for a reader to follow.
LOADS = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built from nothing but what it is made of."""
    pytest.importorskip("zensical", reason="Zensical takes Python 3.11")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, said
    return folder / "site"


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.anchors = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        self.loads += [values[key] for key in LOADS.get(tag, ()) if values.get(key)]
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def files_of(node):
    if isinstance(node, str):
        return [node]
    return [f for x in (node.values() if isinstance(node, dict) else node) for f in files_of(x)]


def test_every_page_is_made_and_in_the_navigation(site):
    named = files_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    written = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert set(named) == written and len(named) == len(set(named))
    for name in named:
        assert (site / name).with_suffix(".html").stat().st_size > 1000, name


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        away = [url for url in page.loads if urlsplit(url).netloc or url.startswith("http")]
        assert not away, f"{path}: {away}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", path.read_text()), path
    for path in site.rglob("*.svg"):
        assert not re.search(r"href=\"(?!#)", path.read_text()), path


def test_links_lead_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the root of a server
            continue
        for url in page.loads + page.links:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            whole = target.is_file() and target.is_relative_to(site)
            if whole and parts.fragment and target.suffix == ".html":
                whole = unquote(parts.fragment) in pages[target].anchors
            if not whole:
                broken.append(f"{path.relative_to(site)}: {url}")
    assert not broken, "\n".join(sorted(set(broken)))


def text_of(path):
    article = re.search(r"<article.*?</article>", path.read_text(), re.S)[0]
    return html.unescape(re.sub(r"<[^>]+>", "", article))


def test_the_readmes_table_of_norms_is_included(site):
    text = text_of(site / "norms.html")
    # In README.md it lies between <!-- --8<-- [start:norms] --> and <!-- --8<-- [end:norms] -->.
    names = [name for name in list_norm_acts() if "/" not in name]
    assert not [name for name in names if name not in text]
    assert "x·σ(v·x) / std_g · γ + β" in text


def test_the_api_is_what_the_docstrings_say(site):
    text = text_of(site / "api" / "evonorm.html")
    assert "build_norm_act" in text and "Build normalization and activation as one layer." in text
    assert (
        "Parameters:" in text
        and "Raises:" in text
        and "unknown name, broken formula, impossible value" in text
    )
    assert '"EvoNormS0": "x * sigmoid(v1 * x) / std_g(x)"' in text  # the table of formulas


def test_roles_in_docstrings_are_links(site):
    for path in (site / "api").glob("*.html"):
        assert not re.search(r":(class|func|meth|mod):", text_of(path)), path
    page = (site / "api" / "evonorm_d2.html").read_text()
    assert re.search(r'href="evonorm.html#evonorm.build_norm_act"[^>]*><code>evonorm\.', page)
