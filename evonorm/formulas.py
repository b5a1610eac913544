"""The paper's layers as formulas, to be read beside its tables 2 and 3 and appendix B.

evonorm/formula.py describes the language. gamma and beta follow each formula. A layer of the B
series takes statistics of the batch, one of the S series does not.
"""

from __future__ import annotations

FORMULAS = {
    # Table 2.
    "EvoNormB0": "x / max(std_b(x), v1 * x + std_i(x))",
    "EvoNormB1": "x / max(std_b(x), (x + 1) * rms_i(x))",
    "EvoNormB2": "x / max(std_b(x), rms_i(x) - x)",
    # Table 3.
    "EvoNormS0": "x * sigmoid(v1 * x) / std_g(x)",
    "EvoNormS1": "x * sigmoid(x) / std_g(x)",
    "EvoNormS2": "x * sigmoid(x) / rms_g(x)",
    # Table 2, found by random search and by chance, with rejection; the last one without.
    "RS+rej": "max(x, 0) / rms_b(x)",
    "Random+rej": "tanh(max(x, tanh(x)))",
    "Random": "sqrt(std_i(sigmoid(x)))",
    # Appendix B.1: the ten best candidates of the B search, before reranking.
    "EvoNormB/1": "x / max(std_b(x), (x + 1) * rms_i(x))",
    "EvoNormB/2": "x / max(std_b(x), x + rms_c(x))",
    "EvoNormB/3": "-x * sigmoid(x) / std_b(x)",
    "EvoNormB/4": "x / max(std_b(x), x * rms_i(x))",
    "EvoNormB/5": "x / max(std_b(x), rms_c(x) - x)",
    "EvoNormB/6": "x / max(std_b(x), v1 * x + std_i(x))",
    "EvoNormB/7": "x / max(std_b(x), rms_i(x) - x)",
    "EvoNormB/8": "x / max(std_b(x), x * rms_i(x))",
    "EvoNormB/9": "x / max(std_b(x), x + std_i(x))",
    "EvoNormB/10": "x / max(std_b(x), x + std_i(x))",
    # Appendix B.2: those of the S search.
    "EvoNormS/1": "x * tanh(sigmoid(x)) / rms_g(x)",
    "EvoNormS/2": "x * sigmoid(x) / rms_g(x)",
    "EvoNormS/3": "x * sigmoid(x) / rms_g(x)",
    "EvoNormS/4": "x * sigmoid(x) / rms_g(x)",
    "EvoNormS/5": "x * sigmoid(x) / std_g(x)",
    "EvoNormS/6": "x * sigmoid(v1 * x) / std_g(x)",
    "EvoNormS/7": "x * sigmoid(x) / std_g(x)",
    "EvoNormS/8": "x * sigmoid(x) / rms_g(x)",
    "EvoNormS/9": "x * sigmoid(x) / std_g(x)",
    "EvoNormS/10": "x / rms_g(x) * sigmoid(max(x, x / rms_g(x)))",
}
