"""How fast and how lean layers and trainings are; tools/benchmark_*.py call it."""
