"""A gate for continuous integration: exit status 1 if a classifier is less robust than a threshold.

    python examples/ci_gate.py clf 0.4

The command `sfumato audit clf --data clothes --min-robust-accuracy 0.4 -o report` does the same.
"""

import sys

import sfumato
from sfumato.audit import audit, write_report
from sfumato.classifiers import find_classifier

EPS = 8 / 255


def main(spec: str, threshold: float) -> int:
    """0 where the classifier passes, else 1."""
    test = sfumato.load("clothes", split="test")
    found = audit(find_classifier(spec), test, norm="Linf", eps=EPS, count=500, protocol="screening")
    write_report(found, "report")
    robust = found.robust_accuracy
    low, high = robust.interval  # 95%
    print(f"robust accuracy at Linf {EPS:.4f}: {robust.value:.3f}, 95% interval {low:.3f} to {high:.3f}")
    # Fail only where even the upper end is below: chance alone then breaks the build in 1 of 40 runs at most.
    if high < threshold:
        print(f"failed: {threshold} was asked for; see report/report.html")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
