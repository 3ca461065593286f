# SPDX-License-Identifier: Apache-2.0
"""Long texts that say nothing about a needle: generated prose, or the user's own text."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from headkv_vllm.errors import SamplesError


class Haystack(Protocol):
    """Sentences to hide statements in."""

    def sentences(self, rng: np.random.Generator) -> Iterator[str]:
        """The sentences of one text that `rng` chooses. The iterator may be endless."""


# A context-free grammar: {name} stands for any line of that name. All lines are in the past tense.
GRAMMAR: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(line.strip() for line in lines.split("|"))
    for name, lines in {
        "sentence": "{When}, {person} {did}. | {Person} {did} {when}. | {Person} {did} {where}."
        "| {Sky}, and {person} {did}. | When {sky}, {person} {did} {where}."
        "| {Person} {did} because {sky}. | {Where}, {person} {did} until {sky}."
        "| {Thing} lay {where}, and {person} {did}. | {Person} {thought} that {sky}."
        "| {Person} {thought} that {person} {did} {when}. | {When}, {thing} stood {where}."
        "| {Person}, who {did} {when}, {did} {where}. | {Sky} {when}, and {sky}."
        "| Nobody knew why {person} {did} {where}. | {When}, {sky}. | As {sky}, {thing} {became}."
        "| {Thing} {became}, but {person} {did}. | {Person} and {person} {talked} {when}."
        "| It was {quality} of {person} to have waited {where} {when}."
        "| There was {thing} {where}, and {thing} beside it. | Before {person} {did}, {sky}."
        "| Although {thing} {became}, {person} {thought} that {sky}."
        "| {Person} {did}; {when}, {person} {did}. | {Where} {thing} {became} {when}.",
        "person": "a {manner} {trade} | the {trade} | the {manner} {trade} | one {trade}"
        "| a {trade} with {feature} | the {trade} from next door | another {trade}"
        "| a {trade} in {garment} | the {manner} {trade} with {feature} | some {manner} {trade}",
        "trade": "carpenter | librarian | tailor | gardener | printer | surveyor | teacher | nurse"
        "| bookbinder | plumber | translator | cook | joiner | potter | weaver | clerk | painter"
        "| mechanic | violinist | student | widow | postman | beekeeper | glazier | botanist"
        "| locksmith | editor | apprentice | seamstress | farmer | historian | upholsterer",
        "manner": "patient | elderly | quiet | cheerful | absent-minded | careful | talkative"
        "| young | stubborn | thoughtful | shy | tireless | restless | modest | serious | sleepy"
        "| curious | generous | clumsy | hopeful | impatient | observant | gentle | practical",
        "feature": "a grey beard | a limp | ink on both hands | a soft voice | round spectacles"
        "| a torn sleeve | many grandchildren | a bad cold | an easy laugh | long fingers"
        "| a good memory | little patience | sawdust in the hair | a habit of whistling",
        "garment": "a woollen coat | a blue apron | heavy gloves | a linen shirt | felt slippers"
        "| a straw hat | a patched jacket | a thick scarf | working clothes | a velvet waistcoat",
        "did": "{handled} {thing} | {handled} {thing} and {handled} {thing} | {moved} {where}"
        "| {handled} {thing} for {person} | {adverb} {handled} {thing} | spoke about {matter}"
        "| wondered about {matter} | {adverb} {moved} | wrote a letter about {matter}"
        "| {handled} {thing} without a thought of {matter} | lost all interest in {matter}"
        "| lent {thing} to {person} | read an essay about {matter} | explained {matter} {how}",
        "handled": "repaired | carried | examined | wrapped | measured | oiled | borrowed"
        "| dropped | drew | lifted | cleaned | described | moved | weighed | sold | hid | found"
        "| mended | inspected | replaced | unpacked | forgot | labelled | sanded | sorted"
        "| scratched | compared | returned | hung up | put away | took apart | looked at",
        "thing": "a {state} {object} | the {state} {object} | the {object} | a {object}"
        "| a {object} made of {material} | a {state} {object} made of {material}"
        "| a {container} full of {stuff} | the {object} that {person} had {left}"
        "| the {container} of {stuff} | another {object}",
        "object": "{container} | ladder | notebook | lamp | chair | picture frame | blanket"
        "| vase | workbench | umbrella | mirror | cushion | bookshelf | hammer | rug | stool"
        "| curtain | flute | saw | doormat | typewriter | broom | paintbrush | candlestick",
        "container": "basket | drawer | suitcase | jar | bucket | toolbox | teapot | cupboard"
        "| wheelbarrow | tray | envelope | crate | saucepan | trunk | sewing box | flowerpot"
        "| parcel | kettle | sack | biscuit tin",
        "state": "dusty | broken | heavy | new | dented | familiar | narrow | shabby | spare | worn"
        "| delicate | plain | forgotten | enormous | cracked | half-empty | faded | square | damp"
        "| three-legged | ordinary | unfinished | shiny | rusty | handsome | second-hand | empty",
        "material": "oak | tin | cardboard | brass | clay | pine | steel | leather | cork | wicker"
        "| enamel | cotton | walnut | bamboo | zinc | maple",
        "stuff": "nails | old letters | dried beans | buttons | rags | seeds | coins | pencils"
        "| receipts | candle ends | wood shavings | maps | string | broken cups | cloth",
        "left": "left behind | forgotten | paid for | brought along | asked for | put aside"
        "| mentioned so often | made by hand | wanted for years",
        "matter": "the price of flour | the long winter | grammar | the education of children"
        "| the habits of moles | the cost of repairs | an unfinished novel | the harvest"
        "| the history of spelling | a delayed train | a lost dog | the orchard"
        "| the weather | music | the new railway timetable | a quarrel between neighbours"
        "| the uses of vinegar | the colour of the walls | a lawsuit | the origin of surnames"
        "| geometry | the migration of geese | an unpaid bill | the noise from upstairs | dreams",
        "when": "before breakfast | late in the evening | on the following day | after a while"
        "| in the early afternoon | towards the end of the week | shortly after midnight"
        "| some days later | that same morning | during the lunch break | in the last days of March"
        "| once in a while | after the second cup of coffee | at dusk | on a Thursday | one evening"
        "| a month later | for the third time | at the usual time | long after sunset"
        "| in the middle of the night | on the way home | after supper | the year before",
        "where": "in the workshop | under the staircase | at the kitchen table | in the attic"
        "| behind the shed | on the landing | in the corridor | next to the stove | by the window"
        "| in the cellar | beyond the hedge | outside the post office | in the waiting room"
        "| among the apple trees | at the bakery | against the garden wall"
        "| near the bus stop | in an upstairs room | between two bookcases | on the veranda"
        "| at the edge of the field | in the barn | on the back steps | in the reading room",
        "sky": "the rain {weather} | the wind {weather} | the fog {weather} | a thunderstorm passed"
        "| the snow {weather} | the heat {weather} | the days grew {longer} | the sun came out"
        "| clouds gathered over the hills | the leaves turned {hue} | the river rose {speed}"
        "| the roofs were {hue} with frost | the road had dried | the moon was {moon}"
        "| the light in the room turned {hue} | the kitchen was {silence} | the clouds were {hue}",
        "weather": "had stopped | grew worse | lasted for hours | came from the west | was to stay"
        "| set in early | kept everybody indoors | took the street by surprise | hardly mattered"
        "| did not last | returned with new strength | eased a little | spoiled the hay",
        "speed": "slowly | overnight | again | a little | by an inch",
        "longer": "longer | shorter | warmer | colder | milder | darker",
        "hue": "pale | brown | grey | golden | red | dark | silvery | dull",
        "moon": "full | hidden | low over the fields | already up | thin as a thread",
        "silence": "silent | full of voices | colder than ever | empty | in good order | asleep",
        "thought": "remembered | doubted | suspected | noticed with regret | was glad"
        "| complained | had heard | supposed | was surprised | admitted | pointed out",
        "moved": "walked up and down | sat down | waited | fell asleep | slipped | hummed a tune"
        "| whistled | stood still | yawned | hesitated | laughed out loud | lost track | worked on",
        "how": "with great care | in silence | at once | rather badly | as well as possible"
        "| with a sigh | in a hurry | without a word | little by little | more than once | again",
        "adverb": "slowly | reluctantly | calmly | absently | promptly | silently | carefully"
        "| suddenly | merely | almost | finally | gladly | briefly | secretly | simply | nearly",
        "became": "was never used again | fell to pieces | looked better than before | went missing"
        "| turned out to be too small | gathered dust | was in the way | proved its worth"
        "| began to smell of smoke | had lost its colour | cost more than expected | was in demand"
        "| was worth keeping | smelled of wax | made a strange noise | had to be thrown away",
        "talked": "talked about {matter} | agreed about {matter} | argued over {thing}"
        "| shared an omelette | {handled} {thing} together | {moved} side by side",
        "quality": "kind | unwise | typical | brave | thoughtless | considerate | sensible | rude",
    }.items()
}
_NAME: Final = re.compile(r"\{(\w+)\}")
_BEFORE_VOWEL: Final = re.compile(r"\b([Aa]) (?=[aeiou])")


class GeneratedHaystack:
    """Endless English prose of everyday scenes; each `rng` gives another text.

    It has no proper names, gives no advice, and shares no noun with the answer of a needle.
    """

    def sentences(self, rng: np.random.Generator) -> Iterator[str]:
        """See `Haystack`."""
        while True:
            yield _BEFORE_VOWEL.sub(r"\1n ", _expand("sentence", rng))


class TextHaystack:
    """A text file, or the `.txt` files of a folder in the order of their names, in UTF-8."""

    def __init__(self, path: Path) -> None:
        """Raises SamplesError when `path` has no text, or when the text is not UTF-8."""
        try:
            files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
            text = "\n\n".join(map(_read, files))
        except OSError as error:
            raise SamplesError(f"haystack {str(path)!r} cannot be read: {error.strerror}") from None
        self._sentences = split_sentences(text)
        if not self._sentences:
            raise SamplesError(f"haystack {str(path)!r} has no text, expected .txt with sentences")

    def sentences(self, rng: np.random.Generator) -> Iterator[str]:
        """All sentences once, from a random one to the end and from the start to that one.

        The papers' code repeats the text. Here it is not repeated, because a model could then
        recognise a needle as the only statement that stands once.
        """
        start = int(rng.integers(len(self._sentences)))
        yield from self._sentences[start:]
        yield from self._sentences[:start]


MAX_WORDS: Final = 60
# A full stop, perhaps a closing quote, and space; an ideographic full stop; an empty line.
_SENTENCE_END: Final = re.compile(
    r"(?<=[.!?])\s+|(?<=[.!?][\"'\u201d\u2019)\]])\s+|(?<=[\u3002\uff01\uff1f])|\n\s*\n"
)


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of `text` with single spaces; those above MAX_WORDS words are cut."""
    return tuple(
        " ".join(words[start : start + MAX_WORDS])
        for words in map(str.split, _SENTENCE_END.split(text))
        for start in range(0, len(words), MAX_WORDS)
    )


def _expand(name: str, rng: np.random.Generator) -> str:
    """A random line of `name`, capitalized when `name` is."""
    lines = GRAMMAR[name.lower()]
    line = lines[rng.integers(len(lines))]
    text = _NAME.sub(lambda match: _expand(match[1], rng), line)
    return text[0].upper() + text[1:] if name[0].isupper() else text


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SamplesError(f"haystack {str(file)!r} is not UTF-8") from None
