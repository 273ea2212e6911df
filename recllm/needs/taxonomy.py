"""The taxonomy of derived needs: Maslow's levels, what people do where, and what they need by doing it at some time.

Rules for the teacher without a language model. What a place is for follows from words in its category's name; which
need that serves depends on the time and the day as well: one category stands under several needs. Phrases use everyday
words that are rarely names of categories.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from recllm.needs.faults import words

LEVELS = ("physiological", "safety", "love and belonging", "esteem", "self-actualisation")
_BODY, _SAFE, _LOVE, _ESTEEM, _SELF = LEVELS
# Hour at which each part of the day begins; before the first it is still night.
DAYPARTS = ((5.0, "morning"), (11.0, "midday"), (14.0, "afternoon"), (17.5, "evening"), (22.0, "night"))
WHEN = {
    "morning": "in the morning",
    "midday": "around noon",
    "afternoon": "in the afternoon",
    "evening": "in the evening",
    "night": "late at night",
    "": "at any hour",
}
# Activity -> words that tell it. The first activity whose word is in a leaf's name holds; then the root's name is read.
_TOLD = {
    "sip": "coffee cafe tea juice smoothie",
    "treat": "dessert ice donut doughnut cupcake candy yogurt bakery chocolate pastry creperie bagel",
    "health": "pharmacy drugstore doctor doctors clinic hospital dentist dentists medical emergency chiropractor "
    "optical acupuncturist therapist health veterinarian eye",
    "move": "gym fitness yoga pool pitch court track climbing martial athletics skate sport sports football baseball "
    "basketball soccer tennis golf hockey dance pilates boxing",
    "home": "supermarket grocery convenience market bodega deli hardware laundry launderette bank atm post gas station "
    "cleaner storage furniture household liquor butcher",
    "learn": "museum library gallery theater theatre cinema movie concert historic opera art arts culture bookshop "
    "bookstore music monument landmark performing school university college exhibit",
    "groom": "salon barbershop barber spa nail tanning massage cosmetics tattoo hairdresser hair",
    "night": "bar pub lounge nightclub club cocktail brewery karaoke wine beer speakeasy nightlife disco whisky sake",
    "eat": "food restaurant noodle pizza sandwich steakhouse diner burger breakfast taco sushi bbq buffet bistro soup "
    "salad dumpling joint snack brasserie gastropub wings burrito",
    "open": "park garden beach plaza trail riverside walk playground outdoors scenic lake field river dog pier harbor "
    "marina pond square bridge mountain forest",
    "faith": "church temple synagogue mosque shrine spiritual cemetery",
    "stay": "hotel hostel motel resort breakfast airport travel transport residence",
    "fun": "arcade stadium casino comedy bowling zoo aquarium theme event entertainment racetrack fair",
    "buy": "shop store boutique clothes clothing mall department electronics gift florist flower toy jewelry shoe "
    "market",
}
# Activity -> part of the day ("" is any other) -> what is needed, and which need of Maslow's that is.
_NEEDED = {
    "eat": {
        "morning": ("a filling start to the day", _BODY, "first meal"),
        "midday": ("a proper meal to keep going", _BODY, "midday meal"),
        "evening": ("sharing a meal around a table", _LOVE, "shared meal"),
        "night": ("something hot to eat before bed", _BODY, "late meal"),
        "": ("something to eat between meals", _BODY, "snack"),
    },
    "sip": {
        "morning": ("waking up with something hot to sip", _BODY, "waking up"),
        "evening": ("unwinding over something to sip", _LOVE, "unwinding"),
        "": ("a short pause with something to sip", _BODY, "pause"),
    },
    "treat": {
        "morning": ("something sweet to begin the day", _BODY, "first bite"),
        "": ("a little reward that tastes sweet", _BODY, "sweet pause"),
    },
    "night": {
        "evening": ("meeting friends over a glass", _LOVE, "company"),
        "night": ("staying up late in lively company", _LOVE, "night out"),
        "": ("an early round in good company", _LOVE, "company"),
    },
    "move": {
        "morning": ("working up a sweat before the day begins", _ESTEEM, "keeping fit"),
        "evening": ("working off the day by exercise", _ESTEEM, "keeping fit"),
        "": ("keeping the body in shape", _ESTEEM, "keeping fit"),
    },
    "health": {
        "night": ("getting urgent help with an ache", _SAFE, "urgent care"),
        "": ("getting help with an ache", _SAFE, "care"),
    },
    "home": {
        "morning": ("picking up what the day asks for", _SAFE, "supplies"),
        "": ("getting what the household runs on", _SAFE, "household"),
    },
    "buy": {"": ("finding something nice to own or to give", _ESTEEM, "acquiring")},
    "groom": {"": ("looking one's best", _ESTEEM, "appearance")},
    "learn": {
        "evening": ("being moved by a story or a tune", _SELF, "inspiration"),
        "": ("seeing or reading something inspiring", _SELF, "widening the mind"),
    },
    "open": {
        "evening": ("fresh air to end the day with", _BODY, "fresh air"),
        "": ("fresh air and room to breathe", _BODY, "fresh air"),
    },
    "faith": {"": ("a quiet hour for faith", _SELF, "faith")},
    "stay": {"": ("a safe place to rest on the way", _SAFE, "shelter")},
    "fun": {"": ("having fun and forgetting the everyday", _LOVE, "amusement")},
    "other": {"": ("getting something done", _SAFE, "errands")},
}
# What counts as another need on a free day.
_AT_LEISURE = {
    "open": ("a free day in the open", _LOVE, "outing"),
    "eat": ("an unhurried meal with others", _LOVE, "shared meal"),
    "move": ("being active for the joy of it", _SELF, "play"),
    "fun": ("an exciting free day", _LOVE, "outing"),
}
# The same in two or three words, for what else is done.
_BRIEFLY = {
    "eat": "a bite", "sip": "a hot cup", "treat": "something sweet", "night": "a glass with others",
    "move": "exercise", "health": "care", "home": "supplies for the household", "buy": "something nice to own",
    "groom": "tidying one's looks", "learn": "something inspiring", "open": "fresh air", "faith": "faith",
    "stay": "rest on the way", "fun": "amusement", "other": "an errand",
}  # fmt: skip
_ACTIVITY = {name: activity for activity, names in reversed(_TOLD.items()) for name in names.split()}
_ORDER = list(_TOLD)
# A second activity is told where it makes up so much of the need.
_SECOND = 0.25
_SCENE_WORD = re.compile(r"^(near|at|in|on)\b", re.IGNORECASE)


def daypart(hour: float) -> str:
    """The part of the day of an hour, 0 to 24."""
    found = "night"
    for start, name in DAYPARTS:
        if hour % 24 >= start:
            found = name
    return found


def activity(leaf: str, root: str = "") -> str:
    """What one does at a place of a category: a key of the rules, "other" where no word is known."""
    for text in (leaf, root):
        told = [_ACTIVITY[word] for word in words(text) if word in _ACTIVITY]
        if told:
            return min(told, key=_ORDER.index)
    return "other"


def activities(categories: Sequence[tuple[str, str, float]]) -> list[tuple[str, float]]:
    """Activities behind some (leaf, root, share), the commonest first, with their shares."""
    total: dict[str, float] = {}
    for leaf, root, share in categories:
        name = activity(leaf, root)
        total[name] = total.get(name, 0.0) + share
    return sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))


def needed(doing: str, part: str, weekend: bool) -> tuple[str, str, str]:
    """Phrase, level and sub-need of an activity in a part of the day, on a day off or any other."""
    if weekend and doing in _AT_LEISURE and part in ("morning", "midday", "afternoon"):
        return _AT_LEISURE[doing]
    rules = _NEEDED[doing]
    return rules.get(part, rules[""])


def phrases(
    doing: Sequence[tuple[str, float]], parts: Sequence[str], day: str, scene: str, weather: str, more: bool
) -> tuple[list[str], str]:
    """Ways to say what is needed, the fullest first, and the need's type.

    parts: of the day, the commonest first. day: "weekend", "working day" or "". scene, weather: "" where they tell
    nothing. more: say all that is known, since less was said of another need already.
    """
    core, level, sub = needed(doing[0][0], parts[0], day == "weekend")
    second = [name for name, share in doing[1:] if share >= _SECOND or more][: 2 if more else 1]
    also = "".join(f" or {_BRIEFLY[name]}" for name in second)
    # As the day goes.
    told = sorted(parts, key=list(WHEN).index)
    when = WHEN[told[0]]
    if len(told) > 1:
        when += f" or {WHEN[told[1]].removeprefix('in the ').removeprefix('around ')}"
    when += {"weekend": " of a free day", "working day": " of a working day"}.get(day, "")
    where = f" around the {scene.lower()}" if scene and not _SCENE_WORD.match(scene) else ""
    sky = f", {weather.lower()} weather" if weather and more else ""
    ways = [
        f"{core}{also} {when}{where}{sky}",
        f"{core}{also} {when}",
        f"{core} {when}",
        core,
        f"what one needs {when}",
    ]
    return list(dict.fromkeys(ways)), f"{level}/{sub}"
