"""`edgemail`: the command line. Owns its options and their help; each command's work is in a module of its own.

What serves is imported when it is to serve: a command that asks the daemon starts in a fraction of that time. And the
daemon reads its own command line without argparse, which would stay in memory for as long as it runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from edgemail import __version__
from edgemail.boot.frames import EX_CONFIG, EX_OK, EX_OSERR, EX_USAGE
from edgemail.errors import ConfigurationError, SystemRefused

if TYPE_CHECKING:
    import argparse

DESCRIPTION: Final = "A crash-safe mail relay for small gateways: it queues until the link is up."
EPILOG: Final = """\
examples:
  edgemail demo                            a relay on loopback that shows what it does
  edgemail check --config relay.toml       every mistake at once, with line and hint
  edgemail run --config relay.toml         serve in the foreground; SIGHUP reloads, SIGTERM drains and stops
  edgemail queue why                       why mail waits
  edgemail config -n                       what the file changes

without --config: $EDGEMAIL_CONFIG, then /etc/edgemail/edgemail.toml
also known as: sendmail, mailq, postqueue, postsuper, postcat, qshape
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    import argparse

    from edgemail.boot import box_command, queue_command, spool_command

    class Parser(argparse.ArgumentParser):
        """Wrong use exits with 64, as sysexits has it."""

        def error(self, message: str) -> None:  # type: ignore[override]
            self.print_usage(sys.stderr)
            self.exit(EX_USAGE, f"{self.prog}: {message}\n")

    raw = argparse.RawDescriptionHelpFormatter
    top = Parser(prog="edgemail", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    top.add_argument("--config", metavar="FILE", default=None, help="the configuration file")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="serve in the foreground until SIGTERM")
    run.set_defaults(run=_run)
    check = commands.add_parser("check", help="check a configuration; silent when all is well")
    check.add_argument("--json", action="store_true", help="problems as JSON lines")
    check.set_defaults(run=_check)
    config = commands.add_parser(
        "config",
        help="print the configuration in force",
        description="Print the configuration in force, as a file would spell it.",
        epilog="examples:\n  edgemail config -n\n  edgemail config -h message_size_limit\n  edgemail config --json",
        formatter_class=raw,
        add_help=False,
    )
    config.add_argument("--help", action="help", help="show this help message and exit")
    config.add_argument("names", nargs="*", metavar="NAME", help="these parameters only")
    which = config.add_mutually_exclusive_group()
    which.add_argument("-n", action="store_true", dest="changed", help="only what the file sets")
    which.add_argument("-d", action="store_true", dest="defaults", help="the defaults")
    config.add_argument("-h", action="store_true", dest="bare", help="values without names, as postconf -h")
    config.add_argument("--json", action="store_true", help="durations in seconds, sizes in bytes")
    config.set_defaults(run=_config)
    queue_command.add_to(commands)
    spool_command.add_to(commands)
    box_command.add_to(commands)
    reload = commands.add_parser("reload", help="let the running relay read its configuration again")
    reload.set_defaults(run=_reload)
    status = commands.add_parser("status", help="what the running relay says of itself, as JSON")
    status.add_argument("--json", action="store_true", help="is what it prints anyway")
    status.set_defaults(run=_status)
    routes = commands.add_parser("routes", help="where mail goes, whether it can now, and the links")
    routes.add_argument("--json", action="store_true", help="as JSON; times are seconds since 1970")
    routes.set_defaults(run=_routes)
    etrn = commands.add_parser(
        "etrn",
        help="ask a provider for the mail that it keeps for us (ETRN)",
        description="Ask a provider to send, over connections of its own, the mail that waits there for our domains.",
        epilog="exit codes: 0 started, 69 refused, 75 not now",
    )
    etrn.add_argument("host", metavar="HOST[:PORT]", help="the provider; port 25 unless it is named")
    etrn.add_argument("domains", nargs="+", metavar="DOMAIN", help="@DOMAIN: with all below it; #NAME: a queue of its")
    etrn.add_argument("--json", action="store_true", help="JSON lines, for programs")
    etrn.set_defaults(run=_etrn)
    atrn = commands.add_parser(
        "atrn",
        help="take the mail that a provider keeps for us, over one connection (ATRN)",
        description="Take the mail that waits at a provider for our domains, over the connection that asks for it.",
        epilog="exit codes: 0 taken, or there was none; 69 refused, 75 not now",
    )
    atrn.add_argument("host", metavar="HOST[:PORT]", help="the provider; port 366 unless it is named")
    atrn.add_argument("domains", nargs="+", metavar="DOMAIN", help="mail for these is taken, and no other")
    atrn.add_argument("--user", required=True, help="as whom to log in")
    atrn.add_argument("--password-file", required=True, metavar="FILE", help="its first line is the password")
    atrn.add_argument("--json", action="store_true", help="as JSON")
    atrn.set_defaults(run=_atrn)
    passwd = commands.add_parser("passwd", help="set or delete a user's password for AUTH")
    passwd.add_argument("--delete", action="store_true", help="take the user away")
    passwd.add_argument("--cram", action="store_true", help="for ATRN with CRAM-MD5: the file then holds the password")
    passwd.add_argument("user", metavar="USER")
    passwd.set_defaults(run=_passwd)
    demo = commands.add_parser("demo", help="run a relay on loopback and show a message's way through it")
    demo.add_argument("directory", nargs="?", default="var", help="where its files go (default: ./var)")
    demo.set_defaults(run=_demo)
    version = commands.add_parser("version", help="print the version")
    version.add_argument("--json", action="store_true", help="as JSON")
    version.set_defaults(run=_version)
    for command in commands.choices.values():
        _accept_config(command)
    return top


