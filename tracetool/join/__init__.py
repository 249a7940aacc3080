"""Across ranks: what only several ranks together can tell."""
