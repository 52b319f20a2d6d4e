"""Small container images from Debian packages, for the demonstration and the system tests: no registry, no engine.

`resurgam-demo/redis:1`: Redis with its tools, data in /data, a health check.
`resurgam-demo/tools:1`: a static busybox (sh, nc, wget, httpd).

Law: an image is made from packages alone, the same ones give the same image, and what is cached is not made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from healthmonitor.clouds import stemcell_base
from healthmonitor.clouds.build_tools import BuildFailed, Progress, require_tools
from healthmonitor.clouds.image_archive import Contents, Healthcheck, ImageConfig, build_archive

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
APPLETS = """
[ ash awk basename cat chmod chown cp cut date dd df dirname du echo env expr false find grep head hostname httpd id ip
kill ls md5sum mkdir mktemp mount mv nc netstat nslookup od ping printf ps pwd rm rmdir sed seq sh sha256sum sleep sort
stat sync tail tar tee test timeout touch tr true umount uname uniq usleep vi wc wget which xargs yes
"""
LIBRARIES = ("lib64/*", "lib/x86_64-linux-gnu/*.so*", "usr/lib/x86_64-linux-gnu/*.so*")
NOT_NEEDED = ("*/gconv/*", "*/perl*", "*/libperl*", "*/libdb-*", "*/libsepol*", "*/libsemanage*")
BUSYBOX = {f"bin/{applet}": "busybox" for applet in APPLETS.split()}


@dataclass(frozen=True, slots=True)
class Recipe:
    tag: str
    packages: tuple[str, ...]
    contents: Contents
    config: ImageConfig


RECIPES = {
    "redis": Recipe(
        tag="resurgam-demo/redis:1",
        packages=("redis-server", "redis-tools", "busybox-static"),
        contents=Contents(
            keep=("bin/busybox", "usr/bin/redis-*", *LIBRARIES),
            drop=NOT_NEEDED,
            links=BUSYBOX,
            directories=("data", "etc", "tmp"),
        ),
        config=ImageConfig(
            entrypoint=("redis-server",),
            command=("--dir", "/data", "--appendonly", "yes", "--protected-mode", "no", "--save", ""),
            environment={"PATH": PATH},
            working_directory="/data",
            ports=("6379/tcp",),
            volumes=("/data",),
            healthcheck=Healthcheck(test=("CMD", "redis-cli", "ping")),
        ),
    ),
    "tools": Recipe(
        tag="resurgam-demo/tools:1",
        packages=("busybox-static",),
        contents=Contents(keep=("bin/busybox",), links=BUSYBOX, directories=("etc", "tmp", "www")),
        config=ImageConfig(command=("/bin/sh",), environment={"PATH": PATH}),
    ),
}


def build(names: Iterable[str], directory: Path, progress: Progress = lambda what, share: None) -> list[Path]:
    """The archives of the named images in `directory`, made unless they are there. BuildFailed."""
    wanted = list(names)
    unknown = sorted(set(wanted) - set(RECIPES))
    if unknown:
        raise BuildFailed(f"no image {', '.join(unknown)}; there are: {', '.join(RECIPES)}")
    require_tools("mmdebstrap", "apt-config")
    directory.mkdir(parents=True, exist_ok=True)
    archives = []
    for number, name in enumerate(wanted):
        recipe = RECIPES[name]
        digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
        archive = directory / f"{name}-{digest}.tar"
        if not archive.exists():

            def part(what: str, share: float, done: int = number, image: str = name) -> None:
                progress(f"image {image}: {what}", (done + share) / len(wanted))

            rootfs = stemcell_base.plain_archive(directory / ".cache", recipe.packages, part)
            build_archive(rootfs, recipe.tag, recipe.config, archive, recipe.contents)
        archives.append(archive)
    progress("images are ready", 1.0)
    return archives
