"""Builds, from a folder of clean photos, every model that UniRestorer serves: `python -m training all`."""
