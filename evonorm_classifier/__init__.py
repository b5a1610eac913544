"""Image classifiers with any norm-act, as in tables 2 and 3."""
