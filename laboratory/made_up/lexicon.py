"""A small lexicon of medical word parts, and the meanings that they compose.

A *meaning* is a site (kidney), a process (inflammation) and at most one modifier (acute), or one of
a few named conditions whose abbreviations are ambiguous (MS: multiple sclerosis, mitral stenosis).
It knows what each register calls it: formal ("nephritis"), plain ("kidney irritation"), Latin
("inflammatio renis"), clipped ("ren inflam"), initials ("RI") and lay ("kidney swelling").

The lay words are shifted on purpose against the plain ones, as they are in real life: plain
"swelling" is oedema, lay "swelling" is inflammation; plain "stomach" is the organ, lay "stomach" is
the whole abdomen; lay "chronic" only says that it is bad.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["MODIFIERS", "SYSTEMS", "Meaning", "make_groups", "misspell", "named_meanings"]


class System(NamedTuple):
    """An organ system: its code letter and the words around its mentions, per register."""

    letter: str
    formal: tuple[str, ...]
    clinical: tuple[str, ...]
    lay: tuple[str, ...]


class Modifier(NamedTuple):
    """A course or degree: its names, and the words that hint at it without naming it."""

    name: str
    latin: str
    clip: str
    lay: tuple[str, ...]
    cues: tuple[str, ...]
    lay_cues: tuple[str, ...]


class _Site(NamedTuple):
    noun: str
    root: str
    adjective: str
    genitive: str
    clip: str
    lay: tuple[str, ...]
    system: str
    paired: bool = False


class _Process(NamedTuple):
    noun: str
    suffix: str
    latin: str
    gender: str
    clip: str
    plain: str
    lay: tuple[str, ...]
    signs: tuple[str, ...]
    lay_signs: tuple[str, ...]


class _Named(NamedTuple):
    initials: str
    name: str
    latin: str
    lay: tuple[str, ...]
    system: str


# Tables read best with one row per line.
# ruff: noqa: E501
# fmt: off
SYSTEMS: dict[str, System] = {
    "urinary": System("N", ("glomerular filtration", "proteinuria", "dialysis"), ("nephrology", "UOP", "creat 1.4"), ("pee", "urine", "dialysis")),
    "genital": System("O", ("fertility", "hormonal cycle", "pelvic"), ("gyn", "GU exam", "pelvic exam"), ("periods", "sex", "getting pregnant")),
    "hepatic": System("B", ("bilirubin", "transaminase", "portal"), ("LFTs", "icterus", "hepatology"), ("yellow skin", "drinking", "bile")),
    "digestive": System("K", ("gut motility", "mucosal", "intestinal flora"), ("GI", "NPO", "stool guaiac"), ("eating", "toilet", "meals")),
    "cardiac": System("I", ("ejection fraction", "coronary", "hemodynamic"), ("cards", "EKG", "EF 40"), ("heartbeat", "blood pressure", "palpitations")),
    "respiratory": System("J", ("spirometry", "alveolar", "ventilation"), ("pulm", "O2 sat", "CXR"), ("breathing", "cough", "inhaler")),
    "nervous": System("G", ("neuronal", "cortical", "myelin"), ("neuro", "CN II-XII", "MRI head"), ("headaches", "balance", "foggy thinking")),
    "skeletal": System("M", ("gait", "synovial", "cartilage"), ("ortho", "ROM", "XR"), ("walking", "stairs", "lifting")),
    "skin": System("L", ("epidermal", "keratinocyte", "pruritus"), ("derm", "wound care", "skin exam"), ("itching", "cream", "scratching")),
    "eye": System("H", ("visual acuity", "intraocular", "slit lamp"), ("ophtho", "VA 20/40", "PERRL"), ("blurry vision", "glasses", "eye drops")),
    "ear-nose-throat": System("E", ("audiometry", "laryngoscope", "upper airway"), ("ENT", "TMs clear", "audio"), ("hearing", "swallowing", "runny nose")),
    "endocrine": System("D", ("insulin", "hormone secretion", "immune"), ("endo", "TSH", "A1c"), ("tiredness", "weight", "sugar")),
}

MODIFIERS: dict[str, Modifier] = {
    "acute": Modifier("acute", "acut", "ac", ("sudden",), ("of rapid onset", "within hours", "at emergency admission"), ("all of a sudden", "overnight")),
    "chronic": Modifier("chronic", "chronic", "chr", ("long-term", "constant"), ("over many years", "long-standing", "at ten-year follow-up"), ("for years", "since my twenties")),
    "recurrent": Modifier("recurrent", "recidiv", "recur", ("returning",), ("after relapse", "in repeated episodes", "with each new bout"), ("again and again", "every spring")),
    "severe": Modifier("severe", "sever", "sev", ("bad", "chronic", "acute"), ("of high grade", "requiring intensive care"), ("ten out of ten", "worst ever")),
}

_SITES: tuple[_Site, ...] = (
    _Site("kidney", "nephr", "renal", "renis", "ren", ("kidney", "kidneys"), "urinary", True),
    _Site("bladder", "cyst", "vesical", "vesicae", "vesic", ("waterworks", "bladder"), "urinary"),
    _Site("ureter", "ureter", "ureteral", "ureteris", "uret", ("kidney tube",), "urinary", True),
    _Site("urethra", "urethr", "urethral", "urethrae", "urethr", ("pee tube", "pipe"), "urinary"),
    _Site("prostate", "prostat", "prostatic", "prostatae", "prost", ("prostate", "man gland"), "genital"),
    _Site("testis", "orch", "testicular", "testis", "testic", ("ball", "nut"), "genital", True),
    _Site("uterus", "metr", "uterine", "uteri", "ut", ("womb",), "genital"),
    _Site("ovary", "oophor", "ovarian", "ovarii", "ov", ("ovary", "egg sac"), "genital", True),
    _Site("fallopian tube", "salping", "tubal", "tubae", "FT", ("tubes",), "genital", True),
    _Site("vagina", "colp", "vaginal", "vaginae", "vag", ("down below", "private parts"), "genital"),
    _Site("breast", "mast", "mammary", "mammae", "br", ("boob", "chest"), "genital", True),
    _Site("liver", "hepat", "hepatic", "hepatis", "hep", ("liver",), "hepatic"),
    _Site("gallbladder", "cholecyst", "cholecystic", "vesicae felleae", "GB", ("gall", "gall sac"), "hepatic"),
    _Site("bile duct", "cholangi", "biliary", "ductus biliaris", "CBD", ("bile pipe",), "hepatic"),
    _Site("pancreas", "pancreat", "pancreatic", "pancreatis", "panc", ("pancreas", "sugar gland"), "hepatic"),
    _Site("stomach", "gastr", "gastric", "ventriculi", "gastr", ("gut", "tummy"), "digestive"),
    _Site("small intestine", "enter", "enteric", "intestini", "SB", ("bowel", "insides"), "digestive"),
    _Site("colon", "col", "colonic", "coli", "col", ("large gut", "guts"), "digestive"),
    _Site("rectum", "proct", "rectal", "recti", "rect", ("bottom", "back passage"), "digestive"),
    _Site("esophagus", "esophag", "esophageal", "oesophagi", "esoph", ("food pipe", "gullet"), "digestive"),
    _Site("appendix", "appendic", "appendiceal", "appendicis", "appy", ("appendix",), "digestive"),
    _Site("abdomen", "lapar", "abdominal", "abdominis", "abd", ("stomach", "belly"), "digestive"),
    _Site("mouth", "stomat", "oral", "oris", "po", ("mouth", "cheek"), "ear-nose-throat"),
    _Site("tongue", "gloss", "lingual", "linguae", "ling", ("tongue",), "ear-nose-throat"),
    _Site("gum", "gingiv", "gingival", "gingivae", "ging", ("gums", "teeth"), "ear-nose-throat"),
    _Site("heart", "cardi", "cardiac", "cordis", "card", ("heart", "ticker"), "cardiac"),
    _Site("pericardium", "pericardi", "pericardial", "pericardii", "pericard", ("heart sac",), "cardiac"),
    _Site("artery", "arteri", "arterial", "arteriae", "art", ("blood vessel", "pipes"), "cardiac"),
    _Site("vein", "phleb", "venous", "venae", "ven", ("vein", "leg veins"), "cardiac"),
    _Site("lung", "pneumon", "pulmonary", "pulmonis", "pulm", ("lung", "chest"), "respiratory", True),
    _Site("bronchus", "bronch", "bronchial", "bronchi", "bronch", ("airway", "tubes"), "respiratory", True),
    _Site("pleura", "pleur", "pleural", "pleurae", "pleur", ("lung lining", "side"), "respiratory", True),
    _Site("trachea", "trache", "tracheal", "tracheae", "trach", ("windpipe", "pipe"), "respiratory"),
    _Site("larynx", "laryng", "laryngeal", "laryngis", "laryng", ("throat", "voice box"), "ear-nose-throat"),
    _Site("throat", "pharyng", "pharyngeal", "pharyngis", "phar", ("gullet", "swallow"), "ear-nose-throat"),
    _Site("nose", "rhin", "nasal", "nasi", "nas", ("nose", "sinus"), "ear-nose-throat"),
    _Site("ear", "ot", "aural", "auris", "aur", ("ear", "hearing"), "ear-nose-throat", True),
    _Site("eardrum", "myring", "tympanic", "membranae tympani", "TM", ("drum", "inner ear"), "ear-nose-throat", True),
    _Site("tonsil", "tonsill", "tonsillar", "tonsillae", "tons", ("tonsils", "glands"), "ear-nose-throat", True),
    _Site("brain", "encephal", "cerebral", "cerebri", "cereb", ("head", "brain"), "nervous"),
    _Site("meninges", "mening", "meningeal", "meningum", "mening", ("brain lining",), "nervous"),
    _Site("spinal cord", "myel", "spinal", "medullae", "SC", ("cord", "spine"), "nervous"),
    _Site("nerve", "neur", "neural", "nervi", "neur", ("nerves", "nerve"), "nervous"),
    _Site("spine", "spondyl", "vertebral", "spinae", "vert", ("back", "lower back"), "skeletal"),
    _Site("joint", "arthr", "articular", "articuli", "artic", ("joints", "knuckles"), "skeletal"),
    _Site("bone", "oste", "osseous", "ossis", "oss", ("bone", "bones"), "skeletal"),
    _Site("muscle", "my", "muscular", "musculi", "musc", ("muscle", "limbs"), "skeletal"),
    _Site("knee", "gon", "genual", "genus", "kn", ("knee",), "skeletal", True),
    _Site("hip", "cox", "coxal", "coxae", "hp", ("hip", "side"), "skeletal", True),
    _Site("foot", "pod", "pedal", "pedis", "ft", ("foot", "ankle"), "skeletal", True),
    _Site("skin", "dermat", "cutaneous", "cutis", "cut", ("skin", "complexion"), "skin"),
    _Site("nail", "onych", "ungual", "unguis", "ung", ("nail", "toe"), "skin"),
    _Site("eye", "ophthalm", "ocular", "oculi", "oc", ("eye", "eyes"), "eye", True),
    _Site("eyelid", "blephar", "palpebral", "palpebrae", "palp", ("lid", "eyes"), "eye", True),
    _Site("cornea", "kerat", "corneal", "corneae", "corn", ("front of eye",), "eye", True),
    _Site("thyroid", "thyroid", "thyroidal", "thyroideae", "thyr", ("neck gland", "neck"), "endocrine"),
    _Site("adrenal gland", "adren", "adrenal", "glandulae suprarenalis", "adr", ("stress gland",), "endocrine", True),
    _Site("lymph node", "lymphaden", "nodal", "nodi lymphatici", "LN", ("glands", "neck"), "endocrine", True),
    _Site("spleen", "splen", "splenic", "lienis", "spl", ("spleen", "side"), "endocrine"),
)

_PROCESSES: tuple[_Process, ...] = (
    _Process("inflammation", "itis", "inflammatio", "f", "inflam", "irritation", ("swelling", "redness"), ("leukocytosis", "cytokine release"), ("red and hot", "steroids")),
    _Process("pain", "algia", "dolor", "m", "pn", "ache", ("soreness", "hurting"), ("analgesia", "nociception"), ("painkillers", "cannot sleep")),
    _Process("neoplasm", "oma", "tumor", "m", "neopl", "growth", ("lump", "cancer"), ("biopsy grade", "metastasis"), ("chemo", "the oncologist")),
    _Process("disorder", "pathy", "morbus", "m", "dz", "disease", ("trouble", "problems"), ("dysfunction score", "natural history"), ("many tests", "no answers")),
    _Process("removal", "ectomy", "exstirpatio", "f", "resxn", "excision", ("surgery", "taking out"), ("resected specimen", "anesthesia"), ("stitches", "the surgeon")),
    _Process("endoscopy", "scopy", "inspectio", "f", "scope", "inspection", ("camera test", "look inside"), ("fiberoptic", "visualized"), ("sedation", "a little camera")),
    _Process("repair", "plasty", "reconstructio", "f", "recon", "reconstruction", ("fixing", "rebuild"), ("graft", "flap"), ("rehab", "new one")),
    _Process("incision", "tomy", "incisio", "f", "incis", "opening", ("cut", "surgery"), ("scalpel", "drainage"), ("scar", "slit")),
    _Process("hemorrhage", "rrhagia", "haemorrhagia", "f", "hem", "bleeding", ("blood", "bleed"), ("transfusion", "hemoglobin drop"), ("bright red", "clots")),
    _Process("edema", "", "oedema", "n", "edem", "swelling", ("puffiness", "water"), ("fluid retention", "diuretics"), ("water pills", "tight shoes")),
    _Process("calculus", "lithiasis", "calculus", "m", "calc", "stone", ("gravel", "stones"), ("lithotripsy", "crystals"), ("passing it", "tiny rocks")),
    _Process("sclerosis", "sclerosis", "induratio", "f", "scler", "hardening", ("stiffness", "scarring"), ("fibrous tissue", "collagen"), ("hard as wood", "tight")),
    _Process("enlargement", "megaly", "dilatatio", "f", "enlg", "dilation", ("growth", "bulge"), ("volumetry", "palpable margin"), ("sticking out", "twice the size")),
    _Process("softening", "malacia", "mollities", "f", "malac", "weakening", ("weakness", "mush"), ("mineral loss", "reduced density"), ("vitamin D", "gives way")),
    _Process("narrowing", "stenosis", "strictura", "f", "sten", "constriction", ("blockage", "tight spot"), ("lumen diameter", "stent"), ("a stent", "squeezed")),
    _Process("obstruction", "", "obstructio", "f", "obstr", "blockage", ("clog", "jam"), ("occluded", "bypass"), ("nothing moves", "plugged")),
    _Process("rupture", "rrhexis", "ruptura", "f", "rupt", "tear", ("burst", "split"), ("trauma", "shear"), ("it popped", "the accident")),
    _Process("ulcer", "", "ulcus", "n", "ulc", "sore", ("hole", "raw spot"), ("erosion", "crater"), ("acid", "will not heal")),
    _Process("perforation", "", "perforatio", "f", "perf", "hole", ("tear", "puncture"), ("free air", "leakage"), ("emergency", "leaked")),
    _Process("prolapse", "ptosis", "prolapsus", "m", "prol", "descent", ("sagging", "drop"), ("ligament laxity", "pessary"), ("hanging", "slipped down")),
    _Process("cyst", "", "cystis", "f", "cyst", "lump", ("bump", "blister"), ("fluid-filled sac", "aspiration"), ("drained it", "squishy")),
    _Process("abscess", "", "abscessus", "m", "absc", "pus", ("boil", "sore"), ("purulent culture", "loculated"), ("oozing", "smelly")),
    _Process("atrophy", "", "atrophia", "f", "atr", "wasting", ("shrinking", "weakness"), ("volume loss", "thinning"), ("smaller", "withered")),
    _Process("failure", "", "insufficientia", "f", "fail", "insufficiency", ("shutdown", "giving up"), ("transplant", "decompensation"), ("the waiting list", "stopped working")),
    _Process("infection", "", "infectio", "f", "infxn", "sepsis", ("bug", "irritation"), ("pathogen", "antibiotics"), ("fever", "antibiotics")),
    _Process("paralysis", "plegia", "paralysis", "f", "plg", "palsy", ("numbness", "dead feeling"), ("motor deficit", "denervation"), ("cannot move", "pins and needles")),
)

_NAMED: tuple[_Named, ...] = (
    _Named("MS", "multiple sclerosis", "sclerosis disseminata", ("the ms monster",), "nervous"),
    _Named("MS", "mitral stenosis", "stenosis mitralis", ("tight heart valve",), "cardiac"),
    _Named("MS", "muscle spasm", "spasmus musculi", ("charley horse", "cramp"), "skeletal"),
    _Named("RA", "rheumatoid arthritis", "arthritis rheumatica", ("rheumatism", "crippling joints"), "skeletal"),
    _Named("RA", "right atrial enlargement", "dilatatio atrii", ("big heart chamber",), "cardiac"),
    _Named("RA", "reactive airways", "asthma reactivum", ("wheezing",), "respiratory"),
    _Named("PE", "pulmonary embolism", "embolia pulmonis", ("lung clot",), "respiratory"),
    _Named("PE", "pre-eclampsia", "praeeclampsia", ("toxemia", "pregnancy blood pressure"), "genital"),
    _Named("MI", "myocardial infarction", "infarctus cordis", ("heart attack", "coronary"), "cardiac"),
    _Named("MI", "mesenteric ischemia", "ischaemia mesenterii", ("gut stroke",), "digestive"),
    _Named("CF", "cystic fibrosis", "fibrosis cystica", ("sticky lungs",), "respiratory"),
    _Named("CF", "cirrhotic fibrosis", "cirrhosis", ("scarred up inside", "drinker disease"), "hepatic"),
    _Named("AD", "alzheimer dementia", "dementia senilis", ("going senile", "old timers"), "nervous"),
    _Named("AD", "atopic dermatitis", "eczema", ("eczema", "itchy rash"), "skin"),
    _Named("AS", "aortic stenosis", "stenosis aortae", ("stiff valve",), "cardiac"),
    _Named("AS", "ankylosing spondylitis", "spondylitis ankylopoetica", ("bamboo back", "frozen spine"), "skeletal"),
    _Named("PD", "parkinson disease", "paralysis agitans", ("the shakes", "shaking palsy"), "nervous"),
    _Named("PD", "peptic ulcer disease", "ulcus pepticum", ("acid stomach",), "digestive"),
    _Named("DM", "diabetes mellitus", "diabetes mellitus", ("sugar", "high sugar"), "endocrine"),
    _Named("DM", "dermatomyositis", "dermatomyositis", ("purple rash",), "skin"),
    _Named("DM", "diabetic maculopathy", "maculopathia diabetica", ("sugar eyes",), "eye"),
    _Named("CD", "crohn disease", "enteritis regionalis", ("crohns", "angry bowel"), "digestive"),
    _Named("CD", "contact dermatitis", "dermatitis contacta", ("nickel rash", "hives"), "skin"),
    _Named("RF", "rheumatic fever", "febris rheumatica", ("growing pains",), "cardiac"),
    _Named("RF", "renal fibrosis", "fibrosis renis", ("scarred kidneys",), "urinary"),
    _Named("RD", "retinal detachment", "ablatio retinae", ("curtain in my eye",), "eye"),
    _Named("RD", "respiratory distress", "dyspnoea", ("gasping", "winded"), "respiratory"),
    _Named("UC", "ulcerative colitis", "colitis ulcerosa", ("bloody runs",), "digestive"),
    _Named("UC", "urothelial carcinoma", "carcinoma vesicae", ("pee cancer",), "urinary"),
    _Named("OM", "otitis media", "otitis media", ("earache", "glue ear"), "ear-nose-throat"),
    _Named("OM", "osteomyelitis", "osteomyelitis", ("rotten bone",), "skeletal"),
    _Named("PID", "pelvic inflammatory disease", "parametritis", ("pelvic bug",), "genital"),
    _Named("PID", "prolapsed intervertebral disc", "prolapsus disci", ("slipped disc",), "skeletal"),
    _Named("HA", "hemolytic anemia", "anaemia haemolytica", ("tired blood", "low iron"), "endocrine"),
    _Named("HA", "headache", "cephalalgia", ("splitting head", "migrane"), "nervous"),
)
# fmt: on

_PROCEDURES = {"removal", "endoscopy", "repair", "incision"}
_GENDERS = {"f": "a", "m": "us", "n": "um"}
_SOUNDS = (("ph", "f"), ("y", "i"), ("ae", "e"), ("ie", "ei"), ("ck", "k"), ("ch", "k"), ("c", "s"))


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a mention can mean, whatever an ontology calls it.

    Args:
        key: Its identity, the same in every corpus: ``"kidney/inflammation/acute"``.
        code: A code whose parts stand for system, process, site and modifier.
        system: Name of its organ system, a key of :data:`SYSTEMS`.
        modifier: Name of its modifier, a key of :data:`MODIFIERS`, or ``""``.
        bare: The key without its modifier.
        paired: Whether the site has a left and a right.
        descriptive: The name a coding system gives: ``"acute inflammation of kidney"``.
        colloquial: The name a patients' vocabulary gives: ``"acute kidney swelling"``.
        names: The names per register: ``formal``, ``plain``, ``latin``, ``clipped``, ``initials``
            and ``lay``, each with at least one name.
        signs: Formal words that go with the process.
        lay_signs: Lay words that go with the process.
    """

    key: str
    code: str
    system: str
    modifier: str
    bare: str
    paired: bool
    descriptive: str
    colloquial: str
    names: dict[str, tuple[str, ...]]
    signs: tuple[str, ...]
    lay_signs: tuple[str, ...]


