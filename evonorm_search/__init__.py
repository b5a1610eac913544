"""The paper's layer search: graphs of primitive operations, evolved. See sections 3 and 4."""
