"""What the README and the pages of docs/ show: commands, Python, yaml, figures.

Every command is taken apart by the tool's own parser, and its config is loaded; it is run here, or
`ELSEWHERE` says why not and which test covers it.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import json
import re
import shlex
import sys
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import yaml

from evonorm import registry
from evonorm.expression import OWN
from evonorm_gan.checkpoint import write_checkpoint
from evonorm_gan.config import finish_config, get_cfg
from evonorm_gan.config import load_config as load_gan_config
from evonorm_gan.models import build_generator
from evonorm_search.anchors import ANCHORS
from evonorm_search.scores import SCORES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Run in a folder that holds runs of a GAN, as the tutorial's first commands leave them.
HERE = (
    *(f"tools/plot_norms.py {c} -o *" for c in ("batch", "evonorm-b", "sample")),
    *(f"tools/sample_gan.py {c} output/gan/S0 *" for c in ("grid", "interpolate", "image")),
    "tools/sample_gan.py truncation output/gan/S0 *",
    "tools/analyze_model.py --config-file *",
    "tools/eval_gan.py --table output/gan/S0 *",
)
# Why a command is not run, and where what it does is.
ELSEWHERE = {
    "make demo": ("15 minutes", "tests/tools/test_demo.py"),
    "make test": ("it is what runs this", ".ci/run"),
    "make setup": ("installs everything", ".ci/run"),
    "git clone *": ("needs a network", ".ci/run"),
    "-m evonorm": ("says what is on this machine", "tests/evonorm/test_doctor.py"),
    "tensorboard *": ("a server", "tests/evonorm_gan/test_trainer.py"),
    "tools/check_data.py *": ("takes the digits", "tests/tools/test_check_data.py"),
    "tools/make_digits.py": ("1400 images", "tests/evonorm_d2/test_digits.py"),
    "tools/make_digits.py *": ("usage", "tests/evonorm_d2/test_digits.py"),
    "tools/train_net.py --config-file configs/detection/garments/*": (
        "takes minutes",
        "tests/evonorm_d2/test_recipes.py",
    ),
    "tools/train_net.py --config-file configs/detection/digits/*": (
        "minutes",
        "tests/tools/test_train_net.py",
    ),
    "tools/train_net.py --config-file configs/detection/one_gpu/*": (
        "a GPU and COCO",
        "tests/evonorm_d2/test_head_recipes.py",
    ),
    "tools/train_net.py --config-file mine.yaml": ("takes data", "tests/tools/test_predict.py"),
    "tools/train_net.py --config-file output/*": ("takes a run", "tests/tools/test_train_net.py"),
    "tools/train_net.py --num-gpus 8 *": ("GPUs and COCO", "tests/evonorm_d2/test_recipes.py"),
    "tools/train_net.py --config-file F *": ("usage", "tests/tools/test_train_net.py"),
    "pip install *": ("downloads packages", "tests/tools/test_wheel.py"),
    "pip wheel *": ("compiles for minutes", "tests/tools/test_wheel.py"),
    "auditwheel repair *": ("is no package of ours", "tests/tools/test_wheel.py"),
    "tools/visualize.py *": ("takes a run", "tests/tools/test_visualize.py"),
    "tools/predict.py *": ("takes a run", "tests/tools/test_predict.py"),
    "tools/export_model.py *": ("takes a run", "tests/tools/test_export_model.py"),
    "tools/analyze_model.py --paper-layout": ("30 seconds", "tests/tools/test_analyze_model.py"),
    "tools/train_gan.py --config-file configs/gan/digits.yaml *": (
        "minutes",
        "tests/tools/test_train_gan.py",
    ),
    "tools/train_gan.py --config-file configs/gan/garments.yaml": (
        "minutes",
        "tests/evonorm_gan/test_gan_config.py",
    ),
    "tools/train_gan.py --config-file photos128.yaml *": (
        "a download",
        "tests/evonorm_gan/test_finetune.py",
    ),
    "tools/train_gan.py --config-file F *": ("usage", "tests/tools/test_train_gan.py"),
    "torchrun --nproc_per_node 8 tools/train_gan.py *": (
        "GPUs and ImageNet",
        "tests/evonorm_gan/test_gan_config.py",
    ),
    "tools/eval_gan.py *": ("trains a classifier first", "tests/tools/test_eval_gan.py"),
    "tools/search_layers.py *": ("an hour", "tests/evonorm_search/test_search.py"),
    "tools/sample_gan.py export *": ("half a minute", "tests/evonorm_gan/test_gan_export.py"),
    "tools/sample_gan.py grid output/gan/EvoNormS0 *": (
        "another run's name",
        "tests/tools/test_sample_gan.py",
    ),
    "tools/sample_gan.py images *": ("thousands of images", "tests/tools/test_sample_gan.py"),
    "tools/sample_gan.py grid biggan128.pth *": ("a download", "tests/tools/test_import_biggan.py"),
    "tools/sample_gan.py grid|*": ("usage", "tests/tools/test_sample_gan.py"),
    "tools/import_biggan.py *": ("a download", "tests/tools/test_import_biggan.py"),
    "tools/pack_images.py *": ("images of one's own", "tests/tools/test_pack_images.py"),
    "tools/benchmark_layers.py *": ("minutes", "tests/tools/test_benchmark_layers.py"),
    "tools/benchmark_search.py *": ("an hour", "tests/tools/test_benchmark_search.py"),
    "tools/benchmark_training.py *": ("minutes", "tests/tools/test_benchmark_training.py"),
    "tools/export_backbone.py *": ("takes a run", "tests/tools/test_export_backbone.py"),
    "tools/train_classifier.py *": ("a minute", "tests/tools/test_train_classifier.py"),
    "tools/reproduce.py *": ("a grid of runs", "tests/tools/test_reproduce.py"),
    "tools/report.py *": ("takes runs", "tests/tools/test_report.py"),
    "tools/plot_norms.py batch|*": ("usage", "tests/tools/test_plot_norms.py"),
    "tools/plot_norms.py small-batch *": ("takes a grid", "tests/tools/test_plot_norms.py"),
    "tools/plot_norms.py widths *": ("takes a grid", "tests/tools/test_plot_norms.py"),
    "tools/plot_norms.py ranks *": ("takes a grid", "tests/tools/test_plot_norms.py"),
    "tools/plot_norms.py search *": ("takes a table", "tests/tools/test_plot_norms.py"),
    "tools/count_kernels.py *": ("usage", "tests/tools/test_count_kernels.py"),
    "tools/check_gpu.py *": ("takes a GPU", "tests/tools/test_check_gpu.py"),
    "tools/plot_benchmark.py *": ("usage", "tests/tools/test_benchmark_layers.py"),
}
# Blocks of Python that are not run, by what is in them.
NOT_RUN = {
    'cfg.merge_from_file("my.yaml")': "names a reader's file; the tutorial has the same, run",
    "G = Generator(128, ch=128, num_classes=1000": "85 M weights; tests/evonorm_gan/test_models.py",
    "import my_norms": "a reader's file",
    "docs/results/search.jsonl.gz": "tests/evonorm_search/test_table.py runs it on a made table",
}
ALIASES = {"--class", "--from", "-n"}  # options that argparse keeps under other names
LAUNCHER = {"--nproc_per_node"}  # torchrun's
# A config that a command names, and that the command before it makes.
MADE = {
    "mine.yaml": "configs/detection/digits/mask_rcnn_digits_EvoNormS0.yaml",
    "photos128.yaml": "configs/gan/imagenet128.yaml",  # as the page has it
    "output/digits_EvoNormS0/config.yaml": (
        "configs/detection/digits/mask_rcnn_digits_EvoNormS0.yaml"
    ),
}


class Block(NamedTuple):
    """A block of code in a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def read_blocks(page):
    """Fenced blocks with the language they name; indented ones with one by their look."""
    name, fenced, language, lines, start = str(page.relative_to(ROOT)), False, "", [], 0
    text = [*page.read_text().splitlines(), ""]
    for i, line in enumerate(text):
        if line.startswith("```"):
            if fenced:
                yield Block(name, start, language, "\n".join(lines) + "\n")
                lines = []
            fenced, language, start = not fenced, line[3:].strip(), i + 2
        elif fenced:
            lines.append(line)
        elif line.startswith("    ") and (lines or not text[i - 1].strip()):
            start = start if lines else i + 1
            lines.append(line[4:])
        elif lines and not line and i + 1 < len(text) and text[i + 1].startswith("    "):
            lines.append("")
        elif lines:
            code = "\n".join(lines) + "\n"
            lines = []
            yield Block(name, start, look(code), code)


