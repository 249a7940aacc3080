"""One rank: what its own tables can tell, before any other rank is looked at."""

from __future__ import annotations

from tracetool.derive.rank import derive

__all__ = ["derive"]
