"""Measures a finished model: the protocol, its generators, tables, curves, ablations, costs."""
