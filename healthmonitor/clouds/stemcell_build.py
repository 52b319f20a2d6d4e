"""Building a stemcell: Debian with systemd and Docker, the agent, container images; for VMs and for containers.

Law: its digest covers everything that went in, and a stemcell that is there is not built again. It appears under its
name only when it is whole (`stemcell.py`). The Debian system, the dependencies and the agent are cached apart, so that
a changed agent costs seconds.

Does not know: providers; how agents work.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from healthmonitor.clouds import initrd, stemcell_agent, stemcell_base
from healthmonitor.clouds.build_tools import BuildFailed, Progress, require_tools, run
from healthmonitor.clouds.image_archive import tags_of
from healthmonitor.clouds.stemcell import CURRENT, MANIFEST, Stemcell, StemcellManifest
from healthmonitor.clouds.stemcell_files import FILES, LAUNCHER, LAUNCHER_MODULE, LIBRARY, MASKED_UNITS, VERSION
from protocol import codec
from protocol.ids import is_name

ROOT_DISK_MIB = 8192
"""Sparse: of it a fresh stemcell takes some 600 MiB."""
BUILDS_KEPT = 2
"""Of each name: the current one, and the one before it, which a creation under way may still need."""
TOOL_SECONDS = 300.0
TOOLS = ("mmdebstrap", "mke2fs", "qemu-img", "tar", "chroot", "apt-config")
IMAGES = "usr/share/resurgam/images"
"""Where the agent finds container images that need no registry."""


def build(
    name: str,
    directory: Path,
    *,
    images: Sequence[Path] = (),
    packages: Sequence[str] = (),
    wheel: Path | None = None,
    progress: Progress = lambda what, share: None,
) -> Stemcell:
    """The stemcell `name` in `directory`, made unless it is there already.

    `images`: docker-archive tars to bake in. `packages`: Debian packages beyond the usual. BuildFailed."""
    if not is_name(name):
        raise BuildFailed(f"{name!r} is no name for a stemcell: lower-case letters, digits, - and _")
    require_tools(*TOOLS)
    tags = tuple(tag for image in images for tag in tags_of(image))
    if len({_file_name(image) for image in images}) < len(images):
        raise BuildFailed("two image archives have the same file name; rename one")
    directory.mkdir(parents=True, exist_ok=True)
    cache = directory / ".cache"
    cache.mkdir(exist_ok=True, mode=0o700)
    with _alone(cache):
        wanted = sorted({*stemcell_base.PACKAGES, *packages})
        base = stemcell_base.base_archive(cache, wanted, _part(progress, 0.0, 0.5))
        progress("packing the agent", 0.5)
        agent = stemcell_agent.payload(cache, wheel)
        digest = _digest(base, agent, images)
        final = directory / name / digest
        if not (final / MANIFEST).exists():
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=directory))
            try:
                manifest = _assemble(name, digest, base, agent, images, tags, draft, _part(progress, 0.6, 1.0))
                final.parent.mkdir(exist_ok=True)
                shutil.rmtree(final, ignore_errors=True)  # of an interrupted earlier try
                os.sync()
                draft.rename(final)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        else:
            manifest = codec.from_json(StemcellManifest, (final / MANIFEST).read_bytes())
        _point(directory / name / CURRENT, digest)
        _remove_old(directory / name)
    progress("stemcell is ready", 1.0)
    return Stemcell(manifest, final)


def _remove_old(home: Path) -> None:
    """All builds of a stemcell but the last few. VMs that run have theirs open and keep it."""
    current = (home / CURRENT).resolve()
    builds = [manifest.parent for manifest in home.glob(f"*/{MANIFEST}") if not manifest.parent.is_symlink()]
    older = sorted((path for path in builds if path != current), key=lambda path: path.stat().st_mtime)
    for path in older[: max(0, len(older) - (BUILDS_KEPT - 1))]:
        shutil.rmtree(path)


def _assemble(
    name: str,
    digest: str,
    base: Path,
    agent: stemcell_agent.AgentPayload,
    images: Sequence[Path],
    tags: tuple[str, ...],
    draft: Path,
    progress: Progress,
) -> StemcellManifest:
    root = draft / "root"
    root.mkdir()
    progress("unpacking the base system", 0.0)
    run(
        ["tar", "--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-f", str(base), "-C", str(root)],
        TOOL_SECONDS,
    )
    progress("installing the agent", 0.3)
    _install_agent(root, agent)
    _configure(root)
    for image in images:
        shutil.copyfile(image, _made(root / IMAGES / f"{_file_name(image)}.tar"))
    versions = {**_versions(root), "resurgam": agent.version}
    progress("writing the initial RAM disk", 0.5)
    module_directory = initrd.kernel_modules(root)
    shutil.copyfile(root / "boot" / f"vmlinuz-{module_directory.name}", draft / "vmlinuz")
    (draft / "initrd").write_bytes(initrd.build(root))
    shutil.rmtree(root / "boot")
    (root / "boot").mkdir()
    progress("writing the disk image", 0.55)
    _write_disk(root, draft)
    progress("writing the container image", 0.8)
    run(
        [
            "tar",
            "--create",
            "--numeric-owner",
            "--exclude=./usr/lib/modules/*",
            "-f",
            str(draft / "rootfs.tar"),
            "-C",
            str(root),
            ".",
        ],
        TOOL_SECONDS,
    )
    shutil.rmtree(root)
    manifest = StemcellManifest(
        name=name,
        digest=digest,
        built_at=time.time(),
        versions=versions,
        images=tags,
    )
    (draft / MANIFEST).write_bytes(codec.to_json(manifest))
    draft.chmod(0o700)
    return manifest


def _install_agent(root: Path, agent: stemcell_agent.AgentPayload) -> None:
    library = root / LIBRARY.lstrip("/")
    shutil.copytree(agent.libraries, library)
    for name, content in agent.sources.items():
        _made(library / name).write_bytes(content)
    # What the agent reads its own version from. The wheel's has the readme in it, and would differ with every word.
    described = f"Metadata-Version: 2.1\nName: resurgam\nVersion: {agent.version}\n"
    _made(library / f"resurgam-{agent.version}.dist-info" / "METADATA").write_text(described)
    for name, content in agent.units.items():
        _made(root / "usr/lib/systemd/system" / name).write_bytes(content)
    (library / "resurgam-agent.py").write_text(LAUNCHER_MODULE)
    launcher = _made(root / "usr/bin/resurgam-agent")
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    # Compiled by the guest's own Python: under TCG importing uncompiled sources takes ten seconds.
    run(
        [
            "chroot",
            str(root),
            "/usr/bin/python3",
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "unchecked-hash",
            LIBRARY,
        ],
        TOOL_SECONDS,
    )


def _configure(root: Path) -> None:
    for name, content in FILES.items():
        _made(root / name).write_text(content)
    shutil.rmtree(root / "etc/apt/sources.list.d", ignore_errors=True)
    (root / "etc/apt/sources.list.d").mkdir()
    for leftover in (root / "etc/apt/apt.conf.d").glob("99mmdebstrap*"):
        leftover.unlink()
    units = root / "etc/systemd/system"
    for unit in MASKED_UNITS:
        mask = units / unit
        mask.unlink(missing_ok=True)
        mask.symlink_to("/dev/null")
    enabled = ["resurgam-agent.service", "docker.service", "systemd-networkd.service"]
    wants = units / "multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    for unit in enabled:
        link = wants / unit
        link.unlink(missing_ok=True)
        link.symlink_to(
            f"/usr/lib/systemd/system/{unit}"
            if (root / "usr/lib/systemd/system" / unit).exists()
            else f"/lib/systemd/system/{unit}"
        )


def _write_disk(root: Path, draft: Path) -> None:
    raw = draft / "root.raw"
    with raw.open("wb") as file:
        file.truncate(ROOT_DISK_MIB * 1024 * 1024)
    options = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-L",
        "resurgam-root",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
    ]
    run(["mke2fs", *options, "-d", str(root), str(raw)], TOOL_SECONDS)
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(draft / "root.qcow2")], TOOL_SECONDS)
    raw.unlink()


def _versions(root: Path) -> dict[str, str]:
    """Of what matters, from the package database."""
    found = {}
    status = (root / "var/lib/dpkg/status").read_text(errors="replace")
    for package in ("docker.io", "containerd", "crun", "runc", "systemd", "python3"):
        match = re.search(rf"^Package: {re.escape(package)}$(?:.*\n)+?^Version: (.*)$", status, re.MULTILINE)
        if match:
            found[package] = match[1]
    found["kernel"] = initrd.kernel_modules(root).name
    return found


def _digest(base: Path, agent: stemcell_agent.AgentPayload, images: Sequence[Path]) -> str:
    hashed = hashlib.sha256(f"{VERSION}\n{base.name}\n{agent.digest}\n{initrd.MOUNT_ROOT}\n{ROOT_DISK_MIB}\n".encode())
    hashed.update(repr((sorted(FILES.items()), MASKED_UNITS, LAUNCHER, LAUNCHER_MODULE)).encode())
    for image in images:
        with image.open("rb") as file:
            hashed.update(hashlib.file_digest(file, "sha256").digest())
    return hashed.hexdigest()[:16]


def _point(link: Path, target: str) -> None:
    draft = link.with_name(f".{link.name}.draft")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)


def _file_name(image: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", image.name.removesuffix(".tar"))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _part(progress: Progress, start: float, end: float) -> Progress:
    return lambda what, share: progress(what, start + (end - start) * share)


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """One build at a time; a second one waits, and finds what the first has made."""
    with (cache / "build.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
