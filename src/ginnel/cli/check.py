"""``ginnel check``: what will become of a client file, option by option."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from ginnel.errors import ConfigError
from ginnel.openvpn.advice import Advice, advise
from ginnel.openvpn.directives import Verdict
from ginnel.openvpn.ovpn_file import Finding, Report, report_ovpn
from ginnel.openvpn.settings import tls_context
from ginnel.openvpn.tls import KeyPasswordError


@click.command(name="check")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.ovpn")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(file: Path, as_json: bool) -> int:
    """Say what `ginnel connect` would do with FILE.ovpn, option by option.

    What is ignored, what is unsafe and what to change is said as well. Ends with status 2 if the file
    can't be used.
    """
    try:
        report = _with_tls(report_ovpn(file))
        advice = _open_to_others(file)
    except ConfigError as error:
        if not as_json:
            raise
        refused = Finding(error.line or 0, error.option or "", Verdict.REFUSED, str(error))
        report, advice = Report((refused,), None), ()
    if report.config is not None:
        login = report.config.auth_user_pass
        advice += _readable_login(login.file) if login is not None and login.file is not None else ()
        advice += advise(report.config, datetime.now(UTC))
    if as_json:
        print(json.dumps(_described(file, report, advice)))
    else:
        _show(file, report, advice)
    return 0 if report.config is not None else ConfigError.exit_status


def _with_tls(report: Report) -> Report:
    """The same with what OpenSSL says against the file, and without a configuration if it does. A password that is
    to be asked for is nothing against it."""
    if report.config is None:
        return report
    try:
        tls_context(report.config)
    except ConfigError as error:
        option = error.option or "cert"
        if isinstance(error, KeyPasswordError) and not error.wrong:
            return replace(report, findings=tuple(_with_password(finding, option) for finding in report.findings))
        line = next((finding.line for finding in report.findings if finding.option == option), 0)
        text = "; ".join(filter(None, (error.message, error.instead)))
        return Report((*report.findings, Finding(line, option, Verdict.REFUSED, text)), None)
    return report


def _with_password(finding: Finding, option: str) -> Finding:
    if finding.option != option:
        return finding
    return replace(finding, text=f"{finding.text}; it is encrypted, and its password asked for")


def _open_to_others(file: Path) -> tuple[Advice, ...]:
    if file.stat().st_mode & 0o077 and b"PRIVATE KEY-----" in file.read_bytes():
        return (Advice("key", "other users of this machine may read the private key", f"chmod 600 {file}"),)
    return ()


def _readable_login(name: str) -> tuple[Advice, ...]:
    if Path(name).stat().st_mode & 0o077:
        return (Advice("auth-user-pass", "other users of this machine may read the password", f"chmod 600 {name}"),)
    return ()


def _described(file: Path, report: Report, advice: tuple[Advice, ...]) -> dict[str, object]:
    return {
        "file": str(file),
        "usable": report.config is not None,
        "options": [
            {"line": finding.line, "option": finding.option, "verdict": finding.verdict.value, "text": finding.text}
            for finding in report.findings
        ],
        "unsafe": [{"option": item.option, "text": item.text, "instead": item.instead} for item in advice],
    }


def _show(file: Path, report: Report, advice: tuple[Advice, ...]) -> None:
    console = _Console(file=sys.stdout, highlight=False, soft_wrap=True)
    options = [finding.option for finding in report.findings] + [item.option for item in advice]
    width = max(map(len, options), default=0)
    for finding in report.findings:
        line = Text(f"{finding.line or '':>4}  {finding.option:<{width}}  ")
        line.append(f"{finding.verdict.value:<9}", STYLES[finding.verdict])
        console.print(line + Text(f"  {finding.text}"))
    for item in advice:
        line = Text(f"      {item.option:<{width}}  ").append(f"{'unsafe':<9}", "bold yellow")
        console.print(line + Text(f"  {item.text}; {item.instead}"))
    console.print(_summary(file, report, advice))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich would end the program, with a status of its own.
        raise


def _summary(file: Path, report: Report, advice: tuple[Advice, ...]) -> Text:
    counts = {verdict: sum(finding.verdict is verdict for finding in report.findings) for verdict in Verdict}
    if report.config is None:
        return Text(f"{file} can't be used: {counts[Verdict.REFUSED]} to change", style="bold red")
    parts = [f"{counts[Verdict.SUPPORTED]} options have their effect", f"{counts[Verdict.IGNORED]} have none"]
    if advice:
        parts.append(f"{len(advice)} unsafe")
    return Text(f"{file} can be used: {', '.join(parts)}", style="bold")


STYLES = {Verdict.SUPPORTED: "green", Verdict.IGNORED: "yellow", Verdict.REFUSED: "bold red"}
