from __future__ import annotations

import subprocess
import sys
import types

import install_detectron2 as tool
import numpy as np
import pytest


def run_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py"])
    status = tool.main()
    return status, capsys.readouterr()


@pytest.fixture
def tree(tmp_path):
    """A source tree with the lines that the repairs expect, and one with NumPy's old aliases."""
    for name, replacements in tool.REPAIRS.items():
        path = tmp_path / "detectron2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# before\n" + "".join(old for old, _ in replacements) + "# after\n")
    (tmp_path / "detectron2" / "structures").mkdir()
    (tmp_path / "detectron2" / "structures" / "masks.py").write_text(
        "import numpy as np\nkeep = np.zeros(3).astype(np.bool)\nsame = np.bool_(True)\n"
    )
    return tmp_path


def test_numpy_aliases_become_python_types_and_longer_names_stay():
    source = "x.astype(np.bool); np.int; np.float; np.str; np.object; np.int64; np.float_; np.bool_"
    assert tool.repair_numpy_aliases(source) == (
        "x.astype(bool); int; float; str; object; np.int64; np.float_; np.bool_"
    )


def test_repair_keeps_the_rest_of_each_file(tree):
    tool.repair(tree)
    transform = (tree / "detectron2/data/transforms/transform.py").read_text()
    assert transform == "# before\ninterp=Image.BILINEAR# after\n"
    values = {}
    exec((tree / "detectron2/structures/masks.py").read_text(), values)
    assert values["keep"].dtype == np.dtype("bool")


def test_repaired_coco_evaluation_takes_the_official_one(tree):
    """Without the compiled module the import falls back, and a request for it is turned off."""
    tool.repair(tree)
    source = (tree / "detectron2/evaluation/coco_evaluation.py").read_text()
    values = {"COCOeval": object(), "self": types.SimpleNamespace(), "use_fast_impl": True}
    source = source.replace("detectron2.", "a_package_that_is_not_there.")
    exec(source, values)
    assert values["COCOeval_opt"] is values["COCOeval"]
    assert values["self"]._use_fast_impl is False


def test_a_missing_operator_says_so_when_used(tree):
    tool.repair(tree)
    operators = types.ModuleType("operators")
    source = (tree / "detectron2/_missing_operators.py").read_text()
    exec(source, operators.__dict__)
    with pytest.raises(RuntimeError, match="deform_conv_forward is a compiled operator"):
        operators.deform_conv_forward(None)
    assert not hasattr(operators, "__wrapped__")


def test_a_source_without_the_expected_text_is_one_clear_line(tree):
    path = tree / "detectron2/data/transforms/transform.py"
    path.write_text("interp=Image.CUBIC\n")
    with pytest.raises(tool.InstallError) as caught:
        tool.repair(tree)
    assert str(caught.value) == (
        "detectron2/data/transforms/transform.py: "
        "expected 'interp=Image.LINEAR' once, found it 0 times"
    )
    assert path.read_text() == "interp=Image.CUBIC\n"


def test_a_wrong_archive_is_one_clear_line(tmp_path):
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(b"abc")
    # SHA-256 of "abc" as FIPS 180-4 gives it.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    tool.check_sha256(archive, digest)
    with pytest.raises(tool.InstallError, match=f"^archive.tar.gz: its SHA-256 is {digest}, .*$"):
        tool.check_sha256(archive, tool.ARCHIVE_SHA256)


def test_nothing_is_run_where_detectron2_can_be_imported(capsys, monkeypatch, tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("__version__ = '9.8'\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail(f"ran {a}"))
    status, printed = run_command(capsys, monkeypatch)
    monkeypatch.delitem(sys.modules, "detectron2")
    assert status == 0
    assert printed.out == (
        f"Detectron2 9.8 at {tmp_path / 'detectron2'} is already installed; nothing to do.\n"
    )


def test_a_mere_folder_named_detectron2_is_no_installation(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "detectron2", types.ModuleType("detectron2"))
    assert tool.importable() is None


def test_what_is_in_the_way_is_kept_and_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "detectron2").mkdir()
    monkeypatch.setattr(tool, "importable", lambda: None)
    monkeypatch.setattr(tool.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail(f"ran {a}"))
    status, printed = run_command(capsys, monkeypatch)
    assert status == 2
    assert printed.err.startswith(
        f"install_detectron2.py: {tmp_path / 'detectron2'} exists but can't be imported: "
    )
    assert len(printed.err.splitlines()) == 1
    assert (tmp_path / "detectron2").is_dir()


def fake_pip(broken):
    """A pip whose `install --target` writes a Detectron2 that can, or cannot, be imported."""

    def pip(*arguments):
        if "--target" not in arguments:
            return
        aside = tool.Path(arguments[arguments.index("--target") + 1])
        (aside / "detectron2-0.6.dist-info").mkdir()
        (aside / "detectron2-0.6.dist-info" / "METADATA").write_text("Name: detectron2\n")
        for name in ["", *tool.MODULES]:
            folder = aside / "detectron2" / name.replace(".", "/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text("1 / 0\n" if broken else "")

    return pip


def test_install_moves_a_package_that_can_be_imported(monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "pip", fake_pip(broken=False))
    tool.install("source", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "detectron2",
        "detectron2-0.6.dist-info",
    ]


def test_install_leaves_nothing_behind_when_the_package_is_broken(monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "pip", fake_pip(broken=True))
    with pytest.raises(tool.InstallError, match="can't be imported"):
        tool.install("source", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_repository_out_of_reach_gives_gits_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "REPOSITORY", str(tmp_path / "nowhere"))
    with pytest.raises(tool.InstallError) as caught:
        tool.reach_repository()
    assert len(str(caught.value).splitlines()) == 1
