"""The names of the known sets, the nearest one to a misspelled name, and names in a sentence."""

import difflib
from collections.abc import Iterable

# Real sets of equal length that sktime ships inside its package: no download.
BUNDLED = ("BasicMotions", "ACSF1", "ArrowHead", "GunPoint", "ItalyPowerDemand", "OSULeaf")
# The sets of the published experiments, by the names of the archive; ppg is PPG-DaLiA.
_PUBLISHED = "EigenWorms SelfRegulationSCP1 SelfRegulationSCP2 EthanolConcentration Heartbeat MotorImagery"
PUBLISHED_UEA = tuple(_PUBLISHED.split())
PPG = "ppg"
# Other real sets of long sequences.
SEQUENTIAL = ("FashionMNISTRows", "FashionMNISTPermuted", "MNIST5k", "PigCVP")
# The 30 multivariate sets of the archive's release of 2018.
_MULTIVARIATE = """
    ArticularyWordRecognition AtrialFibrillation BasicMotions CharacterTrajectories Cricket DuckDuckGeese ERing
    EigenWorms Epilepsy EthanolConcentration FaceDetection FingerMovements HandMovementDirection Handwriting Heartbeat
    InsectWingbeat JapaneseVowels LSST Libras MotorImagery NATOPS PEMS-SF PenDigits PhonemeSpectra RacketSports
    SelfRegulationSCP1 SelfRegulationSCP2 SpokenArabicDigits StandWalkJump UWaveGestureLibrary
"""
UEA_MULTIVARIATE = tuple(_MULTIVARIATE.split())
# Other spellings that are in use, too different from the names of the sets.
_ALSO_CALLED = {"ppgdalia": PPG, "ppgfieldstudy": PPG, "dalia": PPG, "worms": "EigenWorms", "ethanol": PUBLISHED_UEA[3]}


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` most probably means, or None.

    Case, spaces, hyphens and underscores do not count. A part of exactly one name ("SCP1", "motor") means that name;
    otherwise it is the most similar name, if one is similar enough.
    """
    plain = {_plain(candidate): candidate for candidate in sorted(known)}
    wanted = _plain(name)
    if wanted in plain:
        return plain[wanted]
    if _ALSO_CALLED.get(wanted) in plain.values():
        return _ALSO_CALLED[wanted]
    holding = [candidate for key, candidate in plain.items() if wanted in key] if len(wanted) >= 3 else []
    if len(holding) == 1:
        return holding[0]
    similar = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.7)
    return plain[similar[0]] if similar else None


def listed(names: Iterable[object], count: int = 10) -> str:
    """The first names, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
