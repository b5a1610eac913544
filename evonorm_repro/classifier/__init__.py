"""A small image classifier, for tables 2 and 3 of the paper."""
