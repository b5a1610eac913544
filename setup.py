from setuptools import find_packages, setup

setup(
    name="evonorm-detection-gan",
    version="0.1.0",
    description="EvoNorm layers for PyTorch, with their Detectron2 plugin",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=find_packages(include=["evonorm*"]),
    # The folder itself goes on the path of an editable install, so new packages are found at once.
    package_dir={"": "."},
    install_requires=["torch>=2.1"],
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
        "dev": ["onnx", "onnxruntime", "onnxscript", "pytest", "ruff", "timm", "torchvision"],
    },
)
