"Chapter 05.5 beyond its notebook: a server that lies and archives that attack."
import hashlib, http.server, io, json, os, tarfile, threading, zipfile

import pytest

from keepfit_nb import download as D
from keepfit_nb import registry as R
from keepfit_nb.replicas import check_folder, make_replica

BODY = hashlib.sha256(b"seed").digest() * 12_000            # 384 kB
RIGHT = hashlib.sha256(BODY).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    "What it does depends on the path; `log` keeps the requests."
    log, state = [], {}
    def log_message(self, *a): pass

    def send(self, body, start=0, total=None, etag='"v1"', code=None, kind="application/octet-stream", length=None):
        self.send_response(code or (206 if start else 200))
        if start: self.send_header("Content-Range", f"bytes {start}-{(total or len(body) + start) - 1}/{total or len(body) + start}")
        if length is not False: self.send_header("Content-Length", str(length or len(body)))
        if etag: self.send_header("ETag", etag)
        self.send_header("Content-Type", kind); self.end_headers(); self.wfile.write(body)

    def do_GET(self):
        mood = self.path.split("/")[1]; asked = self.headers.get("Range"); start = int(asked[6:-1]) if asked else 0
        Server.log.append((mood, start)); n = Server.state[mood] = Server.state.get(mood, 0) + 1
        if mood == "moved": self.send_response(302); self.send_header("Location", "/fine/set.bin"); self.end_headers()
        elif mood == "loop": self.send_response(302); self.send_header("Location", "/loop/set.bin"); self.end_headers()
        elif mood == "away": self.send_response(302); self.send_header("Location", "ftp://127.0.0.1/set.bin"); self.end_headers()
        elif mood == "login": self.send(b"<html>Please sign in", kind="text/html")
        elif mood == "sly": self.send(b"\n <!DOCTYPE html><html>captcha")
        elif mood == "nolength": self.send(BODY, length=False)
        elif mood == "norange": self.send(BODY[:100_000] if n == 1 else BODY, length=len(BODY))
        elif mood == "changed": self.send(BODY[:100_000], length=len(BODY)) if n == 1 else self.send(BODY, etag='"v2"')      # If-Range does not match: all of it
        elif mood == "cut": self.send(BODY[start:start + 100_000], start, len(BODY), length=len(BODY) - start) if n < 4 else self.send(BODY[start:], start, len(BODY))
        elif mood == "always": self.send(BODY[start:start + 50_000], start, len(BODY), length=len(BODY) - start)
        elif mood == "shifted": self.send(BODY[:100_000], length=len(BODY)) if n == 1 else self.send(BODY[5:], start + 5, len(BODY) + start) if n == 2 else self.send(BODY)
        elif mood == "beyond": self.send(BODY[:100_000], length=len(BODY)) if n == 1 else self.send(b"", code=416) if n == 2 else self.send(BODY)
        elif mood == "busy": self.send(b"later", code=503) if n < 3 else self.send(BODY)
        elif mood.isdigit(): self.send(b"no", code=int(mood))
        else: self.send(BODY[start:], start, len(BODY))


@pytest.fixture(scope="module")
def base():
    os.environ["NO_PROXY"] = "127.0.0.1"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    Server.log.clear(); Server.state.clear(); monkeypatch.setattr(D.time, "sleep", lambda s: None)


@pytest.mark.parametrize("mood", ["fine", "moved", "nolength", "norange", "changed", "cut", "shifted", "beyond", "busy"])
def test_in_the_end_the_right_file(base, tmp_path, mood):
    path = tmp_path / "set.bin"
    assert D.download(f"{base}/{mood}/set.bin", path, RIGHT) == RIGHT
    assert path.read_bytes() == BODY and [p.name for p in tmp_path.iterdir()] == ["set.bin"]


def test_a_cut_line_is_resumed_not_begun_anew(base, tmp_path):
    D.download(f"{base}/cut/set.bin", tmp_path / "set.bin", RIGHT)
    starts = [s for m, s in Server.log if m == "cut"]
    assert starts[0] == 0 and starts == sorted(starts) and starts[1] > 60_000 and starts[-1] > 200_000


def test_what_came_is_kept_between_two_calls(base, tmp_path):
    with pytest.raises(OSError, match="fetch again to go on"): D.download(f"{base}/always/set.bin", tmp_path / "set.bin", tries=2)
    kept = (tmp_path / ".set.bin.part").stat().st_size
    assert kept > 60_000 and not (tmp_path / "set.bin").exists()
    assert D.download(f"{base}/always/set.bin", tmp_path / "set.bin", RIGHT, tries=20) == RIGHT
    assert Server.log[2] == ("always", kept)


