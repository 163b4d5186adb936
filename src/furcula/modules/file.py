"""Files: read them, also while they grow, and write them."""

from __future__ import annotations

from furcula.modules.file_read import FileRead
from furcula.modules.file_write import FileWrite

__all__ = ["FileRead", "FileWrite"]
