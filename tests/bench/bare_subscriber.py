"""The peer: a nats-py subscriber to every heartbeat, that counts and does nothing else.

For each line on its input it writes how many it has heard.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import nats


async def listen(url: str) -> None:
    client = await nats.connect(url)
    count = 0

    async def counted(_message: object) -> None:
        nonlocal count
        count += 1

    await client.subscribe(
        "hm.agent.heartbeat.*", cb=counted, pending_msgs_limit=1_000_000, pending_bytes_limit=256 * 1024 * 1024
    )
    asked = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    while await asked.readline():
        print(count, flush=True)
    await client.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    asyncio.run(listen(parser.parse_args().url))
