"""Which shardrun this is."""

import importlib.metadata


def version() -> str:
    """The installed version; 'uninstalled' where the packages are run from a folder."""
    try:
        return importlib.metadata.version("shardrun")
    except importlib.metadata.PackageNotFoundError:
        return "uninstalled"
