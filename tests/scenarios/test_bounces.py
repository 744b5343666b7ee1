"""Notices through the real process, read as any mail program reads them: with the standard library's parser.

Who is told of what is asked for by the sender (NOTIFY, RET, ENVID, ORCPT) and by the postmaster (notify_classes).
"""

from __future__ import annotations

import email
import email.policy
import re
import smtplib
from collections.abc import Iterator
from email.message import EmailMessage, Message
from pathlib import Path

import pytest

from tests.scenarios.relay import LISTENER, MESSAGE, Relay, relay
from tests.scenarios.sink import Sink, after_trace, sink
from tests.servers import FULL, Received

SENDER = "alice@sender.example"
QUICK = 'minimal_backoff_time = "1s"\nmaximal_backoff_time = "1s"\nqueue_run_delay = "1s"\nin_flow_delay = 0\n'
WITHOUT_DSN = tuple(word for word in FULL if word != "DSN")


def moods(line: str) -> bytes:
    """What a recipient's name makes the smarthost say."""
    if "<bogus" in line:
        return b"550-5.1.1 no mailbox of that name\r\n550 5.1.1 see http://help.example/\r\n"
    if "<later" in line:
        return b"450 4.2.0 greylisted\r\n"
    return b""


@pytest.fixture(scope="module")
def home() -> Iterator[Sink]:
    """Where the senders' and the postmaster's mail goes."""
    with sink(answers={"RCPT": lambda line: b"550 5.1.1 gone\r\n" if "<gone" in line else b""}) as found:
        yield found


@pytest.fixture(scope="module")
def smarthost() -> Iterator[Sink]:
    with sink(answers={"RCPT": moods}) as found:
        yield found


@pytest.fixture(scope="module")
def plain_hop() -> Iterator[Sink]:
    """A next hop without DSN."""
    with sink(answers={"RCPT": moods}, keywords=WITHOUT_DSN) as found:
        yield found


@pytest.fixture(autouse=True)
def forget(home: Sink, smarthost: Sink, plain_hop: Sink) -> None:
    for one in (home, smarthost, plain_hop):
        one.received.clear()


def settings(home: Sink, smarthost: Sink, plain_hop: Sink, more: str = "") -> str:
    rows = [f'"{name}" = "smtp:[127.0.0.1]:{home.port}"' for name in ("sender.example", "example.com", "sént.example")]
    rows.append(f'"plain.example" = "smtp:[127.0.0.1]:{plain_hop.port}"')
    maps = f"transport_maps = [{{ {', '.join(rows)} }}]\n"
    return QUICK + maps + f'relayhost = "[127.0.0.1]:{smarthost.port}"\n' + more


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, home: Sink, smarthost: Sink, plain_hop: Sink) -> Iterator[Relay]:
    """A relay with everything as it comes."""
    with relay(tmp_path_factory.mktemp("box"), settings(home, smarthost, plain_hop)) as found:
        yield found


Hosts = tuple[Sink, Sink, Sink]


@pytest.fixture
def hosts(home: Sink, smarthost: Sink, plain_hop: Sink) -> Hosts:
    return home, smarthost, plain_hop


# reading


def addresses(one: Received) -> list[str]:
    return re.findall("<(.*?)>", " ".join(one.rcpt))


def read(one: Received) -> EmailMessage:
    """A notice as a mail program sees it; nothing in it may be malformed."""
    message = email.message_from_bytes(one.content, policy=email.policy.SMTP)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert not part.defects, part.defects
    return message


def fields(message: EmailMessage) -> tuple[Message, list[Message]]:
    """The delivery report: what is said of the message, and of each recipient. RFC 3464 2.1."""
    groups = [one for one in parts(message)[1].walk() if one.get_content_type() == "text/plain"]
    return groups[0], list(groups[1:])


def parts(message: EmailMessage) -> list[EmailMessage]:
    """Those of a report: for a person, for a program, what comes back. RFC 6522 3."""
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    found = [one for one in message.iter_parts() if isinstance(one, EmailMessage)]
    assert len(found) == 3
    return found


def text(message: EmailMessage) -> str:
    """What a person reads, on one line."""
    found = parts(message)[0].get_content()
    assert isinstance(found, str)
    return " ".join(found.split())


