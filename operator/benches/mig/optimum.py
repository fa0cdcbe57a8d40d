#!/usr/bin/env python3
# requirements: scipy==1.16.3 (HiGHS), Python 3.11
"""Writes fixtures.json: sets of shares, and the fewest empty cards that hold them.

Exact: every maximal layout of a card is enumerated, and an integer program over them is solved to
optimality by HiGHS. Deterministic: random mixes come from a fixed seed.
"""

import argparse
import json
import random

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix


def kind(name, size, slices, most, starts):
    return {"name": name, "size": size, "slices": slices, "max": most, "starts": starts}


# Placements as the drivers list them: MIG User Guide; vGPU User Guide, "vGPU Placements for GPUs in
# Mixed-Size Mode".
GEOMETRIES = {
    "seven-slices": {
        "units": 8,
        "slices": 7,
        "kinds": [
            kind("1g", 1, 1, 7, [0, 1, 2, 3, 4, 5, 6]),
            kind("1g-double", 2, 1, 4, [0, 2, 4, 6]),
            kind("2g", 2, 2, 3, [0, 2, 4]),
            kind("3g", 4, 3, 2, [0, 4]),
            kind("4g", 4, 4, 1, [0]),
            kind("7g", 8, 7, 1, [0]),
        ],
    },
    "seven-slices-media": {
        "units": 8,
        "slices": 7,
        "kinds": [
            kind("1g", 1, 1, 7, [0, 1, 2, 3, 4, 5, 6]),
            kind("1g+me", 1, 1, 1, [0, 1, 2, 3, 4, 5, 6]),
            kind("2g", 2, 2, 3, [0, 2, 4]),
            kind("3g", 4, 3, 2, [0, 4]),
            kind("4g", 4, 4, 1, [0]),
        ],
    },
    "a30": {
        "units": 4,
        "slices": 4,
        "kinds": [
            kind("1g", 1, 1, 4, [0, 1, 2, 3]),
            kind("2g", 2, 2, 2, [0, 2]),
            kind("4g", 4, 4, 1, [0]),
        ],
    },
    "rtx-pro-6000": {
        "units": 12,
        "slices": 4,
        "kinds": [
            kind("1g", 3, 1, 4, [0, 3, 6, 9]),
            kind("2g", 6, 2, 2, [0, 6]),
            kind("4g", 12, 4, 1, [0]),
        ],
    },
    "mixed-48": {
        "units": 48,
        "slices": None,
        "kinds": [
            kind("6Q", 6, 0, 8, [0, 6, 12, 18, 24, 30, 36, 42]),
            kind("8Q", 8, 0, 4, [0, 16, 24, 40]),
            kind("12Q", 12, 0, 4, [0, 12, 24, 36]),
            kind("16Q", 16, 0, 2, [0, 32]),
            kind("24Q", 24, 0, 2, [0, 24]),
        ],
    },
}

MIXES = {
    "seven-slices": {
        "uniform": [1, 1, 1, 1, 1, 1],
        "small": [12, 4, 4, 1, 1, 0],
        "large": [1, 1, 2, 4, 4, 4],
        "bimodal": [8, 0, 0, 0, 0, 2],
        "3g-heavy": [2, 1, 1, 10, 1, 0],
        "3g+4g": [0, 0, 0, 1, 1, 0],
        "4g-heavy": [2, 2, 1, 1, 8, 0],
        "double-memory": [2, 10, 2, 1, 0, 0],
        "double+4g": [0, 3, 0, 0, 1, 0],
        "2g+3g": [0, 0, 2, 1, 0, 0],
        "2g-heavy": [3, 0, 8, 0, 1, 0],
    },
    "seven-slices-media": {"uniform": [1, 1, 1, 1, 1], "media": [2, 8, 2, 1, 1]},
    "a30": {"uniform": [1, 1, 1], "small": [8, 2, 1], "large": [1, 2, 3]},
    "rtx-pro-6000": {"uniform": [1, 1, 1], "small": [8, 2, 1], "large": [1, 2, 3]},
    "mixed-48": {"uniform": [1, 1, 1, 1, 1], "small": [6, 6, 2, 1, 0], "large": [1, 1, 2, 3, 2], "8Q+16Q": [0, 3, 1, 2, 0]},
}

SIZES = [20, 50, 100, 300, 1000, 2000]


