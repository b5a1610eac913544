"""IS, FID, KID, precision and recall, and the feature extractors behind them."""
