"""Replaces secrets in text: configured values, and what looks like one."""

from __future__ import annotations

import json
import re
from functools import lru_cache

REDACTED = "[redacted]"
LONGEST_SECRET = 4096
# Each finds its match, or none, in one pass over a text of any shape: it is hostile.
KEY_NAME = "[A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}"
PRIVATE_KEY = re.compile(rf"-----? ?BEGIN ({KEY_NAME})-----?.*?(?:-----? ?END \1-----?|\Z)", re.S)
SECRET_PATTERNS = (
    # A private key: whole, without the end that was not read, without the beginning.
    (PRIVATE_KEY, REDACTED),
    (re.compile(rf"\A.*-----? ?END {KEY_NAME}-----?", re.S), REDACTED),
    # user:password@, token@, and passwords that hold an @ themselves.
    (
        re.compile(
            r"(?:(?<=://)|(?<=:\\/\\/))(?:[^\s/:@]*:(?:(?!://|:\\/\\/)[^\s@])+|[^\s/:@]+)@(?:[^\s/@]*@)*"
        ),
        f"{REDACTED}@",
    ),
    (re.compile(r"(bearer\s+)[\w.~+/=-]{8,}", re.I | re.A), rf"\1{REDACTED}"),
    (
        re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?basic\s+)[\w+/=]{8,}", re.I | re.A),
        rf"\1{REDACTED}",
    ),
    (
        re.compile(
            r"([?&](?:password|passwd|access_token|token|api_?key|secret)=)[^\s&\"'<>]+",
            re.I | re.A,
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?:AKIA|ASIA)[0-9A-Z]{16}"), REDACTED),
    (
        re.compile(
            r"((?:secret[_-]?access[_-]?key|session[_-]?token)\W{1,5})[\w/+=]{16,}", re.I | re.A
        ),
        rf"\1{REDACTED}",
    ),
)
# Every match of a pattern above has one of these in it, in any case, and most texts have none.
SECRET_HINTS = (
    "://", ":\\/\\/", "private key", "bearer", "authorization", "password=", "passwd=", "token=",
    "key=", "secret", "session", "akia", "asia",
)  # fmt: skip


def hide_keys(text: str) -> str:
    """Replace each line of a private key, so that no excerpt of the text shows some of them."""
    return PRIVATE_KEY.sub(lambda key: re.sub(r"[^\n]+", REDACTED, key[0]), text)


def redact(text: str, secrets: tuple[str, ...]) -> str:
    text = redact_values(text, secrets)
    if not hints_at_secrets(text):
        return text
    for pattern, replacement in SECRET_PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def hints_at_secrets(text: str) -> bool:
    folded = text.lower()
    return any(hint in folded for hint in SECRET_HINTS)


def redact_values(text: str, secrets: tuple[str, ...]) -> str:
    pattern = values_pattern(secrets)
    return pattern.sub(REDACTED, text) if pattern else text


@lru_cache(maxsize=8)
def values_pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return what matches any configured secret, also as JSON has it, the longest first."""
    values = {
        form
        for secret in secrets
        for form in (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    }
    found = sorted((value for value in values if value not in REDACTED), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None