def look(code):
    if re.search(r"^(from \S+ )?import ", code, re.M):
        return "python"
    return "yaml" if re.match(r"[A-Z]+:", code) else "sh"


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


class Command(NamedTuple):
    """A command in a page, without what activates or sets variables."""

    place: str
    words: tuple[str, ...]

    def __str__(self):
        return " ".join(self.words)


def read_commands(block):
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        for part in line.split("&&"):
            words = shlex.split(re.sub(r"<[^>]*>", "X", part), comments=True)
            if words[:1] == ["python"]:
                words = words[1:]
            if words and words[0] not in (".", "export", "cd"):
                yield Command(str(block), tuple(words))


COMMANDS = [c for block in BLOCKS if block.language == "sh" for c in read_commands(block)]
TOOLS = [c for c in COMMANDS if any(word.startswith("tools/") for word in c.words)]
each_tool = pytest.mark.parametrize("command", TOOLS, ids=lambda c: f"{c.place} {c}"[:90])


def matches(command, patterns):
    # A [ is a letter in a usage line, not a set of letters.
    return [p for p in patterns if fnmatch.fnmatchcase(str(command), p.replace("[", "[[]"))]


def test_pages_have_commands():
    languages = {block.language for block in BLOCKS}
    assert languages <= {"sh", "python", "yaml", "text"}
    assert len(TOOLS) > 40 and {"README.md", "docs/tutorial-gan.md"} <= {
        c.place.split(":")[0] for c in TOOLS
    }


def test_each_command_is_run_here_or_covered_elsewhere():
    alone = [f"{c.place}: {c}" for c in COMMANDS if not matches(c, (*HERE, *ELSEWHERE))]
    assert not alone, "neither run nor listed:\n" + "\n".join(alone)
    of_none = [p for p in (*HERE, *ELSEWHERE) if not any(matches(c, [p]) for c in COMMANDS)]
    assert not of_none, f"patterns of no command: {of_none}"
    for reason, where in ELSEWHERE.values():
        assert reason and (ROOT / where).is_file(), where


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "make"], ids=str)
def test_targets_exist(command):
    makefile = (ROOT / "Makefile").read_text()
    for target in command.words[1:]:
        assert re.search(rf"^{target}:", makefile, re.M), f"{command.place}: no target {target}"


