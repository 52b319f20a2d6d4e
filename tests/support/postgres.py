"""PostgreSQL for system tests: an image from Debian's packages, a stemcell that has it, and just enough of the wire
protocol (version 3, trust, simple queries) to write and to read back.

A `Ledger` writes as several clients and notes what was acknowledged: what a database promised, against what it has.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from healthmonitor.clouds import stemcell_base, stemcell_build
from healthmonitor.clouds.demo_images import BUSYBOX, LIBRARIES, NOT_NEEDED, PATH, Recipe
from healthmonitor.clouds.image_archive import Contents, ImageConfig, build_archive

CACHE = Path(__file__).resolve().parents[2] / ".cache"
STEMCELL = "postgres"
HOME = "usr/lib/postgresql/15"
USER = "65534:65534"
"""`nobody` of Debian's own list: the server refuses to be root, and to be a user without a name."""
SHARED = ("postgresql/15/*", "zoneinfo/UTC", "base-passwd/*")
RECIPE = Recipe(
    tag="resurgam-test/postgres:1",
    packages=("postgresql-15", "busybox-static", "base-passwd"),
    contents=Contents(
        keep=("bin/busybox", f"{HOME}/*", *(f"usr/share/{name}" for name in SHARED), *LIBRARIES),
        drop=(*NOT_NEEDED, "*/bitcode/*", "*llvmjit*", "*libLLVM*", "*/libz3.so*"),
        links={**BUSYBOX, "etc/passwd": "/usr/share/base-passwd/passwd.master"},
        directories=("data", "tmp"),
    ),
    config=ImageConfig(environment={"PATH": f"/{HOME}/bin:{PATH}", "TZ": "UTC"}, stop_signal="SIGINT"),
)
SETTINGS = {
    "listen_addresses": "*",
    "unix_socket_directories": "/tmp",
    "shared_buffers": "32MB",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "jit": "off",
}
Address = Callable[[], Awaitable[tuple[str, int]]]
CONNECT_SECONDS = 5.0
QUERY_SECONDS = 60.0


def serve(port: int = 5432) -> str:
    """A shell's words: the cluster is made whole or not at all, then served."""
    settings = " ".join(f"-c {name}='{value}'" for name, value in SETTINGS.items())
    return (
        "test -d /data/cluster || { rm -rf /data/draft"
        " && initdb -D /data/draft -A trust -U app --no-locale --encoding=UTF8 --data-checksums --no-instructions"
        " && echo 'host all all all trust' >> /data/draft/pg_hba.conf && sync && mv /data/draft /data/cluster; }"
        f" && exec postgres -D /data/cluster -p {port} {settings}"
    )


def build_stemcell() -> None:
    """Made unless it is there; keyed by what it is made of."""
    digest = hashlib.sha256(repr(RECIPE).encode()).hexdigest()[:12]
    directory = CACHE / "images"
    archive = directory / f"postgres-{digest}.tar"
    if not archive.exists():
        directory.mkdir(parents=True, exist_ok=True)
        rootfs = stemcell_base.plain_archive(directory / ".cache", RECIPE.packages, _say)
        build_archive(rootfs, RECIPE.tag, RECIPE.config, archive, RECIPE.contents)
        rootfs.unlink()  # of no other use, and large
    stemcell_build.build(STEMCELL, CACHE / "stemcells", images=(archive,), progress=_say)


def _say(what: str, share: float) -> None:
    print(f"{STEMCELL}: {what} …", flush=True)


class ServerError(Exception):
    """The server's own words."""


