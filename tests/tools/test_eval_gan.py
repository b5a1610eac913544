"""tools/eval_gan.py on checkpoints, images and runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import eval_gan as tool
import numpy as np
import pytest
import sample_gan
import torch
from PIL import Image

from evonorm_gan.checkpoint import save_generator_only
from evonorm_gan.config import load_config
from evonorm_gan.evaluation import embedded_extractor
from evonorm_gan.evaluation.metrics import METRICS, metric_key
from evonorm_gan.models import build_generator
from evonorm_gan.sampling import TRUNCATE_BY
from evonorm_runs.images.sets import MemorySet

CONFIG = Path(__file__).parents[2] / "configs" / "gan" / "digits.yaml"
KEYS = [metric_key(name, "digits") for name in METRICS]


@pytest.fixture
def overrides(tmp_path, monkeypatch):
    """Config keys for an evaluation of a second, with 40 images of noise for the digits."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8)
    noise = MemorySet(images, torch.arange(40) % 10, [str(i) for i in range(10)])
    monkeypatch.setattr(embedded_extractor, "STEPS", {"digits": 2})
    for module in (embedded_extractor, tool):
        monkeypatch.setattr(module, "open_dataset", lambda cfg, split="train": noise)
    keys = {"MODEL.DIM_Z": 8, "MODEL.G_CH": 8, "TEST.NUM_SAMPLES": 12, "TEST.BATCH_SIZE": 8}
    keys |= {"TEST.CACHE_DIR": tmp_path / "cache", "DEVICE": "cpu", "DATA.NUM_WORKERS": 0}
    return [str(x) for pair in keys.items() for x in pair]


@pytest.fixture
def checkpoint(tmp_path, overrides):
    cfg = load_config(str(CONFIG), overrides)
    path = tmp_path / "G.pth"
    save_generator_only(path, build_generator(cfg), cfg, [str(i) for i in range(10)])
    return path


def results(answer):
    status, out, err = answer
    assert status == 0, err
    (line,) = out.splitlines()
    return json.loads(line)


def images(num=12, size=32):
    generator = np.random.default_rng(1)
    return generator.integers(256, size=(num, size, size, 3), dtype=np.uint8)


def test_a_checkpoint(checkpoint, call, tmp_path):
    answer = call(checkpoint, "--json", tmp_path / "a.json", "DEVICE", "cpu")
    found = results(answer)
    assert [key for key in found if "digits (" in key] == KEYS
    assert found["samples"] == 12 and found["step"] == 0 and found["truncation"] is None
    assert json.loads((tmp_path / "a.json").read_text()) == found
    assert found["weights sha256"] in answer[2]  # the checksum is shown
    assert results(call(checkpoint, "DEVICE", "cpu")) == found

    truncated = results(call(checkpoint, "--truncation", 0.4, "--num-samples", 15, "DEVICE", "cpu"))
    assert (truncated["truncation"], truncated["samples"]) == (0.4, 15)
    other = results(call(checkpoint, "--seed", 1, "DEVICE", "cpu"))
    assert KEYS[0] in other and other[KEYS[0]] != found[KEYS[0]] != truncated[KEYS[0]]


def test_the_checkpoint_says_how_z_is_truncated(overrides, call, tmp_path):
    found = {}
    for by in TRUNCATE_BY:
        cfg = load_config(str(CONFIG), [*overrides, "TEST.TRUNCATE_BY", by])
        torch.manual_seed(0)
        path = tmp_path / f"{by}.pth"
        save_generator_only(path, build_generator(cfg), cfg, [str(i) for i in range(10)])
        found[by] = [
            results(call(path, "--truncation", 0.5, *more))
            for more in ((), ("--config-file", CONFIG, *overrides), ("--truncate-by", "scale"))
        ]
    assert [x["truncate_by"] for x in found["resample"]] == ["resample", "resample", "scale"]
    assert [x["truncate_by"] for x in found["scale"]] == ["scale"] * 3
    scores = {by: [x[KEYS[0]] for x in results] for by, results in found.items()}
    narrow, wide = scores["resample"][0], scores["scale"][0]
    assert scores == {"resample": [narrow, narrow, wide], "scale": [wide] * 3} and narrow != wide


