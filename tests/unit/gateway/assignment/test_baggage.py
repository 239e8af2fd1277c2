"""W3C Baggage as its specification reads it."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptrollout.gateway.assignment.baggage import MAX_BYTES, MAX_MEMBERS, parse
from promptrollout.gateway.http.exchange import headers_of


@pytest.mark.parametrize(
    ("header", "members"),
    [
        (b"", {}),
        (b"key1=value1", {b"key1": b"value1"}),
        (b"key1=value1,key2 = value2 ; propertyKey , key3=value3; propertyKey=propertyValue",
         {b"key1": b"value1", b"key2": b"value2", b"key3": b"value3"}),
        (b"\tkey\t=\tvalue\t", {b"key": b"value"}),
        (b"user=Am%C3%A9lie,serverNode=DF%2028,isProduction=false",
         {b"user": "Amélie".encode(), b"serverNode": b"DF 28", b"isProduction": b"false"}),
        (b"a=1,a=2", {b"a": b"1"}),
        (b"a=b=c==", {b"a": b"b=c=="}),
        (b"a=1+1", {b"a": b"1+1"}),
        (b"a=%", {b"a": b"%"}),
        (b"a=%zz", {b"a": b"%zz"}),
        (b"a=%FF", {b"a": "\ufffd".encode()}),
        (b"a=%2C%3B", {b"a": b",;"}),
        (b"a=", {b"a": b""}),
        (b"a", {}),
        (b"=b", {}),
        (b"a b=c,ok=1", {b"ok": b"1"}),
        (b"a=b c,ok=1", {b"ok": b"1"}),
        (b'a="b",ok=1', {b"ok": b"1"}),
        (b"a=\xc3\xa9,ok=1", {b"ok": b"1"}),
        (b",,ok=1,", {b"ok": b"1"}),
        (b"a%20b=1", {b"a%20b": b"1"}),
    ],
)  # fmt: skip
def test_members(header: bytes, members: dict[bytes, bytes]) -> None:
    assert parse(header) == members


def test_members_beyond_the_limits_are_not_read() -> None:
    many = b",".join(b"k%d=%d" % (n, n) for n in range(MAX_MEMBERS + 5))
    assert list(parse(many)) == [b"k%d" % n for n in range(MAX_MEMBERS)]
    fits = b"first=1,long=" + b"x" * (MAX_BYTES - 13)
    assert len(fits) == MAX_BYTES
    assert set(parse(fits)) == {b"first", b"long"}
    assert set(parse(fits + b"x")) == {b"first"}, "a value is taken as a whole or not at all"
    assert parse(fits + b",next=1")[b"long"] == b"x" * (MAX_BYTES - 13)
    assert b"next" not in parse(fits + b",next=1")


def test_several_headers_of_baggage_are_one_list_and_of_others_the_first_counts() -> None:
    raw = [(b"baggage", b"a=1"), (b"x-user-id", b"first"), (b"baggage", b"b=2"), (b"x-user-id", b"second")]
    headers = headers_of({"headers": raw})
    assert headers == {"baggage": b"a=1,b=2", "x-user-id": b"first"}
    assert parse(headers["baggage"]) == {b"a": b"1", b"b": b"2"}


@given(st.binary(max_size=20_000))
def test_no_header_is_too_much(header: bytes) -> None:
    members = parse(header)
    assert len(members) <= MAX_MEMBERS
    for value in members.values():
        value.decode()


@given(st.dictionaries(st.from_regex(r"[a-z.]{1,20}", fullmatch=True), st.text(max_size=30), max_size=20))
def test_what_is_encoded_as_the_specification_says_comes_back(members: dict[str, str]) -> None:
    header = ", ".join(f"{key}={quote(value, safe='')};property" for key, value in members.items())
    assert parse(header.encode()) == {key.encode(): value.encode() for key, value in members.items()}
