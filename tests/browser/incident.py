"""The whole way on the lab's real VM, in a real browser: `incident.py PROGRAM with|without`, run inside the lab by
tests/scenarios/agent_browser.rs, which has written the configuration and brings about what it is asked for here.

A phone (390 px) drives, with JavaScript or without; a second device of the other kind looks on. The server is this script's to kill.
"""

import subprocess
import sys
import time

from phone import Phone

AT = "http://127.0.0.1:8102"


class Server:
    def __init__(self, program):
        self.program, self.process = program, None
        self.start()

    def start(self):
        self.process = subprocess.Popen([self.program, "serve"], env={}, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def kill(self):
        self.process.kill()
        self.process.wait()


def say(words):
    print(words, flush=True)


def listening():
    import http.client

    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", 8102, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError("the page is not served")


def incident(server, phone, desk, name):
    for device in (phone, desk):
        device.open("/").reads("Looks healthy", 60)
    say("stall now")
    began = time.monotonic()
    phone.reads("Block stalled", 120)
    desk.reads("Block stalled", 60)
    say(f"the page says it after {time.monotonic() - began:.0f} s")
    phone.reads("Advice: cycle")
    phone.picture(f"lab-home-stalled-{name}", whole=True)

    # Two actions from the cold phone: the button, and yes.
    phone.press_to("Cycle", "/verbs/cycle/confirm")
    phone.reads("Block stalled", 15)
    phone.reads("The host advises this", 15)
    phone.press("Cycle now")
    run = phone.at_path("/runs/")
    say(f"run {run}")
    phone.reads("pieces captured", 60)
    desk.reads("cycle runs:", 60)
    desk.press("cycle runs:")
    desk.until("the same run", lambda: desk.path() == run)
    phone.reads("Safe on", 60)
    desk.reload()
    desk.reads("Safe on", 30)
    phone.picture(f"lab-run-{name}")

    # The server dies in the middle, and comes back.
    server.kill()
    if phone.js:
        phone.reads("No connection", 60)
    server.start()
    listening()
    if not phone.js:
        phone.open(run)  # a browser without JavaScript stands at its own error page: the person loads it again
    phone.reads("Cycle of VM 102", 60)
    steps = []

    def ended():
        for step in phone.all(".steps li b"):
            if step.text not in steps:
                steps.append(step.text)
        return phone.all(".card.outcome")

    phone.until("the end", ended, 300)
    phone.reads("Done", 30)
    phone.reads("valid, signed by", 30)
    for device in (phone, desk):
        if not device.js:
            device.open(run)
        device.reads("Looks healthy", 120)
    say(f"recovered after {time.monotonic() - began:.0f} s: {', '.join(steps)}")
    assert {"qm-stop", "qm-start"} <= set(steps), steps
    phone.picture(f"lab-run-done-{name}")
    for device in (phone, desk):
        assert device.overflows() == [], device.overflows()
        shown = device.each(".card.outcome", "className")
        assert shown == ["card outcome good"], shown
    phone.press("The evidence")
    phone.reads("block-stalled")
    phone.reads("The receipt is valid")
    phone.picture(f"lab-evidence-{name}")
    phone.open("/receipts").reads("fit")
    phone.open("/").reads("Looks healthy")


def main(program, js):
    server = Server(program)
    try:
        listening()
        with Phone(AT, js=js == "with") as phone, Phone(AT, js=js != "with", width=1280, height=900, dark=True) as desk:
            incident(server, phone, desk, f"{js}-javascript")
    finally:
        server.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
