"""Coded meaning of label names, offline: SNOMED CT codes as DICOM and 3D Slicer use them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Code:
    """One coded concept: its value, the scheme that defines it (SCT, DCM, ...) and its meaning in words."""

    value: str
    scheme: str
    meaning: str

    @classmethod
    def from_json(cls, triple: list[str] | tuple[str, ...]) -> Code:
        """From `[value, scheme, meaning]`."""
        value, scheme, meaning = triple
        return cls(str(value), str(scheme), str(meaning))

    def to_json(self) -> list[str]:
        """`[value, scheme, meaning]`."""
        return [self.value, self.scheme, self.meaning]


@dataclass(frozen=True)
class Meaning:
    """A segment's category and type, and a modifier such as the side of the body."""

    category: Code
    type: Code
    modifier: Code | None = None

    @property
    def is_generic(self) -> bool:
        """Whether this is the code that stands for anything."""
        return self.type == GENERIC.type

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Meaning:
        """From the keys `category`, `type` and perhaps `modifier` of a row of the label table."""
        category = Code.from_json(row["category"]) if row.get("category") else STRUCTURE
        modifier = Code.from_json(row["modifier"]) if row.get("modifier") else None
        return cls(category, Code.from_json(row["type"]), modifier)

    def to_json(self) -> dict[str, list[str]]:
        """The keys of a row of the label table."""
        row = {"category": self.category.to_json(), "type": self.type.to_json()}
        return row if self.modifier is None else {**row, "modifier": self.modifier.to_json()}


STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
TISSUE = Code("85756007", "SCT", "Tissue")
SUBSTANCE = Code("91720002", "SCT", "Body Substance")
ABNORMAL = Code("49755003", "SCT", "Morphologically Altered Structure")
LEFT = Code("7771000", "SCT", "Left")
RIGHT = Code("24028007", "SCT", "Right")
ANTERIOR = Code("255549009", "SCT", "Anterior")
POSTERIOR = Code("255551008", "SCT", "Posterior")
GENERIC = Meaning(TISSUE, Code("85756007", "SCT", "Tissue"))