def test_a_folder_and_an_npz_of_the_same_images(call, overrides, tmp_path):
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for i, image in enumerate(images()):
        name = f"deeper/{i:02d}.png" if i < 6 else f"x{i:02d}.png"
        Image.fromarray(image).save(folder / name)
    np.savez(tmp_path / "a.npz", images())
    np.savez(tmp_path / "b.npz", labels=np.arange(12), images=images())
    found = [
        results(call("--config-file", CONFIG, tmp_path / name, *overrides))
        for name in ("images", "a.npz", "b.npz")
    ]
    assert all(f[key] == pytest.approx(found[0][key], rel=1e-4) for f in found for key in KEYS)


def test_drawn_images_give_the_checkpoints_own_figures(overrides, call, tmp_path):
    """Of a norm with statistics of the batch, at a truncation and a seed."""
    settings = [*overrides, "MODEL.NORM", "BN-ReLU", "TEST.TRUNCATION", "0.7"]
    cfg = load_config(str(CONFIG), [*settings, "TEST.STANDING_BATCHES", "2"])
    path = tmp_path / "G.pth"
    save_generator_only(path, build_generator(cfg), cfg, [str(i) for i in range(10)])
    own = results(call(path, "--seed", 3, "DEVICE", "cpu"))
    for name in ("drawn", "drawn.zip", "drawn.npz"):
        drawn = ("images", path, "-o", tmp_path / name, "--seed", 3, "--device", "cpu")
        assert call(*drawn, tool=sample_gan)[0] == 0
        found = results(call("--config-file", CONFIG, tmp_path / name, *overrides))
        assert {key: found[key] for key in KEYS} == {key: own[key] for key in KEYS}


def test_real_validation_images(call, overrides):
    found = results(call("--config-file", CONFIG, "--real-val", *overrides))
    assert found["images"] == "real images, split val"
    assert abs(found[KEYS[2]]) < 1e-6  # FID: the same noise as the real images'


def test_a_file_of_statistics_takes_the_place_of_the_data_set(checkpoint, call, tmp_path):
    np.savez(tmp_path / "ttur.npz", mu=np.zeros(128), sigma=np.eye(128))
    there = ("--reference", tmp_path / "ttur.npz", "DATA.NAME", "", "DATA.ROOT", "absent")
    found = results(call(checkpoint, *there, "DEVICE", "cpu"))
    assert [key for key in found if "digits (" in key] == KEYS[:3]
    assert found["reference"] == str(tmp_path / "ttur.npz")


def test_a_truncation_curve(checkpoint, call, tmp_path):
    picture = tmp_path / "curve.png"
    found = results(
        call(checkpoint, "--truncation-curve", "0.3,none", "-o", picture, "DEVICE", "cpu")
    )
    written = json.loads((tmp_path / "curve.json").read_text())
    assert written == found and [row["truncation"] for row in found["curve"]] == [0.3, None]
    assert found["curve"][1][KEYS[2]] == results(call(checkpoint, "DEVICE", "cpu"))[KEYS[2]]
    assert len(np.unique(np.asarray(Image.open(picture)))) > 10
    status, _, err = call(checkpoint, "--truncation-curve", "1", "-o", picture, "DEVICE", "cpu")
    assert status == 2 and "curve.png exists" in err


