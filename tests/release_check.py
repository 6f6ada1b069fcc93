"""Whether what would be released works where nothing of this folder is: `make release-check` runs it.

The wheel, and then the sdist, is installed in a new environment; there the first examples of the README are run and
compared with what it shows, and `pyro-sps demo` draws its figure.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

EXAMPLES = """
import doctest, sys
text = open(sys.argv[1]).read()
start = text.index("## Start here")
test = doctest.DocTestParser().get_doctest(text[start : text.index("## ", start + 3)], {}, "README", None, 0)
assert len(test.examples) > 10
sys.exit(doctest.DocTestRunner().run(test).failed)
"""


def try_it(package: Path, demo: bool) -> None:
    """Install a file of the release in a clean environment, and use it there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")

        def run(*command: str) -> None:
            subprocess.run([python, *command], check=True, cwd=folder)

        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint")
        run(*pip, str(ROOT / "constraints.txt"), "torch")
        run(*pip, str(ROOT / "constraints.txt"), f"{package}[sklearn]")
        run("-c", EXAMPLES, str(ROOT / "README.md"))
        if demo:
            subprocess.run([str(Path(folder) / "bin" / "pyro-sps"), "demo", "--out", "demo"], check=True, cwd=folder)
            assert list((Path(folder) / "demo").glob("*.png")), "the demo drew nothing"
    print(f"{package.name} works")


if __name__ == "__main__":
    dist = Path(sys.argv[1]).resolve()
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    try_it(wheel, demo=True)
    try_it(sdist, demo=False)
