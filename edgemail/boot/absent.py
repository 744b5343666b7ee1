"""Postfix's parameters that edgemail does not have, each with what to do instead. Data for hints, no logic.

Not a complete list of Postfix's parameters: those that stand in real files of relays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_NO_LOCAL: Final = "edgemail delivers nothing on the box itself; use admin_address and transport_maps"
_NO_REWRITING: Final = "edgemail rewrites no addresses but bare ones"
_NO_PROGRAMS: Final = "edgemail runs no other programs"
_ONE_PROCESS: Final = "edgemail is one process; there is nothing to set"
_NO_FILTER: Final = "edgemail hands mail to no filter; put the filter behind relayhost"
_NO_CLIENT_CERT: Final = "clients log in with a password, see smtpd_sasl_password_file"
_NO_OWN_CERT: Final = "edgemail shows no client certificate; log in with smtp_sasl_password_maps"
_SERVER_LEVEL: Final = "use smtpd_tls_security_level"
_CLIENT_LEVEL: Final = "use smtp_tls_security_level"
_RESTRICTIONS: Final = "put the checks into smtpd_relay_restrictions or smtpd_recipient_restrictions"

ABSENT: Final[Mapping[str, str]] = {
    "alias_database": _NO_LOCAL,
    "alias_maps": _NO_LOCAL,
    "allow_untrusted_routing": "such addresses are always refused from outside",
    "always_bcc": "edgemail keeps no copies of mail",
    "append_at_myorigin": "bare addresses are always completed with myorigin",
    "biff": _NO_LOCAL,
    "body_checks": _NO_FILTER,
    "canonical_maps": _NO_REWRITING,
    "command_directory": _ONE_PROCESS,
    "compatibility_level": "there are no older defaults to keep; leave it out",
    "config_directory": "the file is named by `--config` or $EDGEMAIL_CONFIG",
    "content_filter": _NO_FILTER,
    "daemon_directory": _ONE_PROCESS,
    "data_directory": "everything that is written stands in queue_directory",
    "debug_peer_list": "all sessions are logged alike",
    "debugger_command": _NO_PROGRAMS,
    "default_database_type": "every table says its type; texthash reads plain text",
    "header_checks": _NO_FILTER,
    "home_mailbox": _NO_LOCAL,
    "inet_interface": "did you mean inet_interfaces?",
    "local_transport": _NO_LOCAL,
    "luser_relay": _NO_LOCAL,
    "mailbox_command": _NO_LOCAL,
    "mailbox_size_limit": _NO_LOCAL,
    "masquerade_domains": _NO_REWRITING,
    "maximal_queue_life_time": "did you mean maximal_queue_lifetime?",
    "milter_default_action": _NO_FILTER,
    "mime_header_checks": _NO_FILTER,
    "mynetworks_style": "list the networks themselves in mynetworks",
    "non_smtpd_milters": _NO_FILTER,
    "permit_mx_backup_networks": "list the domains in relay_domains",
    "process_id_directory": _ONE_PROCESS,
    "readme_directory": "the documents are in docs/",
    "receive_override_options": _NO_FILTER,
    "recipient_canonical_maps": _NO_REWRITING,
    "recipient_delimiter": "list addresses with their extensions, or use a regexp table",
    "relay_clientcerts": _NO_CLIENT_CERT,
    "relay_hosts": "did you mean relayhost?",
    "relocated_maps": 'use transport_maps with "error:" and the new address',
    "sender_bcc_maps": "edgemail keeps no copies of mail",
    "sender_canonical_maps": _NO_REWRITING,
    "sender_dependent_relayhost_maps": "the next hop depends on the recipient alone",
    "setgid_group": _ONE_PROCESS,
    "smtp_bind_address": "the system chooses the source address by its routes",
    "smtp_bind_address6": "the system chooses the source address by its routes",
    "smtp_dns_support_level": "use disable_dns_lookups",
    "smtp_enforce_tls": _CLIENT_LEVEL,
    "smtp_generic_maps": _NO_REWRITING,
    "smtp_host_lookup": "hosts are found as the system finds them, /etc/hosts included",
    "smtp_sasl_mechanism_filter": "the server's first mechanism that smtp_sasl_security_options allows is used",
    "smtp_sasl_type": "logging in is built in; leave it out",
    "smtp_tls_cert_file": _NO_OWN_CERT,
    "smtp_tls_key_file": _NO_OWN_CERT,
    "smtp_tls_loglevel": "each connection under TLS is logged in one line",
    "smtp_tls_policy_maps": "give the next hop a transport of its own with a [transport.NAME] table",
    "smtp_tls_session_cache_database": "sessions are resumed from memory; leave it out",
    "smtp_use_tls": _CLIENT_LEVEL,
    "smtpd_client_restrictions": _RESTRICTIONS,
    "smtpd_data_restrictions": _RESTRICTIONS,
    "smtpd_enforce_tls": _SERVER_LEVEL,
    "smtpd_helo_restrictions": _RESTRICTIONS,
    "smtpd_milters": _NO_FILTER,
    "smtpd_proxy_filter": _NO_FILTER,
    "smtpd_sasl_local_domain": "users are named in smtpd_sasl_password_file as they log in",
    "smtpd_sasl_path": "users and passwords stand in smtpd_sasl_password_file, see `edgemail passwd`",
    "smtpd_sasl_security_options": "only PLAIN and LOGIN are offered; smtpd_tls_auth_only keeps them under TLS",
    "smtpd_sasl_type": "users and passwords stand in smtpd_sasl_password_file, see `edgemail passwd`",
    "smtpd_sender_restrictions": _RESTRICTIONS,
    "smtpd_tls_CAfile": _NO_CLIENT_CERT,
    "smtpd_tls_ask_ccert": _NO_CLIENT_CERT,
    "smtpd_tls_dh1024_param_file": "key exchange uses elliptic curves; there is no file to make",
    "smtpd_tls_dh512_param_file": "key exchange uses elliptic curves; there is no file to make",
    "smtpd_tls_req_ccert": _NO_CLIENT_CERT,
    "smtpd_tls_session_cache_database": "sessions are resumed from memory; leave it out",
    "smtpd_use_tls": _SERVER_LEVEL,
    "tls_random_source": "the kernel's; leave it out",
    "transport_map": "did you mean transport_maps?",
    "unknown_local_recipient_reject_code": "an unknown recipient gets 550",
    "virtual_alias_domains": _NO_REWRITING,
    "virtual_alias_maps": _NO_REWRITING,
    "virtual_mailbox_domains": _NO_LOCAL,
    "virtual_mailbox_maps": _NO_LOCAL,
    "virtual_transport": _NO_LOCAL,
    # restrictions that are taken for parameters
    "reject_unauth_destination": "it is a word for smtpd_relay_restrictions",
    "reject_unknown_sender": "restrictions are words for smtpd_recipient_restrictions, and this one is not among them",
}
