"""JSON values."""

from typing import Any, TypeAlias

Json: TypeAlias = Any
"""None, bool, int, float, str, or a list or dict of these; the keys of a dict are strings."""
