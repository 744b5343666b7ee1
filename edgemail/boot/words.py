"""What a box says to the person in front of it: on the screen, in a file on the boot partition, and on its page.

Owns the sentences; text in, text out. The same report makes all three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

STATUS_FILE: Final = "edgemail-status.txt"
STYLE: Final = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "pre{white-space:pre-wrap;padding:.8rem;border:1px solid #8888;border-radius:.4rem}h1{font-size:1.4rem}"
)
FIRST: Final = """\
myhostname = "gw7.example.com"
mynetworks = ["127.0.0.0/8", "192.168.7.0/24"]
relayhost  = "[smtp.isp.example]:587"
"""

Report = Mapping[str, Any]


def headline(report: Report) -> str:
    """How the box is, in one sentence."""
    if report["message"]:
        return str(report["message"])
    return "The box takes mail." if report["configured"] else "The box waits for its configuration and takes no mail."


def page(report: Report) -> str:
    """The address to open in a browser."""
    addresses: Sequence[str] = report["addresses"]
    if not addresses:
        return ""
    first = addresses[0]
    port = report.get("port", 80)
    suffix = "" if port == 80 else f":{port}"
    return f"http://{f'[{first}]' if ':' in first else first}{suffix}/"


def to_do(report: Report) -> Iterator[str]:
    """What a person should do, a paragraph each."""
    if report["data"] == "damaged":
        yield (
            "Nothing was deleted. To have the box mend the data partition, put a file edgemail-reset.txt with the word "
            "repair on the boot partition and start it again; with the word erase it makes a new one, and all mail in "
            "it is gone. To save the mail first, copy the fourth partition of the card on another computer."
        )
    if report["data"] == "missing":
        yield "Write the image to another card: this one has no room for a data partition, or cannot be written."
    if report["provision"] == "bad":
        kept = " The configuration from before is in force." if report["configured"] else ""
        yield "edgemail.toml on the boot partition has mistakes and is not in force." + kept
        yield "Put the card into a computer, correct the lines above, save, and start the box with it again."
    elif report["provision"] == "missing" and not report["configured"]:
        yield (
            "Put the card into a computer, write a file edgemail.toml on the boot partition (EDGEMAIL), and start "
            "the box with it again. The least it has to say, with your own names and addresses:"
        )
    if not report["addresses"]:
        yield "The box has no address: is the cable in, and does the network have DHCP? [network] gives it a fixed one."


def lines(report: Report) -> Iterator[str]:
    """The whole, line by line."""
    yield f"edgemail {report['version']}"
    yield ""
    yield headline(report)
    if page(report):
        yield f"Open {page(report)}"
    for note in (*report["problems"], *report["notes"]):
        yield ""
        yield str(note)
    for paragraph in to_do(report):
        yield ""
        yield paragraph
        if paragraph.endswith(":"):
            yield ""
            yield from (f"    {line}" for line in FIRST.splitlines())


def status_file(report: Report) -> str:
    """For the boot partition: lines end as Windows wants it."""
    return "\r\n".join([*lines(report), "", ""])


def console(report: Report) -> str:
    """For the screen and the serial line."""
    return "\r\n" + "\r\n".join(lines(report)) + "\r\n\r\n"


def as_html(report: Report) -> str:
    """The page of a box that takes no mail."""
    import html

    out = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>edgemail: {html.escape(headline(report))}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(headline(report))}</h1>",
    ]
    problems = [str(each) for each in report["problems"]]
    if problems:
        out.append(f"<pre>{html.escape(chr(10).join(problems))}</pre>")
    out += [f"<p>{html.escape(str(note))}</p>" for note in report["notes"]]
    for paragraph in to_do(report):
        out.append(f"<p>{html.escape(paragraph)}</p>")
        if paragraph.endswith(":"):
            out.append(f"<pre>{html.escape(FIRST)}</pre>")
    out.append(f"<p><small>edgemail {html.escape(str(report['version']))}</small></p></html>")
    return "\n".join(out)
