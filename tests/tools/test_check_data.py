"""tools/check_data.py: a line for each fault of a config's data, and the exit status."""

from __future__ import annotations

import json
import shutil

import pytest

from evonorm_d2.data import register_digits


@pytest.fixture
def copy(digits_root, tmp_path):
    """A copy of the digits to damage, registered."""
    shutil.copytree(digits_root / "digits", tmp_path / "digits")
    register_digits(tmp_path)
    return tmp_path / "digits"


def test_sound_data(call, copy, tiny_run):
    file, _ = tiny_run("EvoNormS0")
    status, out, _ = call("--config-file", file, "MODEL.DEVICE", "cpu")
    assert (status, out) == (0, "digits_train, digits_val: 0 faults, 0 warnings\n")


def test_all_faults_are_listed(call, copy, tiny_run):
    (copy / "train/000000000005.png").write_bytes(b"no image")
    json_file = copy / "annotations/instances_val.json"
    content = json.loads(json_file.read_text())
    content["annotations"][0]["bbox"][2] = 0
    json_file.write_text(json.dumps(content))
    file, _ = tiny_run("EvoNormS0")
    settings = ("MODEL.DEVICE", "cpu", "INPUT.MASK_FORMAT", "polygon")
    status, out, _ = call("--config-file", file, *settings)
    *lines, last = out.splitlines()
    assert status == 2 and last == f"digits_train, digits_val: {len(lines) - 1} faults, 1 warnings"
    assert sum("set INPUT.MASK_FORMAT bitmask" in line for line in lines) == len(lines) - 2
    assert sum(str(copy / "train/000000000005.png") in line for line in lines) >= 1
    (warning,) = (line for line in lines if line.endswith(" (a warning)"))
    assert warning.startswith("digits_val: annotation 1 of ") and "without an area" in warning


def test_a_wrong_config_or_no_data(call, tmp_path, tiny_run):
    file, _ = tiny_run("EvoNormS0")
    settings = ("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('none',)")
    status, _, err = call("--config-file", file, *settings)
    assert status == 2 and err.splitlines()[-1].startswith("check_data.py: DATASETS: no data set")
    assert call("--config-file", "none.yaml")[0] == 2
    register_digits(tmp_path)
    status, _, err = call("--config-file", file, "MODEL.DEVICE", "cpu")
    assert status == 2 and "make_digits.py" in err
