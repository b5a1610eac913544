"""Installs the packages and, where torch and a C++ compiler are there, builds the CPU kernels.

pip builds in an environment without torch, so `pip install --no-build-isolation` is what builds
them; without them `evonorm` works too, slower.
"""

from __future__ import annotations

import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

OPS = Path("evonorm") / "ops"
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
INSTRUCTION_SETS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = AVX2
    INSTRUCTION_SETS["avx512"] = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))]


class BuildPackages(build_py):
    """Copies tools/ and configs/ into a wheel, where `evonorm_runs.checkout` looks for them."""

    def run(self) -> None:
        super().run()
        for folder in () if self.editable_mode else ("configs", "tools"):
            to = Path(self.build_lib) / "evonorm_runs" / folder
            shutil.rmtree(to, ignore_errors=True)  # an earlier build's
            shutil.copytree(folder, to, ignore=shutil.ignore_patterns("__pycache__"))


class BuildKernels(build_ext):
    """Compiles the loops once per instruction set, as one library that chooses when it is loaded.

    Whatever goes wrong, the installation goes on without them.
    """

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            self.extensions = []  # or an editable install would look for the file
            print(
                f"\nnote: evonorm's CPU kernels were not built, so it will run slower: {error}\n",
                file=sys.stderr,
            )

    def build_extension(self, ext: Extension) -> None:
        def compile_for(name: str, flags: list[str]) -> list[str]:
            return self.compiler.compile(
                [str(OPS / "cpu_kernels.cpp"), str(OPS / "cpu_formula_kernels.cpp")],
                output_dir=str(Path(self.build_temp) / name),
                macros=[("INSTRUCTION_SET", name)],
                extra_postargs=[
                    "-O3",
                    "-std=c++17",
                    "-Wno-psabi",
                    "-Wno-maybe-uninitialized",
                    "-fvisibility=hidden",
                    # So that loops become vectors: nobody reads errno or the exceptions' flags.
                    "-fno-math-errno",
                    "-fno-trapping-math",
                    "-fopenmp-simd",
                    *flags,
                ],
                depends=ext.depends,
            )

        with ThreadPoolExecutor(2) as pool:
            objects = pool.map(compile_for, INSTRUCTION_SETS, INSTRUCTION_SETS.values())
            ext.extra_objects += [file for files in objects for file in files]
        super().build_extension(ext)


def extensions() -> list[Extension]:
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        print(
            "note: evonorm's CPU kernels are not built, as torch is not there to build with; for "
            "them, `pip install torch setuptools`, then `pip install --no-build-isolation .`",
            file=sys.stderr,
        )
        return []
    return [
        Extension(
            "evonorm.ops._cpu",
            [str(OPS / f"cpu{name}.cpp") for name in ("", "_autograd", "_formula")],
            depends=[
                *(str(OPS / f"cpu_{name}") for name in ("kernels.cpp", "kernels.h", "work.h")),
                *(str(OPS / f"cpu_formula{name}") for name in ("_kernels.cpp", ".h")),
            ],
            include_dirs=cpp_extension.include_paths(),
            library_dirs=cpp_extension.library_paths(),
            libraries=["c10", "torch_cpu"],
            define_macros=[
                ("_GLIBCXX_USE_CXX11_ABI", str(int(torch.compiled_with_cxx11_abi()))),
                *([("EVONORM_X86", "1")] if "avx512" in INSTRUCTION_SETS else []),
            ],
            # Compiled with OpenMP, but linked without: torch brings its own, and its threads.
            extra_compile_args=["-O2", "-std=c++20", "-fopenmp", "-fvisibility=hidden"],
        )
    ]


setup(
    name="evonorm-detection-gan",
    version="0.1.0",
    description="EvoNorm layers for PyTorch, in Detectron2 and in BigGAN-deep",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=find_packages(include=["evonorm*"]),
    # The folder itself goes on the path of an editable install, so new packages are found at once.
    package_dir={"": "."},
    package_data={
        "evonorm.ops": ["*.cpp", "*.h"],
        "evonorm_runs.images": ["fashion_mnist/*"],
        "evonorm_repro.report": ["*.html", "*.css", "*.js"],
    },
    ext_modules=extensions(),
    entry_points={
        "console_scripts": [
            f"evonorm-{tool.stem.replace('_', '-')} = evonorm_runs.checkout:run"
            for tool in sorted(Path("tools").glob("*.py"))
        ]
    },
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPackages},
    install_requires=["torch>=2.4"],
    extras_require={
        # Detectron2 is not on PyPI: tools/install_detectron2.py installs it.
        "detection": [
            "Pillow",
            "fvcore",
            "numpy",
            "opencv-python-headless",  # Detectron2's visualizer imports it
            "pycocotools",
            "scikit-learn",  # the handwritten digits
            "scipy",
            "torchvision",
            "tqdm",
        ],
        "gan": [
            "Pillow",
            "fvcore",
            "h5py",
            "matplotlib",
            "numpy",
            "scikit-learn",  # the handwritten digits
            "scipy",
            "tensorboard",
            "torch-fidelity",
            "torchvision",
            "tqdm",
        ],
        # Beside "detection" and "gan": the paper's tables, and the report over runs.
        "repro": [
            "Jinja2",
            "Pillow",
            "PyYAML",
            "latex2mathml",
            "plotly",
            "scipy>=1.11",
            "tabulate",
        ],
        "labels": ["globox"],  # for folders of Pascal VOC's or YOLO's files in DATASETS.COCO
        "timm": ["timm"],  # for MODEL.TIMM of detectors, SOLVER.OPTIMIZER rmsprop of classifiers
        "wandb": ["wandb"],  # for WANDB_PROJECT of the three trainers
        "ray": ["ray"],  # for --ray of tools/reproduce.py and search_layers.py
        "dev": [
            "clean-fid",  # the tests compare with its resizing
            "globox",
            "mkdocstrings-python ; python_version >= '3.11'",
            "moocore ; python_version >= '3.10'",  # Pareto fronts, for the search's tests
            "onnx",
            "onnxruntime",
            "onnxscript",
            "pytest",
            "pytest-xdist",
            "pytorch-fid",  # the tests compare with it, and with the next
            "pytorch-pretrained-biggan",
            "ruff",
            "selenium",
            "timm",
            "torchvision",
            "zensical ; python_version >= '3.11'",
        ],
    },
)
