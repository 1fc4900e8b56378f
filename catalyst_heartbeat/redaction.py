"""Replaces secrets in text: configured values, and what looks like one.

Hiding is not erasing: a secret's characters go, the lines and everything around them stay. The
text is hostile: each pattern begins with a word, goes on once over what follows, and nests nothing.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, quote_plus

from catalyst_heartbeat.named_secrets import hide_named
from catalyst_heartbeat.private_keys import REDACTED as REDACTED
from catalyst_heartbeat.private_keys import hide_keys

LONGEST_SECRET = 4096
SHORT_TEXT = 500


class Format(NamedTuple):
    """How one kind of secret is written, and words of which each has one in it, in lower case.

    Group 1 of the pattern, where it has one, is what stands before the secret and stays.
    """

    hints: tuple[str, ...]
    pattern: re.Pattern[str]


def tokens(prefixes: str, rest: str, before: str = "") -> Format:
    """Return the format of tokens that begin with one of these prefixes."""
    begin = "|".join(map(re.escape, prefixes.split()))
    return Format(tuple(prefixes.lower().split()), re.compile(f"{before}(?:{begin}){rest}"))


def after(hints: str, start: str, secret: str) -> Format:
    """Return the format of secrets that are known by what stands before them, in any case."""
    return Format(tuple(hints.split()), re.compile(f"({start})(?:{secret})", re.I | re.A | re.M))


def pairs(between: str) -> str:
    """Return the pattern of name=value pairs, and of nothing that stands behind them."""
    pair = rf"[\w.%-]{{1,80}}=(?:\\{{0,8}}\"[^\"\n]*\"?|[^\s\"'{between}]*)"
    return f"{pair}(?:{between}[ \t]{{0,9}}{pair})*"


# Where a short prefix may begin: not in a word, but right after an escape or a colour.
START = r"(?:(?<![A-Za-z])|(?<=\\[nrt])|(?<=[0-9]m))"
FORMATS = (
    # docs.github.com/authentication/keeping-your-account-and-data-secure
    tokens("ghp_ gho_ ghu_ ghs_ ghr_ github_pat_", r"\w{20,}"),
    # docs.gitlab.com/security/tokens
    tokens("glpat- gldt- glrt- glptt- glcbt- glsoat- glft- glagent-", r"[\w.-]{16,}"),
    # docs.slack.dev/authentication/tokens, docs.discord.com/developers/resources/webhook
    tokens("xoxb- xoxp- xoxa- xoxr- xoxs- xoxe- xoxe. xapp-", r"[\w.-]{10,}"),
    tokens("hooks.slack.com/services/ discord.com/api/webhooks/", r"[\w/-]{20,}"),
    # docs.stripe.com/keys, docs.stripe.com/webhooks
    tokens("sk_live_ sk_test_ rk_live_ rk_test_ whsec_", r"[\w+/=]{10,}"),
    tokens("tok_", r"[A-Za-z0-9]{14,}", START),
    # docs.claude.com/api, platform.openai.com/docs/api-reference/authentication
    tokens("sk-ant- sk-proj- sk-svcacct- sk-admin- sk-or-", r"[\w-]{16,}"),
    tokens("sk-", r"[A-Za-z0-9]{20,}", START),
    # cloud.google.com/docs/authentication/api-keys, developers.google.com/identity/protocols/oauth2
    tokens("AIza ya29. GOCSPX-", r"[\w.-]{20,}"),
    # docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html, the secret beside
    tokens("AKIA ASIA", r"[0-9A-Z]{16}(?:[\s,:;\"']{1,4}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+]))?"),
    # docs.npmjs.com/about-access-tokens, pypi.org/help/#apitoken, guides.rubygems.org, groq.com
    tokens("npm_ rubygems_ gsk_", r"[A-Za-z0-9]{30,}"),
    tokens("pypi-AgE", r"[\w-]{20,}"),
    # docs.digitalocean.com/reference/api, docs.databricks.com/dev-tools/auth/pat
    tokens("dop_v1_ doo_v1_ dor_v1_ dapi", r"[0-9a-f]{32,}"),
    # www.twilio.com/docs/sendgrid/ui/account-and-settings/api-keys
    tokens("SG.", r"[\w-]{16,}\.[\w-]{16,}"),
    # huggingface.co/docs/hub/security-tokens, replicate.com/docs/topics/security/api-tokens
    tokens("hf_ r8_", r"[A-Za-z0-9]{30,}", START),
    # developer.hashicorp.com/vault/docs/concepts/tokens, docs.docker.com/security/access-tokens
    tokens("hvs. hvb. dckr_pat_ dckr_oat_", r"[\w-]{20,}"),
    # shopify.dev/docs/apps/build/authentication-authorization, developer.squareup.com/docs
    tokens("shpat_ shpca_ shppa_ shpss_ sq0atp- sq0csp-", r"[\w-]{20,}"),
    # grafana.com/docs, linear.app/developers, developers.notion.com, docs.sentry.io, supabase.com
    tokens("glsa_ glc_ lin_api_ ntn_ sntrys_ sntryu_ sbp_ sb_secret_", r"[\w+/=-]{20,}"),
    # docs.newrelic.com, learning.postman.com, support.atlassian.com, tailscale.com, x.ai
    tokens("NRAK- PMAK- ATATT3x figd_ tskey- pscale_tkn_ pscale_pw_", r"[\w=-]{20,}"),
    tokens("xai- pplx-", r"[\w-]{20,}"),
    # core.telegram.org/bots/api#authorizing-your-bot, github.com/FiloSottile/age
    Format((":aa",), re.compile(r"[0-9]{8,10}:AA[\w-]{32,}", re.A)),
    tokens("AGE-SECRET-KEY-1", r"[0-9A-Z]{50,}"),
    # man 5 crypt, www.postgresql.org/docs/current/catalog-pg-authid.html
    tokens("$1$ $5$ $6$ $7$ $y$ $gy$ $2a$ $2b$ $2y$ $apr1$ $argon2", r"[\w./$=,+-]{20,}"),
    tokens("SCRAM-SHA-256$ pbkdf2_sha256$", r"[\w+/=:$]{30,}"),
    # RFC 3986, 3.2: user:password@, token@, and passwords that hold an @ themselves. Behind a host
    # with its port and a slash, or behind the host's end, no @ is one of these.
    Format(
        ("://", ":\\/\\/"),
        re.compile(
            r"(?:(?<=://)|(?<=:\\/\\/))(?!(?:[^\s/:@?#]+|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}\\?[/?#])"
            r"(?:[^\s/:@?#]*:(?:(?!://|:\\/\\/)[^\s@])+|[^\s/:@?#]+)(?=@)(?:@[^\s/?#@]*(?=@))*"
        ),
    ),
    after(
        "?password= &password= passwd= token= apikey= api_key= secret=",
        r"[?&](?:password|passwd|access_token|refresh_token|token|api_?key|secret)=",
        r"[^\s&\"'<>]+",
    ),
    # Shared access signatures: learn.microsoft.com/azure/storage/common/storage-sas-overview
    after("sig= signature=", r"(?:\bsig|signature)=", r"[\w%+/=-]{20,}"),
    # RFC 9110, 11.6.2 and RFC 6750
    after(
        "authorization",
        r"authorization[\"'\]]{0,2}\s{0,9}[:=]\s{0,9}[\"']?(?:digest|oauth|hawk|"
        r"aws4-hmac-sha256)\s{1,9}",
        pairs(","),
    ),
    after(
        "authorization",
        r"authorization[\"'\]]{0,2}\s{0,9}[:=]\s{0,9}[\"']?(?:basic|bearer|token|apikey|api-key|key|"
        r"negotiate)\s{1,9}",
        r"[^\s\"',;]{4,}",
    ),
    after(
        "authorization",
        r"authorization[\"'\]]{0,2}\s{0,9}[:=]\s{0,9}[\"']?",
        r"(?=[a-z.~+/=_-]{0,64}[0-9])[\w.~+/=-]{16,}",
    ),
    after("bearer", r"\bbearer\s{1,9}", r"(?=[a-z.~+/_-]{0,64}(?-i:[0-9A-Z]))[\w.~+/=-]{8,}"),
    # RFC 6265
    after("cookie", r"set-cookie[\"']?\s{0,9}[:=]\s{0,9}[\"']?[\w.-]{1,80}=", r"[^;\s\"']+"),
    after("cookie", r"(?<!set-)cookie[\"']?\s{0,9}[:=]\s{0,9}[\"']?", pairs(";")),
    # www.postgresql.org/docs/current/libpq-pgpass.html and sql-createrole.html, man 5 netrc
    Format(
        (":",),
        re.compile(
            r"((?<=[\w.*/-]):(?:[0-9]{4,5}|\*):(?![0-9]+:)[^\s:\"']{1,63}:(?![0-9a-f]{1,4}:)"
            r"[^\s:\"']{1,63}:)[^\s\"']+"
        ),
    ),
    after(
        "password identified",
        r"(?:password|identified by)\s{1,9}(?:[en]|u&)?'",
        r"(?:[^'\n]|'')+",
    ),
    after("identified", r"identified by\s{1,9}\"", r"[^\"\n]+"),
    after(
        "password identified",
        r"(?:password|identified by)\s{1,9}\$(\w{0,63})\$",
        r"(?:(?!\$\2\$)[^\n])+",
    ),
    after(
        "machine",
        r"machine\s{1,9}\S{1,255}\s{1,9}login\s{1,9}\S{1,255}\s{1,9}password\s{1,9}",
        r"\S+",
    ),
    # man 1 curl, docs.docker.com/reference/dockerfile, man 1 sshpass, redis.io/docs, man 1 mysql
    after("curl", r"\s(?:-u|--user|--proxy-user)[\s=][\"']?[^\s:\"'/]{1,99}:", r"[^\s\"']+"),
    after(
        "env",
        r"^[^\w\n]{0,9}ENV[ \t]{1,9}\w{0,40}(?:PASSWORD|PASSWD|SECRET|TOKEN)[ \t]{1,9}",
        r"\S+",
    ),
    after("sshpass", r"sshpass\s{1,9}-p\s?", r"\S+"),
    after("requirepass masterauth", r"(?:requirepass|masterauth)[ \t]{1,9}", r"\S+"),
    after(
        "mysql redis-cli",
        r"\b(?:mysql\w{0,10} [^\n|;]{0,99}?\s-p(?=[^\s-])|redis-cli[^\n|;]{0,99}?\s-a[ \t]{1,9})",
        r"\S+",
    ),
    # www.onixs.biz/fix-dictionary: Password and NewPassword
    after(
        "554= 925=",
        r"(?:[|\x01]|\\x01|\\u0001)(?:554|925)=",
        r"(?:(?!\\x01|\\u0001)[^|\x01\s])+",
    ),
    after(
        "password passwd secret token apikey",
        r"<[\w:-]{0,30}(?:password|passwd|secret|token|api_?key)>",
        r"[^<\n]+",
    ),
)  # fmt: skip
# What nobody sees: colours (ECMA-48, 5.4), also as JSON and logs write them, format characters;
# in group 1 blanks that no other pattern knows.
UNSEEN = re.compile(
    r"(?:(?:\x1b|\\(?:x1b|u001b|033|e))\[|\x9b)[0-?]{0,40}[ -/]{0,3}[@-~]|\x1b\(B"
    "|[\xad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
    "|([\xa0\u2007\u202f])",
    re.I,
)
# JSON Web Tokens (RFC 7519): two or more parts, the first the base64 of '{"'.
WEB_TOKEN = re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]*)*")


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """Return the text with [redacted] in the place of each secret; it keeps its lines.

    A line in which a secret is seen only without its colours is shown without them.
    """
    hide_all = redact_short if len(text) <= SHORT_TEXT else redact_long
    shown, plain = hide_all(text, secrets), without_unseen(text)
    if plain == text:
        return shown
    texts = (shown, plain, hide_all(plain, secrets))
    lines = zip(*(each.split("\n") for each in texts), strict=True)
    return "\n".join(
        line if hidden in (bare, without_unseen(line)) else hidden for line, bare, hidden in lines
    )


def without_unseen(text: str) -> str:
    return UNSEEN.sub(lambda found: " " if found[1] else "", text)


def redact_long(text: str, secrets: tuple[str, ...]) -> str:
    text = without_keys = hide_keys(redact_values(text, secrets))
    has = text.lower().__contains__
    for hints, pattern in FORMATS:
        if any(map(has, hints)):
            text = pattern.sub(hide, text)
    if "eyJ" in text:
        text = WEB_TOKEN.sub(lambda found: REDACTED if "." in found[0] else found[0], text)
    text = hide_named(text)
    # Again: a value that is hidden now may have been all that parted a marker from its key.
    return text if text == without_keys else hide_keys(text)


@lru_cache(maxsize=1024)
def redact_short(text: str, secrets: tuple[str, ...]) -> str:
    """Redact the names and words that come again in every report only once."""
    return redact_long(text, secrets)


def hide(found: re.Match[str]) -> str:
    before = found[1] if found.re.groups else ""
    return before + hide_lines(found[0][len(before) :])


def hide_lines(secret: str) -> str:
    """Hide a secret and keep its lines: one that was cut elsewhere would be seen in part."""
    return re.sub(r"[^\n]+", REDACTED, secret)


def redact_values(text: str, secrets: tuple[str, ...]) -> str:
    pattern = values_pattern(secrets)
    if pattern is None:
        return text
    return pattern.sub(lambda found: hide_lines(found[0]), text)


@lru_cache(maxsize=8)
def values_pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return what matches any configured secret, as others write it too, the longest first."""
    values = {form for secret in secrets for form in forms(secret)}
    found = sorted((value for value in values if value not in REDACTED), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is, in JSON, in a URL and in HTML."""
    yield secret
    for ascii_only in (True, False):
        yield json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
    for safe in ("", "/"):
        yield quote(secret, safe, errors="surrogatepass")
        yield quote_plus(secret, safe, errors="surrogatepass")
    for escape_quotes in (True, False):
        yield html.escape(secret, escape_quotes)
