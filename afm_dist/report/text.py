"""Numbers and names as a reader sees them, the same in terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence

SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
UNDEFINED = "undefined"
NOISE = "≈"
FINE_TUNING = {"trained": "none", "before-finetune": "before", "after-finetune": "after"}
STAGE_WORDS = {
    "trained": "trained",
    "before-finetune": "before fine-tuning",
    "after-finetune": "after fine-tuning",
}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def score(value: float | None) -> str:
    """Show an AUC or a log loss to 4 decimals; a dash where there is none."""
    return NONE if value is None else f"{value:.4f}"


def measured(value: float | None) -> str:
    """Show what the rows may leave undefined, such as an AUC where only one label occurs."""
    return UNDEFINED if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """Show a difference of scores to 4 decimals; what rounds to zero carries no sign."""
    if value is None:
        return NONE
    digits = f"{abs(value):.4f}"
    if float(digits) == 0:
        return digits
    return ("+" if value > 0 else MINUS) + digits


def megabytes(size: int) -> str:
    """Show bytes in units of 10⁶, with three significant digits or all integer ones."""
    return significant(size / 1e6)


def significant(value: float) -> str:
    """Show a positive number with three significant digits or all integer ones: 2,298; 40.6; 0.0213."""
    for limit, decimals in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3)):
        if value >= limit:
            return f"{value:,.{decimals}f}"
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1g}"


def shrinkage(before: int, after: int) -> str:
    """Show bytes before and after in the unit that suits the smaller: ``2,298 → 406 MB``."""
    for unit, name in ((1e6, "MB"), (1e3, "kB")):
        if min(before, after) >= unit:
            return f"{significant(before / unit)} → {significant(after / unit)}{SPACE}{name}"
    return f"{count(before)} → {count(after)}{SPACE}B"


def millions(value: int) -> str:
    """Count parameters as the literature does: ``574.46 M``."""
    return f"{value / 1e6:,.2f}{SPACE}M" if value >= 1e5 else count(value)


def ratio(value: float) -> str:
    """Show a ratio: ``5.66×``, ``12.3×``, ``120×``."""
    return f"{_ratio_digits(value)}×"


def _ratio_digits(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= value < 9.995 else significant(value)


def spread(low: float | None, high: float | None) -> str:
    """Show the range of a measured ratio; empty when it was not measured."""
    return "" if low is None or high is None else f"{_ratio_digits(low)}{NONE}{_ratio_digits(high)}"


def share(value: float) -> str:
    """Show a share as a percentage that says 100 % only when it is all."""
    percent = 100 * value
    for decimals in (1, 2, 3, 4):
        digits = f"{percent:.{decimals}f}".removesuffix(".0")
        if float(digits) < 100 or value >= 1:
            break
    else:
        digits = "> 99.9999"
    return f"{digits}{SPACE}%" if value < 1 else f"100{SPACE}%"


def count(value: float) -> str:
    """Show a whole number with thousands separated."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Show seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(iso: str) -> str:
    """Show an ISO time to the minute: ``2031-02-03 04:05 UTC``."""
    zone = " UTC" if iso.endswith(("Z", "+00:00")) else ""
    return iso.replace("T", " ")[:16] + zone


def power_of_ten(value: float) -> str:
    """Label a logarithmic axis: 10⁻³, without markup."""
    exponent = f"{value:e}".partition("e")[2]
    return "10" + str(int(exponent)).translate(SUPERSCRIPTS)


def listed(parts: Sequence[str]) -> str:
    """List words: ``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def best_possible(auc: float, log_loss: float | None, split: str | None) -> tuple[str, str]:
    """Name what the true probabilities reach, and show it: ``AUC 0.8047, log loss 0.4462``."""
    where = f" on {split}" if split else ""
    loss = "" if log_loss is None else f", log loss {score(log_loss)}"
    return f"Best possible (Bayes){where}", f"AUC {score(auc)}{loss}"


def deviating(value: str, deviation: float | None, *, noise: bool = False) -> str:
    """Show a mean with its deviation over seeds: ``≈ +0.0001 ± 0.0002``; ≈ where chance explains it."""
    return value if deviation is None else f"{NOISE + ' ' if noise else ''}{value} ± {deviation:.4f}"