def fits(geometry, placed, number, start):
    one = geometry["kinds"][number]
    if sum(1 for k, _ in placed if k == number) >= one["max"]:
        return False
    if geometry["slices"] is not None:
        slices = sum(geometry["kinds"][k]["slices"] for k, _ in placed) + one["slices"]
        if slices > geometry["slices"]:
            return False
    return all(at + geometry["kinds"][k]["size"] <= start or start + one["size"] <= at for k, at in placed)


def layouts(geometry, placed):
    """Counts by kind of everything that can join what is placed, the maximal ones."""
    kinds = geometry["kinds"]
    counts = set()
    seen = set()

    def walk(at, added):
        count = tuple(sum(1 for k, _ in added if k == n) for n in range(len(kinds)))
        counts.add(count)
        key = (at, count)
        # What follows depends on where the last share ends and on the counts only.
        if key in seen:
            return
        seen.add(key)
        for start in range(at, geometry["units"]):
            for number, one in enumerate(kinds):
                if start in one["starts"] and fits(geometry, placed + added, number, start):
                    walk(start + one["size"], added + [(number, start)])

    walk(0, [])
    return [c for c in counts if not any(o != c and all(a >= b for a, b in zip(o, c)) for o in counts)]


def fewest(geometry, wanted, used):
    """The least number of empty cards."""
    columns = []
    for number, (placed, count) in enumerate([([], None)] + used):
        columns += [(number, layout) for layout in layouts(geometry, placed)]
    cost = np.array([1.0 if number == 0 else 0.0 for number, _ in columns])
    cover = np.array([[layout[k] for _, layout in columns] for k in range(len(wanted))])
    constraints = [LinearConstraint(csr_matrix(cover), lb=wanted)]
    if used:
        supply = np.array([[1.0 if number == n + 1 else 0.0 for number, _ in columns] for n in range(len(used))])
        constraints.append(LinearConstraint(csr_matrix(supply), ub=[count for _, count in used]))
    solved = milp(cost, constraints=constraints, integrality=np.ones(len(columns)), bounds=Bounds(0, np.inf),
                  options={"mip_rel_gap": 0.0, "time_limit": 120})
    if solved.status != 0:
        raise SystemExit(f"not solved to optimality: {wanted} {solved.message}")
    return round(solved.fun)


def some(draw, weights, number):
    counts = [0] * len(weights)
    for pick in draw.choices(range(len(weights)), weights=weights, k=number):
        counts[pick] += 1
    return counts


def half_used(draw, geometry, weights, number):
    """Cards as leaving shares left them: filled at random, then most of it taken away."""
    states = []
    for _ in range(number):
        placed = []
        for _ in range(20):
            n = draw.choices(range(len(weights)), weights=weights)[0]
            starts = [s for s in geometry["kinds"][n]["starts"] if fits(geometry, placed, n, s)]
            if starts:
                placed.append((n, draw.choice(starts)))
        placed = sorted(p for p in placed if draw.random() < 0.4)
        for state in states:
            if state[0] == placed:
                state[1] += 1
                break
        else:
            if placed:
                states.append([placed, 1])
    return [(placed, count) for placed, count in states]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7, help="of the random mixes (default: %(default)s)")
    parser.add_argument("--random-mixes", type=int, default=6, help="per geometry (default: %(default)s)")
    parser.add_argument("--output", default="fixtures.json", help="file to write (default: %(default)s)")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    instances = []
    for name, geometry in GEOMETRIES.items():
        mixes = dict(MIXES[name])
        for n in range(arguments.random_mixes):
            mixes[f"random-{n}"] = [round(draw.expovariate(1.0) ** 2, 3) for _ in geometry["kinds"]]
        for mix, weights in mixes.items():
            for size in SIZES:
                for used_cards in (0, max(3, size // 20)):
                    wanted = some(draw, weights, size)
                    used = half_used(draw, geometry, weights, used_cards)
                    instances.append({
                        "geometry": name,
                        "mix": mix,
                        "requests": size,
                        "wanted": wanted,
                        "used": [{"placed": placed, "count": count} for placed, count in used],
                        "fewest": fewest(geometry, wanted, used),
                    })
    with open(arguments.output, "w", encoding="utf-8") as file:
        file.write('{"geometries":' + json.dumps(GEOMETRIES) + ',\n"instances":[\n')
        file.write(",\n".join(json.dumps(instance, separators=(",", ":")) for instance in instances))
        file.write("\n]}\n")


if __name__ == "__main__":
    main()
