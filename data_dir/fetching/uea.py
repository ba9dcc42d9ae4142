"""Raw files of one set of the UEA archive, from the first source that has them."""

from collections.abc import Iterable
from pathlib import Path

from data_dir.fetching.first import Source, fetch_from_first
from data_dir.fetching.origin import RECORD, files_changed, write_record
from data_dir.fetching.sources import SOURCES, ZIP_SHA256, ZipSource, unpack
from data_dir.folders import new_folder
from data_dir.storage import DataError

FORMAT_FOLDER = "Multivariate_ts"
FETCHED, EXISTS = "fetched", "exists already"


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
    """Fetches the raw files of one set into ``raw``/Multivariate_ts/``name``; returns "fetched" or "exists already".

    ``scratch`` is a temporary folder, which several sets may share. ``unreachable`` collects the sources that did not
    answer; they are not asked again. ``accept_changed`` takes files without the pinned hash and records it.
    ``show_progress`` lets downloads print. The folder is written whole or left as it was. Raises DataError if no source
    has the set, with one line per source, the URLs, and the place for a zip that is fetched by hand.
    """
    folder, by_hand = raw / FORMAT_FOLDER / name, raw / f"{name}.zip"
    if _is_complete(folder):
        return EXISTS
    if by_hand.is_file():
        with new_folder(folder) as fresh:
            pinned = ZIP_SHA256.get(name)
            record = unpack(by_hand, name, fresh, what=str(by_hand), accept_changed=accept_changed, pinned=pinned)
            write_record(fresh, record)
        return FETCHED
    offering = [source for source in sources if source.offers(name)]
    urls = [source.urls[name] for source in offering if isinstance(source, ZipSource)]
    fetch_from_first(
        name,
        folder,
        scratch,
        offering,
        unreachable={} if unreachable is None else unreachable,
        accept_changed=accept_changed,
        show_progress=show_progress,
        by_hand=f"  By hand: fetch {' or '.join(urls)}\n  as {by_hand} and run this command again.",
    )
    return FETCHED


def _is_complete(folder: Path) -> bool:
    """Whether the folder holds files that a download wrote. Raises DataError for other files: they stay as they are."""
    if not folder.exists():
        return False
    move_away = "Move the folder away to fetch it again."
    if not (folder / RECORD).exists():
        raise DataError(
            f"{folder}: has no {RECORD}, so that the origin of its files is unknown. process_uea.py can process them. "
            f"{move_away}"
        )
    if changed := files_changed(folder):
        raise DataError(f"{changed}. {move_away}")
    return True
