"""The server's half of SMTP without IO: bytes in, events out, replies in, bytes out.

Interface (filled in by this module; `receive.session` is its only driver):

    dialog = Dialog(settings, tls=False, mechanisms=())   # settings: the listener's edgemail.settings.Settings
    dialog.greet(reply)             queue the 220 (or a 421/554, which closes)
    dialog.receive_data(data)       bytes from the socket; b"" = end of input
    dialog.next_event()             Event, or None when more input is needed (then write `data_to_send()`)
    dialog.answer(reply)            answers the event that next_event last returned (all but Content)
    dialog.fail(reply)              inside content: drop what follows and give `reply` at the end, in step (spool full)
    dialog.data_to_send()           takes what is to be written
    dialog.tls_started(mechanisms)  forget all that was said in clear (RFC 3207 4.2)
    dialog.authenticated(user)      AUTH went well (called before answer(235)); no second AUTH
    dialog.closed                   True after 221, 421 or a fatal answer: write, then close
    dialog.unread                   octets received and not yet looked at (STARTTLS injection: close when not 0)
    dialog.in_transaction, .in_content, .hello (name or ""), .extended, .recipients (count taken)
    dialog.buffered                 bytes kept; at most 64 KiB plus what one receive_data brought

The session calls next_event in a loop; each event but Content must be answered before the next is asked for.
"""
