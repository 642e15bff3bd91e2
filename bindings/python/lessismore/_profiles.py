"""Where the library keeps what it has learned about models, and what it makes of it."""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any, Optional

from . import _library


def profile_dir() -> Optional[str]:
    """The folder that every host uses (LESSISMORE_PROFILE names a file instead); None without a home."""
    for base, name in (("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
        folder = os.environ.get(base, "")
        if os.path.isabs(folder):
            return os.path.join(folder, name, "lessismore", "profiles")
    return None


def for_quality(profile: dict[str, Any], quality: float) -> dict[str, Any]:
    """The profile of the same model for a quality target, with the choices to try and the one that their trials take.

    lim_profile_for_quality in the C header. Raises ArgumentError for what is no profile, or no target.
    """
    lib, needed = _library.library(), ctypes.c_size_t()
    given = json.dumps(profile).encode()
    lib.lim_profile_for_quality(given, quality, None, 0, needed)
    text = ctypes.create_string_buffer(needed.value)
    lib.lim_profile_for_quality(given, quality, text, len(text), needed)
    found: dict[str, Any] = json.loads(text.value)
    return found
