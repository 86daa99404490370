"""How an engine is run: one module a backend."""
