"""A person with a browser: Debian's headless Chromium, driven by WebDriver, with a profile of its own.

What only a browser knows is kept and can be asked for: what was loaded and how heavy it was, what the console said, what the content
security policy refused, when something was painted.
"""

import base64
import importlib.util
import json
import os
import pathlib
import re
import shutil
import tempfile
import time
from urllib.parse import quote

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.chrome.service import Service

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
PASSWORD = "correct horse battery"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or pathlib.Path(__file__).resolve().parents[2] / "target")
# In the lab only one folder of the machine can be written to; the tests keep everything in one place of it.
SCREENSHOTS = pathlib.Path(os.environ.get("SCREENSHOTS") or TARGET / "screenshots")


def axe_source():
    # The package beside it wants another driver; only its script is read.
    package = pathlib.Path(importlib.util.find_spec("axe_playwright_python").submodule_search_locations[0])
    return (package / "axe.min.js").read_text()


class Phone:
    """One browser. `at` is the page's address; with `basic` it knows anna's password, as after she typed it in."""

    def __init__(self, at, js=True, basic=True, width=390, height=844, dark=False):
        self.js = js
        self.profile = tempfile.mkdtemp(prefix="phone-")
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in [*FLAGS, f"--user-data-dir={self.profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        options.page_load_strategy = "normal"
        if not js:
            # As a person switches it off: <noscript> is drawn, and no script of any page runs.
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        self.driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.driver.set_page_load_timeout(60)
        self.requests, self.spoke = {}, []
        self.look_like(width, height, dark)
        self.cdp("Network.setCacheDisabled", cacheDisabled=True)
        self.goes_to(at, basic)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    def cdp(self, name, **what):
        return self.driver.execute_cdp_cmd(name, what)

    def goes_to(self, at, basic=True):
        """Another server. An address with the password in it is what typing it into the browser's own question comes to."""
        self.at = at.rstrip("/")
        if basic:
            scheme, rest = self.at.split("://")
            self.driver.get(f"{scheme}://anna:{quote(PASSWORD)}@{rest}/doctor")
        self.forget()

    def look_like(self, width, height=844, dark=False):
        phone = width < 600
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme, {"name": "prefers-reduced-motion", "value": "reduce"}])

    # What it shows.

    def open(self, path):
        self.driver.get(path if "://" in path else self.at + path)
        return self

    def reload(self):
        self.driver.refresh()

    def path(self):
        return self.driver.current_url.removeprefix(self.at)

    def html(self):
        return self.driver.page_source

    def text(self):
        """What stands there for a person to read; nothing in the moment in which a page is exchanged."""
        try:
            return self.driver.find_element(By.TAG_NAME, "body").text
        except WebDriverException:
            return ""

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def each(self, css, name):
        """This property of each; at one moment, as a page that lives exchanges its parts between two questions."""
        return self.driver.execute_script("return [...document.querySelectorAll(arguments[0])].map((one) => one[arguments[1]])", css, name)

    def unfold(self):
        self.driver.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true")

    def until(self, what, holds, within=30):
        """Waits until it holds, by itself: no reload, the page has to come to it."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            try:
                got = holds()
            except (StaleElementReferenceException, WebDriverException):
                got = None  # the page is being exchanged
            if got:
                return got
            time.sleep(0.15)
        raise AssertionError(f"{self.path()} never came to {what} within {within} s; it says:\n{self.text()}")

    def reads(self, words, within=30):
        return self.until(repr(words), lambda: words in self.text(), within)

    def at_path(self, start, within=30):
        """Waits for a page under this path, to which a press leads: a click is over before its page has come."""
        self.until(f"a page under {start}", lambda: self.path().startswith(start), within)
        return self.path().split("#")[0]

    def has(self, css, within=30):
        return self.until(css, lambda: self.all(css), within)[0]

    # What a person does.

    def press(self, words, within=15):
        """Presses the first button or link with these words, as soon as it is there."""

        def pressed():
            for one in self.all("button, a, summary"):
                if words in one.text.replace("\n", " ") and one.is_displayed():
                    self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", one)
                    one.click()
                    return True
            return False

        self.until(f"a button {words!r}", pressed, within)

    def press_to(self, words, start):
        """Presses what leads to this path. What has just moved is not pressed by the page's own rule, so a person may have to press again."""
        for _ in range(4):
            if not self.path().startswith(start):
                self.press(words)
            try:
                return self.at_path(start, 15)
            except AssertionError:
                continue
        raise AssertionError(f"{words!r} never leads to {start}; the page says:\n{self.text()}")

    def approve(self, call):
        """Approves a call of Claude's. What has just moved is not pressed by the page's own rule, so a person may have to press again."""

        def approved():
            return any(call in one.text and "approved" in one.text for one in self.all(".story summary"))

        def waits():
            return any(call in one.text for one in self.all(".ask + details"))

        for _ in range(4):
            self.until(f"{call} that waits", lambda: waits() or approved(), 60)
            if not approved():
                time.sleep(0.7)
                self.press("Approve")
            try:
                return self.until(f"{call} approved", approved, 10)
            except AssertionError:
                continue
        raise AssertionError(f"{call} is never approved; the page says:\n{self.text()}")

    def type(self, css, words):
        field = self.has(css)
        field.clear()
        field.send_keys(words)

    # What only the browser knows.

    def read_logs(self):
        """Takes up what was loaded and said since the last time."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            method, params = message["method"], message["params"]
            if method == "Network.requestWillBeSent":
                # The password of `goes_to` stands in the address of what its page loads.
                url = re.sub("://[^/@]*@", "://", params["request"]["url"])
                self.requests[params["requestId"]] = {"url": url, "type": params.get("type"), "status": None, "bytes": 0}
            elif method == "Network.responseReceived" and params["requestId"] in self.requests:
                self.requests[params["requestId"]]["status"] = params["response"]["status"]
            elif method == "Network.loadingFinished" and params["requestId"] in self.requests:
                self.requests[params["requestId"]]["bytes"] = params["encodedDataLength"]
        self.spoke += [f'{entry["level"]} {entry["message"]}' for entry in self.driver.get_log("browser")]

    def loaded(self):
        self.read_logs()
        return list(self.requests.values())

    def console(self):
        self.read_logs()
        return list(self.spoke)

    def forget(self):
        self.read_logs()
        self.requests.clear()
        self.spoke.clear()

    def overflows(self):
        """What is wider than the screen: a person would have to push the page sideways."""
        return self.driver.execute_script(
            """
            const wide = document.documentElement.clientWidth, out = [];
            if (document.documentElement.scrollWidth > wide) out.push(`the page: ${document.documentElement.scrollWidth} of ${wide}`);
            for (const el of document.querySelectorAll("body *")) {
              const box = el.getBoundingClientRect();
              if (box.width && (box.right > wide + 0.5 || box.left < -0.5) && !el.classList.contains("skip"))
                out.push(`${el.tagName.toLowerCase()}.${el.className}: ${box.left}..${box.right} of ${wide}: ${el.textContent.slice(0, 60)}`);
            }
            return out;
            """
        )

    def axe(self):
        """What axe-core finds against WCAG A and AA, and against its own best practices."""
        self.driver.set_script_timeout(60)
        # A page without JavaScript may load itself again in between: then once more.
        found = self.until("axe-core's findings", self.axe_once, 60)
        assert found["passes"] > 5, found
        return found["violations"]

    def axe_once(self):
        if not self.driver.execute_script("return !!window.axe"):
            # Where JavaScript is off WebDriver's own scripts run all the same, and no timer does: axe only yields with them.
            timers = "" if self.js else "window.setTimeout = (run) => { Promise.resolve().then(run); return 1; };"
            self.driver.execute_script(timers + axe_source())
        # Loading itself again is how a page without JavaScript stays true; one that people write on can be held still.
        rules = {} if self.js else {"meta-refresh": {"enabled": False}}
        return self.driver.execute_async_script(
            """
            const [rules, done] = arguments;
            axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"], rules })
              .then((found) => done({ passes: found.passes.length, violations: found.violations.map((one) =>
                `${one.id} (${one.impact}): ${one.help}: ` + one.nodes.map((node) => node.html.slice(0, 160) + " " + (node.any[0]?.message ?? "")).join(" | ")) }),
                (error) => done({ passes: 0, violations: [String(error)] }));
            """,
            rules,
        )

    def picture(self, name, whole=True):
        """Keeps a screenshot for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        shot = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
