"""Random requests: names, texts and JSON objects as a message may hold them."""

from __future__ import annotations

from hypothesis import strategies as st

from catalyst_heartbeat.request import NAME

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
NUMBERS = st.one_of(
    st.integers(-(10**18), 10**18), st.floats(allow_nan=False, allow_infinity=False)
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT.filter(lambda key: key != "reason"), JSON_VALUES, max_size=4)
NAMES = st.from_regex(NAME, fullmatch=True)
