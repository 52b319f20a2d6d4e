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
from healthmonitor.clouds.image_archive import Healthcheck, ImageConfig, build_archive

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUSYBOX = 'mkdir -p "$1/bin" "$1/tmp" && chmod 1777 "$1/tmp" && chroot "$1" /bin/busybox --install -s /bin'
"""Applets that a package brought itself are kept: --install does not replace."""


@dataclass(frozen=True, slots=True)
class Recipe:
    tag: str
    packages: tuple[str, ...]
    hooks: tuple[str, ...]
    config: ImageConfig


RECIPES = {
    "redis": Recipe(
        tag="resurgam-demo/redis:1",
        packages=("redis-server", "redis-tools", "busybox-static"),
        hooks=(
            BUSYBOX,
            'mkdir -p "$1/data"',
            'rm -rf "$1/usr/share" "$1/usr/lib/x86_64-linux-gnu/gconv" "$1/usr/lib/x86_64-linux-gnu/perl-base" '
            '"$1"/usr/bin/perl* "$1/var/lib/dpkg" "$1/var/cache" "$1/etc/apt" "$1/var/lib/apt"',
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
        hooks=(BUSYBOX, 'rm -rf "$1/usr/share" "$1/var/lib/dpkg" "$1/var/cache" "$1/etc/apt" "$1/var/lib/apt"'),
        config=ImageConfig(command=("/bin/sh",), environment={"PATH": PATH}),
    ),
}


def build(names: Iterable[str], directory: Path, progress: Progress = lambda what, share: None) -> list[Path]:
    """The archives of the named images in `directory`, made unless they are there. BuildFailed."""
    wanted = list(names)
    unknown = sorted(set(wanted) - set(RECIPES))
    if unknown:
        raise BuildFailed(f"no image {', '.join(unknown)}; there are: {', '.join(RECIPES)}")
    require_tools("mmdebstrap", "chroot", "apt-config")
    directory.mkdir(parents=True, exist_ok=True)
    archives = []
    for number, name in enumerate(wanted):
        recipe = RECIPES[name]
        digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
        archive = directory / f"{name}-{digest}.tar"
        if not archive.exists():

            def part(what: str, share: float, done: int = number, image: str = name) -> None:
                progress(f"image {image}: {what}", (done + share) / len(wanted))

            rootfs = stemcell_base.plain_archive(directory / ".cache", recipe.packages, recipe.hooks, part)
            build_archive(rootfs, recipe.tag, recipe.config, archive)
        archives.append(archive)
    progress("images are ready", 1.0)
    return archives
