"""Runs what is in this folder, two files at a time: a browser mostly waits. Ends with cargo's own kind of line, so that tests/run can sum up."""

import concurrent.futures
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
FILES = ("test_ways.py", "test_pages.py")


def run(name):
    return subprocess.run([sys.executable, "-B", HERE / name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)


def main():
    failed = passed = 0
    with concurrent.futures.ThreadPoolExecutor(2) as two:
        for name, ended in zip(FILES, two.map(run, FILES)):
            print(f"-- {name}\n{ended.stdout}", flush=True)
            tests = re.search(r"^Ran (\d+) tests? in", ended.stdout, re.M)
            passed += int(tests[1]) if tests and ended.returncode == 0 else 0
            failed += ended.returncode != 0
    if failed or not passed:
        sys.exit(1)
    print(f"test result: ok. {passed} passed; 0 failed; 0 ignored")


if __name__ == "__main__":
    main()
