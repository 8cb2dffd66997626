"""Where the database lies, and which SQLite library opens it: read out of the URL, refused with the line to write."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from ...errors import ConfigurationError

LIBRARIES = ("apsw", "sqlite3")
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "lustre"}
)
_MEMORY = frozenset({"tmpfs", "ramfs"})
_SPELLING = "write sqlite:///shop.db for a file beside the program, or sqlite:////var/lib/shop.db with four slashes"


@dataclass(frozen=True, slots=True)
class Location:
    """One database file, as its URL says."""

    url: str
    path: str
    """Absolute, links resolved: what names the file in this process."""
    library: str
    """`apsw` or `sqlite3`."""


def locate(url: str) -> Location:
    """Read a URL. Raises `ConfigurationError`, with what is allowed."""
    parts = urlsplit(url)
    if parts.netloc:
        raise ConfigurationError(
            f"{url}: a SQLite database has no host ({parts.netloc!r} stands in its place); {_SPELLING}"
        )
    if parts.fragment:
        raise ConfigurationError(f"{url}: '#' must be written %23 in a path; {_SPELLING}")
    path = unquote(parts.path.removeprefix("/"))
    if not path or path == ":memory:" or path.endswith("/"):
        raise ConfigurationError(f"{url}: the path of a file is missing; {_SPELLING} (without a file: memory://)")
    if "\0" in path:
        raise ConfigurationError(f"{url}: a path holds no NUL; {_SPELLING}")
    library = "apsw"
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name != "library" or value not in LIBRARIES:
            raise ConfigurationError(
                f"{url}: unknown option {name}={value}; allowed is library=apsw (the default) or library=sqlite3"
            )
        library = value
    return Location(url, os.path.realpath(path), library)


def check_place(location: Location) -> None:
    """Refuse a place where SQLite cannot keep its promises. Raises `ConfigurationError`."""
    path, folder = location.path, os.path.dirname(location.path)
    if os.path.isdir(path):
        raise ConfigurationError(f"{location.url}: {path} is a folder; {_SPELLING}")
    if not os.path.isdir(folder):
        raise ConfigurationError(f"{location.url}: there is no folder {folder}; make it first: mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"{location.url}: the folder {folder} cannot be written to (SQLite keeps its log there)"
        )
    kind = _file_system(folder)
    if kind in _NETWORK:
        raise ConfigurationError(
            f"{location.url}: {folder} lies on a network file system ({kind}), where SQLite's locks and shared memory "
            "do not hold; use a local disk, or a server: postgresql://…, redis://…, amqp://…"
        )


def memory_of(location: Location) -> str | None:
    """The kind of file system, if it keeps files in memory only."""
    kind = _file_system(os.path.dirname(location.path))
    return kind if kind in _MEMORY else None


def _file_system(folder: str) -> str:
    """The type of file system that `folder` lies on, or "" where the system does not tell."""
    try:
        with open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            lines = mounts.readlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = fields[1].encode("utf-8", "surrogateescape").decode("unicode_escape", "replace")
        inside = folder == mount or folder.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fields[2]
    return kind
