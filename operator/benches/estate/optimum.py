#!/usr/bin/env python3
# requirements: scipy==1.16.3 (HiGHS), Python 3.11
"""Writes fixtures.json: estates, desktops that ask for more than fits, and the most that can be placed.

Exact: every maximal layout of a card is enumerated, and an integer program chooses a layout for each card
and a subset of the desktops. `most` is what its solution places in GiB of GPU memory, `bound` what no
solution exceeds: equal where the solver proved it within its time. Cores and hugepages are counted per
cell for desktops of policy Strict and per node for Preferred, who may spread over cells. `local` says
whether as much can be placed with every desktop on the cell of its card, null where that is not known.
Deterministic, as far as the solver's time does not decide.
"""

import argparse
import json
import math
import random

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix


def placed(mode, size, slices, most, starts):
    return {"mode": mode, "size": size, "slices": slices, "max": most, "starts": starts}


def counted(size, most):
    return placed(f"vgpu-{size}", 1, 0, most, [])


WHOLE = placed("whole", 1, 0, 1, [])
H100, L40S, RTX = "H100 80GB", "L40S", "RTX PRO 6000 Blackwell Server Edition"

# Placements as the drivers list them: MIG User Guide; vGPU User Guide, "vGPU Placements for GPUs in
# Mixed-Size Mode". Wish by wish, what a card gives for it.
CARDS = {
    "h100": {
        "model": H100, "mixed": False, "memory": 80, "units": {"mig": 8}, "slices": {"mig": 7},
        "kinds": {
            "1g.10gb": placed("mig", 1, 1, 7, [0, 1, 2, 3, 4, 5, 6]),
            "1g.20gb": placed("mig", 2, 1, 4, [0, 2, 4, 6]),
            "2g.20gb": placed("mig", 2, 2, 3, [0, 2, 4]),
            "3g.40gb": placed("mig", 4, 3, 2, [0, 4]),
            "4g.40gb": placed("mig", 4, 4, 1, [0]),
            "7g.80gb": placed("mig", 8, 7, 1, [0]),
            "20C": counted(20, 4), "40C": counted(40, 2), "whole-h100": WHOLE,
        },
    },
    "rtx-pro-6000": {
        "model": RTX, "mixed": False, "memory": 96, "units": {"mig": 12}, "slices": {"mig": 4},
        "kinds": {
            "1g.24gb+gfx": placed("mig", 3, 1, 4, [0, 3, 6, 9]),
            "2g.48gb+gfx": placed("mig", 6, 2, 2, [0, 6]),
            "4g.96gb+gfx": placed("mig", 12, 4, 1, [0]),
            "4Q": counted(4, 24), "8Q": counted(8, 12), "12Q": counted(12, 8), "16Q": counted(16, 6),
            "24Q": counted(24, 4), "48Q": counted(48, 2), "whole-rtx": WHOLE,
        },
    },
    "l40s": {
        "model": L40S, "mixed": False, "memory": 48, "units": {}, "slices": {},
        "kinds": {
            "4Q": counted(4, 12), "8Q": counted(8, 6), "12Q": counted(12, 4), "16Q": counted(16, 3),
            "24Q": counted(24, 2), "48Q": counted(48, 1), "whole-l40s": WHOLE,
        },
    },
    "l40s-mixed": {
        "model": L40S, "mixed": True, "memory": 48, "units": {"mixed": 48}, "slices": {},
        "kinds": {
            "4Q": placed("mixed", 4, 0, 12, [0, 8, 12, 20, 24, 32, 36, 44]),
            "8Q": placed("mixed", 8, 0, 6, [0, 16, 24, 40]),
            "12Q": placed("mixed", 12, 0, 4, [0, 12, 24, 36]),
            "16Q": placed("mixed", 16, 0, 3, [0, 32]),
            "24Q": placed("mixed", 24, 0, 2, [0, 24]),
            "48Q": placed("mixed", 48, 0, 1, [0]),
            "whole-l40s": WHOLE,
        },
    },
}


def share(worth, kind, **of):
    return {"worth": worth, kind: of}


# Worth in GiB of GPU memory by name.
WISHES = {
    **{name: share(int(name.split(".")[1].split("gb")[0]), "mig", profile=name, series=series)
       for names, series in ((("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"), "C"),
                             (("1g.24gb+gfx", "2g.48gb+gfx", "4g.96gb+gfx"), "Q"))
       for name in names},
    **{name: share(int(name[:-1]), "vgpu", gib=int(name[:-1]), series=name[-1])
       for name in ("4Q", "8Q", "12Q", "16Q", "24Q", "48Q", "20C", "40C")},
    **{name: share(worth, "whole", model=model)
       for name, worth, model in (("whole-h100", 80, H100), ("whole-rtx", 96, RTX), ("whole-l40s", 48, L40S))},
}