class Parsed(Exception):
    """Raised in place of what a tool does with its arguments."""


@pytest.fixture
def parse(monkeypatch):
    """parse(command): the arguments as the tool's own parser takes them."""

    def stop(method):
        def parsed(self, *args, **kwargs):
            raise Parsed(method(self, *args, **kwargs))

        return parsed

    def call(command):
        path = next(word for word in command.words if word.startswith("tools/"))
        arguments = command.words[command.words.index(path) + 1 :]
        assert (ROOT / path).is_file(), f"{command.place}: there is no {path}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tool = importlib.import_module(Path(path).stem)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with monkeypatch.context() as patch:
            for name in ("parse_args", "parse_intermixed_args"):
                method = getattr(argparse.ArgumentParser, name)
                patch.setattr(argparse.ArgumentParser, name, stop(method))
            try:
                tool.main()
            except Parsed as parsed:
                return tool, parsed.args[0]
            except SystemExit:
                pytest.fail(f"{command.place}: its parser refuses {command}")
        pytest.fail(f"{path} parsed nothing")

    return call


def is_usage(command):
    return any(word in ("F", "RUN", "FILE", "FOLDER", "NAME") for word in command.words) or (
        re.search(r"[\[|]", str(command)) is not None
    )


@each_tool
def test_arguments_and_configs_are_right(command, parse, monkeypatch):
    if is_usage(command):
        check_usage(command, parse)
        return
    monkeypatch.chdir(ROOT)  # as relative paths are from there
    tool, args = parse(command)
    known = {"-o", *(f"--{key.replace('_', '-')}" for key in vars(args)), *ALIASES}
    # A formula may begin with a minus; the parser takes what holds a space as no option.
    given = {word for word in command.words if re.match("-[a-z-]", word) and " " not in word}
    # Of what the parser takes: it would take the beginning of an option too.
    assert given - LAUNCHER <= known, f"{command.place}: {given - LAUNCHER - known}"
    file = getattr(args, "config_file", None)
    pairs = list(getattr(args, "opts", None) or getattr(args, "overrides", None) or ())
    if tool.__name__ == "eval_gan":  # where what to evaluate comes first
        pairs = args.arguments[len(args.arguments) % 2 :]
    if file:
        file = MADE.get(str(file), str(file))
        assert Path(file).is_file(), f"{command.place}: there is no {file}"
        loader(file)(file, pairs)  # raises for a wrong key or value
    elif pairs:
        finish_config(get_cfg(), pairs)


def loader(file):
    if "/detection/" in file:
        from evonorm_d2.run_config import load_config

        return load_config
    if "/classification/" in file:
        from evonorm_classifier.config import load_config

        return load_config
    if "/search/" in file:
        from evonorm_search.config import load_config

        return load_config
    return load_gan_config


def check_usage(command, parse):
    """Of a line such as `tool.py [--option N] FILE`: the options exist."""
    tool = command.words[0]
    help_texts = [help_of(parse, Command(command.place, (tool,)))]
    for name in command.words[1].split("|") if len(command.words) > 1 else ():
        if name.isalpha() and name.islower():
            help_texts.append(help_of(parse, Command(command.place, (tool, name))))
    for option in re.findall(r"(?<!\S)\[?(--?[a-z][\w-]*)", str(command)):
        assert any(re.search(rf"(?<![\w-]){option}(?![\w-])", text) for text in help_texts), (
            f"{command.place}: {tool} has no {option}"
        )


def help_of(parse, command):
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(pytest.fail.Exception):
        parse(Command(command.place, (*command.words, "--help")))
    assert "usage:" in text.getvalue()
    return text.getvalue()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder to type the tutorial's commands in."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    fid, score = (f"{name}-digits (not comparable with Inception)" for name in ("FID", "IS"))
    for norm in ("S0", "GN"):
        file = str(ROOT / "configs/gan/digits.yaml")
        name = {"S0": "EvoNormS0", "GN": "GN-ReLU"}[norm]
        cfg = load_gan_config(file, ["DEVICE", "cpu", "MODEL.G_CH", "8", "MODEL.NORM", name])
        run = folder / "output/gan" / norm
        run.mkdir(parents=True)
        classes = [str(i) for i in range(10)]
        data = {"step": 1200, "config": cfg.dump(), "classes": classes}
        state = build_generator(cfg).state_dict()
        write_checkpoint(run / "model_0001200.pth", {**data, "ema": state, "generator": state})
        (run / "last_checkpoint").write_text("model_0001200.pth")
        (run / "config.yaml").write_text(cfg.dump())
        (run / "metrics.json").write_text(json.dumps({"step": 1200, fid: 1.5, score: 8.0}) + "\n")
    return folder