def named_meanings() -> Iterator[Meaning]:
    """The named conditions, those of one abbreviation after one another.

    Yields:
        One meaning per named condition.
    """
    for index, row in enumerate(_NAMED):
        words = row.name.split()
        inverted = f"{words[-1]}, {' '.join(words[:-1])}" if words[1:] else row.name
        yield Meaning(
            key=row.name,
            code=f"{SYSTEMS[row.system].letter}99.{index:02d}0",
            system=row.system,
            modifier="",
            bare=row.name,
            paired=False,
            descriptive=inverted,
            colloquial=row.lay[0],
            names={
                "formal": (row.name,),
                "plain": (inverted,),
                "latin": (row.latin,),
                "clipped": (" ".join(word[:4] for word in words),),
                "initials": (row.initials,),
                "lay": row.lay,
            },
            signs=("prevalence", "diagnostic criteria"),
            lay_signs=("diagnosed", "support group"),
        )


def make_groups(seed: int, modifiers: tuple[str, ...]) -> Iterator[tuple[Meaning, ...]]:
    """Every site with every process, in an order drawn from the seed.

    Args:
        seed: Seed of the order, which does not depend on ``modifiers``.
        modifiers: The modifiers of each disease, keys of :data:`MODIFIERS`.

    Yields:
        The meanings of one site and process: the bare one, then, but for procedures, one per
        modifier.
    """
    pairs = [(site, process) for site in range(len(_SITES)) for process in range(len(_PROCESSES))]
    random.Random(f"groups:{seed}").shuffle(pairs)
    for site, process in pairs:
        courses = () if _PROCESSES[process].noun in _PROCEDURES else modifiers
        yield tuple(_compose(site, process, name) for name in ("", *courses))


