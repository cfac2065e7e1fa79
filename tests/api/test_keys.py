"""Who is calling: where a key may be, which of several counts, and what is never done with one."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.keys import MAX_KEY, MAX_TRIED, PLACES, Keys, brought, caller
from gateway.config import AuthConfig, ServerConfig
from gateway.errors import Unauthenticated

ALICE, BOB = b"alice-key-0001", b"bob-key-0002"
LONG = b"l" * MAX_KEY
Headers = list[tuple[bytes, bytes]]

SERVER = ServerConfig()


def keys(open_lists: bool = False) -> Keys:
    told = {"alice": ALICE, "bob": BOB, "long": LONG, "longer": LONG + b"l"}
    entries = [{"name": name, "sha256": hashlib.sha256(key).hexdigest()} for name, key in told.items()]
    return Keys(AuthConfig.model_validate({"keys": entries, "open_lists": open_lists}))


def basic(text: bytes) -> bytes:
    return b"Basic " + base64.b64encode(text)


WAYS: list[tuple[Headers, str]] = [
    ([(b"authorization", b"Bearer " + ALICE)], ""),
    ([(b"authorization", b"bearer   " + ALICE + b" ")], ""),
    ([(b"authorization", basic(b"anyone:" + ALICE))], ""),
    ([(b"authorization", basic(ALICE + b":"))], ""),
    ([(b"authorization", basic(ALICE))], ""),
    ([(b"x-api-key", ALICE)], ""),
    ([(b"api-key", ALICE)], ""),
    ([], ALICE.decode()),
]


@pytest.mark.parametrize(("headers", "in_path"), WAYS)
def test_a_key_means_the_same_caller_wherever_it_is(headers: Headers, in_path: str) -> None:
    assert keys().owner(headers, in_path) == "alice"


def test_keys_are_taken_in_the_documented_order() -> None:
    headers = [
        (b"api-key", b"4"),
        (b"x-api-key", b"3"),
        (b"authorization", basic(b"user:password")),
        (b"authorization", b"Bearer 1"),
    ]
    assert list(brought(headers, "5")) == [b"1", b"password", b"user", b"3", b"4", b"5"]


def test_of_two_known_keys_the_first_in_that_order_counts() -> None:
    assert keys().owner([(b"x-api-key", BOB), (b"authorization", b"Bearer " + ALICE)]) == "alice"
    assert keys().owner([(b"x-api-key", BOB)], ALICE.decode()) == "bob"


@pytest.mark.parametrize("placeholder", [b"Bearer", b"Bearer ", b"Bearer ollama", b"Basic ####", b"Digest x", b""])
def test_a_placeholder_does_not_hide_the_key_behind_it(placeholder: bytes) -> None:
    assert keys().owner([(b"authorization", placeholder)], BOB.decode()) == "bob"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", ALICE)],
        [(b"authorization", b"Bearer " + hashlib.sha256(ALICE).hexdigest().encode())],
        [(b"x-api-key", ALICE[:-1])],
        [(b"x-api-key", ALICE.upper())],
        [(b"cookie", ALICE)],
    ],
)
def test_no_key_and_a_wrong_one_are_refused_without_being_repeated(headers: Headers) -> None:
    with pytest.raises(Unauthenticated) as caught:
        keys().owner(headers)
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (401, "invalid_api_key", False)
    assert "wrong" not in caught.value.message
    assert ALICE.decode() not in caught.value.message


def test_the_longest_key_is_512_bytes_and_a_longer_one_is_never_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys().owner([(b"x-api-key", LONG)]) == "long"
    known = keys()
    hashed: list[int] = []
    real = hashlib.sha256

    def noted(data: bytes) -> Any:
        hashed.append(len(data))
        return real(data)

    monkeypatch.setattr("gateway.api.keys.hashlib.sha256", noted)
    for name, value in ((b"x-api-key", LONG + b"l"), (b"authorization", basic(b"x" * 10_000))):
        with pytest.raises(Unauthenticated):
            known.owner([(name, value)])
    assert hashed == []


@pytest.mark.parametrize("headers", [[], [(b"x-api-key", ALICE)], [(b"x-api-key", b"wrong")]])
def test_every_known_key_is_compared_whoever_calls(headers: Headers, monkeypatch: pytest.MonkeyPatch) -> None:
    known = keys()
    compared: list[int] = []
    real = hmac.compare_digest

    def counted(one: Any, other: Any) -> bool:
        compared.append(1)
        return real(one, other)

    monkeypatch.setattr("gateway.api.keys.hmac.compare_digest", counted)
    with contextlib.suppress(Unauthenticated):
        known.owner(headers)
    assert len(compared) == 4


def test_only_so_many_keys_of_one_request_are_tried() -> None:
    with pytest.raises(Unauthenticated):
        keys().owner([*((b"x-api-key", b"%d" % n) for n in range(MAX_TRIED)), (b"api-key", ALICE)])


@given(value=st.binary(max_size=200), in_path=st.text(max_size=20))
def test_any_header_at_all_is_refused_in_words(value: bytes, in_path: str) -> None:
    headers = [(name, value) for name in (b"authorization", b"x-api-key", b"api-key")]
    with pytest.raises(Unauthenticated):
        keys().owner([*headers, (b"authorization", b"Basic " + value)], in_path)


LISTS = ["/v1/models", "/v1/models/a/b", "/api/tags", "/api/version", "/api/ps", "/api/chat/models"]
NEVER_OPEN = ["/metrics", "/gateway/status", "/gateway/explain", "/v1/nothing", "/v1/modelsx", "/api/show"]


@pytest.mark.parametrize("open_lists", [True, False])
def test_what_needs_a_key_is_everything_but_what_is_named(open_lists: bool) -> None:
    known = keys(open_lists)
    for method in ("GET", "HEAD"):
        assert not any(known.needed(method, path) for path in ("/", "/livez", "/readyz"))
        assert all(known.needed(method, path) for path in NEVER_OPEN)
        assert all(known.needed(method, path) is not open_lists for path in LISTS)
    assert all(known.needed("POST", path) for path in [*LISTS, "/", "/livez", "/v1/chat/completions", "/api/chat"])
    assert known.needed("POST", "/api/show") is not open_lists


def test_without_keys_nothing_needs_one() -> None:
    none = Keys(AuthConfig())
    assert not none
    assert not any(none.needed(method, path) for method in ("GET", "POST") for path in [*LISTS, *NEVER_OPEN])


def scope(address: str | None, owner: str = "") -> dict[str, Any]:
    known = {"gateway.caller": owner} if owner else {}
    return {"type": "http", "client": (address, 5000) if address is not None else None} | known


def test_whose_share_of_the_line_a_call_takes_is_the_keys_owners_wherever_it_comes_from() -> None:
    assert caller(scope("10.0.0.1", "amy"), SERVER) == caller(scope("10.0.0.2", "amy"), SERVER) == "amy"


def test_without_a_key_it_is_the_addresss_whatever_its_port_and_of_ipv6_the_networks() -> None:
    assert caller(scope("10.0.0.1"), SERVER) == caller(scope("::ffff:10.0.0.1"), SERVER)
    assert caller(scope("2001:db8::1"), SERVER) == caller(scope("2001:db8::ffff:2"), SERVER)
    assert len({caller(scope(one), SERVER) for one in ("10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1")}) == 4


@given(address=st.text(max_size=50))
def test_any_address_has_one_of_a_fixed_number_of_places_that_no_owner_can_have(address: str) -> None:
    name = caller(scope(address), SERVER)

    assert name[0] == "@"
    assert 0 <= int(name[1:]) < PLACES
    assert caller(scope(None), SERVER)[0] == "@"
