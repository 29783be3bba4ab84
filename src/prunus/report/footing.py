"""The foot of a page: when and with what it was made, and of which data."""

import datetime

from prunus.host import host_facts, versions

__all__ = ["footing"]


def footing(
    *,
    made: str | None = None,
    data: str | None = None,
    samples: int | None = None,
    unit: str = "samples",
) -> str:
    """Date, versions and machine of the page, and the data behind it, as two paragraphs.

    Args:
        made: the date to write; today's where None.
        data: the fingerprint of the calibration data, or None.
        samples: how many calibrated, or None.
        unit: what these are.
    """
    date = datetime.date.today().isoformat() if made is None else made
    host = host_facts()
    with_what = ", ".join(f"{name} {version}" for name, version in versions().items())
    where = f"{host['processor']}, {host['cores']} cores, {host['threads']} torch thread"
    where += "" if host["threads"] == 1 else "s"
    if host["accelerator"]:
        where += f", {host['accelerator']}"
    lines = [f"Page made on {date} with {with_what}; on {where}."]
    about = [] if samples is None else [f"{samples:,} {unit} calibrated"]
    about += [] if data is None else [f"fingerprint `{data}`"]
    if about:
        lines.append(f"Data: {', '.join(about)}.")
    return "\n\n".join(lines)