class Connection:
    """One session. Whatever breaks it is an OSError, a TimeoutError or an EOFError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int, seconds: float = CONNECT_SECONDS) -> Connection:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port)
            made = cls(reader, writer)
            words = b"user\0app\0database\0postgres\0\0"
            writer.write(struct.pack("!ii", 8 + len(words), 196608) + words)
            try:
                await made._until_ready()
            except BaseException:
                writer.close()
                raise
            return made

    async def query(self, sql: str, seconds: float = QUERY_SECONDS) -> list[tuple[str, ...]]:
        """The rows, as text; ServerError when it refuses."""
        async with asyncio.timeout(seconds):
            text = sql.encode() + b"\0"
            self._writer.write(b"Q" + struct.pack("!i", 4 + len(text)) + text)
            return await self._until_ready()

    async def _until_ready(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        error = ""
        while True:
            kind, length = struct.unpack("!ci", await self._reader.readexactly(5))
            body = await self._reader.readexactly(length - 4)
            if kind == b"E":
                error = " ".join(part[1:].decode() for part in body.split(b"\0") if part[:1] in (b"C", b"M"))
            if kind == b"D":
                rows.append(_row(body))
            if kind == b"Z":
                if error:
                    raise ServerError(error)
                return rows
            if kind == b"E" and body.startswith(b"SFATAL"):
                raise ConnectionError(error)

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, it: BaseException | None, at: TracebackType | None
    ) -> None:
        self._writer.close()


def _row(body: bytes) -> tuple[str, ...]:
    values, at = [], 2
    for _ in range(struct.unpack_from("!h", body)[0]):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append("" if length < 0 else body[at : at + length].decode())
        at += max(0, length)
    return tuple(values)


@dataclass
class Ledger:
    """Writers that insert one row a transaction, one after another, and note each acknowledgement.

    `address`: host and port of the server, asked before each connection. `acknowledged`: what the server said is
    committed. `begun`: also what was sent and never answered, of which nobody knows. `failures`: what broke, in the
    server's or the connection's words. `longest_pause_seconds`: of one transaction, from sent to acknowledged.
    `begun_at`, `acknowledged_at`: on the loop's clock."""

    address: Address
    writers: int = 3
    acknowledged: set[tuple[int, int]] = field(default_factory=set)
    begun: set[tuple[int, int]] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    longest_pause_seconds: float = 0.0
    begun_at: dict[tuple[int, int], float] = field(default_factory=dict)
    acknowledged_at: dict[tuple[int, int], float] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def prepare(self) -> None:
        async with await Connection.open(*await self.address()) as connection:
            await connection.query(
                "create table if not exists ledger (writer int, number int, primary key (writer, number))"
            )

    async def __aenter__(self) -> Ledger:
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(self.writers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, it: BaseException | None, at: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    def forget_pauses(self) -> None:
        """From now on is measured."""
        self.longest_pause_seconds = 0.0

    async def _write(self, writer: int) -> None:
        number = 0
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with await Connection.open(*await self.address()) as connection:
                    while True:
                        number += 1
                        entry = (writer, number)
                        self.begun.add(entry)
                        began = self.begun_at[entry] = loop.time()
                        await connection.query(f"insert into ledger values ({writer}, {number})")
                        self.acknowledged.add(entry)
                        self.acknowledged_at[entry] = loop.time()
                        self.longest_pause_seconds = max(self.longest_pause_seconds, loop.time() - began)
            except (OSError, TimeoutError, EOFError, ServerError) as error:
                self.failures.append(f"{type(error).__name__} {error}")
                await asyncio.sleep(0.2)  # the server is not there; the same number is never tried twice

    async def compare(self) -> None:
        """AssertionError when something acknowledged is not there, or something is there that nobody wrote."""
        promised = set(self.acknowledged)  # more may come while it is looked
        there = await self.there()
        lost = promised - there
        assert not lost, f"{len(lost)} of {len(promised)} acknowledged transactions are lost: {sorted(lost)[:5]}"
        assert there <= self.begun, f"nobody wrote {sorted(there - self.begun)[:5]}"

    async def there(self) -> set[tuple[int, int]]:
        async with await Connection.open(*await self.address()) as connection:
            rows = await connection.query("select writer, number from ledger")
        return {(int(writer), int(number)) for writer, number in rows}

    def is_of_one_moment(self, there: set[tuple[int, int]], after: float, before: float) -> None:
        """AssertionError unless `there` is just what was committed at one moment between the two: everything that was
        acknowledged until `after`, nothing that was begun since `before`, and, of what is between, with each
        transaction all that was acknowledged before it was begun."""
        missing = {entry for entry, at in self.acknowledged_at.items() if at <= after} - there
        assert not missing, f"acknowledged before the moment, and not there: {sorted(missing)[:5]}"
        late = {entry for entry in there if self.begun_at[entry] >= before}
        assert not late, f"begun after the moment, and there: {sorted(late)[:5]}"
        newest = max(self.begun_at[entry] for entry in there)
        torn = {entry for entry, at in self.acknowledged_at.items() if at < newest} - there
        assert not torn, f"acknowledged before another was begun that is there: {sorted(torn)[:5]}"


async def check_every_byte(address: Address) -> tuple[int, int]:
    """How many tables and indexes amcheck found nothing in; AssertionError with what it found."""
    async with await Connection.open(*await address()) as connection:
        await connection.query("create extension if not exists amcheck")
        tables = [name for (name,) in await connection.query(_RELATIONS.format(kinds="'r', 't'", method="heap"))]
        indexes = [name for (name,) in await connection.query(_RELATIONS.format(kinds="'i'", method="btree"))]
        for table in tables:
            found = await connection.query(f"select * from verify_heapam('{table}'::regclass)")
            assert not found, f"{table}: {found[:5]}"
        for index in indexes:
            await connection.query(f"select bt_index_parent_check('{index}'::regclass, true, true)")
    return len(tables), len(indexes)


_RELATIONS = """
select c.oid::regclass from pg_class c join pg_am a on a.oid = c.relam left join pg_index i on i.indexrelid = c.oid
where c.relkind in ({kinds}) and a.amname = '{method}' and c.relpersistence = 'p' and coalesce(i.indisvalid, true)
"""


def manifest(data_mib: int, forwarded: int = 0, load: bool = True, grow: str = "") -> str:
    """One instance, `pg/db/0`: the server on a persistent disk, and pgbench beside it that never stops writing.
    `forwarded`: a port of this machine at which the server is reached. `grow`: of its disk, as in a manifest."""
    properties = f', cloud_properties: {{forward_ports: ["127.0.0.1:{forwarded}:5432"]}}' if forwarded else ""
    running = f"""
      load:
        image: {RECIPE.tag}
        user: "{USER}"
        network_mode: host
        entrypoint: ["sh", "-c"]
        command:
          - |
            export PGHOST=127.0.0.1 PGUSER=app PGDATABASE=postgres
            case $$(psql -Atqc "select to_regclass('load_is_ready') is not null") in
              t) ;;
              f) pgbench -q -i -s 1 -I dtGp && psql -qc "create table load_is_ready as select 1" || exit 1 ;;
              *) exit 1 ;;
            esac
            exec pgbench -n -c 2 --rate=10 -T 100000
        depends_on: {{postgres: {{condition: service_healthy, restart: false}}}}
        stop_grace_period: 2s
"""
    return f"""
name: pg
stemcell: {STEMCELL}
cloud: local
instance_groups:
  - name: db
    instances: 1
    vm: {{cpus: 1, memory: 512MiB{properties}}}
    persistent_disks: {{data: {{size: {data_mib}MiB, grow: {grow or "null"}}}}}
    containers:
      postgres:
        image: {RECIPE.tag}
        user: "{USER}"
        network_mode: host
        entrypoint: ["sh", "-c"]
        command: ["{serve()}"]
        volumes: ["data:/data"]
        stop_grace_period: 10s
        healthcheck:
          test: ["CMD", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "app", "-d", "postgres"]
          interval: 2s
          timeout: 10s
          retries: 10
          start_period: 120s
{running if load else ""}"""
