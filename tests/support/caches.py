"""`python -m tests.support.caches`: makes, ahead of the tests, what they keep in `.cache/`: the Debian base, images,
stemcells, warm templates.

A test has a deadline; building a Debian system on a loaded machine has none. What is there already is left alone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from protocol.ids import CloudName
from tests.support import postgres, stemcells, vms


def main() -> None:
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        raise SystemExit("needs root and mmdebstrap: tools/setup.sh test")
    with tempfile.TemporaryDirectory(prefix="rsg-") as directory:
        stemcells.bare(Path(directory) / "bare")
        asyncio.run(_templates(Path(directory) / "vms"))


async def _templates(directory: Path) -> None:
    async with vms.machines(directory / "usual", CloudName("caches")):
        pass
    await asyncio.to_thread(postgres.build_stemcell)
    async with vms.machines(directory / "database", CloudName("caches"), stemcell=postgres.STEMCELL):
        pass


if __name__ == "__main__":
    main()