def look_up(name: str) -> Meaning:
    """The meaning of a label's name, by an exact match of its words; the generic code where none is known.

    "Left kidney", "kidney_l" and "kidney left" give Kidney with the modifier Left; "hippocampus anterior" gives
    Hippocampus with the modifier Anterior. Where a name has both, the side is kept, as there is one modifier.
    Nothing fuzzy: a wrong code is worse than a generic one.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    whole = CONCEPTS.get(" ".join(words))  # first, since "left ventricle" is a structure of its own
    if whole is not None:
        return Meaning(*whole)
    modifiers = [*(word for word in words if word in SIDES), *(word for word in words if word in HALVES)]
    known = CONCEPTS.get(" ".join(word for word in words if word not in SIDES and word not in HALVES))
    if known is None or len({SIDES[word] for word in words if word in SIDES}) > 1:
        return GENERIC
    return Meaning(*known, {**SIDES, **HALVES}[modifiers[0]] if modifiers else None)


SIDES = {"left": LEFT, "l": LEFT, "lh": LEFT, "right": RIGHT, "r": RIGHT, "rh": RIGHT}
HALVES = {"anterior": ANTERIOR, "posterior": POSTERIOR}

# Value, meaning and the names it goes by. Codes and meanings are DICOM's (PS3.16, as pydicom carries them); the
# few that DICOM does not list (myocardium, back and hip muscles, ribs, S1) are those of TotalSegmentator's table.
_STRUCTURES = """
12738006 Brain: brain, whole brain
372073000 Cerebral hemisphere: cerebral hemisphere, hemisphere
5366008 Hippocampus: hippocampus, hippocampi, hippocampus proper
40146001 Cerebral cortex: cerebral cortex, cortical gray matter, cortical grey matter, cortical gm
389081007 Gray Matter: gray matter, grey matter, gm
389080008 White Matter: white matter, wm
68523003 Cerebral White Matter: cerebral white matter
33060004 Cerebellar White Matter: cerebellar white matter, cerebellum white matter
35764002 Brain ventricle: brain ventricle, brain ventricles, ventricular system
66720007 Lateral Ventricle: lateral ventricle, lateral ventricles
49841001 Third ventricle: third ventricle, 3rd ventricle
35918002 Fourth Ventricle: fourth ventricle, 4th ventricle
80621003 Choroid plexus: choroid plexus
113305005 Cerebellum: cerebellum
119238007 Brain Stem: brain stem, brainstem
61962009 Midbrain: midbrain
42695009 Thalamus: thalamus, thalami, thalamus proper
11000004 Caudate Nucleus: caudate nucleus, caudate
89278009 Putamen: putamen
14738005 Globus Pallidus: globus pallidus, pallidum
4958002 Amygdala: amygdala
427667007 Nucleus Accumbens: nucleus accumbens, accumbens, accumbens area
70007007 Substantia nigra: substantia nigra
88442005 Corpus callosum: corpus callosum
37035000 Cingulum: cingulum
56329008 Pituitary: pituitary, pituitary gland
45793000 Pineal Gland: pineal gland
36169008 Insula: insula
83251001 Frontal lobe: frontal lobe
16630005 Parietal lobe: parietal lobe
78277001 Temporal lobe: temporal lobe
31065004 Occipital lobe: occipital lobe
1231004 Meninges: meninges
2748008 Spinal cord: spinal cord
12958003 Spinal cord gray matter: spinal cord gray matter, spinal cord grey matter
27088001 Spinal cord white matter: spinal cord white matter
18234004 Optic nerve: optic nerve
244453006 Optic chiasm: optic chiasm
53238003 Optic tract: optic tract
81016008 Optic nerve head: optic nerve head, optic disc, optic disk
81745001 Eye: eye, eyes, eyeball
5665001 Retina: retina
78076003 Lens: lens
80891009 Heart: heart
87878005 Left ventricle: left ventricle, heart ventricle left, left ventricle of heart
53085002 Right ventricle: right ventricle, heart ventricle right, right ventricle of heart
82471001 Left atrium: left atrium, heart atrium left
73829009 Right atrium: right atrium, heart atrium right
74281007 Myocardium: myocardium, heart myocardium
49848007 Left Ventricle Myocardium: left ventricle myocardium, left ventricular myocardium
76848001 Pericardium: pericardium
15825003 Aorta: aorta
54247002 Ascending aorta: ascending aorta
57034009 Aortic arch: aortic arch
7832008 Abdominal aorta: abdominal aorta
81040000 Pulmonary artery: pulmonary artery
122972007 Pulmonary vein: pulmonary vein
64131007 Inferior vena cava: inferior vena cava
48345005 Superior vena cava: superior vena cava
32764006 Portal vein: portal vein
35819009 Splenic vein: splenic vein
8993003 Hepatic vein: hepatic vein
41801008 Coronary artery: coronary artery, coronary arteries
32062004 Common carotid artery: common carotid artery
86117002 Internal carotid artery: internal carotid artery
69105007 Carotid Artery: carotid artery
73634005 Common iliac artery: common iliac artery, iliac artery
46027005 Common iliac vein: common iliac vein, iliac vein, iliac vena
8887007 Brachiocephalic vein: brachiocephalic vein
59820001 Blood Vessel: blood vessel, blood vessels, vessel, vessels, retinal vessel, retinal vessels
51114001 Artery: artery, arteries
29092000 Vein: vein, veins
91728009 Nerve: nerve, nerves
39607008 Lung: lung, lungs
45653009 Upper lobe of lung: upper lobe of lung, lung upper lobe
90572001 Lower lobe of lung: lower lobe of lung, lung lower lobe
72481006 Middle lobe of right lung: middle lobe of right lung, lung middle lobe right, lung middle lobe
44567001 Trachea: trachea
955009 Bronchus: bronchus, bronchi
3120008 Pleura: pleura
5798000 Diaphragm: diaphragm
32849002 Esophagus: esophagus, oesophagus
69695003 Stomach: stomach
38848004 Duodenum: duodenum
30315005 Small intestine: small intestine, small bowel
14742008 Large intestine: large intestine, large bowel
71854001 Colon: colon
34402009 Rectum: rectum
66754008 Appendix: appendix
10200004 Liver: liver
28231008 Gallbladder: gallbladder, gall bladder
28273000 Bile duct: bile duct
78961009 Spleen: spleen
15776009 Pancreas: pancreas
69930009 Pancreatic duct: pancreatic duct
64033007 Kidney: kidney, kidneys
25990002 Renal pelvis: renal pelvis
23451007 Adrenal gland: adrenal gland, adrenal glands, adrenal
89837001 Bladder: bladder, urinary bladder
87953007 Ureter: ureter
13648007 Urethra: urethra
41216001 Prostate: prostate, prostate gland
279706003 Peripheral zone of the prostate: prostate peripheral zone, peripheral zone of the prostate
399384005 Transition zone of the prostate: prostate transition zone, transition zone of the prostate
64739004 Seminal Vesicle: seminal vesicle, seminal vesicles
40689003 Testis: testis, testes, testicle
35039007 Uterus: uterus
15497006 Ovary: ovary, ovaries
76784001 Vagina: vagina
78067005 Placenta: placenta
76752008 Breast: breast, breasts
69748006 Thyroid: thyroid, thyroid gland
45289007 Parotid gland: parotid gland, parotid
54019009 Submandibular gland: submandibular gland
9875009 Thymus: thymus
4596009 Larynx: larynx
54066008 Pharynx: pharynx
21974007 Tongue: tongue
59441001 Lymph Node: lymph node, lymph nodes
89546000 Skull: skull
91609006 Mandible: mandible
70925003 Maxilla: maxilla
38199008 Tooth: tooth, teeth
51282000 Vertebra: vertebra, vertebrae
65985001 S1 vertebra: s1 vertebra, vertebra s1, vertebrae s1
54735007 Sacrum: sacrum
64688005 Coccyx: coccyx
113197003 Rib: rib, ribs
56873002 Sternum: sternum
51299004 Clavicle: clavicle, clavicula
79601000 Scapula: scapula
85050009 Humerus: humerus
62413002 Radius: radius
23416004 Ulna: ulna
71341001 Femur: femur
64234005 Patella: patella
12611008 Tibia: tibia
87342007 Fibula: fibula
29836001 Hip: hip
244849004 Deep muscle of back: autochthon
68455001 Iliopsoas muscle: iliopsoas, iliopsoas muscle
181674001 Gluteus maximus muscle: gluteus maximus
78333006 Gluteus medius muscle: gluteus medius
84640000 Nucleus: nucleus, nuclei, cell nucleus, cell nuclei
4421005 Cell: cell, cells
"""
_TISSUES = """
55603005 Fat: fat, adipose tissue
71616004 Muscle: muscle, muscles
127954009 Skeletal muscle: skeletal muscle
39937001 Skin: skin
272673000 Bone: bone, bones
14016003 Bone Marrow: bone marrow
309312004 Cartilage: cartilage
74135004 Meniscus: meniscus, menisci
13024002 Tendon: tendon
52082005 Ligament: ligament
21793004 Connective tissue: connective tissue, stroma
71966008 Subcutaneous tissue: subcutaneous tissue
12402003 Scar tissue: scar tissue, scar
"""
_SUBSTANCES = """
65216001 Cerebrospinal Fluid: cerebrospinal fluid, csf
87612001 Blood: blood
"""
_ABNORMALITIES = """
108369006 Neoplasm: neoplasm, tumor, tumour, tumors, tumours, whole tumor, whole tumour, tumor core, tumour core, \
enhancing tumor, enhancing tumour
52988006 Lesion: lesion, lesions
4147007 Mass: mass
27925004 Nodule: nodule, nodules
367643001 Cyst: cyst, cysts
79654002 Edema: edema, oedema, peritumoral edema, peritumoural oedema
6574001 Necrosis: necrosis
50960005 Hemorrhage: hemorrhage, haemorrhage
35566002 Hematoma: hematoma, haematoma
85659009 Aneurysm: aneurysm
396339007 Thrombus: thrombus
44132006 Abscess: abscess
128462008 Metastasis: metastasis, metastases
41699000 Effusion: effusion
60046008 Pleural effusion: pleural effusion
"""
_VERTEBRAE = (
    "C1 14806007, C2 39976000, C3 113205007, C4 5329002, C5 36978003, C6 36054005, C7 87391001, T1 64864005, "
    "T2 53733008, T3 1626008, T4 73071006, T5 56401006, T6 45296009, T7 62487009, T8 11068009, T9 82687006, "
    "T10 7610001, T11 12989004, T12 23215003, L1 66794005, L2 14293000, L3 36470004, L4 11994002, L5 49668003"
)
_RIBS = (
    "First 48535007, Second 78247007, Third 25888004, Fourth 25523003, Fifth 15339008, Sixth 59558009, "
    "Seventh 24915002, Eighth 5953002, Ninth 22565002, Tenth 77644006, Eleventh 58830002, Twelfth 43993008"
)


def _concepts() -> dict[str, tuple[Code, Code]]:
    concepts: dict[str, tuple[Code, Code]] = {}

    def add(category: Code, value: str, meaning: str, names: list[str]) -> None:
        concepts.update({name.strip().lower(): (category, Code(value, "SCT", meaning)) for name in names})

    kinds = ((STRUCTURE, _STRUCTURES), (TISSUE, _TISSUES), (SUBSTANCE, _SUBSTANCES), (ABNORMAL, _ABNORMALITIES))
    for category, lines in kinds:
        for line in lines.strip().splitlines():
            code, names = line.split(":")
            value, meaning = code.split(" ", 1)
            add(category, value, meaning, names.split(","))
    for entry in _VERTEBRAE.split(", "):
        level, value = entry.split()
        add(STRUCTURE, value, f"{level} vertebra", [f"{level} vertebra", f"vertebra {level}", f"vertebrae {level}"])
    for number, entry in enumerate(_RIBS.split(", "), start=1):
        ordinal, value = entry.split()
        add(STRUCTURE, value, f"{ordinal} rib", [f"{ordinal} rib", f"rib {number}"])
    return concepts


CONCEPTS = _concepts()
"""Lower-case words of a name to its category and type."""
