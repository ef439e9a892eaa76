"""Examines this machine: devices, versions, memory, disk, and whether a train step gives the numbers of a CPU.

python -m experiments.doctor
"""

from behrt_jax.workflows.doctor import describe, examine
from experiments import _cli


def main() -> int:
    """Runs the command; gives exit status 1 if something needs a cure."""
    findings = examine()
    print("\n".join(describe(findings)))
    return int(any(finding.cure for finding in findings))


if __name__ == "__main__":
    _cli.run(main)