EVEN = {"h100": 2, "rtx-pro-6000": 2, "l40s": 2, "l40s-mixed": 2}
ALL = {
    "1g.10gb": 4, "1g.20gb": 1, "2g.20gb": 2, "3g.40gb": 2, "7g.80gb": 0.5, "20C": 2, "whole-h100": 0.5,
    "1g.24gb+gfx": 3, "2g.48gb+gfx": 1, "whole-rtx": 0.5,
    "4Q": 6, "8Q": 5, "12Q": 3, "16Q": 2, "24Q": 2, "48Q": 0.5, "whole-l40s": 0.7,
}
# Nodes, cards of each, wishes by weight; cores and memory in parts of what the cards' share of the
# desktops asks for on average; part of desktops that must be on the cell of their card.
MIXES = {
    "mig": {"nodes": 3, "cards": {"h100": 4}, "cores": 3, "memory": 3, "strict": 0.3,
            "wishes": {"1g.10gb": 6, "1g.20gb": 1, "2g.20gb": 3, "3g.40gb": 2, "4g.40gb": 1, "7g.80gb": 1}},
    "equal-size": {"nodes": 2, "cards": {"l40s": 8}, "cores": 3, "memory": 3, "strict": 0.3,
                   "wishes": {"4Q": 8, "8Q": 6, "12Q": 4, "16Q": 3, "24Q": 2, "whole-l40s": 1}},
    "mixed-size": {"nodes": 2, "cards": {"l40s-mixed": 8}, "cores": 3, "memory": 3, "strict": 0.3,
                   "wishes": {"4Q": 8, "8Q": 6, "12Q": 4, "16Q": 3, "24Q": 2, "whole-l40s": 1}},
    "modes": {"nodes": 2, "cards": {"rtx-pro-6000": 6}, "cores": 3, "memory": 3, "strict": 0.3,
              "wishes": {"1g.24gb+gfx": 4, "2g.48gb+gfx": 2, "8Q": 6, "16Q": 3, "48Q": 1, "whole-rtx": 1}},
    "bimodal": {"nodes": 3, "cards": {"l40s": 4, "h100": 2}, "cores": 3, "memory": 3, "strict": 0.3,
                "wishes": {"4Q": 10, "whole-l40s": 1, "1g.10gb": 8, "whole-h100": 0.6, "20C": 1}},
    "mixed-estate": {"nodes": 3, "cards": EVEN, "cores": 3, "memory": 3, "strict": 0.5, "wishes": ALL},
    "few-cores": {"nodes": 3, "cards": EVEN, "cores": 0.85, "memory": 3, "strict": 0.5, "wishes": ALL},
    "few-pages": {"nodes": 3, "cards": EVEN, "cores": 3, "memory": 0.85, "strict": 0.5, "wishes": ALL},
    "few-of-both": {"nodes": 3, "cards": EVEN, "cores": 0.95, "memory": 0.95, "strict": 0.7, "wishes": ALL},
}
LOADS = [1.1, 1.2, 1.3]
# Loads at which the optimum is mostly local, for the mixes where cores or memory are short.
LIGHT = {"mixed-estate": 0.8, "few-cores": 0.6, "few-pages": 0.6, "few-of-both": 0.6}


def layouts(card, wishes):
    """Counts by wish of what a card can hold at once, the maximal ones."""
    found = set()
    kinds = [(number, card["kinds"][name]) for number, name in enumerate(wishes) if name in card["kinds"]]
    for mode in sorted({kind["mode"] for _, kind in kinds}):
        here = [(number, kind) for number, kind in kinds if kind["mode"] == mode]
        if mode not in card["units"]:
            for number, kind in here:
                found.add(tuple(kind["max"] if n == number else 0 for n in range(len(wishes))))
            continue
        seen = set()

        def walk(at, counts, slices):
            key = (at, counts)
            if key in seen:
                return
            seen.add(key)
            found.add(counts)
            for start in range(at, card["units"][mode]):
                for number, kind in here:
                    used = slices + kind["slices"]
                    if (start in kind["starts"] and start + kind["size"] <= card["units"][mode]
                            and counts[number] < kind["max"] and used <= card["slices"].get(mode, 99)):
                        more = tuple(c + (n == number) for n, c in enumerate(counts))
                        walk(start + kind["size"], more, used)

        walk(0, (0,) * len(wishes), 0)
    return sorted(c for c in found if any(c)
                  and not any(o != c and all(a >= b for a, b in zip(o, c)) for o in found))


