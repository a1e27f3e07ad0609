"""What can be wrong with a person's data, as exceptions that the command line prints in one line.

Each message names the file, the numbers that disagree and the way out; none holds a patient's data.
"""


class FewscanError(Exception):
    """Something about the input or the request is wrong; the message is meant for a person."""


class ScanError(FewscanError):
    """A file cannot be read as a scan."""


class GeometryError(ScanError):
    """Positions, orientations or grids contradict each other."""


class LabelError(FewscanError):
    """Label values, names or label files contradict the label table."""


class PairingError(FewscanError):
    """Images and labels cannot be matched without guessing."""


class FormatError(FewscanError):
    """A mask cannot be written in this format, or what was written reads back differently."""


class BundleError(FewscanError):
    """A bundle is incomplete, untrained, or asks for what cannot be done."""


class BudgetError(FewscanError):
    """What is allowed of memory does not suffice."""


def ours(problem: BaseException) -> FewscanError | None:
    """The first of our errors in a chain of exceptions: MONAI wraps what transforms and expressions raise."""
    link: BaseException | None = problem
    while link is not None and not isinstance(link, FewscanError):
        link = link.__cause__ or link.__context__
    return link


def of_the_system(problem: BaseException) -> OSError | None:
    """The first error of files in a chain of exceptions: a folder that cannot be written, a full disk."""
    link: BaseException | None = problem
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return link


def first_line(problem: BaseException) -> str:
    """Type and first line of the cause that MONAI wrapped."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0]}"
