"""Runs written by the trainers' own writers, and a page read by the standard library's parser."""

from __future__ import annotations

import json
from functools import partial
from html.parser import HTMLParser
from importlib import import_module
from xml.etree import ElementTree

import pytest
import torch

from evonorm_repro.report import write_report

VOID = {"meta", "input", "img", "link", "br", "hr"}


class Page(HTMLParser):
    """A page as a tree, and what a test asks of it."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.text, self.builder = text, ElementTree.TreeBuilder()
        self.feed(text)
        self.root = self.builder.close()
        self.said = " ".join(words(self.root.find(f"body/{part}")) for part in ("header", "main"))

    def handle_starttag(self, tag, attrs):
        self.builder.start(tag, {key: value or "" for key, value in attrs})
        if tag in VOID:
            self.builder.end(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.builder.end(tag)

    def handle_endtag(self, tag):
        self.builder.end(tag)

    def handle_data(self, data):
        self.builder.data(data)

    def by_id(self, name):
        (found,) = self.root.findall(f".//*[@id='{name}']")
        return found

    def table(self, label):
        """The rows of the table in the box of this label, as lists of text; the head first."""
        (box,) = (x for x in self.root.iter("div") if x.get("aria-label") == label)
        return [[words(cell) for cell in row] for row in box.iter("tr")]

    def charts(self):
        """Plotly's figures by their titles."""
        figures = json.loads(self.by_id("figures").text)
        return {words(self.by_id(f"{key}-title")): figure for key, figure in figures.items()}

    def folded(self, summary):
        """The keys and values in the fold whose summary ends with this."""
        for fold in self.root.iter("details"):
            if words(fold.find("summary")).endswith(summary):
                return {words(pair[0]): words(pair[1]) for pair in fold.findall(".//dl/div")}
        raise LookupError(summary)


def words(element):
    return " ".join("".join(element.itertext()).split())


@pytest.fixture
def report(tmp_path, monkeypatch):
    """report(*folders): the page over them, without Plotly's megabytes unless asked for."""

    def make(*folders, whole=False):
        if not whole:
            monkeypatch.setattr("evonorm_repro.report.page.get_plotlyjs", lambda: "var Plotly;")
        out = tmp_path / "report.html"
        write_report(folders, out)
        return Page(out.read_text())

    return make


@pytest.fixture(scope="session")
def write_run():
    """write_run(folder, lines, *KEY VALUE, kind=None, files=None): the folder of a run.

    `lines` are (step, values). With a kind, config.yaml holds its config for the digits with these
    settings, and its trainer's own writer writes metrics.json. Without one there is no config.
    `files` are further files: their text by name.
    """

    def make(folder, lines=(), *overrides, kind=None, files=None):
        folder.mkdir(parents=True)
        if kind:
            write_config(kind, folder, overrides)
        LOGS[kind](folder, lines)
        for name, text in (files or {}).items():
            (folder / name).write_text(text)
        return folder

    return make


@pytest.fixture(scope="session")
def gan_run(write_run):
    return partial(write_run, kind="gan")


@pytest.fixture(scope="session")
def classifier_run(write_run):
    return partial(write_run, kind="classifier")


@pytest.fixture(scope="session")
def detection_run(write_run):
    return partial(write_run, kind="detection")


CONFIGS = {  # by kind: the module that loads it, its file, the setting of the device
    "gan": ("evonorm_gan.config", "configs/gan/digits.yaml", "DEVICE"),
    "classifier": ("evonorm_classifier.config", "configs/classification/digits.yaml", "DEVICE"),
    "detection": (
        "evonorm_d2.run_config",
        "configs/detection/digits/mask_rcnn_digits_GN.yaml",
        "MODEL.DEVICE",
    ),
}


def write_config(kind, folder, overrides):
    module, file, device = CONFIGS[kind]
    if kind == "detection":
        from evonorm_d2.data import register_digits

        register_digits()
    values = [device, "cpu", "OUTPUT_DIR", folder, *overrides]
    cfg = import_module(module).load_config(file, [str(x) for x in values])
    (folder / "config.yaml").write_text(cfg.dump())


def log_plainly(folder, lines):
    text = "".join(json.dumps({"step": step, **values}) + "\n" for step, values in lines)
    (folder / "metrics.json").write_text(text)


def log_ours(folder, lines):
    """What the trainers of GANs and of classifiers log."""
    from evonorm_runs.log import Log

    writer = Log(folder, 0)
    for step, values in lines:
        writer.write(step, values)
    writer.close()


def log_detection(folder, lines):
    """What Detectron2's trainer logs, its environment included."""
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.events import EventStorage, JSONWriter
    from detectron2.utils.logger import setup_logger

    writer = JSONWriter(str(folder / "metrics.json"))
    with EventStorage() as storage:
        for iteration, values in lines:
            storage.iter = iteration
            storage.put_scalars(**values, smoothing_hint=False)
            writer.write()
    writer.close()
    logger = setup_logger(str(folder), name=f"d2.{folder.name}")
    logger.info("Environment info:\n" + collect_env_info())
    logger.info("eta: 0:01  max_mem: 1234M")
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)


LOGS = {
    "gan": log_ours,
    "classifier": log_ours,
    "detection": log_detection,
    None: log_plainly,
}


@pytest.fixture(scope="session")
def metrics():
    """metrics(FID, IS): an evaluation's results under the keys of the digits' extractor."""
    from evonorm_gan.evaluation.metrics import metric_key

    def make(fid, score, **others):
        values = {"FID": fid, "IS": score, "IS_std": 0.1, **others}
        return {metric_key(name, "digits"): value for name, value in values.items()}

    return make


@pytest.fixture(scope="session")
def noise():
    """noise(seed, size): an image (3, size, size) uint8 that hardly compresses."""

    def make(seed, size):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(256, (3, size, size), dtype=torch.uint8, generator=generator)

    return make


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Configs are found from the repository's root, as the tools are."""
    from evonorm_runs.grid import ROOT

    monkeypatch.chdir(ROOT)
