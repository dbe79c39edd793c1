"""Amounts as people read them."""


def human(nbytes: float) -> str:
    """Bytes in decimal units: '13.5 GB'."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}" if nbytes < 999.5 * size else f"{nbytes / size:.0f} {unit}"
    return f"{nbytes:.0f} B"
