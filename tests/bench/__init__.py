"""Measures Qasid as it runs: real processes, a durable database of its own. `just bench --help` lists the benches."""
