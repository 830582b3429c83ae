"""URLs of a shared store: what they say, and that no message quotes a password, wherever it stands."""

import pytest

from dnc_serve.handler.store.redis_url import parse_redis_url, without_password


def test_sentinels_a_service_a_database_and_credentials():
    url = parse_redis_url("redis+sentinel://me:p%40ss@h1:26379,[::1]:26380/my%20service/3?sentinel_password=an0ther")
    assert url.sentinels == (("h1", 26379), ("::1", 26380))
    assert (url.service, url.db, url.tls) == ("my service", 3, {})
    assert url.credentials == {"username": "me", "password": "p@ss"}
    assert url.sentinel_credentials == {"password": "an0ther"}
    assert url.where == "redis+sentinel://h1:26379,[::1]:26380/my%20service/3"
    assert "ss" not in repr(url).replace("my%20service", "").replace("my service", "").replace("ssl", "")


def test_tls_goes_to_all_of_them():
    url = parse_redis_url("rediss+sentinel://h:1/s?ssl_ca_certs=/ca.pem&sentinel_user=watcher")
    assert url.tls == {"ssl": True, "ssl_ca_certs": "/ca.pem"}
    assert (url.db, url.credentials, url.sentinel_credentials) == (0, {}, {"username": "watcher"})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+sentinel://:s3cret@h/s", "the Sentinels can't be read"),
        ("redis+sentinel://:s3cret@h:1,/s", "the Sentinels can't be read"),
        ("redis+sentinel://:s3cret/word@h:1/s", "the Sentinels can't be read"),
        ("redis+sentinel://:s3cret@h:1", "names no service"),
        ("redis+sentinel://:s3cret@h:1/s/x", "the number of the database can't be read"),
        ("redis+sentinel://h:1/s?pass=s3cret", "is unknown or empty, there are sentinel_user, sentinel_password, ssl_"),
        ("redis+sentinel://h:1/s?sentinel_password=", "is unknown or empty"),
        ("redis+sentinel://h:1/s?ssl_ca_certs=s3cret", "has options of TLS, and its scheme has none"),
        ("redis://:s3cret/word@h", "are odd characters percent-encoded"),
        ("redis:s3cret", "expected redis://HOST:PORT/DB, "),
        ("valkey://:s3cret@h", "expected redis://HOST:PORT/DB, "),
    ],
)
def test_what_is_wrong_is_told_without_a_piece_of_it(url, message):
    with pytest.raises(ValueError, match=message) as refused:
        parse_redis_url(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:s3cret@h:1/0", "redis://me:***@h:1/0"),
        ("redis://:s3/cr@et@h:1/0", "redis://:***@h:1/0"),
        ("redis+sentinel://h:1/s?sentinel_password=s3cret&ssl_keyfile=k", None),
        ("redis://h:1/0", "redis://h:1/0"),
        ("sqlite", "sqlite"),
    ],
)
def test_a_url_is_shown_without_its_passwords(url, shown):
    shown = shown or "redis+sentinel://h:1/s?sentinel_password=***&ssl_keyfile=k"
    assert without_password(url) == shown
