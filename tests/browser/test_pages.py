"""Every page in a real browser: at 320, 390 and 1280 pixels, light and dark, with JavaScript and without; what it weighs, what it loads,
what axe-core says of it; and what it says when something is down."""

import unittest

from phone import Phone
from served import Served

WIDTHS = (320, 390, 1280)
WEIGHT = 60_000


class Pages(unittest.TestCase):
    """Two browsers, one without JavaScript, that look at each page."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.places = {}
        at = cls.at("asks", claude="asks", door="every")
        cls.phone, cls.plain = (cls.enterClassContext(Phone(at, js=js)) for js in (True, False))

    @classmethod
    def at(cls, name, **words):
        """The address of a server of this name; started where there is none yet."""
        if name not in cls.places:
            cls.places[name] = cls.enterClassContext(Served(**words))
        return cls.places[name].at

    def look_at(self, name, path, words, pictures=False, refused=False):
        """Looks at a page in every way; what is wrong with it."""
        wrong = []
        for phone in (self.phone, self.plain):
            how = "with JavaScript" if phone.js else "without"
            phone.look_like(390)
            phone.forget()
            phone.open(path)
            phone.reads(words)
            if phone.js:
                wrong += self.loads(name, phone, refused)
            for width in WIDTHS:
                for dark in (False, True):
                    phone.look_like(width, 900 if width > 600 else 844, dark)
                    wrong += [f"{name} {how} at {width}: {one}" for one in phone.overflows()]
                    wrong += [f"{name} {how} at {width}, {'dark' if dark else 'light'}: {one}" for one in phone.axe()]
                    if phone.js and pictures and (width, dark) != (320, True) and (width, dark) != (1280, True):
                        phone.picture(f"{name}-{width}-{'dark' if dark else 'light'}")
        return wrong

    def above_the_fold(self):
        """That a cold phone shows what is so, since when, why, what to do, and the button for it, without being pushed up."""
        wrong = []
        for width, height in ((320, 700), (390, 844), (1280, 900)):
            self.phone.look_like(width, height)
            self.phone.open("/").reads("Block stalled")
            for css in (".state .headline", ".state .since", ".state .advice", ".verb.advised"):
                box = self.phone.driver.execute_script("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", css)
                if box["bottom"] > height or box["top"] < 0:
                    wrong.append(f"{css} at {width}: {box['top']}..{box['bottom']} of {height}")
            if len(self.phone.all(".verb")) != 6:
                wrong.append("six verbs are not there")
        return wrong

    def loads(self, name, phone, refused):
        wrong = []
        loaded = phone.loaded()
        wrong += [f"{name} loads {one['url']}" for one in loaded if not one["url"].startswith(phone.at)]
        weight = sum(one["bytes"] for one in loaded if one["type"] != "Image")
        if not 5_000 < weight <= WEIGHT:
            wrong.append(f"{name} weighs {weight} bytes: {[(one['url'], one['bytes']) for one in loaded]}")
        said = [line for line in phone.console() if not (refused and "Failed to load resource" in line)]
        return wrong + [f"{name}: the console says {line}" for line in said]

    def good(self, *wrong):
        self.assertEqual([], [line for lines in wrong for line in lines])

    def test_1_the_first_screen_and_the_question(self):
        self.good(
            self.look_at("home-stalled", "/", "Block stalled", pictures=True),
            self.above_the_fold(),
            self.look_at("confirm-cycle", "/verbs/cycle/confirm", "The host advises this", pictures=True),
            self.look_at("confirm-reset", "/verbs/reset/confirm", "The host advises cycle, not reset", pictures=True),
            self.look_at("confirm-runbook", "/runbook?text=SSH+is+dead.", "Now it would cycle the VM", pictures=True),
            self.look_at("receipts", "/receipts", "Receipts"),
            self.look_at("incidents-none", "/incidents", "None yet"),
            self.look_at("evidence-none", "/evidence", "None is kept here yet"),
        )

    def test_2_first_paint_needs_two_round_trips(self):
        phone = self.phone
        phone.open("/doctor")
        # Each request costs so much; a third one in a row would show, and a machine that is busy for a few seconds would not.
        trip = 5000
        phone.cdp("Network.emulateNetworkConditions", offline=False, latency=trip, downloadThroughput=-1, uploadThroughput=-1)
        try:
            phone.open("/")
            ask = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            painted = phone.until("a first paint", lambda: phone.driver.execute_script(ask))
            self.assertTrue(trip <= painted < 3 * trip, painted)
        finally:
            phone.cdp("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    def test_3_a_conversation_with_a_call_that_waits(self):
        phone = self.phone
        phone.look_like(390)
        phone.open("/").type("textarea", "The devvm hangs.")
        phone.press("Send")
        story = phone.at_path("/incidents/")
        phone.reads("Claude asks first")
        self.good(
            self.look_at("incident-asks", story, "Claude asks first", pictures=True),
            self.look_at("home-asks", "/", "Claude asks first."),
        )
        # Denied or approved by the one without JavaScript; the other sees it come.
        phone.open(story)
        phone.has(".ask")
        self.plain.open(story)
        self.plain.approve("pve_cycle")
        phone.reads("approved")
        phone.approve("devvm_exec")
        phone.reads("It is well again.", 60)
        phone.reads("Ended, healthy", 60)
        for phone in (self.phone, self.plain):
            phone.open(story)
            phone.unfold()
        phone = self.phone
        phone.has("details p a[href^='/runs/']")
        run = phone.each("details p a[href^='/runs/']", "href")[0]
        evidence = phone.each("details a[href^='/evidence/']", "href")[0]
        self.good(
            self.look_at("incident-ended", story, "Ended, healthy", pictures=True),
            self.look_at("run-of-claude", run, "Forensics of VM 102"),
            self.look_at("evidence", evidence, "Summary", pictures=True),
            self.look_at("evidence-list", "/evidence", "Evidence"),
            self.look_at("incidents", "/incidents", "healthy", pictures=True),
        )
        self.phone.open(evidence)
        file = self.phone.all("a[href*='qmp/']")[0].get_attribute("href")
        self.good(self.look_at("evidence-file", file, "return"))

    def test_4_what_is_beside_the_way(self):
        self.phone.open("/doctor").press("Examine now")
        self.good(
            self.look_at("doctor", "/doctor", "broken", pictures=True),
            self.look_at("hostkey", "/hostkey", "They differ.", pictures=True),
            self.look_at("not-here", "/nowhere", "Not here", refused=True),
        )

    def test_5_a_verb_as_it_runs_and_as_it_ended(self):
        at = self.at("slow", pace=5000)
        for phone in (self.phone, self.plain):
            phone.goes_to(at)
        phone = self.phone
        phone.look_like(390)
        phone.open("/").press("Cycle")
        phone.press("Cycle now")
        phone.reads("pieces captured")
        run = phone.path()
        phone.reads("qm-stop", 120)
        wrong = self.look_at("run-live", run, "left", pictures=True)
        phone.open(run)
        phone.reads("Done", 90)
        phone.reads("Looks healthy")
        self.good(
            wrong,
            self.look_at("run-done", run, "Done", pictures=True),
            self.look_at("home-healthy", "/", "Looks healthy", pictures=True),
        )


if __name__ == "__main__":
    unittest.main(verbosity=2)