@pytest.mark.parametrize(
    "command",
    [c for c in TOOLS if matches(c, HERE) and not is_usage(c)],
    ids=lambda c: f"{c.place} {c}"[:90],
)
def test_commands_run(command, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    tool = importlib.import_module(Path(command.words[0]).stem)
    monkeypatch.setattr(sys, "argv", list(command.words))
    assert tool.main() == 0
    if "-o" in command.words:
        output = Path(command.words[command.words.index("-o") + 1])
        assert output.stat().st_size > 100
        output.unlink()  # another page may make it too


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python(block, monkeypatch):
    code = compile(block.text, str(block), "exec")  # what is not run is Python at least
    if any(mark in block.text for mark in NOT_RUN):
        return
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    registries = (registry._FACTORIES, OWN, ANCHORS, SCORES)
    with contextlib.ExitStack() as stack:
        for known in registries:  # an example may add to them
            stack.enter_context(mock.patch.dict(known))
        exec(code, {"__name__": "example"})


def test_reasons_not_to_run_python_are_of_use():
    texts = [block.text for block in BLOCKS if block.language == "python"]
    assert [mark for mark in NOT_RUN if not any(mark in text for text in texts)] == []


def own_data(block, folder, monkeypatch):
    """A page's config of a reader's own data, on two made images and a file of three classes."""
    from PIL import Image

    from evonorm_d2.check_run import check_run
    from evonorm_d2.run_config import load_config

    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "my_data/images").mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)]
    for image in images:
        Image.new("RGB", (40, 30)).save(folder / "my_data/images" / image["file_name"])
    rle = {"size": [30, 40], "counts": [0, 4, 1196]}
    box = {"bbox": [0, 0, 1, 4], "area": 4, "iscrowd": 0, "segmentation": rle}
    annotations = [{**box, "id": i, "image_id": i, "category_id": i} for i in (1, 2)]
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (folder / f"my_data/{split}.json").write_text(json.dumps(content))
    monkeypatch.chdir(folder)
    Path("mine.yaml").write_text(block.text)
    cfg = load_config("mine.yaml", ["MODEL.DEVICE", "cpu"])
    check_run(cfg, False, False)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3 and cfg.OUTPUT_DIR == "output/mine"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_yaml(block, tmp_path, monkeypatch):
    content = yaml.safe_load(block.text)
    file = tmp_path / "page.yaml"
    if "COCO" in content.get("DATASETS", {}):
        own_data(block, tmp_path, monkeypatch)
    elif {"RESNETS", "RPN"} & content["MODEL"].keys():
        from detectron2.model_zoo import get_config_file

        from evonorm_d2.run_config import load_config

        stock = get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
        file.write_text(f"_BASE_: {stock}\n{block.text}")
        model = load_config(str(file), ["MODEL.DEVICE", "cpu"]).MODEL
        assert model.RPN.HEAD_NAME == "NormActRPNHead" and model.WEIGHTS == ""
    else:
        file.write_text(block.text)
        assert load_gan_config(str(file), ["DEVICE", "cpu"]).DATA.ROOT == content["DATA"]["ROOT"]


def rows(page, first):
    """The rows of the table in a page whose head begins with `first`, cell by cell."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    body = lines[start + 2 : lines.index("", start)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def result(name):
    return json.loads((ROOT / "docs/results" / name).read_text())


def layers():
    found = result("layers_cpu.json")["results"]
    return {(tuple(r["shape"]), r["layer"]): r for r in found if r["pass"] != "forward"}


def test_the_networks_of_the_search_have_these_parameters():
    from evonorm_search.anchors import ANCHORS, build_anchor

    table = rows("search.md", "network | parameters")
    assert {row[0].strip("`") for row in table} == set(ANCHORS) - {"Plain"}  # a block registers it
    for name, count, _ in table:
        model = build_anchor(name.strip("`"), "BN-ReLU", 10)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == count


def test_the_ratios_of_layers_are_those_measured():
    found = layers()
    table = rows("choosing.md", "input (N, C, H, W)")
    assert len(table) > 5
    for shape, _, *cells in table:
        shape = tuple(map(int, shape.split(",")))
        for cell, ours, theirs in zip(cells, ("S0 native", "B0 native"), ("GN", "BN")):
            a, b = (found[shape, name]["median_ms"] for name in (ours, f"{theirs} + ReLU"))
            assert cell == f"{a / b:.2f}", (shape, ours)


def test_the_ratios_with_the_present_kernels_are_those_measured():
    def ratio(file, which, plane, pass_):
        found = {
            r["layer"]: r["median_ms"]
            for r in result(f"layers_cpu_mask_rcnn{file}.json")["results"]
            if r["shape"][2] == plane and r["pass"] == pass_
        }
        native = "GN + ReLU" if which == "S0" else "BN + ReLU"
        return f"{found[f'{which} native'] / found[native]:.2f}"

    page = " ".join((ROOT / "docs/choosing.md").read_text().split())
    both = "forward + backward"
    for sentence in (
        f"S0 takes {ratio('', 'S0', 7, both)} of GroupNorm + ReLU on 512, 256, 7, 7",
        f"B0 takes {ratio('', 'B0', 7, 'forward')} of BatchNorm + ReLU on maps of 7x7",
        f"7x7 and {ratio('', 'B0', 14, 'forward')} on 14x14",
        f"at most {ratio('_bfloat16', 'S0', 7, both)} of GroupNorm + ReLU, and B0's evaluation",
        f"on 7x7 takes {ratio('_bfloat16', 'B0', 7, 'forward')} times",
        f"up to {ratio('_avx2', 'S0', 25, both)} times as long",
    ):
        assert sentence in page


def test_the_memory_of_layers_is_that_measured():
    found = layers()
    large = [shape for shape, _ in found if shape[2] >= 100 and shape[1] <= 128]
    names = ("S0 native", "GN + ReLU", "GN + SiLU", "S0 timm", "B0 timm")
    cells = [row[1] for row in rows("choosing.md", "layer | keeps")]
    assert len(cells) == len(names)
    also = {"S0 native": "B0 native", "GN + ReLU": "BN + ReLU", "GN + SiLU": "BN + SiLU"}
    for cell, name in zip(cells, names):
        for other in (name, also.get(name, name)):
            for shape in large:
                if (shape, other) in found and shape[0] <= 2:
                    values = shape[0] * shape[1] * shape[2] * shape[3]
                    assert cell == f"{found[shape, other]['saved_bytes'] / 4 / values:.0f}"


def test_the_papers_figures_are_the_ones_that_runs_are_compared_with():
    from evonorm_repro.tables import Table2, Table3, Table4, Table5

    def papers(table, model, layer, condition=None):
        return table("paper", model).paper[layer, condition]

    classifiers = ("preact_resnet", "mobilenet_v2")
    for layer, *cells in rows("choosing.md", "ResNet-50, top-1"):
        found = [papers(Table3, classifiers[0], layer, n) for n in Table3.conditions[: len(cells)]]
        assert cells == [figures["accuracy"] for figures in found]
    names = ["preact_resnet", "preact_resnet101", "mobilenet_v2", "mnasnet_b1"]
    names += ["efficientnet_b0", "efficientnet_b5"]
    for layer, *cells in rows("choosing.md", "| ResNet-50 | ResNet-101 | MobileNetV2"):
        assert cells == [papers(Table2, model, layer)["accuracy"] for model in names]
    for layer, *cells in rows("choosing.md", "| R-50-FPN | R-101-FPN"):
        found = [papers(Table4, model, layer) for model in Table4.models]
        assert cells == [f"{figures['bbox/AP']} / {figures['segm/AP']}" for figures in found]
    for layer, *cells in rows("choosing.md", "| IS | FID"):
        found = papers(Table5, "BigGAN-deep", layer)
        assert cells == [found["IS"], found["FID"]]


def beside_the_paper(figures, *names):
    """Figures of a reproduction, as the README sets them beside the paper's."""
    full = {"B0": "EvoNormB0", "S0": "EvoNormS0", "GN": "GN-ReLU", "BN": "BN-ReLU"}
    return ", ".join(f"{name} {figures[full[name]]}" for name in names)


