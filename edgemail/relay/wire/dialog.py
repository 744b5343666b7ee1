"""The server's half of SMTP without IO: bytes in, events out, replies in, bytes out.

Interface (`receive.session` is its only driver):

    dialog = Dialog(settings, tls=False, mechanisms=())   # settings: the listener's edgemail.settings.Settings
    dialog.greet(reply)             queue the 220 (or a 421/554, which closes)
    dialog.receive_data(data)       bytes from the socket; b"" = end of input
    dialog.next_event()             Event, or None when more input is needed (then write `data_to_send()`)
    dialog.answer(reply)            answers the event that next_event last returned (all but Content)
    dialog.ehlo_reply()             the 250 to the Hello that waits for its answer: name and keywords, or the name alone
    dialog.error_number(reply)      which error of the session it would be to give `reply` now; 0: none. Ask before
                                    `answer`: past the soft limit wait, at the hard limit answer too_many_errors() instead
    dialog.fail(reply)              inside content: drop what follows; the End that comes has `reply` as its fault, unless
                                    the content itself earns a permanent one (spool full)
    dialog.data_to_send()           takes what is to be written
    dialog.tls_started(mechanisms)  forget all that was said in clear (RFC 3207 4.2)
    dialog.authenticated(user)      AUTH went well (called before answer(235)); no second AUTH
    dialog.closed                   True after 221, 421 or a fatal answer: write, then close. Also when the input has
                                    ended and nothing is left to be asked of it
    dialog.unread                   octets received and not yet looked at (STARTTLS injection: close when not 0)
    dialog.in_transaction, .in_content, .hello (name or ""), .extended, .recipients (count taken), .user
    dialog.eight_bit, .long_lines   of the message that is coming in; still true to it while its End is answered
    dialog.errors, .junk            errors answered; NOOP, RSET, VRFY, ETRN and the like since the last message taken
    dialog.buffered                 bytes kept; at most 64 KiB plus what one receive_data brought

The session calls next_event in a loop; each event but Content must be answered before the next is asked for.
"""
