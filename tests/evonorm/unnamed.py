"""Formulas without a name, which must have all that the paper's layers have."""

UNNAMED = [
    "max((x - mean_b(x)) / std_b(x), 0)",  # BN-ReLU without gamma and beta inside
    "(x - mean_g(x)) / std_g(x) * sigmoid(v1 * x)",
    "x / max(std_b(x), rms_b(tanh(x)) + abs(v0))",  # two statistics of the batch
    "tanh(x) * std_b(x - mean_b(abs(x))) + mean_c(x)",  # one within another
    "x / (1 + abs(x)) - log(x) / (2 + v1 * v1)",
    "v0 + std_i(x)",  # not of x's shape by itself
]
BATCH = [text for text in UNNAMED if "_b" in text]
