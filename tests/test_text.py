"""text.py: hostile text is shown, does nothing, and is cut without losing what matters."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from catalyst_heartbeat.text import (
    HALF_BYTES,
    HEAD_LIMIT,
    INVISIBLE,
    MAX_BYTES,
    MAX_LINES,
    cap,
    clean,
    clean_line,
    fenced,
    header,
    inert_head,
    table,
)

TEXT = st.text(st.characters())
# Letters of secrets that neither an escape nor the word [redacted] is written with.
LETTERS = "GHJKLMNOPQRSTUVWXYZ+/= "
SECRETS = st.lists(st.text(LETTERS, min_size=4, max_size=12), max_size=4).map(tuple)


@pytest.mark.parametrize("place", [HALF_BYTES, 40_000 - HALF_BYTES])
@pytest.mark.parametrize("offset", range(-14, 1, 2))
def test_secret_across_the_cut_is_gone_at_both_ends(place: int, offset: int) -> None:
    text = ("x" * (place + offset) + "hunter2.hunter2.").ljust(40_000, "x")

    shown = fenced(text, ("hunter2.hunter2.",))

    assert "hunter" not in shown
    assert "unter2" not in shown


def test_every_invisible_character_of_unicode_is_shown() -> None:
    """Control and format characters, separators, surrogates, and what renders as nothing."""
    blank = {0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0x34F}
    blank |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0000, 0xE1000)}
    blank |= {*range(0x2060, 0x2070), *range(0xFFF0, 0xFFFC)}
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        hidden = category in ("Cc", "Cf", "Cs", "Zl", "Zp") or code in blank
        if category != "Cn" or code in blank:
            shown = INVISIBLE.match(chr(code)) is None
            assert shown != hidden or chr(code) in "\t\n", hex(code)


@given(TEXT, SECRETS)
def test_cleaned_text_has_nothing_hidden_and_no_secret_and_is_clean(
    text: str, secrets: tuple[str, ...]
) -> None:
    shown = clean(text, secrets)

    assert not INVISIBLE.search(shown)
    assert all(secret not in shown for secret in secrets)
    assert clean(shown, secrets) == shown
    shown.encode()


WORDS = st.sampled_from(
    ["ZZZZ", "YXYX", " ", "\n", "\t", "\r\n", "\r", "://", ":", "@", "user", "bearer ", "Bearer\n",
     "abcdefgh", "AKIA", "A" * 16, "-----BEGIN ", "RSA ", "PRIVATE KEY", "-----", "-----END ",
     "authorization: basic ", "aws_secret_access_key=", "k" * 40, "[redacted]", "/", "\x1b", "`"]
)  # fmt: skip


@example("-----BEGIN \nPRIVATE KEY-----")
@example("-----END -----END PRIVATE KEY-----")
@given(st.lists(WORDS, max_size=25).map("".join))
def test_what_looks_like_secrets_is_redacted(text: str) -> None:
    secrets = ("ZZZZ", "YXYX ZZZZ")

    for make in (clean, clean_line):
        shown = make(text, secrets)
        assert "ZZZZ" not in shown
        assert not re.search(r"-----(BEGIN|END) (RSA ){0,5}PRIVATE KEY-----", shown)


@given(TEXT, SECRETS, st.integers(2, 300))
def test_a_header_line_is_short_inert_and_header(
    text: str, secrets: tuple[str, ...], limit: int
) -> None:
    shown = header(text, limit, secrets)

    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", shown)
    assert all(secret not in shown for secret in secrets)


# What waits for a secret, and takes what follows it for one.
BEGUN = [
    'password="', "password:", "Authorization: Digest a=", "Authorization: Digest x", "Cookie: a=",
    "identified by '", "password $a$", "<password>", "-----BEGIN PRIVATE KEY-----", "password=x",
    "Authorization: Digest [redacted]", "Cookie: a=b; ", 'hunter2" password: "',
]  # fmt: skip


@pytest.mark.parametrize("begun", BEGUN)
def test_no_cell_hides_another(begun: str) -> None:
    rows = [
        (begun, "5006 nobody listens", begun, "the last"),
        ("one", "two", "three", "password=y1"),
    ]

    shown = fenced(table(("A", "B", "C", "D"), rows, ("hunter2",)), ("hunter2",))

    first, second = shown.split("\n")[2:4]
    assert "   5006 nobody listens   " in first
    assert first.endswith("   the last")
    assert second.split() == ["one", "two", "three", "password=[redacted]"]
    assert "hunter2" not in shown


BLOCKS = st.one_of(
    TEXT,
    st.lists(st.sampled_from(["`", "``", "```", "\n", "~~~", "a", " ", "\r", "é"])).map("".join),
    st.builds(lambda unit, count: unit * count, st.text(min_size=1), st.integers(1, 20_000)),
)


@given(BLOCKS)
def test_a_block_stays_under_the_cap_and_within_its_fence(text: str) -> None:
    shown = fenced(text, ())

    opening, *lines, closing = shown.split("\n")
    assert opening == closing
    assert set(opening) == {"`"}
    assert all(opening not in line for line in lines)
    assert len(lines) <= MAX_LINES
    assert len("\n".join(lines).encode()) <= MAX_BYTES
    assert cap("\n".join(lines)) == "\n".join(lines)


@pytest.mark.parametrize("unit", ["x" * 99 + "\n", "x", "é", "\n", "€\n", "x" * 1000 + "\n"])
def test_a_cut_text_keeps_head_and_tail_and_says_how_much_is_missing(unit: str) -> None:
    text = f"first {unit * (50_000 // len(unit))} last"

    head, middle, tail = re.split(r"\n(\.\.\. .* left out \.\.\.)\n", cap(text))

    assert text.startswith(head)
    assert text.endswith(tail)
    assert tail.endswith(" last")
    missing, size, lines = (int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", middle))
    assert size == len(text.encode())
    assert missing == size - len(head.encode()) - len(tail.encode())
    assert lines == text.count("\n") + 1


@given(st.text("<a/!?& ;\n\u00e9", max_size=500))
def test_the_head_of_a_body_begins_no_tag_and_shows_the_same(body: str) -> None:
    shown = inert_head(body)

    assert not re.search("<[A-Za-z/!?]", shown[:HEAD_LIMIT])
    assert shown.replace("&lt;", "<") == body.replace("&lt;", "<")
    assert inert_head(shown) == shown


@pytest.mark.parametrize("place", range(195, 202))
def test_a_tag_across_the_end_of_a_preview_is_not_begun_in_it(place: int) -> None:
    shown = inert_head("-" * place + "<img src=x>")

    assert "<" not in shown[:HEAD_LIMIT]
    assert shown[HEAD_LIMIT:].endswith("img src=x>"[max(0, HEAD_LIMIT - place) :])
