"""`edgemail passwd`: gives a user a password, or takes the user away.

Owns the asking: twice at a terminal, one line from standard input otherwise; never an argument, which every process
list shows. The file's form is relay.receive.auth's.
"""

from __future__ import annotations

import getpass
import pwd
import sys
from typing import Final

from edgemail.errors import TableError
from edgemail.relay.receive import auth
from edgemail.settings import Configuration

# sysexits(3)
EX_OK: Final = 0
EX_USAGE: Final = 64
EX_DATAERR: Final = 65
EX_NOUSER: Final = 67
EX_CANTCREAT: Final = 73
EX_CONFIG: Final = 78


def passwd(configuration: Configuration, user: str, *, delete: bool = False, recoverable: bool = False) -> int:
    """Edit the password file of the configuration; returns the exit code. What went wrong is said on stderr."""
    path = password_file(configuration)
    if not path:
        return _failed("no smtpd_sasl_password_file is configured", EX_CONFIG)
    try:
        if delete:
            return EX_OK if auth.delete_user(path, user) else _failed(f"there is no user {user} in {path}", EX_NOUSER)
        password = ask(user)
        if not password:
            return _failed("no password was given; nothing is changed", EX_DATAERR)
        owner = _owner(configuration.settings.mail_owner)
        auth.set_password(path, user, password, owner=owner, recoverable=recoverable)
    except ValueError as error:
        return _failed(str(error), EX_USAGE)
    except (OSError, TableError) as error:
        return _failed(f"{path}: {getattr(error, 'strerror', None) or error}", EX_CANTCREAT)
    return EX_OK


def _owner(name: str) -> tuple[int, int] | None:
    """Who is to read the file: the user that the relay becomes."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def password_file(configuration: Configuration) -> str:
    """The file of the box, or of the first listener that has one."""
    every = (configuration.settings, *(listener.settings for listener in configuration.listeners))
    return next((each.smtpd_sasl_password_file for each in every if each.smtpd_sasl_password_file), "")


def ask(user: str) -> str:
    """The password, "" where none was given or the two differ."""
    if not sys.stdin.isatty():
        return sys.stdin.readline(auth.MAX_PASSWORD + 2).rstrip("\r\n")  # what is longer is refused by its length
    first = getpass.getpass(f"Password for {user}: ")
    if not first:
        return ""
    if getpass.getpass("The same again: ") != first:
        print("edgemail passwd: the two are not the same", file=sys.stderr)
        return ""
    return first


def _failed(why: str, code: int) -> int:
    print(f"edgemail passwd: {why}", file=sys.stderr)
    return code
