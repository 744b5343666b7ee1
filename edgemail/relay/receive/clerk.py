"""Answers what a client asks in one session: envelope, message, login.

Owns the envelope in hand, the message on its way in and the login; asks policy, limits, guards and routes. Knows no
socket and no timeout: the session has those. Every refusal that somebody may ask about later is logged here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from edgemail.counters import Counter
from edgemail.envelope import Disposal, Envelope, Origin, Recipient
from edgemail.errors import SpoolError, TableError
from edgemail.relay.receive import etrn
from edgemail.relay.receive.arrival import Arrival
from edgemail.relay.receive.limits import Visit
from edgemail.relay.receive.policy import Client
from edgemail.relay.receive.reception import Reception, Turning
from edgemail.relay.receive.service import Service
from edgemail.relay.receive.stamp import protocol
from edgemail.relay.wire import replies
from edgemail.relay.wire.dialog import Dialog
from edgemail.relay.wire.events import (
    Atrn,
    Auth,
    AuthResponse,
    Bad,
    Begin,
    Command,
    End,
    Etrn,
    Hello,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Reset,
    Vrfy,
    verb_of,
)
from edgemail.reply import Reply
from edgemail.value import changed

if TYPE_CHECKING:
    from edgemail.relay.receive.auth import Exchange

MESSAGES: Final = Counter("edgemail_smtpd_messages", "Messages taken into the spool", ("listener",))
OCTETS: Final = Counter("edgemail_smtpd_bytes", "Bytes of messages taken into the spool", ("listener",))
COMMANDS: Final = Counter("edgemail_smtpd_commands", "Commands by verb", ("verb",))
REFUSALS: Final = Counter("edgemail_smtpd_refusals", "Commands and messages refused, by the reply", ("code", "status"))
EXCEPTIONS: Final = Counter("edgemail_smtpd_exceptions", "Unexpected exceptions in sessions, answered 451")


class Clerk:
    """One session's business."""

    __slots__ = (
        "_arrival",
        "_confused",
        "_exchange",
        "_mail",
        "_recipients",
        "_taken",
        "blame",
        "client",
        "committing",
        "dialog",
        "flushed",
        "messages",
        "name",
        "reception",
        "service",
        "tls",
        "tried_auth",
        "turning",
        "unsettled",
        "visit",
    )

    def __init__(self, reception: Reception, service: Service, visit: Visit, dialog: Dialog, client: Client) -> None:
        self.reception = reception
        self.service = service
        self.visit = visit
        self.dialog = dialog
        self.client = client
        self.name = "unknown"  # the client's, unless it was looked up
        self.tls = ""  # what is said of TLS, "" without
        self.blame: set[str] = set()  # classes of errors that the client made: policy, protocol
        self.committing = False
        self.tried_auth = False
        self.messages = 0  # taken in this session
        self.unsettled = False  # `settle` is to be awaited
        self.flushed: int | None = None  # messages that ETRN asked for, if that took no waiting
        self.turning: Turning | None = None  # what ATRN has agreed on, to be run behind its 250
        self._mail: Mail | None = None
        self._recipients: list[Recipient] = []
        self._taken: set[tuple[str, str]] = set()  # the recipients, to keep each once
        self._arrival: Arrival | None = None
        self._exchange: Exchange | None = None
        self._confused = False  # an unexpected exception: what is in hand cannot be trusted

    @property
    def label(self) -> str:
        """The client as logs and replies name it: "name[address]"."""
        return f"{self.name}[{self.client.address}]"

    @property
    def taken(self) -> int:
        """Octets of the message that is coming in; -1 when there is none."""
        return self._arrival.size if self._arrival is not None else -1

    def at_once(self, event: Command | End) -> Reply | None:
        """The reply to an event that is answered without waiting; None: that takes `answer`."""
        answerer = _AT_ONCE.get(type(event))
        if answerer is None:
            return None
        try:
            reply = answerer(self, event)
        except Exception:
            self._mishap(event)
            if self._arrival is not None:
                self._confused = True
                return None
            reply = replies.LOCAL_ERROR
        return reply if reply is None or reply.code < 400 else self._refused(event, reply)

    async def answer(self, event: Command | End) -> Reply:
        """The reply to an event, soft_bounce applied. An unexpected exception is our own trouble: 451."""
        try:
            reply = replies.LOCAL_ERROR if self._confused else await self._reply(event)
        except Exception:
            self._mishap(event)
            self._confused = True
            reply = replies.LOCAL_ERROR
        if self._confused:
            self._confused = False
            await self.abandon()
        return reply if reply.positive else self._refused(event, reply)

    def _mishap(self, event: Command | End) -> None:
        EXCEPTIONS.add()
        self.service.log.exception("%s: %s", self.label, type(event).__name__)

    def _refused(self, event: Command | End, reply: Reply) -> Reply:
        if self.service.settings.soft_bounce:
            reply = reply.softened()
        REFUSALS.add(str(reply.code), reply.enhanced)
        self._log_refusal(event, reply)
        return reply

    def take(self, data: bytes) -> None:
        """A piece of the message. While `unsettled`, no more may come until `settle` returns, except the end."""
        arrival = self._arrival
        if arrival is None or arrival.failed:
            return
        self.unsettled = True
        try:
            arrival.write(data)
            if arrival.looping:
                self._fail(arrival, replies.TOO_MANY_HOPS)
        except Exception as error:
            self._content_failed(arrival, error)

    async def settle(self) -> None:
        """Wait until there is room for the next piece; or forget a message that failed."""
        self.unsettled = False
        arrival = self._arrival
        if arrival is None:
            return
        if not arrival.failed:
            try:
                await arrival.drain()
            except Exception as error:
                self._content_failed(arrival, error)
        if arrival.failed:
            await self._abort(arrival)

    def _content_failed(self, arrival: Arrival, error: Exception) -> None:
        if isinstance(error, SpoolError):
            self.service.log.warning("warning: %s: %s", arrival.queue_id, error)
            self._fail(arrival, error.reply)
        else:
            EXCEPTIONS.add()
            self.service.log.error("%s: %s: content", arrival.queue_id, self.label, exc_info=error)
            self._fail(arrival, replies.LOCAL_ERROR)

    def _fail(self, arrival: Arrival, reply: Reply) -> None:
        arrival.failed = True
        self.dialog.fail(reply)

    async def abandon(self) -> None:
        """The message in hand, if any, will not be completed; nor what ATRN has agreed on, if it has not begun."""
        if self.turning is not None:
            self.turning.release()
        arrival, self._arrival = self._arrival, None
        self.unsettled = False
        if arrival is not None:
            await self._abort(arrival)

    async def _abort(self, arrival: Arrival) -> None:
        try:
            await arrival.abort()
        except Exception:
            EXCEPTIONS.add()
            self.service.log.exception("%s: abort", arrival.queue_id)

    async def _reply(self, event: Command | End) -> Reply:
        if isinstance(event, End):
            return await self._end(event)
        if isinstance(event, Auth):
            from edgemail.relay.receive.auth import Exchange

            self._exchange = Exchange(event.mechanism, self.service.settings.myhostname)
            return await self._login(event.initial)
        if isinstance(event, AuthResponse):
            return replies.AUTH_ABORTED if event.data is None else await self._login(event.data)
        if isinstance(event, Etrn):
            return await etrn.after_all(self, event)
        if isinstance(event, Atrn):
            return self._atrn(event)
        if isinstance(event, Hello | Reset):  # with a message in hand
            await self.abandon()
        reply = _AT_ONCE[type(event)](self, event)
        assert reply is not None
        return reply

    # ---- the envelope

    def _mail_from(self, event: Mail) -> Reply:
        refusal = self.visit.at_mail(self.label) or self.reception.refusal(event.size)
        if refusal is not None:
            return refusal
        self._mail = event
        self._recipients = []
        self._taken.clear()
        return replies.MAIL_OK

    def _rcpt(self, event: Rcpt) -> Reply:
        refusal = self.visit.at_recipient(self.label) or self.service.policy.refusal(self.client, event.recipient)
        if refusal is not None:
            return refusal
        route = self.reception.route(event.recipient)
        if route.disposal is Disposal.ERROR:
            text = f"<{event.recipient}>: Recipient address rejected: {route.text}"
            return Reply(550, route.status or "5.0.0", text)
        key = event.recipient.local, event.recipient.domain.lower()
        if key not in self._taken:
            self._taken.add(key)
            self._recipients.append(Recipient(event.recipient, event.notify, event.orcpt))
        return replies.RCPT_OK

    def _reset(self, event: Hello | Reset) -> Reply | None:
        if self._arrival is not None:
            return None
        self._mail = None
        self._recipients = []
        self._taken.clear()
        return replies.OK if type(event) is Reset else self.dialog.ehlo_reply()

    def _said(self, event: Noop | Bad) -> Reply:
        """What the dialog knows to answer by itself."""
        return event.reply

    def _origin(self, smtputf8: bool) -> Origin:
        dialog = self.dialog
        return Origin(
            client_name=self.name,
            client_address=self.client.address,
            helo=dialog.hello,
            protocol=protocol(
                extended=dialog.extended, tls=dialog.tls, authenticated=bool(self.client.user), smtputf8=smtputf8
            ),
            sasl_username=self.client.user,
            listener=self.service.name,
        )

    # ---- the message

    def _begin(self, event: Begin) -> Reply:
        assert self._mail is not None
        settings = self.service.settings
        try:
            arrival = self._arrival = Arrival(
                self.reception.spool,
                settings,
                at=self.reception.clock.wall(),
                origin=self._origin(self._mail.smtputf8),
                mail=self._mail,
                recipients=self._recipients,
                tls=self.tls if settings.smtpd_tls_received_header else "",
            )
        except SpoolError as error:
            self.service.log.warning("warning: %s", error)
            return error.reply
        if self.client.user:
            method = self._exchange.mechanism if self._exchange else ""
            self.service.log.info(
                "%s: client=%s, sasl_method=%s, sasl_username=%s",
                arrival.queue_id,
                self.label,
                method,
                self.client.user,
            )
        else:
            self.service.log.info("%s: client=%s", arrival.queue_id, self.label)
        return replies.GO_AHEAD

    async def _end(self, event: End) -> Reply:
        """What becomes of the message. The 250 is written by the future of the spool's commit and by nothing else."""
        arrival = self._arrival
        assert arrival is not None
        self.unsettled = False  # the commit waits for what is not in the spool yet
        arrival.finish()
        fault = event.fault or (replies.TOO_MANY_HOPS if arrival.looping else None)
        if fault is None:
            self.committing = True
            try:
                envelope = await arrival.keep(eight_bit=self.dialog.eight_bit, long_lines=self.dialog.long_lines)
            except SpoolError as error:
                self.service.log.warning("warning: %s: %s", arrival.queue_id, error)
                fault = error.reply
            finally:
                self.committing = False
        if fault is not None:
            await self.abandon()
            return fault
        self._arrival = None
        self._accept(envelope)
        return replies.queued(envelope.queue_id)

    def _accept(self, envelope: Envelope) -> None:
        """Tell the queue. Whatever goes wrong there, the message is in the spool, and is found at the next start."""
        self.messages += 1
        MESSAGES.add(self.service.name)
        OCTETS.add(self.service.name, by=envelope.size)
        try:
            self.reception.accepted(envelope)
        except Exception:
            EXCEPTIONS.add()
            self.service.log.exception("%s: accepted", envelope.queue_id)

    # ---- what waits for a site

    def _atrn(self, event: Atrn) -> Reply:
        """RFC 2645: the client takes its mail over this very connection; `turning` says how."""
        turn = self.reception.turn
        if turn is None:
            return replies.NOT_IMPLEMENTED
        found = turn(self.client.user, self.client.address, event.domains)
        if isinstance(found, Reply):
            return found
        self.turning = found
        return replies.ATRN_TURNING

    # ---- login

    async def _login(self, data: bytes | None) -> Reply:
        exchange, passwords = self._exchange, self.service.passwords
        if exchange is None or passwords is None:
            return replies.AUTH_UNAVAILABLE
        self.tried_auth = True
        step = exchange.step(data)
        if isinstance(step, bytes):
            return replies.challenge(step)
        try:
            if step is not None and await passwords.verify(step):
                self.client = changed(self.client, user=step.user)
                self.dialog.authenticated(step.user)
                return replies.AUTHENTICATED
            # a name that is none of ours may be a password, typed in the wrong place
            user = step.user if step is not None and passwords.knows(step.user) else "(unknown)"
        except TableError as error:
            self.service.log.error("error: %s", error)
            return replies.AUTH_UNAVAILABLE
        self.service.log.warning(
            "warning: %s: SASL %s authentication failed: sasl_username=%s", self.label, exchange.mechanism, user
        )
        return replies.AUTH_REFUSED

    def forget(self) -> None:
        """STARTTLS was done: nothing that was said in clear counts (RFC 3207 4.2)."""
        self.client = changed(self.client, user="")
        self._exchange = None
        self._mail = None

    # ---- what is said about it

    def _log_refusal(self, event: Command | End, reply: Reply) -> None:
        """Postfix's line for a refused envelope or message, and what class of error it was."""
        flood = isinstance(event, Bad) and event.reply is replies.MESSAGE_TOO_BIG  # cut off in the middle
        if flood:
            self.blame.add("policy")
        elif isinstance(event, Bad | AuthResponse) and reply.permanent:
            self.blame.add("protocol")
        elif isinstance(event, Mail | Rcpt | Etrn | Atrn):
            self.blame.add("policy")
        elif isinstance(event, End) and reply.permanent:
            self.blame.add("protocol" if event.fault is replies.BAD_LINE_ENDS else "policy")
        verb = "DATA" if flood else verb_of(event)
        if not flood and not isinstance(event, Mail | Rcpt | Begin | End | Etrn | Atrn):
            return
        sender = event.sender if isinstance(event, Mail) else self._mail.sender if self._mail else ""
        to = f" to=<{event.recipient}>" if isinstance(event, Rcpt) else ""
        self.service.log.info(
            "NOQUEUE: reject: %s from %s: %s; from=<%s>%s proto=%s helo=<%s>",
            verb,
            self.label,
            reply,
            sender,
            to,
            "ESMTP" if self.dialog.extended else "SMTP",
            self.dialog.hello,
        )


_AT_ONCE: Final[dict[type, Callable[[Clerk, Any], Reply | None]]] = {
    Rcpt: Clerk._rcpt,
    Mail: Clerk._mail_from,
    Begin: Clerk._begin,
    Hello: Clerk._reset,
    Reset: Clerk._reset,
    Noop: Clerk._said,
    Bad: Clerk._said,
    Etrn: etrn.at_once,
    Vrfy: lambda clerk, event: replies.verified(event.argument),
    Quit: lambda clerk, event: replies.BYE,
}
