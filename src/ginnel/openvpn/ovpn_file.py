"""Reads ``.ovpn`` files, those of OpenVPN 2.x clients, as stock reads them.

`directives` says what becomes of each option, `ovpn_options` takes those that are supported. What is
unsupported and matters is refused with its line; what doesn't matter is warned about.

Where stock is told twice, the later value holds. So it is here, with a warning, except for what
decides whom to trust and how to encrypt: two different values of those are refused, since one of
them would be dropped without anyone's decision.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ginnel.errors import ConfigError
from ginnel.openvpn import ovpn_login, ovpn_pem
from ginnel.openvpn.config import ClientConfig, Remote, Warning
from ginnel.openvpn.directives import BLOCKS, DIRECTIVES, IN_CONNECTION, Directive, Verdict, names, suggest
from ginnel.openvpn.meanings import meaning
from ginnel.openvpn.ovpn_draft import Draft, Target
from ginnel.openvpn.ovpn_lexer import PEM, Statement, decode, statements
from ginnel.openvpn.ovpn_options import TAKERS
from ginnel.openvpn.ovpn_pem import Source
from ginnel.openvpn.ovpn_remote import finish_remote
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.tls_crypt_v2 import TlsCryptV2
from ginnel.openvpn.words import escape
from ginnel.openvpn.wrap import NoWrap, TlsAuth, TlsCrypt


def read_ovpn(path: str | os.PathLike[str]) -> ClientConfig:
    """Reads a file. Other files that it names (``ca ca.crt``) are looked for beside it, which is what
    people mean, while stock takes its working directory. Raises ConfigError."""
    where = Path(path)
    return parse_ovpn(_read(where), name=str(where), directory=where.parent)


def parse_ovpn(
    text: str | bytes, *, name: str = "<string>", directory: str | os.PathLike[str] | None = None
) -> ClientConfig:
    """Parses a file's text; ``name`` is for messages. Files that it names are looked for in
    ``directory``, without one in the working directory. Raises ConfigError."""
    reader = _Reader(name, Path(directory or ""))
    for statement in reader.statements(text):
        reader.take(statement)
    return reader.finish()


def read_revocations(path: str) -> str | frozenset[int]:
    """What ``crl-verify`` takes from a file, PEM, or from a folder: the serial numbers that files are named by.
    Raises ConfigError."""
    where = Path(path)
    if where.is_dir():
        return _serial_numbers(where)
    return ovpn_pem.revocation_lists(Source(decode(_read(where)), f"the file {escape(path)}", path, 1))


def read_login(path: str) -> tuple[str, str | None]:
    """User and password, as ``auth-user-pass`` takes them from a file. Raises ConfigError."""
    where = Path(path)
    return ovpn_login.read_login(Source(decode(_read(where)), f"the file {escape(path)}", path, 1))


@dataclass(frozen=True)
class Finding:
    """What becomes of a line. ``text`` says more where there is more to say."""

    line: int
    option: str
    verdict: Verdict
    text: str = ""


@dataclass(frozen=True)
class Report:
    """What becomes of each option, in the order of the file; what only the whole file shows comes last,
    line 0 if it belongs to none. ``config`` is None if anything is refused."""

    findings: tuple[Finding, ...]
    config: ClientConfig | None


def report_ovpn(path: str | os.PathLike[str]) -> Report:
    """Goes on after what `read_ovpn` would refuse. Raises ConfigError for what is no configuration file."""
    where = Path(path)
    reader = _Reader(str(where), where.parent)
    findings: list[Finding] = []
    for statement in reader.statements(_read(where)):
        refusals = []
        try:
            reader.take(statement)
        except ConfigError as error:
            refusals = [_refusal(error, statement)]
        # A <connection> comes after what is in it.
        findings += sorted([*map(_finding, reader.taken), *refusals], key=lambda finding: finding.line)
        reader.taken.clear()
    if any(finding.verdict is Verdict.REFUSED for finding in findings):
        return Report(tuple(findings), None)
    before = len(reader.warnings)
    try:
        config = reader.finish()
    except ConfigError as error:
        return Report((*findings, _refusal(error, Statement(0, ""))), None)
    findings += [
        Finding(warning.line, warning.option, Verdict.IGNORED, warning.text)
        for warning in reader.warnings[before:]
        if warning.text != NO_CHECK
    ]
    return Report(tuple(findings), config)


def _finding(taken: _Taken) -> Finding:
    statement, verdict, said = taken.statement, taken.verdict, taken.said
    if verdict is Verdict.SUPPORTED and "and has no effect" in said:
        verdict = Verdict.IGNORED
    elif verdict is Verdict.SUPPORTED:
        statement = _optional(statement) or statement
        said = "; ".join(filter(None, (meaning(statement.name, statement.words), said)))
    return Finding(statement.line, statement.name, verdict, said or WITHOUT_LOSS)


def _optional(statement: Statement) -> Statement | None:
    """The option in ``setenv opt OPTION …``."""
    if statement.name != "setenv" or statement.words[:1] != ("opt",) or len(statement.words) < 2:
        return None
    return Statement(statement.line, statement.words[1], statement.words[2:])


def _refusal(error: ConfigError, statement: Statement) -> Finding:
    text = "; ".join(filter(None, (error.message, error.instead)))
    return Finding(error.line or statement.line, error.option or statement.name, Verdict.REFUSED, text)


@dataclass(frozen=True)
class _Taken:
    """A statement that is not refused, and what was warned of it."""

    statement: Statement
    verdict: Verdict
    said: str


class _Reader:
    """Takes statements one after the other. Each ConfigError leaves it with file, line and option."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory
        self._current = Statement(0, "")
        self._given: dict[str, Statement] = {}
        self._announced: dict[str, Statement] = {}
        self._draft = Draft(source=self._source, binary=self._binary, revoked=self._revoked, warn=self._warn)
        self.warnings: list[Warning] = []
        self.taken: list[_Taken] = []
        """Those in a <connection>, too."""

    def statements(self, text: str | bytes) -> list[Statement]:
        try:
            if len(text) > MAX_FILE:
                raise ConfigError(TOO_LARGE)
            return list(statements(decode(text)))
        except ConfigError as error:
            raise self._located(error) from None

    def take(self, statement: Statement) -> None:
        self._current = statement
        before = len(self.warnings)
        try:
            verdict = self._take(statement)
        except ConfigError as error:
            raise self._located(error) from None
        # What was warned of within a <connection> is noted with that line.
        self._note(statement, verdict, len(self.warnings) if statement.name == "connection" else before)

    def _note(self, statement: Statement, verdict: Verdict, before: int) -> None:
        """``before``: how many warnings there were before it."""
        self.taken.append(_Taken(statement, verdict, "; ".join(warning.text for warning in self.warnings[before:])))

    def finish(self) -> ClientConfig:
        self._current = Statement(0, "")
        try:
            return self._finish()
        except ConfigError as error:
            if error.option in self._given:
                self._current = self._given[error.option]
            raise self._located(error) from None

    def _take(self, statement: Statement) -> Verdict:
        if (optional := _optional(statement)) is not None:
            statement = self._current = optional
            directive = self._find(statement, forgiven=True)
        elif statement.name == "setenv" and statement.words == ("opt",):
            raise ConfigError("setenv opt needs an option after it")
        else:
            directive = self._find(statement)
        if directive is None:
            return Verdict.IGNORED
        if directive.verdict is Verdict.SUPPORTED:
            self._take_supported(statement)
        return directive.verdict

    def _find(self, statement: Statement, *, forgiven: bool = False) -> Directive | None:
        """The directive, if it isn't refused. None for what the file itself calls optional."""
        name = statement.name
        directive = DIRECTIVES.get(name)
        forgiven = forgiven or self._draft.forgive_all or name in self._draft.forgiven
        complaint = instead = None
        if name == PEM:
            raise ConfigError(f"{PEM}, a certificate's or a key's, is outside of a block", option=PEM, instead=OUTSIDE)
        if directive is None:
            close = suggest(name)
            complaint = f"unknown option '{_shown(name)}'"
            instead = f"did you mean '{close}'?" if close else UNKNOWN
        elif directive.verdict is Verdict.REFUSED:
            raise ConfigError(f"{name} is not supported: {directive.text}", instead=directive.instead)
        elif statement.block is not None:
            if not directive.block:
                raise ConfigError(f"{name} can't be a block", instead=f"write it in one line: {name} …")
        elif directive.verdict is Verdict.SUPPORTED and not directive.takes(len(statement.words)):
            complaint = f"{name} needs {directive.text}" if directive.text else f"{name} takes no value"
        if complaint is None:
            assert directive is not None
            if directive.verdict is Verdict.IGNORED and directive.text:
                self._warn_of(statement, f"{name} has no effect: {directive.text}")
            return directive
        if not forgiven:
            raise ConfigError(complaint, option=_shown(name), instead=instead)
        self._warn_of(statement, f"{complaint}, left out as the file allows")
        return None

    def _take_supported(self, statement: Statement) -> None:
        name = statement.name
        if name == "connection":
            self._take_connection(statement)
            return
        if statement.words[:1] == ("[inline]",) and name in BLOCKS:
            # A notice of older files that a block comes; tls-auth's direction may stand here.
            self._announced[name] = statement
            if name == "tls-auth" and len(statement.words) > 1:
                TAKERS["key-direction"](self._draft, Statement(statement.line, name, statement.words[1:]))
            return
        self._take_value(self._draft, statement, self._given)

    def _take_value(self, draft: Draft, statement: Statement, given: dict[str, Statement]) -> None:
        """``given`` has the ones before it in the file, or in the <connection>."""
        name = statement.name
        before = given.get(name)
        if before is not None and name not in REPEATED and replace(before, line=statement.line) != statement:
            if name in DECISIVE:
                raise ConfigError(
                    f"{name} is given twice, with another value in line {before.line}",
                    instead="keep the right one",
                )
            self._warn(f"replaces line {before.line}")
        TAKERS[name](draft, statement)
        given[name] = statement

    def _take_connection(self, statement: Statement) -> None:
        """What is said within holds for its remote alone; the rest is as the file said it so far. A key-direction
        outside is of the key there."""
        draft = self._draft
        keys: dict[str, Any] = {"static_keys": {}, "client_key": None, "direction": None}
        inner = replace(draft, values={}, targets=[], entry=replace(draft.entry), **keys)
        self._draft = inner
        given: dict[str, Statement] = {}
        try:
            for line in statements(statement.block or "", statement.line + 1):
                self._current = line
                before = len(self.warnings)
                directive = self._find(line)
                if line.name not in IN_CONNECTION:
                    raise ConfigError(f"{line.name} can't be within <connection>", instead="write it outside")
                if line.name == "remote" and inner.targets:
                    raise ConfigError("a second remote in one <connection>", instead="write a block for each")
                if line.name == "connect-retry-max":
                    self._warn("connect-retry-max has no effect within <connection>: it is for all of them")
                elif directive is not None and directive.verdict is Verdict.SUPPORTED:
                    self._take_value(inner, line, given)
                self._note(line, Verdict.IGNORED if directive is None else directive.verdict, before)
        finally:
            self._draft = draft
        self._current = statement
        if not inner.targets:
            raise ConfigError("this <connection> has no remote", instead="write: remote HOST PORT")
        own = dict(inner.values)
        if inner.static_keys or inner.client_key:
            own["wrap"] = self._wrap(inner)
        remote = finish_remote(inner.targets[0], inner.entry)
        draft.connections.append(replace(remote, own=tuple(own.items())))

    def _finish(self) -> ClientConfig:
        draft = self._draft
        if not (draft.pull and draft.tls_client):
            raise ConfigError("the file does not say that it is a client's", option="client", instead="write: client")
        for name, statement in self._announced.items():
            if name not in self._given:
                raise ConfigError(
                    f"{name} [inline] without a <{name}> block",
                    line=statement.line,
                    option=name,
                    instead="add it",
                )
        if "keepalive" in self._given and self._given.keys() & {"ping", "ping-restart", "ping-exit"}:
            raise ConfigError(
                "keepalive has ping and ping-restart in it", option="keepalive", instead="keep one or the other"
            )
        values = draft.values
        remotes = self._remotes()
        if "ca" in self._given and not values.keys() & SERVER_CHECKS:
            self._warn_of(self._given["ca"], NO_CHECK)
        if "cert" in values and "key" in values and not ovpn_pem.is_encrypted(values["key"]):
            ovpn_pem.check_pair(values["cert"], values["key"])
        if "tls_version_min" not in values and values.get("tls_version_max", "1.2") < "1.2":
            values["tls_version_min"] = values["tls_version_max"]
        dev_type = self._dev_type()
        local = PushReply.parse(draft.local, tap=dev_type == "tap")
        if local.ignored:
            option, reason = local.ignored[0]
            raise ConfigError(f"{option}: {reason}", option=option.split()[0])
        return ClientConfig(
            remotes=remotes,
            dev_type=dev_type,
            dev=None if draft.dev in ("tun", "tap") else draft.dev,
            wrap=self._wrap(draft),
            local=local,
            setenv=tuple(draft.setenv.items()),
            warnings=tuple(self.warnings),
            **values,
        )

    def _remotes(self) -> tuple[Remote, ...]:
        """As in stock, <connection> blocks replace the remotes outside of them."""
        draft = self._draft
        if draft.connections:
            if draft.targets:
                self._warn_of(draft.targets[0], "remote has no effect: the <connection> blocks replace it")
            return tuple(map(self._with_auth, draft.connections))
        return tuple(finish_remote(target, draft.entry) for target in draft.targets)

    def _with_auth(self, remote: Remote) -> Remote:
        """``auth`` is the whole file's, wherever it stands: for a key in a <connection>, too."""
        own = dict(remote.own)
        if isinstance(wrap := own.get("wrap"), TlsAuth):
            own["wrap"] = replace(wrap, digest=self._auth)
        return replace(remote, own=tuple(own.items()))

    @property
    def _auth(self) -> str:
        return str(self._draft.values.get("auth", "SHA1"))

    def _dev_type(self) -> Literal["tun", "tap"]:
        draft = self._draft
        if draft.dev is None:
            raise ConfigError("no dev: the file does not say what kind of tunnel it is for", instead="write: dev tun")
        match draft.dev_type or draft.dev[:3]:
            case "tun" | "tap" as kind:
                return kind
            case _:
                raise ConfigError(
                    f"'{escape(draft.dev)}' does not begin with tun or tap",
                    option="dev",
                    instead="add: dev-type tun",
                )

    def _wrap(self, draft: Draft) -> NoWrap | TlsAuth | TlsCrypt | TlsCryptV2:
        wraps: dict[str, Any] = dict(draft.static_keys)
        if draft.client_key is not None:
            wraps["tls-crypt-v2"] = draft.client_key
        if len(wraps) > 1:
            raise ConfigError(
                f"{' and '.join(wraps)} exclude each other", option=[*wraps][-1], instead="keep what the server has"
            )
        match wraps:
            case {"tls-crypt-v2": key}:
                return TlsCryptV2(key)
            case {"tls-crypt": key}:
                return TlsCrypt(key)
            case {"tls-auth": key}:
                return TlsAuth(key, self._auth, draft.direction)
            case _:
                return NoWrap()

    def _binary(self, statement: Statement) -> bytes:
        """A file as it is, or a block of base64."""
        if statement.block is None:
            return _read(self._directory / statement.words[0])
        try:
            return base64.b64decode("".join(statement.block.split()), validate=True)
        except ValueError:
            raise ConfigError(f"the <{statement.name}> block is not base64") from None

    def _revoked(self, statement: Statement) -> tuple[str, frozenset[int]]:
        folder = self._directory / statement.words[0]
        return str(folder), _serial_numbers(folder)

    def _source(self, statement: Statement) -> Source:
        if statement.block is not None:
            source = Source(statement.block, f"the <{statement.name}> block", None, statement.line + 1)
        else:
            path = self._directory / statement.words[0]
            try:
                text = decode(_read(path))
            except ConfigError as error:
                file = None if error.line is None else str(path)
                raise ConfigError(error.message, file=file, line=error.line, instead=error.instead) from None
            source = Source(text, f"the file {escape(str(path))}", str(path), 1)
        if not source.text.strip():
            raise source.error(f"{source.name} is empty")
        return source

    def _warn(self, text: str) -> None:
        self._warn_of(self._current, f"{self._current.name}: {text}")

    def _warn_of(self, statement: Statement | Target, text: str) -> None:
        option = statement.name if isinstance(statement, Statement) else "remote"
        if not any((known.option, known.text) == (option, text) for known in self.warnings):
            self.warnings.append(Warning(statement.line, option, text))

    def _located(self, error: ConfigError) -> ConfigError:
        option = error.option or self._current.name or None
        message = error.message
        if option is not None and not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", message):
            message = f"{option}: {message}"
        file, line = error.file, error.line
        if file is None:
            file, line = self._name, line or self._current.line or None
        return ConfigError(message, file=file, line=line, option=option, instead=error.instead)


