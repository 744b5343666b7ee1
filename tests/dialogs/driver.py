"""The least that a session does with a dialog: answers every event, knows recipients from settings, keeps messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from edgemail.envelope import Address
from edgemail.relay.wire import replies
from edgemail.relay.wire.dialog import Dialog
from edgemail.relay.wire.events import (
    Atrn,
    Auth,
    AuthResponse,
    Bad,
    Begin,
    Content,
    End,
    Etrn,
    Event,
    Hello,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Reset,
    StartTls,
    Vrfy,
)
from edgemail.reply import Reply

CLIENT = ip_address("127.0.0.1")


@dataclass
class Message:
    mail: Mail
    recipients: list[Rcpt] = field(default_factory=list)
    content: bytes = b""
    pieces: int = 0


class Driver:
    """Drives a dialog without IO. `refuse` holds replies for kinds of events, to be given instead of the usual ones."""

    def __init__(self, dialog: Dialog, users: Mapping[str, str] | None = None) -> None:
        self.dialog = dialog
        self.users = users or {}
        self.events: list[Event] = []  # Content left out
        self.replies: list[Reply] = []
        self.messages: list[Message] = []
        self.refuse: dict[type, Reply] = {}
        self.fail: Reply | None = None  # given at the first Content
        self.tls_wanted = False
        self._message = Message(Mail(Address("")))
        self._login = ""

    def greet(self) -> bytes:
        self.dialog.greet(Reply(220, "", f"{self.dialog.settings.myhostname} ESMTP edgemail"))
        return self.dialog.data_to_send()

    def receive(self, data: bytes) -> bytes:
        """What the dialog says to `data`."""
        self.dialog.receive_data(data)
        while (event := self.dialog.next_event()) is not None:
            if isinstance(event, Content):
                self._message.content += event.data
                self._message.pieces += 1
                if self.fail is not None:
                    self.dialog.fail(self.fail)
                continue
            self.events.append(event)
            reply = self.refuse.get(type(event)) or self._reply(event)
            number = self.dialog.error_number(reply)
            if number >= self.dialog.settings.smtpd_hard_error_limit:
                reply = replies.too_many_errors(self.dialog.settings.myhostname)
            self.replies.append(reply)
            self.dialog.answer(reply)
        return self.dialog.data_to_send()

    def _reply(self, event: Event) -> Reply:
        match event:
            case Hello():
                return self.dialog.ehlo_reply()
            case Mail():
                self._message = Message(event)
                return replies.MAIL_OK
            case Rcpt(recipient):
                reply = self._recipient(recipient)
                if reply.positive:
                    self._message.recipients.append(event)
                return reply
            case Begin():
                return replies.GO_AHEAD
            case End(_, fault):
                if fault is not None:
                    return fault
                self.messages.append(self._message)
                return replies.queued(f"{len(self.messages):08X}")
            case StartTls():
                self.tls_wanted = True
                return replies.READY_FOR_TLS
            case Auth(mechanism, initial):
                return self._plain(initial) if mechanism == "PLAIN" else self._login_name(initial)
            case AuthResponse(data):
                return self._response(data)
            case Vrfy(argument):
                return replies.verified(argument)
            case Etrn():
                return replies.ETRN_STARTED
            case Atrn():
                return replies.ATRN_TURNING
            case Reset():
                return replies.OK
            case Noop(reply) | Bad(reply):
                return reply
            case Quit():
                return replies.BYE
            case _:
                raise AssertionError(event)

    def _recipient(self, address: Address) -> Reply:
        settings = self.dialog.settings
        domain = address.domain.lower()
        if domain in settings.mydestination:
            known = self._listed(settings.local_recipient_maps, address)
            return replies.RCPT_OK if known else replies.unknown_recipient(str(address), replies.UNKNOWN_LOCAL)
        if domain in settings.relay_domains:
            known = not settings.relay_recipient_maps or self._listed(settings.relay_recipient_maps, address)
            return replies.RCPT_OK if known else replies.unknown_recipient(str(address), replies.UNKNOWN_RELAY)
        inside = any(CLIENT in ip_network(network) for network in settings.mynetworks)
        if domain and not inside and not self.dialog.user:
            return replies.relay_denied(str(address))
        return replies.RCPT_OK

    @staticmethod
    def _listed(maps: tuple[str | tuple[tuple[str, str], ...], ...], address: Address) -> bool:
        keys = {key for table in maps if not isinstance(table, str) for key, _ in table}
        return bool(keys & {address.key, f"@{address.domain.lower()}"})

    def _plain(self, initial: bytes | None) -> Reply:
        if initial is None:
            self._login = ""
            return replies.challenge(b"")
        parts = initial.decode("utf-8", "replace").split("\0")
        return self._judge(*parts[1:]) if len(parts) == 3 else replies.AUTH_REFUSED

    def _login_name(self, initial: bytes | None) -> Reply:
        self._login = "?" if initial is None else initial.decode("utf-8", "replace")
        return replies.challenge(b"Username:" if initial is None else b"Password:")

    def _response(self, data: bytes | None) -> Reply:
        login, self._login = self._login, ""
        if data is None:
            return replies.AUTH_ABORTED
        if not login:
            return self._plain(data)
        if login == "?":
            return self._login_name(data)
        return self._judge(login, data.decode("utf-8", "replace"))

    def _judge(self, user: str, password: str) -> Reply:
        if not user or self.users.get(user) != password:
            return replies.AUTH_REFUSED
        self.dialog.authenticated(user)
        return replies.AUTHENTICATED
