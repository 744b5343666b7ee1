"""What goes over a connection that is there: commands and their answers in step, and messages, several on their way
at once where the server takes them so.

Owns the wire of a session: time limits, what is written when, which message an answer is for. Answers to messages are
taken as they come, in the call from the transport; the task that sends a message wakes when all is said about it, or
to go on with a long one. Never sets a connection up, never decides what a failure means.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from edgemail.envelope import Address, Envelope, Target
from edgemail.errors import EdgemailError
from edgemail.relay.send.connect import Line
from edgemail.relay.send.conversation import LISTENING, Conversation
from edgemail.relay.wire.answers import MalformedReply
from edgemail.relay.wire.client import Answer, Client, Phase
from edgemail.relay.wire.transaction import Burden, Transaction
from edgemail.reply import Reply
from edgemail.settings import Settings
from edgemail.value import value

WRITE_SIZE: Final = 65_536  # limit: octets of content gathered before they are written; a small message is one write
BURST: Final = 131_072  # limit: octets of content written before others on the loop have their turn
LIMITS: Final = {  # how long an answer may take: the parameter, by what it is the answer to
    Phase.GREETING: "smtp_helo_timeout",
    Phase.HELLO: "smtp_helo_timeout",
    Phase.STARTTLS: "smtp_starttls_timeout",
    Phase.AUTH: "smtp_helo_timeout",
    Phase.ETRN: "smtp_mail_timeout",
    Phase.ATRN: "smtp_mail_timeout",
    Phase.RSET: "smtp_rset_timeout",
    Phase.MAIL: "smtp_mail_timeout",
    Phase.RCPT: "smtp_rcpt_timeout",
    Phase.DATA: "smtp_data_init_timeout",
    Phase.CONTENT: "smtp_data_xfer_timeout",
    Phase.END: "smtp_data_done_timeout",
    Phase.QUIT: "smtp_quit_timeout",
    Phase.IDLE: "smtp_rset_timeout",
}
UNDER_WAY: Final = 64  # limit: messages on their way at once over one connection


@value
class Peer:
    """The server at the other end."""

    host: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}[{self.address}]"

    @property
    def relay(self) -> str:
        """As the log names it: "mx.example.com[192.0.2.1]:25"."""
        return f"{self.host}[{self.address}]:{self.port}"


class Broken(EdgemailError):
    """The conversation cannot go on: time is up, the connection is gone, or what came is no SMTP (`malformed`)."""

    def __init__(self, reply: Reply, phase: Phase, *, malformed: bool = False) -> None:
        super().__init__(reply.text)
        self.reply = reply
        self.phase = phase
        self.malformed = malformed


class BodyFailed(EdgemailError):
    """The message could not be read; `__cause__` says why. The server has not got it."""


class _Passage:
    """One message on its way over the connection."""

    __slots__ = ("body", "broken", "failure", "listening", "over", "transaction", "waiter")

    def __init__(self, transaction: Transaction, body: Iterator[bytes], listening: Conversation | None) -> None:
        self.transaction = transaction
        self.body = body
        self.listening = listening
        self.over = False
        self.broken: Broken | None = None
        self.failure: BodyFailed | None = None
        self.waiter: asyncio.Future[None] | None = None

    def end(self, broken: Broken | None = None) -> None:
        self.over = True
        self.broken = broken
        self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


def _nobody() -> bool:
    return False


class Exchange:
    """The conversation over one connection."""

    def __init__(self, line: Line, peer: Peer, settings: Settings) -> None:
        self.peer = peer
        self.settings = settings
        self.count = 0  # messages carried so far
        self.client = Client(settings.smtp_helo_name, discard=settings.smtp_discard_ehlo_keywords)
        self.tls: ssl.SSLObject | None = None
        self.shared = False  # messages follow each other before they are answered
        self.waited_for: Callable[[], bool] = _nobody  # called when another message may follow: whether one will
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._passages: deque[_Passage] = deque()
        self._broken = False
        self._kept = False  # the TLS session of this connection
        self._flushing = False
        self._deadline = 0.0  # of the loop's time, for the next answer; 0.0 when none is due
        self._timer: asyncio.TimerHandle | None = None

    def _limit(self, phase: Phase) -> float:
        seconds: float = getattr(self.settings, LIMITS[phase])
        return seconds

    @property
    def usable(self) -> bool:
        """Whether another message can be sent: in step, still open, and the server has said nothing since."""
        client = self.client
        return (
            not self._broken
            and not client.closing
            and client.awaiting is None
            and not client.unread
            and self._line.quiet
        )

    @property
    def takes_more(self) -> bool:
        """Whether another message may be sent now, though others are perhaps not answered yet."""
        if not self._passages:
            return self.usable
        return (
            not self._broken
            and not self.client.closing
            and self._passages[-1].transaction.written
            and self.client.abilities.offers("PIPELINING")
            and len(self._passages) < UNDER_WAY
            and not self._line.blocked
        )

    # -- messages -----------------------------------------------------------------------------------------------------

    def transaction(
        self, sender: Address, targets: Sequence[Target], envelope: Envelope, burden: Burden
    ) -> Transaction:
        """A message to be sent next; only while `takes_more`, and `send` must follow at once."""
        if LISTENING.get() is not None:
            self._flush()  # what was said about another message is not shown with this one
        return Transaction(self.client, sender, targets, envelope, burden)

    async def send(self, transaction: Transaction, body: Iterator[bytes]) -> Broken | None:
        """Drive a transaction that was just made here to its end; every target has its result.

        Returns what broke the conversation, if something did. Raises BodyFailed; the connection is then aborted, and
        the server has seen no end of the message.
        """
        self.count += 1
        passage = _Passage(transaction, body, LISTENING.get())
        self._passages.append(passage)
        self._line.news = self._news
        try:
            self._proceed(passage)
            while not passage.over:
                if transaction.wants_content:
                    await self._breathe()
                    self._news()
                    if not passage.over:
                        self._proceed(passage)
                else:
                    passage.waiter = self._loop.create_future()
                    await passage.waiter
                    passage.waiter = None
        except Broken as broken:
            self._break(broken)
        except BaseException:
            self._break(self._lost(Phase.CONTENT))
            raise
        if passage.failure is not None:
            raise passage.failure
        return passage.broken

    async def _breathe(self) -> None:
        """Between two pieces of a long message: a peer that takes everything must not keep the loop to itself, and one
        that takes nothing is waited for. Raises Broken."""
        if not self._line.blocked:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(self._limit(Phase.CONTENT)):
                await self._line.wait()
        except TimeoutError:
            raise self._timed_out(Phase.CONTENT) from None

    def _proceed(self, passage: _Passage) -> None:
        """Write what can be written of a message now."""
        transaction, written = passage.transaction, 0
        while transaction.wants_content and written < BURST and not self._line.blocked:
            try:
                piece = next(passage.body, None)
            except Exception as error:
                passage.failure = BodyFailed(str(error))
                passage.failure.__cause__ = error
                self._break(self._lost(Phase.CONTENT))
                return
            if piece is None:
                transaction.finish()
                break
            transaction.write(piece)
            if self.client.pending >= WRITE_SIZE:
                written += self.client.pending
                self._flush()
        if transaction.written and (self.waited_for() or self.shared) and passage.listening is None:
            self._flush_soon()  # what follows goes with it
        else:
            self._flush()
        self._await_answer()

    def _news(self) -> None:
        """Something has come, the connection has ended, or it takes more: called by the line."""
        passages = self._passages
        if not passages or self._broken:
            return
        client = self.client
        client.receive_data(self._line.take())
        phase = client.awaiting or Phase.CONTENT
        try:
            while passages and (answer := client.next_answer()) is not None:
                first = passages[0]
                if first.listening is not None:
                    first.listening.said(answer.reply)
                if first.transaction.done:
                    passages.popleft()
                    first.end()
                    self._keep_session()
                phase = client.awaiting or Phase.CONTENT
        except MalformedReply as error:
            self._break(self._malformed(error, phase))
            return
        if passages and (client.closing or self._line.ended):
            self._break(self._lost(phase))
            return
        self._go_on()

    def _keep_session(self) -> None:
        """A message was answered: TLS tickets have come by now, and the next connection may begin with one."""
        if not self._kept and self.tls is not None:
            self._kept = True
            self._line.keep_session()

    def _go_on(self) -> None:
        """After answers: write on, or let the next message begin."""
        last = self._passages[-1] if self._passages else None
        if last is None or last.transaction.written:
            self._await_answer()
            if self.client.pending:
                self._flush()
            self.waited_for()
        elif last.waiter is not None:
            self._proceed(last)
            if last.transaction.wants_content:
                last.wake()
        else:
            self._await_answer()

    def _break(self, broken: Broken) -> None:
        """The connection is of no use any more: all that is on its way hears of it."""
        self._broken = True
        passages = tuple(self._passages)
        self._passages.clear()
        for passage in passages:
            passage.transaction.lost(broken.reply)
            passage.end(broken)
        self.abort()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _await_answer(self) -> None:
        """The time for the next answer begins now. The timer is seldom set anew: it looks when it fires."""
        phase = self.client.awaiting
        if phase is None:
            self._deadline = 0.0
            return
        self._deadline = self._loop.time() + self._limit(phase)
        if self._timer is not None:
            if self._timer.when() <= self._deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._overdue)

    def _overdue(self) -> None:
        self._timer = None
        if not self._deadline or self._broken or not self._passages:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._overdue)
        else:
            self._break(self._timed_out(self.client.awaiting or Phase.CONTENT))

    # -- one command at a time ----------------------------------------------------------------------------------------

    async def ask(self, command: str, phase: Phase) -> Reply:
        """One command that is not about a message, and its reply. Raises Broken."""
        self.client.say(command, phase)
        return await self._answer()

    async def quit(self) -> None:
        """End in good order: QUIT, its reply, close. Never raises; never takes longer than smtp_quit_timeout allows."""
        try:
            if self.usable:
                self._line.keep_session()
                self.client.quit()
                await self._answer()
            await self._line.close()
        except (Broken, OSError):
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """End at once."""
        self._broken = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._line.abort()

    def release(self) -> asyncio.Transport:
        """The connection, for the peer is the client from here on. Raises Broken."""
        try:
            if self.client.unread:
                raise ConnectionResetError
            return self._line.release()
        except OSError as error:
            raise self._lost(Phase.ATRN) from error

    async def _answer(self) -> Reply:
        """The next reply, within the time of its phase. Raises Broken."""
        phase = self.client.awaiting or Phase.IDLE
        try:
            answer = self._next_answer()
            if answer is None:
                self._flush()
                answer = await self._wait_for_answer(self._limit(phase))
        except MalformedReply as error:
            raise self._malformed(error, phase) from error
        except TimeoutError as error:
            raise self._timed_out(phase) from error
        except OSError as error:
            raise self._lost(phase) from error
        if answer is None:
            raise self._lost(phase)
        return answer.reply

    async def _wait_for_answer(self, seconds: float) -> Answer | None:
        async with asyncio.timeout(seconds):
            while True:
                data = await self._line.read()
                if not data:
                    return None
                self.client.receive_data(data)
                answer = self._next_answer()
                if answer is not None:
                    return answer

    def _next_answer(self) -> Answer | None:
        answer = self.client.next_answer()
        listening = LISTENING.get()
        if answer is not None and listening is not None:
            listening.said(answer.reply)
        return answer

    # -- writing ------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        data = self.client.data_to_send()
        if not data:
            return
        last = self._passages[-1] if self._passages else None
        listening = last.listening if last is not None else LISTENING.get()
        if listening is not None:
            listening.sent(data, secret=self.client.awaiting is Phase.AUTH, content=last is not None)
        self._line.write(data)

    def _flush_soon(self) -> None:
        """Write in a moment, with what others add until then."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = False
        if not self._broken:
            self._flush()

    # -- what breaks it -----------------------------------------------------------------------------------------------

    def _lost(self, phase: Phase) -> Broken:
        return Broken(Reply(421, "4.4.2", f"lost connection with {self.peer} while {phase.doing}"), phase)

    def _timed_out(self, phase: Phase) -> Broken:
        return Broken(Reply(421, "4.4.2", f"conversation with {self.peer} timed out while {phase.doing}"), phase)

    def _malformed(self, error: MalformedReply, phase: Phase) -> Broken:
        reply = Reply(421, "4.5.0", f"protocol error from {self.peer} while {phase.doing}: {error}")
        return Broken(reply, phase, malformed=True)