def test_a_table(call, overrides, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(load_config(str(CONFIG), overrides).dump())
    (run / "metrics.json").write_text(json.dumps({"step": 1, KEYS[0]: 5.5, KEYS[2]: 2.25}) + "\n")
    status, out, _ = call("--table", run, "--json", tmp_path / "t.json")
    assert status == 0 and "5.50" in out and "2.25" in out and "not comparable" in out
    assert json.loads((tmp_path / "t.json").read_text())[0][KEYS[0]]["best"] == 5.5


def damaged_png(folder):
    (folder / "a.png").write_bytes(b"no image")
    return folder, "a.png: not an image"


def other_size(folder):
    Image.fromarray(images(1, 16)[0]).save(folder / "b.png")
    return folder, "16x16 pixels, but the real images have 32x32"


def empty(folder):
    return folder, "no image"


def missing(folder):
    return folder / "x.npz", "there is no such file"


def junk_zip(folder):
    (folder / "x.zip").write_bytes(b"junk")
    return folder / "x.zip", "x.zip: File is not a zip file"


def other_size_zip(folder):
    Image.fromarray(images(1, 16)[0]).save(folder / "b.png")
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.write(folder / "b.png", "deep/b.png")
    return folder / "x.zip", "x.zip/deep/b.png: 16x16 pixels"


def npz(reason, **arrays):
    def make(folder):
        np.savez(folder / "x.npz", **arrays)
        return folder / "x.npz", reason

    return make


def junk_npz(folder):
    (folder / "x.npz").write_bytes(b"junk")
    return folder / "x.npz", "not an .npz, or damaged"


@pytest.mark.parametrize(
    "make",
    [
        *(damaged_png, other_size, empty, missing, junk_npz, junk_zip, other_size_zip),
        npz("no array arr_0 or images", pictures=images()),
        npz("float32 (12, 32, 32, 3), but should be uint8", images=images().astype(np.float32)),
        npz("(12, 3, 32, 32), but should be uint8", images=images().transpose(0, 3, 1, 2)),
        npz("16x16 pixels", images=images(12, 16)),
        npz("damaged", images=np.array([{}], dtype=object)),
        npz("9 are too few", images=images(9)),
    ],
)
def test_images_that_are_none(call, overrides, tmp_path, make):
    folder = tmp_path / "images"
    folder.mkdir()
    path, reason = make(folder)
    status, out, err = call("--config-file", CONFIG, path, *overrides)
    assert status == 2 and not out
    last = err.splitlines()[-1]
    assert last.startswith("eval_gan.py: ") and reason in last


def test_bad_arguments(call, checkpoint, overrides, tmp_path):
    np.savez(tmp_path / "a.npz", images())
    (tmp_path / "there.json").write_text("kept")
    cases = [
        (["--real-val"], "--config-file is missing"),
        ([tmp_path / "a.npz"], "--config-file is missing"),
        ([tmp_path / "none.pth"], "no such checkpoint"),
        ([checkpoint, "TEST.NUM_SAMPLE", 3], "TEST.NUM_SAMPLE"),
        ([checkpoint, "MODEL.RESOLUTION", 64], "MODEL.RESOLUTION is 32, not 64"),
        ([checkpoint, "MODEL.NORM", "BN-ReLU"], "MODEL.NORM is EvoNormS0, not BN-ReLU"),
        ([checkpoint, "--json", tmp_path / "there.json"], "there.json exists"),
        (["--config-file", CONFIG, tmp_path / "a.npz", "--no-ema"], "--no-ema is for generators"),
        ([checkpoint, "--no-ema"], "EMA"),
        (["--table", tmp_path], "no config.yaml"),
        ([], "give one of"),
        ([checkpoint, "--table", tmp_path], "--table goes with"),
        ([checkpoint, "--truncation-curve", "0.5", "-o", tmp_path / "c.xyz"], "c.xyz: name"),
        ([checkpoint, "--seed", "99999999999999999999"], "--seed is"),
        ([checkpoint, "--truncation-curve", "0.5"], "go together"),
        ([checkpoint, "--truncation", "-1"], "--truncation"),
        ([checkpoint, "--truncation-curve", "0.5,x", "-o", "c.png"], "--truncation-curve"),
    ]
    for arguments, reason in cases:
        status, out, err = call(*arguments)
        assert status == 2 and not out and reason in err.splitlines()[-1], (arguments, err)
    assert (tmp_path / "there.json").read_text() == "kept"