def where_no_activation_follows():
    """EvoNorm-S0 with its affine map and with GroupNorm there: detector, classifier and cost."""
    alone = result("table4_affine.json")
    affine = [f"{row['bbox/AP']['mean']:.1f}" for row in alone["rows"]]
    spread = [f"{row['bbox/AP']['spread']:.1f}" for row in alone["rows"]]
    rows = [r for r in result("table4_small.json")["rows"] if r["layer"] == "EvoNormS0"]
    group = [f"{row['bbox/AP']['mean']:.1f}" for row in rows]
    group_spread = [f"{row['bbox/AP']['spread']:.1f}" for row in rows]
    tests = [c for c in alone["comparisons"] if c["metric"] == "box AP"]
    more = [f"{c['difference']:.1f}" for c in tests]
    ends = [
        f"[{c['interval'][0]:.1f}, {c['interval'][1]:.1f}], p = {c['p_holm']:.2g}" for c in tests
    ]
    yield (
        "choosing.md",
        f"box AP {group[0]} with GroupNorm and {affine[0]} with the affine map after 600 "
        f"iterations of 8 images (+{more[0]} {ends[0]}), {group[1]} and {affine[1]} after 2,400 of "
        f"2 (+{more[1]} {ends[1]})",
    )
    yield (
        "results.md",
        f"here {more[0]} points of box AP at 8 images a batch ({affine[0]} ± {spread[0]} instead "
        f"of {group[0]} ± {group_spread[0]}, {ends[0]})",
    )
    yield (
        "results.md",
        f"{more[1]} ({affine[1]} ± {spread[1]} instead of {group[1]} ± {group_spread[1]}, "
        f"{ends[1]})",
    )
    times = [
        f"{run['ratios']['EvoNormS0 / GN']['median']:.3f}"
        for run in result("training_cpu_linear.json")["runs"]
    ]
    yield "choosing.md", f"{times[0]} of GN's time with it and {times[1]} with the affine map"
    mobile = result("mobilenet_linear.json")
    found = [run["accuracy"] for run in mobile["runs"]]
    one, two = (f"{run['mean']:.1f} ± {run['spread']:.1f}" for run in found)
    yield (
        "results.md",
        f"{one} % on garments with the affine map at its linear bottlenecks and {two}",
    )
    test = mobile["comparison"]
    low, high = test["interval"]
    yield (
        "results.md",
        f"({test['difference']:.1f} [{low:.1f}, {high:.1f}], p = {test['p']:.2f}, three",
    )
    yield (
        "../README.md",
        f"it has {affine[0]} box AP where it has {group[0]} with GroupNorm, and {affine[1]} "
        f"against {group[1]} after four",
    )


