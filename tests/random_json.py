"""Random JSON with the characters and the shapes that are easily got wrong."""

import string

ASCII = string.ascii_letters + string.digits + ' <>/"\\\n\t'


def random_arguments(rng, signs=ASCII + "é€😀\u2028\x7f"):
    """An object of at most two objects or arrays inside one another, itself not counted."""
    return {random_text(rng, signs): random_value(rng, signs, 2) for _ in range(rng.randrange(4))}


def random_value(rng, signs, depth):
    match rng.choice(["object", "array"] * (depth > 0) + ["text", "integer", "float", "word"]):
        case "object":
            return {random_text(rng, signs): random_value(rng, signs, depth - 1)
                    for _ in range(rng.randrange(4))}
        case "array":
            return [random_value(rng, signs, depth - 1) for _ in range(rng.randrange(4))]
        case "text":
            return random_text(rng, signs)
        case "integer":
            return rng.choice([0, 7, -30, rng.randrange(-(2**63), 2**63)])
        case "float":
            return rng.choice([1e-9, 2.5e20, rng.uniform(-1e6, 1e6)])
        case _:
            return rng.choice([True, False, None])


def random_text(rng, signs):
    return "".join(rng.choices(signs, k=rng.randrange(8)))
