"""Where the library keeps what it has learned about models."""

from __future__ import annotations

import os
from typing import Optional


def profile_dir() -> Optional[str]:
    """The folder that every host uses (LESSISMORE_PROFILE names a file instead); None without a home."""
    for base, name in (("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
        folder = os.environ.get(base, "")
        if os.path.isabs(folder):
            return os.path.join(folder, name, "lessismore", "profiles")
    return None
