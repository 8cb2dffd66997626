"""A server's certificate that is not trusted: what is wrong with it, and what to do about it."""

from __future__ import annotations

import ssl

__all__ = ["untrusted"]

_OTHER_NAME = (62, 63, 64)
"""OpenSSL's codes for a certificate that bears another host name, e-mail or address."""


def untrusted(error: BaseException | None, authority: str) -> str | None:
    """A sentence for `error`, where it, or what caused it, is a refused certificate; else None.

    `authority`: the URL's option that names a file of trusted authorities.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            if error.verify_code in _OTHER_NAME:
                return (
                    f"the server's certificate is not for this host ({error.verify_message}); write a host in the URL "
                    "that it bears, or give the server a certificate for this one"
                )
            return (
                f"the server's certificate is not trusted ({error.verify_message}); name the file of the authority "
                f"that signed it in the URL: {authority}=/path/ca.pem"
            )
        error = error.__cause__ or error.__context__
    return None
