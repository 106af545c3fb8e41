"""Compare the library with files of reference values: a row per file and case.

    python benchmarks/conformance.py --golden ../shared/golden/ppc

The exit status is 1 if a case is out of tolerance, or if a file that is claimed was not checked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import conformance_csrm  # noqa: F401, registers its checks
import conformance_csrm_losses  # noqa: F401
import conformance_ppc  # noqa: F401
import conformance_walks  # noqa: F401
from conformance_cases import GRADIENT_TOLERANCE, VALUE_TOLERANCE, check_file


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--golden", type=Path, required=True, help="folder of reference files (*.pt)")
    folder = parser.parse_args(arguments).golden
    files = sorted(folder.glob("*.pt"))
    if not files:
        print(f"no reference files (*.pt) in {folder}", file=sys.stderr)
        return 1
    print(f"{'':8} {'file [case]':42} {'values':>9} {'gradients':>9} {'wrong':>6}")
    failed = compared = 0
    for path in files:
        for case in check_file(path):
            print(case, flush=True)
            failed += case.failed
            compared += case.compared
    tolerances = f"{VALUE_TOLERANCE} (values) and {GRADIENT_TOLERANCE} (gradients)"
    print(f"{compared} cases compared, {failed} failed; tolerances {tolerances}, but for the dense CRF in PyTorch")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