def large(size: int) -> bytes:
    return MESSAGE + (b"x" * 76 + b"\r\n") * (size // 78)


# a recipient that is refused


def test_a_refused_recipient_comes_back_at_once(box: Relay, home: Sink, smarthost: Sink) -> None:
    queue_id = box.send(SENDER, "bogus@example.org")
    (one,) = home.wait_for(1)
    box.wait_empty()
    assert (one.mail.split(" ")[1], addresses(one)) == ("FROM:<>", [SENDER])
    notice = read(one)
    assert b"\r\nFrom: MAILER-DAEMON@gw.example.com (Mail Delivery System)\r\n" in one.content
    assert notice["From"] == "MAILER-DAEMON@gw.example.com"
    assert notice["To"] == SENDER
    assert notice["Subject"] == "Undelivered Mail Returned to Sender"
    assert notice["Auto-Submitted"] == "auto-replied"
    assert notice["Date"] and notice["Message-ID"]
    assert [part.get_content_type() for part in parts(notice)] == [
        "text/plain",
        "message/delivery-status",
        "message/rfc822",
    ]
    said = "550 5.1.1 no mailbox of that name see http://help.example/"
    peer = "127.0.0.1[127.0.0.1]"
    assert f"<bogus@example.org>: host {peer} said: {said} (in reply to RCPT TO command)" in text(notice)
    about, (bogus,) = fields(notice)
    assert about["Reporting-MTA"] == "dns; gw.example.com"
    assert about["X-Edgemail-Queue-ID"] == queue_id
    assert about["Arrival-Date"]
    assert about["Original-Envelope-Id"] is None
    assert bogus["Final-Recipient"] == "rfc822; bogus@example.org"
    assert bogus["Original-Recipient"] is None
    assert (bogus["Action"], bogus["Status"]) == ("failed", "5.1.1")
    assert bogus["Remote-MTA"] == "dns; 127.0.0.1"
    assert " ".join(bogus["Diagnostic-Code"].split()) == f"smtp; {said}"
    original = parts(notice)[2].get_payload(0)
    assert isinstance(original, Message)
    assert original["Subject"] == "a test"
    assert one.content.count(MESSAGE) == 1  # octet for octet
    log = box.log()
    assert re.search(rf"{queue_id}: to=<bogus@example.org>, .* dsn=5.1.1, status=bounced \(host ", log)
    assert re.search(rf"{queue_id}: sender non-delivery notification: [0-9A-F]+", log)
    assert f"{queue_id}: removed" in log
    assert smarthost.received == []


def test_those_who_are_not_refused_are_served(box: Relay, home: Sink, smarthost: Sink) -> None:
    box.send(SENDER, ["bogus1@example.org", "carol@example.org", "bogus2@example.org"])
    (served,) = smarthost.wait_for(1)
    (one,) = home.wait_for(1)
    box.wait_empty()
    assert addresses(served) == ["carol@example.org"]
    _, failed = fields(read(one))
    assert [each["Final-Recipient"] for each in failed] == [
        "rfc822; bogus1@example.org",
        "rfc822; bogus2@example.org",
    ]
    assert "carol" not in one.content.decode()


def test_a_message_refused_as_a_whole_comes_back(tmp_path: Path, hosts: Hosts) -> None:
    home, _, plain_hop = hosts
    with sink(answers={"LAST": b"552 5.3.4 too big for us\r\n"}) as refusing:
        with relay(tmp_path, settings(home, refusing, plain_hop)) as found:
            found.send(SENDER, ["bob@example.org", "carol@example.org"])
            (one,) = home.wait_for(1)
            found.wait_empty()
    _, failed = fields(read(one))
    assert [(each["Action"], each["Status"]) for each in failed] == [("failed", "5.3.4")] * 2
    assert "(in reply to end of DATA command)" in text(read(one))


# how much comes back


@pytest.mark.parametrize(
    ("ret", "size", "full"),
    [("", 100, True), ("", 60_000, False), ("FULL", 100, True), ("FULL", 60_000, False), ("HDRS", 100, False)],
)
def test_what_comes_back(box: Relay, home: Sink, ret: str, size: int, full: bool) -> None:
    """All of it up to bounce_size_limit, above it the header; and only the header where the sender says so."""
    message = large(size)
    box.send(SENDER, "bogus@example.org", message, [f"RET={ret}"] if ret else [])
    (one,) = home.wait_for(1)
    returned = parts(read(one))[2]
    assert len(one.content) < 53_000
    if full:
        assert returned.get_content_type() == "message/rfc822"
        assert message in one.content
    else:
        assert returned.get_content_type() == "text/rfc822-headers"
        assert b"Subject: a test\r\n" in one.content
        assert b"hello" not in one.content


def test_a_header_above_the_limit_is_cut(tmp_path: Path, hosts: Hosts) -> None:
    with relay(tmp_path, settings(*hosts, "bounce_size_limit = 1000\n")) as found:
        found.send(SENDER, "bogus@example.org", b"Subject: x\r\nX-Long: " + b"y" * 70 + b"\r\n")
        hosts[0].wait_for(1)
        found.send(SENDER, "bogus@example.org", b"Subject: y\r\n" + (b"X-Long: " + b"y" * 70 + b"\r\n") * 50 + b"\r\n")
        short, long = hosts[0].wait_for(2)
    assert parts(read(short))[2].get_content_type() == "message/rfc822"
    returned = long.content.partition(b"Content-Type: text/rfc822-headers\r\n\r\n")[2]
    assert b"Subject: y\r\n" in returned
    assert 0 < returned.count(b"X-Long") < 20


def test_octets_over_127_come_back_as_they_were(box: Relay, home: Sink) -> None:
    message = MESSAGE + "Grüße – ÿ\r\n".encode() + "latin: \xe4\xf6\r\n".encode("latin-1")
    box.send(SENDER, "bogus@example.org", message, ["BODY=8BITMIME"])
    (one,) = home.wait_for(1)
    assert "BODY=8BITMIME" in one.mail
    assert message in one.content
    notice = read(one)
    assert notice["Content-Transfer-Encoding"] == parts(notice)[2]["Content-Transfer-Encoding"] == "8bit"


def test_an_original_that_looks_like_a_report_is_no_part_of_it(box: Relay, home: Sink) -> None:
    """A report that comes back in a report: its boundaries are not ours."""
    box.send(SENDER, "bogus@example.org")
    (first,) = home.wait_for(1)
    box.send(SENDER, "bogus@example.org", first.content)
    second = home.wait_for(2)[1]
    notice = read(second)
    assert len(parts(notice)) == 3
    assert first.content in second.content


# DSN, RFC 3461


def test_envid_and_orcpt_come_back_decoded(box: Relay, home: Sink) -> None:
    box.send(
        SENDER,
        "bogus@example.org",
        mail_options=["ENVID=QQ+2B314159"],
        rcpt_options=["NOTIFY=FAILURE", "ORCPT=rfc822;Bob+2Btag@old.example"],
    )
    (one,) = home.wait_for(1)
    about, (bogus,) = fields(read(one))
    assert about["Original-Envelope-Id"] == "QQ+314159"
    assert bogus["Original-Recipient"] == "rfc822; Bob+tag@old.example"
    assert bogus["Final-Recipient"] == "rfc822; bogus@example.org"


def test_a_next_hop_with_dsn_gets_what_was_asked_for_and_reports_itself(
    box: Relay, home: Sink, smarthost: Sink
) -> None:
    options = ["NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;bob@old.example"]
    box.send(SENDER, "bob@example.org", mail_options=["RET=HDRS", "ENVID=abc"], rcpt_options=options)
    (one,) = smarthost.wait_for(1)
    assert {"RET=HDRS", "ENVID=abc"} <= set(one.mail.split(" "))
    words = one.rcpt[0].split(" ")
    assert "ORCPT=rfc822;bob@old.example" in words
    (notify,) = [word for word in words if word.startswith("NOTIFY=")]
    assert sorted(notify.removeprefix("NOTIFY=").split(",")) == ["DELAY", "SUCCESS"]
    box.wait_empty()
    assert home.received == []


def test_for_a_next_hop_without_dsn_we_report(box: Relay, home: Sink, plain_hop: Sink) -> None:
    """RFC 3461 5.2.2: "relayed", with nothing of the original but its header."""
    options = ["NOTIFY=SUCCESS", "ORCPT=rfc822;bob@old.example"]
    box.send(SENDER, "bob@plain.example", mail_options=["RET=FULL", "ENVID=abc"], rcpt_options=options)
    (passed,) = plain_hop.wait_for(1)
    assert not re.search("NOTIFY|ORCPT|ENVID|RET", " ".join((passed.mail, *passed.rcpt)))
    (one,) = home.wait_for(1)
    box.wait_empty()
    notice = read(one)
    assert (one.mail.split(" ")[1], notice["Subject"]) == ("FROM:<>", "Successful Mail Delivery Report")
    about, (bob,) = fields(notice)
    assert about["Original-Envelope-Id"] == "abc"
    assert (bob["Action"], bob["Status"]) == ("relayed", "2.0.0")
    assert bob["Original-Recipient"] == "rfc822; bob@old.example"
    assert parts(notice)[2].get_content_type() == "text/rfc822-headers"


@pytest.mark.parametrize(
    ("recipient", "notify"),
    [
        ("bogus@example.org", "NEVER"),
        ("bogus@example.org", "SUCCESS"),
        ("bogus@example.org", "DELAY"),
        ("bob@plain.example", "NEVER"),
        ("bob@plain.example", "FAILURE,DELAY"),
        ("bob@plain.example", ""),
    ],
)
def test_who_did_not_ask_is_not_told(box: Relay, home: Sink, recipient: str, notify: str) -> None:
    before = box.log().count("notification")
    box.send(SENDER, recipient, rcpt_options=[f"NOTIFY={notify}"] if notify else [])
    box.wait_empty()
    assert box.log().count("notification") == before
    assert home.received == []


def test_each_recipient_has_its_own_wish(box: Relay, home: Sink) -> None:
    with smtplib.SMTP("127.0.0.1", box.port, "client.example.com", timeout=30) as client:
        client.ehlo()
        client.mail(SENDER)
        client.rcpt("bogus1@example.org", ["NOTIFY=NEVER"])
        client.rcpt("bogus2@example.org", ["NOTIFY=FAILURE"])
        client.rcpt("bogus3@example.org")
        client.data(MESSAGE)
    (one,) = home.wait_for(1)
    box.wait_empty()
    _, failed = fields(read(one))
    names = [each["Final-Recipient"].removeprefix("rfc822; ") for each in failed]
    assert names == ["bogus2@example.org", "bogus3@example.org"]


def test_an_internationalized_sender_gets_an_internationalized_notice(box: Relay, home: Sink) -> None:
    """RFC 6533."""
    options = ["SMTPUTF8", "BODY=8BITMIME"]
    box.send("älice@sender.example", "bogus-ü@example.org", MESSAGE + "ü\r\n".encode(), options)
    (one,) = home.wait_for(1)
    assert "SMTPUTF8" in one.mail.split(" ")
    assert addresses(one) == ["älice@sender.example"]
    message = email.message_from_bytes(one.content, policy=email.policy.SMTPUTF8)
    kinds = [part.get_content_type() for part in message.walk() if not part.is_multipart() or part is not message]
    assert "message/global-delivery-status" in kinds and "message/global" in kinds
    assert "Final-Recipient: utf-8; bogus-ü@example.org".encode() in one.content
    assert MESSAGE + "ü\r\n".encode() in one.content


# time


def test_with_lifetime_zero_the_first_failure_is_the_last(tmp_path: Path, hosts: Hosts) -> None:
    home, smarthost, _ = hosts
    with relay(tmp_path, settings(*hosts, 'maximal_queue_lifetime = "0"\n')) as found:
        queue_id = found.send(SENDER, ["later@example.org", "carol@example.org"])
        (one,) = home.wait_for(1)
        found.wait_empty()
        assert f"{queue_id}: from=<{SENDER}>, status=expired, returned to sender" in found.log()
    assert [addresses(each) for each in smarthost.received] == [["carol@example.org"]]
    _, (later,) = fields(read(one))
    assert (later["Action"], later["Status"]) == ("failed", "4.2.0")
    assert later["Final-Recipient"] == "rfc822; later@example.org"


def test_a_lifetime_that_is_over(tmp_path: Path, hosts: Hosts) -> None:
    """Tried more than once, returned once, with the last reason."""
    with relay(tmp_path, settings(*hosts, 'maximal_queue_lifetime = "2s"\n')) as found:
        queue_id = found.send(SENDER, "later@example.org")
        (one,) = hosts[0].wait_for(1)
        found.wait_empty()
        assert found.log().count(f"{queue_id}: to=<later@example.org>") > 1
    assert "450 4.2.0 greylisted" in text(read(one))


def test_a_smarthost_that_is_away_ends_no_lifetime(tmp_path: Path, hosts: Hosts) -> None:
    home, _, plain_hop = hosts
    with sink() as away:
        away.stop()
        with relay(tmp_path, settings(home, away, plain_hop, 'maximal_queue_lifetime = "0"\n')) as found:
            queue_id = found.send(SENDER, "bob@example.org")
            found.wait_for(rf"{queue_id}: to=<bob@example.org>.*status=deferred.*refused", count=2)
            away.start()
            away.wait_for(1)
            found.wait_for(f"{queue_id}: removed")
            assert not re.search("status=(expired|bounced)", found.log())


def test_a_delay_is_told_once(tmp_path: Path, hosts: Hosts) -> None:
    more = 'delay_warning_time = "1s"\nnotify_classes = ["delay"]\ndelay_notice_recipient = "slow@example.com"\n'
    with relay(tmp_path, settings(*hosts, more)) as found:
        queue_id = found.send(SENDER, "later@example.org")
        quiet = found.send(SENDER, "later2@example.org", rcpt_options=["NOTIFY=FAILURE"])
        nobody = found.send("", "later3@example.org")
        hosts[0].wait_for(2)
        for each in (queue_id, quiet, nobody):
            found.wait_for(rf"{each}: to=<later.*status=deferred", count=3)
        assert len(hosts[0].received) == 2
        assert len(found.waiting()) == 3  # none of them is a notice
    sorted_ = sorted(hosts[0].received, key=lambda each: each.mail)
    one = next(each for each in sorted_ if addresses(each) == [SENDER])
    copy = next(each for each in sorted_ if addresses(each) == ["slow@example.com"])
    notice = read(one)
    assert one.mail.split(" ")[1] == "FROM:<>"
    assert notice["Subject"] == "Delayed Mail (still being retried)"
    assert "THIS IS A WARNING ONLY. YOU DO NOT NEED TO SEND YOUR MESSAGE AGAIN." in text(notice)
    assert "450 4.2.0 greylisted" in text(notice)
    _, (later,) = fields(notice)
    assert (later["Action"], later["Status"]) == ("delayed", "4.2.0")
    assert later["Will-Retry-Until"]
    assert parts(notice)[2].get_content_type() == "text/rfc822-headers"
    assert copy.mail.split(" ")[1] == "FROM:<double-bounce@gw.example.com>"
    assert read(copy)["Subject"] == "Postmaster Warning: Delayed Mail"


def test_without_a_time_for_it_no_delay_is_told(box: Relay, home: Sink) -> None:
    queue_id = box.send(SENDER, "later@example.org")
    box.wait_for(rf"{queue_id}: to=<later@example.org>.*status=deferred", count=3)
    assert home.received == []
    box.run("postsuper", "-d", queue_id)


# what cannot be returned


def test_mail_without_a_sender_is_not_returned(box: Relay, home: Sink) -> None:
    queue_id = box.send("", "bogus@example.org")
    box.wait_for(f"{queue_id}: removed")
    box.wait_empty()
    assert f"{queue_id}: undeliverable, and has no sender to return to" in box.log()
    assert home.received == []


def test_a_bounce_that_is_refused_makes_no_other(box: Relay, home: Sink) -> None:
    queue_id = box.send("gone@sender.example", "bogus@example.org")
    bounce = box.wait_for(rf"{queue_id}: sender non-delivery notification: ([0-9A-F]+)")[1]
    box.wait_for(f"{bounce}: removed")
    box.wait_empty()
    assert len(re.findall(rf"{bounce}: to=<gone@sender.example>.*status=bounced", box.log())) == 1
    assert home.received == []


def test_the_postmaster_hears_of_what_cannot_be_returned(tmp_path: Path, hosts: Hosts) -> None:
    more = 'notify_classes = ["2bounce"]\n2bounce_notice_recipient = "twice@example.com"\n'
    with relay(tmp_path, settings(*hosts, more)) as found:
        found.send("gone@sender.example", "bogus@example.org")
        (one,) = hosts[0].wait_for(1)
        found.wait_empty()
    assert one.mail.split(" ")[1] == "FROM:<double-bounce@gw.example.com>"
    assert addresses(one) == ["twice@example.com"]
    notice = read(one)
    assert notice["Subject"] == "Postmaster Copy: Undelivered Mail"
    _, (failed,) = fields(notice)
    assert failed["Final-Recipient"] == "rfc822; gone@sender.example"
    assert parts(notice)[2].get_content_type() == "text/rfc822-headers"


def test_nothing_is_said_of_a_notice_to_the_postmaster(tmp_path: Path, hosts: Hosts) -> None:
    """It would never end."""
    more = 'notify_classes = ["2bounce", "bounce"]\n' + "".join(
        f'{name}_notice_recipient = "gone@example.com"\n' for name in ("2bounce", "bounce")
    )
    with relay(tmp_path, settings(*hosts, more)) as found:
        found.send("gone@sender.example", "bogus@example.org")
        found.wait_for("undeliverable notice to the postmaster is dropped", count=2)
        found.wait_empty()
        accepted = set(re.findall(r"([0-9A-F]{8,}): removed", found.log()))
        assert len(accepted) == 4  # the message, its bounce, and a copy of each
    assert hosts[0].received == []


def test_mail_to_the_sender_of_notices_is_dropped(box: Relay, home: Sink, smarthost: Sink) -> None:
    queue_id = box.send(SENDER, "double-bounce@gw.example.com")
    box.wait_for(f"{queue_id}: removed")
    assert re.search(rf"{queue_id}: to=<double-bounce@gw.example.com>, relay=none, .* status=sent \(", box.log())
    assert (home.received, smarthost.received) == ([], [])


# what the postmaster hears


def test_the_postmaster_gets_a_copy_of_bounces(tmp_path: Path, hosts: Hosts) -> None:
    more = 'notify_classes = ["resource", "software", "bounce"]\nbounce_notice_recipient = "sent-bounces@example.com"\n'
    with relay(tmp_path, settings(*hosts, more)) as found:
        found.send(SENDER, "bogus@example.org")
        hosts[0].wait_for(2)
        found.wait_empty()
    one = next(each for each in hosts[0].received if addresses(each) == ["sent-bounces@example.com"])
    assert one.mail.split(" ")[1] == "FROM:<double-bounce@gw.example.com>"
    notice = read(one)
    assert notice["Subject"] == "Postmaster Copy: Undelivered Mail"
    assert "550" in text(notice)
    assert parts(notice)[2].get_content_type() == "text/rfc822-headers"
    assert b"Subject: a test" in one.content and b"hello" not in one.content


def test_the_postmaster_hears_of_sessions_that_went_wrong(tmp_path: Path, hosts: Hosts) -> None:
    """Classes policy and protocol, to error_notice_recipient; without a password in it."""
    more = 'notify_classes = ["policy", "protocol"]\nerror_notice_recipient = "errors@example.com"\n'
    stranger = '\n[[listener]]\nname = "outside"\naddress = "127.0.0.1"\nport = 0\nmynetworks = []\n'
    with relay(tmp_path, settings(*hosts, more), LISTENER + stranger) as found:
        with smtplib.SMTP("127.0.0.1", found.ports["outside"], "client.example.com", timeout=30) as client:
            client.ehlo()
            client.mail(SENDER)
            assert client.rcpt("bob@example.org")[0] == 554
        with smtplib.SMTP("127.0.0.1", found.ports["lan"], "client.example.com", timeout=30) as client:
            client.ehlo()
            client.docmd("NONSENSE", "at all")
        hosts[0].wait_for(2)
        found.wait_empty()
    policy, protocol = sorted(hosts[0].received, key=lambda each: str(read(each)["Subject"]))
    for one, word, said in ((policy, "policy", "554 5.7.1"), (protocol, "protocol", "NONSENSE at all")):
        assert addresses(one) == ["errors@example.com"]
        notice = read(one)
        assert f"({word})" in notice["Subject"]
        assert notice["Auto-Submitted"] == "auto-generated"
        content = notice.get_content()
        assert said in content and "Transcript of session follows" in content


def test_by_itself_the_postmaster_hears_of_none_of_this(box: Relay, home: Sink) -> None:
    box.send(SENDER, "bogus@example.org")
    with smtplib.SMTP("127.0.0.1", box.port, "client.example.com", timeout=30) as client:
        client.docmd("NONSENSE")
    box.wait_empty()
    assert [addresses(one) for one in home.received] == [[SENDER]]


def test_a_bounce_survives_what_its_message_does(tmp_path: Path, hosts: Hosts) -> None:
    """A message and its bounce are one transaction: after a kill there is one of them, never both, never none."""
    home = hosts[0]
    home.stop()
    try:
        with relay(tmp_path, settings(*hosts)) as found:
            queue_id = found.send(SENDER, "bogus@example.org")
            found.wait_for(f"{queue_id}: sender non-delivery notification")
            found.kill()
            home.start()
            found.start()
            (one,) = home.wait_for(1)
            found.wait_empty()
            assert queue_id in one.content.decode()
            assert len(home.received) == 1
    finally:
        home.stop()
        home.start()
    assert after_trace(one.content).startswith(b"Date: ")
