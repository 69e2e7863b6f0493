"""Plain English words from which evaluations make names and values; no word is in two lists."""

_ADJECTIVES = """
able ancient bitter bold brave brief bright broken calm careful cheerful clean clever cold
common cool curious dark deep distant double eager early eastern elegant empty exact faint
famous fancy final firm flat fresh gentle giant glad golden grand green happy hardy heavy hidden
hollow honest humble icy idle jolly keen kind large late lazy little local lonely loud loyal
lucky mellow mighty mild modern modest narrow neat noble northern odd open pale patient plain
polite proud purple quick quiet rapid rare ready regal rich robust round royal rustic sacred
scarlet secure sharp shiny silent silver simple sleepy slow smooth soft solid southern steady
stout strange sturdy subtle sunny sweet swift tall tame tender thirsty tidy tiny tough tranquil
urban useful vast velvet violet vivid warm western wide wild wise wooden young
"""
_NOUNS = """
acorn anchor apple arrow autumn badger balloon bamboo banner barrel basket beacon beaver bell
bishop blanket bottle bracelet branch bridge bucket button cabin camel candle canyon captain
carpet castle cellar chapel cherry circle clock cloud coffee compass copper corner cottage
cotton cradle crystal dancer desert diamond dolphin dragon drawer eagle engine falcon farmer
feather fiddle finger flame forest fountain garden garlic glacier goblet guitar hammer harbor
harvest helmet heron hunter island ivory jacket jewel journal jungle kettle kitchen ladder
lantern lemon library lizard lobster magnet mantle maple marble market meadow mirror monkey
mountain museum needle nickel notebook oasis ocean orchard otter oyster paddle palace panther
parade parrot pebble pencil pepper pigeon pillow pirate planet pocket puzzle rabbit raven ribbon
river rocket saddle sailor salmon scholar shadow shelter shepherd signal spider spoon squirrel
stable statue summer sword table tailor teacher temple thunder tiger timber tower tractor
trumpet tulip tunnel turtle valley village violin wagon walnut whistle willow window winter
wizard
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())