def transfer(linear, gan):
    """The rows of the table of found layers in a detector and in a GAN."""
    found, key = result("search_transfer.json"), "{}-digits (not comparable with Inception)"
    detectors = {"GN-ReLU": [r for r in linear["runs"] if r["norm"] == "GN"]}
    detectors["EvoNormS0"] = [
        r for r in linear["runs"] if (r["norm"], r["linear"]) == ("EvoNormS0", "GN")
    ]
    for run in found["detector"]:
        detectors.setdefault(run["norm"], []).append(run)
    generators = gan["norms"] | {run["norm"]: run for run in found["gan"] if run["seed"] == 0}
    for norm, runs in detectors.items():
        assert len({run["seed"] for run in runs}) == 3
        values = ([run[f"{task}/AP"] for run in runs] for task in ("bbox", "segm"))
        cells = [f"{fmean(x):.1f} ± {stdev(x):.1f}" for x in values]
        cells += [f"{generators[norm][key.format(x)]:.2f}" for x in ("FID", "IS", "recall")]
        yield "results/search.md", f"| `{norm}` | {' | '.join(cells)} |"


def speeds():
    """What the search's page says of its speed."""
    sift, step, driver, rate = (
        result(f"search/speed_{part}.json")["results"]
        for part in ("sift", "step", "driver", "rate")
    )
    per_second = [f"{sift[space]['per_second']:.0f}" for space in "SB"]
    yield "search.md", f"{per_second[0]} graphs of the S space sifted a second, {per_second[1]} of"
    ratios = (
        f"{found['median_ratio']:.2f} and {found['ratio_90']:.2f} on {network}"
        for network, found in step.items()
    )
    yield "search.md", ", ".join(ratios)
    costs = {found["candidates"]: found["ms"] for found in driver}
    first, *rest = (f"{costs[count]:.2f}" for count in (1000, 10_000, 100_000))
    yield "search.md", f"{first}, {rest[0]} and {rest[1]} ms for a candidate"
    yield "search.md", f"gives {rate['per_hour']:.0f} candidates an hour on two cores"
    yield "search.md", f"had taken {100 * rate['shared_of_all_seconds']:.0f} % of all seconds"


