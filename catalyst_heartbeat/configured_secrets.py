"""The secrets of the program's own environment, which must never be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping

SECRET_NAME = re.compile(
    r"PASS|_PWD?$|SECRET|TOKEN|CREDENTIAL|PRIVATE|AUTH(?!OR)|API_?KEY|(^|_)KEY(_|$)", re.IGNORECASE
)
# What such a name may count, which is a number: MAX_TOKENS, AUTH_SERVICE_PORT, KEY_SIZE.
COUNTED = re.compile(
    r"(^|_)(MAX|MIN|NUM|COUNT|LIMIT|SIZE|LENGTH|BITS|ROUNDS|PORT|TTL|TIMEOUT|MS|SECONDS|MINUTES|HOURS"
    r"|DAYS|TOKENS)(_|$)",
    re.IGNORECASE,
)
# In URLs, also those that a parser would cut elsewhere, and in keyword DSNs.
PASSWORDS = (
    re.compile(r"://[^:@/\s]*:([^@\s]+)@"),
    re.compile(r"://[^:@/\s]*:(\S+)@"),
    re.compile(r"[?&]password=([^&\s]+)"),
    re.compile(r"(?:^|\s)password\s*=\s*'((?:\\.|[^'\\])*)'"),
    re.compile(r"(?:^|\s)password\s*=\s*([^\s']\S*)"),
)
# Where a parser may cut a password that is not percent-encoded, and then show a part of it.
CUTS = re.compile(r"[/@:?#&=\[\],]")
ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
# A shorter value, or one of these words, would blank out half of every report.
SHORTEST_SECRET = 4
SECRET_LINE_LENGTH = 8
NOT_SECRETS = frozenset({"true", "false", "none", "null"})


def collect_secrets(*environments: Mapping[str, str]) -> tuple[str, ...]:
    """Return every value that must never be shown, longest first.

    A secret of many lines is also each of its longer lines: they may be shown apart.
    """
    found: set[str] = set()
    for name, value in (item for variables in environments for item in variables.items()):
        if SECRET_NAME.search(name) and not (value.isdecimal() and COUNTED.search(name)):
            found |= {value, value.strip()}
            if "\n" in value:
                found.update(filter(is_secret_line, map(str.strip, value.split("\n"))))
        found |= passwords(value)
    found |= {percent_decoded(value) for value in found if "%" in value}
    kept = {value for value in found if len(value) >= SHORTEST_SECRET}
    return tuple(sorted(kept - NOT_SECRETS, key=lambda value: (-len(value), value)))


def passwords(value: str) -> set[str]:
    """Return the passwords of a URL or a keyword DSN, and the parts that an error may quote."""
    if "://" not in value and "password" not in value:
        return set()
    whole = {password for pattern in PASSWORDS for password in pattern.findall(value)}
    return whole.union(*map(CUTS.split, whole))


def hide(text: str, secrets: tuple[str, ...]) -> str:
    """Return a text of the program's own without any secret."""
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    return text


def is_secret_line(line: str) -> bool:
    """Tell a line of a secret from a short one and from the frame that every private key has."""
    return len(line) >= SECRET_LINE_LENGTH and not line.startswith("----")


def percent_decoded(value: str) -> str:
    def decoded(match: re.Match[str]) -> str:
        return bytes.fromhex(match[0].replace("%", "")).decode(errors="replace")

    return ESCAPES.sub(decoded, value)
