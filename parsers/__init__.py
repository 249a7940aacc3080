"""Trace formats, one file each: see CONTRIBUTING.md for the contract."""
