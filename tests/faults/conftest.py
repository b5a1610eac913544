"""A folder of things that are wrong, and calls of the tools in this process."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import pickle
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.fixture(scope="session")
def faulty(tmp_path_factory, digits_root):
    """The folder in which all commands of the table are typed."""
    place = tmp_path_factory.mktemp("faulty")
    (place / "bomb.yaml").write_text("SEED: !!python/object/apply:os.mkdir [exploded]\n")
    (place / "model.yaml").write_text("MODEL: {META_ARCHITECTURE: GeneralizedRCNN}\n")
    (place / "half.yaml").write_text("MODEL: {NORM: [\n")
    (place / "list.yaml").write_text("- a\n- b\n")
    (place / "loop.yaml").write_text("_BASE_: loop.yaml\n")
    (place / "base.yaml").write_text("_BASE_: nowhere.yaml\n")
    (place / "binary.yaml").write_bytes(bytes(range(256)))
    (place / "text.pth").write_text("no checkpoint")
    (place / "empty.pth").touch()
    torch.save({"model": Bomb()}, place / "bomb.pth")
    (place / "bomb.pkl").write_bytes(pickle.dumps({"model": Bomb()}))
    torch.save([1, 2], place / "list.pth")
    torch.save({"a": 1}, place / "other.pth")
    (place / "cut.pth").write_bytes((place / "other.pth").read_bytes()[:-100])
    torch.save({"model": {"weight": torch.zeros(1000)}}, place / "flipped.pth")
    whole = bytearray((place / "flipped.pth").read_bytes())
    whole[whole.index(bytes(4000)) + 1234] ^= 1
    (place / "flipped.pth").write_bytes(whole)
    (place / "file").write_text("a file where a folder should be")
    for name in ("empty", "held", "texts", "images/train/cat", "images/val/cat", "one/cat"):
        (place / name).mkdir(parents=True)
    (place / "held/model_0000004.pth").write_bytes(b"a month of training")
    (place / "held/last_checkpoint").write_text("model_0000004.pth")
    (place / "texts/a.txt").write_text("no image")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(place / "one/cat/a.png")
    (place / "one/cat/b.png").write_bytes((place / "one/cat/a.png").read_bytes()[:60])
    np.savez(place / "floats.npz", np.zeros((4, 32, 32, 3)))
    np.savez(place / "two.npz", a=np.zeros(3), b=np.zeros(3))
    (place / "text.npz").write_text("no archive")
    (place / "text.json").write_text("no json")
    (place / "list.json").write_text(json.dumps([1]))
    return place


@pytest.fixture
def type_in(faulty, digits_root, monkeypatch):
    """type_in(command): status, stdout, stderr; the folder must be as before."""
    monkeypatch.chdir(faulty)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(digits_root))
    threads = torch.get_num_threads()

    def run(command):
        before = digests(faulty)
        name, *arguments = shlex.split(command)
        tool = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = tool.main()
            except SystemExit as stop:  # argparse
                status = stop.code
        torch.set_num_threads(threads)
        after = digests(faulty)
        assert {path: after.get(path) for path in before} == before  # nothing is lost
        assert not (faulty / "exploded").exists()  # nothing was run
        return status, out.getvalue(), err.getvalue()

    return run


def digests(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
