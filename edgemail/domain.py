"""Domain names in the form that DNS, tables and the wire compare: lower case, A-labels. Standard library only.

The standard library's codec is IDNA 2003, which maps four characters that IDNA 2008 keeps: "straße" would become
another registrant's "strasse". Those labels are encoded here as RFC 5891 says.
"""

from __future__ import annotations

import re

KEPT = re.compile("([ßς])")  # PVALID in RFC 5892, mapped away by RFC 3490
JOINERS = re.compile("[\u200c\u200d]")  # CONTEXTJ in RFC 5892: no mail domain needs them
DOTS = re.compile("[.\u3002\uff0e\uff61]")  # RFC 3490 3.1


def ascii_domain(domain: str) -> str:
    """`domain` in lower case and A-labels, without a final dot. ValueError when it cannot be one."""
    if domain.isascii():
        return domain.lower().removesuffix(".")
    return ".".join(_label(label) for label in DOTS.split(domain.lower())).removesuffix(".")


def _label(label: str) -> str:
    if label.isascii():
        return label
    if JOINERS.search(label):
        raise ValueError(f"'{label}' holds an invisible joiner")
    from encodings.idna import nameprep  # only for a U-label: it brings unicodedata and stringprep with it

    try:
        plain = "".join(part if KEPT.fullmatch(part) else nameprep(part) for part in KEPT.split(label) if part)
        encoded = plain if plain.isascii() else "xn--" + plain.encode("punycode").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"'{label}' is no domain label: {error}") from None
    if not encoded or len(encoded) > 63 or set(encoded) & set(' @/\\[]"'):  # RFC 1035 2.3.4
        raise ValueError(f"'{label}' is no domain label")
    return encoded
