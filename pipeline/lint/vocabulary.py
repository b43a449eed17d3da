"""The words of motion as data: what moves, how it is said, and what says nothing.

Four kinds, as people who write such prompts name them: the camera, nature, living things (and the things they handle),
and time. A verb stands in its base form; `pipeline.lint.reading` knows its other forms. To teach the prompt help a new
motion, add its verb here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class MotionKind(StrEnum):
    """What moves in a prompt."""

    CAMERA = "camera"
    NATURE = "nature"
    LIVING = "living"
    THINGS = "things"
    TIME = "time"


def word_set(text: str) -> frozenset[str]:
    """The words of a text with spaces between them."""
    return frozenset(text.split())


#: Verbs of motion by what moves; a verb that serves several stands under the first that is usual.
VERBS: Mapping[MotionKind, frozenset[str]] = MappingProxyType(
    {
        MotionKind.CAMERA: word_set(
            "zoom pan tilt orbit circle dolly truck pedestal track follow revolve approach retreat pull push"
            " glide sweep crane fly hover travel arc whip reveal"
        ),
        MotionKind.NATURE: word_set(
            "crash drift fall flicker blow flow ripple roll swirl billow rise set shimmer twinkle glitter glisten"
            " sparkle glow gleam burn blaze smoulder smolder smoke steam boil bubble froth foam fizz drip drop"
            " trickle pour stream gush spray splash surge lap swell melt freeze thaw grow bloom blossom unfurl"
            " wilt sway rustle tremble shiver wave flutter flap tumble scatter erupt explode burst crack crumble"
            " collapse spread thicken lift clear gather strike flash spiral churn seep ooze evaporate condense"
            " curl leap dance shift undulate cascade pulse throb ebb whirl"
        ),
        MotionKind.LIVING: word_set(
            "walk run jump hop skip stride stroll march jog sprint climb crawl creep swim dive fly soar flap"
            " perch leap gallop trot graze chase hunt pounce stretch yawn blink wink nod shake turn look glance"
            " smile laugh grin frown cry weep sing speak talk whisper chew eat drink sip lick sniff breathe sigh"
            " bow kneel stand sit lie wave clap point reach grab grasp pick hold lift carry throw toss catch kick"
            " punch hit dance twirl spin pirouette skate ski surf ride cycle pedal row paddle drive hug kiss"
            " cuddle play knit sew paint draw write type cook stir whisk knead chop slice peel fry sprinkle"
            " drizzle mix wash wipe brush comb dress undress put take open close raise lower wag purr bark peck"
            " gather work dig plant water wiggle wriggle squirm scamper scurry dart flee hatch cheer celebrate"
            " greet tap step wade dip adjust tighten tie untie unzip zip button"
            " apply help hand clean exchange share place pluck strum juggle balance"
            " slip climb try enter leave arrive return wander emerge peek sneeze"
        ),
        MotionKind.THINGS: word_set(
            "move rotate spin turn swivel pivot revolve swing sway rock bounce slide glide roll tumble topple"
            " fall float sink hover drop fly land launch lift tilt tip lean bend flex fold unfold coil uncoil wind"
            " unwind open close shut snap click tick chime ring vibrate shake rattle hum buzz pop explode burst"
            " shatter break crack crease inflate deflate expand contract shrink stretch compress sizzle simmer"
            " boil puff bake toast brew drain fill empty pour spill splash spray squirt squeeze drip ooze spread"
            " assemble disassemble stack slot switch light flash blink glow illuminate dim fade unwrap wrap peel"
            " unroll unravel reel cut grind drill saw hammer mow chug accelerate brake speed race cruise park"
            " drive steer sail dock depart pass cross descend ascend climb trail whirr whir flutter flap dangle"
            " wobble jiggle crank unpack pack load print scan charge travel circle catch unlock lock extend"
            " retract emerge appear disappear dissolve morph transform crumple drape clink"
        ),
        MotionKind.TIME: word_set(
            "change transition progress elapse pass darken brighten fade age ripen transform set"
        ),
    }
)

#: Phrases that are motion although no verb says so.
PHRASES: Mapping[MotionKind, tuple[str, ...]] = MappingProxyType(
    {
        MotionKind.CAMERA: (
            r"(?:tracking|dolly|crane|arc|orbit|drone|pan(?:ning)?|tilt|zoom|follow|whip|push[- ]in|pull[- ]back"
            r"|steadicam|jib|handheld|hand[- ]held|fly[- ]?(?:through|over)|reveal)[- ]?(?:camera )?"
            r"(?:shots?|view|footage)",
            r"(?:handheld|hand[- ]held) camera",
            r"push[- ]in|pull[- ]back|pull[- ]out|fly[- ]?through|fly[- ]?over|fpv|ken burns|hyperlapse|parallax",
            r"camera (?:movement|motion|moves?|pan|zoom|tilt|orbit|roll|shake)",
            r"(?:slow|quick|fast|gentle|smooth) (?:pan|zoom|tilt|orbit|dolly|reveal|rotation|turn|spin)",
            r"point of view|pov",
        ),
        MotionKind.NATURE: (
            r"(?:gentle|light|soft|strong|slight|cool|warm|sea|summer) (?:breeze|wind)",
            r"in the (?:wind|breeze|current|storm)",
            r"running water|windy|breezy|gusts?|snowfall|rainfall|light snow|heavy (?:rain|snow)",
            r"rain shower|snow flurries",
            r"(?:lens|sun) flare moving",
        ),
        MotionKind.LIVING: (r"on the (?:move|run)|in mid[- ]?(?:air|jump|stride)|at full (?:speed|gallop)",),
        MotionKind.THINGS: (
            r"turn ?table|360(?:°|[- ]?degrees?)?(?: (?:rotation|spin|turn|view|shot))?",
            r"in rotation|(?:a|full|slow) spin",
            r"(?:changed|transformed|turned|morphed|melted|changes|transforms|turns) (?:in)?to",
            r"back and forth|up and down|side to side|to and fro",
        ),
        MotionKind.TIME: (
            r"in (?:slow|fast)[- ]?motion|slow[- ]?mo(?:tion)?|time[- ]?lapse|stop[- ]?motion|day to night",
        ),
    }
)

#: Forms in -ing that are no motion: states, and what a picture does.
STATE_ING = word_set(
    "being having wearing featuring including containing showing displaying depicting consisting resembling"
    " matching surrounding overlooking facing lacking hanging standing sitting lying resting leaning waiting"
    " sleeping posing seating missing remaining living according regarding holding using sporting understanding"
    " looking feeling being serving starring"
)
#: Forms in -ing that are things and qualities: motion only where somebody is doing it (`the sun is setting`).
STILL_ING = word_set(
    "during evening morning ring string spring king thing something anything nothing everything wing sling"
    " ceiling building painting drawing clothing lighting setting wedding bedding flooring railing awning siding"
    " earring stocking lining piping padding quilting stitching styling branding packaging engraving coating"
    " plating finishing upholstering interesting stunning amazing charming relaxing exciting captivating"
    " breathtaking fascinating mesmerizing inspiring enchanting appealing outstanding astonishing inviting"
    " dining sterling darling herring pudding icing dressing topping filling frosting stuffing seasoning beijing"
    " engineering advertising marketing photographing rendering trending carving housing bearing casing mating"
    " tubing webbing gaming viewing parking landing crossing sibling duckling dumpling sapling seedling sterling"
    " offering boring calming soothing"
)

#: Forms in -ing that name what a product is for, where a noun follows: `running shoes`, `frying pan`.
FOR_ING = word_set(
    "running hiking walking climbing cycling skiing swimming fishing camping riding racing sailing surfing"
    " skating dancing boxing training jogging trekking bathing shaving sewing knitting cooking frying baking"
    " roasting cutting carving drinking washing cleaning dishwashing writing reading sleeping hunting boating"
    " driving moving sitting shopping gardening drilling sanding welding measuring serving folding rocking hanging"
    " standing watering mountaineering snowboarding paragliding golfing heating cooling charging steering working"
    " mowing lacing drawing painting cushioning"
)

#: Words of motion whose -s or base form is more often a thing: motion only before what follows verbs (`waves at`).
MOSTLY_THINGS = word_set(
    "wave roll slide pump spring drop light ring set lap string circle track cap button park dress plant water"
    " brush comb paint foam steam smoke fall stream swell slice cut drill saw hammer stack slot switch flash zip"
    " dock pack tip crease charge print fold row cycle crane truck work play pan dance walk run bow point step"
    " catch trail drive ride spray click tick crack strike burn glow sparkle glitter shimmer shake chop tap turn"
    " look draw bark lift lock load scan type try land race rock"
)

#: Passive forms that say that something is done: `is poured`, `being pulled`.
DONE = word_set(
    "poured lifted pulled pushed opened closed folded unfolded thrown tossed turned moved carried dropped picked"
    " placed put taken cut sliced peeled stirred mixed squeezed sprayed sprinkled unwrapped wrapped zipped"
    " unzipped rolled unrolled lit raised lowered rotated spun shaken tied untied assembled inflated filled"
    " emptied drizzled dusted brushed swept blown tipped removed revealed"
)

#: Words that praise or ask for motion and say none: a model finds nothing in them that could move.
HOLLOW = word_set(
    "beautiful gorgeous stunning amazing awesome nice nicely pretty lovely cool great good best better perfect"
    " fantastic incredible wonderful epic cinematic dramatic dynamic dynamically lively alive vivid energetic"
    " exciting interesting impressive striking magical dreamy atmospheric emotional professional commercial"
    " realistic realistically natural naturally hyperrealistic photorealistic high quality highest ultra hd uhd 4k"
    " 8k hdr masterpiece detailed details detailed sharp resolution trending artstation award winning viral wow"
    " fancy creative artistic aesthetic motion motions movement movements action animation animations animate"
    " animated anime live life lifelike effect effects energy emotion vibe vibes mood feel feeling look looks"
    " atmosphere visual visuals style move moves moving change changes changing alter transform happen happens"
    " happening scene picture image video clip footage film movie gif result content version thing things stuff"
    " something anything everything somehow somewhat some kind sort lot lots bit little few more most much many"
    " very really super extremely so too quite just slight slightly subtle subtly gentle gently smooth smoothly"
    " slow slowly please make makes making made let lets do does doing create creates creating generate generates"
    " generating produce give gives bring brings add adds adding show shows showing turn turns want wants need"
    " needs have has be is are was get gets come comes coming put use using become becomes it its this that these"
    " those them they he she the a an and or but with of in on at to into for from as by like i you we me my your"
    " our us there here can could should would will product item photo photograph"
)

#: Words of a picture's medium: alone they are hollow only where motion or praise is all that is said besides.
MEDIUM = word_set("photo photograph product item")

#: Adverbs and adjectives of speed.
SLOW = word_set("slow slowly gently gradually softly leisurely")
FAST = word_set("fast quick quickly rapid rapidly swift swiftly briskly")

#: What may follow a verb and does not follow a noun that stands for a thing's use.
AFTER_VERBS = word_set(
    "in on at to into onto from over across through around round under above below behind beside along by past up"
    " down off out away back forward forwards backward backwards left right toward towards inside outside upward"
    " upwards downward outward inward against between among about with while as and or then until before after"
    " when near the a an his her its their my your each one two three slowly quickly gently softly calmly rapidly"
    " gracefully smoothly suddenly continuously steadily freely lazily happily loudly quietly open closed apart"
    " together very again goodbye hello himself herself itself themselves for is are"
)

#: Motion that suits what a prompt shows, by words of it: the first that is named.
SUITABLE: tuple[tuple[frozenset[str], str], ...] = (
    (
        word_set("woman man girl boy person model portrait face lady child kid bride actor"),
        "turning the head slowly to the right",
    ),
    (word_set("cat dog puppy kitten horse rabbit bird"), "turning its head and blinking"),
    (word_set("candle candles fireplace campfire torch lantern"), "flame flickering"),
    (word_set("sea ocean waves beach coast shore"), "waves rolling in slowly"),
    (word_set("lake river pond pool"), "water rippling gently"),
    (word_set("coffee tea espresso soup ramen latte cocoa"), "steam rising slowly"),
    (
        word_set("flower flowers rose roses tulip tulips peony peonies bouquet plant fern"),
        "petals swaying in a light breeze",
    ),
    (word_set("tree trees forest park garden leaves"), "leaves rustling in a light breeze"),
    (word_set("sky clouds mountain mountains skyline"), "clouds drifting slowly"),
    (word_set("dress scarf skirt veil curtain curtains flag"), "fabric swaying in a light breeze"),
)
