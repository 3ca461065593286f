# SPDX-License-Identifier: Apache-2.0
"""Names, and the values of made-up facts."""

from collections.abc import Sequence
from typing import Final

import numpy as np

_FIRST: Final = (
    "Alice Arthur Barbara Bruno Carla Charles Clara Daniel Diana Edward Ella Emma Felix Fiona"
    " Frank George Grace Hannah Harold Helen Henry Ida Irene Jack James Janet Julia Karl Kate"
    " Laura Leo Linda Louis Lucy Maria Martin Mary Max Nancy Nina Oliver Oscar Paul Peter"
    " Philip Rachel Robert Rose Ruth Samuel Sarah Simon Sophie Stella Thomas Tim Vera Victor"
    " Walter William"
).split()
_LAST: Final = (
    "Adams Allen Bailey Barnes Bennett Bishop Blake Brooks Burton Butler Carter Chapman"
    " Clarke Collins Cooper Crawford Curtis Davis Dawson Dixon Douglas Duncan Edwards Ellis"
    " Evans Fisher Fletcher Foster Gibson Gordon Graham Grant Griffin Hamilton Harper Harris"
    " Harvey Hawkins Hayes Henderson Holmes Howard Hudson Hughes Hunter Jackson Jenkins"
    " Johnson Kennedy Knight Lambert Lawrence Marshall Mason Matthews Mitchell Morgan Morris"
    " Murphy Nelson Newton Owens Palmer Parker Patterson Perkins Phillips Porter Powell Quinn"
    " Reynolds Richardson Roberts Robinson Russell Sanders Shaw Simpson Spencer Stevens"
    " Stewart Sullivan Thompson Tucker Turner Wallace Walsh Warren Watson Webster Wheeler"
    " Wilson Wright"
).split()
_NAMES: Final = (
    "Abbey Alpine Anchor Arrow Ashford Aurora Avalon Beacon Belmont Blackwood Bradford"
    " Brighton Bristol Camden Canyon Castle Cedar Central Chester Clifton Compass Crescent"
    " Crown Dover Eagle Eastern Eden Elm Falcon Franklin Fulton Golden Grand Greenwood Hampton"
    " Harbor Hazel Highland Hilltop Holly Horizon Imperial Island Jubilee Kingston Lakeside"
    " Laurel Liberty Lincoln Lion Madison Maple Meadow Melrose Milton Monarch Newport Norton"
    " Oakland Oxford Palace Paradise Park Phoenix Pioneer Plaza Prospect Queen Ridge Riverside"
    " Rosewood Royal Salem Sheffield Sherwood Somerset Southern Spring Star Stanford Summit"
    " Sunset Union Valley Vernon Victoria Vista Warwick Waverly Wellington Western Westwood"
    " Willow Windsor Winston Woodland York Zenith"
).split()

POOLS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(value.strip() for value in values.split("|"))
    for name, values in {
        "colour": "red | green | blue | yellow | purple | orange | white | black | pink |"
        " grey | brown | turquoise",
        "material": "copper | oak | brass | marble | iron | glass | silver | granite | bamboo |"
        " ivory | tin | leather",
        "dish": "plum dumplings | onion soup | pea stew | walnut bread | smoked trout |"
        " cherry cake | carrot pie | roast goose | honey biscuits | potato pancakes"
        " | apple strudel | lentil soup | ginger cookies | mushroom pie",
        "instrument": "violin | trumpet | flute | harp | accordion | cello | drum | clarinet |"
        " guitar | organ | mandolin | tuba",
        "month": "January | February | March | April | May | June | July | August |"
        " September | October | November | December",
    }.items()
}


class Values:
    """Draws values of each kind. No value is repeated before the others are used up."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._given: set[str] = set()
        self._pools: dict[str, list[str]] = {}
        self._num_names = 0

    def draw(self, kind: str) -> str:
        """A value. kind: of POOLS, or "name", "person", "year", "number", "price" or "time"."""
        if kind == "name":
            name = self._of_pool("name", _NAMES)
            prefix = ("", "New ", "Old ")[min(self._num_names // len(_NAMES), 2)]
            self._num_names += 1
            return prefix + name
        return self._of_pool(kind, POOLS[kind]) if kind in POOLS else self._made_up(kind)

    def _of_pool(self, kind: str, pool: Sequence[str]) -> str:
        if not self._pools.get(kind):
            self._pools[kind] = self._rng.permutation(pool).tolist()
        return self._pools[kind].pop()

    def _made_up(self, kind: str) -> str:
        rng = self._rng
        for _ in range(100):  # after 100 tries a value may be repeated
            if kind == "person":
                value = f"{self._one_of(_FIRST)} {self._one_of(_LAST)}"
            elif kind == "year":
                value = str(rng.integers(1650, 1990))
            elif kind == "number":
                value = str(rng.integers(12, 900))
            elif kind == "price":
                value = f"{rng.integers(2, 99)} crowns"
            else:
                assert kind == "time"
                value = f"{rng.integers(1, 13)}:{rng.integers(0, 12) * 5:02d}"
            if value not in self._given:
                break
        self._given.add(value)
        return value

    def _one_of(self, values: Sequence[str]) -> str:
        return values[int(self._rng.integers(len(values)))]
