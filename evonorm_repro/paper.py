"""The figures of the paper's tables 2 to 5 (arXiv:2004.02967), by model and layer."""

from __future__ import annotations

# ImageNet accuracy in percent of layers with batch statistics.
TABLE_2 = {
    "preact_resnet": {
        "BN-ReLU": "76.1",
        "BN-PReLU": "76.1",
        "BN-Swish-1": "77.2",
        "BN-Swish": "77.0",
        "Random": "1e-3",
        "Random+rej": "70.2",
        "RS+rej": "76.3",
        "EvoNormB0": "77.8",
        "EvoNormB1": "77.5",
        "EvoNormB2": "77.8",
    },
    "mobilenet_v2": {
        "BN-ReLU": "73.1",
        "BN-PReLU": "74.0",
        "BN-Swish-1": "74.4",
        "BN-Swish": "74.5",
        "Random": "1e-3",
        "Random+rej": "1e-3",
        "RS+rej": "73.4",
        "EvoNormB0": "75.1",
        "EvoNormB1": "74.5",
        "EvoNormB2": "74.7",
    },
    "preact_resnet101": {
        "BN-ReLU": "77.9",
        "BN-PReLU": "77.4",
        "BN-Swish-1": "78.7",
        "BN-Swish": "78.6",
        "Random": "1e-3",
        "Random+rej": "71.6",
        "RS+rej": "78.1",
        "EvoNormB0": "79.1",
        "EvoNormB1": "78.7",
        "EvoNormB2": "79.0",
    },
    "mnasnet_b1": {
        "BN-ReLU": "74.5",
        "BN-PReLU": "75.0",
        "BN-Swish-1": "75.1",
        "BN-Swish": "75.3",
        "Random": "1e-3",
        "Random+rej": "1e-3",
        "RS+rej": "74.7",
        "EvoNormB0": "75.3",
        "EvoNormB1": "75.1",
        "EvoNormB2": "74.9",
    },
    "efficientnet_b0": {
        "BN-ReLU": "76.4",
        "BN-PReLU": "76.3",
        "BN-Swish-1": "77.0",
        "BN-Swish": "77.0",
        "Random": "1e-3",
        "Random+rej": "1e-3",
        "RS+rej": "76.4",
        "EvoNormB0": "76.8",
        "EvoNormB1": "76.5",
        "EvoNormB2": "76.6",
    },
    "efficientnet_b5": {
        "BN-ReLU": "83.6",
        "BN-PReLU": "83.6",
        "BN-Swish-1": "83.4",
        "BN-Swish": "83.5",
        "Random": "1e-3",
        "Random+rej": "1e-3",
        "RS+rej": "83.2",
        "EvoNormB0": "83.6",
        "EvoNormB1": "83.6",
        "EvoNormB2": "83.4",
    },
}
# ImageNet accuracy in percent at 128, 64, 32, 16, 8 and 4 images per worker.
TABLE_3 = {
    "preact_resnet": {
        "BN-ReLU": "76.1 76.2 76.1 75.6 74.3 70.7",
        "GN-ReLU": "75.4 75.7 75.9 75.8 75.8 75.7",
        "GN-Swish": "77.2 77.3 77.2 77.3 77.0 77.3",
        "FRN": "75.3 75.8 75.9 75.9 75.8 76.0",
        "EvoNormS0": "77.4 77.4 77.6 77.3 77.3 77.5",
        "EvoNormS1": "77.5 77.3 77.4 77.4 77.3 77.4",
        "EvoNormS2": "76.9 77.3 77.1 77.2 77.1 77.1",
    },
    "mobilenet_v2": {
        "BN-ReLU": "73.3 73.2 72.7 70.0 64.5 60.4",
        "GN-ReLU": "71.5 72.6 72.9 72.5 72.7 72.6",
        "GN-Swish": "73.4 73.7 73.7 73.6 74.0 73.5",
        "FRN": "73.3 73.4 73.5 73.6 73.5 73.5",
        "EvoNormS0": "74.0 74.0 73.9 73.9 73.9 73.8",
        "EvoNormS1": "73.7 74.0 73.6 73.7 73.7 73.8",
        "EvoNormS2": "73.8 73.4 73.7 73.9 73.9 73.8",
    },
}
# Mask R-CNN on COCO: box AP, AP50, AP75, mask AP, AP50, AP75, MAdds (B), Params (M).
TABLE_4 = {
    "R-50": {
        "BN-ReLU": "42.1 62.9 46.2 37.8 60.0 40.6 332.0 46.37",
        "EvoNormB0": "44.0 65.2 48.1 39.5 62.7 42.4 332.3 46.38",
        "GN-ReLU": "42.7 63.8 46.6 38.4 61.2 41.2 332.3 46.37",
        "EvoNormS0": "43.6 64.9 47.9 39.4 62.3 42.7 331.9 46.38",
    },
    "R-101": {
        "BN-ReLU": "43.8 64.2 48.2 39.2 61.3 42.5 409.8 65.36",
        "EvoNormB0": "45.1 66.2 49.0 40.1 63.3 43.1 410.1 65.38",
        "GN-ReLU": "44.0 64.7 48.3 39.4 62.1 42.7 410.3 65.36",
        "EvoNormS0": "44.5 65.3 48.7 39.6 62.3 42.6 409.7 65.38",
    },
}
# BigGAN-deep on ImageNet at 128x128: IS and FID, median/best of three seeds where there are two.
TABLE_5 = {
    "BN-ReLU": ("118.77/124.01", "7.85/7.29"),
    "EvoNormB0": ("101.13/113.63", "6.91/5.87"),
    "GN-ReLU (16 groups)": ("99.09", "8.14"),
    "LN-ReLU": ("91.56", "8.35"),
    "PixelNorm-ReLU": ("88.58", "10.41"),
    "EvoNormS0": ("104.64/113.96", "6.86/6.26"),
}