def _accept_config(command: argparse.ArgumentParser) -> None:
    """`--config` may stand behind the command too, and behind its subcommand."""
    import argparse

    command.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="the configuration file")
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _accept_config(inner)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edgemail`; returns the exit code."""
    match list(sys.argv[1:] if argv is None else argv):
        case ["run"]:
            return _serve(None)
        case ["run", "--config", path] | ["--config", path, "run"]:
            return _serve(path)
        case ["boot"] | ["boot", "--serve" | "--confirm" | "--upkeep"] as words:  # a board waits for each of them
            from edgemail.boot import stages

            return stages.STAGES["".join(words[1:])]()
    from edgemail.boot.client import Failure

    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except ConfigurationError as error:
        from edgemail.boot import reading

        print(reading.report(error.path, error.problems), file=sys.stderr)
        return EX_CONFIG
    except Failure as failure:
        print(f"edgemail: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OK
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    return _serve(arguments.config)


def _serve(path: str | None) -> int:
    from edgemail.boot.reading import Reader, find

    try:
        reader = Reader(find(path))
        from edgemail.boot import serve  # while the child reads the file

        return serve.run(reader)
    except SystemRefused as error:
        print(f"fatal: {error}", file=sys.stderr)
        return EX_OSERR
    except KeyboardInterrupt:
        return 130


def _demo(arguments: argparse.Namespace) -> int:
    from edgemail.boot import demo

    return demo.run(arguments.directory)


def _check(arguments: argparse.Namespace) -> int:
    from edgemail.boot import config, reading

    path = reading.find(arguments.config)
    try:
        errors, warnings = config.check(config.load(path))
    except ConfigurationError as error:
        errors, warnings = error.problems, ()
    if arguments.json:
        for kind, problems in (("error", errors), ("warning", warnings)):
            for one in problems:
                found = {"file": path, "line": one.line, "key": one.key, "message": one.message, "hint": one.hint}
                print(json.dumps({"kind": kind, **found}, ensure_ascii=False))
    else:
        if warnings:
            print(reading.report(path, warnings).replace(f"{path}:", f"warning: {path}:"), file=sys.stderr)
        if errors:
            print(reading.report(path, errors), file=sys.stderr)
    return EX_CONFIG if errors else EX_OK


def _config(arguments: argparse.Namespace) -> int:
    from edgemail.boot import config, reading, show
    from edgemail.boot.expand import Mistake

    configuration = config.load(reading.find(arguments.config), files=False)
    changed, defaults = arguments.changed, arguments.defaults
    try:
        if arguments.json:
            print(show.as_json(configuration, arguments.names, changed=changed))
        else:
            print(show.text(configuration, arguments.names, changed=changed, defaults=defaults, bare=arguments.bare))
    except Mistake as mistake:
        print(f"edgemail: {mistake}", file=sys.stderr)
        return EX_USAGE
    return EX_OK


def _reload(arguments: argparse.Namespace) -> int:
    from edgemail.boot.client import Office

    Office.of(arguments.config).ask({"verb": "reload"})
    return EX_OK


def _status(arguments: argparse.Namespace) -> int:
    from edgemail.boot.client import Office

    answer = Office.of(arguments.config).ask({"verb": "status"})
    print(json.dumps({name: value for name, value in answer.items() if name != "done"}, ensure_ascii=False, indent=2))
    return EX_OK


def _routes(arguments: argparse.Namespace) -> int:
    from edgemail.boot.routes import show

    sys.stdout.write(show(arguments.config, as_json=arguments.json))
    return EX_OK


def _etrn(arguments: argparse.Namespace) -> int:
    from edgemail.boot.asking import etrn

    return etrn(arguments.config, arguments.host, arguments.domains, as_json=arguments.json)


def _atrn(arguments: argparse.Namespace) -> int:
    from edgemail.boot.asking import atrn

    given = arguments.host, arguments.user, arguments.password_file, arguments.domains
    return atrn(arguments.config, *given, as_json=arguments.json)


def _passwd(arguments: argparse.Namespace) -> int:
    from edgemail.boot import config, reading
    from edgemail.boot.passwd import passwd

    found = config.load(reading.find(arguments.config), files=False)
    return passwd(found, arguments.user, delete=arguments.delete, recoverable=arguments.cram)


def _version(arguments: argparse.Namespace) -> int:
    print(json.dumps({"version": __version__}) if arguments.json else f"edgemail {__version__}")
    return EX_OK


if __name__ == "__main__":
    sys.exit(main())
