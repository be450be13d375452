"""JupyterLab in a real browser, for tests/test_lab.py and docs/screenshots.py: a server on a copy of the chapters, Chromium driven by playwright.

Nothing is written into the checkout: the chapters are copied without outputs, settings, runtime files and kernels' histories go to a folder of their own,
and the run folder is named in the copies' parameters cell.
"""
import contextlib, json, os, secrets, shutil, signal, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SETTINGS = {"@jupyterlab/docmanager-extension/plugin": {"autosave": False},
            "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},             # every cell is in the page, also those out of sight
            "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}}


def copy_chapter(name: str, folder: Path, run_dir: Path | str, overrides: dict | None = None) -> Path:
    "A chapter without outputs whose parameters cell names this run folder."
    notebook = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code": cell["outputs"] = []
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = f'profile   = "smoke"\nrun_dir   = {str(run_dir)!r}\nseed      = 0\noverrides = {overrides or {}!r}'
    path = folder / f"{name}.ipynb"; path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def _free_port() -> int:
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


@contextlib.contextmanager
def jupyterlab(folder: Path, home: Path, command: list[str] | None = None):
    "JupyterLab over `folder` (or a command of yours, begun there), its own files in `home`; gives (address, token). The server and its kernels are gone afterwards, whatever happens."
    home.mkdir(parents=True, exist_ok=True)
    for name, values in SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"; path.parent.mkdir(parents=True, exist_ok=True); path.write_text(json.dumps(values))
    port, token = _free_port(), secrets.token_hex(16)
    own = {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")} | {f"JUPYTERLAB_{k}_DIR": str(home / k.lower()) for k in ("SETTINGS", "WORKSPACES")}
    env = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "KEEPFIT_HEADLESS", "MPLBACKEND", "JPY_SESSION_NAME")}
    env |= own | dict(IPYTHONDIR=str(home / "ipython"), KEEPFIT_DATA=str(home / "cache"), JUPYTER_TOKEN=token, OMP_NUM_THREADS="1",
                      PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    words = [*(command or [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]), "--no-browser", f"--port={port}", "--ServerApp.port_retries=0",
             "--expose-app-in-browser", "--LanguageServerManager.autodetect=False"]
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in words: words.append("--allow-root")
    with open(home / "server.log", "wb") as log: server = subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, token, server, home / "server.log")
        yield address, token
    finally:
        with contextlib.suppress(OSError, ValueError):
            for kernel in json.loads(_ask(f"{address}/api/kernels", token)): _ask(f"{address}/api/kernels/{kernel['id']}", token, "DELETE")       # kernels have process groups of their own
        for word in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError): os.killpg(server.pid, word)
            with contextlib.suppress(subprocess.TimeoutExpired): server.wait(15); break


def _ask(url: str, token: str, how: str = "GET") -> bytes:
    return urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"token {token}"}, method=how), timeout=20).read()


def _wait_for(address: str, token: str, server, log: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.poll() is not None: raise RuntimeError(f"JupyterLab ended at once:\n{log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError): _ask(f"{address}/api/status", token); return
        time.sleep(.2)
    raise TimeoutError(f"JupyterLab did not answer within {seconds:.0f} s:\n{log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def chromium_page(width: int = 1400, height: int = 1000, **more):
    "A page of headless Chromium; `more` is what playwright's new_page takes."
    from playwright.sync_api import sync_playwright
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=["--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"] + ["--no-sandbox"] * root)
        try:
            page = browser.new_page(viewport=dict(width=width, height=height), **more); page.set_default_timeout(240_000)
            yield page
        finally: browser.close()


# ---- what a person does

CELLS = """() => { const w = window.jupyterapp.shell.currentWidget, out = [];
  for (const c of w.content.model.cells) if (c.type === 'code') {
    const said = []; for (let i = 0; i < c.outputs.length; i++) said.push(c.outputs.get(i).toJSON());
    out.push({count: c.executionCount, source: c.sharedModel.source, errors: said.filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)}); }
  return {status: w.sessionContext.session?.kernel?.status, cells: out}; }"""
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"           # the tab in front
BYTES = "async i => Array.from(new Uint8Array(await crypto.subtle.digest('SHA-256', await (await fetch(i.src)).arrayBuffer()))).join()"


def open_chapter(page, address: str, token: str, name: str) -> None:
    "Open a notebook (its path without .ipynb) and wait until its cells stand in the page and its kernel is idle. The first one loads JupyterLab by its address; later ones open a tab."
    if page.url.startswith(address): page.evaluate("path => { window.jupyterapp.commands.execute('docmanager:open', {path}); }", f"{name}.ipynb")
    else: page.goto(f"{address}/lab/tree/{name}.ipynb?token={token}&reset", wait_until="commit")
    page.wait_for_function("path => { const w = window.jupyterapp?.shell.currentWidget; return w?.context?.path === path && w.sessionContext?.session?.kernel?.status === 'idle'; }", arg=f"{name}.ipynb")
    page.wait_for_selector(f"{PANEL} .jp-CodeCell")


def restart_and_run_all(page, seconds: float = 300) -> list[dict]:
    "The button ⏩ and its question; the code cells when all have run, or when one has failed."
    page.locator(f'{PANEL} .jp-NotebookPanel-toolbar [data-command="notebook:restart-run-all"]').first.click()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        now = page.evaluate(CELLS); failed = [c for c in now["cells"] if c["errors"]]
        if failed or now["status"] == "idle" and all(c["count"] for c in now["cells"] if c["source"].strip()): return now["cells"]
        time.sleep(.25)
    waiting = [c["source"] for c in now["cells"] if not c["count"]]
    raise TimeoutError(f"not done within {seconds:.0f} s; waiting for:\n{waiting[0][:300] if waiting else now['status']}")


def widget(page, text: str):
    "The output in which this text stands beside a control."
    return page.locator(f"{PANEL} .jp-OutputArea-child").filter(has=page.locator(".widget-label", has_text=text)).last


def control(box, label: str):
    "A control of ipywidgets by its label."
    return box.locator(".widget-inline-hbox, .widget-inline-vbox").filter(has=box.page.locator(f".widget-label:text-is('{label}')")).first


def picture(box, number: int = 0) -> str:
    "Hash of an image widget's picture."
    return box.locator("img.widget-image").nth(number).evaluate(BYTES)


def until(page, test, seconds: float = 150):
    "Wait until test() is true; its value."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := test(): return value
        page.wait_for_timeout(100)
    raise AssertionError("the page did not change as it should")


def slide(page, box, label: str, key: str = "ArrowRight", times: int = 1) -> None:
    "Move a slider by its handle and the keyboard."
    handle = control(box, label).locator(".noUi-handle").first; handle.scroll_into_view_if_needed(); handle.focus()
    for _ in range(times): page.keyboard.press(key)
