"""The paper's tables in small: runs, grids of runs, and a report."""
