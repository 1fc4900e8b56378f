"""Makes hostile text harmless: invisible characters become visible, secrets are replaced."""

from __future__ import annotations

import json
import re
from functools import lru_cache

REDACTED = "[redacted]"
LONGEST_SECRET = 4096
# Everything that is invisible or moves the cursor or the reading direction: controls except tab
# and newline, format characters, separators, surrogates, fillers and variation selectors.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    "\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
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


def clean(text: str, secrets: tuple[str, ...]) -> str:
    """Return the text with invisible characters made visible and with secrets redacted."""
    return redact(make_visible(text), secrets)


@lru_cache(maxsize=1024)
def clean_short(text: str, secrets: tuple[str, ...]) -> str:
    """Do what `clean` does, once for the names and words that come again in every report."""
    return clean(text, secrets)


def make_visible(text: str) -> str:
    """Write every invisible character but tab and newline as its escape, such as \\x1b."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return INVISIBLE.sub(escape_character, text.replace("\r\n", "\n"))


def escape_character(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def hide_keys(text: str) -> str:
    """Replace each line of a private key, so that no excerpt of the text shows some of them."""
    return PRIVATE_KEY.sub(lambda key: re.sub(r"[^\n]+", REDACTED, key[0]), text)


def without_start(text: str, secrets: tuple[str, ...]) -> str:
    """Return a text whose start was cut off, redacted, and without what may be half a secret."""
    return "... " + redact(text, secrets)[LONGEST_SECRET:]


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
    """Return what matches any configured secret, also as JSON has it, the longest first.

    Every form is as `make_visible` leaves it.
    """
    values = {
        make_visible(form)
        for secret in secrets
        for form in (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    }
    found = sorted((value for value in values if value not in REDACTED), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None
