"""DICOM-SEG masks: coded and coloured segments on the frames of the source series, one file for each idea.

`binary` and `labelmap` are the two formats; both are described by `describe` and held to `read_back`.
"""