def sentences():
    """What pages say of results, from the files that they name."""
    demo, gan = result("demo.json"), result("digits_gan.json")
    s0, bn = (
        " / ".join(f"{demo['norms'][norm][f'{task}/AP']:.1f}" for task in ("bbox", "segm"))
        for norm in ("EvoNormS0", "BN")
    )
    yield "choosing.md", f"AP {s0} with S0 and GroupNorm, {bn} with BN, whose"
    yield "../README.md", f"{s0} with S0 and GroupNorm, {bn} with BN."
    linear = result("digits_linear.json")
    values = {
        (norm, task): [r[f"{task}/AP"] for r in linear["runs"] if (r["norm"], r["linear"]) == norm]
        for norm in (("EvoNormS0", "GN"), ("GN", "GN"), ("EvoNormS0", ""))
        for task in ("bbox", "segm")
    }
    (s0, s0_mask, gn, gn_mask, alone, alone_mask) = (f"{fmean(x):.1f}" for x in values.values())
    spreads = [f"{stdev(x):.1f}" for x in values.values() if len(x) == 3]
    yield (
        "choosing.md",
        f"AP {s0} ± {spreads[0]} / {s0_mask} ± {spreads[1]} with S0 and `MODEL.EVONORM.LINEAR GN`, "
        f"{gn} ± {spreads[2]} / {gn_mask} ± {spreads[3]} with GN throughout. The difference of box "
        f"AP has p = {linear['comparison']['bbox/AP']['p']:.3f}, that of mask AP is none (p = "
        f"{linear['comparison']['segm/AP']['p']:.2f}). S0 alone, which is affine only in the FPN "
        f"and at the ends of blocks, has {alone} / {alone_mask} (one seed)",
    )
    yield (
        "tutorial-detectron2.md",
        f"had {s0} / {s0_mask} in the mean, and {gn} / {gn_mask} with GN",
    )
    yield (
        "../README.md",
        f"; S0 {s0}, GN {gn} with GroupNorm where no activation follows, after 900 |",
    )
    yield "../README.md", f"AP {s0} / {s0_mask} with EvoNorm-S0"
    yield "../README.md", f"`), {gn} / {gn_mask} with GN throughout"
    yield "../README.md", f"and has {alone} / {alone_mask} (one seed)"
    yield (
        "migrating.md",
        f"(results/digits_linear.json)) | {gn} | {alone} (one seed); with `LINEAR GN` {s0} | | |",
    )
    runs = result("garments_to_digits.json")["seeds"]
    cases = [(start, task) for task in ("bbox", "segm") for start in ("garments", "scratch")]
    values = [[run[start][f"{task}/AP"] for run in runs] for start, task in cases]
    box, box_alone, mask, mask_alone = (f"{fmean(x):.1f} ± {stdev(x):.1f}" for x in values)
    yield (
        "tutorial-detectron2.md",
        f"box AP is {box} from the garments and {box_alone} from scratch, mask AP {mask} and "
        f"{mask_alone}",
    )
    yield "results.md", f"box AP {box} and {box_alone}, mask AP {mask} and {mask_alone} |"
    key = "{}-digits (not comparable with Inception)"
    fid, score = (
        {norm: f"{row[key.format(name)]:.2f}" for norm, row in gan["norms"].items()}
        for name in ("FID", "IS")
    )
    yield (
        "choosing.md",
        f"FID-digits {fid['BN-ReLU']} with BN-ReLU, {fid['EvoNormS0']} with S0, "
        f"{fid['EvoNormB0']} with B0, {fid['GN-ReLU']} with GN-ReLU",
    )
    yield (
        "tutorial-gan.md",
        f"IS-digits was {score['EvoNormS0']} with EvoNormS0, {score['BN-ReLU']} with BN-ReLU, "
        f"{score['EvoNormB0']} with EvoNormB0 and {score['GN-ReLU']} with GN-ReLU",
    )
    yield from transfer(linear, gan)
    yield from speeds()
    yield (
        "../README.md",
        f"FID-digits {fid['EvoNormS0']} with EvoNormS0, {fid['EvoNormB0']} with EvoNormB0, "
        f"{fid['BN-ReLU']} with BN-ReLU, {fid['GN-ReLU']} with GN-ReLU",
    )
    norms = ("BN-ReLU", "GN-ReLU", "EvoNormS0", "EvoNormB0")
    before = gan["before"]["norms"]
    (recall, now), (old, fids) = (
        [
            [f"{rows[norm][key.format(name)]:.2f}" for norm in norms]
            for rows in (before, gan["norms"])
        ]
        for name in ("recall", "FID")
    )
    yield (
        "results.md",
        f"recall was {recall[0]} with BN, {recall[1]} with GN, {recall[2]} with S0 and "
        f"{recall[3]} with B0, and 0.81 of real scans",
    )
    yield (
        "results.md",
        f"recall is {now[0]}, {now[1]}, {now[2]} and {now[3]}, and FID-digits {fids[0]} with BN, "
        f"{fids[1]} with GN, {fids[2]} with S0 and {fids[3]} with B0 (before: {old[0]}, {old[1]}, "
        f"{old[2]} and {old[3]})",
    )
    real = gan["real validation scans"][key.format("IS")]
    yield "tutorial-gan.md", f"Real digits that were kept aside have {real:.2f}"
    ratios = [
        result(f"training_cpu_{model}.json")["ratios"]
        for model in ("biggan_32", "biggan_64", "mask_rcnn_r50_256", "mask_rcnn_digits")
    ]
    s0, b0, free = (
        [f"{r[pair]['median']:.2f}" for r in ratios]
        for pair in ("EvoNormS0 / GN", "EvoNormB0 / BN", "EvoNormS0 / free")
    )
    yield "choosing.md", f"S0 takes {free[0]}, {free[1]}, {free[2]} and {free[3]} of the time"
    yield (
        "choosing.md",
        f"{s0[0]} of GN's time in BigGAN at 32x32, {s0[1]} at 64x64, {s0[2]} in Mask R-CNN "
        f"R-50-FPN on images of 256x256 and {s0[3]} in a small one",
    )
    yield "choosing.md", f"B0 takes {b0[0]}, {b0[1]}, {b0[2]} and {b0[3]} of BN's"
    yield (
        "../README.md",
        f"EvoNorm-S0 takes {s0[0]} and {s0[1]} of GN-ReLU's time in BigGAN-deep at 32x32 and "
        f"64x64, {s0[2]} in Mask R-CNN R-50-FPN at 256x256, {s0[3]} in Mask R-CNN on the digits; "
        f"B0 takes {b0[0]}, {b0[1]}, {b0[2]} and {b0[3]} of BN-ReLU's",
    )
    found = {}
    for r in result("depthwise_init.json")["runs"]:
        key = r["model"], r["norm"], r["epochs"], r["init"]
        found.setdefault(key, []).append(r["accuracy"])
    found = {key: f"{fmean(x):.1f} ± {stdev(x):.1f}" for key, x in found.items()}
    cases = ("mobilenet_v2", 1), ("mobilenet_v2", 3), ("efficientnet_b0", 1)
    one, three, other = (
        [found[model, "EvoNormS0", epochs, init] for init in ("tensorflow", "torchvision")]
        for model, epochs in cases
    )
    yield (
        "reproduce.md",
        f"MobileNetV2 with EvoNorm-S0 has {one[0]} % with TensorFlow's and {one[1]} % with "
        f"torchvision's after one epoch, {three[0]} and {three[1]} after three; EfficientNet-B0 "
        f"has {other[0]} and {other[1]} after one",
    )
    names = "resnetv2_50d regnetz_c16 regnetz_d8 test_efficientnet".split()
    files = [result(f"timm_{name}_evos.json")["ratios"] for name in names]
    pairs = [f"ours, {part} / timm's, {part}" for part in ("training", "evaluation")]
    trained, evaluated = (
        "{:.2f}, {:.2f}, {:.2f} and {:.2f}".format(*(x[pair]["median"] for x in files))
        for pair in pairs
    )
    yield "weights.md", f"takes {trained} of the time that it takes with timm's layers, an"
    yield "weights.md", f"an evaluation {evaluated} ("
    detector, gan = (
        {
            r["norm"]: f"{r['kept_bytes'] / 2**20:.1f}"
            for r in result(name)["results"]
            if "kept_bytes" in r
        }
        for name in ("memory_mask_rcnn_r50_256.json", "memory_biggan_64.json")
    )
    for row, name in (
        ("2 images of 256x256", "mask_rcnn_r50_256"),
        ("64x64, 16 images", "biggan_64"),
        ("128x128, 2 images", "biggan_128"),
    ):
        peaks = {
            r["norm"]: f"{r['peak_bytes'] / 2**20:.1f}"
            for r in result(f"memory_{name}.json")["results"]
        }
        norms = ("GN", "EvoNormS0", "EvoNormS0 recomputed", "EvoNormS0 checkpointed", "free")
        yield "choosing.md", f"{row} | {' | '.join(peaks[norm] for norm in norms)} |"
        if name == "mask_rcnn_r50_256":
            yield "migrating.md", f"falls from {peaks[norms[1]]} to {peaks[norms[2]]} MiB"
    yield (
        "choosing.md",
        f"keeps {detector['EvoNormS0']} MiB with S0, {detector['EvoNormB0']} with B0, "
        f"{detector['GN']} with GN and {detector['BN']} with BN",
    )
    yield (
        "choosing.md",
        f"{gan['EvoNormS0']} MiB with S0, {gan['EvoNormB0']} with B0, {gan['GN']} with GN-ReLU and "
        f"{gan['BN']} with BN-ReLU",
    )
    yield (
        "../README.md",
        f"keeps {detector['EvoNormS0']} MiB with EvoNorm-S0, {detector['GN']} with GN",
    )
    yield (
        "migrating.md",
        f"{detector['EvoNormS0']} MiB with S0, {detector['GN']} with GN and "
        f"{detector['BN']} with BN",
    )
    s0 = [
        f"{result(f'training_cpu_{model}.json')['ratios']['EvoNormS0 / GN']['median']:.2f}"
        for model in ("mask_rcnn_r50_256", "mask_rcnn_digits")
    ]
    yield (
        "migrating.md",
        f"S0 takes {s0[0]} of the time with GN in R-50-FPN on images of 256x256, and {s0[1]} in a",
    )
    small = {
        r["layer"]: f"{r['bbox/AP']['mean']:.1f}" for r in result("table4_digits.json")["rows"]
    }
    yield "../README.md", f"{beside_the_paper(small, 'B0', 'S0', 'GN', 'BN')}, after 600 iter"
    few, many = (
        {
            r["layer"]: f"{r['bbox/AP']['mean']:.1f}"
            for r in result("table4_small.json")["rows"]
            if r["ims_per_batch"] == images
        }
        for images in (2, 8)
    )
    yield from where_no_activation_follows()
    few, many = (beside_the_paper(figures, "S0", "GN") for figures in (few, many))
    yield "../README.md", f"garments, at 2 images a batch: {few}; at 8: {many}, with GroupNorm"
    gan = result("digits_gan.json")["norms"].items()
    fid = {norm: f"{r['FID-digits (not comparable with Inception)']:.2f}" for norm, r in gan}
    yield "../README.md", f"FID-digits: {beside_the_paper(fid, 'S0', 'B0', 'BN', 'GN')}"
    fid = {r["layer"]: f"{r['FID']['mean']:.2f}" for r in result("table5_small.json")["rows"]}
    yield "../README.md", f"FID-garments: {beside_the_paper(fid, 'S0', 'B0', 'BN', 'GN')}. FID-d"
    yield (
        "choosing.md",
        f"{fid['BN-ReLU']} with BN-ReLU, {fid['GN-ReLU']} with GN-ReLU, {fid['EvoNormS0']} with "
        f"S0, {fid['EvoNormB0']} with B0; no two",
    )
    yield (
        "results.md",
        f"BN has the lowest mean FID, {fid['BN-ReLU']}, then GN with {fid['GN-ReLU']}, S0 with "
        f"{fid['EvoNormS0']} and B0 with {fid['EvoNormB0']}",
    )
    b1 = result("table2_EvoNormB1.json")["rows"][0]["accuracy"]["mean"]
    yield "results.md", f"all five seeds learn, with {b1:.1f} % in the mean"
    rows = result("table3_small.json")["rows"] + result("table2_small.json")["rows"]
    top1 = {(r["layer"], r.get("ims_per_worker")): f"{r['accuracy']['mean']:.1f}" for r in rows}
    few, many, all_of_them = (
        {layer: figure for (layer, images), figure in top1.items() if images == number}
        for number in (2, 128, None)
    )
    few, many = (beside_the_paper(figures, "S0", "BN") for figures in (few, many))
    yield "../README.md", f"at 2 images: {few}; at 128: {many} |"
    yield "../README.md", f"| {beside_the_paper(all_of_them, 'B0', 'BN')} | no; the"
    order = (small[x] for x in ("GN-ReLU", "EvoNormS0", "EvoNormB0", "BN-ReLU"))
    yield "migrating.md", f"(results/table4_digits.json)) | {' | '.join(order)} |"
    s0, bn = (f"{demo['norms'][norm]['bbox/AP']:.1f}" for norm in ("EvoNormS0", "BN"))
    yield "migrating.md", f"(results/demo.json)) | | with `LINEAR GN` {s0} | | {bn} |"
    counts = {
        r["layer"]: r["parameters"] / 1e6 for r in result("table4_complexity.json")["table_4"][:4]
    }
    yield "choosing.md", f"{counts['BN-ReLU']:.4f} M parameters with BN or GN"
    yield "choosing.md", f"{counts['EvoNorm-S0']:.4f} M with B0 or S0"
    gn, s0 = (f"{counts[layer]:.4f} M" for layer in ("GN-ReLU", "EvoNorm-S0"))
    yield "migrating.md", f"{gn} parameters with GN and {s0} with S0"


@pytest.mark.parametrize("page, sentence", list(sentences()))
def test_figures_in_sentences_are_those_measured(page, sentence):
    assert sentence in " ".join((ROOT / "docs" / page).read_text().split())
