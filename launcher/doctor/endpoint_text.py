"""HOST:PORT as a user writes it."""

from parallel.errors import RefusedError


def split_endpoint(text: str) -> tuple[str, int]:
    """Host and port of 'node1:29500' or '[fe80::1]:29500'. RefusedError for anything else."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = ":" not in host and "[" not in host
    if not host or not (bracketed or plain) or not (port.isdecimal() and 0 < int(port) < 65536):
        raise RefusedError(f"--endpoint is {text!r}; wanted HOST:PORT, as node1:29500 or [fd00::1]:29500")
    return host.strip("[]"), int(port)
