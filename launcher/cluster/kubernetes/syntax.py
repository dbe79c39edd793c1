"""What Kubernetes takes for a name, a label, an amount or an image.

Each check returns what is wanted, in words, where the text does not fit, and None where it does.
"""

import re

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# The part of a label's key behind the slash, and a label's value.
_WORD = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CPU = re.compile(r"[0-9]+m|[0-9]+(\.[0-9]{1,3})?")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|)")
_FACTORS = {"": 1, **{unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T", "P"), 1)}}
_FACTORS |= {unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), 1)}
_SMALLEST_BYTES = 2**20
# The grammar of image references: [HOST[:PORT]/]PATH[:TAG][@DIGEST].
_HOST = r"[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@[a-z0-9+._-]+:[0-9a-fA-F]{{32,}})?", re.ASCII
)

_NAME_RULE = "small letters, digits and '-', a letter or digit at both ends"


def shown(text: str) -> str:
    """A text in a message, in quotes and on one line."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def dns_label(text: str) -> str | None:
    """RFC 1123: a namespace, a host's name."""
    return None if len(text) <= 63 and _LABEL.fullmatch(text) else f"at most 63 {_NAME_RULE}"


def dns_subdomain(text: str) -> str | None:
    """RFC 1123 labels with dots between: most objects' names."""
    return None if len(text) <= 253 and _SUBDOMAIN.fullmatch(text) else f"{_NAME_RULE}, with dots between such parts"


def label_key(text: str) -> str | None:
    prefix, slash, name = text.rpartition("/")
    good = len(name) <= 63 and _WORD.fullmatch(name) and (not slash or dns_subdomain(prefix) is None)
    return None if good else "a label's key: [DOMAIN/]NAME, NAME of at most 63 letters, digits, '-', '_' and '.'"


def label_value(text: str) -> str | None:
    good = text == "" or (len(text) <= 63 and _WORD.fullmatch(text))
    return None if good else "a label's value: at most 63 letters, digits, '-', '_' and '.'"


def env_name(text: str) -> str | None:
    return None if _ENV_NAME.fullmatch(text) else "a variable's name: letters, digits and '_', no digit first"


def cpu(text: str) -> str | None:
    good = len(text) <= 12 and _CPU.fullmatch(text) and float(text.removesuffix("m")) > 0
    return None if good else "cores as 8 or 0.5, or thousandths of a core as 500m"


def memory(text: str) -> str | None:
    """An amount of bytes; `64m`, which is 0.064 bytes to Kubernetes, and less than 1Mi are refused."""
    size = memory_bytes(text)
    if size is not None and size >= _SMALLEST_BYTES:
        return None
    wanted = "an amount as 64Gi (Ki, Mi, Gi, Ti: powers of 1024) or 64G (k, M, G, T: powers of 1000), 1Mi or more"
    meant = _meant(text)
    return f"{wanted}; did you mean {meant}?" if meant else wanted


def memory_bytes(text: str) -> float | None:
    """The bytes of `64Gi` and the like; None where it is not such a text."""
    match = _AMOUNT.fullmatch(text) if len(text) <= 24 else None
    return float(match[1]) * _FACTORS[match[2]] if match else None


def _meant(text: str) -> str | None:
    """8Gi of 8GiB, 8 GB and 8gb; 8Gi of a bare 8 too, since nobody asks for 8 bytes."""
    match = re.fullmatch(r"([0-9]{1,9})\s*([kmgtp]?)(i?)b?", text, re.IGNORECASE)
    if match is None:
        return None
    unit = match[2].upper() or "G"
    if unit == "K" and not match[3]:
        unit = "k"
    return f"{match[1]}{unit}{'i' if match[3] or not match[2] else ''}"


def image(text: str) -> str | None:
    good = len(text) <= 500 and _IMAGE.fullmatch(text)
    return (
        None
        if good
        else "an image: [HOST[:PORT]/]NAME[:TAG], NAME in small letters, as registry.example.com/llm/shardrun:1"
    )