def test_a_half_file_of_another_address_is_not_continued(base, tmp_path):
    with pytest.raises(OSError): D.download(f"{base}/always/set.bin", tmp_path / "set.bin", tries=1)
    D.download(f"{base}/fine/set.bin", tmp_path / "set.bin", RIGHT)
    assert Server.log[-1] == ("fine", 0)


@pytest.mark.parametrize("mood, told", [("login", "web page"), ("sly", "web page"), ("loop", "more than five redirects"), ("away", "no address to fetch from"),
                                        ("401", "login"), ("403", "permission"), ("404", "no such file"), ("410", "withdrawn")])
def test_in_the_end_a_sentence(base, tmp_path, mood, told):
    with pytest.raises(ValueError, match=told): D.download(f"{base}/{mood}/set.bin", tmp_path / "set.bin")
    assert not list(tmp_path.iterdir())


def test_wrong_hash_leaves_nothing(base, tmp_path):
    with pytest.raises(ValueError, match="SHA-256 is .* expected 00"): D.download(f"{base}/fine/set.bin", tmp_path / "set.bin", "00" * 32)
    assert not list(tmp_path.iterdir())


def test_a_good_file_is_not_fetched_again(base, tmp_path):
    D.download(f"{base}/fine/set.bin", tmp_path / "set.bin", RIGHT); Server.log.clear()
    assert D.download(f"{base}/fine/set.bin", tmp_path / "set.bin", RIGHT) == RIGHT and not Server.log


def test_limits(base, tmp_path, monkeypatch):
    for mood in ("fine", "nolength"):
        with pytest.raises(ValueError, match="limit of 1,000"): D.download(f"{base}/{mood}/set.bin", tmp_path / "set.bin", max_bytes=1000)
    monkeypatch.setattr(D.shutil, "disk_usage", lambda p: type("U", (), {"free": 10})())
    with pytest.raises(ValueError, match="do not fit on the disk"): D.download(f"{base}/fine/set.bin", tmp_path / "set.bin")


def test_never_from_https_to_http(tmp_path):
    class Answer:
        is_redirect, headers = True, {"Location": "http://example.org/set.bin"}
    class Session:
        def get(self, url, **k): return Answer()
    with pytest.raises(ValueError, match="insecure"): D._ask(Session(), "https://example.org/set.bin", 0, "", 1)


def test_nobody_there(tmp_path):
    with pytest.raises(OSError, match="times"): D.download("http://127.0.0.1:9/set.bin", tmp_path / "set.bin", tries=2, timeout=2)


# ---- archives --------------------------------------------------------------------------------------------------------

def zipped(path, members, **how):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **how) as z:
        for name, data in members: z.writestr(name, data)
    return path


def tarred(path, *infos):
    with tarfile.open(path, "w:gz") as t:
        for info, data in infos: info.size = len(data); t.addfile(info, io.BytesIO(data))
    return path


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name); info.type, info.linkname = kind, link
    return info


def test_good_archives(tmp_path):
    assert D.unpack(zipped(tmp_path / "a.zip", [("x/1.png", "1"), ("x/", ""), ("labels.csv", "a,b")]), tmp_path / "z") == {"files": 2, "bytes": 4}
    assert D.unpack(tarred(tmp_path / "a.tar.gz", (member("x", tarfile.DIRTYPE), b""), (member("x/1.png"), b"1")), tmp_path / "t")["files"] == 1
    assert (tmp_path / "z" / "x" / "1.png").read_text() == "1" and (tmp_path / "t" / "x" / "1.png").exists()
    with pytest.raises(FileExistsError, match="holds files already"): D.unpack(tmp_path / "a.zip", tmp_path / "z")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "C:\\x", "C:x", "a\0b", "./../x"])
def test_names_that_lead_out(tmp_path, name):
    bad = [zipped(tmp_path / "a.zip", [("ok.txt", "1"), (name.replace("\0", "\\"), "x")])]
    if "\0" not in name: bad.append(tarred(tmp_path / "a.tar.gz", (member("ok.txt"), b"1"), (member(name), b"x")))
    for path in bad:
        with pytest.raises(ValueError, match="was not unpacked"): D.unpack(path, tmp_path / "out" / "folder")
    assert not list((tmp_path / "out").glob("**/*.txt")) and not (tmp_path / "x").exists() and not (tmp_path / "out" / "x").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path, kind):
    with pytest.raises(ValueError, match="a link or a device"): D.unpack(tarred(tmp_path / "a.tar", (member("l", kind, "/etc/passwd"), b"")), tmp_path / "o")
    info = zipfile.ZipInfo("l"); info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as z: z.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link"): D.unpack(tmp_path / "l.zip", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_bombs(tmp_path):
    path = zipped(tmp_path / "a.zip", [("0", b"\0" * 110_000_000)])
    with pytest.raises(ValueError, match="a bomb"): D.unpack(path, tmp_path / "o")
    with pytest.raises(ValueError, match="unpacks to more than"): D.unpack(zipped(tmp_path / "b.zip", [("0", b"x" * 5000)]), tmp_path / "o", max_bytes=1000)
    with pytest.raises(ValueError, match="more than 3 files"): D.unpack(zipped(tmp_path / "c.zip", [(str(i), "") for i in range(5)]), tmp_path / "o", max_files=3)
    assert not (tmp_path / "o").exists() and not list(tmp_path.glob(".*part"))


