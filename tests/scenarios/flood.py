"""Many clients that send one big message each, as a program of its own: `python -m tests.scenarios.flood PORT N SIZE`.

Prints the queue id of each message that was acknowledged; ends when all have ended, or when its input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys

PIECE = (b"z" * 70 + b"\r\n") * 450


async def reply(reader: asyncio.StreamReader) -> str:
    while True:
        line = (await reader.readline()).decode()
        if line[3:4] != "-":
            return line.strip()


async def client(port: int, number: int, size: int) -> None:
    """One client from an address of its own; gives up where it is refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.2.{number + 1}", 0))
    try:
        if not (await reply(reader)).startswith("220"):
            return
        for command in ("EHLO me", f"MAIL FROM:<a@b.example> SIZE={size}", "RCPT TO:<c@d.example>", "DATA"):
            writer.write(command.encode() + b"\r\n")
            said = await reply(reader)
            if said[:1] not in "23":
                return
        for _ in range(size // len(PIECE)):
            writer.write(PIECE)
            await writer.drain()
        writer.write(b".\r\n")
        said = await reply(reader)
        if said.startswith("250 "):
            print(said.rpartition(" ")[2], flush=True)
    finally:
        linger = struct.pack("ii", 1, 0)  # what the kernel still holds goes nowhere: the flood ends at once
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()


async def main(port: int, count: int, size: int) -> None:
    clients = [asyncio.ensure_future(client(port, number, size)) for number in range(count)]
    gathered = asyncio.gather(*clients, return_exceptions=True)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait({gathered, ended}, return_when=asyncio.FIRST_COMPLETED)
    for each in clients:
        each.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await gathered
    await ended


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:4])))
