"""Finds secrets by the names that they are given: `password = …` in every notation."""

from __future__ import annotations

import re
from collections.abc import Iterator

from catalyst_heartbeat.private_keys import REDACTED

PASSWORDS = r"pass(?:word|wd|phrase)|pwd|[_-]pass"
KEYS = (
    r"client[_-]?secret|secret[_ -]?(?:access[_ -]?)?key|(?:api|access|account|private|encryption|"
    r"signing|master|auth)[_-]?key|shared[_-]?access[_-]?(?:key|signature)"
)
OTHERS = (
    r"secret(?:_key_base)?|token|session[_-]?(?:id|key)|credentials?|(?<![a-z])sid|"
    r"(?<![a-z])pass(?=[\"'\]]| ?=)|(?-i:_KEY)"
)
# Up to the closing quote, or to the end of the line where there is none.
VALUE = (
    r"(?:[rbfu]{1,2}(?=[\"']))?(?P<quote>(?P<deep>\\{1,8})?[\"'])?"
    r"(?P<value>(?(quote)(?:(?!(?P=quote))(?:(?(deep)\\{2,16}[\"']|(?!))|\\.|[^\n]))*"
    r"|[^\s\"']\S{0,4095}))"
)
ASSIGNED = re.compile(
    rf"(?P<name>(?P<password>{PASSWORDS})|(?P<key>{KEYS})|(?:{OTHERS}))[0-9]{{0,3}}"
    r"(?:\\{0,8}[\"'`]?\]?)"
    r"(?::[ \t]{0,4}(?:str|bytes|SecretStr|string|Optional\[str\]|str \| None)(?=[ \t]{0,9}=))?"
    r"(?P<sign>[ \t]{0,40}(?::=|=>|={1,2}|:)[ \t]{0,40})" + VALUE,
    re.I | re.A,
)
FLAG = re.compile(
    r"--[a-z-]{0,20}(?P<name>(?P<password>password|passwd|passphrase)|(?P<key>token|secret|api-key))"
    r"(?P<sign>[ \t]{1,9})(?!-)" + VALUE,
    re.I | re.A,
)
HINTS = (
    "pass", "pwd", "secret", "token", "key", "sid", "session", "credential", "signature",
)  # fmt: skip
# What stands for a secret that is elsewhere, or for none.
STAND_IN = re.compile(
    r"\[redacted\]?|\$\{?\w+\}?|\$[({].*|\{.*|<.*|%s|%\(.*|:\w+|[*.x…•-]+|\W|(?:none|null|nil|true|"
    r"false|yes|no|on|off|str|bytes|int|bool|string|text|any|optional|required|unset|empty)\b\W*",
    re.I,
)
CODE = re.compile(
    r"[A-Za-z_][\w.]*[(\[]|(?:self|cls|this|os|settings|config|cfg|conf|env|environ|process|params|"
    r"args|options|opts|request|req|context|ctx|kwargs|data|user|credentials|secrets)\.[A-Za-z_]"
)
# What the owner of an account on a blockchain is known by; its key is longer.
ADDRESS = re.compile("0x[0-9a-f]{40}", re.I)
# Words that go on after a value: it was one of a sentence, or an argument in source code.
GOES_ON = re.compile(r"[ \t]+(?![\w-]+ ?[:=])[A-Za-z(]")


def hide_named(text: str) -> str:
    """Put [redacted] in the place of each value that the name of a secret is given."""
    if not any(map(text.lower().__contains__, HINTS)):
        return text
    return "\n".join(map(hide_in_line, text.split("\n")))


def hide_in_line(line: str) -> str:
    if any(map(line.lower().__contains__, HINTS)):
        for pattern in (ASSIGNED, FLAG):
            line = "".join(without_values(line, pattern))
    return line


def without_values(line: str, pattern: re.Pattern[str]) -> Iterator[str]:
    position = 0
    while found := pattern.search(line, position):
        start = found.start("value")
        value = found["value"] if found["quote"] else unquoted(found)
        yield line[position:start]
        position = start
        if not STAND_IN.fullmatch(value) and is_secret(found, value):
            yield REDACTED
            position += len(value)
    yield line[position:]


def unquoted(found: re.Match[str]) -> str:
    """Return the value without what belongs to the text around it."""
    value = found["value"]
    if is_environment(found):
        return value.rstrip("\"',;)")
    return re.split("[\"'`<>;,&]", value, maxsplit=1)[0].rstrip(".:)]}\\")


def is_environment(found: re.Match[str]) -> bool:
    """Tell NAME=value from other notations: there the value goes on to the next blank."""
    in_url = found.string[max(0, found.start() - 1)] in "?&"
    return found["sign"] == "=" and found["name"].isupper() and not in_url


def is_secret(found: re.Match[str], value: str) -> bool:
    """Tell a secret from other values of its name: `token` is the name of many things."""
    if not value or (not found["quote"] and is_said(found, value)):
        return False
    if found["password"]:
        return True
    digit = bool(re.search("[0-9]", value))
    plain = is_environment(found) and found["name"] != "_KEY" and not value.isdecimal()
    if found["key"] or plain:
        yaml = ":" in found["sign"] and len(value) >= 8
        return len(value) >= 4 and bool(
            found["quote"] or digit or plain or yaml or not value.isidentifier()
        )
    if ADDRESS.fullmatch(value) or (value.isdecimal() and found["name"].lower().endswith("id")):
        return False
    return not re.search(r"\s", value) and (len(value) >= 32 or (len(value) >= 8 and digit))


def is_said(found: re.Match[str], value: str) -> bool:
    """Tell words of a sentence and source code from an unquoted value."""
    if found["name"].lower() == "pwd" and value.startswith(("/", "~")):
        return True  # the working directory
    if is_environment(found):
        return False
    if CODE.match(found["value"]) or value.lower() == found["name"].lower().lstrip("_-"):
        return True
    end = found.start("value") + len(value)
    following = found.string[end : end + 60]
    compared = "==" in found["sign"] or following.startswith(")")
    goes_on = compared or (found["sign"] != "=" and GOES_ON.match(following))
    return bool(goes_on) and value.isidentifier() and not re.search("[0-9]", value)