def _shown(name: str) -> str:
    """Of what is no option. None is as long as a line of a key."""
    return escape(name if len(name) <= MAX_NAME else f"{name[:8]}…")


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        shown = escape(str(path))
        if "\n" in str(path) or len(shown) > MAX_SHOWN:
            # There may be keys in it, which belong in no message.
            raise ConfigError(
                f"{shown[:20]}…: that is a file's text, not its name",
                instead="give the name; from a program ginnel.parse_ovpn(text) takes the text",
            ) from None
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot read {shown}: {reason}") from None
    if len(data) > MAX_FILE:
        raise ConfigError(f"{escape(str(path))}: {TOO_LARGE}")
    return data


def _serial_numbers(folder: Path) -> frozenset[int]:
    """Whatever is in the files, and in decimal (``ssl_verify.c``, verify_check_crl_dir)."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_REVOKED + 1)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot read {escape(str(folder))}: {reason}") from None
    if len(names) > MAX_REVOKED:
        raise ConfigError(f"{escape(str(folder))}: more than {MAX_REVOKED} files", instead="use a revocation list")
    return frozenset(int(name) for name in names if re.fullmatch("0|-?[1-9][0-9]{0,60}", name))


OUTSIDE = "write its name before it and after it, as in <key> … </key>"
MAX_NAME = 30
MAX_REVOKED = 100_000
MAX_FILE = 1 << 20
# Of a path: Linux takes no longer one.
MAX_SHOWN = 4096
TOO_LARGE = "more than 1 MiB, which no configuration needs"
SERVER_CHECKS = {"remote_cert_tls", "remote_cert_eku", "verify_x509_name", "peer_fingerprints", "issuer_fingerprints"}
NO_CHECK = "whoever has any certificate of this ca can pose as the server; add: remote-cert-tls server"
UNKNOWN = "if the server does not depend on it, remove it"
WITHOUT_LOSS = "nothing that would be missed"
REPEATED = names(
    "client pull tls-client remote pull-filter setenv ignore-unknown-option peer-fingerprint verify-hash route "
    "route-ipv6 dhcp-option dns redirect-gateway redirect-private"
)
DECISIVE = names(
    "ca cert key pkcs12 extra-certs crl-verify tls-auth tls-crypt tls-crypt-v2 remote-cert-tls remote-cert-eku "
    "remote-cert-ku verify-x509-name x509-username-field tls-cipher tls-ciphersuites tls-groups tls-version-min "
    "tls-version-max auth data-ciphers ncp-ciphers data-ciphers-fallback"
)
