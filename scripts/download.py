"""Fetches published weights by name into models/.

examples:
  python scripts/download.py --list                         names, scores as published, configurations
  python scripts/download.py resnet50 fasterrcnn_resnet50_fpn_v2
  python scripts/download.py fully_supervised                says what to do in a browser where there is no direct link
  python scripts/download.py fully_supervised --url https://...     a direct link that you found

An interrupted download goes on where it ended (FILE.part); only a complete file gets its name. The SHA-256 is checked where it is
known, and printed. Exit status: 0 the files are there, 2 one is not, told in one line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `lib` is found from any folder

from lib.errors import ParallaxError, WeightsError, interruptible


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="weights, see --list")
    parser.add_argument("--list", action="store_true", help="all names")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder; default: %(default)s")
    parser.add_argument("--url", help="direct link to take instead of the known one, for one NAME")
    args = parser.parse_args(argv)
    if not args.names and not args.list:
        parser.error("give a NAME, or --list for all of them")
    if args.url and len(args.names) > 1:
        parser.error("--url is the link of one file; give one NAME")
    try:
        if args.list:
            show_list(args.out)
            return 0
        failed = [name for name in args.names if not present(name, args)]
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        return 0
    return 2 if failed else 0


def show_list(out: Path) -> None:
    """The table of all weights, those that are there marked."""
    from lib.weights.catalogue import CATALOGUE

    width = max(map(len, CATALOGUE))
    for entry in CATALOGUE.values():
        there = "there" if (out / entry.path).is_file() else "link" if entry.url else "browser"
        quoted = f"   quoted: {entry.score}" if entry.score else ""
        print(f"{entry.name:{width}s}  {there:7s}  {entry.text}{quoted}")
        print(f"{'':{width}s}           {out / entry.path}   {entry.config}")


def present(name: str, args: argparse.Namespace) -> bool:
    """Fetches one file, if it is not there; False, with a message, where that takes a browser or did not work."""
    from lib.weights.catalogue import find
    from lib.weights.fetch import by_hand, fetch

    try:
        entry = find(name)
        path, url = args.out / entry.path, args.url or entry.url
        if not url and not path.exists():
            raise WeightsError(f"{entry.name}: there is no direct link; {by_hand(entry.page, path)}, or give the link as --url")
        was_there = path.exists()
        with Bar(path.name) as bar:
            digest = fetch(url, path, entry.hash_prefix, entry.page, bar.move)
    except ParallaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    known = "as expected" if entry.sha256 else f"begins as expected, {entry.hash_prefix}" if entry.hash_prefix else "not known before"
    print(f"{path}: {'was there already' if was_there else 'done'}, {path.stat().st_size:,} bytes")
    print(f"  sha256   {digest} ({known})")
    print(f"  licence  {entry.licence}")
    print(f"  use      {entry.config}")
    return True


class Bar:
    """A progress bar that appears with the first bytes."""

    def __init__(self, title: str):
        self.title, self.bar = title, None

    def __enter__(self) -> "Bar":
        return self

    def move(self, done: int, total: int | None) -> None:
        """To `done` of `total` bytes."""
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(desc=self.title, total=total, unit="B", unit_scale=True, unit_divisor=1024)
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


if __name__ == "__main__":
    sys.exit(interruptible(main, "stopped; run the same command again"))
