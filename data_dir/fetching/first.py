"""Raw files of a data set from the first source that has them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from data_dir.fetching.origin import write_record
from data_dir.fetching.sources import HashMismatch, Unreachable
from data_dir.folders import new_folder
from data_dir.storage import DataError

_ACCEPT = "--accept_changed_files takes it and records its hash"


class Source(Protocol):
    """A place that may have the raw files of data sets."""

    @property
    def name(self) -> str:
        """The name for messages."""
        ...

    def offers(self, dataset: str) -> bool:
        """Whether the source may have this set."""
        ...

    def fetch(self, dataset: str, folder: Path, scratch: Path, *, accept_changed: bool, show_progress: bool) -> dict:
        """Writes the raw files into an empty ``folder`` and returns the record of their origin.

        ``scratch`` is a temporary folder. Raises Unreachable without an answer, HashMismatch if a hash is not the
        pinned one, and DataError otherwise.
        """
        ...


def fetch_from_first(
    name: str,
    folder: Path,
    scratch: Path,
    sources: Iterable[Source],
    *,
    unreachable: dict[str, str],
    accept_changed: bool,
    show_progress: bool,
    by_hand: str,
) -> None:
    """Writes the raw files of a set, with their record, into ``folder``, in one piece.

    ``unreachable`` collects the sources that did not answer; they are not asked again. Raises DataError if no source
    has the set, with one line per source, and the sentence ``by_hand`` at the end.
    """
    failures, may_accept = [], False
    for source in sources:
        if not source.offers(name):
            continue
        if source.name in unreachable:
            failures.append(f"{source.name}: not tried again after {unreachable[source.name]}")
            continue
        try:
            with new_folder(folder) as fresh:
                record = source.fetch(name, fresh, scratch, accept_changed=accept_changed, show_progress=show_progress)
                write_record(fresh, record)
            return
        except DataError as error:
            failures.append(f"{source.name}: {error}")
            may_accept |= isinstance(error, HashMismatch)
            if isinstance(error, Unreachable):
                unreachable[source.name] = str(error)
    message = f"{name}: no source has it.\n" + "".join(f"  - {failure}\n" for failure in failures)
    if may_accept:
        message += f"  If you trust the changed file: {_ACCEPT}.\n"
    raise DataError(message + by_hand)
