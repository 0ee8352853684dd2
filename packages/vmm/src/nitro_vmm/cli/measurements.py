"""Measurements as documents show them."""


def shown_measurements(measured: dict[str, str], *, debug_mode: bool) -> dict[str, dict[str, str]]:
    """What documents show, for JSON: zeros in debug mode, where the image's own are named apart.

    Args:
        measured: Of the image, as ``Measurements.as_json`` has them.
        debug_mode: Whether the enclave runs in debug mode.
    """
    if not debug_mode:
        return {"Measurements": measured}
    zeros = {name: "0" * len(value) if name.startswith("PCR") else value for name, value in measured.items()}
    return {"Measurements": zeros, "ImageMeasurements": measured}
