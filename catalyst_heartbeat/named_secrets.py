"""Finds secrets by the names that they are given: `password = …` in every notation."""

from __future__ import annotations

import re
from collections.abc import Iterator

from catalyst_heartbeat.private_keys import REDACTED

PASSWORDS = r"pass(?:word|wd|phrase)|pwd|(?:[_-]|db)p(?:ass|w(?![a-z]))"
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
    r"(?:(?:[rbfu]{1,2}|(?-i:Secret(?:Str|Bytes)?)\(|(?P<list>[\[(][ \t]?))(?=\\{0,8}[\"']))?"
    r"(?P<quote>(?P<deep>\\{1,8})?(?:\"{3}|'{3}|`{1,3}|[\"']))?"
    r"(?P<value>(?(quote)(?:(?!(?P=quote))(?:(?(deep)\\{2,16}[\"']|(?!))|\\.|[^\n]))*"
    r"|[^\s\"']\S{0,4095}))"
)
# Behind a quoted name also what calls, lists and tables have between it and a quoted value.
SIGN = (
    r"(?P<sign>\*{0,2}[ \t]{0,40}(?::=|=>|={1,2}|:)(?:\*\*(?=[ \t]))?[ \t]{0,40}|"
    r"[ \t]{0,40}\|[ \t]{0,40}|(?<=[\"'])[ \t]{0,9}"
    r"(?:,?[ \t]{0,9}(?:\\{0,8}[\"'])?(?:value|default)(?:\\{0,8}[\"'])?[ \t]{0,9}[:=]|,)"
    r"[ \t]{0,9}(?=\\{0,8}[\"']))"
)
ASSIGNED = re.compile(
    rf"(?P<name>(?P<password>{PASSWORDS})|(?P<key>{KEYS})|(?:{OTHERS}))"
    r"(?:s(?=[\"' \t:=]{1,9}[\[(]))?[0-9]{0,3}"
    r"(?:\\{0,8}[\"'`]?\]?)"
    r"(?::[ \t]{0,4}(?:str|bytes|SecretStr|string|Optional\[str\]|str \| None)(?=[ \t]{0,9}=))?"
    + SIGN
    + VALUE,
    re.I | re.A,
)
FLAG = re.compile(
    r"--[a-z-]{0,20}(?P<name>(?P<password>password|passwd|passphrase)|(?P<key>token|secret|api-key))"
    r"(?P<sign>[ \t]{1,9})(?!-)" + VALUE,
    re.I | re.A,
)
HINTS = (
    "pass", "pw", "secret", "token", "key", "sid", "session", "credential", "signature",
)  # fmt: skip
# What goes on behind a secret in a list of them.
NEXT = re.compile(r"[\"'][ \t]{0,9},[ \t]{0,9}" + VALUE, re.I | re.A)
ROW = re.compile(r"[ \t+>-]{0,9}\|")
# A name or a heading rather than a secret, where little says that it is one.
WORDS = re.compile("[A-Za-z]+(?:[-_.:/](?:[A-Za-z]+|[0-9]+))*")
# What stands behind a string, where its closing quote was taken for that of a value.
BEHIND = re.compile(r"[\s,;)\]}+]")
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
            while found["list"] and (more := NEXT.match(line, position)):
                yield line[position : more.start("value")]
                yield REDACTED
                position = more.end()
    yield line[position:]


def unquoted(found: re.Match[str]) -> str:
    """Return the value without what belongs to the text around it."""
    value = found["value"]
    if is_environment(found):
        return value.rstrip("\"',;)")
    ends = "[\"'`<>;,&|]" if "|" in found["sign"] else "[\"'`<>;,&]"
    return re.split(ends, value, maxsplit=1)[0].rstrip(".:)]}\\")


def is_environment(found: re.Match[str]) -> bool:
    """Tell NAME=value from other notations: there the value goes on to the next blank."""
    in_url = found.string[max(0, found.start() - 1)] in "?&"
    return found["sign"] == "=" and found["name"].isupper() and not in_url


def is_secret(found: re.Match[str], value: str) -> bool:
    """Tell a secret from other values of its name: `token` is the name of many things."""
    if not value or (is_behind if found["quote"] else is_said)(found, value):
        return False
    weak = is_weak(found)
    if found["password"] and not weak:
        return True
    digit = bool(re.search("[0-9]", value))
    plain = is_environment(found) and found["name"] != "_KEY" and not value.isdecimal()
    if (found["key"] or plain) and not weak:
        yaml = ":" in found["sign"] and len(value) >= 8
        return len(value) >= 4 and bool(
            found["quote"] or digit or plain or yaml or not value.isidentifier()
        )
    if ADDRESS.fullmatch(value) or (weak and WORDS.fullmatch(value)):
        return False
    if value.isdecimal() and found["name"].lower().endswith("id"):
        return False
    return not re.search(r"\s", value) and (len(value) >= 32 or (len(value) >= 8 and digit))


def is_weak(found: re.Match[str]) -> bool:
    """Tell notations in which words, too, stand behind a secret's name: lists, tables, prose."""
    ticks = "`" in (found["quote"] or "") and not is_environment(found)
    return bool(ticks or found["list"] or found["sign"].strip() in (",", "|"))


def is_behind(found: re.Match[str], value: str) -> bool:
    """Tell `"Password:" ; send "x"`, whose value begins where the string with the name ends."""
    if not BEHIND.match(value):
        return False
    before = found.string[max(0, found.start() - 40) : found.start()]
    return bool(re.search(re.escape(found["quote"]) + r"[\w .-]*\Z", before))


def is_said(found: re.Match[str], value: str) -> bool:
    """Tell words of a sentence and source code from an unquoted value."""
    if found["name"].lower() == "pwd" and value.startswith(("/", "~")):
        return True  # the working directory
    if is_environment(found):
        return False
    if "|" in found["sign"] and not ROW.match(found.string):
        return True  # a pipe between commands
    if CODE.match(found["value"]) or value.lower() == found["name"].lower().lstrip("_-"):
        return True
    end = found.start("value") + len(value)
    following = found.string[end : end + 60]
    compared = "==" in found["sign"] or following.startswith(")")
    goes_on = compared or (found["sign"] != "=" and GOES_ON.match(following))
    return bool(goes_on) and value.isidentifier() and not re.search("[0-9]", value)