def _compose(site_index: int, process_index: int, modifier: str) -> Meaning:
    site, process = _SITES[site_index], _PROCESSES[process_index]
    adjectival = f"{site.adjective} {process.noun}"
    formal: tuple[str, ...] = (adjectival,)
    if process.suffix:
        formal = (_join(site.root, process.suffix), adjectival)
    plain: tuple[str, ...] = (f"{site.noun} {process.plain}", f"{process.plain} of the {site.noun}")
    latin = f"{process.latin} {site.genitive}"
    clipped: tuple[str, ...] = (f"{site.clip} {process.clip}", f"{site.adjective} {process.clip}")
    lay = (
        *(f"{place} {word}" for word in process.lay for place in site.lay),
        *(f"{word} in my {place}" for word in process.lay for place in site.lay),
    )
    descriptive = f"{process.noun} of {site.noun}"
    colloquial = lay[0]
    level = 0
    if modifier:
        course = MODIFIERS[modifier]
        level = list(MODIFIERS).index(modifier) + 1
        formal = tuple(f"{course.name} {name}" for name in formal)
        plain = tuple(f"{course.name} {name}" for name in plain)
        latin = f"{latin} {course.latin}{_GENDERS[process.gender]}"
        clipped = tuple(f"{course.clip} {name}" for name in clipped)
        lay = tuple(f"{word} {name}" for name in lay for word in course.lay)
        descriptive = f"{course.name} {descriptive}"
        colloquial = f"{course.name} {colloquial}"
    bare = f"{site.noun}/{process.noun}"
    return Meaning(
        key=f"{bare}/{modifier}" if modifier else bare,
        code=f"{SYSTEMS[site.system].letter}{process_index:02d}.{site_index:02d}{level}",
        system=site.system,
        modifier=modifier,
        bare=bare,
        paired=site.paired,
        descriptive=descriptive,
        colloquial=colloquial,
        names={
            "formal": formal,
            "plain": plain,
            "latin": (latin,),
            "clipped": clipped,
            "initials": ("".join(word[0] for word in formal[-1].split()).upper(),),
            "lay": lay,
        },
        signs=process.signs,
        lay_signs=process.lay_signs,
    )


def _join(root: str, suffix: str) -> str:
    if suffix[0] not in "aeiou":
        return f"{root}o{suffix}"
    # cardi + itis is carditis.
    return (root[:-1] if root[-1] == suffix[0] else root) + suffix


def misspell(text: str, rng: random.Random) -> str:
    """Spell one of the longer words of a text wrongly.

    Args:
        text: One or more words.
        rng: Source of the choices.

    Returns:
        The text with one word misspelt: written as it sounds, or with letters swapped, left out or
        doubled. A text with no word of four letters comes back as it is.
    """
    words = list(re.finditer(r"[^\W\d_]{4,}", text))
    if not words:
        return text
    match = rng.choice(words)
    word = match.group()
    heard = [word.replace(right, wrong, 1) for right, wrong in _SOUNDS if right in word]
    if heard and rng.random() < 0.5:
        wrong_word = rng.choice(heard)
    else:
        at = rng.randrange(1, len(word) - 1)
        head, here, following, tail = word[:at], word[at], word[at + 1], word[at + 2 :]
        slips = (following + here, following, here * 2 + following)
        wrong_word = head + rng.choice([slip for slip in slips if slip != here + following]) + tail
    return text[: match.start()] + wrong_word + text[match.end() :]
