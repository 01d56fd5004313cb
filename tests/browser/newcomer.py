"""The incident that `install/demo page` leaves to whoever tries this: `newcomer.py LINK`, run by tests/scenarios/demo.rs on the machine
itself. A phone opens the link that was printed, reads what is wrong, and cures it.
"""

import sys

from phone import Phone


def main(link):
    at = link.split("/link/")[0]
    with Phone(at, basic=False) as phone:
        phone.open(link).reads("Block stalled", 120)
        phone.reads("Advice: cycle")
        phone.picture("newcomer-stalled")
        phone.press_to("Cycle", "/verbs/cycle/confirm")
        phone.reads("The host advises this", 30)
        phone.press("Cycle now")
        phone.at_path("/runs/")
        phone.has(".card.outcome", 300)
        phone.reads("valid, signed by", 30)
        phone.reads("Looks healthy", 180)
        assert phone.overflows() == [], phone.overflows()
        phone.picture("newcomer-done")
        phone.press("The evidence")
        phone.reads("The receipt is valid")
        # The link was spent: whoever finds it in a terminal's history is let in nowhere.
        with Phone(at, basic=False) as another:
            another.open(link).reads("This link was used before")
    print("cured")


if __name__ == "__main__":
    main(*sys.argv[1:])