def test_a_header_that_lies_about_the_size(tmp_path):
    path = zipped(tmp_path / "a.zip", [("0", b"\0" * 1_000_000)]); data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02"); data[at + 24:at + 28] = (10).to_bytes(4, "little"); path.write_bytes(data)
    with pytest.raises(ValueError, match="was not unpacked"): D.unpack(path, tmp_path / "o")


def test_damaged_archives(tmp_path):
    good = zipped(tmp_path / "a.zip", [("0", os.urandom(50_000))]).read_bytes()
    broken = bytearray(good); broken[20_000] ^= 255
    for i, data in enumerate((good[:-20], bytes(broken), b"PK\x03\x04", b"", b"just text", tarred(tmp_path / "t.tar.gz", (member("x"), os.urandom(9000))).read_bytes()[:4000])):
        path = tmp_path / f"bad{i}"; path.write_bytes(data)
        with pytest.raises(ValueError, match="was not unpacked"): D.unpack(path, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_two_members_of_one_name(tmp_path):
    with pytest.warns(UserWarning): path = zipped(tmp_path / "a.zip", [("x", "1"), ("x", "2")])
    with pytest.raises(ValueError, match="two members of one name"): D.unpack(path, tmp_path / "o")


# ---- fetch -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["LAG", "FFA-IR", "EyePACS", "REFUGE", "AIROGS", "MM-Retinal V2", "PAPILA"])
def test_doors_are_described_not_forced(name, tmp_path):
    with pytest.raises(PermissionError) as e: D.fetch(name, tmp_path / "o")
    assert R.ACCESS[R.find_source(name).fact("access")] in str(e.value) and "--url" in str(e.value) and not (tmp_path / "o").exists()


def test_unknown_set():
    with pytest.raises(ValueError, match="did you mean 'IDRiD'"): D.fetch("IDRD")


def test_an_open_set_from_end_to_end(base, tmp_path, monkeypatch):
    made = make_replica("DeepDRiD", tmp_path / "replica", 1)
    archive = zipped(tmp_path / "v1.1.zip", [(f"DeepDRiD-1.1/{p.relative_to(made)}", p.read_bytes()) for p in made.rglob("*") if p.is_file()])
    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a): super().__init__(*a, directory=str(tmp_path))
        def log_message(self, *a): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files); threading.Thread(target=server.serve_forever, daemon=True).start()
    source = R.find_source("DeepDRiD")
    link = R.FileLink(url=f"http://127.0.0.1:{server.server_port}/v1.1.zip", by="deepdrid", sha256=D.sha256_of(archive))
    monkeypatch.setattr(D, "find_source", lambda n: source.model_copy(update={"files": [link]}))
    done = D.fetch("DeepDRiD", tmp_path / "got")
    report = check_folder(tmp_path / "got")
    assert report["source"] == "DeepDRiD" and report["missing"] == 0 and len(done["sha256"]) == 1
    note = json.loads((tmp_path / "got" / "download.json").read_text())
    assert note["files"][0]["published"] is True and note["source"] == "DeepDRiD" and not list((tmp_path / "got").glob("*.zip"))
    archive.write_bytes(archive.read_bytes() + b"changed")
    with pytest.raises(ValueError, match="SHA-256"): D.fetch("DeepDRiD", tmp_path / "got")              # what was there stays
    assert check_folder(tmp_path / "got")["missing"] == 0
    server.shutdown()


def test_an_unpublished_hash_is_remembered(base, tmp_path):
    D.fetch("LAG", tmp_path / "lag", url=f"{base}/fine/a.bin")
    (tmp_path / "lag" / "a.bin").write_bytes(b"spoiled"); old = BODY
    note = json.loads((tmp_path / "lag" / "download.json").read_text())
    assert note["files"][0]["sha256"] == RIGHT and note["files"][0]["published"] is False
    D.fetch("LAG", tmp_path / "lag", url=f"{base}/fine/a.bin")
    assert (tmp_path / "lag" / "a.bin").read_bytes() == old


@pytest.mark.parametrize("url, name", [("http://x/a/b/set.zip?download=1", "set.zip"), ("http://x/..%2F..%2Fetc%2Fpasswd", "passwd"), ("http://x/", "download"),
                                       ("http://x/a%00b.zip", "a_b.zip"), ("http://x/.bashrc", "bashrc")])
def test_names_of_files(url, name): assert D._file_name(url) == name
