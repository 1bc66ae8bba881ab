"""Bad inputs and calls by tables, and how each is met; `benchmarks/attack.py` runs all of them."""
