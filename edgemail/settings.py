"""Every parameter: its name (Postfix's, where Postfix has one), type, unit, default and one line of help. Data, no logic.

`boot.config` reads a file into these values; a listener holds its own `Settings` with its overrides already applied,
and `Configuration.transport` gives those of a transport. Durations are float seconds, sizes int bytes, 0 = off or no
limit where the help says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, TypeVar

from edgemail.value import value

T = TypeVar("T")

# A lookup table as configured: "texthash:/path", "static:x", or the pairs of an inline table.
TableSpec = str | tuple[tuple[str, str], ...]
Maps = tuple[TableSpec, ...]
Names = tuple[str, ...]


@value
class Parameter:
    """How one parameter is written. `form` is one of text, bool, int, duration, size, list, maps, choice, path, address."""

    form: str
    help: str
    unit: str = "s"  # of a bare number, for durations
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = float("inf")
    listener: bool = False  # may stand in a [[listener]]
    transport: bool = False  # may stand in a [transport.NAME]


def _p(default: T, form: str, help: str, **more: Any) -> T:
    return field(default=default, metadata={"parameter": Parameter(form, help, **more)})


def _smtpd(default: T, form: str, help: str, **more: Any) -> T:
    return _p(default, form, help, listener=True, **more)


def _smtp(default: T, form: str, help: str, **more: Any) -> T:
    return _p(default, form, help, transport=True, **more)


SERVER_LEVELS = ("none", "may", "encrypt")
CLIENT_LEVELS = ("none", "may", "encrypt", "verify", "secure")
GRADES = ("medium", "high")
CLASSES = ("bounce", "2bounce", "delay", "policy", "protocol", "resource", "software")


@value(kw_only=True)
class Settings:
    """All parameters with their effective values. Field order is the order of `edgemail config`."""

    # names
    myhostname: str = _p("", "text", "this box's fully qualified name; default: the system's host name")
    mydomain: str = _p("", "text", "default: myhostname without its first label")
    myorigin: str = _p("$myhostname", "text", "appended to addresses without a domain, when they are sent")
    mydestination: Names = _p(("$myhostname", "localhost.$mydomain", "localhost"), "list", "domains whose mail is for this box")
    mail_name: str = _p("edgemail", "text", "the program's name in banner and trace header")
    mail_owner: str = _p("edgemail", "text", "the user to become after binding, when started as root")
    admin_address: str = _p("", "address", "who gets mail for postmaster, root, abuse and MAILER-DAEMON of this box")
    # where it listens and whom it trusts
    inet_interfaces: Names = _p(("127.0.0.1", "::1"), "list", "default address of every listener: all, loopback-only, names, addresses")
    inet_protocols: Names = _p(("all",), "list", "all, ipv4, ipv6")
    proxy_interfaces: Names = _p((), "list", "outer addresses (NAT, proxies) that count as our own in MX loops")
    mynetworks: Names = _p(("127.0.0.0/8", "::1/128"), "list", "networks whose clients may relay", listener=True)
    relay_domains: Names = _p((), "list", "domains, and their subdomains, that anyone may send to through this box")
    fast_flush_domains: Names = _p(("$relay_domains",), "list", "domains whose mail may be asked for: ETRN, `postqueue -s`")
    fast_flush_rate_limit: int = _p(5, "int", "times that ETRN may ask for one of them per anvil_rate_time_unit; 0 = no limit")
    odmr_domain_maps: Maps = _p((), "maps", "user to the domains, parted by commas, whose mail may be taken over by ATRN")
    relay_recipient_maps: Maps = _p((), "maps", "valid recipients in relay_domains; empty: any")
    local_recipient_maps: Maps = _p((), "maps", "valid recipients in mydestination beside the standard names; empty: none")
    parent_domain_matches_subdomains: Names = _p(("fast_flush_domains", "mynetworks", "relay_domains"), "list", "lists in which a domain stands for its subdomains too")
    soft_bounce: bool = _p(False, "bool", "answer 4xx for every 5xx and bounce nothing; for trials", listener=True)
    # receiving
    message_size_limit: int = _p(10_240_000, "size", "largest message, bytes; 0 = no limit", listener=True)
    line_length_limit: int = _p(2048, "size", "longest command line, bytes", low=512, listener=True)
    header_size_limit: int = _p(102_400, "size", "bytes of header that are looked at", low=1024)
    hopcount_limit: int = _p(50, "int", "Received lines before a message counts as looping", low=1)
    smtputf8_enable: bool = _p(True, "bool", "offer SMTPUTF8", listener=True)
    smtpd_banner: str = _smtpd("$myhostname ESMTP $mail_name", "text", "the greeting's text")
    smtpd_peername_lookup: bool = _smtpd(False, "bool", "look up the client's name (2 s at most)")
    smtpd_helo_required: bool = _smtpd(False, "bool", "refuse MAIL before HELO or EHLO")
    strict_rfc821_envelopes: bool = _smtpd(False, "bool", "refuse envelope addresses without <> or with odd forms")
    disable_vrfy_command: bool = _smtpd(False, "bool", "refuse VRFY")
    smtpd_noop_commands: Names = _smtpd((), "list", "verbs that are answered 250 and do nothing")
    smtpd_discard_ehlo_keywords: Names = _smtpd((), "list", "EHLO keywords not to offer")
    smtpd_legacy_line_ends: bool = _smtpd(False, "bool", "take bare CR and LF from old devices and make them CRLF")
    smtpd_recipient_limit: int = _smtpd(1000, "int", "recipients of one message", low=1)
    smtpd_timeout: float = _smtpd(300.0, "duration", "for a command, or for any progress inside a message", low=1)
    smtpd_min_data_rate: int = _smtpd(500, "int", "bytes of content per second that a client must send, smtpd_timeout apart; 0 = any")
    smtpd_starttls_timeout: float = _smtpd(60.0, "duration", "for a TLS handshake", low=1)
    smtpd_error_sleep_time: float = _smtpd(1.0, "duration", "wait before an error is answered, past the soft limit")
    smtpd_soft_error_limit: int = _smtpd(10, "int", "errors that are answered at once")
    smtpd_hard_error_limit: int = _smtpd(20, "int", "errors until the session is closed", low=1)
    smtpd_junk_command_limit: int = _smtpd(100, "int", "NOOP, RSET, VRFY, ETRN without mail before they count as errors")
    smtpd_client_connection_count_limit: int = _smtpd(50, "int", "sessions of one client at once; 0 = no limit")
    smtpd_client_connection_rate_limit: int = _smtpd(0, "int", "connections of one client per anvil_rate_time_unit; 0 = no limit")
    smtpd_client_message_rate_limit: int = _smtpd(0, "int", "messages of one client per unit; 0 = no limit")
    smtpd_client_recipient_rate_limit: int = _smtpd(0, "int", "recipients of one client per unit; 0 = no limit")
    smtpd_client_new_tls_session_rate_limit: int = _smtpd(0, "int", "TLS sessions of one client per unit, resumed ones apart; 0 = no limit")
    smtpd_client_event_limit_exceptions: Names = _smtpd(("$mynetworks",), "list", "clients without these limits")
    anvil_rate_time_unit: float = _p(60.0, "duration", "the unit of the rate limits", low=1)
    default_process_limit: int = _p(100, "int", "sessions at once, and deliveries at once of a transport", low=1)
    # relay control
    smtpd_relay_restrictions: Names = _smtpd(("permit_mynetworks", "permit_sasl_authenticated", "reject_unauth_destination"), "list", "who may relay; must end in a refusal")
    smtpd_recipient_restrictions: Names = _smtpd((), "list", "further checks at RCPT")
    smtpd_etrn_restrictions: Names = _smtpd((), "list", "who may ask with ETRN; empty: clients in mynetworks and users logged in")
    smtpd_reject_unlisted_recipient: bool = _smtpd(True, "bool", "refuse recipients that the recipient maps do not know")
    # authentication of clients
    smtpd_sasl_auth_enable: bool = _smtpd(False, "bool", "offer AUTH PLAIN and LOGIN")
    smtpd_sasl_password_file: str = _smtpd("", "path", "users and scrypt hashes, made by `edgemail passwd`")
    broken_sasl_auth_clients: bool = _smtpd(False, "bool", "also offer the old AUTH= form")
    # TLS of listeners
    smtpd_tls_security_level: str = _smtpd("may", "choice", "none, may, encrypt", choices=SERVER_LEVELS)
    smtpd_tls_wrappermode: bool = _smtpd(False, "bool", "TLS from the first byte (port 465)")
    smtpd_tls_auth_only: bool = _smtpd(True, "bool", "AUTH only under TLS")
    smtpd_tls_cert_file: str = _smtpd("", "path", "PEM chain; default: self-signed, made at first start beside the spool")
    smtpd_tls_key_file: str = _smtpd("$smtpd_tls_cert_file", "path", "PEM key, unencrypted")
    smtpd_tls_received_header: bool = _smtpd(False, "bool", "note protocol and cipher in Received")
    smtpd_tls_loglevel: int = _smtpd(1, "int", "0 = nothing, 1 = one line a session", high=1)
    smtpd_tls_protocols: str = _smtpd(">=TLSv1.2", "text", "protocols at level may; never below TLSv1.2")
    smtpd_tls_mandatory_protocols: str = _smtpd(">=TLSv1.2", "text", "protocols at level encrypt; never below TLSv1.2")
    smtpd_tls_ciphers: str = _smtpd("medium", "choice", "cipher grade at level may", choices=GRADES)
    smtpd_tls_mandatory_ciphers: str = _smtpd("medium", "choice", "cipher grade at level encrypt", choices=GRADES)
    smtpd_tls_exclude_ciphers: Names = _smtpd((), "list", "ciphers never to use, OpenSSL names")
    smtpd_tls_eecdh_grade: str = _smtpd("auto", "choice", "auto: OpenSSL chooses the curves", choices=("auto", "strong", "ultra"))
    smtpd_tls_session_cache_timeout: float = _smtpd(3600.0, "duration", "how long a TLS session may be resumed; 0 = never")
    # routing
    relayhost: Names = _p((), "list", "next hop for all other mail: [host]:port, host (MX); several are tried in order; empty = by MX")
    transport_maps: Maps = _p((), "maps", "user@domain, domain, .domain to transport:nexthop")
    default_transport: str = _p("smtp", "text", "the transport of mail for other domains")
    relay_transport: str = _p("relay", "text", "the transport of mail for relay_domains")
    smtp_fallback_relay: Names = _smtp((), "list", "tried in order when no other next hop can be reached")
    defer_transports: Names = _p((), "list", "transports on demand: their mail waits for a flush, ETRN, or one of their links to come up")
    smtp_links: Names = _smtp((), "list", "the [[link]]s that its mail may use, best first; empty: whatever the system routes")
    disable_dns_lookups: bool = _smtp(False, "bool", "no MX: addresses of the host only")
    dns_nameservers: Names = _p((), "list", "resolvers, address or [address]:port; empty: /etc/resolv.conf")
    append_dot_mydomain: bool = _p(False, "bool", "complete user@host with mydomain")
    # sending
    smtp_helo_name: str = _smtp("$myhostname", "text", "our name in EHLO")
    smtp_tcp_port: int = _smtp(25, "int", "port where a next hop names none", low=1, high=65535)
    smtp_connect_timeout: float = _smtp(30.0, "duration", "for one address", low=1)
    smtp_helo_timeout: float = _smtp(300.0, "duration", "for greeting and EHLO", low=1)
    smtp_starttls_timeout: float = _smtp(300.0, "duration", "for STARTTLS and handshake", low=1)
    smtp_mail_timeout: float = _smtp(300.0, "duration", "for the reply to MAIL", low=1)
    smtp_rcpt_timeout: float = _smtp(300.0, "duration", "for the reply to RCPT", low=1)
    smtp_data_init_timeout: float = _smtp(120.0, "duration", "for the reply to DATA", low=1)
    smtp_data_xfer_timeout: float = _smtp(180.0, "duration", "for any progress of the content", low=1)
    smtp_data_done_timeout: float = _smtp(600.0, "duration", "for the reply to the final dot", low=1)
    smtp_rset_timeout: float = _smtp(20.0, "duration", "for the reply to RSET", low=1)
    smtp_quit_timeout: float = _smtp(10.0, "duration", "for the reply to QUIT", low=1)
    smtp_mx_address_limit: int = _smtp(5, "int", "addresses tried for one delivery; 0 = all")
    smtp_mx_session_limit: int = _smtp(2, "int", "sessions with a greeting tried for one delivery; 0 = all")
    smtp_address_preference: str = _smtp("any", "choice", "which addresses come first", choices=("any", "ipv4", "ipv6"))
    smtp_randomize_addresses: bool = _smtp(True, "bool", "shuffle MX hosts of equal preference")
    smtp_skip_5xx_greeting: bool = _smtp(True, "bool", "a 5xx greeting: try the next host")
    smtp_line_length_limit: int = _smtp(998, "int", "fold longer lines with CRLF SP; 0 = never")
    smtp_discard_ehlo_keywords: Names = _smtp((), "list", "keywords of servers to overlook")
    smtp_connection_cache_time_limit: float = _smtp(2.0, "duration", "how long an idle connection is kept")
    smtp_connection_reuse_time_limit: float = _smtp(300.0, "duration", "how long a connection is used at all")
    smtp_connection_reuse_count_limit: int = _smtp(0, "int", "messages over one connection; 0 = no limit")
    # TLS of the client
    smtp_tls_security_level: str = _smtp("may", "choice", "none, may, encrypt, verify, secure", choices=CLIENT_LEVELS)
    smtp_tls_wrappermode: bool = _smtp(False, "bool", "TLS from the first byte; needs encrypt or more")
    smtp_tls_CAfile: str = _smtp("", "path", "trusted roots, PEM; default: the system's")
    smtp_tls_CApath: str = _smtp("", "path", "directory of trusted roots, hashed names")
    smtp_tls_verify_cert_match: Names = _smtp(("hostname",), "list", "names accepted at level verify: hostname, nexthop, dot-nexthop")
    smtp_tls_secure_cert_match: Names = _smtp(("nexthop", "dot-nexthop"), "list", "names accepted at level secure")
    smtp_tls_protocols: str = _smtp(">=TLSv1.2", "text", "protocols at level may; never below TLSv1.2")
    smtp_tls_mandatory_protocols: str = _smtp(">=TLSv1.2", "text", "protocols at the higher levels; never below TLSv1.2")
    smtp_tls_ciphers: str = _smtp("medium", "choice", "cipher grade at level may", choices=GRADES)
    smtp_tls_mandatory_ciphers: str = _smtp("medium", "choice", "cipher grade at the higher levels", choices=GRADES)
    smtp_tls_exclude_ciphers: Names = _smtp((), "list", "ciphers never to use, OpenSSL names")
    smtp_tls_mandatory_exclude_ciphers: Names = _smtp((), "list", "more of them at the higher levels")
    # logging in at next hops
    smtp_sasl_auth_enable: bool = _smtp(False, "bool", "log in where smtp_sasl_password_maps has an entry")
    smtp_sasl_password_maps: Maps = _smtp((), "maps", "next hop, host or domain to user:password")
    smtp_sasl_security_options: Names = _smtp(("noplaintext", "noanonymous"), "list", "what to refuse outside TLS")
    smtp_sasl_tls_security_options: Names = _smtp(("noanonymous",), "list", "what to refuse under TLS")
    smtp_sasl_tls_verified_security_options: Names = _smtp(("$smtp_sasl_tls_security_options",), "list", "what to refuse under verified TLS")
    # queue
    queue_directory: str = _p("/data/spool", "path", "where the spool lives")
    spool_size: int = _p(2_147_483_648, "size", "largest the spool may grow", low=16_777_216)
    journal_size: int = _p(16_777_216, "size", "of the file in front of the spool that spares small mail a barrier; 0 = none")
    queue_minfree: int = _p(0, "size", "bytes that must stay free; at least 1.5 x message_size_limit is always kept")
    queue_run_delay: float = _p(300.0, "duration", "how often waiting mail is looked at", low=1)
    minimal_backoff_time: float = _p(300.0, "duration", "shortest wait after a failed try", low=1)
    maximal_backoff_time: float = _p(4000.0, "duration", "longest wait after a failed try", low=1)
    maximal_queue_lifetime: float = _p(432_000.0, "duration", "how long mail is tried; 0 = once", unit="d")
    bounce_queue_lifetime: float = _p(432_000.0, "duration", "the same for notices", unit="d")
    lifetime_counts: str = _p("link-up", "choice", "link-up: only time in which it could have left; wall: all time", choices=("link-up", "wall"))
    qmgr_message_active_limit: int = _p(1000, "int", "messages in hand at once", low=1)
    qmgr_message_recipient_limit: int = _p(10_000, "int", "recipients in hand at once", low=1)
    in_flow_delay: float = _p(1.0, "duration", "pause before a message is taken while more than qmgr_message_active_limit were not tried yet; 0 = off", high=10)
    initial_destination_concurrency: int = _smtp(5, "int", "deliveries to begin with at one site", low=1)
    default_destination_concurrency_limit: int = _smtp(20, "int", "deliveries at once to one site; 0 = no limit")
    default_destination_recipient_limit: int = _smtp(50, "int", "recipients in one delivery; 0 = no limit")
    # notices
    bounce_size_limit: int = _p(50_000, "size", "bytes of a message that a notice returns", low=1)
    double_bounce_sender: str = _p("double-bounce", "text", "who sends notices to the postmaster; mail to it is dropped")
    delay_warning_time: float = _p(0.0, "duration", "tell the sender after this time; 0 = never", unit="h")
    notify_classes: Names = _p(("resource", "software"), "list", "what the postmaster hears of: " + ", ".join(CLASSES))
    bounce_notice_recipient: str = _p("postmaster", "address", "for class bounce")
    double_bounce_notice_recipient: str = _p("postmaster", "address", "for class 2bounce (Postfix: 2bounce_notice_recipient)")
    delay_notice_recipient: str = _p("postmaster", "address", "for class delay")
    error_notice_recipient: str = _p("postmaster", "address", "for classes policy, protocol, resource, software")
    notice_recipient: str = _p("postmaster", "address", "who hears that a route pauses")
    watchdog_device: str = _p("", "path", "the board's watchdog, such as /dev/watchdog: fed while /livez is well")
    # log
    syslog_name: str = _p("edgemail", "text", "first word of log lines", listener=True)


PARAMETERS: Mapping[str, Parameter] = {f.name: f.metadata["parameter"] for f in dataclasses.fields(Settings)}


@value
class Listener:
    """One address to listen on: `settings` are the box's with this listener's own on top."""

    name: str  # "lan", or "address:port" where none is given; in logs and status
    address: str  # an address, "*", or an interface name
    port: int  # 0 = a free one
    profile: str  # lan, submission, submissions, legacy, odmr
    settings: Settings
    section: str = ""  # its place in the file, for messages: "listener[1]"; "" for the one that no file names


@value
class Health:
    """The `[health]` table: where the status page is served, and to whom."""

    address: str = "127.0.0.1"
    port: int = 8025  # 0 = a free one
    token_file: str = ""  # one line, asked for as a bearer token; "" = none
    networks: Names = ("127.0.0.0/8", "::1/128")  # clients that may ask


@value
class Push:
    """The `[push]` table: whom the box tells how it is, where nobody can ask it. The URLs may hold secrets."""

    heartbeat_url: str = ""  # asked every heartbeat_interval while the box has not failed; "" = none
    heartbeat_interval: float = 300.0  # seconds
    alarm_url: str = ""  # is posted the status JSON when the state changes; "" = none
    ca_file: str = ""  # trusted roots, PEM; "" = the system's


@value
class Network:
    """The `[network]` table, for the system image: how the box gets its addresses. A relay on another system ignores it."""

    interface: str = ""  # "" = the first wired one
    vlan: int = 0  # 0 = untagged
    address: Names = ("dhcp",)  # "dhcp", and addresses with their prefix: "192.0.2.7/24"
    gateway: Names = ()
    nameservers: Names = ()  # () = those of DHCP
    ipv6: str = "auto"  # auto: by router advertisement; off


@value
class TimeServers:
    """The `[time]` table, for the system image."""

    servers: Names = ("2.debian.pool.ntp.org",)


@value
class Update:
    """The `[update]` table, for the system image: where releases come from, and when they may come by themselves."""

    url: str = ""  # of the newest bundle; "" = nobody is asked
    keys: Names = ()  # public keys that are trusted beside those of the image, 64 hex digits
    check_interval: float = 86_400.0  # seconds; 0 = never by itself
    windows: Names = ()  # hours in which a release is installed by itself; () = never
    ca_file: str = ""  # trusted roots, PEM; "" = the system's


LINK_CLASSES = ("fibre", "lte", "satellite")
ON_UP = ("flush",)


@value
class Link:
    """One `[[link]]`: an uplink, how its state is known, and what it is spared. 0 and "" = not set.

    It works when everything that is named says so: the interface, the route, the probe, the command.
    """

    name: str
    kind: str = "fibre"  # `class` in the file
    interface: str = ""  # it has a carrier and an address
    route: str = ""  # an address that the kernel has a route to (by that interface, if one is named)
    probe: str = ""  # host:port that takes a TCP connection
    command: Names = ()  # a program that exits with 0
    probe_interval: float = 60.0  # between two probes, seconds
    probe_timeout: float = 10.0  # until a probe has failed
    windows: Names = ()  # hours in which it may be used: "Mon-Fri 02:00-04:00"
    budget_day: int = 0  # bytes
    budget_month: int = 0
    size_limit: int = 0  # larger messages wait for a better link
    connections: int = 0  # at once; 0: as its class has it
    on_up: Names = ON_UP  # what is done when it comes up
    etrn: str = ""  # HOST[:PORT] that is asked then to start its queue
    etrn_domains: Names = ()  # for these domains
    atrn: str = ""  # HOST[:PORT] whose mail for us is taken then, over the connection that asks for it
    atrn_domains: Names = ()  # for these domains
    atrn_user: str = ""  # as whom
    atrn_password_file: str = ""  # its first line
    ask_interval: float = 0.0  # both are asked every so many seconds while it is up, the first time at the start
    bind: bool = True  # its mail keeps to the interface; False: goes as the system routes, and the interface is watched


@value
class Priority:
    """One `[[priority]]`: a class of mail; those that stand first in the file go first."""

    name: str
    match: Names = ()  # sender:ADDRESS, recipient:@DOMAIN, listener:NAME, header:NAME:VALUE; (): all other mail


@value
class Configuration:
    """A whole configuration file, checked. `transports` holds the settings of each transport that has its own.

    `given` is what the file itself says: the key with its place ("myhostname", "listener[1].port") and its line.
    """

    path: str
    settings: Settings
    listeners: tuple[Listener, ...]
    transports: Mapping[str, Settings] = field(default_factory=dict)
    health: Health | None = None  # None: no status page
    given: Mapping[str, int] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    priorities: tuple[Priority, ...] = ()
    push: Push | None = None
    network: Network = Network()
    time: TimeServers = TimeServers()
    update: Update = Update()

    def transport(self, name: str) -> Settings:
        """The settings in force for a transport: the box's where it has none of its own."""
        return self.transports.get(name, self.settings)