def solve(nodes, types, counts, local, seconds):
    """The most GiB placed, and what no placement exceeds."""
    wishes = sorted({kind["wish"] for kind in types})
    spots = [(n, cell) for n in range(len(nodes)) for cell in (0, 1)]
    classes = {}
    for n, node in enumerate(nodes):
        for name, cell in node["cards"]:
            classes[n, cell, name] = classes.get((n, cell, name), 0) + 1
    patterns = {name: layouts(CARDS[name], wishes) for name in {name for _, _, name in classes}}
    columns = [("use", key, layout) for key in classes for layout in patterns[key[2]]]
    columns += [("put", spot, t) for spot in spots for t in range(len(types))]
    rows, columns_of, values, most = [], [], [], []

    def add(terms, at_most):
        for column, value in terms:
            rows.append(len(most))
            columns_of.append(column)
            values.append(value)
        most.append(at_most)

    use, put = {}, {}
    for i, (what, where, which) in enumerate(columns):
        if what == "use":
            use.setdefault(where, []).append((i, which))
        else:
            put[where, which] = i
    for key, count in classes.items():
        add([(i, 1) for i, _ in use[key]], count)
    for t, count in enumerate(counts):
        add([(put[spot, t], 1) for spot in spots], count)
    for spot in spots:
        for w, wish in enumerate(wishes):
            terms = [(put[spot, t], 1) for t, kind in enumerate(types) if kind["wish"] == wish]
            terms += [(i, -layout[w]) for key in classes if key[:2] == spot for i, layout in use[key] if layout[w]]
            add(terms, 0)
    for field, limit in (("cores", "cores"), ("gib", "pages")):
        for n, node in enumerate(nodes):
            for cell in (0, 1):
                bound = [(put[(n, cell), t], kind[field]) for t, kind in enumerate(types) if kind["strict"] or local]
                add(bound, node[limit])
            every = [(put[(n, cell), t], kind[field]) for t, kind in enumerate(types) for cell in (0, 1)]
            add(every, 2 * node[limit])
    cost = np.array([0.0 if what == "use" else -float(WISHES[types[which]["wish"]]["worth"])
                     for what, _, which in columns])
    upper = np.array([classes[where] if what == "use" else counts[which] for what, where, which in columns])
    matrix = coo_matrix((values, (rows, columns_of)), shape=(len(most), len(columns))).tocsr()
    solved = milp(cost, constraints=[LinearConstraint(matrix, ub=np.array(most, float))],
                  integrality=np.ones(len(columns)), bounds=Bounds(0, upper),
                  options={"mip_rel_gap": 0.0, "time_limit": seconds})
    if solved.x is None:
        raise SystemExit(f"no solution: {solved.message}")
    # All worths are multiples of this, and so are all sums.
    step = math.gcd(*(WISHES[kind["wish"]]["worth"] for kind in types))
    bound = math.floor(-solved.mip_dual_bound / step + 1e-6) * step
    return round(-solved.fun), bound


def instance(mix_name, seed, load):
    mix = MIXES[mix_name]
    draw = random.Random(f"{mix_name} {seed} {load}")
    names = [name for name, count in mix["cards"].items() for _ in range(count)]
    nodes = []
    for _ in range(mix["nodes"]):
        draw.shuffle(names)
        half = len(names) // 2
        cards = [(name, int(i >= half)) for i, name in enumerate(names)]
        average = sum(CARDS[name]["memory"] for name in names) / 2
        nodes.append({"cores": round(mix["cores"] * average / 8), "pages": round(mix["memory"] * average),
                      "cards": cards})
    memory = sum(CARDS[name]["memory"] for node in nodes for name, _ in node["cards"])
    types, arrivals, asked = [], [], 0
    while asked < load * memory:
        wish = draw.choices(list(mix["wishes"]), weights=list(mix["wishes"].values()))[0]
        worth = WISHES[wish]["worth"]
        scale = draw.choice([1, 2, 4]) if min(mix["cores"], mix["memory"]) < 2 else 2
        kind = {"wish": wish, "cores": max(1, worth * scale // 16),
                "gib": max(1, worth * (draw.choice([1, 2, 4]) if scale != 2 else 2) // 2),
                "strict": draw.random() < mix["strict"]}
        if kind not in types:
            types.append(kind)
        arrivals.append(types.index(kind))
        asked += worth
    return nodes, types, arrivals


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="for one program (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="per mix and load (default: %(default)s)")
    parser.add_argument("--mixes", help="some of them by name, comma separated (default: all)")
    parser.add_argument("--output", default="fixtures.json", help="file to write (default: %(default)s)")
    arguments = parser.parse_args()
    instances = []
    for name in arguments.mixes.split(",") if arguments.mixes else MIXES:
        for load in LOADS + ([LIGHT[name]] if name in LIGHT else []):
            for seed in range(arguments.seeds):
                nodes, types, arrivals = instance(name, seed, load)
                counts = [arrivals.count(t) for t in range(len(types))]
                most, bound = solve(nodes, types, counts, False, arguments.seconds)
                near, near_bound = solve(nodes, types, counts, True, arguments.seconds)
                local = True if near >= bound else False if near_bound < most else None
                print(name, load, seed, "desktops", len(arrivals), "most", most, "bound", bound, "local", near, local,
                      flush=True)
                instances.append({"mix": name, "load": load, "seed": seed, "nodes": nodes, "types": types,
                                  "arrivals": arrivals, "most": most, "bound": bound, "local": local})
    with open(arguments.output, "w", encoding="utf-8") as file:
        file.write('{"cards":' + json.dumps(CARDS) + ',\n"wishes":' + json.dumps(WISHES) + ',\n"instances":[\n')
        file.write(",\n".join(json.dumps(instance, separators=(",", ":")) for instance in instances))
        file.write("\n]}\n")


if __name__ == "__main__":
    main()
