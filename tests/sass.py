"""Small kernels as cuobjdump prints them."""


def sass(*lines: str) -> str:
    """The instructions at 0x0, 0x10, ...; "name: instruction" is a place that "{name}" in an operand means."""
    places = {line.split(": ")[0]: f"0x{16 * i:x}" for i, line in enumerate(lines) if ": " in line}
    body = [line.split(": ")[-1].format(**places) for line in lines]
    return "\n".join(f"        /*{16 * i:04x}*/   {text} ;   /* 0x0 */" for i, text in enumerate(body))
